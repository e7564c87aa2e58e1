/* metrics.h: what a process counts, in its own slot of the shared state: it is that slot's only writer, so counting is
 * a load and a store, and a crash leaves no lock held. All counters are one array of numbers, each with a name; what
 * they come to over all processes and restarts is summed in totals.h and shown by exposition.h. */
#ifndef HYPERPAGE_METRICS_H
#define HYPERPAGE_METRICS_H

#include "buf.h"
#include "endpoints.h"

#include <stdatomic.h>
#include <stdint.h>

enum metric {
#define METRIC(name, help) METRIC_##name,
#include "metrics.def"
    METRIC_COUNT
};

/* What a request's time goes to. Each is a histogram of the times that this took once. */
enum phase {
    PHASE_WAIT,      /* from when a request lay whole in its socket until its task ran */
    PHASE_REDIS,     /* one answer of Redis */
    PHASE_EMBEDDED,  /* one operation of the embedded store, with the wait for its turn */
    PHASE_SERIALISE, /* from the end of the handler until the answer was handed to libfcgi */
    PHASE_COUNT
};
extern const char *const metrics_phases[]; /* names, by enum phase */

/* A histogram: how many took at most so long, but longer than the bucket before; and the sum in microseconds. */
#define METRICS_BUCKETS   17
#define METRICS_HISTOGRAM (METRICS_BUCKETS + 1)
#define METRICS_SUM_US    METRICS_BUCKETS
extern const char *const metrics_bounds[]; /* in seconds, as text; the last is "+Inf" */

#define METRICS_STATUSES 19
extern const int metrics_statuses[METRICS_STATUSES]; /* 0, the last one: any other */

/* Where things stand among the counters. */
enum {
    METRICS_REQUESTS_AT = METRIC_COUNT, /* [method][endpoint][status] */
    METRICS_DURATIONS_AT = METRICS_REQUESTS_AT + HTTP_METHODS * ENDPOINT_COUNT * METRICS_STATUSES, /* by endpoint */
    METRICS_PHASES_AT = METRICS_DURATIONS_AT + ENDPOINT_COUNT * METRICS_HISTOGRAM,
    METRICS_COUNTERS = METRICS_PHASES_AT + PHASE_COUNT * METRICS_HISTOGRAM
};
size_t metrics_request_at(enum http_method method, enum endpoint endpoint, size_t status);

/* From now on this process counts in these METRICS_COUNTERS numbers. Before, and with NULL, it counts for nobody. */
void metrics_use(_Atomic uint64_t *counters);

void metrics_add(enum metric m, uint64_t n);
void metrics_request(enum http_method method, enum endpoint endpoint, int status, int64_t took_us);
void metrics_phase(enum phase phase, int64_t took_us);

/* This process serves no requests: what it asks for itself is none of their phases. */
void metrics_without_phases(void);

/* Adds the processor time that this process has used since the last call to `m`. */
void metrics_cpu(enum metric m);

/* The name of every counter, a line each, in their order. Names outlive the numbers of a build: what another build has
 * counted is found by them. */
void metrics_legend(struct buf *out);

#endif
