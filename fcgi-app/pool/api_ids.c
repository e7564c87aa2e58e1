/* api_ids.c: the session that a request names: in the path, the query or the body, the header, the cookie; and the
 * cookie of the answer. */
#include "api.h"

#include "clock.h"
#include "span.h"

#include <ctype.h>
#include <string.h>

#define COOKIE "hyperpage-session"

/* Takes one place where an id may stand into account: the first one counts, and a second one must be the same. */
static enum id_given add_id(enum id_given so_far, struct bytes raw, char id[IDS_TEXT_BYTES])
{
    char read[IDS_TEXT_BYTES];
    size_t i = 0;
    while (i < raw.len && isspace((unsigned char)raw.at[i])) i++;
    if (so_far == ID_WRONG || i == raw.len) return so_far;
    if (!ids_read(raw, read)) return ID_WRONG;
    if (so_far == ID_GOOD) return strcmp(id, read) == 0 ? ID_GOOD : ID_WRONG;
    memcpy(id, read, sizeof read);
    return ID_GOOD;
}

/* The places that come last, whatever the request: header, then cookie. */
static enum id_given add_headers(struct exchange *x, enum id_given given, char id[IDS_TEXT_BYTES])
{
    struct bytes cookie;
    given = add_id(given, bytes_of(x->rq.session_id), id);
    x->has_cookie = x->cookie_only = false;
    if (!x->api->config->session_cookie) return given;
    bool named = given != ID_NONE;
    for (size_t n = 0; (cookie = http_cookie(x->rq.cookie, COOKIE, n)).len > 0; n++) {
        x->has_cookie = true;
        given = add_id(given, cookie, id);
    }
    x->cookie_only = x->has_cookie && !named;
    return given;
}

enum id_given api_find_id(struct exchange *x, char id[IDS_TEXT_BYTES])
{
    struct buf value = BUF_INIT(8192);
    enum id_given given = add_id(ID_NONE, x->path_tail, id);
    for (size_t n = 0; http_query_value(x->rq.query, "sessionId", n, &value); n++) {
        given = buf_overflowed(&value) ? ID_WRONG : add_id(given, buf_bytes(&value), id);
        buf_reset(&value);
    }
    buf_done(&value);
    return add_headers(x, given, id);
}

enum id_given api_find_body_id(struct exchange *x, struct bytes body, char id[IDS_TEXT_BYTES])
{
    struct span_member m;
    struct buf text = BUF_INIT(1024);
    enum id_given given = ID_NONE;
    if (span_find(body, "sessionId", &m) && span_type(m.value) != SPAN_NULL) {
        given = ID_WRONG;
        if (span_type(m.value) == SPAN_STRING) {
            span_decode((struct bytes){ m.value.at + 1, m.value.len - 2 }, &text);
            if (!buf_overflowed(&text)) given = add_id(ID_NONE, buf_bytes(&text), id);
        }
    }
    buf_done(&text);
    return add_headers(x, given, id);
}

bool api_refuse_id(struct exchange *x, enum id_given given)
{
    return response_error(&x->rs, 400, "INVALID_SESSION_ID",
                          given == ID_NONE ? "sessionId is required"
                                           : "sessionId must be 1 to 128 letters, digits, dots, dashes or underscores, "
                                             "and the same wherever it stands");
}

bool api_refuse_missing(struct exchange *x)
{
    return response_error(&x->rs, 401, "SESSION_NOT_FOUND", "Session not found or expired");
}

void api_set_cookie(struct exchange *x, const char *id, int64_t expires_at_ms)
{
    const struct config *cfg = x->api->config;
    struct buf cookie = BUF_INIT(512);
    int64_t left_s = cfg->session_default_ttl_seconds;
    if (!cfg->session_cookie) return;
    if (expires_at_ms != 0) left_s = (expires_at_ms - clock_wall_ms() + 999) / 1000;
    if (id[0] == '\0' || left_s < 0) left_s = 0;
    buf_printf(&cookie, COOKIE "=%s; Path=/; Max-Age=%lld; HttpOnly; SameSite=Lax", id, (long long)left_s);
    if (http_is_https(&x->rq, cfg->trusted_proxies)) buf_puts(&cookie, "; Secure");
    response_header(&x->rs, "Set-Cookie", buf_text(&cookie));
    buf_done(&cookie);
}
