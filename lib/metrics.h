/* metrics.h: counters in this process's slot of the shared state, and the sum over all slots as Prometheus text. Only
 * the owner writes a slot, so a crash leaves no lock held; a successor goes on from where it stands, so no counter
 * ever falls. */
#ifndef HYPERPAGE_METRICS_H
#define HYPERPAGE_METRICS_H

#include "buf.h"
#include "shared.h"

enum metric {
#define METRIC(name, help) METRIC_##name,
#include "metrics.def"
    METRIC_COUNT
};

/* From now on this process counts in `slot`. Before, and with NULL, what is counted goes nowhere. */
void metrics_use(struct slot *slot);
void metrics_add(enum metric m, uint64_t n);

uint64_t metrics_sum(struct shared *sh, enum metric m);
void metrics_text(struct shared *sh, struct buf *out); /* Prometheus text format 0.0.4 */

#endif
