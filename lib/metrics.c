#include "metrics.h"

#include <time.h>

static _Atomic uint64_t nowhere[METRICS_COUNTERS];
static _Atomic uint64_t *own = nowhere;
static bool has_phases = true;
static uint64_t cpu_counted_us;

const char *const metrics_phases[] = { "wait", "redis", "embedded", "serialise" };

const int metrics_statuses[METRICS_STATUSES] = { 200, 201, 304, 400, 401, 403, 404, 405, 409, 412,
                                                 413, 415, 429, 431, 500, 502, 503, 504, 0 };

static const int64_t bounds_us[METRICS_BUCKETS - 1] = { 100,     250,     500,     1000,    2500,   5000,
                                                        10000,   25000,   50000,   100000,  250000, 500000,
                                                        1000000, 2500000, 5000000, 10000000 };
const char *const metrics_bounds[] = { "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005",
                                       "0.01",   "0.025",   "0.05",   "0.1",   "0.25",   "0.5",
                                       "1.0",    "2.5",     "5.0",    "10.0",  "+Inf" };

void metrics_use(_Atomic uint64_t *counters)
{
    own = counters ? counters : nowhere;
    cpu_counted_us = 0;
}

/* One writer: a plain addition would do, but must not tear for the readers. */
static void add(size_t at, uint64_t n)
{
    uint64_t now = atomic_load_explicit(&own[at], memory_order_relaxed);
    atomic_store_explicit(&own[at], now + n, memory_order_relaxed);
}

void metrics_add(enum metric m, uint64_t n)
{
    add(m, n);
}

static void observe(size_t histogram, int64_t took_us)
{
    size_t bucket = 0;
    while (bucket < METRICS_BUCKETS - 1 && took_us > bounds_us[bucket]) bucket++;
    add(histogram + METRICS_SUM_US, took_us > 0 ? (uint64_t)took_us : 0);
    add(histogram + bucket, 1);
}

size_t metrics_request_at(enum http_method method, enum endpoint endpoint, size_t status)
{
    return METRICS_REQUESTS_AT + ((size_t)method * ENDPOINT_COUNT + endpoint) * METRICS_STATUSES + status;
}

void metrics_request(enum http_method method, enum endpoint endpoint, int status, int64_t took_us)
{
    size_t s = 0;
    while (s < METRICS_STATUSES - 1 && metrics_statuses[s] != status) s++;
    add(metrics_request_at(method, endpoint, s), 1);
    observe(METRICS_DURATIONS_AT + endpoint * METRICS_HISTOGRAM, took_us);
}

void metrics_phase(enum phase phase, int64_t took_us)
{
    if (has_phases) observe(METRICS_PHASES_AT + phase * METRICS_HISTOGRAM, took_us);
}

void metrics_without_phases(void)
{
    has_phases = false;
}

void metrics_cpu(enum metric m)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    uint64_t used_us = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
    add(m, used_us - cpu_counted_us);
    cpu_counted_us = used_us;
}

static void name_histogram(const char *family, const char *label, struct buf *out)
{
    for (size_t b = 0; b < METRICS_BUCKETS; b++) buf_printf(out, "%s %s %s\n", family, label, metrics_bounds[b]);
    buf_printf(out, "%s %s sum\n", family, label);
}

void metrics_legend(struct buf *out)
{
    static const char *const names[] = {
#define METRIC(name, help) #name "\n",
#include "metrics.def"
    };
    for (size_t m = 0; m < METRIC_COUNT; m++) buf_puts(out, names[m]);
    for (size_t m = 0; m < HTTP_METHODS; m++)
        for (size_t p = 0; p < ENDPOINT_COUNT; p++)
            for (size_t s = 0; s < METRICS_STATUSES; s++)
                buf_printf(out, "%s %s %d\n", http_methods[m], endpoint_paths[p], metrics_statuses[s]);
    for (size_t p = 0; p < ENDPOINT_COUNT; p++) name_histogram("duration", endpoint_paths[p], out);
    for (size_t p = 0; p < PHASE_COUNT; p++) name_histogram("phase", metrics_phases[p], out);
}
