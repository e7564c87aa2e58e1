/* api.h: what the handlers of the API see: one exchange at a time, in a task of its own. */
#ifndef HYPERPAGE_API_H
#define HYPERPAGE_API_H

#include "config.h"
#include "http.h"
#include "ids.h"
#include "shared.h"
#include "store.h"

#define API_MOST_PROTECTED 16

/* What all exchanges of a worker share. */
struct api {
    const struct config *config;
    struct store *store;
    struct shared *shared;
    struct slot *slot;                                /* this worker's */
    char *protected_names;                            /* the memory behind `protected` */
    const char *protected[API_MOST_PROTECTED + 1];    /* members that need SERVICE_TOKEN, then NULL */
};

bool api_init(struct api *api, const struct config *cfg, struct store *store, struct shared *sh, struct slot *slot,
              struct err *e);
void api_done(struct api *api);

struct exchange {
    struct api *api;
    struct request rq;
    struct response rs;
    char request_id[IDS_TEXT_BYTES];
    const char *path_tail;      /* what stands for * in the route's path; "" where there is none */
    const char *phase;          /* what it waits for, for the slow log */
    int64_t started_ms, deadline_ms; /* monotonic */
    int route;                  /* index into the routes, -1 while it has none */
    bool timed_out;
    struct err error;           /* what went wrong behind a 5xx, for the log */
    struct buf body;            /* the request's, behind rq.body */
    struct buf doc;             /* the handler's scratch: a document */
    struct exchange *next, *prev; /* being answered, oldest first; or spare */
};

typedef void api_handler(struct exchange *x);

/* Answers for a store that failed: which kind of error gives which status stands here and nowhere else. */
void api_store_failed(struct exchange *x, const struct err *e);

/* Does the request carry one of the tokens in `accepted` (separated by commas)? */
bool api_has_token(const struct exchange *x, const char *accepted);

/* api_sessions.c */
api_handler sessions_get, sessions_head, sessions_post, sessions_patch, sessions_delete;
/* api_status.c */
api_handler status_live, status_ready, status_metrics;

#endif
