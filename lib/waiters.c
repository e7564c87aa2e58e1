#include "waiters.h"

#include "task.h"

#include <stddef.h>

/* On the stack of the task that waits. */
struct waiter {
    struct task *task;
    struct waiter *next;
};

void waiters_wait(struct waiters *w, int64_t deadline_ms)
{
    struct waiter self = { task_current(), w->first };
    w->first = &self;
    task_park(deadline_ms);
    for (struct waiter **at = &w->first; *at != NULL; at = &(*at)->next)
        if (*at == &self) {
            *at = self.next;
            return;
        }
}

void waiters_wake(struct waiters *w)
{
    for (struct waiter *at = w->first; at != NULL; at = at->next) task_wake(at->task);
    w->first = NULL;
}
