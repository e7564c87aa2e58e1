#include "operations.h"

#include "duties.h"
#include "jobs.h"
#include "span.h"
#include "warmup.h"

/* At once instead of when it would be due; on nodes that do not lead there is nothing to do. */
static void clean_up(struct coordinator *co, struct bytes data)
{
    (void)data;
    if (co->pg != NULL) {
        jobs_ask(co, "cleanup");
        return;
    }
    co->cleanup_asked = true;
    duties_ask(co->duties, "cleanup");
}

static void balance_jobs(struct coordinator *co, struct bytes data)
{
    (void)data;
    jobs_ask(co, "bg_job_balance");
}

/* Every node loads what is named; where nothing is, the leader's job finds those that were active last, and names them.
 */
static void warm_up(struct coordinator *co, struct bytes data)
{
    struct span_member ids;
    bool named = data.len > 0 && span_type(data) == SPAN_OBJECT && span_find(data, "sessionIds", &ids);
    if (named)
        warmup_load(co, data);
    else
        jobs_ask(co, "cache_warmup");
}

static const struct {
    const char *name;
    void (*run)(struct coordinator *co, struct bytes data);
} operations[] = {
    { "cleanup", clean_up },
    { "bg_job_balance", balance_jobs },
    { "cache_warmup", warm_up },
};

bool operations_do(struct coordinator *co, struct bytes operation, struct bytes data)
{
    for (size_t i = 0; i < sizeof operations / sizeof operations[0]; i++) {
        if (!bytes_is(operation, operations[i].name)) continue;
        operations[i].run(co, data);
        return true;
    }
    return false;
}
