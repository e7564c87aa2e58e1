/* task.h: coroutines, so that a request's code reads top to bottom while its process serves many. A task runs until it
 * parks or returns; nothing preempts it. One process, one thread. The only user of ucontext. */
#ifndef HYPERPAGE_TASK_H
#define HYPERPAGE_TASK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct task;

/* Starts `run(arg)` as a task at the next task_run_ready(). Stacks are kept and used again. */
struct task *task_start(void (*run)(void *arg), void *arg);

/* Runs what is ready, and what that makes ready, until every task is parked or done. */
void task_run_ready(void);

/* The task that is running, or NULL outside of one. */
struct task *task_current(void);

/* Parks the current task until task_wake() or the deadline (monotonic). True if it was woken. A wake that comes
 * before the park is not lost. */
bool task_park(int64_t deadline_ms);

/* Makes a parked task ready. Any code may call it, other tasks too; waking a ready task does nothing. */
void task_wake(struct task *t);

/* Wakes every task whose deadline is past; returns when the next one is due (monotonic; CLOCK_NEVER if none is). */
int64_t task_expire(int64_t now_ms);

size_t task_count(void); /* started and not done */
bool task_any_ready(void);
void task_free_stacks(size_t keep); /* gives the memory of idle stacks back, all but `keep` */

#endif
