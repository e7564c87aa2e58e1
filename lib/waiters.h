/* waiters.h: tasks that wait for the same thing: a connection to come up, somebody's question to be answered. */
#ifndef HYPERPAGE_WAITERS_H
#define HYPERPAGE_WAITERS_H

#include <stdbool.h>
#include <stdint.h>

struct waiter;
struct waiters {
    struct waiter *first;
};

/* Parks the current task until waiters_wake() or the deadline (monotonic). It may be woken by something else: look
 * again whether what was waited for is there. */
void waiters_wait(struct waiters *w, int64_t deadline_ms);
void waiters_wake(struct waiters *w);

#endif
