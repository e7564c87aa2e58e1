#include "metrics.h"

#include <assert.h>
#include <inttypes.h>

static_assert(METRIC_COUNT <= SLOT_COUNTERS, "SLOT_COUNTERS is too small");

static struct slot nowhere;
static struct slot *own_slot = &nowhere;

static const struct {
    const char *name, *help;
} metrics[] = {
#define METRIC(name, help) { "hyperpage_" #name, help },
#define KEPT(name, help) { #name, help },
#include "metrics.def"
};

void metrics_use(struct slot *slot)
{
    own_slot = slot ? slot : &nowhere;
}

void metrics_add(enum metric m, uint64_t n)
{
    /* One writer: a plain load and store would do, but must not tear for the readers. */
    uint64_t now = atomic_load_explicit(&own_slot->counter[m], memory_order_relaxed);
    atomic_store_explicit(&own_slot->counter[m], now + n, memory_order_relaxed);
}

uint64_t metrics_sum(struct shared *sh, enum metric m)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < SHARED_SLOTS; i++)
        sum += atomic_load_explicit(&shared_slot(sh, i)->counter[m], memory_order_relaxed);
    return sum;
}

void metrics_text(struct shared *sh, struct buf *out)
{
    for (size_t m = 0; m < METRIC_COUNT; m++)
        buf_printf(out, "# HELP %s %s\n# TYPE %s counter\n%s %" PRIu64 "\n",
                   metrics[m].name, metrics[m].help, metrics[m].name, metrics[m].name, metrics_sum(sh, (enum metric)m));
}
