/* worker.h: one worker process: a loop of rounds over its connections, its store and its signals. */
#ifndef HYPERPAGE_WORKER_H
#define HYPERPAGE_WORKER_H

#include "config.h"
#include "handover.h"

struct worker_options {
    const struct config *config;
    int listen_fd;            /* the worker closes it when it leaves, so that it dies with the last one */
    struct handover handover; /* to siblings; -1, -1 where there are none */
    int life_fd;              /* readable (end of file) once the master is dead; -1 without one */
    int report_fd;            /* to the master: WORKER_READY and so on; -1 without one */
};

/* What a worker says on report_fd, one byte each. */
#define WORKER_READY  'r'
#define WORKER_SERVED 's' /* its first answer leaves: if it dies now, it is no program that cannot run */
#define WORKER_TIRED  't' /* it has served MAX_REQUESTS: replace me, then tell me to leave */

/* Serves until told to leave. TERM: hand idle connections to siblings, finish the rest. QUIT: there are no siblings:
 * finish, and wait a moment for what is on its way. INT: as QUIT without the moment. USR1: reopen the log. Returns the
 * exit code: 0, or 1 when it could not start. */
int worker_run(const struct worker_options *o);

#endif
