/* fence.h: transactions in PostgreSQL that only the leader may make. An old leader that stood still while another was
 * elected is refused, whatever it believes. */
#ifndef HYPERPAGE_FENCE_H
#define HYPERPAGE_FENCE_H

#include "coordinator.h"
#include "pg.h"

/* Begins a transaction of the leader on co->pg: the row coordinator.term of app_state is locked, and holds our term and
 * name from now on. It must be over `most_ms` from now, and before the lease ends. False: we may not act, somebody else
 * has led after us (then we stand down), or there is no database. Ends with pg_commit() or pg_rollback(). */
bool fence_begin(struct coordinator *co, int64_t most_ms, struct err *e);

#endif
