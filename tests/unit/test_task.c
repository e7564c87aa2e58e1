#include "task.h"

#include "clock.h"
#include "test.h"

#include <string.h>

/* A job that parks some times and notes what happened to it. */
struct job {
    struct task *task;
    int parks;           /* how often it is to park */
    int64_t deadline_ms; /* of each */
    int woken, expired;
    int order; /* when it ended, counted over all jobs */
    bool done;
};

static int ended;

static void run_job(void *arg)
{
    struct job *j = arg;
    assert_ptr_equal(task_current(), j->task);
    char local[512]; /* must be ours alone, whoever runs meanwhile */
    memset(local, (int)((uintptr_t)j >> 4), sizeof local);
    for (int i = 0; i < j->parks; i++) {
        if (task_park(j->deadline_ms))
            j->woken++;
        else
            j->expired++;
        assert_ptr_equal(task_current(), j->task);
    }
    for (size_t i = 0; i < sizeof local; i++) assert_int_equal(local[i], (char)((uintptr_t)j >> 4));
    j->order = ++ended;
    j->done = true;
}

static void start_job(struct job *j)
{
    j->task = task_start(run_job, j);
}

static int fresh(void **state)
{
    (void)state;
    ended = 0;
    return 0;
}

static int nothing_is_left(void **state)
{
    (void)state;
    task_free_stacks(0);
    return task_count() != 0 || task_any_ready() || task_current() != NULL;
}

static void a_task_runs_at_the_next_round_and_not_before(void **state)
{
    (void)state;
    struct job j = { 0 };
    start_job(&j);
    assert_false(j.done);
    assert_true(task_any_ready());
    assert_int_equal(task_count(), 1);
    assert_null(task_current());
    task_run_ready();
    assert_true(j.done);
    assert_false(task_any_ready());
    assert_int_equal(task_count(), 0);
    assert_null(task_current());
}

static void tasks_run_in_the_order_in_which_they_became_ready(void **state)
{
    (void)state;
    struct job j[3] = { { .parks = 1, .deadline_ms = CLOCK_NEVER },
                        { .parks = 0 },
                        { .parks = 1, .deadline_ms = CLOCK_NEVER } };
    for (int i = 0; i < 3; i++) start_job(&j[i]);
    task_run_ready();
    task_wake(j[2].task);
    task_wake(j[0].task);
    task_wake(j[2].task); /* ready already: keeps its place */
    task_run_ready();
    assert_int_equal(j[1].order, 1);
    assert_int_equal(j[2].order, 2);
    assert_int_equal(j[0].order, 3);
}

static void a_parked_task_waits_until_it_is_woken_or_its_time_is_over(void **state)
{
    (void)state;
    struct job woken = { .parks = 1, .deadline_ms = 100 }, late = { .parks = 1, .deadline_ms = 100 },
               later = { .parks = 1, .deadline_ms = 200 }, never = { .parks = 1, .deadline_ms = CLOCK_NEVER };
    start_job(&woken), start_job(&late), start_job(&later), start_job(&never);
    task_run_ready();
    assert_int_equal(task_count(), 4);
    assert_int_equal(task_expire(99), 100);
    assert_false(task_any_ready());
    task_wake(woken.task);
    assert_int_equal(task_expire(100), 200);
    task_run_ready();
    assert_true(woken.woken == 1 && woken.expired == 0);
    assert_true(late.woken == 0 && late.expired == 1);
    assert_false(later.done);
    assert_int_equal(task_expire(1000), CLOCK_NEVER);
    task_run_ready();
    assert_int_equal(later.expired, 1);
    assert_int_equal(task_expire(INT64_MAX - 1), CLOCK_NEVER);
    assert_false(task_any_ready());
    task_wake(never.task);
    task_run_ready();
    assert_int_equal(never.woken, 1);
}

static void an_expired_task_that_is_woken_before_it_runs_has_expired(void **state)
{
    (void)state;
    struct job j = { .parks = 2, .deadline_ms = 100 };
    start_job(&j);
    task_run_ready();
    task_expire(100);
    task_wake(j.task);
    task_run_ready();
    assert_true(j.expired == 1 && j.woken == 0);
    assert_false(j.done); /* that wake was not kept for the next park */
    task_wake(j.task);
    task_run_ready();
    assert_true(j.done && j.woken == 1);
}

static void wake_self_then_park(void *arg)
{
    bool *woken = arg;
    task_wake(task_current());
    task_wake(task_current());
    woken[0] = task_park(CLOCK_NEVER); /* the wake came first: returns at once */
    woken[1] = task_park(5);           /* two wakes are one: this one waits */
    woken[2] = true;
}

static void a_wake_before_the_park_is_not_lost(void **state)
{
    (void)state;
    bool woken[3] = { false, true, false };
    task_start(wake_self_then_park, woken);
    task_run_ready();
    assert_true(woken[0]);
    assert_false(woken[2]);
    task_expire(5);
    task_run_ready();
    assert_false(woken[1]);
    assert_true(woken[2]);
}

static int family;

static void have_children(void *arg)
{
    intptr_t depth = (intptr_t)arg;
    struct task *self = task_current();
    family++;
    for (int i = 0; i < 2 && depth > 0; i++) {
        task_start(have_children, (void *)(depth - 1));
        assert_ptr_equal(task_current(), self);
        task_park(0); /* the older child runs before the younger one is there */
    }
}

static void a_task_starts_tasks(void **state)
{
    (void)state;
    family = 0;
    task_start(have_children, (void *)7);
    while (task_count() > 0) {
        task_expire(0);
        task_run_ready();
    }
    assert_int_equal(family, 255);
}

/* One wakes the other, the other wakes the one: a round ends only when both are done. */
struct player {
    struct task *self;
    struct player *other;
    int left;
};

static void play(void *arg)
{
    struct player *p = arg;
    while (p->left-- > 0) {
        task_wake(p->other->self);
        task_park(CLOCK_NEVER);
    }
    task_wake(p->other->self);
}

static void tasks_wake_each_other_within_one_round(void **state)
{
    (void)state;
    struct player a = { .left = 10000 }, b = { .left = 10000, .other = &a };
    a.other = &b;
    a.self = task_start(play, &a);
    b.self = task_start(play, &b);
    task_run_ready();
    assert_int_equal(task_count(), 0);
    assert_true(a.left < 0 && b.left < 0);
}

#ifdef __SANITIZE_ADDRESS__
#define MANY 1000
#else
#define MANY 5000
#endif

static void thousands_park_and_go_on_in_any_order(void **state)
{
    (void)state;
    static struct job jobs[MANY];
    uint32_t dice = 12345;
    memset(jobs, 0, sizeof jobs);
    for (int i = 0; i < MANY; i++) {
        jobs[i] = (struct job){ .parks = 1 + i % 4, .deadline_ms = i % 3 == 0 ? CLOCK_NEVER : 1000 + i };
        start_job(&jobs[i]);
    }
    for (int64_t now_ms = 0; task_count() > 0; now_ms += 100) {
        task_run_ready();
        for (int i = 0; i < MANY; i++) {
            dice = dice * 1664525 + 1013904223;
            if (!jobs[i].done && dice >> 30 == 0) task_wake(jobs[i].task);
        }
        int64_t due_ms = task_expire(now_ms);
        assert_true(due_ms > now_ms);
    }
    for (int i = 0; i < MANY; i++) {
        assert_true(jobs[i].done);
        assert_int_equal(jobs[i].woken + jobs[i].expired, jobs[i].parks);
        if (jobs[i].deadline_ms == CLOCK_NEVER) assert_int_equal(jobs[i].expired, 0);
    }
}

static void a_stack_is_used_again(void **state)
{
    (void)state;
    struct job first = { 0 }, second = { 0 }, third = { .parks = 1, .deadline_ms = CLOCK_NEVER };
    start_job(&first);
    task_run_ready();
    start_job(&second);
    assert_ptr_equal(second.task, first.task);
    start_job(&third);
    assert_ptr_not_equal(third.task, second.task);
    task_run_ready();
    assert_true(second.done && !third.done);
    task_free_stacks(0); /* not the one that is parked */
    task_wake(third.task);
    task_run_ready();
    assert_true(third.done);
}

/* As deep as json-c, hiredis and SQLite were seen to go, twice over. Each level's bytes are checked on the way back. */
static int go_deeper(int level)
{
    volatile char frame[1024];
    memset((char *)frame, level, sizeof frame);
    int below = level > 0 ? go_deeper(level - 1) : 0;
    for (size_t i = 0; i < sizeof frame; i++)
        if (frame[i] != (char)level) return -1;
    return below < 0 ? -1 : below + 1;
}

static void recurse(void *arg)
{
    *(int *)arg = go_deeper(36);
    task_park(CLOCK_NEVER);
    *(int *)arg += go_deeper(36);
}

static void a_stack_holds_40_kb(void **state)
{
    (void)state;
    int levels[8] = { 0 };
    struct task *t[8];
    for (int i = 0; i < 8; i++) t[i] = task_start(recurse, &levels[i]);
    task_run_ready();
    for (int i = 0; i < 8; i++) task_wake(t[7 - i]);
    task_run_ready();
    for (int i = 0; i < 8; i++) assert_int_equal(levels[i], 2 * 37);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_task_runs_at_the_next_round_and_not_before, fresh, nothing_is_left),
        cmocka_unit_test_setup_teardown(tasks_run_in_the_order_in_which_they_became_ready, fresh, nothing_is_left),
        cmocka_unit_test_setup_teardown(a_parked_task_waits_until_it_is_woken_or_its_time_is_over, fresh,
                                        nothing_is_left),
        cmocka_unit_test_setup_teardown(an_expired_task_that_is_woken_before_it_runs_has_expired, fresh,
                                        nothing_is_left),
        cmocka_unit_test_setup_teardown(a_wake_before_the_park_is_not_lost, fresh, nothing_is_left),
        cmocka_unit_test_setup_teardown(a_task_starts_tasks, fresh, nothing_is_left),
        cmocka_unit_test_setup_teardown(tasks_wake_each_other_within_one_round, fresh, nothing_is_left),
        cmocka_unit_test_setup_teardown(thousands_park_and_go_on_in_any_order, fresh, nothing_is_left),
        cmocka_unit_test_setup_teardown(a_stack_is_used_again, fresh, nothing_is_left),
        cmocka_unit_test_setup_teardown(a_stack_holds_40_kb, fresh, nothing_is_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
