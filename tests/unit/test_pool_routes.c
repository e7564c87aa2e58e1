#include "routes.h"

#include "test.h"

#include <stdio.h>
#include <string.h>

static struct exchange x;
static struct config config;
static struct api api = { .config = &config };

static int begin_exchange(void **state)
{
    (void)state;
    memset(&x, 0, sizeof x);
    x.api = &api;
    x.rq.authorization = "";
    config.admin_token = "token";
    x.route = 4711;
    response_init(&x.rs, 65536);
    return 0;
}

static int end_exchange(void **state)
{
    (void)state;
    response_done(&x.rs);
    return 0;
}

static void ask(enum http_method method, const char *path)
{
    response_reset(&x.rs);
    x.rq.method = method;
    snprintf(x.rq.path, sizeof x.rq.path, "%s", path);
    routes_answer(&x);
}

static void a_path_that_is_none_is_404(void **state)
{
    (void)state;
    static const char *const none[] = { "",
                                        "/",
                                        "/api",
                                        "/api/",
                                        "/api/session",
                                        "/api/sessionsx",
                                        "/api/sessions//",
                                        "/api/sessions/a/b",
                                        "/api/sessions/a/",
                                        "/api/sessions//extend",
                                        "/api/sessions/a/extend/",
                                        "/api/sessions/a/extend/x",
                                        "/api/sessions/a/b/rotate",
                                        "/api/sessions/a/rotatex",
                                        "/api/admin",
                                        "//api/sessions",
                                        "/API/sessions",
                                        "/api/health/live/x",
                                        "/api/metrics/x",
                                        "api/sessions" };
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        ask(HTTP_GET, none[i]);
        if (x.rs.status != 404) fail_msg("%s: %d", none[i], x.rs.status);
        assert_int_equal(x.route, -1);
        assert_non_null(strstr(buf_text(&x.rs.body), "\"NOT_FOUND\""));
        assert_int_equal(x.rs.headers.len, 0);
    }
}

static void a_method_that_a_path_does_not_know_is_405_with_those_it_knows(void **state)
{
    (void)state;
    static const struct {
        enum http_method method;
        const char *path, *allow;
    } rows[] = {
        { HTTP_PUT, "/api/sessions", "Allow: GET, HEAD, POST, PATCH, DELETE\r\n" },
        { HTTP_OPTIONS, "/api/sessions/", "Allow: GET, HEAD, POST, PATCH, DELETE\r\n" },
        { HTTP_OTHER, "/api/sessions", "Allow: GET, HEAD, POST, PATCH, DELETE\r\n" },
        { HTTP_POST, "/api/sessions/abc", "Allow: GET, HEAD, PATCH, DELETE\r\n" },
        { HTTP_GET, "/api/sessions/abc/extend", "Allow: POST\r\n" },
        { HTTP_DELETE, "/api/sessions/abc/rotate", "Allow: POST\r\n" },
        { HTTP_POST, "/api/admin/sessions", "Allow: GET, DELETE\r\n" },
        { HTTP_DELETE, "/api/health/live", "Allow: GET, HEAD\r\n" },
        { HTTP_POST, "/api/health/ready", "Allow: GET, HEAD\r\n" },
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        ask(rows[i].method, rows[i].path);
        assert_int_equal(x.rs.status, 405);
        assert_string_equal(buf_text(&x.rs.headers), rows[i].allow);
        assert_non_null(strstr(buf_text(&x.rs.body), "\"METHOD_NOT_ALLOWED\""));
        assert_int_equal(x.route, -1);
        assert_int_not_equal(x.endpoint, ENDPOINT_NONE);
    }
}

static void without_a_token_that_opens_them_administrators_paths_are_404_for_every_method(void **state)
{
    (void)state;
    config.admin_token = "";
    for (enum http_method m = HTTP_GET; m <= HTTP_OTHER; m++) {
        ask(m, "/api/admin/sessions");
        assert_int_equal(x.rs.status, 404);
        ask(m, "/api/admin/coordination/messages");
        assert_int_equal(x.rs.status, 404);
        assert_int_equal(x.rs.headers.len, 0);
    }
}

/* Liveness is a route that needs nothing. */
static void a_route_that_fits_answers(void **state)
{
    (void)state;
    ask(HTTP_GET, "/api/health/live");
    assert_int_equal(x.rs.status, 200);
    assert_string_equal(routes_name(x.route), "/api/health/live");
    assert_int_equal(x.endpoint, ENDPOINT_LIVE);
    assert_int_equal(x.path_tail.len, 0);
    assert_non_null(strstr(buf_text(&x.rs.body), "\"status\":\"healthy\""));
}

static void a_route_s_name_is_its_pattern_and_never_a_path(void **state)
{
    (void)state;
    assert_string_equal(routes_name(-1), "-");
    assert_string_equal(routes_name(0), "/api/sessions");
    assert_string_equal(routes_name(4711), "-");
    assert_string_equal(routes_name(INT32_MIN), "-");
}

#define EXCHANGE(f) cmocka_unit_test_setup_teardown(f, begin_exchange, end_exchange)

int main(void)
{
    const struct CMUnitTest tests[] = {
        EXCHANGE(a_path_that_is_none_is_404),
        EXCHANGE(a_method_that_a_path_does_not_know_is_405_with_those_it_knows),
        EXCHANGE(without_a_token_that_opens_them_administrators_paths_are_404_for_every_method),
        EXCHANGE(a_route_that_fits_answers),
        cmocka_unit_test(a_route_s_name_is_its_pattern_and_never_a_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
