/* api_admin.c: /api/admin/sessions: which sessions a user has, and the end of all of them. */
#include "api.h"

#include "clock.h"
#include "mem.h"
#include "metrics.h"

#define MOST_PASSES 8 /* over a user's sessions while new ones keep coming */

/* Without a configured token there is nothing here. Nobody, or a token that is none of ours: 401 (RFC 9110: the request
 * lacks valid credentials); a service's: 403 (valid ones that do not suffice). False: it is answered. */
bool api_is_admin(struct exchange *x)
{
    const struct config *cfg = x->api->config;
    bool anybody = http_bearer(x->rq.authorization).len > 0;
    if (cfg->admin_token[0] == '\0') return !response_error(&x->rs, 404, "NOT_FOUND", "There is nothing at this path");
    if (api_has_token(x, cfg->admin_token)) return true;
    if (api_has_token(x, cfg->service_token))
        return !response_error(&x->rs, 403, "FORBIDDEN", "This needs an administrator's token");
    response_header(&x->rs, "WWW-Authenticate",
                    anybody ? "Bearer realm=\"hyperpage\", error=\"invalid_token\"" : "Bearer realm=\"hyperpage\"");
    return !response_error(&x->rs, 401, "UNAUTHORIZED", "This needs an administrator's token");
}

/* The query's userId. False: it is answered. */
static bool read_user(struct exchange *x, char user[STORE_USER_BYTES])
{
    struct buf value = BUF_INIT(STORE_USER_BYTES - 1);
    bool good = http_query_value(x->rq.query, "userId", 0, &value) && value.len > 0 && !buf_overflowed(&value) &&
                strlen(buf_text(&value)) == value.len;
    if (good) memcpy(user, buf_text(&value), value.len + 1);
    buf_done(&value);
    return good || !response_error(&x->rs, 400, "INVALID_USER_ID", "userId is required, of 1 to 255 bytes");
}

/* A user's sessions as the store shows them, for whichever purpose. */
struct listing {
    const struct api *api;
    const char *user;
    struct buf *body;             /* list: what is answered */
    char (*ids)[IDS_TEXT_BYTES];  /* revoke: what is to be deleted */
    size_t count, cap;
};

static bool is_theirs(const struct listing *l, struct bytes doc, struct session_facts *facts)
{
    char user[STORE_USER_BYTES];
    if (!session_facts(doc, facts)) return false;
    session_user(facts->user_id, user, sizeof user);
    return strcmp(user, l->user) == 0;
}

static void add_member(struct buf *body, const char *name, struct bytes raw)
{
    buf_printf(body, ",\"%s\":", name);
    buf_add(body, raw.len > 0 ? raw : BYTES_LITERAL("null"));
}

/* An id is its session's key: whoever reads it here, or in the log of a proxy on the way, could act as that user. So an
 * operator gets the short hash that stands in our own log lines too. */
static bool add_session(void *ctx, const char *id, struct bytes doc, int64_t expires_at_ms)
{
    struct listing *l = ctx;
    struct session_facts facts;
    char hash[9], when[CLOCK_ISO_BYTES];
    if (!is_theirs(l, doc, &facts)) return false;
    if (life_left_ms(&l->api->life, &facts, clock_wall_ms()) <= 0) return true;
    ids_short(id, hash);
    clock_iso(expires_at_ms, when);
    buf_printf(l->body, "%s{\"hash\":\"%s\",\"expiresAt\":", l->count++ > 0 ? "," : "", hash);
    if (expires_at_ms != 0) buf_json_string(l->body, bytes_of(when));
    else buf_puts(l->body, "null"); /* a key without end, of somebody else's making */
    add_member(l->body, "created", facts.created);
    add_member(l->body, "lastActivity", facts.last_activity);
    add_member(l->body, "ipAddress", facts.ip_address);
    add_member(l->body, "userAgent", facts.user_agent);
    buf_puts(l->body, "}");
    return true;
}

void admin_list(struct exchange *x)
{
    char user[STORE_USER_BYTES];
    struct listing l = { .api = x->api, .user = user, .body = &x->rs.body };
    struct err e;
    if (!api_is_admin(x) || !read_user(x, user)) return;
    x->phase = store_name(x->api->store);
    buf_puts(l.body, "{\"success\":true,\"userId\":");
    buf_json_string(l.body, bytes_of(user));
    buf_puts(l.body, ",\"sessions\":[");
    if (!store_list(x->api->store, user, x->deadline_ms, add_session, &l, &e)) {
        api_store_failed(x, &e);
        return;
    }
    buf_puts(l.body, "]}");
}

static bool add_id(void *ctx, const char *id, struct bytes doc, int64_t expires_at_ms)
{
    struct listing *l = ctx;
    struct session_facts facts;
    (void)expires_at_ms;
    if (!is_theirs(l, doc, &facts)) return false;
    if (l->count == l->cap) {
        l->cap = l->cap ? l->cap * 2 : 16;
        l->ids = mem_resize(l->ids, l->cap * sizeof *l->ids);
    }
    snprintf(l->ids[l->count++], sizeof *l->ids, "%s", id);
    return true;
}

struct revocation {
    const struct listing *listing;
    struct store_terms terms;
};

/* It may have become another's since it was listed. */
static enum store_verdict delete_if_theirs(void *ctx, struct bytes doc, struct buf *out)
{
    struct revocation *r = ctx;
    struct session_facts facts;
    (void)out;
    snprintf(r->terms.was_user, sizeof r->terms.was_user, "%s", r->listing->user);
    return is_theirs(r->listing, doc, &facts) ? STORE_DELETE : STORE_KEEP;
}

/* Deletes what is listed. False with `e`. */
static bool revoke_listed(struct exchange *x, const struct listing *l, int64_t *revoked, struct err *e)
{
    for (size_t i = 0; i < l->count; i++) {
        struct revocation r = { .listing = l, .terms = { .strict = true } };
        struct store_result res;
        if (!store_update(x->api->store, l->ids[i], delete_if_theirs, &r, &r.terms, x->deadline_ms, &res, e)) return false;
        if (!res.changed) continue;
        metrics_add(METRIC_sessions_revoked_total, 1);
        ++*revoked;
    }
    return true;
}

/* Again until a list is empty: a session that was given a new id in between is in the next one. */
void admin_revoke(struct exchange *x)
{
    char user[STORE_USER_BYTES];
    struct listing l = { .api = x->api, .user = user };
    struct err e;
    int64_t revoked = 0;
    bool ok = true;
    if (!api_is_admin(x) || !read_user(x, user)) return;
    x->phase = store_name(x->api->store);
    for (int pass = 0; ok && pass < MOST_PASSES; pass++) {
        l.count = 0;
        ok = store_list(x->api->store, user, x->deadline_ms, add_id, &l, &e) && revoke_listed(x, &l, &revoked, &e);
        if (l.count == 0) break;
    }
    if (ok) buf_printf(&x->rs.body, "{\"success\":true,\"revoked\":%lld}", (long long)revoked);
    else api_store_failed(x, &e);
    free(l.ids);
}
