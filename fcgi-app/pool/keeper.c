#include "keeper.h"

#include "checks.h"
#include "clock.h"
#include "log.h"
#include "metrics.h"
#include "store.h"
#include "store_refuge.h"
#include "worker.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define BUSY_PAUSE_MS 5    /* between steps while there is more to purge: the writers come first */
#define IDLE_PAUSE_MS 250  /* between looks at the size of the log */

struct keeper {
    struct pollset *pollset;
    struct watch signals, life;
    bool leaving;
};

static struct keeper *self;

static void read_signal(struct watch *signals, uint32_t events)
{
    (void)events;
    struct signalfd_siginfo s;
    struct err e;
    while (read(signals->fd, &s, sizeof s) == sizeof s) {
        if (s.ssi_signo != SIGUSR1) self->leaving = true;
        else if (!log_reopen(&e)) log_error("log file stays the old one: error=\"%s\"", e.text);
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
    return k->pollset != NULL && pollset_add(k->pollset, &k->signals, EPOLLIN, e) && pollset_add(k->pollset, &k->life, EPOLLIN, e);
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
        log_warn("redis is the store, but the embedded store still holds sessions, which are not served: sessions=%" PRId64 " path=\"%s\"", left, path);
    else if (left > 0)
        log_warn("the embedded store is the store, but changes of an outage of redis still wait for it: sessions=%" PRId64 " path=\"%s\"", left, path);
}

static void keep_house(struct keeper *k, struct store *st, struct checks *checks)
{
    struct err e;
    int64_t quiet_until_ms = 0; /* a full disk fails four times a second */
    while (!k->leaving) {
        bool more = false;
        if (!store_housekeep(st, &more, &e) && clock_mono_ms() >= quiet_until_ms) {
            log_warn("housekeeping failed: error=\"%s\"", e.text);
            quiet_until_ms = clock_mono_ms() + 60000;
        }
        checks_run(checks);
        metrics_cpu(METRIC_cpu_keeper);
        pollset_wait(k->pollset, more ? BUSY_PAUSE_MS : IDLE_PAUSE_MS);
    }
}

int keeper_run(const struct config *cfg, int life_fd, int report_fd)
{
    struct keeper k = { .leaving = false };
    struct err e = { .kind = ERR_NONE };
    struct store *st = NULL;
    struct shared *sh = NULL;
    struct slot *slot = NULL;
    self = &k;
    log_role("keeper");
    prctl(PR_SET_NAME, "fcgi-keeper");
    bool ok = watch_all(&k, life_fd, &e);
    if (ok) sh = shared_open(cfg->run_dir, &e);
    if (sh != NULL) slot = shared_claim(sh, SLOT_KEEPER, &e);
    ok = slot != NULL;
    if (ok) ok = (st = store_open(cfg, NULL, &e)) != NULL;
    if (ok) {
        struct checks checks = { .shared = sh, .store = st, .timeout_ms = cfg->request_timeout_ms };
        metrics_use(slot->counter);
        atomic_store(&slot->state, SLOT_SERVING);
        ssize_t n = write(report_fd, &(char){ WORKER_READY }, 1);
        (void)n;
        keeper_report_leftovers(cfg);
        keep_house(&k, st, &checks);
    } else {
        log_error("keeper cannot start: error=\"%s\"", e.text);
    }
    store_close(st);
    metrics_use(NULL);
    shared_close(sh);
    pollset_free(k.pollset);
    return ok ? 0 : 1;
}
