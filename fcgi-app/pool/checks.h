/* checks.h: looks now and then whether what the node depends on answers, and writes it into the shared state, so that a
 * question about health never waits for anybody. For the process that keeps house. */
#ifndef HYPERPAGE_CHECKS_H
#define HYPERPAGE_CHECKS_H

#include "shared.h"
#include "store.h"

#define CHECKS_OURS (DEPENDENCY_EMBEDDED + 1) /* the dependencies that stand first */

struct checks {
    struct shared *shared;
    struct store *store;
    int64_t timeout_ms; /* of one look */
    bool redis_was_away;
    int64_t due_ms[CHECKS_OURS], count_due_ms, fold_due_ms;
};

/* Does what is due; in a task it parks. Changes are logged. */
void checks_run(struct checks *c);

#endif
