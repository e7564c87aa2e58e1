#include "keeper.h"

#include "checks.h"
#include "clock.h"
#include "log.h"
#include "metrics.h"
#include "store.h"
#include "store_refuge.h"
#include "task.h"
#include "waiters.h"
#include "worker.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define BUSY_PAUSE_MS 2    /* between steps while there is more to purge: the writers come first */
#define LEAVE_MS      2500 /* longest wait for others to be told of what was brought back */
#define IDLE_PAUSE_MS 250  /* between looks at the size of the log */

struct keeper {
    struct pollset *pollset;
    struct watch signals, life;
    struct store *store;
    struct checks checks;
    struct waiters pausing;
    int report_fd;
    int running; /* of the two tasks */
    bool leaving;
};

static struct keeper *self;

static void read_signal(struct watch *signals, uint32_t events)
{
    (void)events;
    struct signalfd_siginfo s;
    struct err e;
    while (read(signals->fd, &s, sizeof s) == sizeof s) {
        if (s.ssi_signo != SIGUSR1)
            self->leaving = true;
        else if (!log_reopen(&e))
            log_error("log file stays the old one: error=\"%s\"", e.text);
    }
}

static void master_died(struct watch *life, uint32_t events)
{
    (void)life, (void)events;
    self->leaving = true;
}

static bool watch_all(struct keeper *k, int life_fd, struct err *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGQUIT);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGUSR1);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    sigprocmask(SIG_SETMASK, &set, NULL);
    k->pollset = pollset_new(e);
    k->signals = (struct watch){ signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC), read_signal };
    k->life = (struct watch){ life_fd, master_died };
    return k->pollset != NULL && pollset_add(k->pollset, &k->signals, EPOLLIN, e) &&
           pollset_add(k->pollset, &k->life, EPOLLIN, e);
}

static void report(const struct keeper *k, char what)
{
    ssize_t n = write(k->report_fd, &what, 1);
    (void)n; /* a dead master is seen by `life` */
}

static bool count_leftovers(const struct config *cfg, bool redis, int64_t *left, struct err *e)
{
    struct store_embedded_options o = { .dir = cfg->state_dir };
    struct refuge *refuge = NULL;
    int64_t deadline_ms = clock_mono_ms() + 5000;
    struct store_embedded *se = store_embedded_open(&o, e);
    bool ok = se != NULL;
    if (ok && redis) {
        ok = store_embedded_ops.count(se, deadline_ms, left, e);
    } else if (ok) {
        refuge = refuge_open(&(struct refuge_options){ .embedded = se }, e);
        ok = refuge != NULL && refuge_count(refuge, NULL, NULL, deadline_ms, left, e);
    }
    refuge_close(refuge);
    store_embedded_close(se);
    return ok;
}

void keeper_report_leftovers(const struct config *cfg)
{
    struct err e;
    char path[4096];
    int64_t left = 0;
    bool redis = cfg->redis_url[0] != '\0';
    snprintf(path, sizeof path, "%s/sessions.db", cfg->state_dir);
    if ((redis && cfg->session_fallback_to_memory) || access(path, F_OK) != 0) return;
    if (!count_leftovers(cfg, redis, &left, &e))
        log_warn("embedded store of an earlier run cannot be looked at: error=\"%s\"", e.text);
    else if (left > 0 && redis)
        log_warn(
            "redis is the store, but the embedded store still holds sessions, which are not served: sessions=%" PRId64
            " path=\"%s\"",
            left, path);
    else if (left > 0)
        log_warn(
            "the embedded store is the store, but changes of an outage of redis still wait for it: sessions=%" PRId64
            " path=\"%s\"",
            left, path);
}

/* --- what it does: two tasks, as each may wait for Redis --- */

static void pause_for(struct keeper *k, int64_t pause_ms)
{
    int64_t until_ms = clock_mono_ms() + pause_ms;
    while (!k->leaving && clock_mono_ms() < until_ms) waiters_wait(&k->pausing, until_ms);
}

static void run_housekeeping(void *arg)
{
    struct keeper *k = arg;
    struct err e;
    int64_t quiet_until_ms = 0; /* a full disk fails four times a second */
    while (!k->leaving) {
        bool more = false;
        if (!store_housekeep(k->store, &more, &e) && clock_mono_ms() >= quiet_until_ms) {
            log_warn("housekeeping failed: error=\"%s\"", e.text);
            quiet_until_ms = clock_mono_ms() + 60000;
        }
        pause_for(k, more ? BUSY_PAUSE_MS : IDLE_PAUSE_MS);
    }
    k->running--;
}

static void run_checks(void *arg)
{
    struct keeper *k = arg;
    bool told = false;
    while (!k->leaving) {
        checks_run(&k->checks);
        if (!told) report(k, WORKER_SERVED);
        told = true;
        metrics_cpu(METRIC_cpu_keeper);
        pause_for(k, IDLE_PAUSE_MS);
    }
    k->running--;
}

/* Rounds as a worker's, until both have ended and those who tell others of what was brought back. */
static void keep_house(struct keeper *k)
{
    int64_t leave_by_ms = CLOCK_NEVER;
    k->running = 2;
    task_start(run_housekeeping, k);
    task_start(run_checks, k);
    while (k->running > 0 || (task_count() > 0 && clock_mono_ms() < leave_by_ms)) {
        int64_t now_ms = clock_mono_ms(), due_ms = task_expire(now_ms);
        if (k->leaving && leave_by_ms == CLOCK_NEVER) leave_by_ms = now_ms + LEAVE_MS;
        if (due_ms > now_ms + IDLE_PAUSE_MS) due_ms = now_ms + IDLE_PAUSE_MS;
        pollset_wait(k->pollset, task_any_ready() ? 0 : (int)(due_ms > now_ms ? due_ms - now_ms : 0));
        do {
            if (k->leaving) waiters_wake(&k->pausing);
            task_run_ready();
            store_flush(k->store);
        } while (task_any_ready());
    }
}

int keeper_run(const struct config *cfg, int life_fd, int report_fd)
{
    struct keeper k = { .report_fd = report_fd };
    struct err e = { .kind = ERR_NONE };
    struct shared *sh = NULL;
    struct slot *slot = NULL;
    self = &k;
    log_role("keeper");
    prctl(PR_SET_NAME, "fcgi-keeper");
    bool ok = watch_all(&k, life_fd, &e);
    if (ok) sh = shared_open(cfg->run_dir, &e);
    if (sh != NULL) slot = shared_claim(sh, SLOT_KEEPER, &e);
    ok = slot != NULL;
    if (ok) ok = (k.store = store_open(cfg, k.pollset, &e)) != NULL;
    if (ok) {
        k.checks = (struct checks){ .shared = sh, .store = k.store, .timeout_ms = cfg->request_timeout_ms };
        metrics_use(slot->counter);
        metrics_without_phases();
        atomic_store(&slot->state, SLOT_SERVING);
        report(&k, WORKER_READY);
        keeper_report_leftovers(cfg);
        keep_house(&k);
    } else {
        log_error("keeper cannot start: error=\"%s\"", e.text);
    }
    task_free_stacks(0);
    store_close(k.store);
    metrics_use(NULL);
    shared_close(sh);
    pollset_free(k.pollset);
    return ok ? 0 : 1;
}
