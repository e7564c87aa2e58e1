/* What store_redis keeps in the session cache of what it reads and writes, and that it is never believed for more than
 * it is worth. All that a store must do holds with it as well. */
#include "store_redis.h"

#include "metrics.h"
#include "redis_server.h"
#include "session_cache.h"
#include "store_cases.h"
#include "task.h"

#include <ftw.h>
#include <pthread.h>
#include <unistd.h>

#define KEY "hyperpage:session:"

static struct redis_server server;
static struct session_cache *opened[8], *copies; /* `copies` is the first one */
static int open_count;
static _Atomic uint64_t counters[METRICS_COUNTERS];
static struct coordination *coherence; /* what a coordinator says of the copies: nothing, unless a test does */
static char dir[32];

static void *open_store(void)
{
    struct store_redis_options o = { .connection = { .timeout_ms = 5000, .client_name = "tested" },
                                     .most_events = 1000,
                                     .coherence = coherence };
    struct redis_address *at = &o.connection.url.servers[0];
    struct err e;
    snprintf(at->host, sizeof at->host, "%s", server.path);
    opened[open_count] = session_cache_open(dir, 4 << 20, &e); /* of its own: the caller may be another process */
    copies = opened[0];
    o.copies = opened[open_count++];
    return store_redis_open(&o);
}

static struct store_case shared = { .ops = &store_redis_ops, .open = open_store };

static int start(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/test_copies.XXXXXX");
    struct err e;
    if (mkdtemp(dir) == NULL || !redis_server_start(&server)) return 1;
    if ((coherence = coordination_open(dir, &e)) == NULL) return 1;
    coordination_begin(coherence);
    metrics_use(counters);
    shared.self = open_store();
    *state = &shared;
    return copies == NULL;
}

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *where)
{
    (void)st, (void)what, (void)where;
    return remove(path);
}

static int stop(void **state)
{
    (void)state;
    store_redis_ops.close(shared.self);
    coordination_close(coherence);
    while (open_count > 0) session_cache_close(opened[--open_count]);
    redis_server_done(&server);
    return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

/* --- what the tests ask --- */

static long long calls_of(const char *command)
{
    char text[64];
    snprintf(text, sizeof text, "cmdstat_%s:calls=", command);
    redisReply *info = redisCommand(server.admin, "INFO commandstats");
    const char *at = strstr(info->str, text);
    long long calls = at ? atoll(at + strlen(text)) : 0;
    freeReplyObject(info);
    return calls;
}

static void forget_calls(void)
{
    freeReplyObject(redisCommand(server.admin, "CONFIG RESETSTAT"));
}

/* As a pod of the original does it: nobody here hears of it. */
static void others_write(const char *id, const char *doc)
{
    redis_server_ask(&server, "SET " KEY "%s %s PX 50000", id, doc);
}

static bool copy_of(const char *id, struct buf *doc, struct session_copy *copy)
{
    buf_reset(doc);
    return session_cache_get(copies, id, doc, copy);
}

static void assert_copy(const char *id, const char *expected, int64_t life_ms)
{
    struct buf doc = BUF_INIT(1024);
    struct session_copy copy;
    assert_true(copy_of(id, &doc, &copy));
    assert_string_equal(buf_text(&doc), expected);
    assert_in_range(copy.expires_at_ms - clock_wall_ms(), life_ms - 5000, life_ms);
    buf_done(&doc);
}

static void assert_no_copy(const char *id)
{
    struct buf doc = BUF_INIT(1024);
    struct session_copy copy;
    assert_false(copy_of(id, &doc, &copy));
    buf_done(&doc);
}

/* --- the tests --- */

static void what_is_written_is_kept_and_what_ends_is_not(void **state)
{
    struct store_case *c = *state;
    char id[64], second[64];
    struct script s = SCRIPT(STORE_WRITE, "{\"n\":2}"), end = SCRIPT(STORE_DELETE, "");
    struct store_rotation rotation = { .new_id = "" };
    struct buf doc = BUF_INIT(1024);
    struct store_result res;
    struct err e;
    snprintf(id, sizeof id, "%s", new_id());
    snprintf(second, sizeof second, "%s", new_id());
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    assert_copy(id, "{\"n\":1}", LONG_MS);
    update_(c, id, follow_script, &s, 2 * LONG_MS);
    assert_copy(id, "{\"n\":2}", 2 * LONG_MS);
    must(c->ops->expire(c->self, id, 60000, false, soon(), &res, &e), &e);
    assert_copy(id, "{\"n\":2}", 60000);
    snprintf(rotation.new_id, sizeof rotation.new_id, "%s", second);
    must(c->ops->rotate(c->self, id, follow_script, &s, TERMS(LONG_MS), &rotation, soon(), &doc, &res, &e), &e);
    assert_no_copy(id);
    assert_copy(second, "{\"n\":2}", LONG_MS);
    update_(c, second, follow_script, &end, LONG_MS);
    assert_no_copy(second);
    snprintf(second, sizeof second, "%s", new_id());
    create_(c, second, BYTES_LITERAL("{}"), LONG_MS);
    delete_(c, second);
    assert_no_copy(second);
    buf_done(&s.seen);
    buf_done(&end.seen);
    buf_done(&doc);
}

static void the_life_is_asked_for_where_no_copy_says_it(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    others_write(id, "{\"n\":1}");
    forget_calls();
    assert_holds(c, id, BYTES_LITERAL("{\"n\":1}"));
    assert_int_equal(calls_of("evalsha"), 1);
    assert_copy(id, "{\"n\":1}", 50000);
    assert_holds(c, id, BYTES_LITERAL("{\"n\":1}"));
    assert_int_equal(calls_of("evalsha"), 1);
    assert_copy(id, "{\"n\":1}", 50000);
}

static void a_read_that_finds_another_document_makes_its_copy_anew(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    others_write(id, "{\"n\":2}");
    assert_holds(c, id, BYTES_LITERAL("{\"n\":2}"));
    assert_copy(id, "{\"n\":1}", LONG_MS); /* so soon it is not compared */
    clock_set(-1, clock_mono_ms() + 250);
    assert_holds(c, id, BYTES_LITERAL("{\"n\":2}"));
    assert_no_copy(id); /* how long it lives is not known */
    assert_holds(c, id, BYTES_LITERAL("{\"n\":2}"));
    assert_copy(id, "{\"n\":2}", 50000);
    clock_set(-1, -1);
}

static void a_read_that_finds_nothing_leaves_no_copy(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    redis_server_ask(&server, "DEL " KEY "%s", id);
    assert_false(is_there(c, id));
    assert_no_copy(id);
}

static void a_session_without_a_life_has_no_copy(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    redis_server_ask(&server, "SET " KEY "%s {}", id);
    assert_holds(c, id, BYTES_LITERAL("{}"));
    assert_no_copy(id);
}

static void an_update_is_based_on_the_copy_and_costs_one_round_trip(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{\"n\":2}");
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    forget_calls();
    assert_true(update_(c, id, follow_script, &s, LONG_MS).changed);
    assert_int_equal(calls_of("evalsha"), 1);
    assert_int_equal(calls_of("get"), 1); /* the script's */
    assert_holds(c, id, BYTES_LITERAL("{\"n\":2}"));
    buf_done(&s.seen);
}

static void an_update_of_an_old_copy_is_made_on_what_stands_in_redis(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{\"n\":3}");
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    others_write(id, "{\"n\":2}");
    assert_true(update_(c, id, follow_script, &s, LONG_MS).changed);
    assert_int_equal(s.calls, 2);
    assert_string_equal(buf_text(&s.seen), "{\"n\":2}");
    assert_holds(c, id, BYTES_LITERAL("{\"n\":3}"));
    assert_copy(id, "{\"n\":3}", LONG_MS);
    buf_done(&s.seen);
}

static void an_update_of_what_has_ended_in_redis_finds_nothing(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{\"n\":2}");
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    redis_server_ask(&server, "DEL " KEY "%s", id);
    assert_false(update_(c, id, follow_script, &s, LONG_MS).found);
    assert_no_copy(id);
    buf_done(&s.seen);
}

/* As an If-Match that fails: it may be the copy that is old. */
static void that_nothing_is_to_be_done_is_never_said_of_a_copy(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_KEEP, "");
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    others_write(id, "{\"n\":2}");
    update_(c, id, follow_script, &s, LONG_MS);
    assert_int_equal(s.calls, 2);
    assert_string_equal(buf_text(&s.seen), "{\"n\":2}");
    redis_server_ask(&server, "DEL " KEY "%s", id);
    assert_false(update_(c, id, follow_script, &s, LONG_MS).found);
    buf_done(&s.seen);
}

/* --- while the copies are known to be what Redis holds --- */

static int end_coherence(void **state)
{
    (void)state;
    coordination_new_generation(coherence);
    return 0;
}

static void be_coherent(void)
{
    session_cache_invalidate_all(copies);
    coordination_stamp(coherence, clock_mono_ms());
}

/* How often Redis is asked for it. */
static long long cost_of_reading(struct store_case *c, const char *id, const char *expected)
{
    forget_calls();
    assert_holds(c, id, bytes_of(expected));
    return calls_of("get") + calls_of("exists");
}

static void a_coherent_copy_is_the_answer(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    be_coherent();
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    assert_int_equal(cost_of_reading(c, id, "{\"n\":1}"), 0);
    assert_int_equal(atomic_load(&counters[METRIC_cache_hits_total]), 1);
    struct store_result res;
    struct buf doc = BUF_INIT(1024);
    struct err e;
    must(c->ops->get(c->self, id, 0, soon(), &doc, &res, &e), &e);
    assert_in_range(res.expires_at_ms - clock_wall_ms(), LONG_MS - 5000, LONG_MS);
    buf_done(&doc);
    coordination_new_generation(coherence);
    uint64_t misses = atomic_load(&counters[METRIC_cache_misses_total]);
    assert_int_equal(cost_of_reading(c, id, "{\"n\":1}"), 1);
    assert_int_equal(atomic_load(&counters[METRIC_cache_misses_total]), misses + 1);
}

static void a_stamp_that_is_too_old_proves_nothing(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    int64_t now_ms = clock_mono_ms();
    be_coherent();
    create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    coordination_stamp(coherence, now_ms);
    clock_set(-1, now_ms + COORDINATION_COHERENT_MS);
    assert_int_equal(cost_of_reading(c, id, "{}"), 0);
    clock_set(-1, now_ms + COORDINATION_COHERENT_MS + 1);
    assert_int_equal(cost_of_reading(c, id, "{}"), 1);
    clock_set(-1, -1);
}

static void a_copy_that_may_have_changed_is_read_anew_with_its_life(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    be_coherent();
    create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    redis_server_ask(&server, "PEXPIRE " KEY "%s 50000", id);
    session_cache_invalidate(copies, id);
    assert_int_equal(cost_of_reading(c, id, "{}"), 1);
    assert_copy(id, "{}", 50000);
    assert_int_equal(cost_of_reading(c, id, "{}"), 0);
    store_redis_doubt(c->self, id);
    assert_int_equal(cost_of_reading(c, id, "{}"), 1);
    assert_int_equal(cost_of_reading(c, id, "{}"), 0);
}

static void copies_from_before_the_proof_prove_nothing(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    others_write(id, "{\"n\":2}"); /* nobody listens */
    be_coherent();
    assert_int_equal(cost_of_reading(c, id, "{\"n\":2}"), 1);
    assert_int_equal(cost_of_reading(c, id, "{\"n\":2}"), 0);
}

static void a_read_that_prolongs_asks_redis_when_it_is_due(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct buf doc = BUF_INIT(1024);
    struct store_result res;
    struct err e;
    be_coherent();
    create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    forget_calls();
    must(c->ops->get(c->self, id, LONG_MS, soon(), &doc, &res, &e), &e);
    assert_int_equal(calls_of("get"), 0);
    must(c->ops->get(c->self, id, 2 * LONG_MS, soon(), &doc, &res, &e), &e);
    assert_int_equal(calls_of("get"), 1);
    assert_true(res.changed);
    assert_copy(id, "{}", 2 * LONG_MS);
    buf_done(&doc);
}

/* As the coordinator does when it hears of a write before the writer has its answer. */
static void *invalidate_meanwhile(void *id)
{
    struct err e;
    struct session_cache *coordinators = session_cache_open(dir, 4 << 20, &e);
    for (bool asked = false; !asked;) {
        redisReply *info = redisCommand(server.admin, "INFO clients");
        asked = strstr(info->str, "blocked_clients:1") != NULL;
        freeReplyObject(info);
    }
    session_cache_invalidate(coordinators, id);
    redis_server_ask(&server, "CLIENT UNPAUSE");
    session_cache_close(coordinators);
    return NULL;
}

static pthread_t hear_of_the_next_write(char *id)
{
    pthread_t thread;
    redis_server_ask(&server, "CLIENT PAUSE 60000 WRITE");
    assert_int_equal(pthread_create(&thread, NULL, invalidate_meanwhile, id), 0);
    return thread;
}

static void a_write_that_redis_tells_of_first_leaves_a_copy_to_go_on_from(void **state)
{
    struct store_case *c = *state;
    struct script s = SCRIPT(STORE_WRITE, "{\"n\":2}");
    char id[64];
    snprintf(id, sizeof id, "%s", new_id());
    be_coherent();
    pthread_t thread = hear_of_the_next_write(id);
    create_(c, id, BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    pthread_join(thread, NULL);
    assert_int_equal(cost_of_reading(c, id, "{\"n\":1}"), 0);
    thread = hear_of_the_next_write(id);
    assert_true(update_(c, id, follow_script, &s, LONG_MS).changed);
    pthread_join(thread, NULL);
    assert_copy(id, "{\"n\":2}", LONG_MS);
    assert_int_equal(cost_of_reading(c, id, "{\"n\":2}"), 1);
    assert_int_equal(cost_of_reading(c, id, "{\"n\":2}"), 0);
    buf_done(&s.seen);
}

/* In a task a read that finds another document than the copy has it read once more, with its life, and does not wait
 * for that. Whoever closes the store does. */
static void read_what_has_changed(void *arg)
{
    struct store_redis *sr = arg;
    struct store_result res;
    struct buf doc = BUF_INIT(1024);
    struct err e;
    must(store_redis_ops.get(sr, "changed", 0, soon(), &doc, &res, &e), &e);
    assert_string_equal(buf_text(&doc), "{\"n\":2}");
    assert_false(store_redis_is_idle(sr));
    while (!store_redis_is_idle(sr)) task_park(clock_mono_ms() + 1);
    assert_copy("changed", "{\"n\":2}", 50000);
    buf_done(&doc);
}

static void what_a_read_has_begun_beside_itself_is_told(void **state)
{
    struct store_case *c = *state;
    struct err e;
    struct pollset *pollset = pollset_new(&e);
    struct store_redis_options o = { .connection = { .timeout_ms = 5000, .client_name = "tested", .pollset = pollset },
                                     .copies = copies };
    snprintf(o.connection.url.servers[0].host, sizeof o.connection.url.servers[0].host, "%s", server.path);
    be_coherent();
    create_(c, "changed", BYTES_LITERAL("{\"n\":1}"), LONG_MS);
    others_write("changed", "{\"n\":2}");
    struct store_redis *sr = store_redis_open(&o);
    assert_true(store_redis_is_idle(sr));
    usleep(260000); /* until the copy is no fresh one any more */
    task_start(read_what_has_changed, sr);
    while (task_count() > 0) {
        task_expire(clock_mono_ms());
        task_run_ready();
        store_redis_ops.flush(sr);
        pollset_wait(pollset, 1);
    }
    store_redis_ops.close(sr);
    pollset_free(pollset);
    task_free_stacks(0);
}

#define COHERENT(name) cmocka_unit_test_teardown(name, end_coherence)
int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_CASES,
        cmocka_unit_test(what_is_written_is_kept_and_what_ends_is_not),
        cmocka_unit_test(the_life_is_asked_for_where_no_copy_says_it),
        cmocka_unit_test(a_read_that_finds_another_document_makes_its_copy_anew),
        cmocka_unit_test(a_read_that_finds_nothing_leaves_no_copy),
        cmocka_unit_test(a_session_without_a_life_has_no_copy),
        cmocka_unit_test(an_update_is_based_on_the_copy_and_costs_one_round_trip),
        cmocka_unit_test(an_update_of_an_old_copy_is_made_on_what_stands_in_redis),
        cmocka_unit_test(an_update_of_what_has_ended_in_redis_finds_nothing),
        cmocka_unit_test(that_nothing_is_to_be_done_is_never_said_of_a_copy),
        COHERENT(a_coherent_copy_is_the_answer),
        COHERENT(a_stamp_that_is_too_old_proves_nothing),
        COHERENT(a_copy_that_may_have_changed_is_read_anew_with_its_life),
        COHERENT(copies_from_before_the_proof_prove_nothing),
        COHERENT(a_read_that_prolongs_asks_redis_when_it_is_due),
        COHERENT(a_write_that_redis_tells_of_first_leaves_a_copy_to_go_on_from),
        COHERENT(what_a_read_has_begun_beside_itself_is_told),
    };
    return cmocka_run_group_tests(tests, start, stop);
}
