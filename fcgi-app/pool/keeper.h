/* keeper.h: the process of the pool that keeps house for the node's store: purges what has expired, keeps files small,
 * and says what lies where it should not. Workers never wait for it. */
#ifndef HYPERPAGE_KEEPER_H
#define HYPERPAGE_KEEPER_H

#include "config.h"

/* Runs until TERM, QUIT or INT, or until life_fd becomes readable: the master is dead. Returns the exit code. */
int keeper_run(const struct config *cfg, int life_fd, int report_fd);

/* Says what sessions STATE_DIR holds from before that nobody serves with these options. */
void keeper_report_leftovers(const struct config *cfg);

#endif
