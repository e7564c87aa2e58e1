#include "session_events.h"

#include "redis_keys.h"

#include <string.h>

#define PAGE 1000 /* entries read at once */

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

/* --- reading --- */

struct bytes session_events_member(const redisReply *list, const char *name)
{
    for (size_t i = 0; list->type == REDIS_REPLY_ARRAY && i + 1 < list->elements; i += 2) {
        const redisReply *n = list->element[i], *v = list->element[i + 1];
        if (n->type == REDIS_REPLY_STRING && v->type == REDIS_REPLY_STRING &&
            bytes_is((struct bytes){ n->str, (size_t)n->len }, name))
            return (struct bytes){ v->str, (size_t)v->len };
    }
    return (struct bytes){ NULL, 0 };
}

/* A reply that is a list of entries, which is the caller's; NULL with `e` if it is none. */
static redisReply *read_entries(struct redis *r, size_t argc, const struct bytes *argv, int64_t deadline_ms,
                                struct err *e)
{
    redisReply *reply = redis_call(r, argv[1], argc, argv, deadline_ms, NULL, e);
    bool good = reply != NULL && reply->type == REDIS_REPLY_ARRAY;
    for (size_t i = 0; good && i < reply->elements; i++) {
        const redisReply *entry = reply->element[i];
        good = entry->type == REDIS_REPLY_ARRAY && entry->elements == 2 &&
               entry->element[0]->type == REDIS_REPLY_STRING && entry->element[0]->len < SESSION_EVENTS_PLACE_BYTES;
    }
    if (good || reply == NULL) return reply;
    freeReplyObject(reply);
    err_set(e, ERR_UNAVAILABLE, "redis: this is no list of events");
    return NULL;
}

bool session_events_end(struct redis *r, char place[SESSION_EVENTS_PLACE_BYTES], int64_t deadline_ms, struct err *e)
{
    struct bytes last[] = { BYTES_LITERAL("XREVRANGE"), BYTES_LITERAL(REDIS_EVENTS_KEY), BYTES_LITERAL("+"),
                            BYTES_LITERAL("-"),         BYTES_LITERAL("COUNT"),          BYTES_LITERAL("1") };
    redisReply *reply = read_entries(r, 6, last, deadline_ms, e);
    if (reply == NULL) return false;
    strcpy(place, reply->elements > 0 ? reply->element[0]->element[0]->str : SESSION_EVENTS_START);
    freeReplyObject(reply);
    return true;
}

static int64_t sessions_of(const redisReply *entry)
{
    struct bytes type = session_events_member(entry->element[1], "type");
    return bytes_is(type, kind_names[STORE_CREATED]) ? 1 : bytes_is(type, kind_names[STORE_DELETED]) ? -1 : 0;
}

/* The entry at `place` is read once more: while it is there, none behind it has been trimmed. */
bool session_events_sum(struct redis *r, char place[SESSION_EVENTS_PLACE_BYTES], struct session_events_sum *sum,
                        int64_t deadline_ms, struct err *e)
{
    struct number most;
    struct bytes range[] = { BYTES_LITERAL("XRANGE"), BYTES_LITERAL(REDIS_EVENTS_KEY), bytes_of(place),
                             BYTES_LITERAL("+"),      BYTES_LITERAL("COUNT"),          number(&most, PAGE) };
    *sum = (struct session_events_sum){ 0 };
    redisReply *reply = read_entries(r, 6, range, deadline_ms, e);
    if (reply == NULL) return false;
    size_t n = reply->elements;
    bool begins_there = n > 0 && strcmp(reply->element[0]->element[0]->str, place) == 0;
    sum->gap = n > 0 && !begins_there && strcmp(place, SESSION_EVENTS_START) != 0;
    sum->more = n == PAGE;
    for (size_t i = begins_there; i < n; i++) sum->sessions += sessions_of(reply->element[i]);
    if (n > 0) strcpy(place, reply->element[n - 1]->element[0]->str);
    freeReplyObject(reply);
    return true;
}
