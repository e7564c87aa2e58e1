#include "duties.h"

#include "census.h"
#include "cleanup.h"
#include "clock.h"
#include "coherence.h"
#include "jobs.h"
#include "leadership.h"
#include "mem.h"
#include "pods.h"
#include "rate_limits.h"
#include "registry.h"
#include "survey.h"
#include "task.h"
#include "waiters.h"

#define AGAIN_MS 1000 /* before a duty that returned by itself is called anew */

enum where { EVERY_NODE, LEADER_ONLY };

struct duty_kind {
    const char *name; /* as duties_ask() wants it */
    enum where where;
    void (*run)(struct duty *d);
};

struct duty {
    const struct duty_kind *kind;
    struct coordinator *co;
    struct waiters waiters; /* its own task */
    bool running, asked;
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

#ifdef HYPERPAGE_FAULTS
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>
#define ACT_EVERY_MS 5

/* For tests: what a leader does, at the moment of its lease check, into a file that all nodes share. */
static void write_acts(struct duty *d)
{
    const char *path = getenv("HYPERPAGE_ACTS");
    int fd = path != NULL ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
    for (int64_t at_us; fd >= 0 && (at_us = clock_mono_us(), duty_goes_on(d));) {
        dprintf(fd, "%" PRId64 " %s %d %" PRId64 "\n", at_us, d->co->pod, (int)getpid(),
                leadership_term(d->co->leadership));
        duty_wait(d, clock_mono_ms() + ACT_EVERY_MS);
    }
    if (fd >= 0) close(fd);
}
#endif

static const struct duty_kind kinds[] = {
    { "pods", EVERY_NODE, pods_keep },
    { "coherence", EVERY_NODE, coherence_keep },
    { "cleanup", LEADER_ONLY, cleanup_redis_run },
    { "jobs", LEADER_ONLY, jobs_run },
    { "registry", LEADER_ONLY, registry_run },
    { "rate_limits_load", EVERY_NODE, rate_limits_load_run },
    { "rate_limits", LEADER_ONLY, rate_limits_store_run },
    { "survey", EVERY_NODE, survey_run },
    { "census", EVERY_NODE, census_run },
#ifdef HYPERPAGE_FAULTS
    { "acts", LEADER_ONLY, write_acts },
#endif
};
#define DUTIES (sizeof kinds / sizeof kinds[0])

struct duties {
    struct duty duty[DUTIES];
};

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
