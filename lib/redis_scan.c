#include "redis_scan.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A page of the server whose turn it is. *servers: how many there are. */
static redisReply *ask(struct redis *r, const struct redis_scan *at, const char *pattern, int *servers,
                       int64_t deadline_ms, struct err *e)
{
    struct redis_address *list = NULL;
    redisReply *page = NULL;
    struct bytes scan[] = { BYTES_LITERAL("SCAN"),  bytes_of(at->cursor[0] != '\0' ? at->cursor : "0"),
                            BYTES_LITERAL("MATCH"), bytes_of(pattern),
                            BYTES_LITERAL("COUNT"), BYTES_LITERAL("100") };
    *servers = (int)redis_primaries(r, &list, deadline_ms, e);
    int which = at->server < *servers ? at->server : *servers - 1; /* there may be fewer than before */
    if (which >= 0) page = redis_call_at(r, &list[which], 6, scan, deadline_ms, e);
    free(list);
    if (page == NULL) return NULL;
    if (page->type == REDIS_REPLY_ARRAY && page->elements == 2 && page->element[0]->len < (int)sizeof at->cursor &&
        page->element[1]->type == REDIS_REPLY_ARRAY)
        return page;
    freeReplyObject(page);
    err_set(e, ERR_UNAVAILABLE, "redis: SCAN answered something else");
    return NULL;
}

bool redis_scan_page(struct redis *r, struct redis_scan *at, const char *pattern, int64_t deadline_ms, bool *done,
                     redis_scan_each_fn *each, void *ctx, struct err *e)
{
    int servers;
    bool ok = true;
    redisReply *page = ask(r, at, pattern, &servers, deadline_ms, e);
    *done = false;
    if (page == NULL) return false;
    for (size_t i = 0; ok && i < page->element[1]->elements; i++) {
        const redisReply *key = page->element[1]->element[i];
        ok = each(ctx, (struct bytes){ key->str, (size_t)key->len }, e);
    }
    if (ok) {
        snprintf(at->cursor, sizeof at->cursor, "%s", page->element[0]->str);
        *done = strcmp(at->cursor, "0") == 0 && ++at->server >= servers;
    }
    freeReplyObject(page);
    return ok;
}
