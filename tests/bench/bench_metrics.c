/* bench_metrics.c: what counting costs a request (the goal is 50 ns), and what a scrape costs that sums the slots of 8
 * workers and builds the text (2 ms), without the look at /proc. Prints; judges nothing. */
#include "exposition.h"
#include "totals.h"

#include "clock.h"

#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define REQUESTS 5000000
#define SCRAPES  2000
#define WORKERS  8

static char dir[] = "/dev/shm/bench_metrics.XXXXXX";

/* All that connection.c counts for a request: itself, and that it waited and was written. */
static void count_request(int i)
{
    metrics_phase(PHASE_WAIT, i & 127);
    metrics_phase(PHASE_SERIALISE, i & 15);
    metrics_request(i & 1 ? HTTP_POST : HTTP_GET, ENDPOINT_SESSIONS, 200, 60 + (i & 1023));
}

static void bench_counting(void)
{
    int64_t began_us = clock_mono_us();
    for (int i = 0; i < REQUESTS; i++) count_request(i);
    printf("counting: %.1f ns a request\n", (double)(clock_mono_us() - began_us) * 1000.0 / REQUESTS);
    volatile int64_t sink = 0;
    began_us = clock_mono_us();
    for (int i = 0; i < REQUESTS; i++) sink = clock_mono_us();
    (void)sink;
    printf("reading the clock: %.1f ns, four times a request\n",
           (double)(clock_mono_us() - began_us) * 1000.0 / REQUESTS);
}

static void bench_scrape(struct shared *sh)
{
    static uint64_t totals[METRICS_COUNTERS];
    struct buf text = BUF_INIT(1024 * 1024);
    struct exposition ex = { .out = &text };
    int64_t began_us = clock_mono_us();
    for (int i = 0; i < SCRAPES; i++) {
        buf_reset(&text);
        totals_read(sh, totals);
        exposition_totals(&ex, totals);
    }
    printf("a scrape: %.3f ms, %zu bytes\n", (double)(clock_mono_us() - began_us) / 1000.0 / SCRAPES, text.len);
    buf_done(&text);
}

int main(void)
{
    struct err e = { 0 };
    struct shared *sh[WORKERS] = { NULL };
    char pattern[128];
    glob_t files;
    bool ok = mkdtemp(dir) != NULL;
    for (size_t i = 0; ok && i < WORKERS; i++) {
        struct slot *slot = (sh[i] = shared_open(dir, &e)) != NULL ? shared_claim(sh[i], SLOT_WORKER, &e) : NULL;
        ok = slot != NULL;
        if (ok) metrics_use(slot->counter);
        for (int k = 0; ok && k < 1000; k++) count_request(k);
    }
    if (ok) {
        bench_counting();
        bench_scrape(sh[0]);
    } else {
        fprintf(stderr, "%s\n", e.text);
    }
    for (size_t i = 0; i < WORKERS; i++) shared_close(sh[i]);
    snprintf(pattern, sizeof pattern, "%s/" SHARED_FILE "*", dir);
    if (glob(pattern, 0, NULL, &files) == 0) unlink(files.gl_pathv[0]);
    rmdir(dir);
    return !ok;
}
