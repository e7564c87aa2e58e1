#include "store.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "session.h"
#include "store_embedded.h"
#include "store_redis.h"

#define MOST_DOCUMENT_BYTES (256u << 20)
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
        if (redis_url_parse(cfg->redis_url, &o.url, e)) st->place = store_redis_open(&o, cfg->session_events_max);
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

static void tell(struct store *st, const struct store_event *event)
{
    if (st->ops->tell != NULL) st->ops->tell(st->place, event);
}

bool store_get(struct store *st, const char *id, int64_t roll_ms, int64_t deadline_ms, struct buf *doc,
               struct store_result *res, struct err *e)
{
    return st->ops->get(st->place, id, roll_ms, deadline_ms, doc, res, e);
}

bool store_create(struct store *st, const char *id, struct bytes doc, const struct store_terms *terms,
                  int64_t deadline_ms, struct store_result *res, struct err *e)
{
    if (!st->ops->create(st->place, id, doc, terms, deadline_ms, res, e)) return false;
    if (!res->changed) return true;
    metrics_add(METRIC_sessions_created_total, 1);
    tell(st, &(struct store_event){ .kind = STORE_CREATED, .id = id, .user = terms->user, .was_user = "",
                                    .expires_at_ms = res->expires_at_ms });
    return true;
}

bool store_update(struct store *st, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                  int64_t deadline_ms, struct store_result *res, struct err *e)
{
    if (!st->ops->update(st->place, id, edit, ctx, terms, deadline_ms, res, e)) return false;
    if (!res->changed) return true;
    if (res->deleted) {
        metrics_add(METRIC_sessions_deleted_total, 1);
        tell(st, &(struct store_event){ .kind = STORE_DELETED, .id = id, .user = "", .was_user = terms->was_user });
        return true;
    }
    metrics_add(METRIC_sessions_updated_total, 1);
    if (terms->announce)
        tell(st, &(struct store_event){ .kind = STORE_UPDATED, .id = id, .user = terms->user,
                                        .was_user = terms->was_user, .expires_at_ms = res->expires_at_ms });
    return true;
}

bool store_rotate(struct store *st, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                  struct store_rotation *rotation, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                  struct err *e)
{
    if (!st->ops->rotate(st->place, id, edit, ctx, terms, rotation, deadline_ms, doc, res, e)) return false;
    if (!res->changed) return true;
    metrics_add(METRIC_sessions_rotated_total, 1);
    tell(st, &(struct store_event){ .kind = STORE_ROTATED, .id = rotation->new_id, .was_id = id, .user = terms->user,
                                    .was_user = terms->was_user, .expires_at_ms = res->expires_at_ms });
    return true;
}

bool store_list(struct store *st, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx,
                struct err *e)
{
    return st->ops->list(st->place, user, deadline_ms, each, ctx, e);
}

void store_tell_life(struct store *st, const char *id, const char *user, int64_t expires_at_ms)
{
    tell(st, &(struct store_event){ .kind = STORE_UPDATED, .id = id, .user = user, .was_user = user,
                                    .expires_at_ms = expires_at_ms });
}

bool store_expire(struct store *st, const char *id, const char *user, int64_t life_ms, bool only_longer,
                  int64_t deadline_ms, struct store_result *res, struct err *e)
{
    if (!st->ops->expire(st->place, id, life_ms, only_longer, deadline_ms, res, e)) return false;
    if (res->changed) store_tell_life(st, id, user, res->expires_at_ms);
    return true;
}

bool store_delete(struct store *st, const char *id, int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct buf was = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct session_facts facts;
    char user[STORE_USER_BYTES] = "";
    bool ok = st->ops->del(st->place, id, deadline_ms, &was, res, e);
    if (ok && res->changed) {
        if (session_facts(buf_bytes(&was), &facts)) session_user(facts.user_id, user, sizeof user);
        metrics_add(METRIC_sessions_deleted_total, 1);
        tell(st, &(struct store_event){ .kind = STORE_DELETED, .id = id, .user = "", .was_user = user });
    }
    buf_done(&was);
    return ok;
}

bool store_heal(struct store *st, struct store_heal *heal, int64_t deadline_ms, struct err *e)
{
    return st->ops->heal(st->place, heal, deadline_ms, e);
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
