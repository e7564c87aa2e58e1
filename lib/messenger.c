#include "messenger.h"

#include "clock.h"
#include "metrics.h"

#include <stdio.h>
#include <string.h>

void messenger_init(struct messenger *ms, struct redis *redis, const char *prefix, const char *pod, const char *program)
{
    char id[IDS_TEXT_BYTES];
    *ms = (struct messenger){ .redis = redis, .prefix = prefix };
    ids_new_public(id);
    ms->boot = ids_hash(bytes_of(id), 0);
    snprintf(ms->source, sizeof ms->source, "%.128s/%.30s", pod, program);
}

/* Where the count is that tells receivers of a loss: each of them must get all messages that count. */
static bool goes_to_all(const char *channel)
{
    return strcmp(channel, "all") == 0;
}

static bool publish(struct messenger *ms, const char *channel, struct bytes text, int64_t deadline_ms,
                    int64_t *receivers, struct err *e)
{
    char name[512];
    snprintf(name, sizeof name, "%.300s:%.200s", ms->prefix, channel);
    struct bytes words[] = { BYTES_LITERAL("PUBLISH"), bytes_of(name), text };
    redisReply *reply = redis_call(ms->redis, REDIS_NO_KEY, 3, words, deadline_ms, NULL, e);
    if (reply == NULL) return false;
    if (receivers != NULL) *receivers = reply->integer;
    freeReplyObject(reply);
    return true;
}

bool messenger_send(struct messenger *ms, const char *channel, enum message_type type, enum message_priority priority,
                    struct bytes payload, int64_t deadline_ms, char id[IDS_TEXT_BYTES], int64_t *receivers,
                    struct err *e)
{
    char own_id[IDS_TEXT_BYTES];
    struct buf text = BUF_INIT(MESSAGE_MOST_BYTES);
    struct message m = { .type = type, .priority = priority, .timestamp_ms = clock_wall_ms(), .payload = payload };
    if (!message_payload_check(type, payload, e)) return false;
    if (id == NULL) id = own_id;
    ids_new_public(id);
    snprintf(m.source, sizeof m.source, "%s", ms->source);
    m.boot = ms->boot;
    if (goes_to_all(channel)) m.seq = ++ms->seq;
    message_write(&m, id, &text);
    bool ok = !buf_overflowed(&text) || err_set(e, ERR_INPUT, "the message is over %d bytes", MESSAGE_MOST_BYTES);
    ok = ok && publish(ms, channel, buf_bytes(&text), deadline_ms, receivers, e);
    if (ok) metrics_add(message_sent(type, priority), 1);
    buf_done(&text);
    return ok;
}
