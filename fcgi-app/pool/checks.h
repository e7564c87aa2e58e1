/* checks.h: looks now and then whether what the node depends on answers, and writes it into the shared state, so that a
 * question about health never waits for anybody. For the process that keeps house. */
#ifndef HYPERPAGE_CHECKS_H
#define HYPERPAGE_CHECKS_H

#include "shared.h"
#include "store.h"

struct checks {
    struct shared *shared;
    struct store *store;
    int64_t timeout_ms; /* of one look */
    bool redis_was_away;
    int64_t due_ms[DEPENDENCY_COUNT], count_due_ms, fold_due_ms;
};

/* Does what is due; in a task it parks. Changes are logged. */
void checks_run(struct checks *c);

/* What was seen last is worth something for so long: a keeper that was stopped must not vouch for Redis. */
#define CHECK_MOST_AGE_MS 5000

/* The state of a dependency as of now: CHECK_UNKNOWN if the last look was too long ago. */
enum check_state check_state(struct shared *sh, enum dependency d, int64_t now_ms);

#endif
