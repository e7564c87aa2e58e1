#include "duties.h"

#include "clock.h"
#include "coherence.h"
#include "leadership.h"
#include "mem.h"
#include "pods.h"
#include "task.h"
#include "waiters.h"

#define AGAIN_MS 1000 /* before a duty that returned by itself is called anew */

enum where { EVERY_NODE, LEADER_ONLY };

struct duty_kind {
    const char *name; /* as duties_ask() wants it */
    enum where where;
    void (*run)(struct duty *d);
};

static const struct duty_kind kinds[] = {
    { "pods", EVERY_NODE, pods_keep },
    { "coherence", EVERY_NODE, coherence_keep },
};
#define DUTIES (sizeof kinds / sizeof kinds[0])

struct duty {
    const struct duty_kind *kind;
    struct coordinator *co;
    struct waiters waiters; /* its own task */
    bool running, asked;
};

struct duties {
    struct duty duty[DUTIES];
};

struct coordinator *duty_coordinator(const struct duty *d)
{
    return d->co;
}

bool duty_goes_on(const struct duty *d)
{
    return !d->co->leaving && (d->kind->where == EVERY_NODE || leadership_may_act(d->co->leadership));
}

bool duty_wait(struct duty *d, int64_t until_ms)
{
    while (duty_goes_on(d) && !d->asked && clock_mono_ms() < until_ms) waiters_wait(&d->waiters, until_ms);
    d->asked = false;
    return duty_goes_on(d);
}

static void keep(void *arg)
{
    struct duty *d = arg;
    while (!d->co->leaving) {
        if (!duty_goes_on(d)) {
            waiters_wait(&d->waiters, CLOCK_NEVER);
            continue;
        }
        d->running = true;
        d->kind->run(d);
        d->running = false;
        duty_wait(d, clock_mono_ms() + AGAIN_MS);
    }
}

struct duties *duties_open(struct coordinator *co)
{
    struct duties *ds = mem_alloc(sizeof *ds);
    for (size_t i = 0; i < DUTIES; i++) ds->duty[i] = (struct duty){ .kind = &kinds[i], .co = co };
    return ds;
}

void duties_close(struct duties *ds)
{
    free(ds);
}

void duties_start(struct duties *ds)
{
    for (size_t i = 0; i < DUTIES; i++) task_start(keep, &ds->duty[i]);
}

void duties_wake(struct duties *ds)
{
    for (size_t i = 0; i < DUTIES; i++) waiters_wake(&ds->duty[i].waiters);
}

bool duties_ask(struct duties *ds, const char *name)
{
    for (size_t i = 0; i < DUTIES; i++) {
        struct duty *d = &ds->duty[i];
        if (strcmp(d->kind->name, name) != 0 || !d->running) continue;
        d->asked = true;
        waiters_wake(&d->waiters);
        return true;
    }
    return false;
}
