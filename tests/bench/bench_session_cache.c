/* bench_session_cache.c: what an operation on the session cache costs, with copies in the processor's caches and not,
 * alone and while another process does the same, and how many documents it holds. Prints; judges nothing. */
#include "session_cache.h"

#include "clock.h"
#include "mem.h"

#include <inttypes.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#define DOC_BYTES   700
#define CACHE_BYTES (64 * 1024 * 1024)
#define OPERATIONS  1000000

static char dir[] = "/dev/shm/bench_session_cache.XXXXXX";
static char (*ids)[40];
static char doc[DOC_BYTES];
static struct session_cache *cache;

static void open_here(void)
{
    struct err e = { 0 };
    cache = session_cache_open(dir, CACHE_BYTES, &e);
    if (cache == NULL) {
        fprintf(stderr, "%s\n", e.text);
        exit(1);
    }
}

static void put(const char *id)
{
    session_cache_put(cache, id, (struct bytes){ doc, DOC_BYTES }, 0, session_cache_epoch(cache, id));
}

static void note_write(const char *id)
{
    session_cache_note_write(cache, id, (struct bytes){ doc, DOC_BYTES }, 0, session_cache_epoch(cache, id));
}

static void get(const char *id)
{
    static struct buf out = BUF_INIT(1 << 20);
    struct session_copy copy;
    buf_reset(&out);
    session_cache_get(cache, id, &out, &copy);
}

static void invalidate(const char *id)
{
    session_cache_invalidate(cache, id);
}

static const struct kind {
    const char *name;
    void (*operation)(const char *id);
} kinds[] = {
    { "put", put }, { "get", get }, { "note_write", note_write }, { "invalidate", invalidate }, { "get", get }
};
#define KINDS (sizeof kinds / sizeof kinds[0])

/* Best of 3, since the machine has other work too. */
static double operation_ns(const struct kind *k, uint32_t sessions)
{
    double best_ns = 1e9;
    for (int run = 0; run < 3; run++) {
        uint32_t at = 0;
        int64_t begin_us = clock_mono_us();
        for (int i = 0; i < OPERATIONS; i++) {
            k->operation(ids[at]);
            at = (at + 7919) % sessions; /* a prime: all of them, not in the order of memory */
        }
        double ns = (double)(clock_mono_us() - begin_us) * 1000 / OPERATIONS;
        if (ns < best_ns) best_ns = ns;
    }
    return best_ns;
}

static void measure(const char *what, uint32_t sessions)
{
    for (size_t k = 0; k < KINDS; k++)
        printf("%-11s %6u sessions, %-28s %6.0f ns\n", kinds[k].name, sessions, what,
               operation_ns(&kinds[k], sessions));
}

static void measure_beside_another(uint32_t sessions)
{
    pid_t pid = fork();
    if (pid == 0) {
        open_here();
        for (uint32_t at = 0;; at = (at + 104729) % sessions) {
            note_write(ids[at]);
            get(ids[at]);
        }
    }
    measure("another process busy:", sessions);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static void measure_capacity(uint32_t sessions)
{
    struct session_cache_stats stats;
    struct session_copy copy;
    struct buf out = BUF_INIT(1 << 20);
    uint32_t found = 0;
    for (uint32_t i = 0; i < sessions; i++) put(ids[i]);
    for (uint32_t i = 0; i < sessions; i++) found += session_cache_get(cache, ids[i], &out, &copy), buf_reset(&out);
    session_cache_stats(cache, &stats);
    printf("of %u sessions put, %u are found: %.1f %%; they fill %.1f %% of the memory\n", sessions, found,
           100.0 * found / sessions, 100.0 * (double)stats.entries * (DOC_BYTES + 36) / (double)stats.limit_bytes);
    buf_done(&out);
}

int main(void)
{
    const uint32_t all = 100000;
    if (mkdtemp(dir) == NULL) return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    ids = mem_alloc(all * sizeof *ids);
    memset(doc, 'x', sizeof doc);
    for (uint32_t i = 0; i < all; i++) snprintf(ids[i], sizeof *ids, "%08x-52f3-4c5a-9d3b-%012x", i * 2654435761u, i);
    open_here();
    measure("in the processor's caches:", 100);
    measure("spread over the memory:", 60000);
    measure_beside_another(1000);
    for (uint32_t n = 50000; n <= all; n += 10000) measure_capacity(n);
    session_cache_close(cache);
    static const char *const files[] = { "session_cache", "session_cache-1" };
    for (int i = 0; i < 2; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s", dir, files[i]);
        unlink(path);
    }
    rmdir(dir);
    free(ids);
    return 0;
}
