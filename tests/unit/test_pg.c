#include "pg.h"

#include "clock.h"
#include "postgres_server.h"
#include "task.h"

#include <netinet/in.h>
#include <sys/socket.h>

static struct postgres_server server;
static struct pollset *pollset;
static struct pg *pg;
static struct err err;

static int64_t in(int64_t ms)
{
    return clock_mono_ms() + ms;
}

static void open_pg(const char *url)
{
    struct pg_options o = {
        .url = url, .name = "tested", .lock_timeout_ms = 200, .idle_timeout_ms = 300, .pollset = pollset
    };
    err = (struct err){ .kind = ERR_NONE };
    pg = pg_open(&o, &err);
    assert_non_null(pg);
}

/* As a loop of the coordinator does, until all tasks are over. */
static void run_tasks(void)
{
    while (task_count() > 0) {
        int64_t now_ms = clock_mono_ms(), due_ms = task_expire(now_ms);
        int64_t wait_ms = due_ms - now_ms < 1000 ? due_ms - now_ms : 1000;
        pollset_wait(pollset, task_any_ready() ? 0 : (int)wait_ms);
        task_run_ready();
    }
}

static void play(void (*scene)(void *), void *arg)
{
    task_start(scene, arg);
    run_tasks();
}

static int setup(void **state)
{
    (void)state;
    open_pg(server.url);
    postgres_server_ask(
        &server,
        "SET client_min_messages = error; DROP TABLE IF EXISTS t; CREATE TABLE t (id int PRIMARY KEY, s text)");
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    pg_close(pg);
    pg = NULL;
    return 0;
}

/* ---- Statements ---- */

static void values_in_and_out(void *unused)
{
    (void)unused;
    const char *awkward = "it's \"$1\"; DROP TABLE t; -- \xc3\xa4";
    int64_t changed = 0;
    assert_true(pg_begin(pg, in(5000), &err));
    assert_true(pg_run(pg, "INSERT INTO t VALUES ($1, $2), ($1::int + 1, NULL)", 2, (const char *[]){ "7", awkward },
                       &changed, &err));
    assert_int_equal(changed, 2);
    struct pg_rows *rows = pg_query(pg, "SELECT id, s FROM t ORDER BY id", 0, NULL, &err);
    assert_int_equal(pg_count(rows), 2);
    assert_int_equal(pg_number(rows, 0, 0), 7);
    assert_string_equal(pg_text(rows, 0, 1), awkward);
    assert_null(pg_text(rows, 1, 1));
    pg_free(rows);
    assert_true(pg_commit(pg, &err));
    pg_rollback(pg); /* at the way out: does nothing now */
}

static void a_transaction_brings_values_in_and_out(void **state)
{
    (void)state;
    play(values_in_and_out, NULL);
    assert_int_equal(postgres_server_ask(&server, "SELECT count(*) FROM t"), 2);
}

static void large_both_ways(void *unused)
{
    (void)unused;
    size_t bytes = 20 << 20; /* more than any socket buffer takes at once */
    char *text = malloc(bytes + 1);
    memset(text, 'x', bytes);
    text[bytes] = '\0';
    assert_true(pg_begin(pg, in(20000), &err));
    struct pg_rows *rows = pg_query(pg, "SELECT $1::text || 'y'", 1, (const char *const *)&text, &err);
    assert_non_null(rows);
    assert_int_equal(strlen(pg_text(rows, 0, 0)), bytes + 1);
    pg_free(rows);
    assert_true(pg_commit(pg, &err));
    free(text);
}

static void values_may_be_larger_than_a_socket_takes(void **state)
{
    (void)state;
    play(large_both_ways, NULL);
}

static void roll_back(void *unused)
{
    (void)unused;
    assert_true(pg_begin(pg, in(5000), &err));
    assert_true(pg_run(pg, "INSERT INTO t VALUES (1)", 0, NULL, NULL, &err));
    pg_rollback(pg);
}

static void what_is_rolled_back_leaves_no_trace(void **state)
{
    (void)state;
    play(roll_back, NULL);
    assert_int_equal(postgres_server_ask(&server, "SELECT count(*) FROM t"), 0);
}

static void finish(void *unused)
{
    (void)unused;
    int64_t changed = -1;
    assert_true(pg_begin(pg, in(5000), &err));
    assert_true(pg_run(pg, "INSERT INTO t VALUES (1), (2), (3), (4)", 0, NULL, NULL, &err));
    assert_true(pg_finish(pg, "DELETE FROM t WHERE id < 3; UPDATE t SET s = 'x' WHERE id = 4", &changed, &err));
    assert_int_equal(changed, 3);
    assert_true(pg_begin(pg, in(5000), &err)); /* it was the end */
    assert_false(pg_finish(pg, "DELETE FROM t; SELECT 1 FROM no_such_table; DELETE FROM t", &changed, &err));
    assert_int_equal(err.kind, ERR_INTERNAL);
    assert_true(pg_begin(pg, in(5000), &err));
    assert_false(pg_run(pg, "SELECT 1 FROM no_such_table", 0, NULL, NULL, &err));
    assert_false(pg_finish(pg, "DELETE FROM t", &changed, &err));
    assert_true(pg_begin(pg, in(5000), &err));
    pg_rollback(pg);
}

static void the_last_statements_and_the_end_are_one_message(void **state)
{
    (void)state;
    play(finish, NULL);
    assert_int_equal(postgres_server_ask(&server, "SELECT sum(id) FROM t WHERE id = 3 OR s = 'x'"), 7);
}

static const struct refused_case {
    const char *sql;
    enum err_kind kind;
} refused_cases[] = {
    { "SELECT 1 FROM no_such_table", ERR_INTERNAL },
    { "INSERT INTO t VALUES (1), (1)", ERR_INPUT },
    { "SELECT 'x'::jsonb", ERR_INPUT },
    { "SELECT 'x'::int", ERR_INPUT },
};

static void be_refused(void *arg)
{
    const struct refused_case *c = arg;
    assert_true(pg_begin(pg, in(5000), &err));
    assert_false(pg_run(pg, c->sql, 0, NULL, NULL, &err));
    assert_int_equal(err.kind, c->kind);
    assert_false(err.away);
    assert_false(pg_run(pg, "SELECT 1", 0, NULL, NULL, &err));
    assert_false(pg_commit(pg, &err));         /* and not as if it had been */
    assert_true(pg_begin(pg, in(5000), &err)); /* on the same connection */
    assert_true(pg_run(pg, "INSERT INTO t VALUES (1)", 0, NULL, NULL, &err));
    assert_true(pg_commit(pg, &err));
}

static void a_refused_statement_ends_its_transaction_only(void **state)
{
    for (size_t i = 0; i < sizeof refused_cases / sizeof refused_cases[0]; i++) {
        teardown(state);
        setup(state);
        play(be_refused, (void *)&refused_cases[i]);
        assert_int_equal(postgres_server_ask(&server, "SELECT count(*) FROM t"), 1);
    }
}

/* ---- Turns ---- */

static char order[64];

static void take_turns(void *arg)
{
    for (int round = 0; round < 3; round++) {
        assert_true(pg_begin(pg, in(5000), &err));
        assert_true(pg_run(pg, "SELECT pg_sleep(0.01)", 0, NULL, NULL, &err));
        strcat(order, arg);
        assert_true(pg_commit(pg, &err));
    }
}

static void tasks_take_turns_and_none_is_shut_out(void **state)
{
    (void)state;
    order[0] = '\0';
    task_start(take_turns, "a");
    task_start(take_turns, "b");
    task_start(take_turns, "c");
    run_tasks();
    assert_string_equal(order, "abcabcabc");
}

static void hold(void *arg)
{
    assert_true(pg_begin(pg, in(5000), &err));
    task_park(in((int64_t)(intptr_t)arg));
    pg_rollback(pg);
}

static void give_up_waiting(void *unused)
{
    struct err e;
    (void)unused;
    assert_false(pg_begin(pg, in(50), &e));
    assert_int_equal(e.kind, ERR_UNAVAILABLE);
    pg_rollback(pg); /* not ours: does nothing */
    assert_true(pg_begin(pg, in(5000), &e));
    assert_true(pg_commit(pg, &e));
}

static void who_waits_too_long_for_its_turn_leaves_the_queue(void **state)
{
    (void)state;
    task_start(hold, (void *)(intptr_t)150);
    task_start(give_up_waiting, NULL);
    task_start(give_up_waiting, NULL);
    run_tasks();
}

/* ---- Time ---- */

static void sleep_too_long(void *unused)
{
    (void)unused;
    int64_t began_ms = clock_mono_ms();
    assert_true(pg_begin(pg, in(200), &err));
    assert_false(pg_run(pg, "SELECT pg_sleep(5)", 0, NULL, NULL, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    pg_rollback(pg);
    assert_in_range(clock_mono_ms() - began_ms, 190, 1000);
    assert_true(pg_begin(pg, in(2000), &err));
    assert_true(pg_commit(pg, &err));
}

static void a_statement_that_hangs_ends_with_its_deadline_here_and_there(void **state)
{
    (void)state;
    play(sleep_too_long, NULL);
    for (int tries = 0;
         postgres_server_ask(&server, "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(5)%' AND "
                                      "state = 'active' AND pid <> pg_backend_pid()") > 0;
         tries++) {
        assert_true(tries < 2000);
        usleep(1000);
    }
}

static void meet_a_lock(void *unused)
{
    (void)unused;
    int64_t began_ms = clock_mono_ms();
    assert_true(pg_begin(pg, in(5000), &err));
    assert_false(pg_run(pg, "UPDATE t SET s = 'b'", 0, NULL, NULL, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_false(err.away);
    pg_rollback(pg);
    assert_in_range(clock_mono_ms() - began_ms, 190, 1500);
}

static void a_lock_is_not_waited_for_longer_than_allowed(void **state)
{
    (void)state;
    postgres_server_ask(&server, "INSERT INTO t VALUES (1)");
    postgres_server_ask(&server, "BEGIN; UPDATE t SET s = 'a'");
    play(meet_a_lock, NULL);
    postgres_server_ask(&server, "ROLLBACK");
}

static void do_nothing_for_too_long(void *unused)
{
    (void)unused;
    assert_true(pg_begin(pg, in(5000), &err));
    assert_true(pg_run(pg, "INSERT INTO t VALUES (1)", 0, NULL, NULL, &err));
    task_park(in(600));
    assert_false(pg_commit(pg, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_true(pg_begin(pg, in(5000), &err));
    assert_true(pg_commit(pg, &err));
}

static void the_server_ends_a_transaction_that_a_paused_process_left_open(void **state)
{
    (void)state;
    play(do_nothing_for_too_long, NULL);
    assert_int_equal(postgres_server_ask(&server, "SELECT count(*) FROM t"), 0);
}

/* ---- Away and back ---- */

static void insert_one(void *arg)
{
    bool *ok = arg;
    *ok = pg_begin(pg, in(3000), &err) && pg_run(pg, "INSERT INTO t VALUES (1)", 0, NULL, NULL, &err);
    *ok = *ok && pg_commit(pg, &err);
    pg_rollback(pg);
}

static void turn_without_work(void)
{
    int64_t until_ms = in(50);
    while (clock_mono_ms() < until_ms) pollset_wait(pollset, 10);
}

static void a_connection_that_was_lost_while_idle_is_no_failure(void **state)
{
    (void)state;
    bool ok;
    for (int noticed = 0; noticed < 2; noticed++) {
        play(insert_one, &ok);
        assert_true(ok);
        postgres_server_ask(
            &server, "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'tested'");
        if (noticed) turn_without_work();
        postgres_server_ask(&server, "TRUNCATE t");
    }
    play(insert_one, &ok);
    assert_true(ok);
}

static void end_in_the_middle(void *unused)
{
    (void)unused;
    assert_true(pg_begin(pg, in(3000), &err));
    assert_true(pg_run(pg, "INSERT INTO t VALUES (1)", 0, NULL, NULL, &err));
    postgres_server_ask(
        &server, "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'tested'");
    assert_false(pg_run(pg, "INSERT INTO t VALUES (2)", 0, NULL, NULL, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    assert_true(err.away);
    assert_false(pg_run(pg, "INSERT INTO t VALUES (3)", 0, NULL, NULL, &err)); /* not outside of the transaction */
    assert_false(pg_commit(pg, &err));
}

static void a_connection_that_breaks_takes_its_transaction_with_it(void **state)
{
    (void)state;
    play(end_in_the_middle, NULL);
    assert_int_equal(postgres_server_ask(&server, "SELECT count(*) FROM t"), 0);
}

static void insert_until_it_works(void *unused)
{
    (void)unused;
    bool ok = false;
    while (!ok) {
        insert_one(&ok);
        if (!ok) task_park(in(20));
    }
}

static void a_server_that_was_away_is_used_again(void **state)
{
    (void)state;
    bool ok;
    play(insert_one, &ok);
    for (int how = 0; how < 2; how++) {
        postgres_server_stop(&server, how == 0 ? SIGINT : SIGQUIT);
        play(insert_one, &ok);
        assert_false(ok);
        assert_int_equal(err.kind, ERR_UNAVAILABLE);
        assert_true(err.away);
        assert_true(pg_is_away(pg));
        int64_t began_ms = clock_mono_ms();
        play(insert_one, &ok); /* in the pause: told at once */
        assert_false(ok);
        assert_in_range(clock_mono_ms() - began_ms, 0, 50);
        assert_true(postgres_server_start(&server));
        postgres_server_ask(&server, "TRUNCATE t");
        play(insert_until_it_works, NULL);
        assert_false(pg_is_away(pg));
    }
}

static void a_server_that_is_stopped_is_given_up_at_the_deadline(void **state)
{
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof a;
    char url[128];
    bool ok;
    assert_int_equal(
        bind(fd, (struct sockaddr *)&a, sizeof a) | listen(fd, 5) | getsockname(fd, (struct sockaddr *)&a, &len), 0);
    teardown(state);
    snprintf(url, sizeof url, "postgresql://test@127.0.0.1:%d/postgres", ntohs(a.sin_port)); /* accepts, says nothing */
    open_pg(url);
    int64_t began_ms = clock_mono_ms();
    play(insert_one, &ok);
    assert_false(ok);
    assert_true(err.away);
    assert_in_range(clock_mono_ms() - began_ms, 2900, 4000);

    teardown(state); /* with another host behind it the silent one only costs time */
    snprintf(url, sizeof url, "postgresql://test@/postgres?host=no-such-host.invalid,%s", server.dir);
    open_pg(url);
    play(insert_until_it_works, NULL);
    close(fd);
}

static void a_url_that_cannot_be_understood_is_not_repeated(void **state)
{
    static const char *const urls[] = { "postgresql://u:secret@h/db?nonsense=1", "secret",
                                        "postgresql://u:secret@[h/db" };
    (void)state;
    for (size_t i = 0; i < sizeof urls / sizeof urls[0]; i++) {
        struct err e;
        assert_null(pg_open(&(struct pg_options){ .url = urls[i] }, &e));
        assert_int_equal(e.kind, ERR_INPUT);
        assert_null(strstr(e.text, "secret"));
    }
}

static int start_server(void **state)
{
    (void)state;
    struct err e;
    pollset = pollset_new(&e);
    return pollset != NULL && postgres_server_start(&server) ? 0 : -1;
}

static int end_server(void **state)
{
    (void)state;
    postgres_server_done(&server);
    pollset_free(pollset);
    task_free_stacks(0);
    return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_transaction_brings_values_in_and_out),
        TEST(values_may_be_larger_than_a_socket_takes),
        TEST(what_is_rolled_back_leaves_no_trace),
        TEST(the_last_statements_and_the_end_are_one_message),
        TEST(a_refused_statement_ends_its_transaction_only),
        TEST(tasks_take_turns_and_none_is_shut_out),
        TEST(who_waits_too_long_for_its_turn_leaves_the_queue),
        TEST(a_statement_that_hangs_ends_with_its_deadline_here_and_there),
        TEST(a_lock_is_not_waited_for_longer_than_allowed),
        TEST(the_server_ends_a_transaction_that_a_paused_process_left_open),
        TEST(a_connection_that_was_lost_while_idle_is_no_failure),
        TEST(a_connection_that_breaks_takes_its_transaction_with_it),
        TEST(a_server_that_was_away_is_used_again),
        TEST(a_server_that_is_stopped_is_given_up_at_the_deadline),
        cmocka_unit_test(a_url_that_cannot_be_understood_is_not_repeated),
    };
    return cmocka_run_group_tests(tests, start_server, end_server);
}
