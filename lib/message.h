/* message.h: what nodes tell each other by Redis Pub/Sub, as bytes and as a struct. Pods of the original speak the
 * same:
 *     {"id":"msg-...","type":T,"payload":{...},"timestamp":ms,"sourcePod":"...","priority":"low|normal|high"}
 * and die of a message without an object as payload, or of cache_invalidate without an array of keys. Ours add "boot"
 * and "seq", by which a receiver sees that it has missed one. Pure. */
#ifndef HYPERPAGE_MESSAGE_H
#define HYPERPAGE_MESSAGE_H

#include "buf.h"
#include "err.h"
#include "ids.h"
#include "metrics.h"

#define MESSAGE_MOST_BYTES   (64 * 1024) /* a longer one is no message */
#define MESSAGE_SOURCE_BYTES (IDS_MOST_BYTES + 32)
#define MESSAGE_NAME_BYTES   64 /* of platforms and endpoints */

enum message_type {
    MESSAGE_CACHE_INVALIDATE,
    MESSAGE_RATE_LIMIT_SYNC,
    MESSAGE_JOB_COORDINATION,
    MESSAGE_BROADCAST,
    MESSAGE_TYPES,
    MESSAGE_UNKNOWN = MESSAGE_TYPES /* well-formed, of a type that a newer node may know */
};
extern const char *const message_types[MESSAGE_TYPES];

enum message_priority { MESSAGE_LOW, MESSAGE_NORMAL, MESSAGE_HIGH, MESSAGE_PRIORITIES };
extern const char *const message_priorities[MESSAGE_PRIORITIES];

struct message {
    enum message_type type;
    enum message_priority priority;
    int64_t timestamp_ms;              /* wall; 0: not given */
    char source[MESSAGE_SOURCE_BYTES]; /* POD, or POD/PROGRAM */
    struct bytes payload;              /* a JSON object, in the bytes that were read */
    uint64_t boot;                     /* names one start of one sender; 0: it does not count its messages */
    int64_t seq;                       /* of those that went to everybody, from 1 */
};

/* Reads one message. False with `e`: it is none, and why. */
bool message_read(struct bytes text, struct message *m, struct err *e);

/* The same rules for what is to be sent: a known type, a payload that no receiver dies of. */
bool message_payload_check(enum message_type type, struct bytes payload, struct err *e);

/* Appends the message as JSON; `id` is what follows "msg-". */
void message_write(const struct message *m, const char *id, struct buf *out);

bool message_type_of(struct bytes name, enum message_type *type);
bool message_priority_of(struct bytes name, enum message_priority *priority);

/* The counters of messages of this type and priority. */
enum metric message_received(enum message_type type, enum message_priority priority);
enum metric message_sent(enum message_type type, enum message_priority priority); /* of a known type */

/* The pod of "POD/PROGRAM". */
struct bytes message_pod(const char *source);

/* --- payloads --- */

/* Does this member hold a string? Then its text replaces what is in `out` (its limit is the longest that counts). */
bool message_text(struct bytes object, const char *name, struct buf *out);

/* Does this member hold a number? As an integer: fractions are cut off, what int64_t cannot hold is no number. */
bool message_number(struct bytes object, const char *name, int64_t *value);

/* What rate_limit_sync says about one endpoint. */
struct message_limit {
    char platform[MESSAGE_NAME_BYTES], endpoint[MESSAGE_NAME_BYTES];
    int64_t limit, remaining, reset_ms; /* -1: not said; the last is wall time */
    int64_t usage_permille;             /* -1: not said */
    int64_t retry_after_s;              /* 0: not said */
};

/* False: the payload names no platform, or says nothing about it that is understood. `usage` may be a number (percent),
 * or an object with the members of the payload itself; what is given beside it comes first. Without an endpoint it is
 * "global". */
bool message_limit_read(struct bytes payload, struct message_limit *limit);

#endif
