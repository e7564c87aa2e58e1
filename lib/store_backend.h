/* store_backend.h: the operations that every place for sessions offers. A backend keeps documents as bytes and knows
 * nothing of what is in them. All may be called from a task, which then parks while others run, or from plain code,
 * which then waits. `self` is the backend's own struct. */
#ifndef HYPERPAGE_STORE_BACKEND_H
#define HYPERPAGE_STORE_BACKEND_H

#include "buf.h"
#include "err.h"
#include "ids.h"

#include <stdint.h>

/* What became of an operation on one session. */
struct store_result {
    bool found;            /* the session was there (for create: the id was taken) */
    bool changed;          /* the store holds something else now */
    bool deleted;          /* update: by its edit */
    bool gone;             /* create: the id was deleted or rotated not long ago and stays gone */
    int64_t expires_at_ms; /* wall; 0 = not known here */
};

/* What goes with a document that is written. For an update the edit may fill it in: it is read when the edit returns.
 */
#define STORE_USER_BYTES 256
struct store_terms {
    int64_t ttl_ms;  /* the remaining life becomes this, or stays if it is longer... */
    int64_t most_ms; /* ...but never longer than this; 0: no limit */
    bool minted;     /* create: nobody can have known the id, so it need not be looked up among the gone ones */
    bool strict;     /* update: only where what is stored is known for sure: not in an outage of Redis */
    bool announce;   /* the index of users, and whoever follows the events, are to hear of this write */
    char user[STORE_USER_BYTES];     /* whose session it is; "": nobody's. Counts where `announce` is set */
    char was_user[STORE_USER_BYTES]; /* whose it was before */
};

/* How long an id stays gone, and how long the request that rotated it may be repeated. */
#define STORE_GONE_MS   86400000
#define STORE_REPEAT_MS 60000

/* A session that gets a new id. */
#define STORE_KEY_HASH_BYTES 40
struct store_rotation {
    char key_hash[STORE_KEY_HASH_BYTES]; /* names the request, so that its repetition gets the same id; "": no
                                            repetition */
    char new_id[IDS_TEXT_BYTES];         /* the id to give; afterwards the one that the session has */
    bool repeated;                       /* an earlier request of this name had done it: nothing was edited */
};

/* What others hear of a session. */
enum store_event_kind { STORE_CREATED, STORE_UPDATED, STORE_ROTATED, STORE_DELETED };
struct store_event {
    enum store_event_kind kind;
    const char *id, *was_id;     /* was_id: of a rotated one; else NULL */
    const char *user, *was_user; /* "": nobody */
    int64_t expires_at_ms;       /* wall; 0: not known, or deleted */
};

/* Progress of making the index of users equal to the sessions; all zero to begin, but for life_ms,
 * each and ctx. */
struct store_heal {
    int phase, server;
    char cursor[24];
    bool done;
    int64_t sessions, entered, removed; /* seen; entries put right, entries of no session taken out */
    int64_t life_ms;    /* set by the caller: a session without an end gets this life; 0: it stays as it is */
    int64_t given_life; /* how many got it */
    void (*each)(void *ctx, const char *id, const char *user, int64_t expires_at_ms); /* sees every session, or NULL */
    void *ctx;
};

/* A session as a pass over all of them finds it. */
struct store_found {
    struct bytes id;       /* as it stands there: in Redis any program may have made it */
    struct bytes doc;      /* any bytes */
    bool is_text;          /* false: a key of another type, which has no document */
    int64_t expires_at_ms; /* wall; 0: it has no end */
};

/* Progress of a pass over all live sessions; all zero to begin, but for each and ctx. */
struct store_scan {
    int server;
    char cursor[24];
    bool done;
    void (*each)(void *ctx, const struct store_found *found); /* must not call the store */
    void *ctx;
};

/* Called for each session of a user; false: it is not the user's any more. Must not call the store. */
typedef bool store_each_fn(void *ctx, const char *id, struct bytes doc, int64_t expires_at_ms);

enum store_verdict { STORE_KEEP, STORE_WRITE, STORE_DELETE };

/* Decides what becomes of a stored document: STORE_WRITE with the new bytes appended to `out` (which is empty), or one
 * of the others. The backend calls it with what is stored at that moment and, if somebody was faster, again with what
 * is stored then: only the last call counts. It must not park, block or call the store. */
typedef enum store_verdict store_edit_fn(void *ctx, struct bytes doc, struct buf *out);

struct store_ops {
    const char *name; /* as logs and metrics show it */

    /* Appends the stored bytes to `doc`, or res->found is false. With `roll_ms` above 0 a life that is more than a
     * tenth of it shorter may be set to it in the same step (res->changed); with STORE_ASK_LIFE only res->expires_at_ms
     * is wanted too; with 0 nothing more is asked than costs nothing. */
    bool (*get)(void *self, const char *id, int64_t roll_ms, int64_t deadline_ms, struct buf *doc,
                struct store_result *res, struct err *e);
#define STORE_ASK_LIFE (-1)

    /* Stores `doc` under `id` unless that id is there already (res->found) or gone for good (res->gone). ERR_FULL at
     * the operator's limit. */
    bool (*create)(void *self, const char *id, struct bytes doc, const struct store_terms *terms, int64_t deadline_ms,
                   struct store_result *res, struct err *e);

    /* Reads, lets `edit` decide, and writes only if nobody wrote in between, else again from the start: no update is
     * lost, and a session that is gone stays gone (res->found false, edit not called). */
    bool (*update)(void *self, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                   int64_t deadline_ms, struct store_result *res, struct err *e);

    /* Gives the session another id. `doc` gets what stands under it: what `edit` made of the document, or, if an
     * earlier request of the same name has done it within STORE_REPEAT_MS, what stands there now. res->found false: the
     * session is not there, and no such request was. Killed at any moment it leaves the session under one id: the old
     * one, or the new one, which a repetition gets. */
    bool (*rotate)(void *self, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                   struct store_rotation *rotation, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                   struct err *e);

    /* Sets the remaining life, with `only_longer` unless it is longer already. */
    bool (*expire)(void *self, const char *id, int64_t life_ms, bool only_longer, int64_t deadline_ms,
                   struct store_result *res, struct err *e);

    /* Deletes for good; res->found says whether it was there. What was deleted is appended to `was`, unless NULL. */
    bool (*del)(void *self, const char *id, int64_t deadline_ms, struct buf *was, struct store_result *res,
                struct err *e);

    /* Calls `each` for the live sessions of `user`. */
    bool (*list)(void *self, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx, struct err *e);

    /* A step of making the index of users equal to the sessions, where they can differ: after a process was killed
     * between the two. */
    bool (*heal)(void *self, struct store_heal *heal, int64_t deadline_ms, struct err *e);

    /* Lets others know; nobody waits for it, and what a crash loses, heal() finds. NULL where there is nobody. */
    void (*tell)(void *self, const struct store_event *event);

    /* Live sessions held. May be slow; for operators and tests. */
    bool (*count)(void *self, int64_t deadline_ms, int64_t *sessions, struct err *e);

    /* A step of a pass over all live sessions. What lives from the first step to the last is seen, maybe twice. NULL
     * where there is no such list. */
    bool (*scan)(void *self, struct store_scan *scan, int64_t deadline_ms, struct err *e);

    /* Would create() say that this id is gone for good? */
    bool (*is_gone)(void *self, const char *id, int64_t deadline_ms, bool *gone, struct err *e);

    /* End of a round: sends or commits what the tasks of this round asked for, and wakes those it can answer. */
    void (*flush)(void *self);

    void (*close)(void *self);
};

#endif
