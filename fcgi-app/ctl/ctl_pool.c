/* ctl_pool.c: the pool of this node: how it is, and what its master is told by signals. */
#include "ctl.h"

#include "clock.h"
#include "health.h"
#include "mem.h"
#include "processes.h"
#include "totals.h"

#include <inttypes.h>
#include <signal.h>
#include <string.h>

/* --- looking --- */

static bool redis_is_away(const struct node *n)
{
    return n->breaker != NULL && breaker_is_open(n->breaker);
}

static bool refuge_answers(const struct ctl *c, const struct node *n)
{
    return redis_is_away(n) && c->config->session_fallback_to_memory;
}

static bool is_serving(const struct node *n)
{
    return n->slot != NULL && atomic_load(&n->slot->state) == SLOT_SERVING;
}

/* As /api/health of its workers, and that there are some. */
static enum health health_now(const struct ctl *c, const struct node *n)
{
    struct processes p;
    int64_t now_ms = clock_mono_ms();
    if (!is_serving(n)) return HEALTH_UNHEALTHY;
    processes_read(n->shared, NULL, &p);
    if (p.idle + p.busy == 0) return HEALTH_UNHEALTHY;
    return health_of(health_dependency(n->shared, DEPENDENCY_REDIS, redis_is_away(n), now_ms),
                     health_dependency(n->shared, DEPENDENCY_EMBEDDED, false, now_ms), refuge_answers(c, n));
}

static void tell_dependency(struct report *r, const struct node *n, const char *name, enum dependency d)
{
    const struct check *k = shared_check(n->shared, d);
    int64_t now_ms = clock_mono_ms();
    enum check_state state = health_dependency(n->shared, d, redis_is_away(n), now_ms);
    report_open(r, name);
    report_string(r, "status", health_check_names[state]);
    if (state == CHECK_UP || state == CHECK_DOWN) {
        report_ms(r, "latencyMs", atomic_load(&k->latency_us));
        report_number(r, "ageMs", now_ms - atomic_load(&k->checked_ms));
        report_number(r, "sinceMs", now_ms - health_since_ms(n->shared, d, breaker_since_ms(n->breaker)));
    }
    report_close(r);
}

static void tell_health(struct ctl *c, const struct node *n)
{
    struct report *r = &c->report;
    bool redis = shared_check(n->shared, DEPENDENCY_REDIS)->state != CHECK_UNUSED;
    report_string(r, "status", health_names[health_now(c, n)]);
    report_flag(r, "maintenance", health_in_maintenance(c->config->run_dir));
    report_string(r, "store", refuge_answers(c, n) ? "refuge" : redis ? "redis" : "embedded");
    tell_dependency(r, n, "redis", DEPENDENCY_REDIS);
    tell_dependency(r, n, "embedded", DEPENDENCY_EMBEDDED);
}

static void tell_pool(struct ctl *c, const struct node *n)
{
    struct report *r = &c->report;
    struct processes p;
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals);
    report_open(r, "pool");
    report_flag(r, "running", n->master.pid != 0);
    if (n->master.pid != 0) report_number(r, "pid", n->master.pid);
    if (n->master.pid != 0) report_flag(r, "thisBuild", n->slot != NULL);
    if (n->slot != NULL) {
        totals_read(n->shared, totals);
        report_string(r, "state", node_state(n->slot));
        report_time(r, "startedAt", atomic_load(&n->slot->started_ms));
        report_number(r, "workersWanted", atomic_load(&n->slot->workers_wanted));
        processes_read(n->shared, NULL, &p);
        report_number(r, "starting", (int64_t)p.starting);
        report_number(r, "idle", (int64_t)p.idle);
        report_number(r, "busy", (int64_t)p.busy);
        report_number(r, "draining", (int64_t)p.draining);
        report_number(r, "connections", (int64_t)p.connections);
        report_number(r, "requests", (int64_t)p.requests); /* in hand, as everywhere */
        report_number(r, "requestsTotal", (int64_t)totals_requests(totals));
    }
    report_close(r);
    free(totals);
}

static void tell_workers(struct report *r, const struct node *n)
{
    report_open_list(r, "workers");
    for (size_t i = 0; i < shared_slots_used(n->shared); i++) {
        const struct slot *s = shared_slot(n->shared, i);
        if (atomic_load(&s->role) != SLOT_WORKER || !shared_slot_alive(n->shared, i)) continue;
        report_open(r, NULL);
        report_number(r, "pid", atomic_load(&s->pid));
        report_string(r, "state", node_state(s));
        report_number(r, "requests", atomic_load(&s->requests));
        report_number(r, "connections", atomic_load(&s->connections));
        report_time(r, "startedAt", atomic_load(&s->started_ms));
        report_close(r);
    }
    report_close_list(r);
}

static void tell_coordinator(struct report *r, const struct node *n)
{
    struct coordination_leader l;
    report_open(r, "coordinator");
    report_flag(r, "running", n->coordinator.pid != 0);
    if (n->coordinator.pid != 0) {
        coordination_read_leader(n->coordination, &l);
        report_number(r, "pid", n->coordinator.pid);
        report_flag(r, "alive", coordination_alive(n->coordination, clock_mono_ms()));
        report_string(r, "podId", l.pod);
        report_string(r, "leaderId", l.leader);
        report_number(r, "term", l.term);
        report_flag(r, "isLeader", l.is_leader);
    }
    report_close(r);
}

enum ctl_exit pool_status(struct ctl *c)
{
    struct node n;
    struct err e;
    enum ctl_exit code = CTL_UNREACHABLE;
    if (node_open(&n, c->config, &e)) {
        code = n.master.pid != 0 ? CTL_OK : CTL_UNREACHABLE;
        tell_pool(c, &n);
        tell_coordinator(&c->report, &n);
        if (n.slot != NULL) tell_health(c, &n);
        if (n.breaker != NULL) report_number(&c->report, "dirtySessions", breaker_dirty(n.breaker));
        if (n.slot != NULL) tell_workers(&c->report, &n);
    } else {
        code = ctl_failed(c, &e);
    }
    node_close(&n);
    return code;
}

/* --- the master, for those who tell it something --- */

/* How a wait for the pool came out. */
static enum ctl_exit waited(const struct ctl *c, const struct node *n, bool ok, const char *what)
{
    if (ok) return CTL_OK;
    if (daemon_wait(&n->master, 0)) return ctl_fail(CTL_UNREACHABLE, "the pool has ended");
    if (clock_mono_ms() < c->deadline_ms) return ctl_fail(CTL_NOT_SO, "%s", what);
    return ctl_fail(CTL_TIMED_OUT, "not within the --timeout: %s", what);
}

struct waiting {
    const struct ctl *c;
    struct node *n;
    enum metric done, refused; /* whichever counts on first */
    uint64_t done_was, refused_was;
    int32_t *old; /* pids of the workers before, and how many */
    size_t olds;
    int32_t workers;
    pid_t master;
};

static bool is_up(void *ctx)
{
    struct waiting *w = ctx;
    return health_now(w->c, w->n) != HEALTH_UNHEALTHY;
}

static void look_again(struct ctl *c, struct node *n)
{
    struct err e;
    node_close(n);
    node_open(n, c->config, &e);
}

/* With --wait a pool may also not run yet, or be replaced meanwhile: it is looked for anew. */
enum ctl_exit pool_health(struct ctl *c)
{
    struct node n;
    struct err e;
    struct waiting w = { .c = c, .n = &n };
    if (!node_open(&n, c->config, &e)) {
        node_close(&n);
        return ctl_failed(c, &e);
    }
    while (c->flag[CTL_WAIT] != NULL && clock_mono_ms() < c->deadline_ms && !is_up(&w)) {
        int64_t look_ms = clock_mono_ms() + 100;
        daemon_wait(&n.master, look_ms < c->deadline_ms ? look_ms : c->deadline_ms);
        look_again(c, &n);
    }
    enum ctl_exit code = n.master.pid == 0 ? CTL_UNREACHABLE : is_up(&w) ? CTL_OK : CTL_NOT_SO;
    if (n.slot != NULL)
        tell_health(c, &n);
    else if (n.master.pid != 0)
        ctl_fail(CTL_NOT_SO, "the pool that runs is of another build");
    else
        ctl_fail(CTL_UNREACHABLE, "no pool runs with RUN_DIR=%s", c->config->run_dir);
    if (code != CTL_OK && c->flag[CTL_WAIT] != NULL) code = CTL_TIMED_OUT;
    node_close(&n);
    return code;
}

/* --- telling --- */

static uint64_t total(const struct node *n, enum metric m)
{
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals);
    totals_read(n->shared, totals);
    uint64_t value = totals[m];
    free(totals);
    return value;
}

static bool has_decided(void *ctx)
{
    struct waiting *w = ctx;
    return total(w->n, w->done) > w->done_was || total(w->n, w->refused) > w->refused_was;
}

static void note_workers(struct waiting *w)
{
    size_t used = shared_slots_used(w->n->shared);
    w->old = mem_alloc(used * sizeof *w->old);
    for (size_t i = 0; i < used; i++) {
        const struct slot *s = shared_slot(w->n->shared, i);
        if (atomic_load(&s->role) == SLOT_WORKER) w->old[w->olds++] = atomic_load(&s->pid);
    }
}

static bool is_old(const struct waiting *w, int32_t pid)
{
    for (size_t i = 0; i < w->olds; i++)
        if (w->old[i] == pid) return true;
    return false;
}

/* As many workers as there should be serve, none of the old ones among them; who drains does not count. */
static bool are_new(void *ctx)
{
    struct waiting *w = ctx;
    int32_t serving = 0;
    for (size_t i = 0; i < shared_slots_used(w->n->shared); i++) {
        const struct slot *s = shared_slot(w->n->shared, i);
        int32_t state = atomic_load(&s->state);
        if (atomic_load(&s->role) != SLOT_WORKER || !shared_slot_alive(w->n->shared, i) || state == SLOT_DRAINING)
            continue;
        if (state != SLOT_SERVING || is_old(w, atomic_load(&s->pid))) return false;
        serving++;
    }
    return serving == atomic_load(&w->n->slot->workers_wanted);
}

static void begin_waiting(struct waiting *w, struct ctl *c, struct node *n, enum metric done, enum metric refused)
{
    *w = (struct waiting){ .c = c,
                           .n = n,
                           .done = done,
                           .refused = refused,
                           .done_was = total(n, done),
                           .refused_was = total(n, refused),
                           .master = n->master.pid };
    note_workers(w);
}

static void tell_done(struct ctl *c, const struct node *n, const char *what)
{
    report_string(&c->report, "done", what);
    if (n->master.pid != 0) report_number(&c->report, "pid", n->master.pid);
}

static enum ctl_exit await_reload(struct ctl *c, struct node *n, struct waiting *w)
{
    enum ctl_exit code = waited(c, n, node_until(has_decided, w, &n->master, c->deadline_ms), "the pool has not begun");
    if (code != CTL_OK) return code;
    if (total(n, w->done) == w->done_was)
        return ctl_fail(CTL_NOT_SO, "refused, the old options stay: the pool's log says why");
    return waited(c, n, node_until(are_new, w, &n->master, c->deadline_ms), "not all new workers serve");
}

enum ctl_exit pool_reload(struct ctl *c)
{
    struct node n;
    struct err e;
    struct waiting w = { .old = NULL };
    bool wait = c->flag[CTL_WAIT] != NULL;
    enum ctl_exit code = node_open_pool(c, &n, wait);
    if (code == CTL_OK) {
        begin_waiting(&w, c, &n, METRIC_generations_reload, METRIC_reloads_refused);
        if (!daemon_signal(&n.master, SIGHUP, &e)) code = ctl_failed(c, &e);
    }
    if (code == CTL_OK && wait) code = await_reload(c, &n, &w);
    if (code == CTL_OK) tell_done(c, &n, wait ? "reloaded" : "reload asked for");
    free(w.old);
    node_close(&n);
    return code;
}

/* QUIT: TERM is also what a supervisor says before it starts the pool anew. */
enum ctl_exit pool_drain(struct ctl *c)
{
    struct node n;
    struct err e;
    enum ctl_exit code = node_open_pool(c, &n, false);
    if (code == CTL_OK && !daemon_signal(&n.master, SIGQUIT, &e)) code = ctl_failed(c, &e);
    if (code == CTL_OK && c->flag[CTL_WAIT] != NULL && !daemon_wait(&n.master, c->deadline_ms))
        code = ctl_fail(CTL_TIMED_OUT, "not within the --timeout: the pool still drains");
    if (code == CTL_OK) tell_done(c, &n, c->flag[CTL_WAIT] != NULL ? "drained" : "drain asked for");
    node_close(&n);
    return code;
}

/* --- restart --- */

/* The new master writes the pid file once its workers serve. */
static bool has_successor(void *ctx)
{
    struct waiting *w = ctx;
    struct daemon now;
    struct err e;
    bool other = daemon_find(w->c->config->run_dir, &daemon_master, &now, &e) && now.pid != w->master;
    if (other) w->master = now.pid;
    daemon_done(&now);
    return other || total(w->n, w->refused) > w->refused_was;
}

enum ctl_exit pool_restart(struct ctl *c)
{
    struct node n;
    struct err e;
    struct waiting w = { .old = NULL };
    bool wait = c->flag[CTL_WAIT] != NULL;
    if (c->flag[CTL_ROLLING] != NULL) return pool_reload(c);
    enum ctl_exit code = node_open_pool(c, &n, false);
    if (code == CTL_OK) {
        begin_waiting(&w, c, &n, METRIC_generations_upgrade, METRIC_upgrades_refused);
        if (!daemon_signal(&n.master, SIGUSR2, &e)) code = ctl_failed(c, &e);
    }
    if (code == CTL_OK && wait) {
        code = waited(c, &n, node_until(has_successor, &w, &n.master, c->deadline_ms), "the new binary does not serve");
        if (code == CTL_OK && w.master == n.master.pid)
            code = ctl_fail(CTL_NOT_SO, "refused, the old binary goes on: the pool's log says why");
    }
    if (code == CTL_OK) {
        n.master.pid = w.master;
        tell_done(c, &n, wait ? "restarted" : "restart asked for");
    }
    free(w.old);
    node_close(&n);
    return code;
}

/* --- scale --- */

static bool wants_other(void *ctx)
{
    struct waiting *w = ctx;
    return atomic_load(&w->n->slot->workers_wanted) != w->workers;
}

/* One at a time: a signal that comes while another of its kind waits is none. */
static enum ctl_exit ask_for_workers(struct ctl *c, struct node *n, int32_t workers)
{
    struct err e;
    struct waiting w = { .c = c, .n = n };
    while ((w.workers = atomic_load(&n->slot->workers_wanted)) != workers) {
        if (!daemon_signal(&n->master, w.workers < workers ? SIGTTIN : SIGTTOU, &e)) return ctl_failed(c, &e);
        enum ctl_exit code = waited(c, n, node_until(wants_other, &w, &n->master, c->deadline_ms),
                                    "the pool does not take another number of workers");
        if (code != CTL_OK) return code;
    }
    if (c->flag[CTL_WAIT] == NULL) return CTL_OK;
    return waited(c, n, node_until(are_new, &w, &n->master, c->deadline_ms), "not all workers serve");
}

enum ctl_exit pool_scale(struct ctl *c)
{
    struct node n;
    char *end;
    long workers = strtol(c->word[0], &end, 10);
    if (*end != '\0' || workers < 1 || workers > 256)
        return ctl_fail(CTL_USAGE, "scale %s: allowed is 1 to 256 (processes)", c->word[0]);
    enum ctl_exit code = node_open_pool(c, &n, true);
    if (code == CTL_OK) code = ask_for_workers(c, &n, (int32_t)workers);
    if (code == CTL_OK) report_number(&c->report, "workers", workers);
    node_close(&n);
    return code;
}
