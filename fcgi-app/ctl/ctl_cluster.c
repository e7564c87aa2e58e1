/* ctl_cluster.c: this node among the others: what its coordinator knows, and messages. */
#include "ctl.h"

#include "clock.h"
#include "json.h"
#include "mem.h"
#include "messenger.h"
#include "pod_name.h"
#include "totals.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>

#define MOST_LEVELS 32 /* of a payload */

/* --- what the coordinator knows --- */

/* Its view counts only while it lives. */
static enum ctl_exit open_coordinator(struct ctl *c, struct node *n)
{
    struct err e;
    bool ok = node_open(n, c->config, &e);
    if (ok && n->coordinator.pid == 0) ok = daemon_find(c->config->run_dir, &daemon_coordinator, &n->coordinator, &e);
    if (!ok) return ctl_failed(c, &e);
    if (!coordination_alive(n->coordination, clock_mono_ms()))
        return ctl_fail(CTL_UNREACHABLE, "the coordinator shows no sign of life: pid %d", (int)n->coordinator.pid);
    return CTL_OK;
}

enum ctl_exit cluster_pods(struct ctl *c)
{
    struct node n;
    struct report *r = &c->report;
    struct coordination_pods *pods = mem_alloc(sizeof *pods);
    enum ctl_exit code = open_coordinator(c, &n);
    if (code == CTL_OK) {
        coordination_read_pods(n.coordination, pods);
        report_number(r, "podCount", pods->all);
        report_open_list(r, "pods");
        for (int64_t i = 0; i < pods->count; i++) {
            report_open(r, NULL);
            report_string(r, "podId", pods->pod[i].name);
            report_time(r, "activeUntil", pods->pod[i].until_ms);
            report_close(r);
        }
        report_close_list(r);
    }
    free(pods);
    node_close(&n);
    return code;
}

static bool another_leads(void *ctx)
{
    const struct node *n = ctx;
    struct coordination_leader l;
    coordination_read_leader(n->coordination, &l);
    return !l.is_leader && l.leader[0] != '\0' && strcmp(l.leader, l.pod) != 0;
}

static bool is_alone(const struct node *n)
{
    struct coordination_pods *pods = mem_alloc(sizeof *pods);
    coordination_read_pods(n->coordination, pods);
    bool alone = pods->all <= 1;
    free(pods);
    return alone;
}

static enum ctl_exit step_down(struct ctl *c, struct node *n)
{
    struct coordination_leader l;
    struct err e;
    coordination_read_leader(n->coordination, &l);
    if (!l.is_leader)
        return ctl_fail(CTL_NOT_SO, "this node does not lead: %s does", l.leader[0] ? l.leader : "nobody");
    if (c->config->redis_url[0] == '\0') return ctl_fail(CTL_NOT_SO, "without REDIS_URL a node is alone");
    if (is_alone(n)) return ctl_fail(CTL_NOT_SO, "there is no other node that could lead: this one leads on");
    if (!daemon_signal(&n->coordinator, SIGUSR2, &e)) return ctl_failed(c, &e);
    if (c->flag[CTL_WAIT] != NULL && !node_until(another_leads, n, &n->coordinator, c->deadline_ms))
        return ctl_fail(CTL_TIMED_OUT, "not within the --timeout: no other node leads");
    return CTL_OK;
}

enum ctl_exit cluster_leader(struct ctl *c)
{
    struct node n;
    struct coordination_leader l;
    struct report *r = &c->report;
    enum ctl_exit code = open_coordinator(c, &n);
    if (code == CTL_OK && c->flag[CTL_STEP_DOWN] != NULL)
        code = step_down(c, &n);
    else if (code == CTL_OK && c->flag[CTL_WAIT] != NULL)
        code = ctl_fail(CTL_USAGE, "--wait: only with --step-down");
    if (code == CTL_OK) {
        coordination_read_leader(n.coordination, &l);
        report_string(r, "podId", l.pod);
        report_string(r, "leaderId", l.leader);
        report_number(r, "term", l.term);
        report_flag(r, "isLeader", l.is_leader);
        report_time(r, "since", l.leader[0] != '\0' ? l.since_ms : 0);
        if (l.leader[0] == '\0' && c->flag[CTL_STEP_DOWN] == NULL) code = CTL_NOT_SO;
    }
    node_close(&n);
    return code;
}

/* --- messages --- */

struct letter {
    enum message_type type;
    enum message_priority priority;
    struct bytes payload;
    char channel[IDS_TEXT_BYTES];
};

/* As this node's coordinator calls itself, where one lives: who calls us need not know its POD_NAME, and a job message
 * is believed of the leader by name. */
static bool name_of_node(struct ctl *c, char pod[COORDINATION_NAME_BYTES], struct err *e)
{
    struct node n;
    struct coordination_leader l = { .pod = "" };
    if (node_open(&n, c->config, e) && n.coordinator.pid != 0) coordination_read_leader(n.coordination, &l);
    node_close(&n);
    memcpy(pod, l.pod, sizeof l.pod);
    return pod[0] != '\0' || pod_name(c->config, pod, e);
}

static enum ctl_exit send_letter(struct ctl *c, const struct letter *l, int64_t *receivers)
{
    const struct config *cfg = c->config;
    struct redis_options o = { .sentinel_password = cfg->redis_sentinel_password,
                               .timeout_ms = cfg->redis_timeout_ms,
                               .client_name = "hyperpagectl" };
    struct messenger messenger;
    struct redis *redis = NULL;
    struct err e;
    char pod[COORDINATION_NAME_BYTES], id[IDS_TEXT_BYTES];
    *receivers = 0;
    _Static_assert(COORDINATION_NAME_BYTES >= POD_NAME_BYTES, "pod_name() writes that much");
    if (cfg->redis_url[0] == '\0' || !cfg->pod_coordination_enabled)
        return ctl_fail(CTL_USAGE, "without REDIS_URL and POD_COORDINATION_ENABLED this node knows no others");
    bool ok = redis_url_parse(cfg->redis_url, &o.url, &e) && name_of_node(c, pod, &e);
    if (ok) {
        redis = redis_open(&o);
        messenger_init(&messenger, redis, cfg->pod_channel_prefix, pod, "ctl");
        ok =
            messenger_send(&messenger, l->channel, l->type, l->priority, l->payload, c->deadline_ms, id, receivers, &e);
    }
    redis_close(redis);
    if (!ok) return ctl_failed(c, &e);
    struct buf name = BUF_INIT(IDS_TEXT_BYTES + 8);
    buf_printf(&name, "msg-%s", id);
    report_text(&c->report, "messageId", buf_bytes(&name));
    report_number(&c->report, "receivers", *receivers);
    buf_done(&name);
    return CTL_OK;
}

enum ctl_exit cluster_send(struct ctl *c)
{
    struct letter l = { .priority = MESSAGE_NORMAL, .payload = bytes_of(c->word[1]), .channel = "all" };
    struct json_fault fault;
    const char *priority = c->flag[CTL_PRIORITY], *pod = c->flag[CTL_POD];
    if (!message_type_of(bytes_of(c->word[0]), &l.type))
        return ctl_fail(CTL_USAGE, "TYPE %s: allowed is cache_invalidate, rate_limit_sync, job_coordination, broadcast",
                        c->word[0]);
    if (!json_check(l.payload, MOST_LEVELS, &fault)) return ctl_fail(CTL_USAGE, "PAYLOAD: %s", fault.reason);
    if (priority != NULL && !message_priority_of(bytes_of(priority), &l.priority))
        return ctl_fail(CTL_USAGE, "--priority %s: allowed is low, normal, high", priority);
    if (pod != NULL && !ids_read(bytes_of(pod), l.channel))
        return ctl_fail(CTL_USAGE, "--pod %s: allowed are 1 to 128 of A-Z a-z 0-9 . _ -", pod);
    int64_t receivers;
    return send_letter(c, &l, &receivers);
}

/* --- cleanup --- */

struct cleaning {
    const struct node *node;
    uint64_t runs;
};

static uint64_t cleanups(const struct node *n)
{
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals);
    totals_read(n->shared, totals);
    uint64_t runs = totals[METRIC_cleanup_runs_total];
    free(totals);
    return runs;
}

static bool is_clean(void *ctx)
{
    const struct cleaning *w = ctx;
    return cleanups(w->node) > w->runs;
}

/* All nodes believe only the leader in such matters, so it must be said from there. */
static enum ctl_exit ask_for_cleanup(struct ctl *c, struct node *n)
{
    struct coordination_leader leader;
    struct buf payload = BUF_INIT(1024);
    struct cleaning w = { n, cleanups(n) };
    struct letter l = { .type = MESSAGE_JOB_COORDINATION, .priority = MESSAGE_NORMAL };
    coordination_read_leader(n->coordination, &leader);
    if (!leader.is_leader)
        return ctl_fail(CTL_NOT_SO, "this node does not lead: %s does", leader.leader[0] ? leader.leader : "nobody");
    buf_puts(&payload, "{\"operation\":\"cleanup\",\"data\":{},\"coordinator\":");
    buf_json_string(&payload, bytes_of(leader.pod));
    buf_puts(&payload, "}");
    l.payload = buf_bytes(&payload);
    memcpy(l.channel, "all", sizeof "all");
    int64_t receivers = 0;
    enum ctl_exit code = send_letter(c, &l, &receivers);
    if (code == CTL_OK && receivers == 0)
        code = ctl_fail(CTL_UNREACHABLE, "no coordinator has heard it: does this node's use the same REDIS_URL?");
    if (code == CTL_OK && c->flag[CTL_WAIT] != NULL && !node_until(is_clean, &w, &n->coordinator, c->deadline_ms))
        code = ctl_fail(CTL_TIMED_OUT, "not within the --timeout: the cleanup has not ended");
    buf_done(&payload);
    return code;
}

enum ctl_exit cluster_cleanup(struct ctl *c)
{
    struct node n;
    if (c->flag[CTL_NOW] == NULL) return ctl_fail(CTL_USAGE, "cleanup comes by itself once an hour; --now: at once");
    enum ctl_exit code = open_coordinator(c, &n);
    if (code == CTL_OK) code = ask_for_cleanup(c, &n);
    node_close(&n);
    return code;
}
