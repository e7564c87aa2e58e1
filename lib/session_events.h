/* session_events.h: a bounded stream in Redis of what happened to sessions, for whoever follows: created, updated (when
 * its user changed, or once a tenth of its life), rotated, deleted. */
#ifndef HYPERPAGE_SESSION_EVENTS_H
#define HYPERPAGE_SESSION_EVENTS_H

#include "redis.h"
#include "store_backend.h"

/* About `most` entries stay. */
bool session_events_add(struct redis *r, const struct store_event *event, int64_t most, int64_t deadline_ms,
                        struct err *e);

#endif
