/* bench_store_embedded.c: what the embedded store costs. Prints; judges nothing.
 *     bench_store_embedded [FOLDER [full]]
 *         operations a second, commit times and bytes a session, by one process and by four, in rounds of 1 and of 16,
 *         with somebody else keeping house
 *     bench_store_embedded --size SESSIONS [FOLDER [full]]
 *         a store of that size: creating, reading, its file, and how long purging a tenth keeps writers waiting; one
 *         "figure<TAB>value" a line, for run.py */
#include "turns.h"

#include "clock.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* ---- Turns, with a look at how long we were ready to run in them, and others ran ------------------------------ */

static int schedstat_fd = -1;
static int64_t turn_us, turn_waited_us; /* since when; what we had waited for a processor by then */
static int64_t most_used_us;            /* of a turn: its time without that */

static int64_t waited_for_processor_us(void)
{
    char text[100] = "";
    int64_t ran_ns, waited_ns = 0;
    if (pread(schedstat_fd, text, sizeof text - 1, 0) <= 0 ||
        sscanf(text, "%" SCNd64 " %" SCNd64, &ran_ns, &waited_ns) != 2)
        return 0;
    return waited_ns / 1000;
}

static bool timed_take(struct turns *t, int64_t deadline_ms)
{
    bool ok = turns_take(t, deadline_ms);
    turn_us = clock_mono_us();
    turn_waited_us = schedstat_fd >= 0 ? waited_for_processor_us() : 0;
    return ok;
}

static void timed_leave(struct turns *t)
{
    int64_t used_us = clock_mono_us() - turn_us;
    if (schedstat_fd >= 0) used_us -= waited_for_processor_us() - turn_waited_us;
    if (used_us > most_used_us) most_used_us = used_us;
    turns_leave(t);
}

#define turns_take  timed_take
#define turns_leave timed_leave
#include "store_embedded.c"
#undef turns_take
#undef turns_leave

/* ---- What is measured ----------------------------------------------------------------------------------------- */

#include "ids.h"
#include "mem.h"
#include "task.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define MOST_ROUNDS 200000
#define DOC_BYTES   700
#define TERMS       (&(struct store_terms){ .ttl_ms = LONG_MS, .minted = true })
#define RUN_MS      2000
#define PURGE_STEP  1000 /* as lib/store.c */
#define PAUSE_US    2000 /* as the keeper's between steps */
#define GOAL_US     5000 /* most that a turn of the keeper should last */
#define PROBE_US    100000
#define HOUR_MS     3600000
#define LONG_MS     (24 * HOUR_MS)
#define FILL_WIDTH  64

static struct store_embedded_options options;
static int sessions = 100000;
static char (*ids)[IDS_TEXT_BYTES];
static struct store_embedded *se;
static char doc[DOC_BYTES];

enum what { CREATE, UPDATE, READ, KINDS };
static const char *const names[KINDS] = { "create", "update", "read" };

/* Shared by the processes of a run. */
struct run {
    int run_ms;
    _Atomic int ready;
    _Atomic bool go;
    _Atomic uint64_t operations;
    _Atomic uint32_t rounds;
    int32_t round_us[MOST_ROUNDS];
};

static _Noreturn void die(const char *doing, const struct err *e)
{
    fprintf(stderr, "%s: %s\n", doing, e->text);
    exit(1);
}

static enum store_verdict touch(void *ctx, struct bytes old, struct buf *out)
{
    (void)ctx;
    buf_add(out, old);
    snprintf(out->data + 20, 21, "%020" PRId64, clock_mono_us());
    return STORE_WRITE;
}

/* --size: of ten sessions one ends after an hour, one after two, wherever they lie in the table; the others stay. */
static int64_t life_ms(int n)
{
    uint32_t mixed = (uint32_t)n * 2654435761u >> 16;
    return mixed % 10 == 0 ? HOUR_MS : mixed % 10 == 1 ? 2 * HOUR_MS : LONG_MS;
}

/* A session that is not going to expire. */
static const char *any_lasting(void)
{
    int n = rand() % sessions;
    while (life_ms(n) != LONG_MS) n = (n + 1) % sessions;
    return ids[n];
}

static void one_operation(void *arg)
{
    enum what what = *(enum what *)arg;
    struct store_result res;
    struct err e = { 0 };
    char fresh[IDS_TEXT_BYTES];
    const char *id = any_lasting();
    int64_t deadline_ms = clock_mono_ms() + 5000;
    bool ok = false;
    if (what == CREATE) {
        ids_new(fresh);
        ok = store_embedded_ops.create(se, fresh, (struct bytes){ doc, sizeof doc }, TERMS, deadline_ms, &res, &e);
    } else if (what == UPDATE) {
        ok = store_embedded_ops.update(se, id, touch, NULL, TERMS, deadline_ms, &res, &e);
    } else {
        struct buf out = BUF_INIT(1 << 20);
        ok = store_embedded_ops.get(se, id, 0, deadline_ms, &out, &res, &e);
        buf_done(&out);
    }
    if (!ok) die(names[what], &e);
}

static void open_here(void)
{
    struct err e = { 0 };
    se = store_embedded_open(&options, &e);
    if (se == NULL) die("open", &e);
}

static void note(struct run *r, int64_t took_us)
{
    uint32_t n = atomic_fetch_add(&r->rounds, 1);
    if (n < MOST_ROUNDS) r->round_us[n] = (int32_t)took_us;
}

static _Noreturn void work(struct run *r, enum what what, int width)
{
    open_here();
    srand((unsigned)getpid());
    atomic_fetch_add(&r->ready, 1);
    while (!atomic_load(&r->go)) usleep(100);
    for (int64_t end_ms = clock_mono_ms() + r->run_ms; clock_mono_ms() < end_ms;) {
        int64_t begin_us = clock_mono_us();
        for (int i = 0; i < width; i++) task_start(one_operation, &what);
        while (task_count() > 0) {
            task_run_ready();
            store_embedded_ops.flush(se);
        }
        note(r, clock_mono_us() - begin_us);
        atomic_fetch_add(&r->operations, (uint64_t)width);
    }
    store_embedded_close(se);
    _exit(0);
}

static _Noreturn void keep_house(void)
{
    int64_t purged;
    bool more;
    struct err e = { 0 };
    open_here();
    for (;;) {
        if (!store_embedded_housekeep(se, 256, &purged, &more, &e)) die("housekeeping", &e);
        usleep(100000);
    }
}

static int by_value(const void *a, const void *b)
{
    int32_t x = *(const int32_t *)a, y = *(const int32_t *)b;
    return (x > y) - (x < y);
}

static int64_t file_bytes(const char *name)
{
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", options.dir, name);
    return stat(path, &st) < 0 ? 0 : (int64_t)st.st_size;
}

static struct run *run_new(void)
{
    return mmap(NULL, sizeof(struct run), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void run_kind(enum what what, int processes, int width)
{
    struct run *r = run_new();
    r->run_ms = RUN_MS;
    pid_t housekeeper = fork(), worker[16];
    if (housekeeper == 0) keep_house();
    for (int i = 0; i < processes; i++)
        if ((worker[i] = fork()) == 0) work(r, what, width);
    while (atomic_load(&r->ready) < processes) usleep(100);
    atomic_store(&r->go, true);
    for (int i = 0; i < processes; i++) waitpid(worker[i], NULL, 0);
    int64_t wal_bytes = file_bytes("sessions.db-wal");
    kill(housekeeper, SIGKILL);
    waitpid(housekeeper, NULL, 0);

    uint32_t n = r->rounds < MOST_ROUNDS ? r->rounds : MOST_ROUNDS;
    qsort(r->round_us, n, sizeof *r->round_us, by_value);
    printf("%-6s %d process%-2s rounds of %2d: %8.0f/s  round p50 %6d us  p99 %6d us  p99.9 %6d us  max %6d us  WAL "
           "%3" PRId64 " MiB\n",
           names[what], processes, processes > 1 ? "es" : "", width, (double)r->operations * 1000 / RUN_MS,
           r->round_us[n / 2], r->round_us[n - 1 - n / 100], r->round_us[n - 1 - n / 1000], r->round_us[n - 1],
           wal_bytes >> 20);
    munmap(r, sizeof *r);
}

static void fill_one(void *arg)
{
    struct store_result res;
    struct err e = { 0 };
    char *id = arg;
    struct store_terms terms = { .ttl_ms = life_ms((int)((id - ids[0]) / IDS_TEXT_BYTES)), .minted = true };
    ids_new(id);
    if (!store_embedded_ops.create(se, id, (struct bytes){ doc, sizeof doc }, &terms, clock_mono_ms() + 5000, &res, &e))
        die("create", &e);
}

static void stop(pid_t pid)
{
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* Returns the seconds it took. */
static double fill(void)
{
    pid_t housekeeper = fork();
    if (housekeeper == 0) keep_house();
    open_here();
    int64_t begin_us = clock_mono_us();
    for (int i = 0; i < sessions;) {
        for (int k = 0; k < FILL_WIDTH && i < sessions; k++) task_start(fill_one, ids[i++]);
        task_run_ready();
        store_embedded_ops.flush(se);
        task_run_ready();
    }
    int64_t took_us = clock_mono_us() - begin_us;
    stop(housekeeper);
    store_embedded_close(se); /* the last one out copies the WAL */
    se = NULL;
    return (double)took_us / 1e6;
}

static double read_all(void)
{
    enum what what = READ;
    open_here();
    int64_t begin_us = clock_mono_us();
    for (int i = 0; i < sessions; i += FILL_WIDTH) {
        for (int k = 0; k < FILL_WIDTH; k++) task_start(one_operation, &what);
        task_run_ready();
        store_embedded_ops.flush(se);
    }
    int64_t took_us = clock_mono_us() - begin_us;
    store_embedded_close(se);
    se = NULL;
    return (double)took_us / 1e6;
}

/* The WAL's count of its own beginnings: in its header, big-endian. */
static uint32_t wal_restarts(void)
{
    char path[4096];
    unsigned char head[16] = { 0 };
    snprintf(path, sizeof path, "%s/sessions.db-wal", options.dir);
    FILE *f = fopen(path, "r");
    if (f == NULL || fread(head, 1, sizeof head, f) < sizeof head) memset(head, 0, sizeof head);
    if (f != NULL) fclose(f);
    return (uint32_t)head[12] << 24 | (uint32_t)head[13] << 16 | (uint32_t)head[14] << 8 | head[15];
}

/* As the keeper does it, `hours` from now. `held` gets the longest turn of each step, `used` the same without what it
 * waited for a processor: on a machine with other work that is our own time and the disk's. */
static int64_t purge_all(int hours, struct run *held, struct run *used)
{
    int64_t all = 0, purged;
    bool more = true;
    struct err e = { 0 };
    schedstat_fd = open("/proc/self/schedstat", O_RDONLY | O_CLOEXEC);
    clock_set(clock_wall_ms() + hours * HOUR_MS + 120000, -1); /* and what purge_ms may be later */
    while (more) {
        most_used_us = 0;
        if (!store_embedded_housekeep(se, PURGE_STEP, &purged, &more, &e)) {
            if (e.kind != ERR_UNAVAILABLE) die("housekeeping", &e);
            more = true; /* the writer left no turn: another time */
        }
        note(held, store_embedded_held_us(se));
        note(used, most_used_us);
        all += purged;
        if (more) usleep(PAUSE_US);
    }
    close(schedstat_fd);
    schedstat_fd = -1;
    clock_set(-1, -1);
    return all;
}

static void print_times(const char *what, struct run *r)
{
    static const struct {
        const char *name;
        int one_of;
    } ranks[] = { { "p50", 2 }, { "p99", 100 }, { "p99.9", 1000 }, { "most", INT32_MAX } };
    uint32_t n = r->rounds < MOST_ROUNDS ? r->rounds : MOST_ROUNDS;
    if (n == 0) return;
    qsort(r->round_us, n, sizeof *r->round_us, by_value);
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++)
        printf("%s, %s, ms\t%.3f\n", what, ranks[i].name, r->round_us[n - 1 - n / (uint32_t)ranks[i].one_of] / 1e3);
}

/* One process that changes sessions without a pause until it is killed. */
static pid_t writer_start(struct run *r)
{
    pid_t pid = fork();
    if (pid == 0) {
        r->run_ms = INT32_MAX;
        work(r, UPDATE, 16);
    }
    while (atomic_load(&r->ready) == 0) usleep(100);
    atomic_store(&r->go, true);
    return pid;
}

/* A process that writes one page and flushes it, ten times a second, until it is killed: what the disk is like
 * meanwhile, with whatever else uses it. */
static pid_t probe_start(struct run *r)
{
    char path[4096], page[4096] = { 0 };
    pid_t pid = fork();
    if (pid != 0) return pid;
    snprintf(path, sizeof path, "%s/probe", options.dir);
    FILE *f = fopen(path, "w");
    for (;;) {
        int64_t begin_us = clock_mono_us();
        if (f == NULL || pwrite(fileno(f), page, sizeof page, 0) != sizeof page || fdatasync(fileno(f)) != 0) _exit(1);
        note(r, clock_mono_us() - begin_us);
        usleep(PROBE_US);
    }
}

static uint32_t count_over(const struct run *r, int32_t us)
{
    uint32_t over = 0;
    for (uint32_t i = 0; i < r->rounds && i < MOST_ROUNDS; i++) over += r->round_us[i] > us;
    return over;
}

static void measure_purge(int hours, bool beside_writer)
{
    struct run *keeper = run_new(), *used = run_new(), *writer = run_new(), *disk = run_new();
    const char *beside = beside_writer ? "beside a writer" : "beside none";
    char text[100];
    pid_t pid = beside_writer ? writer_start(writer) : -1, probe = probe_start(disk);
    open_here();
    uint32_t restarts = wal_restarts();
    int64_t begin_us = clock_mono_us(), purged = purge_all(hours, keeper, used), took_us = clock_mono_us() - begin_us;
    if (beside_writer) stop(pid);
    stop(probe);
    printf("purge %s, sessions\t%" PRId64 "\n", beside, purged);
    printf("purge %s, sessions/s\t%.0f\n", beside, (double)purged * 1e6 / (double)took_us);
    printf("purge %s, steps\t%u\n", beside, keeper->rounds);
    printf("purge %s, the WAL began again\t%u\n", beside, wal_restarts() - restarts);
    printf("purge %s, MiB of WAL\t%" PRId64 "\n", beside, file_bytes("sessions.db-wal") >> 20);
    snprintf(text, sizeof text, "purge %s, turn held", beside);
    print_times(text, keeper);
    printf("purge %s, turn held, steps over %d ms\t%u\n", beside, GOAL_US / 1000, count_over(keeper, GOAL_US));
    snprintf(text, sizeof text, "purge %s, turn held without waiting for a processor", beside);
    print_times(text, used);
    printf("purge %s, turn held without waiting for a processor, steps over %d ms\t%u\n", beside, GOAL_US / 1000,
           count_over(used, GOAL_US));
    snprintf(text, sizeof text, "purge %s, a flush of one page beside it", beside);
    print_times(text, disk);
    if (beside_writer)
        printf("a writer's changes beside the purge, 1/s\t%.0f\n", (double)writer->operations * 1e6 / (double)took_us);
    print_times("a writer's round beside the purge", writer);
    store_embedded_close(se);
    se = NULL;
    munmap(keeper, sizeof *keeper);
    munmap(used, sizeof *used);
    munmap(disk, sizeof *disk);
    munmap(writer, sizeof *writer);
}

/* What the writer waits when nobody purges. */
static void measure_writer(void)
{
    struct run *r = run_new();
    pid_t housekeeper = fork();
    if (housekeeper == 0) keep_house();
    pid_t pid = writer_start(r);
    usleep(3 * RUN_MS * 1000);
    stop(pid);
    stop(housekeeper);
    printf("a writer's changes without a purge, 1/s\t%.0f\n", (double)r->operations / (3 * RUN_MS / 1000));
    print_times("a writer's round without a purge", r);
    munmap(r, sizeof *r);
}

static void measure_size(void)
{
    printf("create, sessions/s\t%.0f\n", sessions / fill());
    printf("read, sessions/s\t%.0f\n", sessions / read_all());
    printf("file, MiB\t%.0f\n", (double)file_bytes("sessions.db") / (1 << 20));
    printf("file, bytes a session\t%" PRId64 "\n", file_bytes("sessions.db") / sessions);
    measure_writer();
    measure_purge(1, false);
    measure_purge(2, true);
}

static void measure_rates(void)
{
    fill();
    printf("%d sessions of %d bytes: %" PRId64 " bytes of file a session\n", sessions, DOC_BYTES,
           file_bytes("sessions.db") / sessions);
    for (int what = 0; what < KINDS; what++)
        for (int processes = 1; processes <= 4; processes += 3)
            for (int width = 1; width <= 16; width += 15) run_kind((enum what)what, processes, width);
}

int main(int argc, char **argv)
{
    char temporary[] = "/tmp/bench_store_embedded.XXXXXX";
    bool size = argc > 2 && strcmp(argv[1], "--size") == 0;
    if (size) {
        sessions = atoi(argv[2]);
        argv += 2;
        argc -= 2;
    }
    options.dir = argc > 1 ? argv[1] : mkdtemp(temporary);
    options.sync_full = argc > 2 && strcmp(argv[2], "full") == 0;
    ids = mem_alloc((size_t)sessions * sizeof *ids);
    memset(doc, 'x', sizeof doc);
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (size)
        measure_size();
    else
        measure_rates();
    if (argc == 1) fprintf(stderr, "files are in %s\n", options.dir);
    free(ids);
    return 0;
}
