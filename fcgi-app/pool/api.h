/* api.h: what the handlers of the API see: one exchange at a time, in a task of its own. */
#ifndef HYPERPAGE_API_H
#define HYPERPAGE_API_H

#include "breaker.h"
#include "config.h"
#include "coordination.h"
#include "health.h"
#include "http.h"
#include "ids.h"
#include "life.h"
#include "limiter.h"
#include "messenger.h"
#include "shared.h"
#include "store.h"

#define API_MOST_PROTECTED 16

/* What all exchanges of a worker share. */
struct api {
    const struct config *config;
    struct store *store;
    struct shared *shared;
    struct slot *slot;       /* this worker's */
    struct breaker *breaker; /* NULL: there is no Redis */
    int listen_fd;           /* the pool's; -1 in a worker that leaves */
    struct life_rules life;
    struct coordination *coordination; /* what the coordinator knows */
    struct redis *redis;               /* for messages to other nodes; NULL: there are none */
    struct messenger messenger;
    struct limiter *creations;                     /* by client address; NULL: no limit */
    char *protected_names;                         /* the memory behind `protected` */
    const char *protected[API_MOST_PROTECTED + 1]; /* members that need SERVICE_TOKEN, then NULL */
};

bool api_init(struct api *api, const struct config *cfg, struct store *store, struct shared *sh, struct slot *slot,
              struct err *e);
void api_done(struct api *api);

struct exchange {
    struct api *api;
    struct request rq;
    struct response rs;
    char request_id[IDS_TEXT_BYTES];
    struct bytes path_tail;          /* what stands for * in the route's path */
    bool has_cookie;                 /* a session's cookie came with it, and counts */
    bool cookie_only;                /* and nothing else names a session */
    const char *phase;               /* what it waits for, for the slow log */
    int64_t started_ms, deadline_ms; /* monotonic */
    int route;                       /* index into the routes, -1 while it has none */
    enum endpoint endpoint;          /* known also where the route is not: 405 */
    bool timed_out;
    bool planned;                 /* a 5xx that is no failure: nobody is told */
    struct err error;             /* what went wrong behind a 5xx, for the log */
    struct buf body;              /* the request's, behind rq.body */
    struct buf doc;               /* the handler's scratch: a document */
    struct exchange *next, *prev; /* being answered, oldest first; or spare */
};

typedef void api_handler(struct exchange *x);

/* Answers for a store that failed: which kind of error gives which status stands here and nowhere else. */
void api_store_failed(struct exchange *x, const struct err *e);

/* Does the request carry one of the tokens in `accepted` (separated by commas)? */
bool api_has_token(const struct exchange *x, const char *accepted);

/* --- api_ids.c: the session that a request names --- */

enum id_given { ID_NONE, ID_GOOD, ID_WRONG };
enum id_given api_find_id(struct exchange *x, char id[IDS_TEXT_BYTES]); /* in path, query, header, cookie */
enum id_given api_find_body_id(struct exchange *x, struct bytes body,
                               char id[IDS_TEXT_BYTES]);     /* body, header, cookie */
bool api_refuse_id(struct exchange *x, enum id_given given); /* 400; always true, as all that refuse */
bool api_refuse_missing(struct exchange *x);                 /* 401 */

/* SESSION_COOKIE: sets the cookie of the answer; `id` "" clears it. */
void api_set_cookie(struct exchange *x, const char *id, int64_t expires_at_ms);

/* --- api_change.c: a change of a stored document --- */

/* What a request wants done to a session, and how that went; filled by the store's last call of api_apply_change(). */
struct change {
    struct exchange *x;
    const char *id;
    struct session_edit edit; /* of a delete only now_ms counts */
    bool delete;
    bool announce;      /* also where nothing says it must */
    const char *prefix; /* where the document stands in the body */
    struct store_terms terms;
    enum { CHANGE_MADE, CHANGE_MISSING, CHANGE_REFUSED, CHANGE_PRECONDITION, CHANGE_TOO_LARGE, CHANGE_CORRUPT } outcome;
    struct json_fault fault;
    char etag[SESSION_TAG_BYTES], version[SESSION_TAG_BYTES];
};

struct session_edit api_edit(const struct exchange *x, enum session_edit_kind kind, struct bytes change);
store_edit_fn api_apply_change;
bool api_if_match(const struct exchange *x, const struct session_facts *is); /* true also without an If-Match */
bool api_refuse_precondition(struct exchange *x, const char *etag, const char *version); /* 412 */
bool api_refuse_change(struct exchange *x, const struct change *c);                      /* false: it was made */

/* Answers for a document that is not what we accept. `prefix` is where it stands in the body. */
bool api_refuse_document(struct exchange *x, const char *prefix, const struct json_fault *fault);
bool api_refuse_size(struct exchange *x);

/* How long a document that is written now may live; of a new one also who hears of it. */
void api_terms(const struct api *api, const struct session_facts *is, int64_t now_ms, struct store_terms *terms);
void api_terms_new(const struct api *api, const struct session_facts *is, int64_t now_ms, struct store_terms *terms);

/* --- api_sessions.c --- */

api_handler sessions_get, sessions_head, sessions_post, sessions_patch, sessions_delete;

void api_session_headers(struct exchange *x, const char *etag, const char *version, int64_t expires_at_ms);
void api_answer_document(struct exchange *x, const char *id, const char *message); /* what is in x->doc */

/* An object in the body: *value is left without bytes where it is missing or null. False: it is answered. */
bool api_read_object(struct exchange *x, struct bytes body, const char *name, struct bytes *value);

/* Reads the document into x->doc and says what it tells. False: it is answered. */
bool api_read_session(struct exchange *x, const char *id, struct session_facts *facts);

/* api_rotate.c, api_extend.c */
api_handler sessions_rotate, sessions_extend;
/* --- api_coordination.c --- */

api_handler coordination_show, coordination_send;

/* Members for others' documents: what /api/coordination shows, and the rows of the rate limits. */
void api_tell_coordination(struct buf *body, const struct coordination *c);
void api_tell_limits(struct buf *body, const struct coordination *c);

bool api_coordination_open(struct api *api, struct err *e);
void api_coordination_close(struct api *api);

/* api_rate_limit.c */
api_handler rate_limit_show;
void api_rate_limits(struct buf *body, const struct api *api); /* the member of /api/health, an object */

/* api_admin.c */
bool api_is_admin(struct exchange *x); /* false: it is answered */
api_handler admin_list, admin_revoke;
/* api_status.c */
api_handler status_health, status_live, status_ready;

/* What a dependency looks like from here, and what that means for the pool. No lock, no call. */
enum check_state api_dependency(const struct api *api, enum dependency d, int64_t now_ms);
enum check_state api_coordinator(const struct api *api, int64_t now_ms); /* CHECK_UNKNOWN: there never was one */
enum health api_health(const struct api *api, int64_t now_ms);

/* Live sessions: of the embedded store, or in Redis those of all nodes; -1: nobody can tell. */
int64_t api_sessions_active(const struct api *api);

/* Sessions that this node holds: copies of those in Redis, or those of the embedded store. */
int64_t api_sessions_held(const struct api *api);

/* ,"NAME":{...}: one more member of a document. */
void api_tell_dependency(struct buf *body, const struct api *api, const char *name, enum dependency d);

/* api_metrics.c, api_overview.c */
api_handler status_metrics, status_overview;

/* api_metrics_coordination.c: what the coordinator has written down for others. Parks nowhere. */
struct exposition;
void api_metrics_coordination(struct exposition *ex, const struct api *api);

#endif
