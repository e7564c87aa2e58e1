#include "remote.h"

#include "clock.h"
#include "span.h"

#include <curl/curl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define MOST_TOLD_BYTES 300 /* of what a server says */

static enum ctl_exit wrong(struct remote_answer *a, enum ctl_exit code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

static enum ctl_exit wrong(struct remote_answer *a, enum ctl_exit code, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(a->why, sizeof a->why, fmt, ap);
    va_end(ap);
    return code;
}

/* --- the call --- */

/* Would everybody on the way see it? This machine's own addresses are no way. */
static bool is_private(CURLU *url)
{
    static const char *const here[] = { "localhost", "127.0.0.1", "[::1]" };
    char *scheme = NULL, *host = NULL;
    bool private = false;
    if (curl_url_get(url, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK && strcmp(scheme, "https") == 0) private = true;
    if (curl_url_get(url, CURLUPART_HOST, &host, 0) == CURLUE_OK)
        for (size_t i = 0; i < sizeof here / sizeof here[0]; i++) private = private || strcasecmp(host, here[i]) == 0;
    curl_free(scheme);
    curl_free(host);
    return private;
}

static bool has_path(CURLU *url)
{
    char *path = NULL;
    bool has = curl_url_get(url, CURLUPART_PATH, &path, 0) != CURLUE_OK || strcmp(path, "/") != 0;
    curl_free(path);
    return has;
}

/* SCHEME://HOST[:PORT][/], with `path` behind it. */
static enum ctl_exit make_url(const struct ctl *c, const struct remote_request *rq, struct remote_answer *a,
                              struct buf *out)
{
    const char *given = c->flag[CTL_URL];
    CURLU *url = curl_url();
    enum ctl_exit code = CTL_OK;
    if (url == NULL) code = wrong(a, CTL_UNREACHABLE, "--url: no memory for it");
    /* Not even an empty user, query or fragment: `path` would become part of it. */
    else if ((strncmp(given, "http://", 7) != 0 && strncmp(given, "https://", 8) != 0) ||
             strpbrk(given, "@?#") != NULL || curl_url_set(url, CURLUPART_URL, given, 0) != CURLUE_OK || has_path(url))
        code = wrong(a, CTL_USAGE, "--url: allowed is http://HOST[:PORT]/ or https://HOST[:PORT]/");
    else if (rq->as_admin && !is_private(url))
        code = wrong(a, CTL_USAGE, "--url: a token goes over https only, or stays on this machine");
    size_t n = strlen(given);
    buf_append(out, given, n > 0 && given[n - 1] == '/' ? n - 1 : n);
    buf_puts(out, rq->path);
    curl_url_cleanup(url);
    return code;
}

/* The first of the two that may be configured. */
static enum ctl_exit add_token(const struct ctl *c, struct remote_answer *a, struct buf *header)
{
    struct bytes token;
    for (int i = 1; i < c->argc; i++)
        if (strcmp(c->argv[i], "--admin-token") == 0 || strncmp(c->argv[i], "--admin-token=", 14) == 0)
            return wrong(a, CTL_USAGE, "--admin-token: a token in the list of processes is everybody's: --token-file");
    if (!config_item(c->config->admin_token, 0, &token))
        return wrong(a, CTL_USAGE,
                     "this needs an administrator's token: --token-file, ADMIN_TOKEN_FILE or ADMIN_TOKEN");
    for (size_t i = 0; i < token.len; i++)
        if (token.at[i] <= ' ' || token.at[i] >= 0x7f)
            return wrong(a, CTL_USAGE, "the token has a character that no token has");
    buf_puts(header, "Authorization: Bearer ");
    buf_add(header, token);
    return CTL_OK;
}

static size_t take_body(char *data, size_t size, size_t n, void *ctx)
{
    struct buf *body = ctx;
    buf_append(body, data, size * n);
    return buf_overflowed(body) ? 0 : size * n;
}

static void add_header(struct curl_slist **headers, const char *text)
{
    *headers = curl_slist_append(*headers, text);
}

/* Redirections are not followed and proxies not asked: who gets the token is who was named. */
static void set_options(CURL *curl, const struct ctl *c, const struct remote_request *rq, struct remote_answer *a)
{
    int64_t left_ms = c->deadline_ms - clock_mono_ms();
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(left_ms > 0 ? left_ms : 1));
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "hyperpagectl/" HYPERPAGE_VERSION);
    curl_easy_setopt(curl, CURLOPT_CUSTOMREQUEST, rq->method);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, &a->body);
    if (c->flag[CTL_CACERT] != NULL) {
        curl_easy_setopt(curl, CURLOPT_CAINFO, c->flag[CTL_CACERT]);
        curl_easy_setopt(curl, CURLOPT_CAPATH, NULL); /* this one alone */
    }
    if (rq->body.len == 0) return;
    curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)rq->body.len);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, rq->body.at);
}

static enum ctl_exit failed(struct remote_answer *a, CURLcode rc, const char *detail)
{
    enum ctl_exit code = rc == CURLE_OPERATION_TIMEDOUT ? CTL_TIMED_OUT : CTL_UNREACHABLE;
    if (rc == CURLE_SSL_CACERT_BADFILE) code = CTL_USAGE;
    if (rc == CURLE_WRITE_ERROR) return wrong(a, CTL_NOT_SO, "--url: the answer does not end");
    return wrong(a, code, "--url: %s", detail[0] != '\0' ? detail : curl_easy_strerror(rc));
}

/* --- the answer --- */

/* What a server says, fit for a terminal. */
static void add_said(const struct remote_answer *a, struct buf *out)
{
    struct span_member error, m;
    struct buf plain = BUF_INIT(MOST_TOLD_BYTES);
    if (span_find(buf_bytes(&a->body), "error", &error) && span_type(error.value) == SPAN_OBJECT &&
        span_find(error.value, "message", &m) && span_type(m.value) == SPAN_STRING)
        span_decode((struct bytes){ m.value.at + 1, m.value.len - 2 }, &plain);
    report_add_shown(out, buf_bytes(&plain));
    buf_done(&plain);
}

enum ctl_exit remote_refused(struct remote_answer *a)
{
    struct buf said = BUF_INIT(2 * MOST_TOLD_BYTES);
    add_said(a, &said);
    enum ctl_exit code = a->status == 400 || a->status == 413                       ? CTL_USAGE
                         : a->status == 502 || a->status == 503 || a->status == 504 ? CTL_UNREACHABLE
                                                                                    : CTL_NOT_SO;
    wrong(a, code, "--url: answered %ld%s%s", a->status, said.len > 0 ? ": " : "", buf_text(&said));
    buf_done(&said);
    return code;
}

/* What is about the caller, whatever was asked for. */
static enum ctl_exit judge(const struct remote_request *rq, struct remote_answer *a)
{
    size_t at;
    if (a->status >= 300 && a->status < 400)
        return wrong(a, CTL_USAGE, "--url: answered %ld: it is to be asked at another address", a->status);
    if (rq->as_admin && a->status == 401) return wrong(a, CTL_USAGE, "--url: the token is not the one of this service");
    if (rq->as_admin && a->status == 404)
        return wrong(a, CTL_USAGE,
                     "--url: answered 404: without ADMIN_TOKEN the service has nothing for administrators, "
                     "and a web server may keep it from other machines");
    if (a->status == 403)
        return wrong(a, CTL_USAGE, "--url: answered 403: %s",
                     rq->as_admin ? "the token is none of an administrator"
                                  : "the web server keeps this from machines of other networks");
    if (span_check_object(buf_bytes(&a->body), 0, &at) != SPAN_OK)
        return wrong(a, CTL_NOT_SO, "--url: answered %ld and something that is not of this service", a->status);
    return CTL_OK;
}

static void take_end(CURL *curl, struct remote_answer *a)
{
    struct curl_header *h = NULL;
    struct buf shown = BUF_INIT(sizeof a->expires_at - 1);
    if (curl_easy_header(curl, "X-Session-Expires-At", 0, CURLH_HEADER, -1, &h) == CURLHE_OK)
        report_add_shown(&shown, bytes_of(h->value));
    memcpy(a->expires_at, buf_text(&shown), shown.len + 1);
    buf_done(&shown);
}

enum ctl_exit remote_ask(struct ctl *c, const struct remote_request *rq, struct remote_answer *a)
{
    struct buf url = BUF_INIT(16 * 1024), header = BUF_INIT(16 * 1024);
    struct curl_slist *headers = NULL;
    char detail[CURL_ERROR_SIZE] = "";
    CURL *curl = curl_easy_init();
    buf_reset(&a->body);
    a->why[0] = '\0';
    enum ctl_exit code = curl != NULL ? make_url(c, rq, a, &url) : wrong(a, CTL_UNREACHABLE, "no HTTP here");
    if (code == CTL_OK && rq->as_admin) code = add_token(c, a, &header);
    if (code != CTL_OK) goto out;

    set_options(curl, c, rq, a);
    curl_easy_setopt(curl, CURLOPT_URL, buf_text(&url));
    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, detail);
    if (rq->as_admin) add_header(&headers, buf_text(&header));
    if (rq->body.len > 0) add_header(&headers, "Content-Type: application/json");
    if (rq->session_id != NULL) {
        buf_reset(&header);
        buf_printf(&header, "X-Session-Id: %s", rq->session_id);
        add_header(&headers, buf_text(&header));
    }
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    CURLcode rc = curl_easy_perform(curl);
    if (rc != CURLE_OK) code = failed(a, rc, detail);
    if (code != CTL_OK) goto out;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &a->status);
    take_end(curl, a);
    code = judge(rq, a);
out:
    curl_slist_free_all(headers);
    curl_easy_cleanup(curl);
    buf_done(&url);
    buf_done(&header);
    return code;
}

void remote_add_query(struct buf *path, const char *value)
{
    char *escaped = curl_easy_escape(NULL, value, 0);
    buf_puts(path, escaped != NULL ? escaped : "");
    curl_free(escaped);
}
