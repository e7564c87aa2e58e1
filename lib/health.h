/* health.h: what the shared state says about the node's dependencies, and what that means for the pool. No lock, and
 * nothing asked: the answer comes at once also while what the pool depends on hangs. */
#ifndef HYPERPAGE_HEALTH_H
#define HYPERPAGE_HEALTH_H

#include "shared.h"

/* The state of a dependency as of now: shared_check_state(), but with `away` Redis is known to
 * be lost, which who met the outage knows before the next look. */
enum check_state health_dependency(struct shared *sh, enum dependency d, bool away, int64_t now_ms);

/* Since when (monotonic) it is so. `lost_ms`: since when Redis is known to be lost; 0: it is not. */
int64_t health_since_ms(struct shared *sh, enum dependency d, int64_t lost_ms);

/* Is somebody about to work on this node (RUN_DIR/maintenance)? Balancers are to leave it, while it serves whoever
 * still comes: not ready, and as healthy as before. */
bool health_in_maintenance(const char *run_dir);

enum health { HEALTH_UNHEALTHY, HEALTH_DEGRADED, HEALTH_HEALTHY }; /* degraded: it takes writes, but not all is well */
extern const char *const health_names[];                           /* by enum health */
extern const char *const health_check_names[];                     /* by enum check_state */

/* `refuge`: this node's refuge answers while Redis is away. */
enum health health_of(enum check_state redis, enum check_state embedded, bool refuge);

#endif
