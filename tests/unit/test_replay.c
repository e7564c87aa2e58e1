#include "replay_cases.h"
#include "twice.h"

#include <sys/wait.h>

static void round_ends(void)
{
    store_embedded_ops.flush(embedded);
    if (redis != NULL) redis_flush(redis);
    if (!task_any_ready()) pollset_wait(pollset, 10);
}

static uint64_t counted(enum metric m)
{
    return atomic_load(&counters[m]);
}

static bool in_redis(const char *id)
{
    return redis_server_ask(&server, "EXISTS " KEY "%s", id) == 1;
}

static void assert_gone(const char *id)
{
    assert_false(in_redis(id));
    assert_in_range(redis_server_ask(&server, "PTTL " GONE_MARK, id), 86400000 - 60000, 86400000);
}

/* ---- What Redis holds, and what becomes of it -------------------------------------------------------------------- */

static void what_still_is_as_the_row_was_based_on_takes_the_rows_document(void)
{
    set_redis("a", "{\"n\":1}");
    update_("a", "{\"n\":1}", "{\"n\":2}");
    one("a");
    assert_redis("a", "{\"n\":2}");
    assert_int_equal(rows_now(), 0);
    assert_string_equal(changed_id, "a");
    assert_string_equal(changed_doc, "{\"n\":2}");
    assert_int_equal(counted(METRIC_sessions_replayed_total), 1);
    assert_int_equal(counted(METRIC_replay_conflicts_total), 0);
    assert_in_range(redis_server_ask(&server, "PTTL " APPLIED_MARK, "a"), 86400000 - 60000, 86400000);
}

static void an_id_without_a_row_is_no_work(void)
{
    bool more = true;
    one("a");
    must(replay_step(replay, 3, soon(), &more, &err));
    assert_false(more);
    assert_int_equal(redis_server_ask(&server, "DBSIZE"), 0);
}

static void a_session_that_was_born_here_appears_with_its_life(void)
{
    create_("a", "{\"n\":1}");
    one("a");
    assert_redis("a", "{\"n\":1}");
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "a"), LONG_MS - 60000, LONG_MS);
}

static void a_life_is_prolonged_and_never_shortened(void)
{
    set_redis("a", "{}");
    redis_server_ask(&server, "PEXPIRE " KEY "a %d", 3 * LONG_MS);
    update_("a", "{}", "{\"n\":1}");
    one("a");
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "a"), 3 * LONG_MS - 60000, 3 * LONG_MS);
    set_redis("b", "{}");
    redis_server_ask(&server, "PEXPIRE " KEY "b 60000");
    update_("b", "{}", "{\"n\":1}");
    one("b");
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "b"), LONG_MS - 60000, LONG_MS);
}

static void what_others_wrote_is_merged(void)
{
    set_redis("a", "{\"m\":1,\"n\":0,\"x\":1}");
    update_("a", "{\"m\":0,\"n\":0}", "{\"m\":0,\"n\":1}");
    one("a");
    assert_redis("a", "{\"m\":1,\"n\":1,\"x\":1}");
    assert_string_equal(changed_doc, "{\"m\":1,\"n\":1,\"x\":1}");
    assert_int_equal(counted(METRIC_replay_conflicts_total), 0);

    set_redis("b", "{\"m\":3,\"n\":0}"); /* its turn to have been used by nobody later: theirs wins */
    update_("b", "{\"m\":0,\"n\":0}", "{\"m\":2,\"n\":1}");
    one("b");
    assert_redis("b", "{\"m\":3,\"n\":1}");
    assert_int_equal(counted(METRIC_replay_conflicts_total), 1);
}

static void an_id_that_was_born_twice_is_merged(void)
{
    set_redis("a", "{\"m\":1}");
    create_("a", "{\"n\":1}");
    one("a");
    assert_redis("a", "{\"m\":1,\"n\":1}");
    create_("b", "{\"n\":1}"); /* its own creation, timed out and executed later */
    set_redis("b", "{\"n\":1}");
    one("b");
    assert_redis("b", "{\"n\":1}");
    assert_int_equal(counted(METRIC_replay_conflicts_total), 0);
}

static void a_session_that_has_ended_in_redis_stays_ended(void)
{
    redis_server_ask(&server, "SET " EPOCH_KEY " e1");
    bool lost;
    must(replay_check_epoch(replay, soon(), &lost, &err));
    assert_false(lost);
    update_("a", "{\"n\":1}", "{\"n\":2}"); /* expired or deleted by a node that leaves no mark */
    create_("b", "{}");
    redis_server_ask(&server, "SET " GONE_MARK " -", "b");
    all();
    assert_false(in_redis("a"));
    assert_false(in_redis("b"));
    assert_int_equal(rows_now(), 0);
    assert_int_equal(counted(METRIC_replay_dropped_total), 2);
    assert_int_equal(counted(METRIC_sessions_replayed_total), 0);
}

static void what_redis_has_lost_is_restored_but_for_what_was_deleted(void)
{
    bool lost;
    must(replay_check_epoch(replay, soon(), &lost, &err));
    assert_false(lost); /* the first time, there is nothing to compare with */
    update_("a", "{\"n\":1}", "{\"n\":2}");
    update_("b", "{\"n\":1}", "{\"n\":2}");
    update_("c", "{\"n\":1}", "{\"n\":2}");
    redis_server_ask(&server, "DEL " EPOCH_KEY);
    one("a"); /* the first to see it says so in Redis... */
    assert_redis("a", "{\"n\":2}");
    assert_int_equal(redis_server_ask(&server, "EXISTS " EPOCH_KEY), 1);
    must(replay_check_epoch(replay, soon(), &lost, &err));
    assert_true(lost);
    must(replay_check_epoch(replay, soon(), &lost, &err));
    assert_false(lost);
    redis_server_ask(&server, "SET " GONE_MARK " -", "c");
    all(); /* ...and rows that are based on the lost data know it still */
    assert_redis("b", "{\"n\":2}");
    assert_false(in_redis("c"));
    update_("d", "{\"n\":1}", "{\"n\":2}");
    one("d"); /* based on what Redis holds now */
    assert_false(in_redis("d"));
}

static void what_has_expired_is_not_restored_but_merged_where_it_lives(void)
{
    create_("a", "{}");
    set_redis("b", "{\"n\":1}");
    update_("b", "{\"n\":1}", "{\"n\":2}");
    set_redis("c", "{\"n\":1}");
    redis_server_ask(&server, "PERSIST " KEY "c");
    update_("c", "{\"n\":1}", "{\"n\":2}");
    clock_set(clock_wall_ms() + LONG_MS + 1, -1);
    all();
    assert_false(in_redis("a"));
    assert_redis("b", "{\"n\":2}");
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "b"), LONG_MS - 60000, LONG_MS);
    assert_redis("c", "{\"n\":2}");
    assert_int_equal(redis_server_ask(&server, "PTTL " KEY "c"), -1);
    assert_int_equal(rows_now(), 0);
}

static void a_tombstone_deletes_whatever_is_there_and_leaves_a_mark(void)
{
    set_redis("a", "{\"m\":7}");
    delete_("a", "{}");
    create_("b", "{}");
    delete_("b", NULL);
    one("a");
    all();
    assert_gone("a");
    assert_gone("b");
    assert_string_equal(changed_doc, "");
    assert_int_equal(rows_now(), 0);
    assert_int_equal(counted(METRIC_sessions_replayed_total), 2);
}

/* ---- Once and only once ------------------------------------------------------------------------------------------ */

static void die(void *ctx, const struct replay_change *change)
{
    (void)ctx, (void)change;
    kill(getpid(), SIGKILL);
}

/* Another process replays `id` and is killed when Redis has answered. */
static void one_and_die_before_settling(const char *id)
{
    int status;
    leave_files();
    pid_t pid = fork();
    if (pid == 0) {
        told_of_changes = die;
        refuge_reopen();
        replay_reopen();
        replay_one(replay, id, soon(), &err);
        _exit(0);
    }
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    refuge_reopen();
    replay_reopen();
    changed_doc[0] = '?';
}

static void what_was_applied_is_not_applied_again(void **state)
{
    (void)state;
    set_redis("a", "{\"n\":1}");
    update_("a", "{\"n\":1}", "{\"n\":2}");
    one_and_die_before_settling("a");
    assert_redis("a", "{\"n\":2}");
    set_redis("a", "{\"n\":1,\"m\":1}"); /* somebody puts it back: that is later */
    one("a");
    assert_redis("a", "{\"n\":1,\"m\":1}");
    assert_string_equal(changed_doc, ""); /* what Redis holds is not known here */
    assert_int_equal(rows_now(), 0);

    create_("b", "{}");
    delete_("b", NULL);
    one_and_die_before_settling("b");
    assert_gone("b");
    set_redis("b", "{\"new\":1}");
    one("b");
    assert_redis("b", "{\"new\":1}");
    assert_int_equal(rows_now(), 0);
}

/* Another node, with a refuge of its own, brings back what it made of `base`. */
static void another_node_brings(const char *id, const char *base, const char *doc)
{
    char own[sizeof dir];
    leave_files();
    strcpy(own, dir);
    snprintf(dir, sizeof dir, "%.40s/other", own);
    assert_int_equal(mkdir(dir, 0700), 0);
    node_name = "node-2";
    refuge_reopen();
    replay_reopen();
    update_(id, base, doc);
    one(id);
    leave_files();
    strcpy(dir, own);
    node_name = "node-1";
    refuge_reopen();
    replay_reopen();
}

static void what_was_applied_is_not_applied_again_after_what_another_node_brought(void **state)
{
    (void)state;
    set_redis("a", "{\"n\":1,\"m\":1}");
    update_("a", "{\"n\":1,\"m\":1}", "{\"n\":2,\"m\":1}");
    one_and_die_before_settling("a");
    another_node_brings("a", "{\"n\":1,\"m\":1}", "{\"n\":1,\"m\":2}");
    assert_redis("a", "{\"n\":2,\"m\":2}");
    set_redis("a", "{\"n\":1,\"m\":2}"); /* somebody puts ours back: that is later */
    one("a");
    assert_redis("a", "{\"n\":1,\"m\":2}");
    assert_int_equal(rows_now(), 0);
}

/* Of each node the last version, so that the mark does not grow with them. */
static void a_mark_names_each_node_once(void **state)
{
    (void)state;
    char mark[256] = "", doc[256];
    set_redis("a", "{\"n\":0,\"m\":1}");
    for (int n = 1; n <= 3; n++) {
        get_redis("a", doc);
        snprintf(mark, sizeof mark, "{\"n\":%d,\"m\":1}", n);
        update_("a", doc, mark);
        one("a");
    }
    another_node_brings("a", "{\"n\":3,\"m\":1}", "{\"n\":3,\"m\":2}");
    redisReply *reply = redisCommand(server.admin, "GET " APPLIED_MARK, "a");
    snprintf(mark, sizeof mark, "%s", reply->str);
    freeReplyObject(reply);
    char *first = strstr(mark, "node-2:"), *second = strstr(mark, " node-1:");
    assert_true(first == mark && second == mark + strlen("node-2:") + 16);
    assert_int_equal(strlen(mark), 2 * (strlen("node-1:") + 16) + 1);
}

static void a_change_that_follows_an_unsettled_one_is_based_on_it(void **state)
{
    (void)state;
    set_redis("a", "{\"n\":1,\"m\":1}");
    update_("a", "{\"n\":1,\"m\":1}", "{\"n\":2,\"m\":1}");
    one_and_die_before_settling("a");
    set_redis("a", "{\"n\":2,\"m\":2,\"x\":1}");
    update_("a", NULL, "{\"n\":1,\"m\":1}"); /* back to what it was: only seen from n = 2 that is a change */
    one("a");
    assert_redis("a", "{\"n\":1,\"m\":2,\"x\":1}");
    assert_int_equal(counted(METRIC_replay_conflicts_total), 0);
    assert_int_equal(rows_now(), 0);
}

/* The script of a replay that timed out runs when Redis goes on: before or after the next attempt's, it is one. */
static void a_script_that_runs_after_its_time_changes_nothing(void **state)
{
    (void)state;
    timeout_ms = 100;
    for (int i = 0; i < 5; i++) {
        char id[24];
        snprintf(id, sizeof id, "late-%d", i);
        set_redis(id, "{\"n\":1,\"m\":1}");
        update_(id, "{\"n\":1,\"m\":1}", "{\"n\":2,\"m\":1}");
        replay_reopen();
        bool lost;
        must(replay_check_epoch(replay, soon(), &lost, &err)); /* the connection is up */
        kill(server.pid, SIGSTOP);
        assert_false(replay_one(replay, id, clock_mono_ms() + 250, &err));
        assert_int_equal(err.kind, ERR_UNAVAILABLE);
        update_(id, NULL, "{\"n\":1,\"m\":5}");
        kill(server.pid, SIGCONT);
        int64_t give_up_ms = soon();
        while (!replay_one(replay, id, soon(), &err)) assert_true(clock_mono_ms() < give_up_ms);
        assert_redis(id, "{\"n\":1,\"m\":5}");
        assert_int_equal(rows_now(), 0);
    }
    timeout_ms = 5000;
}

/* Redis is told to change the key between the replay's look at it and its write. */
static void a_value_that_changes_under_the_replay_is_looked_at_again(void **state)
{
    (void)state;
    pid_t writer = 0;
    set_redis("a", "{\"n\":0,\"m\":0}");
    writer = fork();
    if (writer == 0) { /* another node, compare and set, as fast as it can */
        struct redis_server own = server;
        own.admin = redisConnectUnix(server.path);
        for (int m = 1; m <= 3000; m++) {
            redisReply *r =
                redisCommand(own.admin, "EVAL %s 1 " KEY "a %d",
                             "local d = redis.call('GET', KEYS[1]) d = string.gsub(d, '\"m\":%d+', '\"m\":' .. "
                             "ARGV[1]) return redis.call('SET', KEYS[1], d, 'KEEPTTL')",
                             m);
            freeReplyObject(r);
        }
        _exit(0);
    }
    char base[256], doc[256];
    int n = 0;
    for (int status; waitpid(writer, &status, WNOHANG) == 0;) {
        get_redis("a", base);
        snprintf(doc, sizeof doc, "{\"n\":%d,\"m\":%s", ++n, strstr(base, "\"m\":") + 4);
        update_("a", base, doc);
        one("a");
    }
    snprintf(doc, sizeof doc, "{\"n\":%d,\"m\":3000}", n);
    assert_redis("a", doc);
    assert_true(n > 0);
}

/* ---- What cannot be brought back -----------------------------------------------------------------------------------
 */

static void keep_embedded(const char *id, struct bytes doc)
{
    struct store_result kept;
    bool more;
    must(store_embedded_ops.create(embedded, id, doc, &(struct store_terms){ .ttl_ms = LONG_MS }, soon(), &kept, &err));
    must(refuge_adopt(refuge, 10, soon(), &more, &err));
}

static void what_redis_does_not_take_is_kept_and_stops_nothing(void)
{
    struct buf large = BUF_INIT(64 << 20);
    bool more;
    create_("list", "{\"n\":1}");
    redis_server_ask(&server, "RPUSH " KEY "list a");
    create_("text", "{\"n\":1}");
    set_redis("text", "no-json");
    update_("empty", "{}", "{\"n\":1}");
    redis_server_ask(&server, "SET " KEY "empty %s", "");
    create_("buried", "{\"n\":1}");
    delete_("buried", NULL);
    redis_server_ask(&server, "RPUSH " KEY "buried a");
    buf_puts(&large, "{\"x\":\"");
    while (large.len <= 16 << 20) buf_puts(&large, "................................................................");
    buf_puts(&large, "\"}");
    keep_embedded("large", buf_bytes(&large));
    buf_done(&large);
    create_("good", "{\"n\":1}");

    all();
    assert_redis("good", "{\"n\":1}");
    assert_int_equal(rows_now(), 5);
    assert_int_equal(redis_server_ask(&server, "LLEN " KEY "list"), 1);
    assert_int_equal(redis_server_ask(&server, "LLEN " KEY "buried"), 1);
    assert_redis("text", "no-json");
    assert_int_equal(counted(METRIC_replay_kept_total), 5);
    must(replay_step(replay, 3, soon(), &more, &err));
    assert_false(more);
    clock_set(clock_wall_ms() + 60001, -1);
    all();
    assert_int_equal(counted(METRIC_replay_kept_total), 5); /* once each */

    assert_false(replay_one(replay, "list", soon(), &err));
    assert_int_equal(err.kind, ERR_CORRUPT);
    assert_false(replay_one(replay, "text", soon(), &err));
    assert_int_equal(err.kind, ERR_CORRUPT);
    redis_server_ask(&server, "DEL " KEY "list");
    one("list");
    assert_redis("list", "{\"n\":1}");
}

static void a_right_that_is_missing_is_the_rows_matter_only_where_others_pass(void)
{
    bool more;
    create_("x-1", "{\"n\":1}");
    create_("a", "{\"n\":1}");
    redis_server_ask(&server,
                     "ACL SETUSER default resetkeys ~hyperpage:*a} ~hyperpage:*:a ~hyperpage:probe:* ~hyperpage:epoch");
    all();
    redis_server_ask(&server, "ACL SETUSER default allkeys");
    assert_redis("a", "{\"n\":1}");
    assert_false(in_redis("x-1"));
    assert_int_equal(rows_now(), 1);
    assert_int_equal(counted(METRIC_replay_kept_total), 1);
    one("x-1");

    create_("y", "{\"n\":1}");
    redis_server_ask(&server, "ACL SETUSER default -evalsha -eval -set");
    assert_false(replay_step(replay, 3, soon(), &more, &err));
    redis_server_ask(&server, "ACL SETUSER default +@all");
    assert_int_equal(counted(METRIC_replay_kept_total), 1);
    all();
    assert_redis("y", "{\"n\":1}");
}

static void a_redis_that_takes_no_writes_keeps_every_row_for_later(void)
{
    bool more = true;
    create_("a", "{\"n\":1}");
    create_("b", "{\"n\":1}");
    redis_server_ask(&server, "CONFIG SET maxmemory 1");
    assert_false(replay_step(replay, 3, soon(), &more, &err));
    assert_false(more);
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(replay_one(replay, "b", soon(), &err));
    redis_server_ask(&server, "CONFIG SET maxmemory 0");
    assert_int_equal(counted(METRIC_replay_kept_total), 0);
    all();
    assert_redis("a", "{\"n\":1}");
    assert_redis("b", "{\"n\":1}");
}

static void a_redis_that_is_away_costs_nothing_but_time(void **state)
{
    (void)state;
    bool more, lost;
    create_("a", "{\"n\":1}");
    redis_server_kill(&server);
    assert_false(replay_step(replay, 3, clock_mono_ms() + 500, &more, &err));
    assert_false(replay_one(replay, "a", clock_mono_ms() + 500, &err));
    assert_false(replay_check_epoch(replay, clock_mono_ms() + 500, &lost, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_true(redis_server_start(&server));
    int64_t give_up_ms = soon();
    while (!replay_one(replay, "a", soon(), &err)) assert_true(clock_mono_ms() < give_up_ms);
    assert_redis("a", "{\"n\":1}");
}

/* ---- Many ----------------------------------------------------------------------------------------------------------
 */

static void steps_go_through_all_rows_oldest_first(void)
{
    bool more = true;
    char id[24];
    int steps = 0;
    for (int i = 0; i < 25; i++) {
        snprintf(id, sizeof id, "s-%d", i);
        create_(id, "{}");
    }
    must(replay_step(replay, 10, soon(), &more, &err));
    assert_true(more && in_redis("s-0") && in_redis("s-9") && !in_redis("s-10"));
    for (steps = 1; more; steps++) must(replay_step(replay, 10, soon(), &more, &err));
    assert_int_equal(steps, 3);
    assert_true(in_redis("s-24"));
    assert_int_equal(rows_now(), 0);
    assert_int_equal(counted(METRIC_sessions_replayed_total), 25);
}

struct asker {
    const char *id;
    bool ok;
};

static void replay_in_task(void *arg)
{
    struct asker *a = arg;
    struct err e;
    a->ok = replay_one(replay, a->id, soon(), &e);
}

static void tasks_that_replay_the_same_row_agree(void **state)
{
    (void)state;
    struct asker askers[6] = { { "a", false }, { "a", false }, { "b", false },
                               { "a", false }, { "b", false }, { "c", false } };
    set_redis("a", "{\"n\":1,\"m\":2}");
    update_("a", "{\"n\":1,\"m\":1}", "{\"n\":2,\"m\":1}");
    create_("b", "{\"n\":1}");
    for (int i = 0; i < 6; i++) task_start(replay_in_task, &askers[i]);
    while (task_count() > 0) {
        task_run_ready();
        round_ends();
        task_expire(clock_mono_ms());
    }
    task_free_stacks(0);
    for (int i = 0; i < 6; i++) assert_true(askers[i].ok);
    assert_redis("a", "{\"n\":2,\"m\":2}");
    assert_redis("b", "{\"n\":1}");
    assert_int_equal(counted(METRIC_sessions_replayed_total), 2);
    assert_int_equal(rows_now(), 0);
}

int main(void)
{
#define CASE(f)  TWICE(f, replay_begin, replay_end)
#define PLAIN(f) cmocka_unit_test_setup_teardown(f, replay_begin, replay_end)
    const struct CMUnitTest tests[] = {
        CASE(what_still_is_as_the_row_was_based_on_takes_the_rows_document),
        CASE(an_id_without_a_row_is_no_work),
        CASE(a_session_that_was_born_here_appears_with_its_life),
        CASE(a_life_is_prolonged_and_never_shortened),
        CASE(what_others_wrote_is_merged),
        CASE(an_id_that_was_born_twice_is_merged),
        CASE(a_session_that_has_ended_in_redis_stays_ended),
        CASE(what_redis_has_lost_is_restored_but_for_what_was_deleted),
        CASE(what_has_expired_is_not_restored_but_merged_where_it_lives),
        CASE(a_tombstone_deletes_whatever_is_there_and_leaves_a_mark),
        PLAIN(what_was_applied_is_not_applied_again),
        PLAIN(what_was_applied_is_not_applied_again_after_what_another_node_brought),
        PLAIN(a_mark_names_each_node_once),
        PLAIN(a_change_that_follows_an_unsettled_one_is_based_on_it),
        PLAIN(a_script_that_runs_after_its_time_changes_nothing),
        PLAIN(a_value_that_changes_under_the_replay_is_looked_at_again),
        CASE(what_redis_does_not_take_is_kept_and_stops_nothing),
        CASE(a_right_that_is_missing_is_the_rows_matter_only_where_others_pass),
        CASE(a_redis_that_takes_no_writes_keeps_every_row_for_later),
        PLAIN(a_redis_that_is_away_costs_nothing_but_time),
        CASE(steps_go_through_all_rows_oldest_first),
        PLAIN(tasks_that_replay_the_same_row_agree),
    };
    return cmocka_run_group_tests(tests, NULL, replay_done);
}
