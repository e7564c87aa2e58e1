#include "redis_slots.h"

#include "mem.h"
#include "redis_error.h"
#include "test.h"

static const struct redis_address asked = { "10.0.0.9", 7000 };

/* A reply from its RESP form; the caller's. */
static redisReply *reply_of(const char *resp)
{
    void *reply = NULL;
    redisReader *reader = redisReaderCreate();
    redisReaderFeed(reader, resp, strlen(resp));
    assert_int_equal(redisReaderGetReply(reader, &reply), REDIS_OK);
    assert_non_null(reply);
    redisReaderFree(reader);
    return reply;
}

static void a_slot_is_that_of_the_key_or_of_its_hash_tag(void **state)
{
    (void)state;
    static const struct {
        const char *key;
        uint16_t slot; /* as CLUSTER KEYSLOT of Redis 7.0 says */
    } keys[] = {
        { "", 0 },
        { "123456789", 12739 },
        { "foo", 12182 },
        { "{foo}.bar", 12182 },
        { "x{foo}{bar}", 12182 },
        { "{}foo", 9500 },
        { "{", 4092 },
        { "foo{", 7673 },
        { "}{foo", 3840 },
        { "{{foo}}", 13308 },
        { "hyperpage:session:a", 6583 },
        { "hyperpage:gone:{hyperpage:session:a}", 6583 },
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        assert_int_equal(redis_slot_of(bytes_of(keys[i].key)), keys[i].slot);
    assert_int_equal(redis_slot_of((struct bytes){ "{a\0b}", 5 }), redis_slot_of((struct bytes){ "a\0b", 3 }));
}

static void a_map_says_who_has_each_slot(void **state)
{
    (void)state;
    struct redis_slots *map = mem_alloc(sizeof *map);
    struct err e;
    redisReply *reply = reply_of(
        "*4\r\n"
        "*4\r\n:0\r\n:99\r\n*3\r\n$8\r\n10.0.0.1\r\n:7001\r\n$2\r\nid\r\n*3\r\n$8\r\n10.0.0.5\r\n:7005\r\n$2\r\nid\r\n"
        "*3\r\n:100\r\n:199\r\n*4\r\n$-1\r\n:7002\r\n$2\r\nid\r\n*0\r\n"
        "*3\r\n:300\r\n:300\r\n*2\r\n$0\r\n\r\n:7003\r\n"
        "*3\r\n:16383\r\n:16383\r\n*2\r\n$8\r\n10.0.0.1\r\n:7001\r\n");
    assert_true(redis_slots_read(reply, &asked, map, &e));
    assert_int_equal(map->count, 3);
    assert_string_equal(map->primaries[map->owner[0]].host, "10.0.0.1");
    assert_int_equal(map->primaries[map->owner[99]].port, 7001);
    assert_string_equal(map->primaries[map->owner[100]].host, "10.0.0.9"); /* does not know its name: who was asked */
    assert_int_equal(map->primaries[map->owner[199]].port, 7002);
    assert_string_equal(map->primaries[map->owner[300]].host, "10.0.0.9");
    assert_int_equal(map->owner[200], -1);
    assert_int_equal(map->owner[16382], -1);
    assert_int_equal(map->owner[16383], map->owner[0]);
    redis_slots_move(map, 200, &(struct redis_address){ "10.0.0.7", 1 });
    redis_slots_move(map, 0, &(struct redis_address){ "10.0.0.9", 7002 });
    assert_int_equal(map->count, 4);
    assert_string_equal(map->primaries[map->owner[200]].host, "10.0.0.7");
    assert_int_equal(map->owner[0], map->owner[100]);
    freeReplyObject(reply);
    redis_slots_done(map);
    free(map);
}

static void what_is_no_map_is_refused(void **state)
{
    (void)state;
    static const char *const replies[] = {
        "*0\r\n",
        "+OK\r\n",
        "*1\r\n:0\r\n",
        "*1\r\n*2\r\n:0\r\n:1\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*1\r\n$1\r\na\r\n",
        "*1\r\n*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\na\r\n:1\r\n",
        "*1\r\n*3\r\n:-1\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n",
        "*1\r\n*3\r\n$1\r\n0\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n:0\r\n",
        "*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n:1\r\n:1\r\n",
        "*2\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\na\r\n:1\r\n+x\r\n", /* begins well */
    };
    struct redis_slots *map = mem_alloc(sizeof *map);
    for (size_t i = 0; i < sizeof replies / sizeof replies[0]; i++) {
        struct err e = { 0 };
        redisReply *reply = reply_of(replies[i]);
        if (redis_slots_read(reply, &asked, map, &e)) fail_msg("was taken: %s", replies[i]);
        assert_true(e.away);
        freeReplyObject(reply);
    }
    free(map);
}

static void a_redirection_names_a_server(void **state)
{
    (void)state;
    static const struct {
        const char *text, *host;
        int port;
    } good[] = {
        { "MOVED 3999 127.0.0.1:6381", "127.0.0.1", 6381 },
        { "ASK 3999 node-3.example.org:1", "node-3.example.org", 1 },
        { "MOVED 3999 2001:db8::1:6381", "2001:db8::1", 6381 },
        { "MOVED 3999 :6381", "10.0.0.9", 6381 },
        { "MOVED 3999 ?:6381", "10.0.0.9", 6381 },
    };
    static const char *const bad[] = { "MOVED",
                                       "MOVED 3999",
                                       "MOVED 3999 host",
                                       "MOVED 3999 host:",
                                       "MOVED 3999 host:0",
                                       "MOVED 3999 host:65536",
                                       "MOVED 3999 host:x" };
    struct redis_address to;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        assert_true(redis_slots_redirection(good[i].text, &asked, &to));
        assert_string_equal(to.host, good[i].host);
        assert_int_equal(to.port, good[i].port);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (redis_slots_redirection(bad[i], &asked, &to)) fail_msg("was taken: %s", bad[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slot_is_that_of_the_key_or_of_its_hash_tag),
        cmocka_unit_test(a_map_says_who_has_each_slot),
        cmocka_unit_test(what_is_no_map_is_refused),
        cmocka_unit_test(a_redirection_names_a_server),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
