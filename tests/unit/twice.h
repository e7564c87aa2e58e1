/* twice.h: tests that run twice: as plain code, which waits, and in a task, which parks. */
#ifndef HYPERPAGE_TWICE_H
#define HYPERPAGE_TWICE_H

#include "clock.h"
#include "task.h"
#include "test.h"

struct body {
    void (*run)(void);
};

static void run_plainly(void **state)
{
    ((struct body *)*state)->run();
}

static void run_body(void *arg)
{
    ((struct body *)arg)->run();
}

static void round_ends(void); /* what a worker's loop does after task_run_ready() */

static void run_in_task(void **state)
{
    task_start(run_body, *state);
    while (task_count() > 0) {
        task_run_ready();
        round_ends();
        task_expire(clock_mono_ms());
    }
    task_free_stacks(0);
}

#define TWICE(f, begin, end)                                                                                           \
    { #f, run_plainly, begin, end, &(struct body){ f } },                                                              \
    {                                                                                                                  \
#f " (task)", run_in_task, begin, end, &(struct body)                                                          \
        {                                                                                                              \
            f                                                                                                          \
        }                                                                                                              \
    }

#endif
