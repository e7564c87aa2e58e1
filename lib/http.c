#include "http.h"

#include "config.h"
#include "mem.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <strings.h>

/* --- requests --- */

static int hex_digit(char c)
{
    return isdigit((unsigned char)c) ? c - '0' : isxdigit((unsigned char)c) ? tolower((unsigned char)c) - 'a' + 10 : -1;
}

/* One character of percent-encoded text at text[*i]; -1 for a bad escape. */
static int decode_next(struct bytes text, size_t *i)
{
    char c = text.at[(*i)++];
    if (c != '%') return (unsigned char)c;
    if (*i + 2 > text.len) return -1;
    int high = hex_digit(text.at[*i]), low = hex_digit(text.at[*i + 1]);
    *i += 2;
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

static bool read_path(const char *uri, char path[HTTP_MOST_PATH_BYTES])
{
    struct bytes raw = { uri, strcspn(uri, "?#") };
    size_t n = 0;
    path[0] = '\0';
    for (size_t i = 0; i < raw.len;) {
        int c = decode_next(raw, &i);
        if (c <= 0 || n + 1 >= HTTP_MOST_PATH_BYTES) return false;
        path[n++] = (char)c;
    }
    path[n] = '\0';
    return true;
}

/* The parameters that a handler may want to see, and where they go. */
#define WANT(param, field)                                                                                             \
    {                                                                                                                  \
        param, sizeof(param) - 1, offsetof(struct request, field)                                                      \
    }
static const struct wanted {
    const char *name;
    size_t len;
    size_t offset;
} wanted[] = {
    WANT("REQUEST_METHOD", method_name),
    WANT("REQUEST_URI", uri),
    WANT("SCRIPT_NAME", script_name),
    WANT("PATH_INFO", path_info),
    WANT("QUERY_STRING", query),
    WANT("CONTENT_TYPE", content_type),
    WANT("HTTP_AUTHORIZATION", authorization),
    WANT("HTTP_USER_AGENT", user_agent),
    WANT("HTTP_ACCEPT", accept),
    WANT("HTTP_IF_MATCH", if_match),
    WANT("HTTP_IF_NONE_MATCH", if_none_match),
    WANT("HTTP_CACHE_CONTROL", cache_control),
    WANT("HTTP_X_SESSION_ID", session_id),
    WANT("HTTP_COOKIE", cookie),
    WANT("HTTP_IDEMPOTENCY_KEY", idempotency_key),
    WANT("HTTPS", https),
    WANT("HTTP_X_FORWARDED_PROTO", forwarded_proto),
    WANT("HTTP_X_REQUEST_ID", request_id),
    WANT("HTTP_X_FORWARDED_FOR", forwarded_for),
    WANT("HTTP_X_REAL_IP", real_ip),
    WANT("REMOTE_ADDR", remote_addr),
};
#define WANTED (sizeof wanted / sizeof wanted[0])

static const char **wanted_field(struct request *rq, const struct wanted *w)
{
    return (const char **)((char *)rq + w->offset);
}

/* A front server sends some thirty parameters: compare lengths before names. */
static void read_param(struct request *rq, const char *param)
{
    const char *eq = strchr(param, '=');
    size_t len = eq ? (size_t)(eq - param) : 0;
    for (size_t i = 0; i < WANTED; i++)
        if (wanted[i].len == len && memcmp(param, wanted[i].name, len) == 0) {
            *wanted_field(rq, &wanted[i]) = eq + 1;
            return;
        }
}

bool http_read_request(char *const params[], struct request *rq)
{
    for (size_t i = 0; i < WANTED; i++) *wanted_field(rq, &wanted[i]) = "";
    for (size_t p = 0; params[p] != NULL; p++) read_param(rq, params[p]);
    rq->method = http_method_of(bytes_of(rq->method_name));
    rq->body = (struct bytes){ NULL, 0 };
    if (rq->uri[0] != '\0') return read_path(rq->uri, rq->path);
    /* The front server has decoded these. */
    size_t n = strlen(rq->script_name), more = strlen(rq->path_info);
    if (n + more >= sizeof rq->path) return false;
    memcpy(rq->path, rq->script_name, n);
    memcpy(rq->path + n, rq->path_info, more + 1);
    return true;
}

bool http_query_value(const char *query, const char *name, size_t nth, struct buf *value)
{
    for (const char *p = query; *p != '\0'; p += strspn(p, "&")) {
        size_t len = strcspn(p, "&"), key = strcspn(p, "=&");
        if (key == strlen(name) && strncmp(p, name, key) == 0 && nth-- == 0) {
            struct bytes raw = { p + key + (p[key] == '='), len - key - (p[key] == '=') };
            for (size_t i = 0; i < raw.len;) {
                int c = decode_next(raw, &i);
                char byte = c == '+' && raw.at[i - 1] == '+' ? ' ' : c < 0 ? '\0' : (char)c; /* NUL: no id holds it */
                buf_append(value, &byte, 1);
            }
            return true;
        }
        p += len;
    }
    return false;
}

bool http_content_type_is(const char *content_type, const char *type)
{
    size_t len = strcspn(content_type, "; \t");
    return len == strlen(type) && strncasecmp(content_type, type, len) == 0;
}

bool http_wants_fresh(const char *cache_control)
{
    static const char word[] = "no-cache";
    for (const char *p = cache_control; *p != '\0'; p += strcspn(p, ",")) {
        p += strspn(p, ", \t");
        size_t len = strcspn(p, ", \t");
        if (len == sizeof word - 1 && strncasecmp(p, word, len) == 0) return true;
    }
    return false;
}

/* The q of "type/subtype; a=b; q=0.5" is 0. */
static bool is_ruled_out(struct bytes range)
{
    for (size_t i = 0; i + 3 < range.len; i++)
        if (range.at[i] == ';') {
            size_t q = i + 1;
            while (q < range.len && (range.at[q] == ' ' || range.at[q] == '\t')) q++;
            if (q + 2 >= range.len || tolower((unsigned char)range.at[q]) != 'q' || range.at[q + 1] != '=') continue;
            for (q += 2; q < range.len && (range.at[q] == '0' || range.at[q] == '.'); q++) continue;
            return q == range.len || !isdigit((unsigned char)range.at[q]);
        }
    return false;
}

bool http_accepts(const char *accept, const char *type)
{
    struct bytes range;
    for (size_t i = 0; config_item(accept, i, &range); i++) {
        size_t len = 0;
        while (len < range.len && strchr("; \t", range.at[len]) == NULL) len++;
        if (len == strlen(type) && strncasecmp(range.at, type, len) == 0 && !is_ruled_out(range)) return true;
    }
    return false;
}

bool http_tag_listed(const char *list, const char *tag, bool weak)
{
    for (const char *p = list; *p != '\0';) {
        p += strspn(p, ", \t");
        if (*p == '*') return true;
        bool is_weak = strncmp(p, "W/", 2) == 0;
        if (is_weak) p += 2;
        size_t len = *p == '"' ? strcspn(p + 1, "\"") + 2 : strcspn(p, ", \t");
        if (strnlen(p, len) < len) return false;
        if ((weak || !is_weak) && len == strlen(tag) && strncmp(p, tag, len) == 0) return true;
        p += len;
    }
    return false;
}

struct bytes http_bearer(const char *authorization)
{
    if (strncasecmp(authorization, "Bearer ", 7) != 0) return (struct bytes){ NULL, 0 };
    const char *token = authorization + 7 + strspn(authorization + 7, " ");
    size_t len = strlen(token);
    while (len > 0 && token[len - 1] == ' ') len--;
    return (struct bytes){ token, len };
}

/* --- the client's address --- */

struct network {
    int family;
    unsigned char address[16];
    int bits;
};

/* An address without port, brackets or zone; IPv4 in IPv6 becomes IPv4. */
static bool read_address(struct bytes text, struct network *n)
{
    char s[64];
    while (text.len > 0 && isspace((unsigned char)*text.at)) text.at++, text.len--;
    while (text.len > 0 && isspace((unsigned char)text.at[text.len - 1])) text.len--;
    const char *bracket = text.len > 0 && text.at[0] == '[' ? memchr(text.at, ']', text.len) : NULL;
    if (bracket != NULL) text = (struct bytes){ text.at + 1, (size_t)(bracket - text.at - 1) };
    const char *colon = memchr(text.at ? text.at : "", ':', text.len);
    if (bracket == NULL && colon != NULL && memchr(colon + 1, ':', text.len - (size_t)(colon + 1 - text.at)) == NULL)
        text.len = (size_t)(colon - text.at); /* IPv4:port */
    const char *zone = text.len > 0 ? memchr(text.at, '%', text.len) : NULL;
    if (zone != NULL && memchr(text.at, ':', text.len) != NULL) text.len = (size_t)(zone - text.at);
    if (text.len == 0 || text.len >= sizeof s) return false;
    memcpy(s, text.at, text.len);
    s[text.len] = '\0';
    n->family = AF_INET;
    n->bits = 32;
    if (inet_pton(AF_INET, s, n->address) == 1) return true;
    n->family = AF_INET6;
    n->bits = 128;
    if (inet_pton(AF_INET6, s, n->address) != 1) return false;
    static const unsigned char mapped[12] = { 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff };
    if (memcmp(n->address, mapped, 12) == 0) {
        memmove(n->address, n->address + 12, 4);
        n->family = AF_INET;
        n->bits = 32;
    }
    return true;
}

static bool read_network(struct bytes text, struct network *n)
{
    const char *slash = memchr(text.at, '/', text.len);
    struct bytes address = { text.at, slash ? (size_t)(slash - text.at) : text.len };
    if (!read_address(address, n)) return false;
    if (slash == NULL) return true;
    int bits = 0;
    if (slash + 1 == text.at + text.len) return false;
    for (const char *c = slash + 1; c < text.at + text.len; c++) {
        if (!isdigit((unsigned char)*c) || bits > 128) return false;
        bits = bits * 10 + (*c - '0');
    }
    if (bits > n->bits) return false;
    n->bits = bits;
    return true;
}

static bool in_network(const struct network *address, const struct network *n)
{
    if (address->family != n->family || memcmp(address->address, n->address, (size_t)n->bits / 8) != 0) return false;
    int rest = n->bits % 8;
    return rest == 0 || (address->address[n->bits / 8] ^ n->address[n->bits / 8]) >> (8 - rest) == 0;
}

static bool is_trusted(const char *networks, const struct network *address)
{
    struct bytes item;
    struct network n;
    for (size_t i = 0; config_item(networks, i, &item); i++)
        if (bytes_is(item, "*") || (read_network(item, &n) && in_network(address, &n))) return true;
    return false;
}

bool http_networks_check(const char *list, struct bytes *bad)
{
    struct network n;
    size_t i = 0;
    for (; config_item(list, i, bad); i++)
        if (!bytes_is(*bad, "*") && !read_network(*bad, &n)) return false;
    return true;
}

static bool is_blank(struct bytes text)
{
    size_t i = 0;
    while (i < text.len && isspace((unsigned char)text.at[i])) i++;
    return i == text.len;
}

static void write_address(const struct network *n, char out[64])
{
    if (inet_ntop(n->family, n->address, out, 64) == NULL) out[0] = '\0';
}

void http_client_address(const struct request *rq, const char *trusted, char out[64])
{
    struct network peer, hop, found;
    out[0] = '\0';
    if (!read_address(bytes_of(rq->remote_addr), &peer)) return;
    found = peer;
    bool whole_chain = strcmp(trusted, "*") == 0;
    if (is_trusted(trusted, &peer)) {
        const char *chain = rq->forwarded_for[0] ? rq->forwarded_for : rq->real_ip;
        size_t end = strlen(chain);
        while (end > 0) { /* from the right: each hop was added by the one behind it */
            size_t start = end;
            while (start > 0 && chain[start - 1] != ',') start--;
            struct bytes item = { chain + start, end - start };
            end = start > 0 ? start - 1 : 0;
            if (is_blank(item)) continue; /* an element of a list that says nothing */
            if (!read_address(item, &hop)) break;
            found = hop;
            if (!whole_chain && !is_trusted(trusted, &hop)) break;
        }
    }
    write_address(&found, out);
}

bool http_is_https(const struct request *rq, const char *trusted)
{
    struct network peer;
    if (strcasecmp(rq->https, "on") == 0 || strcmp(rq->https, "1") == 0) return true;
    if (!read_address(bytes_of(rq->remote_addr), &peer)) return false;
    if (!is_trusted(trusted, &peer)) return false;
    size_t first = strcspn(rq->forwarded_proto, ","); /* what the client used stands first */
    return first == 5 && strncasecmp(rq->forwarded_proto, "https", 5) == 0;
}

struct bytes http_cookie(const char *cookies, const char *name, size_t nth)
{
    size_t name_len = strlen(name);
    for (const char *at = cookies; *at != '\0';) {
        at += strspn(at, "; \t");
        size_t len = strcspn(at, ";");
        if (len > name_len && strncmp(at, name, name_len) == 0 && at[name_len] == '=' && nth-- == 0)
            return (struct bytes){ at + name_len + 1, len - name_len - 1 };
        at += len;
    }
    return (struct bytes){ NULL, 0 };
}

/* --- responses --- */

#define KEEP_BYTES 4096

void response_init(struct response *rs, size_t most_body_bytes)
{
    *rs = (struct response){ .status = 200, .headers = BUF_INIT(16 * 1024), .body = BUF_INIT(most_body_bytes) };
    response_reset(rs);
}

void response_reset(struct response *rs)
{
    rs->status = 200;
    rs->head_only = false;
    rs->content_type = "application/json; charset=utf-8";
    buf_trim(&rs->headers, KEEP_BYTES);
    buf_trim(&rs->body, KEEP_BYTES);
}

void response_done(struct response *rs)
{
    buf_done(&rs->headers);
    buf_done(&rs->body);
}

void response_header(struct response *rs, const char *name, const char *value)
{
    size_t before = rs->headers.len;
    buf_puts(&rs->headers, name);
    buf_puts(&rs->headers, ": ");
    for (const char *c = value; *c != '\0'; c++)
        if ((unsigned char)*c >= 0x20 && *c != 0x7f) buf_append(&rs->headers, c, 1);
    buf_puts(&rs->headers, "\r\n");
    if (buf_overflowed(&rs->headers) && rs->headers.data != NULL)
        rs->headers.data[rs->headers.len = before] = '\0'; /* half a header would swallow the head's end */
}

bool response_details(struct response *rs, int status, const char *code, const char *message, struct bytes details)
{
    rs->status = status;
    rs->content_type = "application/json; charset=utf-8";
    buf_reset(&rs->body);
    buf_puts(&rs->body, "{\"success\":false,\"error\":{\"code\":");
    buf_json_string(&rs->body, bytes_of(code));
    buf_puts(&rs->body, ",\"message\":");
    buf_json_string(&rs->body, bytes_of(message));
    if (details.len > 0) buf_puts(&rs->body, ",\"details\":");
    buf_add(&rs->body, details);
    buf_puts(&rs->body, "}}");
    return true;
}

bool response_fault(struct response *rs, int status, const char *code, const char *message,
                    const struct json_fault *fault)
{
    struct buf details = BUF_INIT(4096);
    buf_puts(&details, "{\"pointer\":");
    buf_json_string(&details, bytes_of(fault->pointer));
    buf_puts(&details, ",\"reason\":");
    buf_json_string(&details, bytes_of(fault->reason));
    buf_puts(&details, "}");
    response_details(rs, status, code, message, buf_bytes(&details));
    buf_done(&details);
    return true;
}

bool response_error(struct response *rs, int status, const char *code, const char *message)
{
    return response_details(rs, status, code, message, (struct bytes){ NULL, 0 });
}

static const struct {
    int status;
    const char *reason;
} reasons[] = {
    { 200, "OK" },
    { 201, "Created" },
    { 304, "Not Modified" },
    { 400, "Bad Request" },
    { 401, "Unauthorized" },
    { 403, "Forbidden" },
    { 404, "Not Found" },
    { 405, "Method Not Allowed" },
    { 412, "Precondition Failed" },
    { 413, "Content Too Large" },
    { 415, "Unsupported Media Type" },
    { 429, "Too Many Requests" },
    { 431, "Request Header Fields Too Large" },
    { 500, "Internal Server Error" },
    { 502, "Bad Gateway" },
    { 503, "Service Unavailable" },
};

void response_head(const struct response *rs, struct buf *out)
{
    const char *reason = "";
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++)
        if (reasons[i].status == rs->status) reason = reasons[i].reason;
    struct number n;
    buf_puts(out, "Status: ");
    buf_add(out, number(&n, rs->status));
    buf_puts(out, " ");
    buf_puts(out, reason);
    if (rs->status != 304) {
        buf_puts(out, "\r\nContent-Type: ");
        buf_puts(out, rs->content_type);
        buf_puts(out, "\r\nContent-Length: ");
        buf_add(out, number(&n, (int64_t)rs->body.len));
    }
    buf_puts(out, "\r\nCache-Control: no-store\r\n");
    buf_add(out, buf_bytes(&rs->headers));
    buf_puts(out, "\r\n");
}
