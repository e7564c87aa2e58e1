/* api_sessions.c: /api/sessions: create, read, update, delete. Documents travel as bytes: a read wraps what is stored
 * into its answer, an update splices the client's own bytes in; only what a client sends is parsed. */
#include "api.h"

#include "clock.h"
#include "metrics.h"
#include "span.h"

#include <stdio.h>
#include <string.h>

void api_session_headers(struct exchange *x, const char *etag, const char *version, int64_t expires_at_ms)
{
    response_header(&x->rs, "ETag", etag);
    response_header(&x->rs, "X-Session-Version", version);
    if (expires_at_ms == 0) return;
    char when[CLOCK_ISO_BYTES];
    clock_iso(expires_at_ms, when);
    response_header(&x->rs, "X-Session-Expires-At", when);
}

/* --- read --- */

static bool refuse_corrupt(struct exchange *x, const char *id)
{
    char short_id[9];
    struct err e;
    ids_short(id, short_id);
    err_set(&e, ERR_CORRUPT, "the stored value is no JSON object: session=%s", short_id);
    api_store_failed(x, &e);
    return true;
}

void api_answer_document(struct exchange *x, const char *id, const char *message)
{
    struct buf *body = &x->rs.body;
    buf_puts(body, "{\"success\":true,\"sessionId\":");
    buf_json_string(body, bytes_of(id));
    buf_puts(body, ",\"session\":");
    buf_add(body, buf_bytes(&x->doc));
    if (message != NULL) buf_printf(body, ",\"message\":\"%s\"", message);
    buf_puts(body, "}");
}

bool api_read_session(struct exchange *x, const char *id, struct session_facts *facts)
{
    struct store_result res;
    struct err e;
    x->phase = store_name(x->api->store);
    if (http_wants_fresh(x->rq.cache_control)) store_doubt(x->api->store, id);
    if (!store_get(x->api->store, id, 0, x->deadline_ms, &x->doc, &res, &e)) {
        api_store_failed(x, &e);
        return false;
    }
    if (res.found && !session_facts(buf_bytes(&x->doc), facts)) {
        refuse_corrupt(x, id);
        return false;
    }
    if (res.found && life_left_ms(&x->api->life, facts, clock_wall_ms()) > 0) return true;
    return !api_refuse_missing(x);
}

/* SESSION_ROLLING: a read sets the life back, once a tenth of it is gone. Where a session's absolute end does not
 * matter, the store has done it with the read. That it cannot be done is no reason not to answer. */
static void roll(struct exchange *x, const char *id, const struct session_facts *facts, int64_t left_ms, int64_t now_ms,
                 struct store_result *res)
{
    char user[STORE_USER_BYTES];
    struct store_result set;
    struct err e;
    int64_t ttl_ms = life_ttl_ms(&x->api->life, left_ms);
    session_user(facts->user_id, user, sizeof user);
    if (res->changed) {
        store_tell_life(x->api->store, id, user, res->expires_at_ms);
    } else {
        if (res->expires_at_ms == 0 || !life_roll_due(ttl_ms, res->expires_at_ms - now_ms)) return;
        if (!store_expire(x->api->store, id, user, ttl_ms, true, x->deadline_ms, &set, &e) || !set.changed) return;
        res->expires_at_ms = set.expires_at_ms;
    }
    metrics_add(METRIC_sessions_rolled_total, 1);
    if (x->has_cookie) api_set_cookie(x, id, res->expires_at_ms);
}

/* Answers with the session; false, and nothing is answered, where there is none. */
static bool read_session(struct exchange *x, const char *id)
{
    const struct api *api = x->api;
    bool rolling = api->config->session_rolling;
    struct session_facts facts;
    struct store_result res;
    struct err e;
    x->phase = store_name(api->store);
    int64_t roll_ms = !rolling ? 0 : api->life.absolute_ms == 0 ? api->life.ttl_ms : STORE_ASK_LIFE;
    if (http_wants_fresh(x->rq.cache_control)) store_doubt(api->store, id);
    if (!store_get(api->store, id, roll_ms, x->deadline_ms, &x->doc, &res, &e)) {
        api_store_failed(x, &e);
        return true;
    }
    if (!res.found) return false;
    if (!session_facts(buf_bytes(&x->doc), &facts)) return refuse_corrupt(x, id);
    int64_t now_ms = rolling || api->life.absolute_ms > 0 ? clock_wall_ms() : 0;
    int64_t left_ms = life_left_ms(&api->life, &facts, now_ms);
    if (left_ms <= 0) return false;
    if (rolling) roll(x, id, &facts, left_ms, now_ms, &res);
    api_session_headers(x, facts.etag, facts.version, res.expires_at_ms);
    if (http_tag_listed(x->rq.if_none_match, facts.etag, true))
        x->rs.status = 304;
    else
        api_answer_document(x, id, NULL);
    return true;
}

/* --- create --- */

/* SESSION_CREATE_PER_MINUTE. Always true where it was answered. */
static bool refuse_creation(struct exchange *x, const char *address)
{
    char seconds[24];
    int64_t wait_ms;
    if (x->api->creations == NULL || api_has_token(x, x->api->config->service_token) ||
        limiter_take(x->api->creations, address, clock_mono_us(), &wait_ms))
        return false;
    metrics_add(METRIC_creations_limited_total, 1);
    snprintf(seconds, sizeof seconds, "%lld", (long long)(wait_ms + 999) / 1000);
    response_header(&x->rs, "Retry-After", seconds);
    return response_error(&x->rs, 429, "RATE_LIMITED", "This address has created too many sessions in a minute");
}

/* Makes a new document in x->doc from the defaults and what the client gives. False: it is answered. */
static bool make_document(struct exchange *x, struct bytes given, const char *prefix, struct store_terms *terms,
                          struct session_facts *facts)
{
    const struct config *cfg = x->api->config;
    char address[64];
    struct session_origin from = { .ip_address = address, .user_agent = x->rq.user_agent };
    struct session_edit edit = api_edit(x, SESSION_MERGE, given);
    struct json_fault fault;
    http_client_address(&x->rq, cfg->trusted_proxies, address);
    buf_reset(&x->doc);
    if (!session_new(&edit, &from, &x->doc, &fault)) return !api_refuse_document(x, prefix, &fault);
    if (x->doc.len > (size_t)cfg->session_max_bytes || buf_overflowed(&x->doc)) return !api_refuse_size(x);
    if (refuse_creation(x, address)) return false;
    session_facts(buf_bytes(&x->doc), facts);
    api_terms_new(x->api, facts, edit.now_ms, terms);
    return true;
}

/* Makes a session; 200 for GET, 201 with Location for POST ?create=1. */
static void create_session(struct exchange *x, struct bytes given, const char *prefix, bool explicit)
{
    char id[IDS_TEXT_BYTES], location[IDS_TEXT_BYTES + 32];
    struct store_terms terms = { .minted = true };
    struct session_facts facts;
    struct store_result res;
    struct err e;
    if (!make_document(x, given, prefix, &terms, &facts)) return;
    x->phase = store_name(x->api->store);
    if (!store_create_new(x->api->store, id, buf_bytes(&x->doc), &terms, x->deadline_ms, &res, &e)) {
        api_store_failed(x, &e);
        return;
    }
    if (res.found) { /* 122 random bits do not meet twice: something is very wrong */
        err_set(&e, ERR_INTERNAL, "a new id is taken already");
        api_store_failed(x, &e);
        return;
    }
    api_session_headers(x, facts.etag, facts.version, res.expires_at_ms);
    api_set_cookie(x, id, res.expires_at_ms);
    if (explicit) {
        x->rs.status = 201;
        snprintf(location, sizeof location, "/api/sessions/%s", id);
        response_header(&x->rs, "Location", location);
    }
    api_answer_document(x, id, "New session created");
}

/* --- change and delete --- */

/* Runs a change. True: it was made; else all is answered but, where `missing` is given, that there is no session. */
static bool change_session(struct exchange *x, const char *id, struct change *c, struct store_result *res,
                           bool *missing)
{
    struct err e;
    /* A delete of whatever stands there need not read it first. */
    bool blind = c->delete &&x->rq.if_match[0] == '\0' && x->api->life.absolute_ms == 0;
    c->id = id;
    c->terms.strict = x->rq.if_match[0] != '\0';
    x->phase = store_name(x->api->store);
    bool ok = blind ? store_delete(x->api->store, id, x->deadline_ms, res, &e)
                    : store_update(x->api->store, id, api_apply_change, c, &c->terms, x->deadline_ms, res, &e);
    if (!ok)
        api_store_failed(x, &e);
    else if (res->found)
        return !api_refuse_change(x, c);
    else if (missing != NULL)
        *missing = true;
    else
        api_refuse_missing(x);
    return false;
}

static void answer_done(struct exchange *x, const char *id, const char *message)
{
    buf_puts(&x->rs.body, "{\"success\":true,");
    if (id != NULL) {
        buf_puts(&x->rs.body, "\"sessionId\":");
        buf_json_string(&x->rs.body, bytes_of(id));
        buf_puts(&x->rs.body, ",");
    }
    buf_printf(&x->rs.body, "\"message\":\"%s\"}", message);
}

/* Answers an update; `missing` as for change_session(). */
static void update_session(struct exchange *x, const char *id, enum session_edit_kind kind, struct bytes change,
                           const char *prefix, const char *message, bool *missing)
{
    struct change c = { .x = x, .edit = api_edit(x, kind, change), .prefix = prefix };
    struct store_result res;
    if (!change_session(x, id, &c, &res, missing)) return;
    api_session_headers(x, c.etag, c.version, res.expires_at_ms);
    if (x->has_cookie && c.terms.announce)
        api_set_cookie(x, id, res.expires_at_ms); /* it would end before the session */
    answer_done(x, id, message);
}

static void save_session(struct exchange *x, const char *id, struct bytes data, bool *missing)
{
    update_session(x, id, SESSION_REPLACE, data, "/sessionData", "Session saved successfully", missing);
}

/* SESSION_ALLOW_CLIENT_IDS: a whole document under an id that the client chose; the original's behaviour. */
static void put_session(struct exchange *x, const char *id, struct bytes data)
{
    struct store_terms terms = { .minted = false };
    struct session_facts facts;
    struct store_result res;
    struct err e;
    bool missing = false;
    save_session(x, id, data, &missing);
    if (!missing) return;
    if (x->rq.if_match[0] != '\0') {
        api_refuse_missing(x);
        return;
    }
    if (!make_document(x, data, "/sessionData", &terms, &facts)) return;
    if (!store_create(x->api->store, id, buf_bytes(&x->doc), &terms, x->deadline_ms, &res, &e)) {
        api_store_failed(x, &e);
    } else if (res.gone) {
        api_refuse_missing(x);
    } else if (res.found) { /* somebody was faster */
        save_session(x, id, data, NULL);
    } else {
        api_session_headers(x, facts.etag, facts.version, res.expires_at_ms);
        api_set_cookie(x, id, res.expires_at_ms);
        answer_done(x, id, "Session saved successfully");
    }
}

/* --- the handlers --- */

/* A dead cookie is no question after a session: a browser that still has it gets a new one. */
void sessions_get(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    enum id_given given = api_find_id(x, id);
    struct buf check = BUF_INIT(64);
    bool named = given != ID_NONE && !x->cookie_only;
    bool readiness =
        !named && http_query_value(x->rq.query, "check", 0, &check) && bytes_is(buf_bytes(&check), "ready");
    buf_done(&check);
    if (readiness)
        status_ready(x);
    else if (named && given == ID_WRONG)
        api_refuse_id(x, given);
    else if (given == ID_GOOD && read_session(x, id))
        return;
    else if (named)
        api_refuse_missing(x);
    else
        create_session(x, (struct bytes){ NULL, 0 }, "", false);
}

void sessions_head(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    enum id_given given = api_find_id(x, id);
    if (given != ID_GOOD)
        api_refuse_id(x, given);
    else if (!read_session(x, id))
        api_refuse_missing(x);
}

bool api_read_object(struct exchange *x, struct bytes body, const char *name, struct bytes *value)
{
    struct json_fault fault;
    struct span_member m;
    char pointer[32];
    *value = (struct bytes){ NULL, 0 };
    if (!span_find(body, name, &m) || span_type(m.value) == SPAN_NULL) return true;
    snprintf(pointer, sizeof pointer, "/%s", name);
    if (!session_check_members(m.value, false, &fault)) return !api_refuse_document(x, pointer, &fault);
    *value = m.value;
    return true;
}

static bool wants_create(const struct exchange *x)
{
    struct buf value = BUF_INIT(16);
    bool wanted = http_query_value(x->rq.query, "create", 0, &value) &&
                  (bytes_is(buf_bytes(&value), "1") || bytes_is(buf_bytes(&value), "true"));
    buf_done(&value);
    return wanted;
}

void sessions_post(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    struct bytes body = x->rq.body, updates, data;
    struct json_fault fault;
    bool create = wants_create(x);
    if (create && body.len == 0) body = BYTES_LITERAL("{}");
    if (!json_check(body, SESSION_DEPTH + 1, &fault)) { /* the documents are one level down */
        api_refuse_document(x, "", &fault);
        return;
    }
    enum id_given given = create ? ID_GOOD : api_find_body_id(x, body, id);
    if (given != ID_GOOD) {
        api_refuse_id(x, given);
        return;
    }
    if (!api_read_object(x, body, "updates", &updates) || !api_read_object(x, body, "sessionData", &data)) return;
    if (create)
        create_session(x, data, "/sessionData", true);
    else if (updates.len > 0)
        update_session(x, id, SESSION_MERGE, updates, "/updates", "Session saved successfully", NULL);
    else if (data.len == 0)
        response_error(&x->rs, 400, "INVALID_SESSION_REQUEST", "sessionData or updates required");
    else if (x->api->config->session_allow_client_ids)
        put_session(x, id, data);
    else
        save_session(x, id, data, NULL);
}

void sessions_patch(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    struct json_fault fault;
    const char *type = x->rq.content_type;
    bool merge_patch = http_content_type_is(type, "application/merge-patch+json");
    enum id_given given = api_find_id(x, id);
    if (type[0] != '\0' && !merge_patch && !http_content_type_is(type, "application/json")) {
        response_header(&x->rs, "Accept-Patch", "application/json, application/merge-patch+json");
        response_error(&x->rs, 415, "UNSUPPORTED_MEDIA_TYPE",
                       "PATCH takes application/json or application/merge-patch+json");
    } else if (given != ID_GOOD) {
        api_refuse_id(x, given);
    } else if (!json_check(x->rq.body, SESSION_DEPTH, &fault) ||
               !session_check_members(x->rq.body, merge_patch, &fault)) {
        api_refuse_document(x, "", &fault);
    } else {
        update_session(x, id, merge_patch ? SESSION_MERGE_PATCH : SESSION_MERGE, x->rq.body, "",
                       "Session updated successfully", NULL);
    }
}

void sessions_delete(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    struct change c = { .x = x, .delete = true, .prefix = "", .edit = { .now_ms = clock_wall_ms() } };
    struct store_result res;
    enum id_given given = api_find_id(x, id);
    if (given != ID_GOOD) {
        api_refuse_id(x, given);
    } else if (change_session(x, id, &c, &res, NULL)) {
        if (x->has_cookie) api_set_cookie(x, "", 0);
        answer_done(x, NULL, "Session deleted successfully");
    }
}
