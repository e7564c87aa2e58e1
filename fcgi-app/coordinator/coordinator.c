#include "coordinator.h"

#include "clock.h"
#include "duties.h"
#include "inbox.h"
#include "leadership.h"
#include "log.h"
#include "metrics.h"
#include "pods.h"
#include "store_redis.h"
#include "task.h"

#include <ev.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define TICK_MS     100  /* how often the loop's lag is told and others are shown that we live */
#define LATE_MS     20   /* a tick that comes so late, and a round that takes so long, is counted */
#define DATABASE_MS 1000 /* longest wait for the database of one that leaves */
#define LEAVE_BY_MS 5000 /* a task that has not ended by then never will */
#define KEPT_STACKS 4    /* of tasks that have ended, for the next ones */

/* What belongs to the loop; `co` is what everybody else sees. */
struct loop {
    struct coordinator *co;
    struct ev_loop *ev;
    ev_check check;
    ev_prepare prepare;
    ev_io descriptors;
    ev_timer due; /* a task's deadline */
    ev_timer tick;
    ev_signal signals[5];
    int64_t tick_at_ms;
    int64_t woken_us, longest_us; /* the present round began; the longest one since the last tick */
    int64_t leave_by_ms;
    bool stopping; /* TERM or INT, as opposed to HUP */
    struct config *(*reload)(void);
    struct config *next;
};

static void leadership_changed(struct coordinator *co)
{
    duties_wake(co->duties);
}

/* --- the loop --- */

static void leave(struct loop *l)
{
    struct coordinator *co = l->co;
    if (co->leaving) return;
    co->leaving = true;
    l->leave_by_ms = clock_mono_ms() + LEAVE_BY_MS;
    atomic_store(&co->slot->state, SLOT_DRAINING);
    if (co->pg != NULL) pg_leave(co->pg, clock_mono_ms() + DATABASE_MS);
    leadership_stop(co->leadership);
    if (co->inbox != NULL) inbox_stop(co->inbox);
    duties_wake(co->duties);
}

/* A round begins: the loop has slept, and is about to see what for. */
static void begin_round(struct ev_loop *ev, ev_check *w, int events)
{
    (void)ev, (void)events;
    ((struct loop *)w->data)->woken_us = clock_mono_us();
}

/* For so long nothing else could happen. */
static void end_round(struct loop *l)
{
    int64_t took_us = clock_mono_us() - l->woken_us;
    if (took_us > l->longest_us) l->longest_us = took_us;
    if (took_us > LATE_MS * 1000) metrics_add(METRIC_coordinator_rounds_long_total, 1);
}

/* Everything that happens, happens here: each round runs all tasks as far as they come and sends what they asked for,
 * then sleeps until a descriptor is ready or the next deadline has come. */
static void run_tasks(struct ev_loop *ev, ev_prepare *w, int events)
{
    struct loop *l = w->data;
    (void)events;
    task_expire(clock_mono_ms());
    do {
        task_run_ready();
        if (l->co->redis != NULL) redis_flush(l->co->redis);
        if (l->co->warming != NULL) store_redis_ops.flush(l->co->warming);
    } while (task_any_ready());

    end_round(l);
    int64_t now_ms = clock_mono_ms(), due_ms = task_expire(now_ms);
    if (task_any_ready()) due_ms = now_ms; /* one that only let others go first */
    if (l->co->leaving && (task_count() == 0 || now_ms >= l->leave_by_ms)) ev_break(ev, EVBREAK_ALL);
    ev_timer_stop(ev, &l->due);
    if (due_ms == CLOCK_NEVER) return;
    ev_now_update(ev);
    ev_timer_set(&l->due, due_ms > now_ms ? (double)(due_ms - now_ms) / 1000 : 0., 0.);
    ev_timer_start(ev, &l->due);
}

static void on_due(struct ev_loop *ev, ev_timer *w, int events)
{
    (void)ev, (void)w, (void)events; /* the round that follows looks for itself */
}

static void on_descriptors(struct ev_loop *ev, ev_io *w, int events)
{
    (void)ev, (void)events;
    struct loop *l = w->data;
    pollset_wait(l->co->pollset, 0);
}

static void on_tick(struct ev_loop *ev, ev_timer *w, int events)
{
    (void)ev, (void)events;
    struct loop *l = w->data;
    int64_t now_ms = clock_mono_ms(), late_ms = now_ms - l->tick_at_ms, round_ms = l->longest_us / 1000;
    metrics_add(METRIC_coordinator_ticks_total, 1);
    metrics_cpu(METRIC_cpu_coordinator);
    if (late_ms > LATE_MS) metrics_add(METRIC_coordinator_ticks_late_total, 1);
    coordination_beat(l->co->coordination, now_ms, late_ms > round_ms ? late_ms : round_ms);
    l->longest_us = 0;
    task_free_stacks(KEPT_STACKS);
    l->tick_at_ms = now_ms + TICK_MS;
}

static void on_signal(struct ev_loop *ev, ev_signal *w, int events)
{
    (void)ev, (void)events;
    struct loop *l = w->data;
    struct err e;
    if (w->signum == SIGUSR1) {
        if (!log_reopen(&e)) log_error("log file stays the old one: error=\"%s\"", e.text);
    } else if (w->signum == SIGUSR2) {
        if (!l->co->leaving) leadership_yield(l->co->leadership);
    } else if (w->signum == SIGHUP) {
        if (l->co->leaving || (l->next = l->reload()) == NULL) return;
        log_info("options read again, coordinator starts anew with them");
        leave(l);
    } else {
        l->stopping = true;
        leave(l);
    }
}

/* --- start and end --- */

static struct redis *open_redis(struct coordinator *co, struct err *e)
{
    const char *const texts[] = { [SCRIPT_ACQUIRE] = leadership_acquire_script,
                                  [SCRIPT_RENEW] = leadership_renew_script,
                                  [SCRIPT_RELEASE] = leadership_release_script,
                                  [SCRIPT_POD_LIVES] = pods_lives_script };
    for (int i = 0; i < SCRIPTS; i++) co->scripts[i] = (struct redis_script){ .text = texts[i] };
    const struct config *cfg = co->config;
    struct redis_options o = { .sentinel_password = cfg->redis_sentinel_password,
                               .timeout_ms = cfg->redis_timeout_ms,
                               .wait_replicas = (int)cfg->session_redis_wait_replicas,
                               .client_name = "hyperpage-coordinator",
                               .pollset = co->pollset };
    if (!redis_url_parse(cfg->redis_url, &co->url, e)) return NULL;
    o.url = co->url;
    struct redis *redis = redis_open(&o);
    redis_add_scripts(redis, co->scripts, SCRIPTS);
    return redis;
}

/* What the database may make us wait for, and what we may make others wait for there, is less than a lease. */
static struct pg *open_pg(struct coordinator *co, struct err *e)
{
    int64_t lease_ms = co->config->leader_election_timeout;
    struct pg_options o = { .url = co->config->database_url,
                            .name = "hyperpage-coordinator",
                            .lock_timeout_ms = lease_ms / 4,
                            .idle_timeout_ms = lease_ms / 2,
                            .pollset = co->pollset };
    return pg_open(&o, e);
}

static bool open_all(struct coordinator *co, struct err *e)
{
    const struct config *cfg = co->config;
    bool alone = cfg->redis_url[0] == '\0' || !cfg->pod_coordination_enabled;
    if (!pod_name(cfg, co->pod, e)) return false;
    if ((co->pollset = pollset_new(e)) == NULL) return false;
    if ((co->shared = shared_open(cfg->run_dir, e)) == NULL) return false;
    if ((co->slot = shared_claim(co->shared, SLOT_COORDINATOR, e)) == NULL) return false;
    metrics_use(co->slot->counter);
    metrics_without_phases();
    if ((co->coordination = coordination_open(cfg->run_dir, e)) == NULL) return false;
    coordination_begin(co->coordination);
    if (!alone && (co->redis = open_redis(co, e)) == NULL) return false;
    messenger_init(&co->messenger, co->redis, cfg->pod_channel_prefix, co->pod, "coordinator");
    if (cfg->database_url[0] != '\0' && (co->pg = open_pg(co, e)) == NULL) return false;
    co->leadership = leadership_open(co, leadership_changed);
    co->duties = duties_open(co);
    return alone || (co->inbox = inbox_open(co, e)) != NULL;
}

static void close_all(struct coordinator *co)
{
    task_free_stacks(0);
    inbox_close(co->inbox);
    duties_close(co->duties);
    leadership_close(co->leadership);
    pg_close(co->pg);
    redis_close(co->redis);
    coordination_close(co->coordination);
    metrics_use(NULL);
    shared_close(co->shared);
    pollset_free(co->pollset);
}

static void watch_all(struct loop *l)
{
    static const int handled[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2 };
    signal(SIGPIPE, SIG_IGN);
    ev_check_init(&l->check, begin_round);
    ev_set_priority(&l->check, EV_MAXPRI);
    ev_prepare_init(&l->prepare, run_tasks);
    ev_io_init(&l->descriptors, on_descriptors, pollset_fd(l->co->pollset), EV_READ);
    ev_init(&l->due, on_due);
    ev_timer_init(&l->tick, on_tick, TICK_MS / 1000., TICK_MS / 1000.);
    l->check.data = l->prepare.data = l->descriptors.data = l->due.data = l->tick.data = l;
    l->woken_us = clock_mono_us();
    l->tick_at_ms = clock_mono_ms() + TICK_MS;
    ev_check_start(l->ev, &l->check);
    ev_prepare_start(l->ev, &l->prepare);
    ev_io_start(l->ev, &l->descriptors);
    ev_timer_start(l->ev, &l->tick);
    for (size_t i = 0; i < sizeof handled / sizeof handled[0]; i++) {
        ev_signal_init(&l->signals[i], on_signal, handled[i]);
        l->signals[i].data = l;
        ev_signal_start(l->ev, &l->signals[i]);
    }
}

static void unwatch_all(struct loop *l)
{
    for (size_t i = 0; i < sizeof l->signals / sizeof l->signals[0]; i++) ev_signal_stop(l->ev, &l->signals[i]);
    signal(SIGHUP, SIG_IGN); /* one more before the next start must not end us; a TERM may, unless that has been said */
    signal(SIGUSR2, SIG_IGN);
    if (l->stopping) signal(SIGTERM, SIG_IGN);
    if (l->stopping) signal(SIGINT, SIG_IGN);
    ev_loop_destroy(l->ev);
}

static enum coordinator_end run(struct loop *l)
{
    struct coordinator *co = l->co;
    l->ev = ev_default_loop(EVFLAG_AUTO);
    watch_all(l);
    leadership_start(co->leadership);
    duties_start(co->duties);
    if (co->inbox != NULL) inbox_start(co->inbox);
    atomic_store(&co->slot->state, SLOT_SERVING);
    log_info("coordinator started: pod=%s alone=%s", co->pod, co->redis != NULL ? "no" : "yes");
    ev_run(l->ev, 0);
    size_t left = task_count();
    if (left > 0)
        log_error("coordinator leaves while tasks are not done: tasks=%zu", left);
    else
        log_info("coordinator stopped: pod=%s", co->pod);
    unwatch_all(l);
    if (left > 0) return COORDINATOR_FAILED; /* what they use must stay until the process ends */
    close_all(co);
    return l->stopping ? COORDINATOR_STOPPED : COORDINATOR_AGAIN;
}

enum coordinator_end coordinator_run(const struct config *cfg, struct config *(*reload)(void), struct config **next,
                                     struct err *e)
{
    struct coordinator co = { .config = cfg };
    struct loop l = { .co = &co, .reload = reload };
    enum coordinator_end end = COORDINATOR_REFUSED;
    srandom((unsigned)(getpid() ^ clock_mono_us()));
    if (open_all(&co, e))
        end = run(&l);
    else
        close_all(&co);
    *next = l.next;
    return end;
}
