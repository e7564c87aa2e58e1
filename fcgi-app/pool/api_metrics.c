/* api_metrics.c: what the pool has counted and what it is doing, for Prometheus. */
#include "api.h"

#include "backlog.h"
#include "clock.h"
#include "exposition.h"
#include "mem.h"
#include "processes.h"
#include "totals.h"

#include <stdio.h>
#include <sys/resource.h>

/* What the original's names need of the tables. */
struct answered {
    uint64_t requests, failed; /* failed: 5xx */
    uint64_t took_us, measured;
};

static struct answered sum_answered(const uint64_t *totals)
{
    struct answered a = { 0 };
    for (size_t m = 0; m < HTTP_METHODS; m++)
        for (size_t p = 0; p < ENDPOINT_COUNT; p++)
            for (size_t s = 0; s < METRICS_STATUSES; s++) {
                uint64_t n = totals[metrics_request_at((enum http_method)m, (enum endpoint)p, s)];
                a.requests += n;
                if (metrics_statuses[s] >= 500) a.failed += n;
            }
    for (size_t p = 0; p < ENDPOINT_COUNT; p++) {
        const uint64_t *histogram = totals + METRICS_DURATIONS_AT + p * METRICS_HISTOGRAM;
        for (size_t b = 0; b < METRICS_BUCKETS; b++) a.measured += histogram[b];
        a.took_us += histogram[METRICS_SUM_US];
    }
    return a;
}

static double percent(uint64_t part, uint64_t whole, double of_none)
{
    return whole ? 100.0 * (double)part / (double)whole : of_none;
}

/* The original's names, for which the pool of connections is the pool of workers. */
static void tell_kept(struct exposition *ex, const struct exchange *x, const uint64_t *totals,
                      const struct processes *p)
{
    struct answered a = sum_answered(totals);
    uint64_t workers = p->starting + p->idle + p->busy + p->draining,
             accepted = totals[METRIC_connections_accepted_total];
    uint32_t waiting = 0, most = 0;
    exposition_gauge(ex, "cache_entries_total",
                     "Sessions held on this node: copies of those in Redis, or the embedded store's.",
                     (double)api_sessions_held(x->api));
    exposition_gauge(ex, "http_connection_pool_active_connections", "Workers with a request in their hands.",
                     (double)p->busy);
    exposition_gauge(ex, "http_connection_pool_idle_connections", "Workers without one.", (double)p->idle);
    exposition_gauge(ex, "http_connection_pool_total_connections", "Workers.", (double)workers);
    if (backlog_read(x->api->listen_fd, &waiting, &most)) {
        exposition_gauge(ex, "http_connection_pool_pending_requests", "Connections that wait to be accepted.", waiting);
        exposition_gauge(ex, "hyperpage_listen_backlog_limit", "Connections that may wait to be accepted.", most);
    }
    exposition_gauge(ex, "http_connection_pool_average_response_time_ms",
                     "Mean time of a request since the counters began.",
                     a.measured ? (double)a.took_us / 1000.0 / (double)a.measured : 0);
    exposition_gauge(ex, "http_connection_pool_success_rate_percent", "Requests not answered 5xx.",
                     percent(a.requests - a.failed, a.requests, 100));
    exposition_gauge(ex, "http_connection_pool_reuse_ratio_percent", "Requests that came on a kept connection.",
                     percent(a.requests > accepted ? a.requests - accepted : 0, a.requests, 0));
    exposition_gauge(ex, "http_connection_pool_utilization_percent", "Workers with a request in their hands.",
                     percent(p->busy, workers, 0));
    exposition_family(ex, "http_connection_pool_requests_total", "counter", "Requests answered.");
    exposition_whole(ex, "", a.requests);
    exposition_gauge(ex, "http_connection_pool_health_status", "0 unhealthy, 1 degraded, 2 healthy.",
                     api_health(x->api, clock_mono_ms()));
}

static void tell_workers(struct exposition *ex, const struct processes *p, const uint64_t *totals)
{
    exposition_family(ex, "hyperpage_workers", "gauge",
                      "Workers by what they do; dead: its successor is not there yet.");
    exposition_whole(ex, "state=\"starting\"", p->starting);
    exposition_whole(ex, "state=\"idle\"", p->idle);
    exposition_whole(ex, "state=\"busy\"", p->busy);
    exposition_whole(ex, "state=\"draining\"", p->draining);
    exposition_whole(ex, "state=\"dead\"", p->dead);
    exposition_gauge(ex, "hyperpage_connections", "Open connections from front servers.", (double)p->connections);
    exposition_gauge(ex, "hyperpage_requests_in_flight", "Requests in the workers' hands.", (double)p->requests);
    exposition_gauge(ex, "hyperpage_pool_generation", "Starts, upgrades and reloads so far.",
                     (double)(totals[METRIC_generations_start] + totals[METRIC_generations_upgrade] +
                              totals[METRIC_generations_reload]));
}

/* PostgreSQL is the coordinator's to look at; where there is none, nobody needs it. */
static bool is_told(const struct api *api, enum dependency d, int64_t now_ms)
{
    enum check_state state = api_dependency(api, d, now_ms);
    return state != CHECK_UNUSED && (state != CHECK_UNKNOWN || d != DEPENDENCY_POSTGRES);
}

static void tell_dependencies(struct exposition *ex, const struct exchange *x)
{
    static const char *const labels[DEPENDENCY_COUNT] = { "dependency=\"redis\"", "dependency=\"embedded\"",
                                                          "dependency=\"postgres\"" };
    int64_t now_ms = clock_mono_ms();
    exposition_family(ex, "hyperpage_dependency_up", "gauge",
                      "Does what the node uses answer? By the last look of its keeper, its coordinator.");
    for (enum dependency d = 0; d < DEPENDENCY_COUNT; d++)
        if (is_told(x->api, d, now_ms)) exposition_whole(ex, labels[d], api_dependency(x->api, d, now_ms) == CHECK_UP);
    exposition_family(ex, "hyperpage_dependency_latency_seconds", "gauge", "How long that look took.");
    for (enum dependency d = 0; d < DEPENDENCY_COUNT; d++)
        if (is_told(x->api, d, now_ms))
            exposition_seconds(ex, labels[d], (uint64_t)atomic_load(&shared_check(x->api->shared, d)->latency_us));
    if (x->api->breaker != NULL) {
        exposition_gauge(ex, "hyperpage_breaker_open", "1 while Redis is taken for lost.",
                         breaker_is_open(x->api->breaker));
        exposition_gauge(ex, "hyperpage_dirty_sessions",
                         "At most so many sessions of this node wait to go back to Redis.",
                         (double)breaker_dirty(x->api->breaker));
    }
}

static void tell_sessions(struct exposition *ex, const struct api *api)
{
    int64_t active = api_sessions_active(api);
    if (active < 0) return;
    exposition_gauge(
        ex, "hyperpage_sessions_active",
        "Live sessions: in the embedded store, or in Redis those of all nodes: as counted every hour, and as "
        "events have told since.",
        (double)active);
}

static void tell_use_of_role(struct exposition *ex, const char *name, const char *help, const struct process_use *use,
                             size_t offset)
{
    char labels[32];
    exposition_family(ex, name, "gauge", help);
    for (size_t r = SLOT_MASTER; r < PROCESS_ROLES; r++) {
        snprintf(labels, sizeof labels, "role=\"%s\"", process_roles[r]);
        exposition_whole(ex, labels, *(const uint64_t *)(const void *)((const char *)&use[r] + offset));
    }
}

/* process_* as client libraries have them, of all processes together; and by role. */
static void tell_processes(struct exposition *ex, const struct exchange *x, const struct processes *p,
                           const uint64_t *totals)
{
    struct process_use use[PROCESS_ROLES], all = { 0 };
    struct rlimit files = { 0 };
    processes_read_use(x->api->shared, x->api->slot, use);
    for (size_t r = SLOT_MASTER; r < PROCESS_ROLES; r++) {
        all.resident_bytes += use[r].resident_bytes;
        all.virtual_bytes += use[r].virtual_bytes;
        all.open_fds += use[r].open_fds;
    }
    getrlimit(RLIMIT_NOFILE, &files);
    exposition_family(ex, "process_cpu_seconds_total", "counter", "Processor time used by all processes of the pool.");
    exposition_seconds(ex, "",
                       totals[METRIC_cpu_master] + totals[METRIC_cpu_worker] + totals[METRIC_cpu_keeper] +
                           totals[METRIC_cpu_coordinator]);
    exposition_gauge(ex, "process_resident_memory_bytes", "Memory of all processes; what they share counts for each.",
                     (double)all.resident_bytes);
    exposition_gauge(ex, "process_virtual_memory_bytes", "Address space of all processes.", (double)all.virtual_bytes);
    exposition_gauge(ex, "process_open_fds", "Descriptors of all processes.", (double)all.open_fds);
    exposition_gauge(ex, "process_max_fds", "Descriptors that one worker may have.", (double)files.rlim_cur);
    exposition_gauge(ex, "process_start_time_seconds", "When the oldest of the living processes began.",
                     (double)p->started_ms / 1000.0);
    tell_use_of_role(ex, "hyperpage_processes", "Processes by role.", use, offsetof(struct process_use, processes));
    tell_use_of_role(ex, "hyperpage_process_resident_memory_bytes", "Memory by role; what they share counts for each.",
                     use, offsetof(struct process_use, resident_bytes));
    tell_use_of_role(ex, "hyperpage_process_open_fds", "Descriptors by role.", use,
                     offsetof(struct process_use, open_fds));
}

void status_metrics(struct exchange *x)
{
    struct processes p;
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals); /* too much for a task's stack */
    struct exposition ex = { .out = &x->rs.body,
                             .openmetrics = http_accepts(x->rq.accept, "application/openmetrics-text") };
    metrics_cpu(METRIC_cpu_worker);
    totals_read(x->api->shared, totals);
    processes_read(x->api->shared, x->api->slot, &p);
    exposition_totals(&ex, totals);
    tell_kept(&ex, x, totals, &p);
    tell_workers(&ex, &p, totals);
    tell_dependencies(&ex, x);
    tell_sessions(&ex, x->api);
    api_metrics_coordination(&ex, x->api);
    tell_processes(&ex, x, &p, totals);
    exposition_family(&ex, "hyperpage_build_info", "gauge", "Always 1; the labels say what runs.");
    exposition_whole(&ex, "version=\"" HYPERPAGE_VERSION "\",compiler=\"" __VERSION__ "\"", 1);
    exposition_end(&ex);
    x->rs.content_type = exposition_types[ex.openmetrics];
    free(totals);
}
