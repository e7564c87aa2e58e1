/* turns.h: first come, first served between processes that want to write the same thing. The queue is about fairness
 * only: a lock of another kind must keep the writers apart (SQLite's, whose own waiting is a lottery), because a turn
 * that lasts too long is passed over and a repaired one may, rarely, be given twice. */
#ifndef HYPERPAGE_TURNS_H
#define HYPERPAGE_TURNS_H

#include "err.h"

#include <stdint.h>

struct turns;

/* Joins the queue in the file `path`, which whoever comes first creates. A process may be killed at any moment: its
 * turn is taken back within some 10 ms. Open it after fork, never before: a child that inherits the descriptor would
 * make its dead parent look alive. NULL with `e` on failure. */
struct turns *turns_open(const char *path, struct err *e);

/* Waits for this process's turn, in the order of the calls of all processes. False, and out of the queue, if it has
 * not come by deadline_ms (monotonic). Costs no system call while nobody else is in the queue. */
bool turns_take(struct turns *t, int64_t deadline_ms);

/* Ends a turn that was taken: the next in the queue has it now. */
void turns_leave(struct turns *t);

/* Asks whoever joins the queue from now on to wait before that, `us` from now at most (TURNS_MOST_PAUSE_US); 0: no
 * longer. Nobody is bound by it for longer, whatever becomes of the caller, who is bound by it as little as programs
 * that do not know it. For what takes as long as the disk likes: only the wait is to have an end, not that. */
void turns_pause(struct turns *t, int64_t us);
#define TURNS_MOST_PAUSE_US 50000

/* Leaves if need be. */
void turns_close(struct turns *t);

#endif
