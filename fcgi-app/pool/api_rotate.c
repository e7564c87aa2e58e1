/* api_rotate.c: POST /api/sessions/ID/rotate: the session goes on under a new id, and the old one is gone. */
#include "api.h"

#include "clock.h"

#include <stdio.h>
#include <string.h>

#define MOST_KEY_BYTES 255

/* Idempotency-Key as the store keeps it: nobody who reads the store can repeat the request. */
static bool read_key(struct exchange *x, char hash[STORE_KEY_HASH_BYTES])
{
    const char *key = x->rq.idempotency_key;
    struct buf name = BUF_INIT(MOST_KEY_BYTES + sizeof "rotate:");
    char id[IDS_TEXT_BYTES] = "";
    if (strlen(key) > MOST_KEY_BYTES)
        return !response_error(&x->rs, 400, "INVALID_IDEMPOTENCY_KEY", "Idempotency-Key has more than 255 bytes");
    buf_puts(&name, "rotate:");
    buf_puts(&name, key);
    if (key[0] != '\0') ids_v5(buf_bytes(&name), id);
    snprintf(hash, STORE_KEY_HASH_BYTES, "%.36s", id);
    buf_done(&name);
    return true;
}

/* False: it is answered. */
static bool read_updates(struct exchange *x, struct bytes *updates)
{
    struct json_fault fault;
    *updates = (struct bytes){ NULL, 0 };
    if (x->rq.body.len > 0) {
        if (!json_check(x->rq.body, SESSION_DEPTH + 1, &fault)) return !api_refuse_document(x, "", &fault);
        if (!api_read_object(x, x->rq.body, "updates", updates)) return false;
    }
    if (updates->len == 0) *updates = BYTES_LITERAL("{}");
    return true;
}

/* The document under the new id is in x->doc: written now, or by the request that this one repeats. */
static void answer(struct exchange *x, const char *new_id, bool repeated, struct store_result *res)
{
    struct session_facts facts;
    struct store_result set;
    struct err e;
    session_facts(buf_bytes(&x->doc), &facts);
    int64_t now_ms = clock_wall_ms(), left_ms = life_left_ms(&x->api->life, &facts, now_ms);
    /* A repetition that had to end the work of a killed one did not know the document, which says when it must end. */
    if (repeated && left_ms != INT64_MAX && res->expires_at_ms > now_ms + left_ms) {
        if (left_ms <= 0 || !store_expire(x->api->store, new_id, "", left_ms, false, x->deadline_ms, &set, &e) ||
            !set.found) {
            api_refuse_missing(x);
            return;
        }
        res->expires_at_ms = set.expires_at_ms;
    }
    api_session_headers(x, facts.etag, facts.version, res->expires_at_ms);
    api_set_cookie(x, new_id, res->expires_at_ms);
    api_answer_document(x, new_id, "Session rotated successfully");
}

void sessions_rotate(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    struct store_rotation rotation;
    struct store_result res;
    struct bytes updates;
    struct err e;
    enum id_given given = api_find_id(x, id);
    if (given != ID_GOOD) {
        api_refuse_id(x, given);
        return;
    }
    if (!read_key(x, rotation.key_hash) || !read_updates(x, &updates)) return;
    struct change c = { .x = x,
                        .id = id,
                        .edit = api_edit(x, SESSION_MERGE, updates),
                        .announce = true,
                        .prefix = "/updates",
                        .terms = { .ttl_ms = x->api->life.ttl_ms, .minted = true } };
    ids_new(rotation.new_id);
    x->phase = store_name(x->api->store);
    if (!store_rotate(x->api->store, id, api_apply_change, &c, &c.terms, &rotation, x->deadline_ms, &x->doc, &res, &e))
        api_store_failed(x, &e);
    else if (!res.found)
        api_refuse_missing(x);
    else if (rotation.repeated || !api_refuse_change(x, &c))
        answer(x, rotation.new_id, rotation.repeated, &res);
}
