/* store.h: sessions by id, wherever they are kept: in Redis where REDIS_URL is set, and while that is away in this
 * node's refuge; else in the embedded store. The only door to them: handlers never learn which place answered. */
#ifndef HYPERPAGE_STORE_H
#define HYPERPAGE_STORE_H

#include "config.h"
#include "pollset.h"
#include "session_cache.h"
#include "store_backend.h"

struct store;
struct redis;

/* Open it after fork. `pollset` NULL: only for use outside of tasks. */
struct store *store_open(const struct config *cfg, struct pollset *pollset, struct err *e);
void store_close(struct store *st);

/* For whoever looks at a place from outside, as the operator's tool does: that place alone, which may be another one than
 * the pool of this RUN_DIR uses. So nothing of RUN_DIR is touched: neither its copies, nor its breaker; nor is the
 * embedded store taken for a refuge whose sessions are Redis' from now on. */
struct store *store_open_alone(const struct config *cfg, struct pollset *pollset, struct err *e);

/* What the store asks of Redis with, for whoever else in this process has something to ask there, flushed with the
 * store; NULL where it keeps sessions elsewhere. */
struct redis *store_connection(const struct store *st);

/* As the operations of store_backend.h. A document in `doc` on return is what was stored, byte for byte. */
bool store_get(struct store *st, const char *id, int64_t roll_ms, int64_t deadline_ms, struct buf *doc,
               struct store_result *res, struct err *e);
void store_doubt(struct store *st, const char *id); /* the next read asks the place itself, not a copy */
bool store_create(struct store *st, const char *id, struct bytes doc, const struct store_terms *terms,
                  int64_t deadline_ms, struct store_result *res, struct err *e);

/* The same under an id that nobody can know yet (terms->minted); `id` is which. */
bool store_create_new(struct store *st, char id[IDS_TEXT_BYTES], struct bytes doc, const struct store_terms *terms,
                      int64_t deadline_ms, struct store_result *res, struct err *e);
bool store_update(struct store *st, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                  int64_t deadline_ms, struct store_result *res, struct err *e);
bool store_rotate(struct store *st, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                  struct store_rotation *rotation, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                  struct err *e);
bool store_list(struct store *st, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx, struct err *e);

/* Whose session it is stands in the document, so the caller says it: `user` "" for nobody's. */
bool store_expire(struct store *st, const char *id, const char *user, int64_t life_ms, bool only_longer,
                  int64_t deadline_ms, struct store_result *res, struct err *e);
bool store_delete(struct store *st, const char *id, int64_t deadline_ms, struct store_result *res, struct err *e);

/* Lets the index of users and whoever follows the events know of a live session whose life has changed. */
void store_tell_life(struct store *st, const char *id, const char *user, int64_t expires_at_ms);

/* A step of the hourly repair: call it until heal->done. For one process of the cluster at a time. */
bool store_heal(struct store *st, struct store_heal *heal, int64_t deadline_ms, struct err *e);

/* The places that this node may keep sessions in: the embedded store is home, or the refuge. */
enum store_place { STORE_REDIS, STORE_EMBEDDED };
bool store_uses(const struct store *st, enum store_place place);

/* Does a place that is used take writes now? Asks it, unless Redis is known to be away. */
bool store_check(struct store *st, enum store_place place, int64_t deadline_ms, struct err *e);

bool store_redis_is_away(const struct store *st); /* one load */

/* Live sessions at home. May be slow. */
bool store_count(struct store *st, int64_t deadline_ms, int64_t *sessions, struct err *e);

/* As the operations of store_backend.h, at home only. */
bool store_scan(struct store *st, struct store_scan *scan, int64_t deadline_ms, struct err *e);
bool store_is_gone(struct store *st, const char *id, int64_t deadline_ms, bool *gone, struct err *e);

/* Of the copies of what Redis holds; all 0 where there are none. */
void store_cache_stats(const struct store *st, struct session_cache_stats *stats);

/* End of a round: what the round's tasks asked for is sent or committed. */
void store_flush(struct store *st);

const char *store_name(const struct store *st); /* of the place that answers now: "redis", "refuge", "embedded" */
bool store_in_refuge(const struct store *st);

/* One step of what the places on this node need now and then: expired sessions go, files stay small, Redis is looked
 * for after an outage, and what was written meanwhile goes back to it. *more: call again soon. For the one process of
 * the node that keeps house; in a task it parks. */
bool store_housekeep(struct store *st, bool *more, struct err *e);

#endif
