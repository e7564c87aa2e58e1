/* http.h: a request as plain fields, from the FastCGI parameters of a front server; a response as status, headers and
 * body. Pure: no I/O, no clock. */
#ifndef HYPERPAGE_HTTP_H
#define HYPERPAGE_HTTP_H

#include "endpoints.h"
#include "json.h"

#define HTTP_MOST_PATH_BYTES 2048

/* Texts are borrowed from the parameters and are "" where the client sent none; `body` is the worker's. */
struct request {
    enum http_method method;
    char path[HTTP_MOST_PATH_BYTES]; /* percent-decoded, without the query */
    const char *query;               /* as sent */
    const char *content_type, *accept, *authorization, *user_agent;
    const char *if_match, *if_none_match;
    const char *cache_control;
    const char *session_id; /* X-Session-Id */
    const char *cookie;
    const char *idempotency_key;
    const char *https, *forwarded_proto;
    const char *request_id; /* X-Request-Id */
    const char *forwarded_for, *real_ip, *remote_addr;
    const char *method_name, *uri, *script_name, *path_info; /* behind method and path */
    struct bytes body;
};

/* Fills `rq` from "NAME=value" texts. False: the path is no path (too long, a bad escape, a NUL). */
bool http_read_request(char *const params[], struct request *rq);

/* Appends the decoded value of the nth `name` in a query; false if there is none. */
bool http_query_value(const char *query, const char *name, size_t nth, struct buf *value);

/* Does the media type, without its parameters, equal `type`? */
bool http_content_type_is(const char *content_type, const char *type);

/* Does Cache-Control ask for an answer that is no copy (no-cache)? */
bool http_wants_fresh(const char *cache_control);

/* Does an Accept header name the media type itself, other than to rule it out (q=0)? */
bool http_accepts(const char *accept, const char *type);

/* Does an If-Match or If-None-Match list name `tag` (with quotes)? `weak`: W/ prefixes do not count. "*" names all. */
bool http_tag_listed(const char *list, const char *tag, bool weak);

/* The token of "Bearer TOKEN", or no bytes. */
struct bytes http_bearer(const char *authorization);

/* The address a request really came from: a proxy's word is taken only while the one who says it is in `trusted`
 * (networks separated by commas); then the rightmost address that is not trusted counts, with "*" the leftmost. */
void http_client_address(const struct request *rq, const char *trusted, char out[64]);

/* Did the client come over HTTPS: to the front server, or to a proxy whose word is taken as above? */
bool http_is_https(const struct request *rq, const char *trusted);

/* The value of the nth cookie called `name`, or no bytes. */
struct bytes http_cookie(const char *cookies, const char *name, size_t nth);

/* Is `list` what http_client_address() understands? False: *bad is the item that is wrong. */
bool http_networks_check(const char *list, struct bytes *bad);

struct response {
    int status;
    const char *content_type;
    struct buf headers; /* "Name: value\r\n" each */
    struct buf body;
    bool head_only; /* the answer to a HEAD: Content-Length is the body's, which stays here */
};

void response_init(struct response *rs, size_t most_body_bytes);
void response_reset(struct response *rs); /* ready for another answer; keeps a little memory */
void response_done(struct response *rs);

/* Bytes that do not belong into a header's value are left out; a header beyond 16 KiB of them is, too. */
void response_header(struct response *rs, const char *name, const char *value);

/* {"success":false,"error":{"code":...,"message":...}} in place of whatever was there; headers stay. Always true, so
 * that a handler can end in `return response_error(...)`. */
bool response_error(struct response *rs, int status, const char *code, const char *message);

/* The same with "details", a JSON object; no bytes: without. */
bool response_details(struct response *rs, int status, const char *code, const char *message, struct bytes details);

/* The same with "details":{"pointer":...,"reason":...}. */
bool response_fault(struct response *rs, int status, const char *code, const char *message,
                    const struct json_fault *fault);

/* Appends the head as CGI wants it: Status, Content-Length, headers, the empty line. */
void response_head(const struct response *rs, struct buf *out);

#endif
