/* operations.h: what a job_coordination message may ask for. */
#ifndef HYPERPAGE_OPERATIONS_H
#define HYPERPAGE_OPERATIONS_H

#include "coordinator.h"

/* Does `operation`; `data` is its JSON value, or no bytes. Called in the inbox's task, so it starts what takes longer.
 * False: there is no such operation. */
bool operations_do(struct coordinator *co, struct bytes operation, struct bytes data);

#endif
