/* rate_limits.h: what is left of other platforms' rate limits, in PostgreSQL, so that it outlives the nodes that heard
 * of it. Every node has its own view in coordination.h, from the messages it receives. */
#ifndef HYPERPAGE_RATE_LIMITS_H
#define HYPERPAGE_RATE_LIMITS_H

#include "duties.h"

/* Every node's duty: at its start the view gets what the database knows and nobody has reported since. */
void rate_limits_load_run(struct duty *d);

/* The leader's duty: writes what has been reported. The view itself says what is not written yet, so nothing is lost
 * while the database is away, nor with a leader. */
void rate_limits_store_run(struct duty *d);

#endif
