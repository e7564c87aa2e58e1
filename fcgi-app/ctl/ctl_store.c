/* ctl_store.c: the places that sessions are kept in, and this node's copies of them. */
#include "ctl.h"

#include "clock.h"
#include "mem.h"
#include "totals.h"

#include <stdlib.h>

/* --- copies --- */

/* A cache that is there: nobody else would look at one that this command made. */
static enum ctl_exit open_cache(struct ctl *c, struct node *n, struct session_cache **cache)
{
    struct err e;
    *cache = NULL;
    if (!node_open(n, c->config, &e)) return ctl_failed(c, &e);
    if (n->shared == NULL) return ctl_fail(CTL_UNREACHABLE, "nothing runs with RUN_DIR=%s", c->config->run_dir);
    *cache = session_cache_open(c->config->run_dir, SESSION_CACHE_AS_IT_IS, &e);
    return *cache != NULL ? CTL_OK : ctl_failed(c, &e);
}

static void tell_cache(struct ctl *c, const struct node *n, struct session_cache *cache)
{
    struct report *r = &c->report;
    struct session_cache_stats stats = { 0 };
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals);
    totals_read(n->shared, totals);
    if (session_cache_is_on(cache)) session_cache_stats(cache, &stats);
    int64_t age_ms = clock_mono_ms() - coordination_stamped_ms(n->coordination);
    report_flag(r, "on", stats.limit_bytes > 0);
    report_flag(r, "coherent", age_ms >= 0 && age_ms <= COORDINATION_COHERENT_MS);
    report_number(r, "entries", stats.entries);
    report_number(r, "bytes", stats.bytes);
    report_number(r, "maxBytes", stats.limit_bytes);
    report_number(r, "hits", (int64_t)totals[METRIC_cache_hits_total]);
    report_number(r, "misses", (int64_t)totals[METRIC_cache_misses_total]);
    report_number(r, "expiries", (int64_t)totals[METRIC_cache_expiries_total]);
    report_number(r, "evictions", (int64_t)totals[METRIC_cache_evictions_total]);
    report_number(r, "invalidations", (int64_t)totals[METRIC_cache_invalidations_total]);
    free(totals);
}

enum ctl_exit cache_stats(struct ctl *c)
{
    struct node n;
    struct session_cache *cache;
    enum ctl_exit code = open_cache(c, &n, &cache);
    if (code == CTL_OK) tell_cache(c, &n, cache);
    session_cache_close(cache);
    node_close(&n);
    return code;
}

enum ctl_exit cache_flush(struct ctl *c)
{
    struct node n;
    struct session_cache *cache;
    enum ctl_exit code = open_cache(c, &n, &cache);
    if (code == CTL_OK) {
        session_cache_invalidate_all(cache);
        report_string(&c->report, "done", "no copy is believed any more");
    }
    session_cache_close(cache);
    node_close(&n);
    return code;
}

/* --- the places --- */

enum ctl_home ctl_home_of_pool(const struct ctl *c)
{
    struct node n;
    struct err e;
    enum ctl_home home = CTL_HOME_UNKNOWN;
    if (node_open(&n, c->config, &e) && n.master.pid != 0) {
        int state = atomic_load(&shared_check(n.shared, DEPENDENCY_REDIS)->state);
        if (state != CHECK_UNKNOWN) home = state == CHECK_UNUSED ? CTL_HOME_EMBEDDED : CTL_HOME_REDIS;
    }
    node_close(&n);
    return home;
}

struct store *ctl_open_store(struct ctl *c, struct pollset *pollset, enum ctl_exit *code)
{
    struct err e;
    struct store *st = store_open_alone(c->config, pollset, &e);
    if (st == NULL) *code = ctl_failed(c, &e);
    return st;
}

struct store *ctl_open_pools_store(struct ctl *c, enum ctl_exit *code)
{
    enum ctl_home home = ctl_home_of_pool(c);
    bool redis = c->config->redis_url[0] != '\0';
    if (home == CTL_HOME_REDIS && !redis)
        ctl_fail(*code,
                 "the pool that runs here keeps its sessions in Redis; without its REDIS_URL this looks elsewhere");
    if (home == CTL_HOME_EMBEDDED && redis)
        ctl_fail(*code, "the pool that runs here keeps its sessions in its embedded store; this looks into Redis");
    return ctl_open_store(c, NULL, code);
}

static enum ctl_exit look_at(struct ctl *c, struct store *st, enum store_place place, const char *name)
{
    struct err e;
    enum ctl_exit code = CTL_OK;
    report_open(&c->report, name);
    int64_t began_us = clock_mono_us();
    if (!store_uses(st, place)) {
        report_string(&c->report, "status", "unused");
    } else if (store_check(st, place, c->deadline_ms, &e)) {
        report_string(&c->report, "status", "up");
        report_ms(&c->report, "latencyMs", clock_mono_us() - began_us);
    } else {
        report_string(&c->report, "status", "down");
        report_string(&c->report, "error", e.text);
        code = CTL_UNREACHABLE;
    }
    report_close(&c->report);
    return code;
}

enum ctl_exit store_look(struct ctl *c)
{
    enum ctl_exit code = CTL_OK;
    struct store *st = ctl_open_store(c, NULL, &code);
    if (st == NULL) return code;
    enum ctl_exit redis = look_at(c, st, STORE_REDIS, "redis"), embedded = look_at(c, st, STORE_EMBEDDED, "embedded");
    store_close(st);
    return redis != CTL_OK ? redis : embedded;
}
