/* api_extend.c: POST /api/sessions/ID/extend: how long a session lives from now on. */
#include "api.h"

#include "clock.h"
#include "metrics.h"
#include "span.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static bool refuse_seconds(struct exchange *x, int64_t most_s)
{
    struct json_fault fault;
    char reason[100];
    snprintf(reason, sizeof reason, "must be a whole number from 1 to %lld", (long long)most_s);
    json_fault_set(&fault, JSON_WRONG_TYPE, "/seconds", reason);
    return response_fault(&x->rs, 400, "INVALID_SESSION_REQUEST", "The life that was asked for is not possible",
                          &fault);
}

/* The life that the body asks for; without one the default. False: it is answered. */
static bool read_life(struct exchange *x, int64_t *life_ms)
{
    const struct config *cfg = x->api->config;
    struct json_fault fault;
    struct span_member m;
    char text[24];
    *life_ms = x->api->life.ttl_ms;
    if (x->rq.body.len == 0) return true;
    if (!json_check(x->rq.body, SESSION_DEPTH, &fault)) return !api_refuse_document(x, "", &fault);
    if (!span_find(x->rq.body, "seconds", &m) || span_type(m.value) == SPAN_NULL) return true;
    if (m.value.len >= sizeof text) return !refuse_seconds(x, cfg->session_max_ttl_seconds);
    snprintf(text, sizeof text, "%.*s", (int)m.value.len, m.value.at);
    char *end;
    errno = 0;
    long long seconds = strtoll(text, &end, 10); /* JSON's numbers and more: what is not one ends at its first byte */
    if (end == text || *end != '\0' || errno != 0 || seconds < 1 || seconds > cfg->session_max_ttl_seconds)
        return !refuse_seconds(x, cfg->session_max_ttl_seconds);
    *life_ms = seconds * 1000;
    return true;
}

static void answer(struct exchange *x, const char *id, const struct session_facts *facts, int64_t expires_at_ms)
{
    char when[CLOCK_ISO_BYTES];
    clock_iso(expires_at_ms, when);
    api_session_headers(x, facts->etag, facts->version, expires_at_ms);
    if (x->has_cookie) api_set_cookie(x, id, expires_at_ms);
    buf_puts(&x->rs.body, "{\"success\":true,\"sessionId\":");
    buf_json_string(&x->rs.body, bytes_of(id));
    buf_printf(&x->rs.body, ",\"expiresAt\":\"%s\"}", when);
}

/* Reads the session. An If-Match goes by what Redis holds, not by a copy: in an outage nobody can say. A change that
 * comes between this look and the new life does no harm, since the life changes no document. False: it is answered. */
static bool read_precondition(struct exchange *x, const char *id, struct session_facts *facts)
{
    bool conditional = x->rq.if_match[0] != '\0';
    struct err e;
    if (conditional) store_doubt(x->api->store, id);
    if (!api_read_session(x, id, facts)) return false;
    if (conditional && store_in_refuge(x->api->store)) {
        err_set(&e, ERR_UNAVAILABLE, "If-Match, while redis is away");
        api_store_failed(x, &e);
        return false;
    }
    return api_if_match(x, facts) || !api_refuse_precondition(x, facts->etag, facts->version);
}

/* The document is read first: it says when the session must end whatever is asked for, and whose it is. */
void sessions_extend(struct exchange *x)
{
    char id[IDS_TEXT_BYTES], user[STORE_USER_BYTES];
    struct session_facts facts;
    struct store_result res;
    struct err e;
    int64_t life_ms;
    enum id_given given = api_find_id(x, id);
    if (given != ID_GOOD) {
        api_refuse_id(x, given);
        return;
    }
    if (!read_life(x, &life_ms) || !read_precondition(x, id, &facts)) return;
    int64_t left_ms = life_left_ms(&x->api->life, &facts, clock_wall_ms());
    if (left_ms < life_ms) life_ms = left_ms > 0 ? left_ms : 1;
    session_user(facts.user_id, user, sizeof user);
    if (!store_expire(x->api->store, id, user, life_ms, false, x->deadline_ms, &res, &e)) {
        api_store_failed(x, &e);
    } else if (!res.found) {
        api_refuse_missing(x);
    } else {
        metrics_add(METRIC_sessions_extended_total, 1);
        answer(x, id, &facts, res.expires_at_ms);
    }
}
