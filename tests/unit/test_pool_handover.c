#include "handover.h"

#include "test.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static struct handover way;

static int open_way(void **state)
{
    (void)state;
    struct err e;
    return !handover_open(&way, &e);
}

static int close_way(void **state)
{
    (void)state;
    close(way.give_fd);
    close(way.take_fd);
    return 0;
}

static bool is_same(int a, int b)
{
    struct stat sa, sb;
    assert_int_equal(fstat(a, &sa) | fstat(b, &sb), 0);
    return sa.st_ino == sb.st_ino && sa.st_dev == sb.st_dev;
}

static void what_is_given_is_taken_in_order_and_once(void **state)
{
    (void)state;
    int p[2], q[2];
    assert_int_equal(pipe(p) | pipe(q), 0);
    assert_int_equal(handover_take(&way), -1);
    assert_true(handover_give(&way, p[0]) && handover_give(&way, q[0]));
    int first = handover_take(&way), second = handover_take(&way);
    assert_true(first >= 0 && second >= 0 && first != p[0]);
    assert_true(is_same(first, p[0]) && is_same(second, q[0]));
    assert_true(fcntl(first, F_GETFD) & FD_CLOEXEC);
    assert_int_equal(handover_take(&way), -1);
    int all[] = { p[0], p[1], q[0], q[1], first, second };
    for (int i = 0; i < 6; i++) close(all[i]);
}

/* The connection lives on while nobody holds it but the way. */
static void a_connection_survives_the_process_that_gave_it(void **state)
{
    (void)state;
    int pair[2], status;
    char got[8] = "";
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
    pid_t pid = fork();
    if (pid == 0) _exit(!handover_give(&way, pair[1]));
    close(pair[1]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(write(pair[0], "request", 7), 7); /* what comes meanwhile waits for the one who takes it */
    int taken = handover_take(&way);
    assert_true(taken >= 0);
    assert_int_equal(read(taken, got, 7), 7);
    assert_string_equal(got, "request");
    close(taken);
    assert_int_equal(read(pair[0], got, 1), 0);
    close(pair[0]);
}

static void a_full_way_refuses_and_loses_nothing(void **state)
{
    (void)state;
    int given = 0, taken = 0, fd;
    while (given < 100000 && handover_give(&way, STDERR_FILENO)) given++;
    assert_true(given > 0 && given < 100000);
    while ((fd = handover_take(&way)) >= 0) {
        taken++;
        close(fd);
    }
    assert_int_equal(taken, given);
    assert_true(handover_give(&way, STDERR_FILENO));
    close(handover_take(&way));
}

static void without_siblings_nothing_is_given_or_taken(void **state)
{
    (void)state;
    struct handover none = { -1, -1 };
    assert_false(handover_give(&none, STDERR_FILENO));
    assert_int_equal(handover_take(&none), -1);
}

static void what_is_no_descriptor_is_not_given(void **state)
{
    (void)state;
    assert_false(handover_give(&way, -1));
    assert_false(handover_give(&way, 9999));
    assert_int_equal(handover_take(&way), -1);
}

#define WAY(f) cmocka_unit_test_setup_teardown(f, open_way, close_way)

int main(void)
{
    const struct CMUnitTest tests[] = {
        WAY(what_is_given_is_taken_in_order_and_once),
        WAY(a_connection_survives_the_process_that_gave_it),
        WAY(a_full_way_refuses_and_loses_nothing),
        WAY(what_is_no_descriptor_is_not_given),
        cmocka_unit_test(without_siblings_nothing_is_given_or_taken),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
