/* api_change.c: a change of a stored document, as the store applies it: precondition, edit, limits, and what goes with
 * the write: how long it may live and who hears of it. */
#include "api.h"

#include "clock.h"

#include <stdio.h>
#include <string.h>

struct session_edit api_edit(const struct exchange *x, enum session_edit_kind kind, struct bytes change)
{
    const struct config *cfg = x->api->config;
    return (struct session_edit){ .kind = kind,
                                  .change = change,
                                  .protected = x->api->protected,
                                  .trusted = api_has_token(x, cfg->service_token),
                                  .keep_origin = cfg->session_protected_members[0] != '\0',
                                  .now_ms = clock_wall_ms() };
}

void api_terms(const struct api *api, const struct session_facts *is, int64_t now_ms, struct store_terms *terms)
{
    int64_t left_ms = life_left_ms(&api->life, is, now_ms);
    terms->ttl_ms = api->life.ttl_ms;
    terms->most_ms = left_ms == INT64_MAX ? 0 : left_ms > 0 ? left_ms : 1;
}

void api_terms_new(const struct api *api, const struct session_facts *is, int64_t now_ms, struct store_terms *terms)
{
    api_terms(api, is, now_ms, terms);
    terms->announce = true;
    session_user(is->user_id, terms->user, sizeof terms->user);
}

/* Has the write to be announced? If so, whose the session was and is. */
static void announce(struct change *c, const struct session_facts *was, const struct session_facts *is)
{
    bool same = bytes_equal(was->user_id, is->user_id);
    c->terms.announce = c->announce || !same || life_announce_due(&c->x->api->life, c->id, was, c->edit.now_ms);
    if (!c->terms.announce) return;
    session_user(was->user_id, c->terms.was_user, sizeof c->terms.was_user);
    session_user(is->user_id, c->terms.user, sizeof c->terms.user);
}

bool api_if_match(const struct exchange *x, const struct session_facts *is)
{
    const char *list = x->rq.if_match;
    return list[0] == '\0' || http_tag_listed(list, is->etag, false) || http_tag_listed(list, is->version, false);
}

bool api_refuse_precondition(struct exchange *x, const char *etag, const char *version)
{
    api_session_headers(x, etag, version, 0);
    return response_error(&x->rs, 412, "PRECONDITION_FAILED", "The session has changed since");
}

/* May the change be made to what stands there? */
static bool admits(struct change *c, struct bytes doc, struct session_facts *was)
{
    c->outcome = CHANGE_MADE;
    if (!session_facts(doc, was))
        c->outcome = CHANGE_CORRUPT;
    else if (life_left_ms(&c->x->api->life, was, c->edit.now_ms) <= 0)
        c->outcome = CHANGE_MISSING;
    else if (!api_if_match(c->x, was))
        c->outcome = CHANGE_PRECONDITION;
    memcpy(c->etag, was->etag, sizeof c->etag);
    memcpy(c->version, was->version, sizeof c->version);
    return c->outcome == CHANGE_MADE;
}

enum store_verdict api_apply_change(void *ctx, struct bytes doc, struct buf *out)
{
    struct change *c = ctx;
    struct session_facts was, is;
    if (!admits(c, doc, &was)) return STORE_KEEP;
    if (c->delete) {
        session_user(was.user_id, c->terms.was_user, sizeof c->terms.was_user);
        return STORE_DELETE;
    }
    size_t most = (size_t)c->x->api->config->session_max_bytes;
    if (!session_apply(&c->edit, doc, out, &c->fault))
        c->outcome = CHANGE_REFUSED;
    else if (buf_overflowed(out) || (out->len > most && out->len > doc.len))
        c->outcome = CHANGE_TOO_LARGE;
    if (c->outcome != CHANGE_MADE) return STORE_KEEP;
    session_facts(buf_bytes(out), &is);
    memcpy(c->etag, is.etag, sizeof c->etag);
    memcpy(c->version, is.version, sizeof c->version);
    api_terms(c->x->api, &is, c->edit.now_ms, &c->terms);
    announce(c, &was, &is);
    return STORE_WRITE;
}

bool api_refuse_document(struct exchange *x, const char *prefix, const struct json_fault *fault)
{
    struct json_fault f = *fault;
    snprintf(f.pointer, sizeof f.pointer, "%s%.200s", prefix, fault->pointer);
    if (f.kind == JSON_MALFORMED)
        return response_fault(&x->rs, 400, "INVALID_JSON", "The request body is not valid JSON", &f);
    if (f.kind == JSON_PROTECTED)
        return response_fault(&x->rs, 403, "SESSION_MEMBER_PROTECTED",
                              "This member can only be changed with a service token", &f);
    return response_fault(&x->rs, 400, "INVALID_SESSION_DATA", "The session data is not valid", &f);
}

bool api_refuse_size(struct exchange *x)
{
    return response_error(&x->rs, 413, "PAYLOAD_TOO_LARGE",
                          "The session document would be larger than SESSION_MAX_BYTES");
}

bool api_refuse_change(struct exchange *x, const struct change *c)
{
    struct err e;
    switch (c->outcome) {
    case CHANGE_MADE:
        return false;
    case CHANGE_MISSING:
        return api_refuse_missing(x);
    case CHANGE_REFUSED:
        return api_refuse_document(x, c->prefix, &c->fault);
    case CHANGE_PRECONDITION:
        return api_refuse_precondition(x, c->etag, c->version);
    case CHANGE_TOO_LARGE:
        return api_refuse_size(x);
    case CHANGE_CORRUPT:
        err_set(&e, ERR_CORRUPT, "the stored value is no JSON object");
        api_store_failed(x, &e);
        return true;
    }
    return true;
}
