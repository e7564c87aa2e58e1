/* user_index.h: which sessions a user has, in Redis: a sorted set of session ids by expiry for each user. A session is
 * entered before it becomes the user's, so the set holds more rather than less: whoever reads it looks at the sessions
 * and takes out what is dead or another's. */
#ifndef HYPERPAGE_USER_INDEX_H
#define HYPERPAGE_USER_INDEX_H

#include "redis.h"
#include "store_backend.h"

bool user_index_put(struct redis *r, const char *user, const char *id, int64_t expires_at_ms, int64_t deadline_ms,
                    struct err *e);
bool user_index_drop(struct redis *r, const char *user, const char *id, int64_t deadline_ms, struct err *e);

/* As the operations `list` and `heal` of store_backend.h. */
bool user_index_each(struct redis *r, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx,
                     struct err *e);
bool user_index_heal(struct redis *r, struct store_heal *heal, int64_t deadline_ms, struct err *e);

#endif
