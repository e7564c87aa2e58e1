/* store_redis.h: sessions in Redis: the document under hyperpage:session:ID, nothing around it, its life as the key's.
 * Other programs may read and write the same keys. */
#ifndef HYPERPAGE_STORE_REDIS_H
#define HYPERPAGE_STORE_REDIS_H

#include "redis.h"
#include "session_cache.h"
#include "store_backend.h"

struct store_redis;

extern const struct store_ops store_redis_ops;

/* Open it after fork. The scripts of `connection` are set here. About `most_events` entries stay in the stream of events;
 * 0: none are written. What is read and written is kept in `copies` (which must outlive the store; NULL: nowhere), and a
 * copy that is there is what an update is based on: if Redis holds something else, it says so. */
struct store_redis *store_redis_open(const struct redis_options *connection, int64_t most_events,
                                     struct session_cache *copies);

/* Do all servers that hold sessions answer, and is a write taken? Nothing is written. */
bool store_redis_ready(struct store_redis *sr, int64_t deadline_ms, struct err *e);

#endif
