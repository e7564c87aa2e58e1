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

static void the_other_primaries_are_known_with_slots_or_without(void **state)
{
    (void)state;
    static const char text[] =
        "07c37dfeb235213a872192d90877d0cd55635b91 10.0.0.2:30004@31004 slave e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca "
        "0 1 4 "
        "connected\n"
        "67ed2db8d677e59ec4a4cefb06858cf2a1a89fa1 10.0.0.3:30002@31002,host-3 master - 0 1426238316232 2 connected "
        "5461-10922 [93-<-292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f]\n"
        "292f8b365bb7edb5e285caf0b7e6ddc7265d2f4f 2001:db8::1:30003@31003,,shard-id=ab master - 0 1 3 connected\n"
        "6ec23923021cf3ffec47632106199cb7f496ce01 10.0.0.5:30005@31005 master,fail? - 0 1 5 disconnected 10923-16383\n"
        "824fe116063bc5fcf9f4ffd895bc17aee7731ac3 10.0.0.6:30006 master,fail - 0 1 6 disconnected\n"
        "a 10.0.0.7:30007@31007 handshake,master - 0 0 0 connected\n"
        "b :0@0 master,noaddr - 1 1 7 disconnected\n"
        "c :30009@31009 master - 1 1 7 connected\n"
        "d 10.0.0.8:@1 master - 1 1 7 connected\n"
        "e 10.0.0.8:70000@1 master - 1 1 7 connected\n"
        "\n"
        "f\n"
        "e7d1eecce10fd6bb5eb35b9f99a514335d9ba9ca 10.0.0.1:30001@31001 myself,master - 0 0 1 connected 0-5460";
    struct redis_node *list;
    assert_int_equal(redis_slots_others(BYTES_LITERAL(text), &list), 3);
    assert_string_equal(list[0].address.host, "10.0.0.3");
    assert_int_equal(list[0].address.port, 30002);
    assert_string_equal(list[0].name.host, "host-3");
    assert_int_equal(list[0].name.port, 30002);
    assert_string_equal(list[1].address.host, "2001:db8::1");
    assert_int_equal(list[1].address.port, 30003);
    assert_string_equal(list[1].name.host, "");
    assert_string_equal(list[2].address.host, "10.0.0.5");
    free(list);
    assert_int_equal(redis_slots_others(BYTES_LITERAL(""), &list), 0);
    assert_null(list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slot_is_that_of_the_key_or_of_its_hash_tag),
        cmocka_unit_test(a_map_says_who_has_each_slot),
        cmocka_unit_test(what_is_no_map_is_refused),
        cmocka_unit_test(a_redirection_names_a_server),
        cmocka_unit_test(the_other_primaries_are_known_with_slots_or_without),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
