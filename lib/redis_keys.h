/* redis_keys.h: what our keys in Redis are called, and arguments as Redis wants them. Nodes of the original read and
 * write the first kind of key. */
#ifndef HYPERPAGE_REDIS_KEYS_H
#define HYPERPAGE_REDIS_KEYS_H

#include "ids.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define REDIS_SESSION_PREFIX "hyperpage:session:" /* ID: the document */
#define REDIS_GONE_PREFIX    "hyperpage:gone:{"   /* a session's key and }: what became of it; lies in its slot */
#define REDIS_USER_PREFIX    "hyperpage:user:"    /* a user's id and... */
#define REDIS_USER_SUFFIX    ":sessions"          /* ...this: a sorted set of session ids by expiry (ms) */
#define REDIS_EVENTS_KEY     "hyperpage:session-events"
#define REDIS_CENSUS_KEY     "hyperpage:sessions:active" /* a hash: how many `sessions` there are up to event `place` */

/* What a gone-mark says: this, or "ID HASH LIFE" of a rotated session (see redis_rotation). */
#define REDIS_GONE_PLAIN "-"

struct session_key {
    char text[sizeof REDIS_SESSION_PREFIX + IDS_MOST_BYTES];
    struct bytes bytes;
};

static inline struct bytes session_key(struct session_key *k, const char *id)
{
    size_t prefix = sizeof REDIS_SESSION_PREFIX - 1, len = strnlen(id, IDS_MOST_BYTES);
    memcpy(k->text, REDIS_SESSION_PREFIX, prefix);
    memcpy(k->text + prefix, id, len);
    k->text[prefix + len] = '\0';
    k->bytes = (struct bytes){ k->text, prefix + len };
    return k->bytes;
}

struct gone_key {
    char text[sizeof REDIS_GONE_PREFIX REDIS_SESSION_PREFIX "}" + IDS_MOST_BYTES];
};

static inline struct bytes gone_key(struct gone_key *k, const char *id)
{
    int n = snprintf(k->text, sizeof k->text, REDIS_GONE_PREFIX REDIS_SESSION_PREFIX "%s}", id);
    return (struct bytes){ k->text, (size_t)n };
}

#endif
