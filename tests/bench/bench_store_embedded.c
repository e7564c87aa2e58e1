/* bench_store_embedded.c: what the embedded store costs: operations a second, commit times and bytes a session, by one
 * process and by four, in rounds of 1 and of 16, with somebody else keeping house. Prints; judges nothing.
 *     bench_store_embedded [FOLDER [full]] */
#include "store_embedded.h"

#include "clock.h"
#include "ids.h"
#include "mem.h"
#include "task.h"

#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define SESSIONS    100000
#define MOST_ROUNDS 200000
#define DOC_BYTES   700
#define TERMS       (&(struct store_terms){ .ttl_ms = 86400000, .minted = true })
#define RUN_MS      2000

static struct store_embedded_options options;
static char (*ids)[IDS_TEXT_BYTES];
static struct store_embedded *se;
static char doc[DOC_BYTES];

enum what { CREATE, UPDATE, READ, KINDS };
static const char *const names[KINDS] = { "create", "update", "read" };

/* Shared by the processes of a run. */
struct run {
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

static void one_operation(void *arg)
{
    enum what what = *(enum what *)arg;
    struct store_result res;
    struct err e = { 0 };
    char fresh[IDS_TEXT_BYTES];
    const char *id = ids[rand() % SESSIONS];
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

static _Noreturn void work(struct run *r, enum what what, int width)
{
    open_here();
    srand((unsigned)getpid());
    atomic_fetch_add(&r->ready, 1);
    while (!atomic_load(&r->go)) usleep(100);
    for (int64_t end_ms = clock_mono_ms() + RUN_MS; clock_mono_ms() < end_ms;) {
        int64_t begin_us = clock_mono_us();
        for (int i = 0; i < width; i++) task_start(one_operation, &what);
        while (task_count() > 0) {
            task_run_ready();
            store_embedded_ops.flush(se);
        }
        uint32_t n = atomic_fetch_add(&r->rounds, 1);
        if (n < MOST_ROUNDS) r->round_us[n] = (int32_t)(clock_mono_us() - begin_us);
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

static void run(enum what what, int processes, int width)
{
    struct run *r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
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
    ids_new(arg);
    if (!store_embedded_ops.create(se, arg, (struct bytes){ doc, sizeof doc }, TERMS, clock_mono_ms() + 5000, &res,
                                   &e))
        die("create", &e);
}

static void fill(void)
{
    open_here();
    for (int i = 0; i < SESSIONS;) {
        for (int k = 0; k < 64 && i < SESSIONS; k++) task_start(fill_one, ids[i++]);
        task_run_ready();
        store_embedded_ops.flush(se);
        task_run_ready();
    }
    store_embedded_close(se); /* the last one out copies the WAL */
    se = NULL;
    printf("%d sessions of %d bytes: %" PRId64 " bytes of file a session\n", SESSIONS, DOC_BYTES,
           file_bytes("sessions.db") / SESSIONS);
}

int main(int argc, char **argv)
{
    char temporary[] = "/tmp/bench_store_embedded.XXXXXX";
    options.dir = argc > 1 ? argv[1] : mkdtemp(temporary);
    options.sync_full = argc > 2 && strcmp(argv[2], "full") == 0;
    ids = mem_alloc(SESSIONS * sizeof *ids);
    memset(doc, 'x', sizeof doc);
    setvbuf(stdout, NULL, _IOLBF, 0);
    fill();
    for (int what = 0; what < KINDS; what++)
        for (int processes = 1; processes <= 4; processes += 3)
            for (int width = 1; width <= 16; width += 15) run((enum what)what, processes, width);
    printf("files are in %s\n", options.dir);
    free(ids);
    return 0;
}
