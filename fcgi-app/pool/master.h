/* master.h: the pool's parent process: listens, forks, supervises, reloads, drains. It opens no store and serves no
 * request. */
#ifndef HYPERPAGE_MASTER_H
#define HYPERPAGE_MASTER_H

#include "config.h"

/* What a program needs to start as itself again, and to read its options again. */
struct master_options {
    struct config *config; /* replaced on HUP; the caller frees what is here in the end */
    int argc;
    char *const *argv;
};

/* The exit code of a pool that was told to end and to stay down, for the supervisor that would start it again. */
#define MASTER_DRAINED 3

/* Runs until told to stop. Returns the exit code: 0, 1 if workers had to be killed at the end, 2 if it could not
 * start: then `e` has one line for whoever started us; MASTER_DRAINED. */
int master_run(struct master_options *o, struct err *e);

/* Checks what the table of options cannot: URLs, networks, folders. `create`: makes a missing folder, if its parent is
 * there. False: one line naming the option, the value and what is allowed. */
bool master_check_config(const struct config *cfg, bool create, struct err *e);

#endif
