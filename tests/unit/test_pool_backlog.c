#include "backlog.h"

#include "test.h"

#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char path[] = "/tmp/test_backlog.XXXXXX";
static int fds[8], opened;

static int end(void **state)
{
    (void)state;
    while (opened > 0) close(fds[--opened]);
    unlink(path);
    return 0;
}

static int open_socket(int family)
{
    int fd = socket(family, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    return fds[opened++] = fd;
}

static void must_wait(int listener, uint32_t expected)
{
    uint32_t waiting = 4711, most = 4711;
    assert_true(backlog_read(listener, &waiting, &most));
    assert_int_equal(waiting, expected);
    assert_int_equal(most, 5);
}

static void waits_are_counted(int listener, struct sockaddr *at, socklen_t len)
{
    assert_int_equal(bind(listener, at, len), 0);
    assert_int_equal(listen(listener, 5), 0);
    assert_int_equal(getsockname(listener, at, &len), 0);
    must_wait(listener, 0);
    for (uint32_t n = 1; n <= 3; n++) {
        assert_int_equal(connect(open_socket(at->sa_family), at, len), 0);
        must_wait(listener, n);
    }
    fds[opened++] = accept(listener, NULL, NULL);
    must_wait(listener, 2);
}

static void connections_that_wait_at_a_unix_socket_are_counted(void **state)
{
    (void)state;
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    close(mkstemp(path));
    unlink(path);
    strcpy(un.sun_path, path);
    waits_are_counted(open_socket(AF_UNIX), (struct sockaddr *)&un, sizeof un);
}

static void connections_that_wait_at_a_tcp_port_are_counted(void **state)
{
    (void)state;
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    waits_are_counted(open_socket(AF_INET), (struct sockaddr *)&in, sizeof in);
}

static void what_does_not_listen_has_no_queue(void **state)
{
    (void)state;
    uint32_t waiting, most;
    assert_false(backlog_read(open_socket(AF_UNIX), &waiting, &most));
    assert_false(backlog_read(open_socket(AF_INET), &waiting, &most));
    assert_false(backlog_read(-1, &waiting, &most));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(connections_that_wait_at_a_unix_socket_are_counted, end),
        cmocka_unit_test_teardown(connections_that_wait_at_a_tcp_port_are_counted, end),
        cmocka_unit_test_teardown(what_does_not_listen_has_no_queue, end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
