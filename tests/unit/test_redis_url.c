#include "redis_url.h"

#include "test.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *text;
    struct redis_url url;
} good[] = {
    { "redis://localhost", { .host = "localhost", .port = 6379 } },
    { "redis://localhost/", { .host = "localhost", .port = 6379 } },
    { "redis://10.0.0.1:6380/15", { .host = "10.0.0.1", .port = 6380, .db = 15 } },
    { "redis://host:65535/9999", { .host = "host", .port = 65535, .db = 9999 } },
    { "redis://[::1]:6380/1", { .host = "::1", .port = 6380, .db = 1 } },
    { "redis://[fe80::1%25eth0]", { .host = "fe80::1%eth0", .port = 6379 } },
    { "redis://:secret@host", { .host = "host", .port = 6379, .password = "secret" } },
    { "redis://me:secret@host:1/2", { .host = "host", .port = 1, .user = "me", .password = "secret", .db = 2 } },
    { "redis://m%65:p%40%2f%3A%25@host", { .host = "host", .port = 6379, .user = "me", .password = "p@/:%" } },
    { "redis://me:a@b:c@host", { .host = "host", .port = 6379, .user = "me", .password = "a@b:c" } },
    { "redis://me:@host", { .host = "host", .port = 6379, .user = "me" } },
    { "redis+unix:///run/redis.sock", { .path = "/run/redis.sock" } },
    { "redis+unix:///run/redis.sock?db=3", { .path = "/run/redis.sock", .db = 3 } },
    { "redis+unix://me:secret@/run/redis.sock", { .path = "/run/redis.sock", .user = "me", .password = "secret" } },
};

static void what_a_url_names_is_understood(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        const struct redis_url *expected = &good[i].url;
        struct redis_url url;
        struct err e = { 0 };
        memset(&url, 0xff, sizeof url);
        if (!redis_url_parse(good[i].text, &url, &e)) fail_msg("%s: %s", good[i].text, e.text);
        assert_string_equal(url.path, expected->path);
        assert_string_equal(url.host, expected->host);
        assert_string_equal(url.user, expected->user);
        assert_string_equal(url.password, expected->password);
        assert_int_equal(url.port, expected->port);
        assert_int_equal(url.db, expected->db);
    }
}

#define SCHEME      "the scheme is not known"
#define CREDENTIALS "user:password@ is not right"
#define PORT        "the port is not 1 to 65535"
#define DATABASE    "the database is not a number"
#define SOCKET      "the socket's path must be absolute, under 108 bytes"

static const struct {
    const char *text, *why;
} bad[] = {
    { "", SCHEME },
    { "localhost:6379", SCHEME },
    { "redis:/host", SCHEME },
    { "REDIS://host", SCHEME },
    { "http://host", SCHEME },
    { "redis-cluster://a:1,b:2", SCHEME },
    { "rediss://host", "TLS is not in the hiredis this was built with; use a local stunnel and redis://" },
    { "redis://", "the host is missing" },
    { "redis://:6379", "the host is missing" },
    { "redis://:secret@", "the host is missing" },
    { "redis://[]", "the host is missing" },
    { "redis://[::1", "the host's ] is missing" },
    { "redis://[::1]x", "nothing may follow the database" },
    { "redis://host:", PORT },
    { "redis://host:0", PORT },
    { "redis://host:65536", PORT },
    { "redis://host:-1", PORT },
    { "redis://host:6379x", PORT },
    { "redis://host:99999999999999999999", PORT },
    { "redis://host/x", DATABASE },
    { "redis://host/-1", DATABASE },
    { "redis://host/10000", DATABASE },
    { "redis://host/1/", DATABASE },
    { "redis://host/1?x", DATABASE },
    { "redis://host?db=1", "nothing may follow the database" },
    { "redis://secret@host", CREDENTIALS },
    { "redis://me:secret%4@host", CREDENTIALS },
    { "redis://me:secret%zz@host", CREDENTIALS },
    { "redis://me:secret%00@host", CREDENTIALS },
    { "redis+unix://", SOCKET },
    { "redis+unix://run/redis.sock", SOCKET },
    { "redis+unix:///s?db=", "only ?db=N may follow the path" },
    { "redis+unix:///s?db=x", "only ?db=N may follow the path" },
    { "redis+unix:///s?x=1", "only ?db=N may follow the path" },
};

static void what_is_wrong_is_said_in_one_line_without_the_password(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char line[400];
        struct redis_url url;
        struct err e = { 0 };
        if (redis_url_parse(bad[i].text, &url, &e)) fail_msg("%s was taken", bad[i].text);
        snprintf(line, sizeof line,
                 "REDIS_URL: %s; allowed is redis://[user:password@]host[:port][/db] or "
                 "redis+unix://[user:password@]/path[?db=N]",
                 bad[i].why);
        assert_int_equal(e.kind, ERR_INPUT);
        assert_string_equal(e.text, line);
        assert_null(strstr(e.text, "secret"));
    }
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    static const char *const shapes[] = { "redis://%s", "redis://:%s@host", "redis://%s:p@host", "redis+unix:///%s" };
    for (size_t i = 0; i < 4; i++) {
        char many[301], text[400];
        struct redis_url url;
        struct err e;
        memset(many, 'a', sizeof many);
        many[300] = '\0';
        snprintf(text, sizeof text, shapes[i], many);
        assert_false(redis_url_parse(text, &url, &e));
        many[100] = '\0';
        snprintf(text, sizeof text, shapes[i], many);
        assert_true(redis_url_parse(text, &url, &e));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_a_url_names_is_understood),
        cmocka_unit_test(what_is_wrong_is_said_in_one_line_without_the_password),
        cmocka_unit_test(what_does_not_fit_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
