/* store_embedded.h: sessions in one SQLite file (WAL) on this node, shared by any number of processes. With
 * store_refuge the only user of SQLite. Open it after fork, never before. */
#ifndef HYPERPAGE_STORE_EMBEDDED_H
#define HYPERPAGE_STORE_EMBEDDED_H

#include "store_backend.h"

struct store_embedded;

extern const struct store_ops store_embedded_ops;

struct store_embedded_options {
    const char *dir;   /* STATE_DIR: holds sessions.db and what belongs to it */
    bool sync_full;    /* each commit reaches the disk before it is acknowledged */
    int64_t max_total; /* most live sessions, then create is ERR_FULL; 0 = no limit. Exact among processes; an
                        * expired one counts at most a 1024th of its TTL longer */
};

/* A damaged file is set aside as sessions.db.damaged-<time>, said in the log, and a new one begun, unless another
 * process has it open: then, and on any other failure, NULL with `e`. Damage that is met later fails the operation and
 * is looked for when the next one opens the store that nobody else has open.
 *
 * flush() ends every round, also one without writes: the tasks' reads of a round share a snapshot until then. It waits
 * 0.2 s at most for the other writers and 0.2 s for SQLite; what is not written by then stays for the next round, and
 * its tasks are ready (task_any_ready()), so that the loop does not sleep. */
struct store_embedded *store_embedded_open(const struct store_embedded_options *o, struct err *e);
void store_embedded_close(struct store_embedded *se);

/* Can it be written now? Commits a transaction, which writes something at least every 10 s, and always where the disk
 * is nearly full. */
bool store_embedded_ready(struct store_embedded *se, int64_t deadline_ms, struct err *e);

/* One step of housekeeping: deletes expired sessions in one short transaction, at most `most` and only as many as
 * writers hardly notice, and checkpoints the WAL when it has grown. *more says whether expired ones are left. For
 * whoever keeps house on this node, every 100 ms or so (an idle store costs a few microseconds): never a worker that
 * serves, unless nobody else is there. False with ERR_UNAVAILABLE if writers left no turn: another time. */
bool store_embedded_housekeep(struct store_embedded *se, int most, int64_t *purged, bool *more, struct err *e);

/* How long the last step has kept the node's writers waiting at a stretch, in microseconds. */
int64_t store_embedded_held_us(const struct store_embedded *se);

/* --- for other tables in the same file (store_refuge) --- */

struct sqlite3;

/* Runs `work` in the write transaction of this round, in the order in which writes were asked for, and returns once it
 * is committed; in a task that parks, in plain code it happens at once. It must not park. If it returns false its `e`
 * is the answer; had it changed something before, nothing of the round is written. now_ms is wall time. */
typedef bool store_embedded_work_fn(void *ctx, struct sqlite3 *db, int64_t now_ms, struct err *e);
bool store_embedded_transact(struct store_embedded *se, store_embedded_work_fn *work, void *ctx, int64_t deadline_ms,
                             struct err *e);

/* For reading: in a task from the snapshot that the round's reads share. Statements are reset before the task parks and
 * finalized before the store is closed. */
struct sqlite3 *store_embedded_db(struct store_embedded *se);

/* What SQLite's last failure means for the caller, as the store's own operations say it. Always false. */
bool store_embedded_failed(struct store_embedded *se, const char *doing, struct err *e);

#endif
