#include "master.h"

#include "children.h"
#include "clock.h"
#include "folder.h"
#include "handover.h"
#include "http.h"
#include "keeper.h"
#include "listener.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "notify.h"
#include "redis_url.h"
#include "routes.h"
#include "worker.h"

#include <assert.h>
#include <errno.h>
#include <ev.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define WATCH_S       0.2  /* how often the watchdog looks */
#define FAST_DRAIN_MS 5000 /* INT: as TERM, but not for long */
#define INHERIT       "HYPERPAGE_INHERIT"

enum stopping { STOPPING_NOT, STOPPING_DRAIN, STOPPING_FAST, STOPPING_REPLACED };

struct master {
    struct master_options *o;
    struct ev_loop *loop;
    struct listener listener;
    struct handover handover;
    struct children children;
    struct shared *shared;
    struct slot *slot;
    int life_fd[2]; /* children read [0]; it ends when we do */
    enum stopping stopping;
    bool stays_down; /* whoever started us shall not start us again */
    bool said_ready, reloading, killed_any;
    bool some_died;    /* their slots may still bear their names */
    int old_master_fd; /* tells the master whom we replace that our workers serve; -1: there is none */
    pid_t old_master;
    bool guest;        /* the socket's path is that master's still, or our successor's already */
    pid_t new_master;  /* who is about to replace us... */
    int new_master_fd; /* ...as it tells here, -1: not any more... */
    ev_io new_master_says;
    int64_t new_master_by_ms; /* ...until then, or it is given up */
    ev_timer tick;
    ev_signal signals[8];
    ev_child child_watch;
    ev_io report[CHILDREN_MOST];
    sigset_t signal_mask; /* as it was when we started */
};

static struct master m;

static_assert(SHARED_SLOTS >= 2 * (CHILDREN_SEATS + 1) + 2, "a new binary has to find slots beside the old one");

static void act(void);
static void stop(enum stopping how);

/* --- checks --- */

bool master_check_config(const struct config *cfg, bool create, struct err *e)
{
    struct redis_url url;
    struct bytes bad;
    if (cfg->redis_url[0] != '\0' && !redis_url_parse(cfg->redis_url, &url, e)) return false;
    if (!http_networks_check(cfg->trusted_proxies, &bad))
        return err_set(e, ERR_INPUT,
                       "TRUSTED_PROXIES: %.*s is no network; allowed are addresses, networks (10.0.0.0/8) and *",
                       (int)bad.len, bad.at);
    struct api names = { .config = cfg };
    bool ok = api_init(&names, cfg, NULL, NULL, NULL, e);
    api_done(&names);
    /* The web server must get through RUN_DIR to the socket, which has its own permissions. */
    return ok && listener_check(cfg, e) && folder_check("RUN_DIR", cfg->run_dir, 0755, create, e) &&
           folder_check("STATE_DIR", cfg->state_dir, 0700, create, e);
}

/* --- children --- */

/* What a child must not keep of its parent: handlers that write into the parent's loop, the parent's slot, and the end
 * of the pipe whose closing says that the parent is dead. */
static void forget_handlers(void)
{
    static const int handled[] = { SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU, SIGCHLD, SIGQUIT };
    for (size_t i = 0; i < sizeof handled / sizeof handled[0]; i++) signal(handled[i], SIG_DFL);
}

static void become_child(void)
{
    forget_handlers();
    ev_loop_destroy(m.loop);
    shared_forget(m.shared);
    metrics_use(NULL);
    close(m.life_fd[1]);
    if (m.old_master_fd >= 0) close(m.old_master_fd);
    if (m.new_master_fd >= 0) close(m.new_master_fd);
    for (size_t i = 0; i < CHILDREN_MOST; i++)
        if (m.children.child[i].pid != 0) close(m.children.child[i].report_fd);
    unsetenv("NOTIFY_SOCKET");
}

static int child_main(int seat, int report_fd)
{
    if (seat == CHILDREN_KEEPER) {
        close(m.listener.fd);
        return keeper_run(m.o->config, m.life_fd[0], report_fd);
    }
    struct worker_options o = { .config = m.o->config,
                                .listen_fd = m.listener.fd,
                                .handover = m.handover,
                                .life_fd = m.life_fd[0],
                                .report_fd = report_fd };
    return worker_run(&o);
}

/* Takes in what a child has said; as read(). */
static ssize_t read_reports(struct child *c)
{
    char what[16];
    ssize_t n = read(c->report_fd, what, sizeof what);
    for (ssize_t i = 0; i < n; i++) {
        if (what[i] == WORKER_READY) children_is_ready(c);
        if (what[i] == WORKER_SERVED) children_has_served(&m.children, c);
        if (what[i] == WORKER_TIRED) children_is_tired(c);
    }
    return n;
}

static void on_report(struct ev_loop *loop, ev_io *w, int events)
{
    (void)events;
    ssize_t n = read_reports(w->data);
    if (n > 0)
        act();
    else if (n == 0 || errno != EAGAIN)
        ev_io_stop(loop, w);
}

/* The parent's side of a fork. */
static void watch_child(int seat, pid_t pid, int report_fd)
{
    struct child *c = children_started(&m.children, seat, pid, report_fd, clock_mono_ms());
    ev_io *w = &m.report[c - m.children.child];
    ev_io_init(w, on_report, report_fd, EV_READ);
    w->data = c;
    ev_io_start(m.loop, w);
}

static void start_child(int seat)
{
    int report[2] = { -1, -1 };
    sigset_t all, before;
    pid_t pid = -1;
    const char *why = NULL;
    if (children_count(&m.children) == CHILDREN_MOST) {
        why = "too many are leaving still";
    } else if (pipe2(report, O_CLOEXEC | O_NONBLOCK) != 0) {
        why = strerror(errno);
    } else {
        sigfillset(&all); /* a signal between fork and the child's own handlers would run ours, in the child */
        sigprocmask(SIG_SETMASK, &all, &before);
        pid = fork();
        if (pid == 0) {
            close(report[0]);
            become_child();
            _exit(child_main(seat, report[1]));
        }
        why = strerror(errno);
        sigprocmask(SIG_SETMASK, &before, NULL);
        close(report[1]);
    }
    if (pid > 0) {
        watch_child(seat, pid, report[0]);
        return;
    }
    log_error("child cannot be started: error=\"%s\"", why);
    if (report[0] >= 0) close(report[0]);
    m.children.seat[seat].start_at_ms = clock_mono_ms() + 1000;
}

/* Siblings stay, in this pool or in the one that replaces it: then idle connections go to them. */
static int signal_to_leave(void)
{
    if (m.stopping == STOPPING_FAST) return SIGINT;
    return m.stopping == STOPPING_DRAIN ? SIGQUIT : SIGTERM;
}

static void tell_to_leave(struct child *c)
{
    int64_t most_ms = m.stopping == STOPPING_FAST ? FAST_DRAIN_MS : m.o->config->drain_timeout * 1000;
    kill(c->pid, signal_to_leave());
    if (m.stopping == STOPPING_NOT && c->renew && c->role == CHILD_WORKER)
        metrics_add(c->tired ? METRIC_restarts_max_requests : METRIC_restarts_reload, 1);
    children_is_leaving(c, clock_mono_ms() + most_ms);
}

static void kill_late(struct child *c)
{
    log_warn("child did not leave in time, killed: child=%d", (int)c->pid);
    m.killed_any = true;
    kill(c->pid, SIGKILL);
}

/* RUN_DIR/pool.pid names the master for scripts, from when its workers serve. A successor overwrites it. */
static void pid_file_path(char path[4096])
{
    snprintf(path, 4096, "%s/pool.pid", m.o->config->run_dir);
}

/* Written beside and moved there: a script that reads it finds one pid or the other, and never half of one. */
static void write_pid_file(void)
{
    char path[4096], fresh[4096 + 4];
    pid_file_path(path);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    FILE *f = fopen(fresh, "we");
    bool ok = f != NULL && fprintf(f, "%d\n", (int)getpid()) > 0;
    if (f != NULL && fclose(f) != 0) ok = false;
    if (!ok || rename(fresh, path) != 0) log_warn("pid file cannot be written: path=\"%s\"", path);
}

static void remove_pid_file(void)
{
    char path[4096];
    int pid = 0;
    pid_file_path(path);
    FILE *f = fopen(path, "re");
    if (f == NULL) return;
    if (fscanf(f, "%d", &pid) == 1 && pid == (int)getpid()) unlink(path);
    fclose(f);
}

/* Has the master whom we are to replace given us up? Then its TERM is on its way. */
static bool is_given_up(void)
{
    char byte;
    return m.old_master_fd >= 0 && recv(m.old_master_fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0 &&
           getppid() == m.old_master;
}

/* Lets the one before us go. One that has died meanwhile need not be told. */
static void take_over(void)
{
    if (m.old_master_fd < 0) return;
    bool told = write(m.old_master_fd, &(char){ WORKER_READY }, 1) == 1;
    m.guest = !told && getppid() == m.old_master;
    close(m.old_master_fd);
    m.old_master_fd = -1;
}

/* The pool serves with all that is new: say so, and let the one before us go. */
static void say_ready(void)
{
    char text[64];
    if (!children_all_ready(&m.children) || is_given_up()) return;
    if (m.some_died) shared_bury(m.shared, SLOT_WORKER);
    m.some_died = false;
    if (!m.said_ready)
        log_info("pool serves: listen=\"%s\" workers=%d store=%s", m.listener.text,
                 children_workers_wanted(&m.children), m.o->config->redis_url[0] ? "redis" : "embedded");
    else if (m.reloading)
        log_info("reload done: workers=%d", children_workers_wanted(&m.children));
    if (!m.said_ready || m.reloading) {
        snprintf(text, sizeof text, "MAINPID=%d\nREADY=1", (int)getpid());
        notify_send(text);
    }
    if (!m.said_ready) write_pid_file();
    take_over();
    m.said_ready = true;
    m.reloading = false;
    atomic_store(&m.slot->state, SLOT_SERVING);
}

/* Does all that is due now, and sets the timer for what is due next. */
static void act(void)
{
    struct child *c;
    int seat;
    int64_t due_ms;
    enum child_action a;
    while ((a = children_next(&m.children, clock_mono_ms(), &c, &seat, &due_ms)) != CHILD_NOTHING) {
        if (a == CHILD_START)
            start_child(seat);
        else if (a == CHILD_LEAVE)
            tell_to_leave(c);
        else
            kill_late(c);
    }
    if (m.stopping != STOPPING_NOT) {
        if (children_count(&m.children) == 0) ev_break(m.loop, EVBREAK_ALL);
    } else {
        say_ready();
    }
    atomic_store(&m.slot->workers_wanted, children_workers_wanted(&m.children));
    double wait_s = WATCH_S;
    if (due_ms != CLOCK_NEVER && (double)(due_ms - clock_mono_ms()) / 1000.0 < wait_s)
        wait_s = (double)(due_ms - clock_mono_ms()) / 1000.0;
    ev_timer_stop(m.loop, &m.tick);
    ev_timer_set(&m.tick, wait_s > 0.001 ? wait_s : 0.001, 0.0);
    ev_timer_start(m.loop, &m.tick);
}

/* A worker whose loop stands still fails all requests in its hands anyway, and those that wait behind. */
static void look_for_hangs(void)
{
    int64_t now_ms = clock_mono_ms(), most_ms = m.o->config->request_terminate_timeout * 1000;
    for (size_t i = 0; i < CHILDREN_MOST; i++) {
        struct child *c = &m.children.child[i];
        if (c->pid == 0 || c->role != CHILD_WORKER || c->killed) continue;
        struct slot *s = shared_slot_of(m.shared, SLOT_WORKER, c->pid);
        int64_t since_ms = s ? atomic_load(&s->busy_since_ms) : 0;
        if (since_ms == 0 || now_ms - since_ms < most_ms) continue;
        log_error("worker stands still, killed: child=%d method=%s route=%s duration_ms=%" PRId64 " requests=%d",
                  (int)c->pid, http_methods[atomic_load(&s->oldest_method) & 7],
                  routes_name(atomic_load(&s->oldest_route)), now_ms - since_ms, atomic_load(&s->requests));
        c->killed = true;
        c->stalled = true;
        kill(c->pid, SIGKILL);
    }
}

/* Has the new master said that its workers serve? From now on it cannot, and hears of that. */
static bool end_of_its_words(void)
{
    char what = 0;
    int fd = m.new_master_fd;
    if (fd < 0) return false;
    shutdown(fd, SHUT_RDWR); /* what it has said before can still be read */
    bool serves = recv(fd, &what, 1, MSG_DONTWAIT) == 1 && what == WORKER_READY;
    ev_io_stop(m.loop, &m.new_master_says);
    close(fd);
    m.new_master_fd = -1;
    return serves;
}

/* False: it has taken over at this very moment. */
static bool give_up_new_master(const char *why)
{
    if (end_of_its_words()) {
        m.new_master = 0;
        return false;
    }
    log_error("new binary given up, the old one goes on: child=%d cause=\"%s\"", (int)m.new_master, why);
    metrics_add(METRIC_upgrades_refused, 1);
    kill(m.new_master, SIGTERM);
    m.new_master = 0;
    return true;
}

static void on_tick(struct ev_loop *loop, ev_timer *w, int events)
{
    (void)loop, (void)w, (void)events;
    look_for_hangs();
    metrics_cpu(METRIC_cpu_master);
    if (m.new_master > 0 && clock_mono_ms() >= m.new_master_by_ms && !give_up_new_master("it does not serve"))
        stop(STOPPING_REPLACED);
    act();
}

static const char *how_it_ended(int status, char text[48])
{
    if (WIFSIGNALED(status))
        snprintf(text, 48, "signal %d", WTERMSIG(status));
    else
        snprintf(text, 48, "exit %d", WEXITSTATUS(status));
    return text;
}

static void on_child(struct ev_loop *loop, ev_child *w, int events)
{
    char how[48];
    (void)events;
    if (w->rpid == m.new_master) {
        log_error("new binary gave up, the old one goes on: child=%d cause=\"%s\"", w->rpid,
                  how_it_ended(w->rstatus, how));
        metrics_add(METRIC_upgrades_refused, 1);
        m.new_master = 0;
        (void)end_of_its_words(); /* whatever it said, it is dead */
        return;
    }
    struct child *c = children_find(&m.children, w->rpid);
    if (c == NULL) return;
    while (read_reports(c) > 0) continue; /* its last words: libev tells of deaths first */
    ev_io_stop(loop, &m.report[c - m.children.child]);
    close(c->report_fd);
    m.some_died = true;
    const char *role = c->role == CHILD_KEEPER ? "keeper" : "worker";
    enum metric cause = c->role == CHILD_KEEPER   ? METRIC_keeper_restarts_total
                        : c->stalled              ? METRIC_restarts_stalled
                        : WIFSIGNALED(w->rstatus) ? METRIC_restarts_signal
                                                  : METRIC_restarts_exit;
    if (children_died(&m.children, c, clock_mono_ms())) {
        log_warn("%s died, a new one follows: child=%d cause=\"%s\"", role, w->rpid, how_it_ended(w->rstatus, how));
        metrics_add(cause, 1);
    } else {
        log_debug("%s left: child=%d cause=\"%s\"", role, w->rpid, how_it_ended(w->rstatus, how));
    }
    act();
}

/* --- signals --- */

static void stop(enum stopping how)
{
    if (m.stopping >= how && m.stopping != STOPPING_NOT) return;
    pid_t new_master = m.new_master;
    if (new_master > 0 && how != STOPPING_REPLACED && !give_up_new_master("the pool stops")) {
        kill(new_master, SIGTERM); /* it serves just now: the socket's path is its own, and it ends with us */
        m.guest = true;
    }
    m.stopping = how;
    if (how == STOPPING_REPLACED) m.guest = true; /* the path belongs to the one who follows */
    /* The workers take in who waits, and close it: then whoever connects is refused at once, and not kept until we end.
     */
    if (how == STOPPING_DRAIN && m.listener.fd >= 0) {
        close(m.listener.fd);
        m.listener.fd = -1;
    }
    if (how != STOPPING_REPLACED) notify_send("STOPPING=1"); /* else the service goes on, and we only leave it */
    log_info("pool stops%s: children=%zu", how == STOPPING_REPLACED ? ", a new binary has taken over" : "",
             children_count(&m.children));
    atomic_store(&m.slot->state, SLOT_DRAINING);
    for (int s = 0; s < m.children.seats; s++) m.children.seat[s].wanted = false;
    for (size_t i = 0; i < CHILDREN_MOST; i++) /* who is leaving already may have to be quicker now */
        if (m.children.child[i].pid != 0 && m.children.child[i].leaving) tell_to_leave(&m.children.child[i]);
    act();
}

static void reload(void)
{
    struct config_call call;
    struct buf misses = BUF_INIT(8192);
    struct err e;
    extern char **environ;
    struct config *cfg = config_load(m.o->argc, m.o->argv, environ, &call, &misses, &e);
    bool ok =
        cfg != NULL && (cfg->workers != 0 || err_set(&e, ERR_INPUT, "WORKERS=0: a pool that runs keeps its master"));
    if (cfg != NULL && (!ok || !master_check_config(cfg, true, &e))) {
        config_free(cfg);
        cfg = NULL;
    }
    buf_done(&misses);
    if (cfg == NULL) {
        log_error("reload refused, the old configuration stays: error=\"%s\"", e.text);
        metrics_add(METRIC_reloads_refused, 1);
        return;
    }
    notify_send("RELOADING=1");
    if (strcmp(cfg->listen, m.o->config->listen) != 0 || strcmp(cfg->run_dir, m.o->config->run_dir) != 0)
        log_warn("LISTEN and RUN_DIR change with a restart only");
    bool log_ok =
        log_open("master", (enum log_level)cfg->log_level, (enum log_format)cfg->log_format, cfg->log_file, &e);
    if (!log_ok) log_error("log stays the old one: error=\"%s\"", e.text);
    if (log_ok || m.o->config->log_file[0] == '\0') { /* else the log still points into the old one */
        config_free(m.o->config);
    }
    m.o->config = cfg;
    m.reloading = true;
    log_info("reload: configuration read, workers follow one by one");
    children_want_workers(&m.children,
                          cfg->workers == CONFIG_AUTO ? children_workers_wanted(&m.children) : (int)cfg->workers);
    children_renew_all(&m.children);
    metrics_add(METRIC_generations_reload, 1);
    act();
}

/* The new master's workers serve, or it has closed its end without a word: then its death is reported apart. */
static void on_new_master(struct ev_loop *loop, ev_io *w, int events)
{
    (void)loop, (void)w, (void)events;
    if (!end_of_its_words() || m.new_master == 0) return;
    m.new_master = 0; /* it is nobody's to give up any more, however long we drain */
    stop(STOPPING_REPLACED);
}

static void exec_new_binary(int say_fd)
{
    char inherit[128];
    int keep[] = { m.listener.fd, m.handover.give_fd, m.handover.take_fd, say_fd };
    for (size_t i = 0; i < 4; i++) fcntl(keep[i], F_SETFD, 0);
    snprintf(inherit, sizeof inherit, "%d,%d,%d,%d,%d,%d", m.listener.fd, m.handover.give_fd, m.handover.take_fd,
             say_fd, (int)getppid(), m.listener.ours);
    setenv(INHERIT, inherit, 1);
    forget_handlers(); /* a TERM before the exec must end us, not run the parent's handler */
    sigprocmask(SIG_SETMASK, &m.signal_mask, NULL);
    execvp(m.o->argv[0], m.o->argv);
    log_error("new binary cannot be started: path=\"%s\" error=\"%s\"", m.o->argv[0], strerror(errno));
    _exit(127);
}

/* Starts this program anew on the same socket. We leave once it says that its workers serve. */
static void upgrade(void)
{
    int say[2];
    sigset_t all, before;
    if (m.new_master > 0) {
        log_warn("a new binary is being started already: child=%d", (int)m.new_master);
        return;
    }
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, say) != 0) {
        log_error("new binary cannot be started: error=\"%s\"", strerror(errno));
        return;
    }
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    pid_t pid = fork();
    if (pid == 0) exec_new_binary(say[1]);
    sigprocmask(SIG_SETMASK, &before, NULL);
    close(say[1]);
    if (pid < 0) {
        log_error("new binary cannot be started: error=\"%s\"", strerror(errno));
        close(say[0]);
        return;
    }
    log_info("new binary started: child=%d", (int)pid);
    m.new_master = pid;
    m.new_master_fd = say[0];
    m.new_master_by_ms = clock_mono_ms() + m.o->config->drain_timeout * 1000;
    ev_io_init(&m.new_master_says, on_new_master, say[0], EV_READ);
    ev_io_start(m.loop, &m.new_master_says);
}

static void reopen_logs(void)
{
    struct err e;
    if (!log_reopen(&e)) log_error("log file stays the old one: error=\"%s\"", e.text);
    for (size_t i = 0; i < CHILDREN_MOST; i++)
        if (m.children.child[i].pid != 0) kill(m.children.child[i].pid, SIGUSR1);
}

static void want_workers(int workers)
{
    children_want_workers(&m.children, workers);
    log_info("number of workers changed: workers=%d", children_workers_wanted(&m.children));
    act();
}

static void on_signal(struct ev_loop *loop, ev_signal *w, int events)
{
    (void)loop, (void)events;
    if (m.stopping != STOPPING_NOT && w->signum != SIGTERM && w->signum != SIGQUIT && w->signum != SIGINT &&
        w->signum != SIGUSR1)
        return;
    if (w->signum == SIGQUIT) m.stays_down = true;
    switch (w->signum) {
    case SIGTERM:
    case SIGQUIT:
        stop(STOPPING_DRAIN);
        break;
    case SIGINT:
        stop(STOPPING_FAST);
        break;
    case SIGHUP:
        reload();
        break;
    case SIGUSR1:
        reopen_logs();
        break;
    case SIGUSR2:
        upgrade();
        break;
    case SIGTTIN:
        want_workers(children_workers_wanted(&m.children) + 1);
        break;
    case SIGTTOU:
        want_workers(children_workers_wanted(&m.children) - 1);
        break;
    }
}

/* --- start --- */

/* What the binary before us has left: its socket, its handover, the descriptor on which it waits for our word. */
static bool read_inheritance(int *listen_fd, bool *made)
{
    const char *text = getenv(INHERIT);
    int ours = 0;
    *listen_fd = -1;
    if (text == NULL) return false;
    bool ok = sscanf(text, "%d,%d,%d,%d,%d,%d", listen_fd, &m.handover.give_fd, &m.handover.take_fd, &m.old_master_fd,
                     &m.old_master, &ours) == 6 &&
              m.old_master == getppid();
    unsetenv(INHERIT);
    if (!ok) {
        *listen_fd = m.old_master_fd = -1;
        return false;
    }
    *made = ours;
    m.guest = true;
    fcntl(m.handover.give_fd, F_SETFD, FD_CLOEXEC);
    fcntl(m.handover.take_fd, F_SETFD, FD_CLOEXEC);
    fcntl(m.old_master_fd, F_SETFD, FD_CLOEXEC);
    return true;
}

static bool master_start(struct err *e)
{
    const struct config *cfg = m.o->config;
    int inherited;
    bool made = false;
    if (!read_inheritance(&inherited, &made) && !handover_open(&m.handover, e)) return false;
    if (!listener_open(&m.listener, cfg, inherited, made, e)) return false;
    m.shared = shared_open(cfg->run_dir, e);
    if (m.shared == NULL) return false;
    m.slot = shared_claim(m.shared, SLOT_MASTER, e);
    if (m.slot == NULL) return false;
    metrics_use(m.slot->counter);
    metrics_add(m.old_master_fd >= 0 ? METRIC_generations_upgrade : METRIC_generations_start, 1);
    return pipe2(m.life_fd, O_CLOEXEC) == 0 || err_set(e, ERR_INTERNAL, "pipe: %s", strerror(errno));
}

/* The socket's path goes with us, unless another master serves there. */
static void close_listener(void)
{
    if (m.guest) m.listener.ours = false;
    listener_close(&m.listener);
}

static void watch_all(void)
{
    static const int handled[8] = { SIGTERM, SIGQUIT, SIGINT, SIGHUP, SIGUSR1, SIGUSR2, SIGTTIN, SIGTTOU };
    m.loop = ev_default_loop(0);
    for (size_t i = 0; i < 8; i++) {
        ev_signal_init(&m.signals[i], on_signal, handled[i]);
        ev_signal_start(m.loop, &m.signals[i]);
    }
    ev_child_init(&m.child_watch, on_child, 0, 0);
    ev_child_start(m.loop, &m.child_watch);
    ev_timer_init(&m.tick, on_tick, 0.0, 0.0);
}

static int default_workers(void)
{
    long cores = sysconf(_SC_NPROCESSORS_ONLN);
    return cores > 2 ? (int)cores : 2;
}

int master_run(struct master_options *o, struct err *e)
{
    m = (struct master){ .o = o,
                         .listener = { .fd = -1 },
                         .handover = { -1, -1 },
                         .life_fd = { -1, -1 },
                         .old_master_fd = -1,
                         .new_master_fd = -1,
                         .some_died = true }; /* in an earlier run */
    signal(SIGPIPE, SIG_IGN);
    sigprocmask(SIG_SETMASK, NULL, &m.signal_mask);
    if (!master_start(e)) {
        close_listener();
        shared_close(m.shared);
        return 2;
    }
    watch_all();
    children_init(&m.children, o->config->workers == CONFIG_AUTO ? default_workers() : (int)o->config->workers);
    act();
    ev_run(m.loop, 0);

    log_info("pool has stopped");
    close_listener();
    remove_pid_file();
    metrics_use(NULL);
    shared_bury(m.shared, SLOT_WORKER);
    shared_close(m.shared);
    return m.stays_down ? MASTER_DRAINED : m.killed_any ? 1 : 0;
}
