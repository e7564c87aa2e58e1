/* store_redis.h: sessions in Redis: the document under hyperpage:session:ID, nothing around it, its life as the key's.
 * Other programs may read and write the same keys. */
#ifndef HYPERPAGE_STORE_REDIS_H
#define HYPERPAGE_STORE_REDIS_H

#include "coordination.h"
#include "redis.h"
#include "session_cache.h"
#include "store_backend.h"

struct store_redis;

extern const struct store_ops store_redis_ops;

struct store_redis_options {
    struct redis_options connection;
    int64_t most_events; /* about so many entries stay in the stream of events; 0: none are written */

    /* What is read and written is kept in `copies` (NULL: nowhere; must outlive the store), and a copy that is there is
     * what an update is based on: if Redis holds something else, it says so. While `coherence` (NULL: never) says that
     * a copy is what Redis holds, a read is answered from it. */
    struct session_cache *copies;
    const struct coordination *coherence;
};

/* Open it after fork. */
struct store_redis *store_redis_open(const struct store_redis_options *o);

/* What the store asks, for whoever else in this process asks the same Redis. The store's flush sends for all of them.
 */
struct redis *store_redis_connection(struct store_redis *sr);

/* Has all ended that calls have begun beside themselves? Close it only then, or with the process. */
bool store_redis_is_idle(const struct store_redis *sr);

/* The next read of `id` asks Redis. */
void store_redis_doubt(struct store_redis *sr, const char *id);

/* Do all servers that hold sessions answer, and is a write taken? Nothing is written. */
bool store_redis_ready(struct store_redis *sr, int64_t deadline_ms, struct err *e);

#endif
