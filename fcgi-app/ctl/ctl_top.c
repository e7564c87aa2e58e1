/* ctl_top.c: the pool at work, second by second: on a terminal until q or Ctrl-C, else one second of it. */
#include "ctl.h"

#include "clock.h"
#include "mem.h"
#include "processes.h"
#include "totals.h"

#include <inttypes.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <termios.h>
#include <unistd.h>

#define EVERY_MS   1000
#define HEAD_LINES 4
#define ENTER      "\033[?1049h\033[?25l" /* another screen, no cursor */
#define LEAVE      "\033[?25h\033[?1049l"
#define REDRAW     "\033[H\033[J"

/* What had been counted at one moment. */
struct sample {
    int64_t at_us;
    uint64_t requests, histogram[METRICS_HISTOGRAM]; /* of all: durations */
    uint64_t worker[SHARED_SLOTS];                   /* requests of each slot, whoever owned it */
};

struct top {
    struct ctl *c;
    struct node node;
    struct sample before, now;
    uint64_t *totals;
};

/* --- samples --- */

static uint64_t count_requests(const struct slot *s)
{
    uint64_t n = 0;
    for (size_t i = METRICS_REQUESTS_AT; i < METRICS_DURATIONS_AT; i++)
        n += atomic_load_explicit(&s->counter[i], memory_order_relaxed);
    return n;
}

static void take_sample(struct top *t)
{
    struct sample *s = &t->now;
    t->before = t->now;
    memset(s, 0, sizeof *s);
    totals_read(t->node.shared, t->totals);
    s->at_us = clock_mono_us();
    s->requests = totals_requests(t->totals);
    for (size_t i = METRICS_DURATIONS_AT; i < METRICS_PHASES_AT; i++)
        s->histogram[(i - METRICS_DURATIONS_AT) % METRICS_HISTOGRAM] += t->totals[i];
    for (size_t i = 0; i < shared_slots_used(t->node.shared); i++)
        s->worker[i] = count_requests(shared_slot(t->node.shared, i));
}

static int64_t a_second(const struct top *t, uint64_t before, uint64_t now)
{
    int64_t took_us = t->now.at_us - t->before.at_us;
    return took_us > 0 ? (int64_t)(now - before) * 1000000 / took_us : 0;
}

/* The bound of the bucket below which this part of the interval's requests lies, in seconds; "" if there were none. */
static const char *quantile(const struct top *t, uint64_t per_cent)
{
    uint64_t all = 0, so_far = 0;
    for (size_t b = 0; b < METRICS_BUCKETS; b++) all += t->now.histogram[b] - t->before.histogram[b];
    for (size_t b = 0; b < METRICS_BUCKETS && all > 0; b++) {
        so_far += t->now.histogram[b] - t->before.histogram[b];
        if (so_far * 100 >= all * per_cent) return metrics_bounds[b];
    }
    return "";
}

/* --- one second as a report --- */

static void tell_worker(struct top *t, size_t i)
{
    struct report *r = &t->c->report;
    const struct slot *s = shared_slot(t->node.shared, i);
    int64_t oldest_ms = atomic_load(&s->oldest_since_ms);
    report_open(r, NULL);
    report_number(r, "pid", atomic_load(&s->pid));
    report_string(r, "state", node_state(s));
    report_number(r, "requestsPerSecond", a_second(t, t->before.worker[i], t->now.worker[i]));
    report_number(r, "requests", atomic_load(&s->requests));
    report_number(r, "connections", atomic_load(&s->connections));
    report_number(r, "oldestMs", oldest_ms != 0 ? clock_mono_ms() - oldest_ms : 0);
    report_close(r);
}

static bool is_worker(const struct top *t, size_t i)
{
    return atomic_load(&shared_slot(t->node.shared, i)->role) == SLOT_WORKER && shared_slot_alive(t->node.shared, i);
}

static void tell(struct top *t)
{
    struct report *r = &t->c->report;
    report_number(r, "requestsPerSecond", a_second(t, t->before.requests, t->now.requests));
    report_string(r, "p50Seconds", quantile(t, 50));
    report_string(r, "p99Seconds", quantile(t, 99));
    report_open_list(r, "workers");
    for (size_t i = 0; i < shared_slots_used(t->node.shared); i++)
        if (is_worker(t, i)) tell_worker(t, i);
    report_close_list(r);
}

/* --- the terminal --- */

static void draw(struct top *t)
{
    struct winsize size;
    struct buf out = BUF_INIT(256 * 1024);
    char now[CLOCK_ISO_BYTES];
    int row = HEAD_LINES;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0) size.ws_row = 24;
    clock_iso(clock_wall_ms(), now);
    buf_printf(&out, REDRAW "hyperpage pool %d  %s  q quits\n", (int)t->node.master.pid, now);
    buf_printf(&out, "%" PRId64 " requests/s  p50 <= %s s  p99 <= %s s\n\n",
               a_second(t, t->before.requests, t->now.requests), quantile(t, 50), quantile(t, 99));
    buf_printf(&out, "%9s  %-9s %10s %9s %12s %10s\n", "PID", "STATE", "REQUESTS/S", "IN HAND", "CONNECTIONS",
               "OLDEST MS");
    for (size_t i = 0; i < shared_slots_used(t->node.shared) && row + 1 < size.ws_row; i++) {
        const struct slot *s = shared_slot(t->node.shared, i);
        int64_t oldest_ms = atomic_load(&s->oldest_since_ms);
        if (!is_worker(t, i)) continue;
        buf_printf(&out, "%9d  %-9s %10" PRId64 " %9d %12d %10" PRId64 "\n", (int)atomic_load(&s->pid), node_state(s),
                   a_second(t, t->before.worker[i], t->now.worker[i]), (int)atomic_load(&s->requests),
                   (int)atomic_load(&s->connections), oldest_ms != 0 ? clock_mono_ms() - oldest_ms : 0);
        row++;
    }
    fwrite(buf_text(&out), 1, out.len, stdout);
    fflush(stdout);
    buf_done(&out);
}

/* A second, or less: false when somebody wants it to end. Ctrl-C comes as a byte; who ends us by a signal shall find
 * the terminal as it was. */
static bool wait_a_second(struct top *t, int signals_fd)
{
    struct pollfd fds[] = { { .fd = STDIN_FILENO, .events = POLLIN },
                            { .fd = signals_fd, .events = POLLIN },
                            { .fd = t->node.master.fd, .events = POLLIN } };
    char key = 0;
    int64_t until_ms = clock_mono_ms() + EVERY_MS, left_ms;
    while ((left_ms = until_ms - clock_mono_ms()) > 0) {
        if (poll(fds, 3, (int)left_ms) <= 0) continue;
        if (fds[1].revents != 0 || fds[2].revents != 0) return false;
        if (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q' || key == 3 || key == 4) return false;
    }
    return true;
}

static void watch(struct top *t)
{
    struct termios was, raw;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int signals_fd = signalfd(-1, &set, SFD_CLOEXEC);
    if (tcgetattr(STDIN_FILENO, &was) != 0) return;
    raw = was;
    raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO | ISIG);
    tcsetattr(STDIN_FILENO, TCSANOW, &raw);
    fputs(ENTER, stdout);
    do {
        take_sample(t);
        draw(t);
    } while (wait_a_second(t, signals_fd));
    fputs(LEAVE, stdout);
    fflush(stdout);
    tcsetattr(STDIN_FILENO, TCSANOW, &was);
    close(signals_fd);
}

enum ctl_exit pool_top(struct ctl *c)
{
    struct top *t = mem_alloc(sizeof *t);
    t->c = c;
    t->totals = mem_alloc(METRICS_COUNTERS * sizeof *t->totals);
    enum ctl_exit code = node_open_pool(c, &t->node, true);
    if (code == CTL_OK) take_sample(t);
    if (code == CTL_OK && isatty(STDIN_FILENO) && isatty(STDOUT_FILENO) && !c->report.json) {
        watch(t);
    } else if (code == CTL_OK) {
        if (daemon_wait(&t->node.master, clock_mono_ms() + EVERY_MS))
            code = ctl_fail(CTL_UNREACHABLE, "the pool has ended");
        take_sample(t);
        tell(t);
    }
    node_close(&t->node);
    free(t->totals);
    free(t);
    return code;
}
