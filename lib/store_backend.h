/* store_backend.h: the operations that every place for sessions offers. A backend keeps documents as bytes and knows
 * nothing of what is in them. All may be called from a task, which then parks while others run, or from plain code,
 * which then waits. `self` is the backend's own struct. */
#ifndef HYPERPAGE_STORE_BACKEND_H
#define HYPERPAGE_STORE_BACKEND_H

#include "buf.h"
#include "err.h"

#include <stdint.h>

/* What became of an operation on one session. */
struct store_result {
    bool found;            /* the session was there (for create: the id was taken) */
    bool changed;          /* the store holds something else now */
    int64_t expires_at_ms; /* wall; 0 = not known here */
};

enum store_verdict { STORE_KEEP, STORE_WRITE, STORE_DELETE };

/* Decides what becomes of a stored document: STORE_WRITE with the new bytes appended to `out` (which is empty), or one
 * of the others. The backend calls it with what is stored at that moment and, if somebody was faster, again with what
 * is stored then: only the last call counts. It must not park, block or call the store. */
typedef enum store_verdict store_edit_fn(void *ctx, struct bytes doc, struct buf *out);

struct store_ops {
    const char *name; /* as logs and metrics show it */

    /* Appends the stored bytes to `doc`, or res->found is false. */
    bool (*get)(void *self, const char *id, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                struct err *e);

    /* Stores `doc` under `id` unless that id is there already (res->found). ERR_FULL at the operator's limit. */
    bool (*create)(void *self, const char *id, struct bytes doc, int64_t ttl_ms, int64_t deadline_ms,
                   struct store_result *res, struct err *e);

    /* Reads, lets `edit` decide, and writes only if nobody wrote in between, else again from the start: no update is
     * lost, and a session that is gone stays gone (res->found false, edit not called). A write sets the remaining
     * life to ttl_ms, or leaves it if it is longer. */
    bool (*update)(void *self, const char *id, store_edit_fn *edit, void *ctx, int64_t ttl_ms, int64_t deadline_ms,
                   struct store_result *res, struct err *e);

    /* Deletes; res->found says whether it was there. */
    bool (*del)(void *self, const char *id, int64_t deadline_ms, struct store_result *res, struct err *e);

    /* Live sessions held. May be slow; for operators and tests. */
    bool (*count)(void *self, int64_t deadline_ms, int64_t *sessions, struct err *e);

    /* End of a round: sends or commits what the tasks of this round asked for, and wakes those it can answer. */
    void (*flush)(void *self);

    void (*close)(void *self);
};

#endif
