/* cleanup.h: what the leader clears away once an hour for the whole cluster: expired rows in PostgreSQL in small
 * batches; in Redis entries of users' indexes without a session, and sessions without an end. Every step may be
 * repeated. */
#ifndef HYPERPAGE_CLEANUP_H
#define HYPERPAGE_CLEANUP_H

#include "jobs.h"

/* The job "cleanup". */
bool cleanup_run(struct job *job, struct err *e);

/* The leader's duty where there is no database to remember when it was done: Redis does, and gets cleaned. */
void cleanup_redis_run(struct duty *d);

#endif
