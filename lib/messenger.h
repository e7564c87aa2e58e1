/* messenger.h: sends messages to other nodes: PREFIX:all to everybody, PREFIX:election, PREFIX:POD to one. */
#ifndef HYPERPAGE_MESSENGER_H
#define HYPERPAGE_MESSENGER_H

#include "message.h"
#include "redis.h"

struct messenger {
    struct redis *redis;
    const char *prefix;                /* of channels */
    char source[MESSAGE_SOURCE_BYTES]; /* POD/PROGRAM */
    uint64_t boot;                     /* of this sender, as its messages name it */
    int64_t seq;                       /* of the last one that went to everybody */
};

/* `pod` and `program` are who sends. `redis` and `prefix` must outlive it. */
void messenger_init(struct messenger *ms, struct redis *redis, const char *prefix, const char *pod,
                    const char *program);

/* Sends one message; `id`, unless NULL, becomes its id. `payload` is JSON. *receivers, unless NULL: how many
 * connections of that one server got it. False: the payload is not what receivers can bear (ERR_INPUT), or it may not
 * have been sent. */
bool messenger_send(struct messenger *ms, const char *channel, enum message_type type, enum message_priority priority,
                    struct bytes payload, int64_t deadline_ms, char id[IDS_TEXT_BYTES], int64_t *receivers,
                    struct err *e);

#endif
