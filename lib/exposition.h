/* exposition.h: numbers as Prometheus reads them: its text format 0.0.4, or OpenMetrics 1.0. */
#ifndef HYPERPAGE_EXPOSITION_H
#define HYPERPAGE_EXPOSITION_H

#include "metrics.h"

struct exposition {
    struct buf *out;
    bool openmetrics;
    const char *name; /* of the family that is being told */
};

extern const char *const exposition_types[2]; /* Content-Type, by `openmetrics` */

/* Begins a family: all its samples follow before the next begins. A counter's name ends in _total. */
void exposition_family(struct exposition *ex, const char *name, const char *type, const char *help);

/* A sample of it. `labels` as name="value",name="value"; "" for none. */
void exposition_whole(struct exposition *ex, const char *labels, uint64_t value);
void exposition_real(struct exposition *ex, const char *labels, double value);
void exposition_seconds(struct exposition *ex, const char *labels, uint64_t us);

/* One histogram of it, of METRICS_HISTOGRAM numbers as metrics.h counts them. `labels` not "". */
void exposition_histogram(struct exposition *ex, const char *labels, const uint64_t *histogram);

/* A family of one sample. */
void exposition_gauge(struct exposition *ex, const char *name, const char *help, double value);

/* All that metrics.h counts; `totals` as from totals_read(). */
void exposition_totals(struct exposition *ex, const uint64_t *totals);

void exposition_end(struct exposition *ex);

#endif
