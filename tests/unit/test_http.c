#include "http.h"

#include "mem.h"
#include "test.h"

#define PARAMS(...) ((char *[]){ __VA_ARGS__, NULL })

static struct request rq;

static bool read_uri(const char *uri)
{
    char param[8192];
    snprintf(param, sizeof param, "REQUEST_URI=%s", uri);
    return http_read_request(PARAMS(param), &rq);
}

static void a_request_is_its_parameters(void **state)
{
    (void)state;
    assert_true(http_read_request(
        PARAMS("REQUEST_METHOD=PATCH", "REQUEST_URI=/api/sessions/a%20b?x=%31&y", "SCRIPT_NAME=/no", "PATH_INFO=/no",
               "QUERY_STRING=x=%31&y", "CONTENT_TYPE=application/json", "HTTP_AUTHORIZATION=Bearer t",
               "HTTP_USER_AGENT=curl", "HTTP_IF_MATCH=\"m\"", "HTTP_IF_NONE_MATCH=\"n\"", "HTTP_X_SESSION_ID=s",
               "HTTP_X_REQUEST_ID=r", "HTTP_X_FORWARDED_FOR=f", "HTTP_X_REAL_IP=i", "REMOTE_ADDR=a=b",
               "HTTP_X_SESSION_ID_=no", "HTTP_X_SESSION=no", "NO_EQUALS_SIGN"),
        &rq));
    assert_int_equal(rq.method, HTTP_PATCH);
    assert_string_equal(rq.path, "/api/sessions/a b");
    assert_string_equal(rq.query, "x=%31&y");
    assert_string_equal(rq.content_type, "application/json");
    assert_string_equal(rq.authorization, "Bearer t");
    assert_string_equal(rq.user_agent, "curl");
    assert_string_equal(rq.if_match, "\"m\"");
    assert_string_equal(rq.if_none_match, "\"n\"");
    assert_string_equal(rq.session_id, "s");
    assert_string_equal(rq.request_id, "r");
    assert_string_equal(rq.forwarded_for, "f");
    assert_string_equal(rq.real_ip, "i");
    assert_string_equal(rq.remote_addr, "a=b");
}

/* The struct serves one request after another. */
static void nothing_of_the_request_before_is_left(void **state)
{
    (void)state;
    memset(&rq, 0x5a, sizeof rq);
    assert_true(http_read_request(PARAMS("HTTP_X_SESSION_ID=s", "REQUEST_METHOD=POST", "REQUEST_URI=/a"), &rq));
    rq.body = BYTES_LITERAL("{}");
    assert_true(http_read_request(PARAMS(NULL), &rq));
    assert_int_equal(rq.method, HTTP_OTHER);
    assert_string_equal(rq.path, "");
    assert_string_equal(rq.session_id, "");
    assert_string_equal(rq.query, "");
    assert_string_equal(rq.remote_addr, "");
    assert_int_equal(rq.body.len, 0);
}

static void methods_are_told_apart_by_case(void **state)
{
    (void)state;
    for (int m = HTTP_GET; m <= HTTP_OTHER; m++) {
        char param[40];
        snprintf(param, sizeof param, "REQUEST_METHOD=%s", http_methods[m]);
        assert_true(http_read_request(PARAMS(param), &rq));
        assert_int_equal(rq.method, m);
    }
    static char *const others[] = { "REQUEST_METHOD=get", "REQUEST_METHOD=", "REQUEST_METHOD=GETS",
                                    "REQUEST_METHOD=TRACE" };
    for (size_t i = 0; i < 4; i++) {
        assert_true(http_read_request(PARAMS(others[i]), &rq));
        assert_int_equal(rq.method, HTTP_OTHER);
    }
}

static void a_path_is_decoded_once(void **state)
{
    (void)state;
    static const struct {
        const char *uri, *path;
    } paths[] = {
        { "/", "/" },
        { "", "" },
        { "/%41%7a%2F%2f", "/Az//" },
        { "/%2541", "/%41" },
        { "/a+b", "/a+b" },
        { "/a?b%zz", "/a" },
        { "/a#b", "/a" },
        { "/%3Fa%23", "/?a#" },
        { "/\xc3\xa4%C3%A4", "/\xc3\xa4\xc3\xa4" },
        { "/../%2e%2e/", "/../../" },
    };
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        assert_true(read_uri(paths[i].uri));
        assert_string_equal(rq.path, paths[i].path);
    }
    assert_true(
        http_read_request(PARAMS("SCRIPT_NAME=/api", "PATH_INFO=/a%41"), &rq)); /* the front has decoded these */
    assert_string_equal(rq.path, "/api/a%41");
}

static void what_is_no_path_is_refused(void **state)
{
    (void)state;
    static const char *const paths[] = { "/%", "/%4", "/%4?1", "/%zz", "/%4g", "/%g4", "/a%00b", "/%00", "%-1" };
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) assert_false(read_uri(paths[i]));
}

static void a_path_has_a_limit(void **state)
{
    (void)state;
    char uri[3 * HTTP_MOST_PATH_BYTES + 1], script[HTTP_MOST_PATH_BYTES + 40];
    memset(uri, 'a', sizeof uri);
    uri[HTTP_MOST_PATH_BYTES - 1] = '\0';
    assert_true(read_uri(uri));
    assert_int_equal(strlen(rq.path), HTTP_MOST_PATH_BYTES - 1);
    snprintf(script, sizeof script, "SCRIPT_NAME=%.2047s", uri);
    assert_true(http_read_request(PARAMS(script), &rq));
    assert_false(http_read_request(PARAMS(script, "PATH_INFO=/"), &rq));
    uri[HTTP_MOST_PATH_BYTES - 1] = 'a';
    uri[HTTP_MOST_PATH_BYTES] = '\0';
    assert_false(read_uri(uri));
    for (size_t i = 0; i < HTTP_MOST_PATH_BYTES - 1; i++) memcpy(uri + 3 * i, "%41", 4);
    assert_true(read_uri(uri)); /* it is the decoded path that counts */
}

static void assert_value(const char *query, const char *name, size_t nth, struct bytes expected)
{
    struct buf value = BUF_INIT(64);
    assert_true(http_query_value(query, name, nth, &value));
    assert_int_equal(value.len, expected.len);
    assert_memory_equal(buf_text(&value), expected.at, expected.len);
    buf_done(&value);
}

static void a_query_value_is_found_and_decoded(void **state)
{
    (void)state;
    assert_value("sessionId=a", "sessionId", 0, BYTES_LITERAL("a"));
    assert_value("x=1&sessionId=%61+%2B%26&y", "sessionId", 0, BYTES_LITERAL("a +&"));
    assert_value("&&a=1&&a=2&", "a", 1, BYTES_LITERAL("2"));
    assert_value("a=b=c", "a", 0, BYTES_LITERAL("b=c"));
    assert_value("a", "a", 0, BYTES_LITERAL(""));
    assert_value("a=&b", "a", 0, BYTES_LITERAL(""));
    assert_value("aa=1&a=2", "a", 0, BYTES_LITERAL("2"));
    assert_value("a=%4", "a", 0,
                 BYTES_LITERAL("\0"
                               "4")); /* no id holds a NUL: a bad escape fits nothing */
    assert_value("a=%zz&b", "a", 0, BYTES_LITERAL("\0"));
    assert_value("a=%00", "a", 0, BYTES_LITERAL("\0"));
    assert_value("a=%", "a", 0, BYTES_LITERAL("\0"));
    static const char *const without[] = { "", "&", "b=a", "A=1", "aa", "=a", "b&c=a=1" };
    for (size_t i = 0; i < sizeof without / sizeof without[0]; i++)
        assert_false(http_query_value(without[i], "a", 0, NULL));
    assert_false(http_query_value("a=1&a=2", "a", 2, NULL));
}

static void a_media_type_is_accepted_where_it_is_named_and_not_ruled_out(void **state)
{
    (void)state;
    static const struct {
        const char *accept;
        bool accepts;
    } rows[] = {
        { "", false },
        { "*/*", false },
        { "text/plain;q=0.5", false },
        { "application/openmetrics-text", true },
        { "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/"
          "plain;q=0.5",
          true },
        { "text/plain, Application/OpenMetrics-Text ; q=0.001", true },
        { "application/openmetrics-text;q=0", false },
        { "application/openmetrics-text; version=1.0.0; q=0.000", false },
        { "application/openmetrics-textual", false },
        { "xapplication/openmetrics-text", false },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (http_accepts(rows[i].accept, "application/openmetrics-text") != rows[i].accepts)
            fail_msg("%s", rows[i].accept);
}

static void a_media_type_is_compared_without_parameters_and_case(void **state)
{
    (void)state;
    assert_true(http_content_type_is("application/json", "application/json"));
    assert_true(http_content_type_is("Application/JSON; charset=utf-8", "application/json"));
    assert_true(http_content_type_is("application/json;x", "application/json"));
    assert_true(http_content_type_is("application/json ;x", "application/json"));
    assert_false(http_content_type_is("application/jsonp", "application/json"));
    assert_false(http_content_type_is("application/jso", "application/json"));
    assert_false(http_content_type_is("text/plain; application/json", "application/json"));
    assert_false(http_content_type_is("", "application/json"));
}

static void a_tag_is_found_in_a_list(void **state)
{
    (void)state;
    static const struct {
        const char *list;
        bool strong, weak; /* is "a" listed when compared so? */
    } lists[] = {
        { "\"a\"", true, true },
        { "*", true, true },
        { " * ", true, true },
        { "\"b\", \"a\"", true, true },
        { "\"b\",\t\"a\" ,", true, true },
        { ",,\"a\"", true, true },
        { "W/\"a\"", false, true },
        { "\"b\",W/\"a\"", false, true },
        { "W/\"a\", \"a\"", true, true },
        { "\"b,\\\", \"a\"", true, true },
        { "", false, false },
        { "a", false, false },
        { "\"a", false, false },
        { "a\"", false, false },
        { "\"", false, false },
        { "\"aa\"", false, false },
        { "\"A\"", false, false },
        { "\"\"", false, false },
        { "w/\"a\"", false, false },
        { "W/", false, false },
        { "W/W/\"a\"", false, false },
        { "W/a", false, false },
        { "\"b\", \"a", false, false },
        { "\", \"a\"", false, false },
    };
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        if (http_tag_listed(lists[i].list, "\"a\"", false) != lists[i].strong) fail_msg("strong: %s", lists[i].list);
        if (http_tag_listed(lists[i].list, "\"a\"", true) != lists[i].weak) fail_msg("weak: %s", lists[i].list);
    }
}

static void a_bearer_token_stands_behind_its_scheme(void **state)
{
    (void)state;
    assert_true(bytes_is(http_bearer("Bearer abc"), "abc"));
    assert_true(bytes_is(http_bearer("bearer   a b  "), "a b"));
    static const char *const none[] = { "", "Bearer", "Bearer ", "Bearer    ", "Basic abc", "Bearerabc", " Bearer a" };
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) assert_int_equal(http_bearer(none[i]).len, 0);
}

/* ---- The client's address -----------------------------------------------------------------------------------------
 */

#define LOOPBACK "127.0.0.0/8,::1"
#define PRIVATE  "127.0.0.1, 10.0.0.0/8,fd00::/8"

static const struct {
    const char *trusted, *remote, *forwarded, *real_ip, *client;
} chains[] = {
    { LOOPBACK, "192.0.2.1", "", "", "192.0.2.1" },
    { LOOPBACK, "192.0.2.1", "198.51.100.7", "198.51.100.8", "192.0.2.1" }, /* spoofed: the peer is no proxy */
    { LOOPBACK, "127.0.0.1", "198.51.100.7", "198.51.100.8", "198.51.100.7" },
    { LOOPBACK, "127.0.0.1", "", "198.51.100.8", "198.51.100.8" },
    { LOOPBACK, "127.0.0.1", "", "", "127.0.0.1" },
    { LOOPBACK, "::1", "2001:DB8::0:7", "", "2001:db8::7" },
    { LOOPBACK, "127.200.0.9", "198.51.100.7", "", "198.51.100.7" },
    { LOOPBACK, "128.0.0.1", "198.51.100.7", "", "128.0.0.1" },
    { LOOPBACK, "127.0.0.1", "6.6.6.6, 198.51.100.7", "", "198.51.100.7" }, /* the client wrote the left part itself */
    { LOOPBACK, "127.0.0.1", "127.0.0.1, 198.51.100.7", "", "198.51.100.7" },
    { PRIVATE, "127.0.0.1", "6.6.6.6, 198.51.100.7, 10.1.2.3,10.9.9.9", "", "198.51.100.7" },
    { PRIVATE, "127.0.0.1", "10.1.2.3, 10.9.9.9", "", "10.1.2.3" }, /* all are ours: the first one asks */
    { PRIVATE, "127.0.0.1", "198.51.100.7:4711", "", "198.51.100.7" },
    { PRIVATE, "127.0.0.1", "[2001:db8::7]:4711", "", "2001:db8::7" },
    { PRIVATE, "127.0.0.1", "[2001:db8::7]", "", "2001:db8::7" },
    { PRIVATE, "127.0.0.1", "198.51.100.7, [fd00::1]:80", "", "198.51.100.7" },
    { PRIVATE, "127.0.0.1", "::ffff:198.51.100.7", "", "198.51.100.7" },
    { PRIVATE, "::ffff:10.0.0.1", "198.51.100.7", "", "198.51.100.7" },
    { PRIVATE, "127.0.0.1", "198.51.100.7, unknown", "", "127.0.0.1" }, /* what cannot be read ends the chain */
    { PRIVATE, "127.0.0.1", "198.51.100.7, unknown, 10.0.0.1", "", "10.0.0.1" },
    { PRIVATE, "127.0.0.1", "198.51.100.7,", "", "198.51.100.7" }, /* elements that say nothing (RFC 9110, 5.6.1) */
    { PRIVATE, "127.0.0.1", "6.6.6.6,, 198.51.100.7 , ,10.0.0.1,", "", "198.51.100.7" },
    { PRIVATE, "127.0.0.1", " , ", "198.51.100.8", "127.0.0.1" },
    { PRIVATE, "127.0.0.1", "fe80::7%eth0", "", "fe80::7" },
    { PRIVATE, "127.0.0.1", "198.51.100.7%eth0", "", "127.0.0.1" },
    { PRIVATE, "127.0.0.1", " ", "", "127.0.0.1" },
    { PRIVATE, "127.0.0.1", "<script>", "", "127.0.0.1" },
    { "*", "192.0.2.1", "6.6.6.6, 198.51.100.7", "", "6.6.6.6" },
    { "10.0.0.0/8,*", "192.0.2.1", "6.6.6.6, 198.51.100.7", "", "6.6.6.6" },
    { "*", "192.0.2.1", "", "", "192.0.2.1" },
    { "*", "192.0.2.1", "garbage, 198.51.100.7", "", "198.51.100.7" },
    { "", "127.0.0.1", "198.51.100.7", "", "127.0.0.1" },
    { "0.0.0.0/0", "192.0.2.1", "2001:db8::7", "", "2001:db8::7" },
    { "10.0.0.0/9", "10.128.0.1", "198.51.100.7", "", "10.128.0.1" },
    { "10.0.0.0/9", "10.127.255.255", "198.51.100.7", "", "198.51.100.7" },
    { "10.1.2.3/32", "10.1.2.3", "198.51.100.7", "", "198.51.100.7" },
    { "10.1.2.3/32", "10.1.2.2", "198.51.100.7", "", "10.1.2.2" },
    { "2001:db8::/33", "2001:db8:7fff::1", "198.51.100.7", "", "198.51.100.7" },
    { "2001:db8::/33", "2001:db8:8000::1", "198.51.100.7", "", "2001:db8:8000::1" },
    { LOOPBACK, "", "198.51.100.7", "", "" },
    { LOOPBACK, "unix:", "198.51.100.7", "", "" },
    { "*", "", "198.51.100.7", "", "" },
};

static void the_client_is_whom_trusted_proxies_name(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof chains / sizeof chains[0]; i++) {
        struct request asked = { .remote_addr = chains[i].remote,
                                 .forwarded_for = chains[i].forwarded,
                                 .real_ip = chains[i].real_ip };
        char client[64];
        memset(client, '#', sizeof client);
        http_client_address(&asked, chains[i].trusted, client);
        if (strcmp(client, chains[i].client) != 0)
            fail_msg("trusted \"%s\", peer %s, chain \"%s\": \"%s\" instead of \"%s\"", chains[i].trusted,
                     chains[i].remote, chains[i].forwarded, client, chains[i].client);
    }
}

static void a_chain_of_any_length_is_walked(void **state)
{
    (void)state;
    struct buf chain = BUF_INIT(1 << 20);
    char client[64];
    buf_puts(&chain, "198.51.100.7");
    for (int i = 0; i < 10000; i++) buf_printf(&chain, ", 10.0.%d.%d", i / 256, i % 256);
    struct request asked = { .remote_addr = "127.0.0.1", .forwarded_for = buf_text(&chain), .real_ip = "" };
    http_client_address(&asked, PRIVATE, client);
    assert_string_equal(client, "198.51.100.7");
    buf_done(&chain);
}

static void a_list_of_networks_is_checked(void **state)
{
    (void)state;
    static const char *const good[] = {
        "", "*", LOOPBACK, PRIVATE, "10.0.0.1", "::/0", "0.0.0.0/0", "::1/128", " 10.0.0.0/8 , * ,", "::ffff:10.0.0.1"
    };
    static const struct {
        const char *list, *item;
    } wrong[] = {
        { "10.0.0.0/33", "10.0.0.0/33" },
        { "::/129", "::/129" },
        { "10.0.0.0/", "10.0.0.0/" },
        { "10.0.0/8", "10.0.0/8" },
        { "/8", "/8" },
        { "LOOPBACK", "LOOPBACK" },
        { "10.0.0.0/8x", "10.0.0.0/8x" },
        { "10.0.0.0/-1", "10.0.0.0/-1" },
        { "10.0.0.0/99999999999", "10.0.0.0/99999999999" },
        { "127.0.0.1,host", "host" },
        { "127.0.0.1,,host", "host" },
        { "10.0.0.0 8", "10.0.0.0 8" },
        { "::ffff:10.0.0.0/104", "::ffff:10.0.0.0/104" },
    };
    struct bytes item;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        if (!http_networks_check(good[i], &item)) fail_msg("%s was refused", good[i]);
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        if (http_networks_check(wrong[i].list, &item)) fail_msg("%s was taken", wrong[i].list);
        assert_true(bytes_is(item, wrong[i].item));
    }
}

/* ---- Responses ----------------------------------------------------------------------------------------------------
 */

static struct response rs;
static struct buf head = BUF_INIT(64 * 1024);

static int begin_response(void **state)
{
    (void)state;
    response_init(&rs, 4096);
    return 0;
}

static int end_response(void **state)
{
    (void)state;
    response_done(&rs);
    buf_done(&head);
    return 0;
}

static void a_head_is_what_cgi_wants(void **state)
{
    (void)state;
    rs.status = 201;
    response_header(&rs, "Location", "/api/sessions/x");
    response_header(&rs, "X-Empty", "");
    buf_puts(&rs.body, "{\"a\":1}");
    response_head(&rs, &head);
    assert_string_equal(
        buf_text(&head),
        "Status: 201 Created\r\nContent-Type: application/json; charset=utf-8\r\n"
        "Content-Length: 7\r\nCache-Control: no-store\r\nLocation: /api/sessions/x\r\nX-Empty: \r\n\r\n");
}

static void not_modified_names_no_type(void **state)
{
    (void)state;
    rs.status = 304;
    response_head(&rs, &head);
    assert_string_equal(buf_text(&head), "Status: 304 Not Modified\r\nCache-Control: no-store\r\n\r\n");
}

static void every_status_that_is_answered_has_its_reason(void **state)
{
    (void)state;
    static const int statuses[] = { 200, 201, 304, 400, 401, 403, 404, 405, 412, 413, 415, 429, 431, 500, 503 };
    for (size_t i = 0; i < sizeof statuses / sizeof statuses[0]; i++) {
        rs.status = statuses[i];
        buf_reset(&head);
        response_head(&rs, &head);
        if (strncmp(buf_text(&head) + 11, " \r\n", 2) == 0 || buf_text(&head)[12] == '\r') fail_msg("%d", statuses[i]);
    }
}

static void a_value_cannot_end_its_header(void **state)
{
    (void)state;
    response_header(&rs, "X-Request-Id", "a\r\nSet-Cookie: x=y\n\n<html>\t\x01\x7f\xc3\xa4");
    response_head(&rs, &head);
    assert_non_null(strstr(buf_text(&head), "\r\nX-Request-Id: aSet-Cookie: x=y<html>\xc3\xa4\r\n\r\n"));
}

static void headers_beyond_their_limit_leave_a_head_that_ends(void **state)
{
    (void)state;
    char value[3000];
    memset(value, 'v', sizeof value);
    value[sizeof value - 1] = '\0';
    for (int i = 0; i < 8; i++) response_header(&rs, "X-Long", value);
    response_head(&rs, &head);
    assert_string_equal(buf_text(&head) + head.len - 4, "\r\n\r\n");
    for (const char *line = buf_text(&head); *line != '\r'; line = strstr(line, "\r\n") + 2) {
        const char *colon = strchr(line, ':');
        assert_true(colon != NULL && strstr(line, "\r\n") > colon);
        if (strncmp(line, "X-Long", 6) == 0) assert_int_equal(strstr(line, "\r\n") - line, 8 + sizeof value - 1);
    }
}

static void an_error_replaces_the_body_and_keeps_the_headers(void **state)
{
    (void)state;
    response_header(&rs, "X-Request-Id", "r");
    rs.content_type = "text/plain";
    buf_puts(&rs.body, "half an answer");
    assert_true(response_error(&rs, 401, "SESSION_NOT_FOUND", "Session \"not\" found"));
    assert_int_equal(rs.status, 401);
    assert_string_equal(rs.content_type, "application/json; charset=utf-8");
    assert_string_equal(buf_text(&rs.body), "{\"success\":false,\"error\":{\"code\":\"SESSION_NOT_FOUND\","
                                            "\"message\":\"Session \\\"not\\\" found\"}}");
    assert_string_equal(buf_text(&rs.headers), "X-Request-Id: r\r\n");
}

static void an_error_may_follow_a_body_that_was_too_long(void **state)
{
    (void)state;
    for (int i = 0; i < 100; i++)
        buf_puts(&rs.body, "more than 4096 bytes are not allowed in this one, but it is repeated");
    assert_true(buf_overflowed(&rs.body));
    response_error(&rs, 500, "INTERNAL_ERROR", "The answer is too large");
    assert_false(buf_overflowed(&rs.body));
    assert_string_equal(buf_text(&rs.body), "{\"success\":false,\"error\":{\"code\":\"INTERNAL_ERROR\","
                                            "\"message\":\"The answer is too large\"}}");
}

static void a_fault_says_where_and_why(void **state)
{
    (void)state;
    struct json_fault fault = { .pointer = "/a~1b/\"0\"", .reason = "must be text" };
    response_fault(&rs, 400, "INVALID_SESSION_DATA", "No", &fault);
    assert_string_equal(buf_text(&rs.body),
                        "{\"success\":false,\"error\":{\"code\":\"INVALID_SESSION_DATA\",\"message\":\"No\","
                        "\"details\":{\"pointer\":\"/a~1b/\\\"0\\\"\",\"reason\":\"must be text\"}}}");
}

static void a_response_is_used_again(void **state)
{
    (void)state;
    response_error(&rs, 503, "X", "Y");
    response_header(&rs, "Retry-After", "1");
    response_reset(&rs);
    assert_int_equal(rs.status, 200);
    assert_int_equal(rs.body.len, 0);
    assert_int_equal(rs.headers.len, 0);
}

/* --- cookies and HTTPS --- */

static void assert_cookie(const char *cookies, size_t nth, const char *expected)
{
    struct bytes value = http_cookie(cookies, "sid", nth);
    assert_int_equal(value.len, strlen(expected));
    assert_memory_equal(value.at ? value.at : "", expected, value.len);
}

static void a_cookie_is_found_by_its_whole_name(void **state)
{
    (void)state;
    assert_cookie("sid=a", 0, "a");
    assert_cookie("x=1; sid=abc; y=2", 0, "abc");
    assert_cookie("x=1;sid=abc;y=2", 0, "abc");
    assert_cookie("xsid=1; sidx=2; sid =3; SID=4", 0, "");
    assert_cookie("sid=a; sid=b", 1, "b");
    assert_cookie("sid=a; sid=b", 2, "");
    assert_cookie("sid=", 0, "");
    assert_cookie("sid", 0, "");
    assert_cookie("", 0, "");
    assert_cookie(";;; sid=a=b ", 0, "a=b ");
}

static void https_is_the_front_servers_word_or_a_trusted_proxys(void **state)
{
    (void)state;
    static const struct {
        const char *https, *peer, *proto, *trusted;
        bool expected;
    } cases[] = {
        { "on", "192.0.2.1", "", "", true },           { "", "192.0.2.1", "", "*", false },
        { "off", "192.0.2.1", "", "*", false },        { "", "192.0.2.1", "https", "192.0.2.0/24", true },
        { "", "192.0.2.1", "HTTPS, http", "*", true }, { "", "192.0.2.1", "http, https", "*", false },
        { "", "192.0.2.1", "httpsx", "*", false },     { "", "198.51.100.1", "https", "192.0.2.0/24", false },
        { "", "nobody", "https", "*", false },
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct request asked = { .https = cases[i].https,
                                 .remote_addr = cases[i].peer,
                                 .forwarded_proto = cases[i].proto };
        assert_int_equal(http_is_https(&asked, cases[i].trusted), cases[i].expected);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cookie_is_found_by_its_whole_name),
        cmocka_unit_test(https_is_the_front_servers_word_or_a_trusted_proxys),
        cmocka_unit_test(a_request_is_its_parameters),
        cmocka_unit_test(nothing_of_the_request_before_is_left),
        cmocka_unit_test(methods_are_told_apart_by_case),
        cmocka_unit_test(a_path_is_decoded_once),
        cmocka_unit_test(what_is_no_path_is_refused),
        cmocka_unit_test(a_path_has_a_limit),
        cmocka_unit_test(a_query_value_is_found_and_decoded),
        cmocka_unit_test(a_media_type_is_compared_without_parameters_and_case),
        cmocka_unit_test(a_tag_is_found_in_a_list),
        cmocka_unit_test(a_bearer_token_stands_behind_its_scheme),
        cmocka_unit_test(the_client_is_whom_trusted_proxies_name),
        cmocka_unit_test(a_chain_of_any_length_is_walked),
        cmocka_unit_test(a_list_of_networks_is_checked),
        cmocka_unit_test_setup_teardown(a_head_is_what_cgi_wants, begin_response, end_response),
        cmocka_unit_test_setup_teardown(not_modified_names_no_type, begin_response, end_response),
        cmocka_unit_test_setup_teardown(every_status_that_is_answered_has_its_reason, begin_response, end_response),
        cmocka_unit_test_setup_teardown(a_value_cannot_end_its_header, begin_response, end_response),
        cmocka_unit_test_setup_teardown(headers_beyond_their_limit_leave_a_head_that_ends, begin_response,
                                        end_response),
        cmocka_unit_test_setup_teardown(an_error_replaces_the_body_and_keeps_the_headers, begin_response, end_response),
        cmocka_unit_test_setup_teardown(an_error_may_follow_a_body_that_was_too_long, begin_response, end_response),
        cmocka_unit_test_setup_teardown(a_fault_says_where_and_why, begin_response, end_response),
        cmocka_unit_test_setup_teardown(a_response_is_used_again, begin_response, end_response),
        cmocka_unit_test(a_media_type_is_accepted_where_it_is_named_and_not_ruled_out),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
