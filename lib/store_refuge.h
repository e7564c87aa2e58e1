/* store_refuge.h: sessions while Redis is away, in tables of the embedded store's file: Redis' sessions that were
 * changed on this node, sessions born here, and tombstones of deleted ones. A row stays until it is back in Redis
 * (replay). What is acknowledged is committed. Every operation may be called from a task, which then parks. */
#ifndef HYPERPAGE_STORE_REFUGE_H
#define HYPERPAGE_STORE_REFUGE_H

#include "ids.h"
#include "store_embedded.h"

struct refuge;

struct refuge_options {
    struct store_embedded *embedded; /* must outlive the refuge */
    /* Unless NULL, called inside the write transaction, before its commit, when rows are added. */
    void (*adding)(void *ctx, int64_t rows);
    void *ctx;
};

struct refuge *refuge_open(const struct refuge_options *o, struct err *e);
void refuge_close(struct refuge *rf);

/* --- for requests, while Redis is away --- */

enum refuge_knows {
    REFUGE_NOTHING, /* no row */
    REFUGE_EXPIRED, /* its row has expired; elsewhere it may live longer, so this is no 401 */
    REFUGE_DELETED, /* deleted on this node: it stays gone */
    REFUGE_SESSION
};

/* What an operation came to. */
struct refuge_result {
    enum refuge_knows knows; /* of the id, now */
    bool changed;
    int64_t expires_at_ms; /* wall; of a session */
};

/* What the node knows of a session beside the refuge: the bytes that Redis held, and until when (wall). */
struct refuge_copy {
    struct bytes doc;
    int64_t expires_at_ms;

    /* Unless NULL, called in the write transaction that would use the copy, to fill it in anew: somebody may have
     * learned better since. False: there is none any more. */
    bool (*look)(struct refuge_copy *self);
};

/* Appends the document of a session to `doc`. */
bool refuge_get(struct refuge *rf, const char *id, struct buf *doc, struct refuge_result *res, struct err *e);

/* Begins a session here. An id that has a row, of whatever kind, is not taken again: res->changed is false. */
bool refuge_create(struct refuge *rf, const char *id, struct bytes doc, const struct store_terms *terms,
                   int64_t deadline_ms, struct refuge_result *res, struct err *e);

/* Edits the row; or, where there is none, `copy` (NULL: no such), on which the new row is then based. The edit is not
 * called unless there is a session; what it does not change makes no row. Of `terms`, which the edit may fill in, the
 * life counts. */
bool refuge_update(struct refuge *rf, const char *id, struct refuge_copy *copy, store_edit_fn *edit, void *ctx,
                   const struct store_terms *terms, int64_t deadline_ms, struct refuge_result *res, struct err *e);

/* Sets the life of the row, or of `copy`, which then becomes a row; with `only_longer` unless it is longer already. */
bool refuge_expire(struct refuge *rf, const char *id, struct refuge_copy *copy, int64_t life_ms, bool only_longer,
                   int64_t deadline_ms, struct refuge_result *res, struct err *e);

/* Leaves a tombstone, where there is a row or a `copy`. */
bool refuge_delete(struct refuge *rf, const char *id, struct refuge_copy *copy, int64_t deadline_ms,
                   struct refuge_result *res, struct err *e);

/* Has the id a row? */
bool refuge_is_dirty(struct refuge *rf, const char *id, bool *dirty, struct err *e);

/* All rows. Unless NULL, `inside` is called in the write transaction in which they are counted. */
bool refuge_count(struct refuge *rf, void (*inside)(void *ctx), void *ctx, int64_t deadline_ms, int64_t *rows,
                  struct err *e);

/* --- for the replay --- */

enum refuge_outcome {
    REFUGE_UNSETTLED, /* not known yet: it must be tried again */
    REFUGE_REPLAYED,  /* Redis has it */
    REFUGE_DROPPED,   /* Redis has deleted it */
    REFUGE_REFUSED    /* Redis does not take it: kept, and not taken in bulk again before a minute has passed */
};

/* One version of a row on its way to Redis. A row has at most one at a time: while its outcome is not settled every
 * taker gets that same version, however often requests change the row meanwhile; what they make of it goes next. So a
 * replay may be killed or lose its answer: the same version is replayed again. */
struct refuge_row {
    int64_t number;
    int64_t version; /* random: names this version among all rows there ever were */
    char id[IDS_TEXT_BYTES];
    bool deleted;   /* a tombstone */
    bool born_here; /* else `base` is what Redis held */
    struct buf doc, base;
    char epoch[IDS_TEXT_BYTES];  /* the fact REFUGE_EPOCH when the row was based on Redis' data; "": not known */
    int64_t expires_at_ms;       /* wall; may be past */
    bool refused;                /* before */
    enum refuge_outcome outcome; /* for refuge_settle() */
    bool settled;                /* by this process, and by no other before... */
    bool stays;                  /* ...and the row was changed meanwhile: there is another version to take */
};

/* Takes the row of `id`, if it has one, or with NULL the oldest ones that are due, at most `most`. Rows are freed by
 * refuge_rows_done(), also after a failure; they start all zero. */
bool refuge_take(struct refuge *rf, const char *id, struct refuge_row *rows, size_t most, size_t *taken,
                 int64_t deadline_ms, struct err *e);
void refuge_rows_done(struct refuge_row *rows, size_t count);

/* Writes down what became of them. A row that has been changed meanwhile stays, based on the version that is settled.
 */
bool refuge_settle(struct refuge *rf, struct refuge_row *rows, size_t count, int64_t deadline_ms, struct err *e);

/* --- facts that outlive the processes --- */

#define REFUGE_EPOCH "epoch" /* hyperpage:epoch as this node saw it last */

/* Appends the value; nothing where there is none. */
bool refuge_fact(struct refuge *rf, const char *name, struct buf *value, struct err *e);
bool refuge_fact_set(struct refuge *rf, const char *name, struct bytes value, int64_t deadline_ms, struct err *e);

/* --- from the embedded store to Redis --- */

/* Makes at most `most` sessions of the embedded store rows that were born here, in one transaction. *more: some are
 * left. For a node whose REDIS_URL has been set: its sessions move. */
bool refuge_adopt(struct refuge *rf, int most, int64_t deadline_ms, bool *more, struct err *e);

#endif
