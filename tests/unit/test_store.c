#include "store.h"

#include "clock.h"
#include "redis_server.h"
#include "session_cache.h"

#include <ftw.h>

#define KEY     "hyperpage:session:"
#define LONG_MS 3600000
#define TERMS   (&(struct store_terms){ .ttl_ms = LONG_MS, .minted = true })

static struct redis_server server;
static struct config config;
static struct store *store;
static char dir[32], url[128];
static struct store_result res;
static struct err err;

/* --- a store of its own for each test, over one server --- */

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *where)
{
    (void)st, (void)what, (void)where;
    return remove(path);
}

static void reopen(void)
{
    store_close(store);
    store = store_open(&config, NULL, &err);
    if (store == NULL) print_error("%s\n", err.text);
    assert_non_null(store);
}

static int begin(void **state)
{
    (void)state;
    if (server.pid == 0 && !redis_server_start(&server)) return 1;
    freeReplyObject(redisCommand(server.admin, "FLUSHALL"));
    snprintf(dir, sizeof dir, "/tmp/test_store.XXXXXX");
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(url, sizeof url, "redis+unix://%s", server.path);
    config = (struct config){ .redis_url = url,
                              .redis_sentinel_password = "",
                              .redis_timeout_ms = 100,
                              .run_dir = dir,
                              .state_dir = dir,
                              .session_fallback_to_memory = true,
                              .session_refuge_max_age = 300,
                              .session_cache_bytes = 1 << 20,
                              .session_events_max = 100 };
    reopen();
    return 0;
}

static int end(void **state)
{
    (void)state;
    clock_set(-1, -1);
    if (server.pid != 0) kill(server.pid, SIGCONT);
    store_close(store);
    store = NULL;
    return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static int stop_server(void **state)
{
    (void)state;
    redis_server_done(&server);
    return 0;
}

/* --- operations --- */

static int64_t soon(void)
{
    return clock_mono_ms() + 5000;
}

static void must(bool ok)
{
    if (!ok) print_error("%s\n", err.text);
    assert_true(ok);
}

static void create(const char *id, const char *doc)
{
    must(store_create(store, id, bytes_of(doc), TERMS, soon(), &res, &err));
    assert_true(res.changed);
}

static enum store_verdict write_text(void *ctx, struct bytes doc, struct buf *out)
{
    (void)doc;
    buf_puts(out, ctx);
    return STORE_WRITE;
}

static bool update(const char *id, const char *doc)
{
    return store_update(store, id, write_text, (char *)(uintptr_t)doc, TERMS, soon(), &res, &err);
}

static void assert_session(const char *id, const char *doc)
{
    struct buf read = BUF_INIT(1024);
    must(store_get(store, id, 0, soon(), &read, &res, &err));
    assert_true(res.found);
    assert_string_equal(buf_text(&read), doc);
    buf_done(&read);
}

static void assert_absent(const char *id)
{
    struct buf read = BUF_INIT(1024);
    must(store_get(store, id, 0, soon(), &read, &res, &err));
    assert_false(res.found);
}

/* Nobody here can say whether there is such a session. */
static void assert_unknown(const char *id)
{
    struct buf read = BUF_INIT(1024);
    assert_false(store_get(store, id, 0, soon(), &read, &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(update(id, "{}"));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(store_delete(store, id, soon(), &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(store_expire(store, id, "", 1000, false, soon(), &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
}

static void assert_redis(const char *id, const char *doc)
{
    redisReply *reply = redisCommand(server.admin, "GET " KEY "%s", id);
    if (doc == NULL)
        assert_int_equal(reply->type, REDIS_REPLY_NIL);
    else
        assert_string_equal(reply->str, doc);
    freeReplyObject(reply);
}

/* Redis is silent; what it is sent meanwhile it does when it goes on. */
static void redis_stops(void)
{
    kill(server.pid, SIGSTOP);
}

/* And the node knows: it sends nothing more. */
static void redis_stops_and_is_missed(void)
{
    struct buf read = BUF_INIT(1024);
    redis_stops();
    assert_false(store_get(store, "nobody's", 0, soon(), &read, &res, &err));
    assert_true(store_in_refuge(store));
}

static void redis_goes_on(void)
{
    kill(server.pid, SIGCONT);
}

static void keep_house(void)
{
    bool more;
    must(store_housekeep(store, &more, &err));
}

static void redis_is_found(void)
{
    int64_t give_up_ms = soon();
    while (store_in_refuge(store)) {
        assert_true(clock_mono_ms() < give_up_ms);
        keep_house();
    }
}

/* The step that finds Redis brings nothing back yet. */
static void all_is_back(void)
{
    bool more = true;
    redis_is_found();
    while (more) must(store_housekeep(store, &more, &err));
}

/* --- the tests --- */

static void what_the_node_knows_goes_on_while_redis_is_away(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    create("b", "{\"n\":1}");
    redis_stops();
    assert_session("a", "{\"n\":1}");
    assert_true(store_in_refuge(store));
    assert_string_equal(store_name(store), "refuge");
    must(update("a", "{\"n\":2}"));
    assert_true(res.found && res.changed);
    assert_session("a", "{\"n\":2}");
    create("c", "{\"n\":3}");
    assert_session("c", "{\"n\":3}");
    must(store_delete(store, "b", soon(), &res, &err));
    assert_true(res.found && res.changed);
    assert_absent("b");
    must(update("b", "{}"));
    assert_false(res.found);
    assert_unknown("never seen");
    assert_false(store_check(store, STORE_REDIS, soon(), &err));
    must(store_check(store, STORE_EMBEDDED, soon(), &err));

    redis_goes_on();
    all_is_back();
    assert_string_equal(store_name(store), "redis");
    assert_redis("a", "{\"n\":2}");
    assert_redis("b", NULL);
    assert_redis("c", "{\"n\":3}");
    assert_absent("b");
    assert_absent("never seen");
}

static void another_process_of_the_node_knows_the_same(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    struct store *first = store;
    redis_stops();
    store = store_open(&config, NULL, &err);
    assert_non_null(store);
    must(update("a", "{\"n\":2}"));
    struct store *second = store;
    store = first;
    assert_true(store_in_refuge(store)); /* without having asked Redis */
    assert_session("a", "{\"n\":2}");
    store_close(second);
    redis_goes_on();
    all_is_back();
    assert_redis("a", "{\"n\":2}");
}

static void a_request_brings_its_session_back_before_it_asks_redis(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    redis_stops_and_is_missed();
    must(update("a", "{\"n\":2}"));
    redis_goes_on();
    redis_is_found();
    assert_redis("a", "{\"n\":1}");
    assert_session("a", "{\"n\":2}");
    assert_redis("a", "{\"n\":2}");
    must(update("a", "{\"n\":3}"));
    assert_redis("a", "{\"n\":3}");
}

static void what_others_wrote_meanwhile_is_merged(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    redis_stops_and_is_missed();
    must(update("a", "{\"n\":1,\"m\":1}"));
    redis_goes_on();
    redis_server_ask(&server, "SET " KEY "a %s KEEPTTL", "{\"n\":2}");
    all_is_back();
    assert_redis("a", "{\"n\":2,\"m\":1}");
    assert_session("a", "{\"n\":2,\"m\":1}");
}

static void a_copy_that_was_old_when_the_outage_began_is_not_served(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    int64_t now_ms = clock_mono_ms();
    clock_set(-1, now_ms + 301000);
    create("b", "{\"n\":1}");
    redis_server_kill(&server);
    assert_unknown("a");
    assert_session("b", "{\"n\":1}");
    clock_set(-1, now_ms + 900000); /* it does not get older in the outage: nobody could learn better */
    assert_session("b", "{\"n\":1}");
}

static void a_session_that_has_expired_here_does_not_show_its_older_copy(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    redis_stops();
    must(store_expire(store, "a", "", 1000, false, soon(), &res, &err));
    clock_set(clock_wall_ms() + 2000, -1);
    struct buf read = BUF_INIT(1024);
    assert_false(store_get(store, "a", 0, soon(), &read, &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE); /* elsewhere it may live longer */
    assert_false(update("a", "{}"));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    must(store_delete(store, "a", soon(), &res, &err));
    assert_absent("a");
}

static void a_session_of_which_the_node_has_no_copy_is_unknown(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    redis_server_ask(&server, "SET " KEY "b {} PX 100000");
    must(store_delete(store, "a", soon(), &res, &err));
    redis_stops();
    assert_unknown("a"); /* another node may know why */
    assert_unknown("b");
}

/* A creation that Redis has not answered may be made at any time: after the session it was meant to be was deleted. */
static void a_creation_that_redis_makes_late_brings_nothing_back(void **state)
{
    (void)state;
    char id[IDS_TEXT_BYTES];
    create("a", "{\"n\":1}");
    redis_stops();
    must(store_create_new(store, id, BYTES_LITERAL("{\"new\":1}"), TERMS, soon(), &res, &err));
    assert_true(store_in_refuge(store));
    assert_session(id, "{\"new\":1}");
    must(store_delete(store, id, soon(), &res, &err));
    assert_true(res.changed);
    must(store_create_new(store, id, BYTES_LITERAL("{\"new\":2}"), TERMS, soon(), &res, &err));
    redis_goes_on();
    all_is_back();
    assert_redis("a", "{\"n\":1}");
    assert_redis(id, "{\"new\":2}");
    assert_int_equal(redis_server_ask(&server, "EVAL %s 0", "return #redis.call('KEYS', '" KEY "*')"), 2);
}

static void what_needs_all_nodes_has_to_wait(void **state)
{
    (void)state;
    struct store_rotation rotation = { .new_id = "new" };
    struct store_terms strict = { .ttl_ms = LONG_MS, .strict = true }, chosen = { .ttl_ms = LONG_MS };
    struct store_heal heal = { 0 };
    struct buf doc = BUF_INIT(1024);
    create("a", "{\"n\":1}");
    redis_stops();
    assert_false(store_rotate(store, "a", write_text, "{}", TERMS, &rotation, soon(), &doc, &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(store_update(store, "a", write_text, "{}", &strict, soon(), &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(store_create(store, "chosen", BYTES_LITERAL("{}"), &chosen, soon(), &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(store_list(store, "u", soon(), NULL, NULL, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(store_heal(store, &heal, soon(), &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    redis_goes_on();
    all_is_back();
    assert_redis("chosen", NULL);
    assert_true(redis_server_ask(&server, "EXISTS " KEY "a " KEY "new") >= 1);
}

static void without_a_refuge_nothing_is_answered_until_redis_is_back(void **state)
{
    (void)state;
    config.session_fallback_to_memory = false;
    reopen();
    create("a", "{\"n\":1}");
    redis_stops();
    assert_unknown("a");
    assert_false(store_create(store, "b", BYTES_LITERAL("{}"), TERMS, soon(), &res, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(store_uses(store, STORE_EMBEDDED));
    assert_false(store_check(store, STORE_REDIS, soon(), &err));
    assert_false(store_in_refuge(store));
    redis_goes_on();
    int64_t give_up_ms = soon();
    struct buf read = BUF_INIT(1024);
    while (!store_get(store, "b", 0, soon(), &read, &res, &err)) {
        assert_true(clock_mono_ms() < give_up_ms);
        keep_house();
    }
    must(store_check(store, STORE_REDIS, soon(), &err));
}

/* Redis without its data: what was changed in the outage is restored, what was not is gone. */
static void a_redis_that_has_lost_its_data_gets_back_what_was_changed(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    create("b", "{\"n\":1}");
    keep_house(); /* has seen which data it is */
    redis_server_kill(&server);
    must(update("a", "{\"n\":2}"));
    assert_true(redis_server_start(&server));
    all_is_back();
    assert_redis("a", "{\"n\":2}");
    assert_redis("b", NULL);
    assert_absent("b");
}

static void what_was_not_back_when_all_processes_ended_goes_back_later(void **state)
{
    (void)state;
    create("a", "{\"n\":1}");
    redis_stops_and_is_missed();
    must(update("a", "{\"n\":2}"));
    store_close(store);
    store = NULL;
    char path[64];
    const char *of_run_dir[] = { "breaker", "session_cache", "session_cache-1" };
    for (size_t i = 0; i < sizeof of_run_dir / sizeof of_run_dir[0]; i++) { /* the machine starts anew */
        snprintf(path, sizeof path, "%s/%s", dir, of_run_dir[i]);
        assert_int_equal(unlink(path), 0);
    }
    redis_goes_on();
    reopen();
    assert_session("a", "{\"n\":2}");
    assert_redis("a", "{\"n\":2}");
}

static void sessions_of_the_embedded_store_move_to_redis(void **state)
{
    (void)state;
    config.redis_url = "";
    reopen();
    create("a", "{\"n\":1}");
    config.redis_url = url;
    reopen();
    assert_session("a", "{\"n\":1}");
    assert_redis("a", "{\"n\":1}");
}

static void a_session_that_redis_corrupted_meanwhile_is_kept_on_both_sides(void **state)
{
    (void)state;
    struct buf read = BUF_INIT(1024);
    create("a", "{\"n\":1}");
    redis_stops_and_is_missed();
    must(update("a", "{\"n\":2}"));
    redis_goes_on();
    redis_server_ask(&server, "SET " KEY "a no-json KEEPTTL");
    all_is_back();
    assert_false(store_get(store, "a", 0, soon(), &read, &res, &err));
    assert_int_equal(err.kind, ERR_CORRUPT);
    assert_redis("a", "no-json");
    redis_server_ask(&server, "SET " KEY "a %s", "{\"n\":1}"); /* an operator mends it */
    assert_session("a", "{\"n\":2}");
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, begin, end)
int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(what_the_node_knows_goes_on_while_redis_is_away),
        CASE(another_process_of_the_node_knows_the_same),
        CASE(a_request_brings_its_session_back_before_it_asks_redis),
        CASE(what_others_wrote_meanwhile_is_merged),
        CASE(a_copy_that_was_old_when_the_outage_began_is_not_served),
        CASE(a_session_that_has_expired_here_does_not_show_its_older_copy),
        CASE(a_session_of_which_the_node_has_no_copy_is_unknown),
        CASE(a_creation_that_redis_makes_late_brings_nothing_back),
        CASE(what_needs_all_nodes_has_to_wait),
        CASE(without_a_refuge_nothing_is_answered_until_redis_is_back),
        CASE(a_redis_that_has_lost_its_data_gets_back_what_was_changed),
        CASE(what_was_not_back_when_all_processes_ended_goes_back_later),
        CASE(sessions_of_the_embedded_store_move_to_redis),
        CASE(a_session_that_redis_corrupted_meanwhile_is_kept_on_both_sides),
    };
    return cmocka_run_group_tests(tests, NULL, stop_server);
}
