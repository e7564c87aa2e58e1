/* store_embedded.h: sessions in one SQLite file (WAL) on this node, shared by any number of processes. The only user of
 * SQLite. Open it after fork, never before. */
#ifndef HYPERPAGE_STORE_EMBEDDED_H
#define HYPERPAGE_STORE_EMBEDDED_H

#include "store_backend.h"

struct store_embedded;

extern const struct store_ops store_embedded_ops;

struct store_embedded_options {
    const char *dir;          /* STATE_DIR: holds sessions.db and what belongs to it */
    bool sync_full;           /* each commit reaches the disk before it is acknowledged */
    int64_t max_total;        /* most live sessions, 0 = no limit: then create is ERR_FULL */
};

/* A damaged file is set aside as sessions.db.damaged-<time>, said in the log, and a new one begun. Any other failure
 * to open returns NULL with `e`. */
struct store_embedded *store_embedded_open(const struct store_embedded_options *o, struct err *e);
void store_embedded_close(struct store_embedded *se);

/* One step of housekeeping: deletes at most `most` expired sessions in one short transaction, and checkpoints the WAL
 * when it has grown. *more says whether expired ones are left. For whoever keeps house on this node: never a worker
 * that serves, unless nobody else is there. */
bool store_embedded_housekeep(struct store_embedded *se, int most, int64_t *purged, bool *more, struct err *e);

#endif
