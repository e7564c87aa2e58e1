#include "store.h"

#include "clock.h"
#include "mem.h"
#include "metrics.h"
#include "session.h"
#include "shelter.h"

#include <unistd.h>

#define MOST_DOCUMENT_BYTES (256u << 20)
#define PURGE_STEP          1000 /* sessions deleted in one transaction, if that takes so little that no writer minds */

/* Where an operation can be done. */
struct place {
    const struct store_ops *ops;
    void *self;
};

struct store {
    struct place home;               /* Redis, or the embedded store */
    struct place refuge;             /* what answers while Redis is away */
    struct store_embedded *embedded; /* NULL: this node keeps no file */
    struct store_redis *redis;       /* NULL: the embedded store is home, and what follows too */
    struct session_cache *copies;
    struct coordination *coordination; /* says whether the copies are coherent; NULL: they are not read */
    struct shelter *shelter;
    char node[256];
};

/* --- which place answers --- */

/* What was written to `id` in an outage goes back to Redis first; as long as Redis does not take it, the refuge goes on
 * with it. NULL, with `e`: no place can answer. */
static const struct place *place_for(struct store *st, const char *id, int64_t deadline_ms, struct err *e)
{
    if (st->shelter == NULL) return &st->home;
    if (shelter_is_needed(st->shelter)) return &st->refuge;
    if (shelter_release(st->shelter, id, deadline_ms, e)) return &st->home;
    if (e->kind != ERR_UNAVAILABLE) return NULL;
    if (e->away) shelter_report(st->shelter, e);
    return &st->refuge;
}

/* Where to go on after a failure at `from`; NULL: it is the answer. */
static const struct place *retreat(struct store *st, const struct place *from, const struct err *why)
{
    if (st->shelter == NULL || from == &st->refuge || !why->away) return NULL;
    shelter_report(st->shelter, why);
    return &st->refuge;
}

/* Redis has made the change, but the breaker has opened since: then the refuge serves the session, maybe already from a
 * row that somebody made of an older copy. What it does not know there is not to be told: Redis has it. */
static void tell_refuge(struct store *st, const struct place *at, const char *id, store_edit_fn *edit, void *ctx,
                        const struct store_terms *terms, int64_t deadline_ms)
{
    struct store_result res;
    struct err e;
    if (at != &st->home || !store_in_refuge(st)) return;
    if (st->refuge.ops->update(st->refuge.self, id, edit, ctx, terms, deadline_ms, &res, &e) && res.changed &&
        !res.deleted)
        shelter_hold(st->shelter, id, deadline_ms, &e);
}

/* For what is not about one session. */
static const struct place *place_of_all(const struct store *st)
{
    return st->shelter != NULL && shelter_is_needed(st->shelter) ? &st->refuge : &st->home;
}

/* --- others hear of it --- */

static void tell(const struct place *at, const struct store_event *event)
{
    if (at->ops->tell != NULL) at->ops->tell(at->self, event);
}

/* The replay has changed a session: who follows the events could not hear of it before. */
static void hear_of_replay(void *ctx, const struct replay_change *change)
{
    struct store *st = ctx;
    struct session_facts was = { 0 }, is = { 0 };
    char user[STORE_USER_BYTES] = "", was_user[STORE_USER_BYTES] = "";
    const bool born = change->base.len == 0; /* in the outage: Redis never had it, and nobody has heard of it */
    if (change->deleted ? born : change->doc.len == 0) return;
    if (session_facts(change->base, &was)) session_user(was.user_id, was_user, sizeof was_user);
    if (session_facts(change->doc, &is)) session_user(is.user_id, user, sizeof user);
    tell(&st->home, &(struct store_event){ .kind = change->deleted ? STORE_DELETED
                                                   : born          ? STORE_CREATED
                                                                   : STORE_UPDATED,
                                           .id = change->id,
                                           .user = user,
                                           .was_user = was_user,
                                           .expires_at_ms = change->deleted ? 0 : clock_wall_ms() + change->life_ms });
}

/* --- the operations --- */

bool store_get(struct store *st, const char *id, int64_t roll_ms, int64_t deadline_ms, struct buf *doc,
               struct store_result *res, struct err *e)
{
    const struct place *at = place_for(st, id, deadline_ms, e);
    while (at != NULL && !at->ops->get(at->self, id, roll_ms, deadline_ms, doc, res, e)) at = retreat(st, at, e);
    /* Answered on this node; where Redis is asked, its copies are counted there. */
    if (at != NULL && (st->redis == NULL || at == &st->refuge))
        metrics_add(res->found ? METRIC_cache_hits_total : METRIC_cache_misses_total, 1);
    return at != NULL;
}

void store_doubt(struct store *st, const char *id)
{
    if (st->redis != NULL) store_redis_doubt(st->redis, id);
}

bool store_create(struct store *st, const char *id, struct bytes doc, const struct store_terms *terms,
                  int64_t deadline_ms, struct store_result *res, struct err *e)
{
    const struct place *at = place_for(st, id, deadline_ms, e);
    if (at == NULL) return false;
    if (!at->ops->create(at->self, id, doc, terms, deadline_ms, res, e)) {
        retreat(st, at, e); /* whoever comes next knows */
        return false;
    }
    if (!res->changed) return true;
    metrics_add(METRIC_sessions_created_total, 1);
    tell(at, &(struct store_event){ .kind = STORE_CREATED,
                                    .id = id,
                                    .user = terms->user,
                                    .was_user = "",
                                    .expires_at_ms = res->expires_at_ms });
    return true;
}

/* A Redis that did not answer may have made the session, or may make it at any time until the connection is dead at its
 * end too: also after somebody has deleted it. So the refuge begins another one, and that one ends. */
bool store_create_new(struct store *st, char id[IDS_TEXT_BYTES], struct bytes doc, const struct store_terms *terms,
                      int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct err ignored;
    ids_new(id);
    if (store_create(st, id, doc, terms, deadline_ms, res, e)) return true;
    if (!e->away || !store_in_refuge(st)) return false;
    shelter_disown(st->shelter, id, deadline_ms, &ignored);
    ids_new(id);
    return store_create(st, id, doc, terms, deadline_ms, res, e);
}

bool store_update(struct store *st, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                  int64_t deadline_ms, struct store_result *res, struct err *e)
{
    const struct place *from = place_for(st, id, deadline_ms, e), *at = from;
    while (at != NULL && !at->ops->update(at->self, id, edit, ctx, terms, deadline_ms, res, e)) at = retreat(st, at, e);
    if (at == NULL) return false;
    if (!res->changed) return true;
    if (at != from && !res->deleted && !shelter_hold(st->shelter, id, deadline_ms, e)) return false;
    tell_refuge(st, at, id, edit, ctx, terms, deadline_ms);
    if (res->deleted) {
        metrics_add(METRIC_sessions_deleted_total, 1);
        tell(at, &(struct store_event){ .kind = STORE_DELETED, .id = id, .user = "", .was_user = terms->was_user });
        return true;
    }
    metrics_add(METRIC_sessions_updated_total, 1);
    if (terms->announce)
        tell(at, &(struct store_event){ .kind = STORE_UPDATED,
                                        .id = id,
                                        .user = terms->user,
                                        .was_user = terms->was_user,
                                        .expires_at_ms = res->expires_at_ms });
    return true;
}

bool store_rotate(struct store *st, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                  struct store_rotation *rotation, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                  struct err *e)
{
    const struct place *at = place_for(st, id, deadline_ms, e);
    while (at != NULL && !at->ops->rotate(at->self, id, edit, ctx, terms, rotation, deadline_ms, doc, res, e))
        at = retreat(st, at, e);
    if (at == NULL) return false;
    if (!res->changed) return true;
    metrics_add(METRIC_sessions_rotated_total, 1);
    tell(at, &(struct store_event){ .kind = STORE_ROTATED,
                                    .id = rotation->new_id,
                                    .was_id = id,
                                    .user = terms->user,
                                    .was_user = terms->was_user,
                                    .expires_at_ms = res->expires_at_ms });
    return true;
}

bool store_list(struct store *st, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx, struct err *e)
{
    const struct place *at = place_of_all(st);
    while (at != NULL && !at->ops->list(at->self, user, deadline_ms, each, ctx, e)) at = retreat(st, at, e);
    return at != NULL;
}

static void tell_life(const struct place *at, const char *id, const char *user, int64_t expires_at_ms)
{
    tell(at, &(struct store_event){
                 .kind = STORE_UPDATED, .id = id, .user = user, .was_user = user, .expires_at_ms = expires_at_ms });
}

bool store_expire(struct store *st, const char *id, const char *user, int64_t life_ms, bool only_longer,
                  int64_t deadline_ms, struct store_result *res, struct err *e)
{
    const struct place *at = place_for(st, id, deadline_ms, e);
    while (at != NULL && !at->ops->expire(at->self, id, life_ms, only_longer, deadline_ms, res, e))
        at = retreat(st, at, e);
    if (at == NULL) return false;
    if (res->changed) tell_life(at, id, user, res->expires_at_ms);
    return true;
}

void store_tell_life(struct store *st, const char *id, const char *user, int64_t expires_at_ms)
{
    tell_life(&st->home, id, user, expires_at_ms);
}

bool store_delete(struct store *st, const char *id, int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct buf was = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct session_facts facts;
    char user[STORE_USER_BYTES] = "";
    const struct place *at = place_for(st, id, deadline_ms, e);
    while (at != NULL && !at->ops->del(at->self, id, deadline_ms, &was, res, e)) at = retreat(st, at, e);
    if (at == &st->home && store_in_refuge(st)) { /* as tell_refuge() does */
        struct store_result there;
        struct err ignored;
        st->refuge.ops->del(st->refuge.self, id, deadline_ms, NULL, &there, &ignored);
    }
    if (at != NULL && res->changed) {
        if (session_facts(buf_bytes(&was), &facts)) session_user(facts.user_id, user, sizeof user);
        metrics_add(METRIC_sessions_deleted_total, 1);
        tell(at, &(struct store_event){ .kind = STORE_DELETED, .id = id, .user = "", .was_user = user });
    }
    buf_done(&was);
    return at != NULL;
}

bool store_heal(struct store *st, struct store_heal *heal, int64_t deadline_ms, struct err *e)
{
    const struct place *at = place_of_all(st);
    while (at != NULL && !at->ops->heal(at->self, heal, deadline_ms, e)) at = retreat(st, at, e);
    return at != NULL;
}

bool store_uses(const struct store *st, enum store_place place)
{
    return place == STORE_REDIS ? st->redis != NULL : st->embedded != NULL;
}

bool store_check(struct store *st, enum store_place place, int64_t deadline_ms, struct err *e)
{
    if (place == STORE_EMBEDDED) return store_embedded_ready(st->embedded, deadline_ms, e);
    if (store_redis_is_away(st)) return err_set_away(e, "redis is away");
    bool ok = store_redis_ready(st->redis, deadline_ms, e);
    if (!ok && e->away && st->shelter != NULL) shelter_report(st->shelter, e);
    return ok;
}

bool store_redis_is_away(const struct store *st)
{
    return st->shelter != NULL && shelter_is_needed(st->shelter);
}

bool store_count(struct store *st, int64_t deadline_ms, int64_t *sessions, struct err *e)
{
    return st->home.ops->count(st->home.self, deadline_ms, sessions, e);
}

bool store_scan(struct store *st, struct store_scan *scan, int64_t deadline_ms, struct err *e)
{
    if (store_redis_is_away(st)) return err_set_away(e, "redis is away");
    return st->home.ops->scan(st->home.self, scan, deadline_ms, e);
}

bool store_is_gone(struct store *st, const char *id, int64_t deadline_ms, bool *gone, struct err *e)
{
    if (store_redis_is_away(st)) return err_set_away(e, "redis is away");
    return st->home.ops->is_gone(st->home.self, id, deadline_ms, gone, e);
}

void store_cache_stats(const struct store *st, struct session_cache_stats *stats)
{
    *stats = (struct session_cache_stats){ 0 };
    if (st->copies != NULL) session_cache_stats(st->copies, stats);
}

/* --- rounds and housekeeping --- */

void store_flush(struct store *st)
{
    st->home.ops->flush(st->home.self);
    if (st->shelter != NULL) shelter_ops.flush(st->shelter);
}

bool store_in_refuge(const struct store *st)
{
    return st->shelter != NULL && shelter_is_needed(st->shelter) && shelter_serves(st->shelter);
}

const char *store_name(const struct store *st)
{
    return store_in_refuge(st) ? st->refuge.ops->name : st->home.ops->name;
}

static bool keep_embedded(struct store *st, bool *more, struct err *e)
{
    int64_t purged = 0;
    bool ok = store_embedded_housekeep(st->embedded, PURGE_STEP, &purged, more, e);
    metrics_add(METRIC_sessions_expired_total, (uint64_t)purged);
    if (st->redis == NULL) metrics_add(METRIC_cache_expiries_total, (uint64_t)purged);
    return ok;
}

bool store_housekeep(struct store *st, bool *more, struct err *e)
{
    bool to_purge = false, to_replay = false;
    bool ok = st->shelter == NULL || shelter_tend(st->shelter, &to_replay, e);
    if (st->copies != NULL) session_cache_tend(st->copies);
    if (st->embedded != NULL && !keep_embedded(st, &to_purge, e)) ok = false;
    *more = to_purge || to_replay;
    return ok;
}

/* --- opening --- */

static bool open_embedded(struct store *st, const struct config *cfg, struct err *e)
{
    struct store_embedded_options o = { .dir = cfg->state_dir,
                                        .sync_full = cfg->embedded_sync == 1,
                                        .max_total = cfg->session_max_total };
    st->embedded = store_embedded_open(&o, e);
    return st->embedded != NULL;
}

static bool open_copies(struct store *st, const struct config *cfg, struct err *e)
{
    st->copies = session_cache_open(cfg->run_dir, cfg->session_cache_bytes, e);
    if (st->copies == NULL) return false;
    return !cfg->session_cache_reads || (st->coordination = coordination_open(cfg->run_dir, e)) != NULL;
}

static bool open_redis(struct store *st, const struct config *cfg, const char *client_name, struct pollset *pollset,
                       struct err *e)
{
    struct store_redis_options o = { .connection = { .sentinel_password = cfg->redis_sentinel_password,
                                                     .timeout_ms = cfg->redis_timeout_ms,
                                                     .wait_replicas = (int)cfg->session_redis_wait_replicas,
                                                     .client_name = client_name,
                                                     .pollset = pollset },
                                     .most_events = cfg->session_events_max,
                                     .copies = st->copies,
                                     .coherence = st->coordination };
    if (!redis_url_parse(cfg->redis_url, &o.connection.url, e)) return false;
    st->redis = store_redis_open(&o);
    st->home = (struct place){ &store_redis_ops, st->redis };
    return !cfg->session_fallback_to_memory || open_embedded(st, cfg, e);
}

/* What this node does while Redis is away. */
static bool open_shelter(struct store *st, const struct config *cfg, struct err *e)
{
    gethostname(st->node, sizeof st->node - 1);
    struct shelter_options s = { .run_dir = cfg->run_dir,
                                 .redis = st->redis,
                                 .embedded = st->embedded,
                                 .copies = st->copies,
                                 .most_age_ms = cfg->session_refuge_max_age * 1000,
                                 .node = st->node,
                                 .changed = hear_of_replay,
                                 .ctx = st };
    st->shelter = shelter_open(&s, e);
    st->refuge = (struct place){ &shelter_ops, st->shelter };
    return st->shelter != NULL;
}

static bool open_home(struct store *st, const struct config *cfg, struct err *e)
{
    bool ok = open_embedded(st, cfg, e);
    st->home = (struct place){ &store_embedded_ops, st->embedded };
    return ok;
}

struct store *store_open(const struct config *cfg, struct pollset *pollset, struct err *e)
{
    struct store *st = mem_alloc(sizeof *st);
    bool ok =
        cfg->redis_url[0] == '\0'
            ? open_home(st, cfg, e)
            : open_copies(st, cfg, e) && open_redis(st, cfg, "hyperpage-fcgi", pollset, e) && open_shelter(st, cfg, e);
    if (ok) return st;
    store_close(st);
    return NULL;
}

struct store *store_open_alone(const struct config *cfg, struct pollset *pollset, struct err *e)
{
    struct store *st = mem_alloc(sizeof *st);
    bool redis = cfg->redis_url[0] != '\0';
    if (redis ? open_redis(st, cfg, "hyperpagectl", pollset, e) : open_home(st, cfg, e)) return st;
    store_close(st);
    return NULL;
}

struct redis *store_connection(const struct store *st)
{
    return st->redis != NULL ? store_redis_connection(st->redis) : NULL;
}

void store_close(struct store *st)
{
    if (st == NULL) return;
    shelter_close(st->shelter);
    store_redis_ops.close(st->redis);
    session_cache_close(st->copies);
    coordination_close(st->coordination);
    store_embedded_close(st->embedded);
    free(st);
}
