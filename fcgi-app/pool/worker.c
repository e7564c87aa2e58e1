#include "worker.h"

#include "checks.h"
#include "clock.h"
#include "connection.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "store.h"
#include "task.h"

#include <errno.h>
#include <inttypes.h>
#include <malloc.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define ACCEPT_AT_LAST              4096 /* as many as may wait */
#define ACCEPT_AT_ONCE              16   /* then the others have a chance too */
#define TIDY_MS                     1000
#define OUT_OF_DESCRIPTORS_PAUSE_MS 100
#define COMPLAINT_MS                1000 /* and so often it is said, at most */
#define BUSY_PAUSE_MS               20   /* between steps of a worker that keeps house itself */
#define IDLE_PAUSE_MS               250
#define QUIET_MS                    500 /* a pool that stops lets kept connections go after so much silence */

enum leaving { LEAVING_NOT, LEAVING_TO_SIBLINGS, LEAVING_QUIETLY, LEAVING_AT_ONCE };

struct worker {
    const struct worker_options *o;
    struct pollset *pollset;
    struct watch listener, signals, life, siblings, way; /* `way`: there is room again to hand over */
    struct connections connections;
    struct api api;
    struct checks checks; /* of a worker that keeps house itself */
    struct shared *shared;
    struct slot *slot;
    struct store *store;
    enum leaving leaving;
    bool listening, way_full, tired;
    int64_t listen_again_ms, complain_ms, tidy_at_ms, housekeep_at_ms, last_arrival_ms;
    uint64_t leave_after; /* requests; 0: never */
};

/* The one worker of this process; callbacks of watches without a struct of their own find it here. */
static struct worker *self;

static void report(char what)
{
    if (self->o->report_fd < 0) return;
    ssize_t n = write(self->o->report_fd, &what, 1);
    (void)n; /* a dead master is seen by life_fd */
}

static void say_served(void)
{
    report(WORKER_SERVED);
}

/* --- arrivals --- */

static bool start_listening(struct worker *w, struct err *e)
{
    w->listening = pollset_add(w->pollset, &w->listener, EPOLLIN | EPOLLEXCLUSIVE, e);
    return w->listening;
}

static void stop_listening(struct worker *w)
{
    if (w->listening) pollset_remove(w->pollset, &w->listener);
    w->listening = false;
}

/* Out of descriptors or memory: the listener would wake us without end. Other workers may have room. */
static void cannot_accept(int error)
{
    int64_t now_ms = clock_mono_ms();
    if (now_ms >= self->complain_ms) {
        log_error("connections cannot be accepted: error=\"%s\" open=%zu", strerror(error), self->connections.open);
        self->complain_ms = now_ms + COMPLAINT_MS;
    }
    stop_listening(self);
    self->listen_again_ms = now_ms + OUT_OF_DESCRIPTORS_PAUSE_MS;
}

static void accept_up_to(struct watch *listener, int most)
{
    for (int i = 0; i < most; i++) {
        int fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            metrics_add(METRIC_connections_accepted_total, 1);
            self->last_arrival_ms = clock_mono_ms();
            connection_open(&self->connections, fd);
            continue;
        }
        if (errno == EINTR || errno == ECONNABORTED) continue;
        if (errno != EAGAIN) cannot_accept(errno);
        return;
    }
}

static void accept_some(struct watch *listener, uint32_t events)
{
    (void)events;
    accept_up_to(listener, ACCEPT_AT_ONCE);
}

static void take_up_to(int most)
{
    for (int i = 0; i < most; i++) {
        int fd = handover_take(&self->o->handover);
        if (fd < 0) return;
        connection_open(&self->connections, fd);
    }
}

static void take_from_sibling(struct watch *siblings, uint32_t events)
{
    (void)siblings, (void)events;
    take_up_to(ACCEPT_AT_ONCE);
}

/* --- leaving --- */

static void way_is_free(struct watch *way, uint32_t events)
{
    (void)events;
    pollset_remove(self->pollset, way);
    self->way_full = false;
    connections_leave(&self->connections);
}

/* Called, while leaving, for a connection that waits for its next request. */
static bool let_go(struct connections *cs, struct connection *c)
{
    struct worker *w = self;
    (void)cs;
    if (w->leaving == LEAVING_AT_ONCE) {
        connection_close(c);
        return true;
    }
    if (w->leaving != LEAVING_TO_SIBLINGS || w->way_full) return false; /* what comes on it is still served */
    if (connection_give(c, &w->o->handover)) {
        metrics_add(METRIC_connections_handed_over_total, 1);
        return true;
    }
    w->way_full = pollset_add(w->pollset, &w->way, EPOLLOUT, NULL);
    return false;
}

static void leave(enum leaving how)
{
    struct worker *w = self;
    if (w->leaving >= how) return;
    bool first = w->leaving == LEAVING_NOT;
    if (how == LEAVING_TO_SIBLINGS && w->o->handover.give_fd < 0) how = LEAVING_QUIETLY;
    w->leaving = how;
    atomic_store(&w->slot->state, SLOT_DRAINING);
    if (first) {
        /* Nobody comes after us: who waits would be reset when the last descriptor of the socket is closed, and so
         * would those whom a sibling, told to leave a moment before, has handed over. */
        if (how == LEAVING_QUIETLY && w->listening) accept_up_to(&w->listener, ACCEPT_AT_LAST);
        if (how == LEAVING_QUIETLY) take_up_to(ACCEPT_AT_LAST);
        stop_listening(w);
        close(w->listener.fd);
        w->api.listen_fd = -1;
        w->listen_again_ms = 0;
        if (w->siblings.fd >= 0 && how != LEAVING_QUIETLY) pollset_remove(w->pollset, &w->siblings);
        log_debug("worker leaves: connections=%zu requests=%zu", w->connections.open, w->connections.exchanges.count);
    }
    w->connections.closing = how != LEAVING_TO_SIBLINGS;
    w->last_arrival_ms = clock_mono_ms();
    connections_leave(&w->connections);
}

static bool has_left(struct worker *w)
{
    if (w->leaving == LEAVING_NOT || w->connections.exchanges.count > 0 || task_count() > 0) return false;
    if (w->connections.open == 0) return true;
    if (w->leaving == LEAVING_TO_SIBLINGS) return false;
    return w->leaving == LEAVING_AT_ONCE || clock_mono_ms() - w->last_arrival_ms >= QUIET_MS;
}

static void master_died(struct watch *life, uint32_t events)
{
    (void)events;
    log_warn("master is gone, worker finishes and leaves");
    pollset_remove(self->pollset, life);
    leave(LEAVING_QUIETLY);
}

static void read_signal(struct watch *signals, uint32_t events)
{
    (void)events;
    struct signalfd_siginfo s;
    struct err e;
    while (read(signals->fd, &s, sizeof s) == sizeof s) {
        if (s.ssi_signo == SIGTERM)
            leave(LEAVING_TO_SIBLINGS);
        else if (s.ssi_signo == SIGQUIT)
            leave(LEAVING_QUIETLY);
        else if (s.ssi_signo == SIGINT)
            leave(LEAVING_AT_ONCE);
        else if (s.ssi_signo == SIGUSR1 && !log_reopen(&e))
            log_error("log file stays the old one: error=\"%s\"", e.text);
    }
}

/* --- the loop --- */

/* What the master's watchdog sees of us. */
static void show_in_slot(struct worker *w)
{
    const struct exchange *oldest = w->connections.exchanges.first;
    atomic_store_explicit(&w->slot->connections, (int32_t)w->connections.open, memory_order_relaxed);
    atomic_store_explicit(&w->slot->requests, (int32_t)w->connections.exchanges.count, memory_order_relaxed);
    atomic_store_explicit(&w->slot->oldest_since_ms, oldest ? oldest->started_ms : 0, memory_order_relaxed);
    if (oldest == NULL) return;
    atomic_store_explicit(&w->slot->oldest_method, oldest->rq.method, memory_order_relaxed);
    atomic_store_explicit(&w->slot->oldest_route, oldest->route, memory_order_relaxed);
}

static void run_housekeeping(void *worker)
{
    struct worker *w = worker;
    struct err e;
    bool more = false;
    if (!store_housekeep(w->store, &more, &e)) log_warn("housekeeping failed: error=\"%s\"", e.text);
    checks_run(&w->checks);
    w->housekeep_at_ms = clock_mono_ms() + (more ? BUSY_PAUSE_MS : IDLE_PAUSE_MS);
}

/* Without a master nobody keeps house, so the worker does between requests, in small steps. */
static void housekeep_alone(struct worker *w, int64_t now_ms)
{
    if (w->o->report_fd >= 0 || w->leaving != LEAVING_NOT || now_ms < w->housekeep_at_ms) return;
    w->housekeep_at_ms = CLOCK_NEVER; /* until this step is done */
    task_start(run_housekeeping, w);
}

static void now_and_then(struct worker *w, int64_t now_ms)
{
    struct err e;
    if (w->listen_again_ms > 0 && now_ms >= w->listen_again_ms) {
        w->listen_again_ms = 0;
        if (!start_listening(w, &e)) w->listen_again_ms = now_ms + OUT_OF_DESCRIPTORS_PAUSE_MS;
    }
    housekeep_alone(w, now_ms);
    if (now_ms >= w->tidy_at_ms) {
        connections_tidy(&w->connections, now_ms);
        metrics_cpu(METRIC_cpu_worker);
        w->tidy_at_ms = now_ms + TIDY_MS;
        /* A worker without a master has no watchdog but the kernel's: SIGALRM ends a process that stands still. */
        if (w->o->report_fd < 0) alarm((unsigned)w->o->config->request_terminate_timeout + TIDY_MS / 1000);
    }
    if (w->leave_after > 0 && w->connections.exchanges.answered >= w->leave_after && !w->tired) {
        w->tired = true;
        if (w->o->report_fd >= 0)
            report(WORKER_TIRED);
        else
            leave(LEAVING_QUIETLY);
    }
}

static int next_wait_ms(struct worker *w, int64_t now_ms, int64_t task_due_ms)
{
    int64_t due_ms = w->tidy_at_ms < task_due_ms ? w->tidy_at_ms : task_due_ms;
    if (w->listen_again_ms > 0 && w->listen_again_ms < due_ms) due_ms = w->listen_again_ms;
    if (w->leaving == LEAVING_QUIETLY && w->connections.exchanges.count == 0 && task_count() == 0 &&
        w->last_arrival_ms + QUIET_MS < due_ms)
        due_ms = w->last_arrival_ms + QUIET_MS;
    if (w->o->report_fd < 0 && w->housekeep_at_ms < due_ms) due_ms = w->housekeep_at_ms;
    return due_ms <= now_ms ? 0 : (int)(due_ms - now_ms);
}

/* A round: take all that has arrived, run every task as far as it comes, send what they asked for in one piece. An
 * embedded store answers within the flush, hence the inner loop. */
static void serve_rounds(struct worker *w)
{
    while (!has_left(w)) {
        int64_t now_ms = clock_mono_ms();
        if (w->leaving != LEAVING_NOT && w->connections.exchanges.count > 0) w->last_arrival_ms = now_ms;
        now_and_then(w, now_ms);
        int wait_ms = next_wait_ms(w, now_ms, task_expire(now_ms));
        show_in_slot(w);
        atomic_store_explicit(&w->slot->busy_since_ms, 0, memory_order_relaxed);
        pollset_wait(w->pollset, task_any_ready() ? 0 : wait_ms);
        atomic_store_explicit(&w->slot->busy_since_ms, clock_mono_ms(), memory_order_relaxed);
        connections_look_at_fresh(&w->connections, false);
        do {
            task_run_ready();
            show_in_slot(w);
            store_flush(w->store);
            connections_look_at_fresh(&w->connections, true);
        } while (task_any_ready());
    }
}

/* --- start and end --- */

/* As many descriptors as we may have: each client of a front server may cost one. */
static void raise_descriptor_limit(void)
{
    struct rlimit l;
    if (getrlimit(RLIMIT_NOFILE, &l) == 0 && l.rlim_cur < l.rlim_max) {
        l.rlim_cur = l.rlim_max;
        setrlimit(RLIMIT_NOFILE, &l);
    }
}

/* A web server wakes a worker with each request it passes on. A worker that ran at once would mostly find one; the
 * kernel does not let a batch process preempt the one that wakes it, so the web server passes on what it has first. */
static void run_as_batch(const struct config *cfg)
{
    struct sched_param normal = { .sched_priority = 0 };
    if (cfg->worker_scheduling != 0 || sched_getscheduler(0) != SCHED_OTHER) return;
    if (sched_setscheduler(0, SCHED_BATCH, &normal) != 0)
        log_info("worker is scheduled as any program: error=\"%s\"", strerror(errno));
}

static bool watch_signals(struct worker *w, struct err *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    if (sigprocmask(SIG_SETMASK, &set, NULL) != 0) return err_set(e, ERR_INTERNAL, "sigprocmask: %s", strerror(errno));
    w->signals = (struct watch){ signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), read_signal };
    return pollset_add(w->pollset, &w->signals, EPOLLIN, e);
}

static bool watch_all(struct worker *w, struct err *e)
{
    w->listener = (struct watch){ w->o->listen_fd, accept_some };
    w->siblings = (struct watch){ w->o->handover.take_fd, take_from_sibling };
    w->way = (struct watch){ w->o->handover.give_fd, way_is_free };
    w->life = (struct watch){ w->o->life_fd, master_died };
    return (w->life.fd < 0 || pollset_add(w->pollset, &w->life, EPOLLIN, e)) &&
           (w->siblings.fd < 0 || pollset_add(w->pollset, &w->siblings, EPOLLIN | EPOLLEXCLUSIVE, e)) &&
           start_listening(w, e);
}

static uint64_t requests_until_tired(const struct config *cfg)
{
    int64_t n = cfg->max_requests;
    if (n == 0) return 0;
    int64_t jitter = n / 10; /* not all workers at once */
    return (uint64_t)(n - jitter + (jitter > 0 ? random() % (2 * jitter + 1) : 0));
}

static bool worker_start(struct worker *w, struct err *e)
{
    const struct config *cfg = w->o->config;
    raise_descriptor_limit();
    run_as_batch(cfg);
    mallopt(M_MXFAST, 0); /* else each of libfcgi's buffers makes malloc sort all that is small and free */
    srandom((unsigned)(getpid() ^ clock_mono_us()));
    w->pollset = pollset_new(e);
    if (w->pollset == NULL || !watch_signals(w, e)) return false;
    w->shared = shared_open(cfg->run_dir, e);
    if (w->shared == NULL) return false;
    w->slot = shared_claim(w->shared, SLOT_WORKER, e);
    if (w->slot == NULL) return false;
    metrics_use(w->slot->counter);
    w->store = store_open(cfg, w->pollset, e);
    if (w->store == NULL || !api_init(&w->api, cfg, w->store, w->shared, w->slot, e)) return false;
    if (!api_coordination_open(&w->api, e)) return false;
    if (!connections_init(&w->connections, &w->api, w->pollset, e)) return false;
    w->connections.idle = let_go;
    w->connections.serves = say_served;
    w->api.listen_fd = w->o->listen_fd;
    w->checks = (struct checks){ .shared = w->shared, .store = w->store, .timeout_ms = cfg->request_timeout_ms };
    w->leave_after = requests_until_tired(cfg);
    return watch_all(w, e);
}

static void worker_stop(struct worker *w)
{
    if (w->connections.api != NULL) connections_done(&w->connections);
    task_free_stacks(0);
    api_coordination_close(&w->api);
    api_done(&w->api);
    store_close(w->store);
    metrics_use(NULL);
    shared_close(w->shared);
    pollset_free(w->pollset);
}

int worker_run(const struct worker_options *o)
{
    struct worker w = { .o = o };
    struct err e = { .kind = ERR_NONE };
    self = &w;
    log_role("worker");
    prctl(PR_SET_NAME, "fcgi-worker");
    bool ok = worker_start(&w, &e);
    if (ok) {
        atomic_store(&w.slot->state, SLOT_SERVING);
        report(WORKER_READY);
        serve_rounds(&w);
    } else {
        log_error("worker cannot start: error=\"%s\"", e.text);
    }
    worker_stop(&w);
    return ok ? 0 : 1;
}
