/* session_events.h: a bounded stream in Redis of what happened to sessions, for whoever follows: created, updated (when
 * its user changed, or once a tenth of its life), rotated, deleted. */
#ifndef HYPERPAGE_SESSION_EVENTS_H
#define HYPERPAGE_SESSION_EVENTS_H

#include "redis.h"
#include "store_backend.h"

/* About `most` entries stay. */
bool session_events_add(struct redis *r, const struct store_event *event, int64_t most, int64_t deadline_ms,
                        struct err *e);

/* The value of `name` in a reply that is a list of names and values, as those of an entry are, or no bytes. */
struct bytes session_events_member(const redisReply *list, const char *name);

/* A place in the stream: the id of an entry that has been read. */
#define SESSION_EVENTS_PLACE_BYTES 48
#define SESSION_EVENTS_START       "0-0"

/* The last entry's, or the start. */
bool session_events_end(struct redis *r, char place[SESSION_EVENTS_PLACE_BYTES], int64_t deadline_ms, struct err *e);

/* What entries behind `place` say. */
struct session_events_sum {
    int64_t sessions; /* how many more there are: created less deleted */
    bool more;        /* these were not all */
    bool gap;         /* the stream is bounded: some may have gone unread */
};

/* Reads some entries, of which `place` becomes the last. */
bool session_events_sum(struct redis *r, char place[SESSION_EVENTS_PLACE_BYTES], struct session_events_sum *sum,
                        int64_t deadline_ms, struct err *e);

#endif
