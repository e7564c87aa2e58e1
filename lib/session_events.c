#include "session_events.h"

#include "redis_keys.h"

static const char *const kind_names[] = {
    [STORE_CREATED] = "created",
    [STORE_UPDATED] = "updated",
    [STORE_ROTATED] = "rotated",
    [STORE_DELETED] = "deleted",
};

bool session_events_add(struct redis *r, const struct store_event *event, int64_t most, int64_t deadline_ms,
                        struct err *e)
{
    struct number limit, expires_at;
    const char *user = event->kind == STORE_DELETED ? event->was_user : event->user;
    struct bytes xadd[] = {
        BYTES_LITERAL("XADD"),         BYTES_LITERAL(REDIS_EVENTS_KEY),
        BYTES_LITERAL("MAXLEN"),       BYTES_LITERAL("~"),
        number(&limit, most),          BYTES_LITERAL("*"),
        BYTES_LITERAL("type"),         bytes_of(kind_names[event->kind]),
        BYTES_LITERAL("sessionId"),    bytes_of(event->id),
        BYTES_LITERAL("userId"),       bytes_of(user),
        BYTES_LITERAL("expiresAt"),    number(&expires_at, event->expires_at_ms),
        BYTES_LITERAL("wasSessionId"), bytes_of(event->was_id),
    };
    size_t argc = sizeof xadd / sizeof xadd[0] - (event->was_id == NULL ? 2 : 0);
    redisReply *reply = redis_call(r, xadd[1], argc, xadd, deadline_ms, NULL, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}
