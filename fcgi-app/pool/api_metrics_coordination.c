/* api_metrics_coordination.c: what the node's coordinator knows, for Prometheus. What a dead one has left behind is not
 * told, but for what stays true. */
#include "api.h"

#include "clock.h"
#include "exposition.h"
#include "mem.h"
#include "platforms.h"

static double seconds(int64_t ms)
{
    return (double)ms / 1000.0;
}

/* --- the coordinator --- */

static void tell_cluster(struct exposition *ex, const struct coordination *c, const struct coordination_leader *l)
{
    struct coordination_pods *pods = mem_alloc(sizeof *pods); /* too large for a task's stack */
    coordination_read_pods(c, pods);
    exposition_gauge(ex, "hyperpage_coordination_subscribed", "1 while messages of other nodes reach this one.",
                     (double)l->subscribed);
    exposition_gauge(ex, "hyperpage_coordination_term", "Term of the leader that this node knows; 0: of none.",
                     (double)l->term);
    if (l->leader[0] != '\0')
        exposition_gauge(ex, "hyperpage_coordination_leader_since_timestamp_seconds",
                         "When this node has seen the last election.", seconds(l->since_ms));
    exposition_gauge(ex, "hyperpage_coordination_pods", "Nodes that show that they live.", (double)pods->all);
    free(pods);
}

static void tell_loop(struct exposition *ex, const struct coordination *c)
{
    exposition_gauge(ex, "hyperpage_coordination_queue_messages", "Messages that have come and wait.",
                     (double)coordination_waiting(c));
    exposition_gauge(
        ex, "hyperpage_coordinator_loop_lag_seconds",
        "How long the coordinator's loop, at worst, kept something waiting in the last ten to twenty seconds.",
        seconds(coordination_lag_ms(c)));
}

static void tell_jobs(struct exposition *ex, const struct coordination_survey *s)
{
    char labels[64];
    if (!coordination_is_fresh(s->jobs_ms, clock_wall_ms())) return; /* another node leads, or nobody does */
    exposition_family(ex, "hyperpage_jobs", "gauge", "Jobs in PostgreSQL; the leader counts them every 10 s.");
    for (int status = 0; status < COORDINATION_JOB_STATUSES; status++) {
        snprintf(labels, sizeof labels, "status=\"%s\"", coordination_job_statuses[status]);
        exposition_whole(ex, labels, (uint64_t)s->jobs[status]);
    }
}

/* --- rate limits: the original's names --- */

static void tell_of_platform(struct exposition *ex, const char *name, const char *help, const double values[PLATFORMS])
{
    char labels[64];
    exposition_family(ex, name, "gauge", help);
    for (int p = 0; p < PLATFORMS; p++) {
        snprintf(labels, sizeof labels, "platform=\"%s\"", platform_names[p]);
        if (values[p] >= 0) exposition_real(ex, labels, values[p]);
    }
}

/* Endpoints that no platform has are not told: their names come from messages, and there may be any number. */
static void tell_of_endpoint(struct exposition *ex, const char *name, const char *help,
                             const struct coordination_limits *ls, int64_t now_ms, size_t offset)
{
    char labels[160];
    enum platform p;
    exposition_family(ex, name, "gauge", help);
    for (int64_t i = 0; i < ls->count; i++) {
        struct coordination_limit l = platform_limit_at(&ls->limit[i], now_ms);
        int64_t value = *(const int64_t *)(const void *)((const char *)&l + offset);
        if (value < 0 || !platform_of(l.platform, &p) || !platform_has(p, l.endpoint)) continue;
        snprintf(labels, sizeof labels, "platform=\"%s\",endpoint=\"%s\"", l.platform, l.endpoint);
        exposition_whole(ex, labels, (uint64_t)value);
    }
}

static void tell_limits(struct exposition *ex, const struct coordination *c)
{
    double usage[PLATFORMS], status[PLATFORMS], updated[PLATFORMS];
    int64_t now_ms = clock_wall_ms();
    struct coordination_limits *ls = mem_alloc(sizeof *ls); /* too large for a task's stack */
    coordination_read_limits(c, ls);
    for (int p = 0; p < PLATFORMS; p++) {
        struct platform_state s = platform_state_at(ls, (enum platform)p, now_ms);
        usage[p] = s.usage_permille < 0 ? -1 : (double)s.usage_permille / 10;
        status[p] = s.status;
        updated[p] = s.updated_ms > 0 ? seconds(s.updated_ms) : -1;
    }
    tell_of_platform(ex, "rate_limit_usage_percent", "Used of the rate limit that is used most.", usage);
    tell_of_platform(ex, "rate_limit_status", "0 normal, 1 warning (75 %), 2 critical (90 %), 3 unknown.", status);
    tell_of_platform(ex, "hyperpage_rate_limit_updated_timestamp_seconds",
                     "When a rate limit of the platform was reported last.", updated);
    tell_of_endpoint(ex, "rate_limit_remaining", "Requests that remain until the limit's reset.", ls, now_ms,
                     offsetof(struct coordination_limit, remaining));
    tell_of_endpoint(ex, "rate_limit_max", "Requests that the limit allows.", ls, now_ms,
                     offsetof(struct coordination_limit, limit));
    free(ls);
}

void api_metrics_coordination(struct exposition *ex, const struct api *api)
{
    const struct coordination *c = api->coordination;
    struct coordination_leader l;
    struct coordination_survey s;
    bool up = api_coordinator(api, clock_mono_ms()) == CHECK_UP;
    coordination_read_leader(c, &l);
    coordination_read_survey(c, &s);
    exposition_gauge(ex, "hyperpage_coordinator_up", "1 while the node's coordinator works.", up);
    exposition_gauge(ex, "hyperpage_coordination_leader", "1 on the node that leads.", up && l.is_leader);
    if (up) tell_cluster(ex, c, &l);
    if (up) tell_loop(ex, c);
    tell_jobs(ex, &s);
    if (s.cleaned_ms > 0)
        exposition_gauge(ex, "hyperpage_cleanup_last_success_timestamp_seconds",
                         "When the cluster's last hourly cleanup ended.", seconds(s.cleaned_ms));
    tell_limits(ex, c);
}
