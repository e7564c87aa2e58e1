/* redis_rotation.h: a session in Redis gets another id, which lies in another slot. So it is done in steps, and killed
 * between any two of them it leaves the session under one id that somebody can use: the new id is stored with a short
 * life; one script ends the old one if nobody has written it meanwhile, and leaves a mark that names the new one; the
 * new one gets its full life. A repetition of the request finds the mark and does what was left undone. */
#ifndef HYPERPAGE_REDIS_ROTATION_H
#define HYPERPAGE_REDIS_ROTATION_H

#include "redis.h"
#include "store_backend.h"

extern const char *const redis_rotation_script; /* to be loaded with the store's others */

struct redis_rotation {
    struct redis *redis;
    struct redis_script *script;
    const struct store_ops *ops; /* of the store in Redis, and itself: get and expire */
    void *store;
    const char *id; /* and the rest as for the operation `rotate` of store_backend.h */
    store_edit_fn *edit;
    void *ctx;
    const struct store_terms *terms;
    struct store_rotation *rotation;
    int64_t deadline_ms;
    struct buf *doc;
    /* Its own: */
    struct buf base;      /* what stood under the old id */
    char mark_text[192];  /* of an id that was rotated before; "" */
    int64_t left_ms;      /* of the old id's life */
    int64_t not_after_ms; /* Redis' time until which it may end */
};

bool redis_rotation_run(struct redis_rotation *ro, struct store_result *res, struct err *e);

#endif
