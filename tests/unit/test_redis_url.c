#include "redis_url.h"

#include "test.h"

#include <stdio.h>
#include <string.h>

#define SERVER(...) .servers = { { __VA_ARGS__ } }, .server_count = 1

static const struct {
    const char *text;
    struct redis_url url;
} good[] = {
    { "redis://localhost", { SERVER("localhost", 6379) } },
    { "redis://localhost/", { SERVER("localhost", 6379) } },
    { "redis://10.0.0.1:6380/15", { SERVER("10.0.0.1", 6380), .db = 15 } },
    { "redis://host:65535/9999", { SERVER("host", 65535), .db = 9999 } },
    { "redis://[::1]:6380/1", { SERVER("::1", 6380), .db = 1 } },
    { "redis://[fe80::1%25eth0]", { SERVER("fe80::1%eth0", 6379) } },
    { "redis://:secret@host", { SERVER("host", 6379), .password = "secret" } },
    { "redis://me:secret@host:1/2", { SERVER("host", 1), .user = "me", .password = "secret", .db = 2 } },
    { "redis://m%65:p%40%2f%3A%25@host", { SERVER("host", 6379), .user = "me", .password = "p@/:%" } },
    { "redis://me:a@b:c@host", { SERVER("host", 6379), .user = "me", .password = "a@b:c" } },
    { "redis://me:@host", { SERVER("host", 6379), .user = "me" } },
    { "redis+unix:///run/redis.sock", { SERVER("/run/redis.sock", 0) } },
    { "redis+unix:///run/redis.sock?db=3", { SERVER("/run/redis.sock", 0), .db = 3 } },
    { "redis+unix://me:secret@/run/redis.sock", { SERVER("/run/redis.sock", 0), .user = "me", .password = "secret" } },
    { "redis-sentinel://a/main", { REDIS_SENTINEL, SERVER("a", 26379), .primary = "main" } },
    { "redis-sentinel://me:a,b@[::1]:1,b,10.0.0.1:65535/m%41in/7",
      { REDIS_SENTINEL, .servers = { { "::1", 1 }, { "b", 26379 }, { "10.0.0.1", 65535 } }, .server_count = 3,
        .primary = "mAin", .user = "me", .password = "a,b", .db = 7 } },
    { "redis-cluster://a", { REDIS_CLUSTER, SERVER("a", 6379) } },
    { "redis-cluster://a/0", { REDIS_CLUSTER, SERVER("a", 6379) } },
    { "redis-cluster://:secret@a:1,[2001:db8::1],c:3/",
      { REDIS_CLUSTER, .servers = { { "a", 1 }, { "2001:db8::1", 6379 }, { "c", 3 } }, .server_count = 3,
        .password = "secret" } },
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
        assert_int_equal(url.topology, expected->topology);
        assert_int_equal(url.server_count, expected->server_count);
        for (size_t n = 0; n < url.server_count; n++) {
            assert_string_equal(url.servers[n].host, expected->servers[n].host);
            assert_int_equal(url.servers[n].port, expected->servers[n].port);
        }
        assert_string_equal(url.primary, expected->primary);
        assert_string_equal(url.user, expected->user);
        assert_string_equal(url.password, expected->password);
        assert_int_equal(url.db, expected->db);
    }
}

#define FORM        "; the form is "
#define TCP         FORM "redis://[user:password@]host[:port][/db]"
#define UNIX        FORM "redis+unix://[user:password@]/path[?db=N]"
#define SENTINELS   FORM "redis-sentinel://[user:password@]host[:port],.../PRIMARY[/db]"
#define CLUSTER     FORM "redis-cluster://[user:password@]host[:port],..."
#define SCHEME      "the scheme is not known; there are redis://, redis+unix://, redis-sentinel:// and redis-cluster://"
#define CREDENTIALS "user:password@ is not right"
#define HOST        "the host is missing"
#define PORT        "the port is not 1 to 65535"
#define DATABASE    "the database is not a number"
#define BEHIND      "nothing may follow the database"
#define SOCKET      "the socket's path must be absolute, under 108 bytes"
#define PRIMARY     "the primary's name is missing"

static const struct {
    const char *text, *why;
} bad[] = {
    { "", SCHEME },
    { "localhost:6379", SCHEME },
    { "redis:/host", SCHEME },
    { "REDIS://host", SCHEME },
    { "http://host", SCHEME },
    { "rediss://host", "TLS is not in the hiredis this was built with; use a local stunnel" TCP },
    { "redis://", HOST TCP },
    { "redis://:6379", HOST TCP },
    { "redis://:secret@", HOST TCP },
    { "redis://[]", HOST TCP },
    { "redis://[::1", "the host's ] is missing" TCP },
    { "redis://[::1]x", BEHIND TCP },
    { "redis://a,b", BEHIND TCP },
    { "redis://host:", PORT TCP },
    { "redis://host:0", PORT TCP },
    { "redis://host:65536", PORT TCP },
    { "redis://host:-1", PORT TCP },
    { "redis://host:6379x", PORT TCP },
    { "redis://host:99999999999999999999", PORT TCP },
    { "redis://host/x", DATABASE TCP },
    { "redis://host/-1", DATABASE TCP },
    { "redis://host/10000", DATABASE TCP },
    { "redis://host/1/", DATABASE TCP },
    { "redis://host/1?x", DATABASE TCP },
    { "redis://host?db=1", BEHIND TCP },
    { "redis://secret@host", CREDENTIALS TCP },
    { "redis://me:secret%4@host", CREDENTIALS TCP },
    { "redis://me:secret%zz@host", CREDENTIALS TCP },
    { "redis://me:secret%00@host", CREDENTIALS TCP },
    { "redis+unix://", SOCKET UNIX },
    { "redis+unix://run/redis.sock", SOCKET UNIX },
    { "redis+unix:///s?db=", "only ?db=N may follow the path" UNIX },
    { "redis+unix:///s?db=x", "only ?db=N may follow the path" UNIX },
    { "redis+unix:///s?x=1", "only ?db=N may follow the path" UNIX },
    { "redis-sentinel://a,b", PRIMARY SENTINELS },
    { "redis-sentinel://a,b/", PRIMARY SENTINELS },
    { "redis-sentinel://a,b//3", PRIMARY SENTINELS },
    { "redis-sentinel://a/main/x", DATABASE SENTINELS },
    { "redis-sentinel://a/main?db=1", BEHIND SENTINELS },
    { "redis-sentinel:///main", HOST SENTINELS },
    { "redis-sentinel://a,/main", HOST SENTINELS },
    { "redis-sentinel://a:0,b/main", PORT SENTINELS },
    { "redis-sentinel://secret@a/main", CREDENTIALS SENTINELS },
    { "redis-cluster://", HOST CLUSTER },
    { "redis-cluster://a,,b", HOST CLUSTER },
    { "redis-cluster://a:1,b:x", PORT CLUSTER },
    { "redis-cluster://a/1", "a cluster has only database 0" CLUSTER },
    { "redis-cluster://a/main", DATABASE CLUSTER },
    { "redis-cluster://a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q", "more than 16 servers" CLUSTER },
};

static void what_is_wrong_is_said_in_one_line_without_the_password(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char line[400];
        struct redis_url url;
        struct err e = { 0 };
        if (redis_url_parse(bad[i].text, &url, &e)) fail_msg("%s was taken", bad[i].text);
        snprintf(line, sizeof line, "REDIS_URL: %s", bad[i].why);
        assert_int_equal(e.kind, ERR_INPUT);
        assert_string_equal(e.text, line);
        assert_null(strstr(e.text, "secret"));
    }
}

static void what_does_not_fit_is_refused(void **state)
{
    (void)state;
    static const char *const shapes[] = { "redis://%s", "redis://:%s@host", "redis://%s:p@host", "redis+unix:///%s",
                                          "redis-sentinel://host/%s" };
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
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
