#include "store.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "store_embedded.h"
#include "store_redis.h"

#define PURGE_STEP 100 /* sessions deleted in one transaction: short, since every writer of the node waits for it */

struct store {
    const struct store_ops *ops; /* of the place that answers */
    void *place;
    struct store_embedded *embedded; /* the place itself, or NULL */
};

struct store *store_open(const struct config *cfg, struct pollset *pollset, struct err *e)
{
    struct store *st = mem_alloc(sizeof *st);
    if (cfg->redis_url[0] != '\0') {
        st->ops = &store_redis_ops;
        struct redis_options o = { .sentinel_password = cfg->redis_sentinel_password,
                                   .timeout_ms = cfg->redis_timeout_ms,
                                   .wait_replicas = (int)cfg->session_redis_wait_replicas,
                                   .client_name = "hyperpage-fcgi",
                                   .pollset = pollset };
        if (redis_url_parse(cfg->redis_url, &o.url, e)) st->place = store_redis_open(&o);
    } else {
        struct store_embedded_options o = { .dir = cfg->state_dir, .sync_full = cfg->embedded_sync == 1,
                                            .max_total = cfg->session_max_total };
        st->ops = &store_embedded_ops;
        st->place = st->embedded = store_embedded_open(&o, e);
    }
    if (st->place != NULL) return st;
    free(st);
    return NULL;
}

void store_close(struct store *st)
{
    if (st == NULL) return;
    st->ops->close(st->place);
    free(st);
}

bool store_get(struct store *st, const char *id, int64_t deadline_ms, struct buf *doc, struct store_result *res,
               struct err *e)
{
    return st->ops->get(st->place, id, deadline_ms, doc, res, e);
}

bool store_create(struct store *st, const char *id, struct bytes doc, int64_t ttl_ms, int64_t deadline_ms,
                  struct store_result *res, struct err *e)
{
    bool ok = st->ops->create(st->place, id, doc, ttl_ms, deadline_ms, res, e);
    if (ok && res->changed) metrics_add(METRIC_sessions_created_total, 1);
    return ok;
}

bool store_update(struct store *st, const char *id, store_edit_fn *edit, void *ctx, int64_t ttl_ms,
                  int64_t deadline_ms, struct store_result *res, struct err *e)
{
    bool ok = st->ops->update(st->place, id, edit, ctx, ttl_ms, deadline_ms, res, e);
    if (ok && res->changed) metrics_add(METRIC_sessions_updated_total, 1);
    return ok;
}

bool store_delete(struct store *st, const char *id, int64_t deadline_ms, struct store_result *res, struct err *e)
{
    bool ok = st->ops->del(st->place, id, deadline_ms, res, e);
    if (ok && res->changed) metrics_add(METRIC_sessions_deleted_total, 1);
    return ok;
}

bool store_ready(struct store *st, int64_t deadline_ms, struct err *e)
{
    return st->embedded != NULL ? store_embedded_ready(st->embedded, deadline_ms, e)
                                : store_redis_ready(st->place, deadline_ms, e);
}

void store_flush(struct store *st)
{
    st->ops->flush(st->place);
}

const char *store_name(const struct store *st)
{
    return st->ops->name;
}

bool store_housekeep(struct store *st, bool *more, struct err *e)
{
    int64_t purged = 0;
    *more = false;
    if (st->embedded == NULL) return true;
    bool ok = store_embedded_housekeep(st->embedded, PURGE_STEP, &purged, more, e);
    metrics_add(METRIC_embedded_purged_total, (uint64_t)purged);
    return ok;
}
