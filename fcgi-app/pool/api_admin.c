/* api_admin.c: /api/admin/sessions: which sessions a user has, and the end of all of them. */
#include "api.h"

#include "clock.h"
#include "user_sessions.h"

#include <string.h>

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

static void add_member(struct buf *body, const char *name, struct bytes raw)
{
    buf_printf(body, ",\"%s\":", name);
    buf_add(body, raw.len > 0 ? raw : BYTES_LITERAL("null"));
}

struct listing {
    struct buf *body;
    size_t count;
};

static void add_session(void *ctx, const struct user_session *s)
{
    struct listing *l = ctx;
    char when[CLOCK_ISO_BYTES];
    clock_iso(s->expires_at_ms, when);
    buf_printf(l->body, "%s{\"hash\":\"%s\",\"expiresAt\":", l->count++ > 0 ? "," : "", s->hash);
    if (s->expires_at_ms != 0)
        buf_json_string(l->body, bytes_of(when));
    else
        buf_puts(l->body, "null");
    add_member(l->body, "created", s->facts->created);
    add_member(l->body, "lastActivity", s->facts->last_activity);
    add_member(l->body, "ipAddress", s->facts->ip_address);
    add_member(l->body, "userAgent", s->facts->user_agent);
    buf_puts(l->body, "}");
}

void admin_list(struct exchange *x)
{
    char user[STORE_USER_BYTES];
    struct listing l = { .body = &x->rs.body };
    struct err e;
    if (!api_is_admin(x) || !read_user(x, user)) return;
    x->phase = store_name(x->api->store);
    buf_puts(l.body, "{\"success\":true,\"userId\":");
    buf_json_string(l.body, bytes_of(user));
    buf_puts(l.body, ",\"sessions\":[");
    if (!user_sessions_each(x->api->store, &x->api->life, user, x->deadline_ms, add_session, &l, &e)) {
        api_store_failed(x, &e);
        return;
    }
    buf_puts(l.body, "]}");
}

void admin_revoke(struct exchange *x)
{
    char user[STORE_USER_BYTES];
    struct err e;
    int64_t revoked;
    if (!api_is_admin(x) || !read_user(x, user)) return;
    x->phase = store_name(x->api->store);
    if (user_sessions_revoke(x->api->store, user, x->deadline_ms, &revoked, &e))
        buf_printf(&x->rs.body, "{\"success\":true,\"revoked\":%lld}", (long long)revoked);
    else
        api_store_failed(x, &e);
}
