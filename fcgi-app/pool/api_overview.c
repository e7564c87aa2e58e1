/* api_overview.c: /api/status: all that the status page shows, in one document: what every process of the node has
 * counted, what each worker does now, what the coordinator knows. All of it from the shared state: nothing is asked,
 * nothing is waited for. Counters are told as they stand; rates and quantiles are the differences between two answers,
 * so any number of pages may look, at any pace. */
#include "api.h"

#include "backlog.h"
#include "clock.h"
#include "mem.h"
#include "processes.h"
#include "routes.h"
#include "totals.h"

#include <inttypes.h>

static const char *yes_no(bool b)
{
    return b ? "true" : "false";
}

static void tell_time(struct buf *body, const char *name, int64_t wall_ms)
{
    char when[CLOCK_ISO_BYTES];
    clock_iso(wall_ms, when);
    buf_printf(body, "\"%s\":\"%s\"", name, when);
}

/* --- counters, by the document's members --- */

struct counted {
    const char *name;
    enum metric metric;
};

static const struct counted of_pool[] = {
    { "timedOut", METRIC_requests_timed_out_total },
    { "connectionsAccepted", METRIC_connections_accepted_total },
    { "connectionsHandedOver", METRIC_connections_handed_over_total },
    { "connectionsRefused", METRIC_connections_refused_total },
};
static const struct counted of_restarts[] = {
    { "exit", METRIC_restarts_exit },       { "signal", METRIC_restarts_signal },
    { "stalled", METRIC_restarts_stalled }, { "maxRequests", METRIC_restarts_max_requests },
    { "reload", METRIC_restarts_reload },
};
static const struct counted of_generations[] = {
    { "start", METRIC_generations_start },
    { "upgrade", METRIC_generations_upgrade },
    { "reload", METRIC_generations_reload },
};
static const struct counted of_cpu[] = {
    { "master", METRIC_cpu_master },
    { "worker", METRIC_cpu_worker },
    { "keeper", METRIC_cpu_keeper },
    { "coordinator", METRIC_cpu_coordinator },
};
static const struct counted of_sessions[] = {
    { "created", METRIC_sessions_created_total },   { "updated", METRIC_sessions_updated_total },
    { "deleted", METRIC_sessions_deleted_total },   { "rotated", METRIC_sessions_rotated_total },
    { "extended", METRIC_sessions_extended_total }, { "revoked", METRIC_sessions_revoked_total },
    { "expired", METRIC_sessions_expired_total },   { "creationsLimited", METRIC_creations_limited_total },
};
static const struct counted of_redis[] = {
    { "commands", METRIC_redis_commands_total },
    { "connects", METRIC_redis_connects_total },
    { "timeouts", METRIC_redis_timeouts },
    { "errorReplies", METRIC_redis_error_replies },
    { "connectErrors", METRIC_redis_connect_errors },
    { "casRetries", METRIC_cas_retries_total },
    { "embeddedCommits", METRIC_embedded_commits_total },
};
static const struct counted of_replay[] = {
    { "outages", METRIC_breaker_trips_total },      { "replayed", METRIC_sessions_replayed_total },
    { "conflicts", METRIC_replay_conflicts_total }, { "dropped", METRIC_replay_dropped_total },
    { "kept", METRIC_replay_kept_total },
};
static const struct counted of_cache[] = {
    { "hits", METRIC_cache_hits_total },
    { "misses", METRIC_cache_misses_total },
    { "invalidations", METRIC_cache_invalidations_total },
    { "expiries", METRIC_cache_expiries_total },
    { "evictions", METRIC_cache_evictions_total },
};
static const struct counted of_coordination[] = {
    { "malformed", METRIC_coordination_messages_malformed_total },
    { "refused", METRIC_coordination_messages_refused_total },
    { "droppedLow", METRIC_coordination_messages_dropped_low },
    { "droppedNormal", METRIC_coordination_messages_dropped_normal },
    { "droppedHigh", METRIC_coordination_messages_dropped_high },
    { "gaps", METRIC_coordination_gaps_total },
    { "refreshes", METRIC_coordination_refreshes_total },
    { "electionsWon", METRIC_coordination_elections_won_total },
    { "leadershipsLost", METRIC_coordination_leaderships_lost_total },
};
static const struct counted of_cleanup[] = {
    { "runs", METRIC_cleanup_runs_total },
    { "rows", METRIC_cleanup_rows_total },
    { "indexEntries", METRIC_cleanup_index_entries_total },
    { "sessionsEnded", METRIC_cleanup_sessions_ended_total },
    { "jobsCompleted", METRIC_jobs_completed_total },
    { "jobsFailed", METRIC_jobs_failed_total },
    { "postgresTransactions", METRIC_postgres_transactions_total },
    { "postgresErrors", METRIC_postgres_errors_total },
    { "fenceRefusals", METRIC_fence_refusals_total },
};

#define COUNTED(table) table, sizeof table / sizeof table[0]

/* "a":1,"b":2 */
static void tell_counted(struct buf *body, const uint64_t *totals, const struct counted *table, size_t rows)
{
    for (size_t i = 0; i < rows; i++)
        buf_printf(body, "%s\"%s\":%" PRIu64, i > 0 ? "," : "", table[i].name, totals[table[i].metric]);
}

/* --- requests and where their time goes --- */

static void tell_histogram(struct buf *body, const uint64_t *histogram)
{
    buf_printf(body, "\"sumMs\":%.3f,\"buckets\":[", (double)histogram[METRICS_SUM_US] / 1000.0);
    for (size_t b = 0; b < METRICS_BUCKETS; b++) buf_printf(body, "%s%" PRIu64, b > 0 ? "," : "", histogram[b]);
    buf_puts(body, "]");
}

static void tell_answers(struct buf *body, const uint64_t *totals, enum endpoint endpoint)
{
    uint64_t by_class[6] = { 0 }, all = 0; /* 0: of no status that is counted by itself */
    for (size_t m = 0; m < HTTP_METHODS; m++)
        for (size_t s = 0; s < METRICS_STATUSES; s++) {
            uint64_t n = totals[metrics_request_at((enum http_method)m, endpoint, s)];
            by_class[metrics_statuses[s] / 100] += n;
            all += n;
        }
    buf_printf(body, "\"requests\":%" PRIu64, all);
    for (int c = 2; c <= 5; c++) buf_printf(body, ",\"%dxx\":%" PRIu64, c, by_class[c]);
}

static void tell_requests(struct buf *body, const uint64_t *totals)
{
    buf_puts(body, "\"bucketBoundsMs\":[");
    for (size_t b = 0; b + 1 < METRICS_BUCKETS; b++)
        buf_printf(body, "%s%g", b > 0 ? "," : "", strtod(metrics_bounds[b], NULL) * 1000.0);
    buf_puts(body, "],\"endpoints\":[");
    for (size_t p = 0; p < ENDPOINT_COUNT; p++) {
        buf_printf(body, "%s{\"path\":\"%s\",", p > 0 ? "," : "", endpoint_paths[p]);
        tell_answers(body, totals, (enum endpoint)p);
        buf_puts(body, ",");
        tell_histogram(body, totals + METRICS_DURATIONS_AT + p * METRICS_HISTOGRAM);
        buf_puts(body, "}");
    }
    buf_puts(body, "],\"phases\":[");
    for (size_t p = 0; p < PHASE_COUNT; p++) {
        buf_printf(body, "%s{\"phase\":\"%s\",", p > 0 ? "," : "", metrics_phases[p]);
        tell_histogram(body, totals + METRICS_PHASES_AT + p * METRICS_HISTOGRAM);
        buf_puts(body, "}");
    }
    buf_puts(body, "]");
}

/* --- the pool --- */

static void tell_pool(struct buf *body, const struct exchange *x, const uint64_t *totals)
{
    struct processes p;
    uint32_t waiting = 0, most = 0;
    processes_read(x->api->shared, x->api->slot, &p);
    buf_printf(body,
               "\"starting\":%" PRIu64 ",\"idle\":%" PRIu64 ",\"busy\":%" PRIu64 ",\"draining\":%" PRIu64
               ",\"dead\":%" PRIu64 ",\"connections\":%" PRIu64 ",\"requests\":%" PRIu64 ",",
               p.starting, p.idle, p.busy, p.draining, p.dead, p.connections, p.requests);
    if (backlog_read(x->api->listen_fd, &waiting, &most))
        buf_printf(body, "\"waiting\":%" PRIu32 ",\"waitingLimit\":%" PRIu32 ",", waiting, most);
    else
        buf_puts(body, "\"waiting\":null,\"waitingLimit\":null,");
    tell_counted(body, totals, COUNTED(of_pool));
    buf_puts(body, ",\"restarts\":{");
    tell_counted(body, totals, COUNTED(of_restarts));
    buf_puts(body, "},\"generations\":{");
    tell_counted(body, totals, COUNTED(of_generations));
    buf_puts(body, "},\"cpuMs\":{");
    for (size_t r = 0; r < sizeof of_cpu / sizeof of_cpu[0]; r++)
        buf_printf(body, "%s\"%s\":%" PRIu64, r > 0 ? "," : "", of_cpu[r].name, totals[of_cpu[r].metric] / 1000);
    buf_puts(body, "}");
}

/* Of a slot, by whoever has owned it: a successor continues its predecessor's counters. */
static uint64_t answered_in(const struct slot *s)
{
    uint64_t n = 0;
    for (size_t p = 0; p < ENDPOINT_COUNT; p++)
        for (size_t b = 0; b < METRICS_BUCKETS; b++)
            n += atomic_load_explicit(&s->counter[METRICS_DURATIONS_AT + p * METRICS_HISTOGRAM + b],
                                      memory_order_relaxed);
    return n;
}

static const char *state_of(const struct slot *s, bool alive)
{
    if (!alive) return "dead";
    switch (atomic_load(&s->state)) {
    case SLOT_STARTING:
        return "starting";
    case SLOT_DRAINING:
        return "draining";
    default:
        return atomic_load(&s->requests) > 0 ? "busy" : "idle";
    }
}

static void tell_worker(struct buf *body, const struct slot *s, size_t index, bool alive, bool answers)
{
    int64_t since_ms = atomic_load(&s->oldest_since_ms), age_ms = clock_mono_ms() - since_ms;
    buf_printf(body, "{\"slot\":%zu,\"pid\":%" PRId32 ",\"state\":\"%s\",\"answersThis\":%s,", index,
               atomic_load(&s->pid), state_of(s, alive), yes_no(answers));
    tell_time(body, "started", atomic_load(&s->started_ms));
    buf_printf(body, ",\"connections\":%" PRId32 ",\"requests\":%" PRId32 ",\"answered\":%" PRIu64 ",\"oldest\":",
               atomic_load(&s->connections), atomic_load(&s->requests), answered_in(s));
    if (since_ms == 0 || !alive)
        buf_puts(body, "null}");
    else
        buf_printf(body, "{\"method\":\"%s\",\"path\":\"%s\",\"ageMs\":%" PRId64 "}}",
                   http_methods[atomic_load(&s->oldest_method) & (HTTP_METHODS - 1)],
                   routes_name(atomic_load(&s->oldest_route)), age_ms > 0 ? age_ms : 0);
}

static void tell_workers(struct buf *body, const struct exchange *x)
{
    struct shared *sh = x->api->shared;
    const char *comma = "";
    for (size_t i = 0; i < shared_slots_used(sh); i++) {
        const struct slot *s = shared_slot(sh, i);
        if (atomic_load(&s->role) != SLOT_WORKER || atomic_load(&s->pid) == 0) continue;
        buf_puts(body, comma);
        tell_worker(body, s, i, s == x->api->slot || shared_slot_alive(sh, i), s == x->api->slot);
        comma = ",";
    }
}

/* --- sessions and where they are --- */

static void tell_sessions(struct buf *body, const struct exchange *x, const uint64_t *totals)
{
    int64_t active = api_sessions_active(x->api);
    if (active < 0)
        buf_puts(body, "\"active\":null,");
    else
        buf_printf(body, "\"active\":%" PRId64 ",", active);
    tell_counted(body, totals, COUNTED(of_sessions));
}

static void tell_breaker(struct buf *body, const struct breaker *b, const uint64_t *totals)
{
    struct breaker_outage o;
    if (b == NULL) {
        buf_puts(body, "null");
        return;
    }
    bool open = breaker_outage(b, &o);
    buf_printf(body, "{\"open\":%s,", yes_no(open));
    if (open)
        tell_time(body, "since", o.since_wall_ms);
    else
        buf_puts(body, "\"since\":null");
    buf_printf(body, ",\"dirty\":%" PRId64 ",", breaker_dirty(b));
    tell_counted(body, totals, COUNTED(of_replay));
    buf_puts(body, "}");
}

static void tell_store(struct buf *body, const struct exchange *x, const uint64_t *totals)
{
    struct session_cache_stats copies;
    store_cache_stats(x->api->store, &copies);
    buf_printf(body, "\"answers\":\"%s\"", store_name(x->api->store));
    api_tell_dependency(body, x->api, "redis", DEPENDENCY_REDIS);
    api_tell_dependency(body, x->api, "embedded", DEPENDENCY_EMBEDDED);
    buf_puts(body, ",\"breaker\":");
    tell_breaker(body, x->api->breaker, totals);
    buf_puts(body, ",");
    tell_counted(body, totals, COUNTED(of_redis));
    buf_printf(body, ",\"cache\":{\"entries\":%" PRId64 ",\"bytes\":%" PRId64 ",\"maxBytes\":%" PRId64 ",",
               copies.entries, copies.bytes, copies.limit_bytes);
    tell_counted(body, totals, COUNTED(of_cache));
    buf_puts(body, "}");
}

/* --- the cluster, and what its leader clears away and counts --- */

static void tell_coordination(struct buf *body, const struct exchange *x, const uint64_t *totals)
{
    uint64_t sent = 0, received = 0;
    for (int t = 0; t <= MESSAGE_UNKNOWN; t++)
        for (int p = 0; p < MESSAGE_PRIORITIES; p++) {
            received += totals[message_received((enum message_type)t, (enum message_priority)p)];
            if (t < MESSAGE_TYPES) sent += totals[message_sent((enum message_type)t, (enum message_priority)p)];
        }
    api_tell_coordination(body, x->api->coordination);
    buf_printf(body, ",\"totals\":{\"sent\":%" PRIu64 ",\"received\":%" PRIu64 ",", sent, received);
    tell_counted(body, totals, COUNTED(of_coordination));
    buf_puts(body, "}");
}

static void tell_cleanup(struct buf *body, const struct exchange *x, const uint64_t *totals)
{
    struct coordination_survey s;
    coordination_read_survey(x->api->coordination, &s);
    tell_counted(body, totals, COUNTED(of_cleanup));
    buf_printf(body, ",\"intervalMinutes\":%" PRId64 ",", (int64_t)x->api->config->session_cleanup_interval_minutes);
    if (s.cleaned_ms > 0)
        tell_time(body, "last", s.cleaned_ms);
    else
        buf_puts(body, "\"last\":null");
    api_tell_dependency(body, x->api, "database", DEPENDENCY_POSTGRES);
    buf_puts(body, ",\"jobs\":");
    bool counted = coordination_is_fresh(s.jobs_ms, clock_wall_ms());
    if (!counted) buf_puts(body, "null");
    for (size_t i = 0; counted && i < COORDINATION_JOB_STATUSES; i++)
        buf_printf(body, "%s\"%s\":%" PRId64 "%s", i > 0 ? "," : "{", coordination_job_statuses[i], s.jobs[i],
                   i + 1 < COORDINATION_JOB_STATUSES ? "" : "}");
}

/* --- the document --- */

void status_overview(struct exchange *x)
{
    struct buf *body = &x->rs.body;
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals); /* too much for a task's stack */
    totals_read(x->api->shared, totals);
    buf_puts(body, "{\"success\":true,");
    tell_time(body, "timestamp", clock_wall_ms());
    buf_printf(body, ",\"version\":\"" HYPERPAGE_VERSION "\",\"status\":\"%s\",\"maintenance\":%s,",
               health_names[api_health(x->api, clock_mono_ms())],
               health_in_maintenance(x->api->config->run_dir) ? "true" : "false");
    tell_requests(body, totals);
    buf_puts(body, ",\"pool\":{");
    tell_pool(body, x, totals);
    buf_puts(body, "},\"workers\":[");
    tell_workers(body, x);
    buf_puts(body, "],\"sessions\":{");
    tell_sessions(body, x, totals);
    buf_puts(body, "},\"store\":{");
    tell_store(body, x, totals);
    buf_puts(body, "},\"coordination\":{");
    tell_coordination(body, x, totals);
    buf_puts(body, "},\"rateLimits\":[");
    api_tell_limits(body, x->api->coordination);
    buf_puts(body, "],\"cleanup\":{");
    tell_cleanup(body, x, totals);
    buf_puts(body, "}}");
    free(totals);
}
