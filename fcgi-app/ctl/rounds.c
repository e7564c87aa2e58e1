#include "rounds.h"

#include "clock.h"
#include "task.h"

#define MOST_PAUSE_MS 1000

void rounds_run(struct pollset *ps, struct store *st)
{
    for (;;) {
        task_run_ready();
        if (st != NULL) store_flush(st);
        if (task_count() == 0) break;
        int64_t now_ms = clock_mono_ms(), due_ms = task_expire(now_ms), left_ms = due_ms - now_ms;
        if (!task_any_ready()) pollset_wait(ps, left_ms < MOST_PAUSE_MS ? (int)left_ms : MOST_PAUSE_MS);
        task_expire(clock_mono_ms());
    }
    task_free_stacks(0);
}
