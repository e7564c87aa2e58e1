#include "pollset.h"

#include "clock.h"
#include "mem.h"
#include "test.h"

#include <fcntl.h>
#include <unistd.h>

static struct pollset *ps;

/* A watched end of a pipe; its other end makes it ready. */
struct end {
    struct watch watch; /* first */
    int other_fd;
    int calls;
    uint32_t events;
    struct end *removes; /* whom it takes out when it is called */
    struct end *adds;
};

static void on_ready(struct watch *w, uint32_t events)
{
    struct end *e = (struct end *)w;
    e->calls++;
    e->events = events;
    if (e->removes) pollset_remove(ps, &e->removes->watch);
    if (e->adds) assert_true(pollset_add(ps, &e->adds->watch, EPOLLIN, NULL));
    e->removes = e->adds = NULL;
}

static void end_open(struct end *e)
{
    int p[2];
    assert_int_equal(pipe(p), 0);
    *e = (struct end){ .watch = { .fd = p[0], .ready = on_ready }, .other_fd = p[1] };
}

static void end_close(struct end *e)
{
    close(e->watch.fd);
    close(e->other_fd);
}

static void make_ready(struct end *e)
{
    assert_int_equal(write(e->other_fd, "x", 1), 1);
}

static int open_set(void **state)
{
    (void)state;
    ps = pollset_new(NULL);
    return ps == NULL;
}

static int close_set(void **state)
{
    (void)state;
    pollset_free(ps);
    pollset_free(NULL);
    return 0;
}

static void who_is_ready_is_called_with_what_happened(void **state)
{
    (void)state;
    struct end a, b;
    end_open(&a), end_open(&b);
    assert_true(pollset_add(ps, &a.watch, EPOLLIN, NULL) && pollset_add(ps, &b.watch, EPOLLIN, NULL));
    pollset_wait(ps, 0);
    assert_true(a.calls == 0 && b.calls == 0);
    make_ready(&a);
    pollset_wait(ps, -1);
    assert_true(a.calls == 1 && a.events == EPOLLIN && b.calls == 0);
    close(b.other_fd);
    pollset_wait(ps, -1);
    assert_true(a.calls == 2 && b.calls == 1 && (b.events & EPOLLHUP) != 0);
    close(a.watch.fd), close(a.other_fd), close(b.watch.fd);
}

static void waiting_ends_when_its_time_is_over(void **state)
{
    (void)state;
    int64_t began_ms = clock_mono_ms();
    pollset_wait(ps, 20);
    assert_in_range(clock_mono_ms() - began_ms, 19, 2000);
}

static void who_is_removed_by_another_of_the_same_round_is_not_called(void **state)
{
    (void)state;
    struct end a, b;
    end_open(&a), end_open(&b);
    assert_true(pollset_add(ps, &a.watch, EPOLLIN, NULL) && pollset_add(ps, &b.watch, EPOLLIN, NULL));
    make_ready(&a), make_ready(&b);
    a.removes = &b;
    b.removes = &a; /* whichever comes first */
    pollset_wait(ps, -1);
    assert_int_equal(a.calls + b.calls, 1);
    pollset_wait(ps, 0);
    assert_int_equal(a.calls * b.calls, 0);
    end_close(&a), end_close(&b);
}

static void a_watch_may_remove_and_free_itself(void **state)
{
    (void)state;
    struct end *a = mem_alloc(sizeof *a), copy;
    end_open(a);
    copy = *a;
    assert_true(pollset_add(ps, &a->watch, EPOLLIN, NULL));
    make_ready(a);
    a->removes = a;
    pollset_wait(ps, -1);
    assert_int_equal(a->calls, 1);
    free(a);
    pollset_wait(ps, 0);
    end_close(&copy);
}

static void who_is_added_during_a_round_is_called_in_a_later_one(void **state)
{
    (void)state;
    struct end a, b;
    end_open(&a), end_open(&b);
    assert_true(pollset_add(ps, &a.watch, EPOLLIN, NULL));
    make_ready(&a), make_ready(&b);
    a.adds = &b;
    pollset_wait(ps, -1);
    assert_true(a.calls == 1 && b.calls == 0);
    pollset_wait(ps, -1);
    assert_true(a.calls == 2 && b.calls == 1);
    a.removes = &b;
    a.adds = &b; /* out and in again: what was read for it before does not count any more */
    pollset_wait(ps, -1);
    int calls = b.calls;
    pollset_wait(ps, -1);
    assert_int_equal(b.calls, calls + 1);
    end_close(&a), end_close(&b);
}

static void what_is_waited_for_may_change(void **state)
{
    (void)state;
    struct end a;
    end_open(&a);
    make_ready(&a);
    assert_true(pollset_add(ps, &a.watch, 0, NULL));
    pollset_wait(ps, 0);
    assert_int_equal(a.calls, 0);
    pollset_change(ps, &a.watch, EPOLLIN);
    pollset_wait(ps, 0);
    assert_int_equal(a.calls, 1);
    end_close(&a);
}

static void more_are_ready_than_one_round_holds(void **state)
{
    (void)state;
    enum { ENDS = 400 };
    static struct end ends[ENDS];
    for (int i = 0; i < ENDS; i++) {
        end_open(&ends[i]);
        assert_true(pollset_add(ps, &ends[i].watch, EPOLLIN | EPOLLET, NULL));
        make_ready(&ends[i]);
    }
    pollset_wait(ps, -1);
    pollset_wait(ps, -1);
    for (int i = 0; i < ENDS; i++) {
        assert_int_equal(ends[i].calls, 1);
        end_close(&ends[i]);
    }
}

static void what_cannot_be_watched_is_said(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct watch file = { .fd = open("/proc/self/exe", O_RDONLY), .ready = on_ready },
                 none = { .fd = -1, .ready = on_ready };
    assert_false(pollset_add(ps, &file, EPOLLIN, &e));
    assert_int_equal(e.kind, ERR_INTERNAL);
    assert_string_equal(e.text, "epoll_ctl: Operation not permitted");
    assert_false(pollset_add(ps, &none, EPOLLIN, &e));
    close(file.fd);
}

#define IN_SET(f) cmocka_unit_test_setup_teardown(f, open_set, close_set)

int main(void)
{
    const struct CMUnitTest tests[] = {
        IN_SET(who_is_ready_is_called_with_what_happened),
        IN_SET(waiting_ends_when_its_time_is_over),
        IN_SET(who_is_removed_by_another_of_the_same_round_is_not_called),
        IN_SET(a_watch_may_remove_and_free_itself),
        IN_SET(who_is_added_during_a_round_is_called_in_a_later_one),
        IN_SET(what_is_waited_for_may_change),
        IN_SET(more_are_ready_than_one_round_holds),
        IN_SET(what_cannot_be_watched_is_said),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
