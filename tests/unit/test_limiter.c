#include "limiter.h"

#include "mem.h"
#include "test.h"

#include <ftw.h>
#include <sys/wait.h>
#include <unistd.h>

#define MINUTE_US 60000000LL
#define START_US  1000000000LL

static char dir[64];

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/test_limiter.XXXXXX");
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    char path[100];
    (void)state;
    snprintf(path, sizeof path, "%s/table", dir);
    unlink(path);
    return rmdir(dir);
}

static struct limiter *open_table(int64_t per_minute)
{
    struct err e = { 0 };
    struct limiter *l = limiter_open(dir, "table", per_minute, &e);
    if (l == NULL) print_error("%s\n", e.text);
    assert_non_null(l);
    return l;
}

/* How often of `times` it may at this moment. */
static int take(struct limiter *l, const char *address, int64_t now_us, int times)
{
    int taken = 0;
    int64_t wait_ms;
    for (int i = 0; i < times; i++) taken += limiter_take(l, address, now_us, &wait_ms);
    return taken;
}

static void an_address_has_its_number_at_once_and_then_evenly(void **state)
{
    (void)state;
    struct limiter *l = open_table(10);
    int64_t wait_ms;
    assert_int_equal(take(l, "192.0.2.1", START_US, 30), 10);
    assert_false(limiter_take(l, "192.0.2.1", START_US, &wait_ms));
    assert_int_equal(wait_ms, 6000);
    assert_int_equal(take(l, "192.0.2.1", START_US + 5999999, 30), 0);
    assert_int_equal(take(l, "192.0.2.1", START_US + 6000000, 30), 1);
    assert_int_equal(take(l, "192.0.2.1", START_US + 6000000 + MINUTE_US, 30), 10);
    limiter_close(l);
}

static void addresses_count_apart_and_an_ipv6_network_together(void **state)
{
    (void)state;
    struct limiter *l = open_table(2);
    assert_int_equal(take(l, "192.0.2.1", START_US, 5), 2);
    assert_int_equal(take(l, "192.0.2.2", START_US, 5), 2);
    assert_int_equal(take(l, "::ffff:192.0.2.2", START_US, 5), 0);
    assert_int_equal(take(l, "2001:db8::1", START_US, 1), 1);
    assert_int_equal(take(l, "2001:db8::ffff:1", START_US, 5), 1);
    assert_int_equal(take(l, "2001:db8:0:1::1", START_US, 5), 2);
    assert_int_equal(take(l, "", START_US, 5), 2);
    assert_int_equal(take(l, "unix:", START_US, 5), 0);
    limiter_close(l);
}

static void the_time_may_come_round(void **state)
{
    (void)state;
    struct limiter *l = open_table(10);
    int64_t round_us = 1LL << 40;
    assert_int_equal(take(l, "192.0.2.1", round_us - 1000000, 30), 10);
    assert_int_equal(take(l, "192.0.2.1", round_us + 1000000, 30), 0);
    assert_int_equal(take(l, "192.0.2.1", round_us + MINUTE_US, 30), 10);
    assert_int_equal(take(l, "192.0.2.1", round_us / 2, 30), 10); /* a time of the last boot says nothing */
    limiter_close(l);
}

static void another_process_whose_clock_is_a_moment_behind_sees_the_debt(void **state)
{
    (void)state;
    struct limiter *l = open_table(10);
    assert_int_equal(take(l, "192.0.2.1", START_US, 30), 10);
    assert_int_equal(take(l, "192.0.2.1", START_US - 500, 30), 0);
    limiter_close(l);
}

static void a_full_set_forgets_and_never_refuses_wrongly(void **state)
{
    (void)state;
    struct limiter *l = open_table(1);
    char address[32];
    int taken = 0, again = 0, many = 40000;
    for (int i = 0; i < many; i++) {
        snprintf(address, sizeof address, "10.%d.%d.%d", i >> 16, i >> 8 & 255, i & 255);
        taken += take(l, address, START_US, 1);
    }
    assert_int_equal(taken, many);
    for (int i = 0; i < many; i++) {
        snprintf(address, sizeof address, "10.%d.%d.%d", i >> 16, i >> 8 & 255, i & 255);
        again += take(l, address, START_US, 1);
    }
    assert_true(again < many / 10);
    limiter_close(l);
}

#define PROCESSES 4
#define TIMES     500

static void processes_together_take_no_more(void **state)
{
    (void)state;
    pid_t pid[PROCESSES];
    int taken[2], go[2], status;
    unsigned char byte;
    size_t sum = 0;
    assert_int_equal(pipe(taken), 0);
    assert_int_equal(pipe(go), 0);
    for (int p = 0; p < PROCESSES; p++) {
        pid[p] = fork();
        if (pid[p] != 0) continue;
        int64_t wait_ms;
        struct err e;
        struct limiter *l = limiter_open(dir, "table", 777, &e); /* all of them create the file */
        close(go[1]);
        if (l == NULL || read(go[0], &byte, 1) != 0) _exit(1);
        for (int i = 0; i < TIMES; i++)
            if (limiter_take(l, "192.0.2.1", START_US, &wait_ms) && write(taken[1], "x", 1) != 1) _exit(2);
        _exit(0);
    }
    close(go[0]);
    close(go[1]);
    close(taken[1]);
    while (read(taken[0], &byte, 1) == 1) sum++;
    close(taken[0]);
    for (int p = 0; p < PROCESSES; p++) {
        assert_int_equal(waitpid(pid[p], &status, 0), pid[p]);
        assert_int_equal(status, 0);
    }
    assert_int_equal(sum, 777);
}

static void a_file_that_is_not_ours_is_said(void **state)
{
    (void)state;
    struct err e = { 0 };
    char path[100];
    snprintf(path, sizeof path, "%s/table", dir);
    FILE *f = fopen(path, "w");
    fputs("hello", f);
    fclose(f);
    assert_null(limiter_open(dir, "table", 1, &e));
    assert_non_null(strstr(e.text, "is not ours"));
    assert_null(limiter_open("/nowhere", "table", 1, &e));
    assert_int_equal(e.kind, ERR_INPUT);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        TEST(an_address_has_its_number_at_once_and_then_evenly),
        TEST(addresses_count_apart_and_an_ipv6_network_together),
        TEST(the_time_may_come_round),
        TEST(another_process_whose_clock_is_a_moment_behind_sees_the_debt),
        TEST(a_full_set_forgets_and_never_refuses_wrongly),
        TEST(processes_together_take_no_more),
        TEST(a_file_that_is_not_ours_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
