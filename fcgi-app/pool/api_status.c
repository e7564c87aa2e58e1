/* api_status.c: is this pool alive, ready and healthy? All of it from the shared state, so that the answer comes at
 * once also while what the pool depends on hangs. */
#include "api.h"

#include "clock.h"
#include "mem.h"
#include "processes.h"
#include "totals.h"

#include <inttypes.h>

enum check_state api_dependency(const struct api *api, enum dependency d, int64_t now_ms)
{
    return health_dependency(api->shared, d, store_redis_is_away(api->store), now_ms);
}

/* A node without a coordinator is none that has lost it. */
enum check_state api_coordinator(const struct api *api, int64_t now_ms)
{
    if (coordination_beat_ms(api->coordination) == 0) return CHECK_UNKNOWN;
    return coordination_alive(api->coordination, now_ms) ? CHECK_UP : CHECK_DOWN;
}

enum health api_health(const struct api *api, int64_t now_ms)
{
    if (atomic_load(&api->slot->state) == SLOT_DRAINING) return HEALTH_UNHEALTHY;
    enum health health = health_of(api_dependency(api, DEPENDENCY_REDIS, now_ms),
                                   api_dependency(api, DEPENDENCY_EMBEDDED, now_ms), store_in_refuge(api->store));
    bool lacks =
        api_dependency(api, DEPENDENCY_POSTGRES, now_ms) == CHECK_DOWN || api_coordinator(api, now_ms) == CHECK_DOWN;
    return health == HEALTH_HEALTHY && lacks ? HEALTH_DEGRADED : health;
}

int64_t api_sessions_active(const struct api *api)
{
    struct coordination_survey s;
    if (!store_uses(api->store, STORE_REDIS)) return atomic_load(shared_sessions(api->shared));
    coordination_read_survey(api->coordination, &s);
    return coordination_is_fresh(s.sessions_ms, clock_wall_ms()) ? s.sessions : -1;
}

int64_t api_sessions_held(const struct api *api)
{
    struct session_cache_stats copies;
    if (!store_uses(api->store, STORE_REDIS)) return atomic_load(shared_sessions(api->shared));
    store_cache_stats(api->store, &copies);
    return copies.entries;
}

/* Leaves the document open for more members. */
static void begin(struct exchange *x, enum health health)
{
    char now[CLOCK_ISO_BYTES];
    clock_iso(clock_wall_ms(), now);
    x->rs.status = 200;
    if (health == HEALTH_UNHEALTHY) {
        int64_t now_ms = clock_mono_ms();
        x->rs.status = 503;
        x->planned = atomic_load(&x->api->slot->state) == SLOT_DRAINING;
        response_header(&x->rs, "Retry-After", "1");
        err_set(&x->error, ERR_UNAVAILABLE, "not ready: redis %s, embedded store %s",
                health_check_names[api_dependency(x->api, DEPENDENCY_REDIS, now_ms)],
                health_check_names[api_dependency(x->api, DEPENDENCY_EMBEDDED, now_ms)]);
    }
    buf_printf(&x->rs.body, "{\"status\":\"%s\",\"timestamp\":\"%s\"", health_names[health], now);
}

static void tell_maintenance(struct exchange *x, bool maintenance)
{
    buf_printf(&x->rs.body, ",\"maintenance\":%s", maintenance ? "true" : "false");
}

void status_live(struct exchange *x)
{
    begin(x, HEALTH_HEALTHY);
    buf_puts(&x->rs.body, "}");
}

void status_ready(struct exchange *x)
{
    bool maintenance = health_in_maintenance(x->api->config->run_dir);
    begin(x, maintenance ? HEALTH_UNHEALTHY : api_health(x->api, clock_mono_ms()));
    x->planned = x->planned || maintenance;
    tell_maintenance(x, maintenance);
    buf_printf(&x->rs.body, ",\"store\":\"%s\"}", store_name(x->api->store));
}

/* --- the members of /api/health --- */

void api_tell_dependency(struct buf *body, const struct api *api, const char *name, enum dependency d)
{
    const struct check *c = shared_check(api->shared, d);
    int64_t now_ms = clock_mono_ms(), lost_ms = breaker_since_ms(api->breaker);
    enum check_state state = health_dependency(api->shared, d, lost_ms != 0, now_ms);
    buf_printf(body, ",\"%s\":{\"status\":\"%s\"", name, health_check_names[state]);
    if (state == CHECK_UP || state == CHECK_DOWN)
        buf_printf(body, ",\"latencyMs\":%.3f,\"ageMs\":%" PRId64 ",\"sinceMs\":%" PRId64,
                   (double)atomic_load(&c->latency_us) / 1000.0, now_ms - atomic_load(&c->checked_ms),
                   now_ms - health_since_ms(api->shared, d, lost_ms));
    buf_puts(body, "}");
}

static void tell_coordinator(struct exchange *x)
{
    const struct coordination *c = x->api->coordination;
    int64_t now_ms = clock_mono_ms();
    enum check_state state = api_coordinator(x->api, now_ms);
    buf_printf(&x->rs.body, ",\"coordinator\":{\"status\":\"%s\"", health_check_names[state]);
    if (state != CHECK_UNKNOWN)
        buf_printf(&x->rs.body, ",\"latencyMs\":%" PRId64 ",\"ageMs\":%" PRId64, coordination_lag_ms(c),
                   now_ms - coordination_beat_ms(c));
    buf_puts(&x->rs.body, "}");
}

static void tell_cache(struct exchange *x)
{
    struct session_cache_stats copies;
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals); /* too much for a task's stack */
    totals_read(x->api->shared, totals);
    store_cache_stats(x->api->store, &copies);
    uint64_t hits = totals[METRIC_cache_hits_total], misses = totals[METRIC_cache_misses_total];
    buf_printf(&x->rs.body,
               ",\"cache\":{\"hits\":%" PRIu64 ",\"misses\":%" PRIu64 ",\"expiries\":%" PRIu64 ",\"evictions\":%" PRIu64
               ",\"size\":%" PRId64 ",\"bytes\":%" PRId64 ",\"maxBytes\":%" PRId64 ",\"hitRate\":%" PRIu64 "}",
               hits, misses, totals[METRIC_cache_expiries_total], totals[METRIC_cache_evictions_total],
               api_sessions_held(x->api), copies.bytes, copies.limit_bytes,
               hits + misses > 0 ? (hits * 100 + (hits + misses) / 2) / (hits + misses) : 0);
    free(totals);
}

static void tell_workers(struct exchange *x)
{
    struct processes p;
    processes_read(x->api->shared, x->api->slot, &p);
    buf_printf(&x->rs.body,
               ",\"workers\":{\"status\":\"up\",\"total\":%" PRIu64 ",\"starting\":%" PRIu64 ",\"idle\":%" PRIu64
               ",\"busy\":%" PRIu64 ",\"draining\":%" PRIu64 ",\"dead\":%" PRIu64 ",\"requests\":%" PRIu64 "}",
               p.starting + p.idle + p.busy + p.draining, p.starting, p.idle, p.busy, p.draining, p.dead, p.requests);
}

/* Members of the original first. */
void status_health(struct exchange *x)
{
    begin(x, api_health(x->api, clock_mono_ms()));
    tell_maintenance(x, health_in_maintenance(x->api->config->run_dir));
    buf_puts(&x->rs.body, ",\"environment\":");
    buf_json_string(&x->rs.body, bytes_of(x->api->config->node_env));
    api_tell_dependency(&x->rs.body, x->api, "database", DEPENDENCY_POSTGRES);
    tell_cache(x);
    buf_puts(&x->rs.body, ",\"rateLimits\":");
    api_rate_limits(&x->rs.body, x->api);
    api_tell_dependency(&x->rs.body, x->api, "redis", DEPENDENCY_REDIS);
    api_tell_dependency(&x->rs.body, x->api, "embedded", DEPENDENCY_EMBEDDED);
    tell_coordinator(x);
    tell_workers(x);
    buf_printf(&x->rs.body, ",\"store\":\"%s\"}", store_name(x->api->store));
}
