/* rounds.h: the loop of a command that works in tasks, as the programs' own loops do. */
#ifndef HYPERPAGE_ROUNDS_H
#define HYPERPAGE_ROUNDS_H

#include "pollset.h"
#include "store.h"

/* Until every task is done. `st` (NULL: none) is flushed at the end of each round. */
void rounds_run(struct pollset *ps, struct store *st);

#endif
