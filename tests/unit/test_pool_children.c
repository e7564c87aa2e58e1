#include "children.h"

#include "clock.h"
#include "test.h"

static struct children cs;
static int64_t now_ms;
static pid_t last_pid;

/* What the master is told to do; it is done at once, as the master would. */
static struct child *acted_on;
static int acted_seat;
static int64_t due_ms;

static enum child_action next(void)
{
    return children_next(&cs, now_ms, &acted_on, &acted_seat, &due_ms);
}

static struct child *must_start(int seat)
{
    assert_int_equal(next(), CHILD_START);
    assert_int_equal(acted_seat, seat);
    struct child *c = children_started(&cs, seat, ++last_pid, -1, now_ms);
    assert_non_null(c);
    return c;
}

#define DRAIN_MS 30000

static void must_leave(struct child *c)
{
    assert_int_equal(next(), CHILD_LEAVE);
    assert_ptr_equal(acted_on, c);
    children_is_leaving(c, now_ms + DRAIN_MS);
}

static void must_kill(struct child *c)
{
    assert_int_equal(next(), CHILD_KILL);
    assert_ptr_equal(acted_on, c);
}

static void must_rest_until(int64_t ms)
{
    assert_int_equal(next(), CHILD_NOTHING);
    assert_int_equal(due_ms, ms);
}

static void serves(struct child *c)
{
    children_is_ready(c);
    children_has_served(&cs, c);
}

static struct child *keeper, *worker[4]; /* as begin() left them */

static void begin(int workers)
{
    now_ms = 1000000;
    last_pid = 0;
    children_init(&cs, workers);
    keeper = must_start(CHILDREN_KEEPER);
    for (int i = 0; i < workers; i++) worker[i] = must_start(CHILDREN_FIRST_WORKER + i);
    assert_false(children_all_ready(&cs));
    serves(keeper);
    for (int i = 0; i < workers; i++) serves(worker[i]);
    must_rest_until(CLOCK_NEVER);
    assert_true(children_all_ready(&cs));
    now_ms += 60000;
}

static void a_pool_begins_with_a_keeper_and_its_workers(void **state)
{
    (void)state;
    begin(3);
    assert_int_equal(children_count(&cs), 4);
    assert_int_equal(children_workers_wanted(&cs), 3);
    assert_int_equal(keeper->role, CHILD_KEEPER);
    assert_int_equal(worker[2]->role, CHILD_WORKER);
    assert_false(worker[2]->follows);
    assert_ptr_equal(children_find(&cs, worker[1]->pid), worker[1]);
    assert_null(children_find(&cs, 999));
    assert_null(children_find(&cs, 0));
}

static void who_dies_is_replaced_at_once(void **state)
{
    (void)state;
    begin(2);
    assert_true(children_died(&cs, worker[1], now_ms));
    assert_false(children_all_ready(&cs));
    struct child *c = must_start(2);
    must_rest_until(CLOCK_NEVER);
    assert_true(children_died(&cs, keeper, now_ms));
    must_start(CHILDREN_KEEPER);
    children_is_ready(c);
}

static void quick_deaths_make_pauses_that_double_up_to_a_limit(void **state)
{
    (void)state;
    begin(1);
    int64_t pauses[] = { 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 25600, 25600 };
    children_died(&cs, worker[0], now_ms);
    for (size_t i = 0; i < sizeof pauses / sizeof pauses[0]; i++) {
        struct child *c = must_start(1);
        now_ms += 5;
        children_died(&cs, c, now_ms);
        must_rest_until(now_ms + pauses[i]);
        now_ms += pauses[i] - 1;
        must_rest_until(now_ms + 1);
        now_ms++;
    }
    struct child *c = must_start(1);
    serves(c); /* which ends the row */
    children_died(&cs, c, now_ms + 2000);
    now_ms += 2000;
    c = must_start(1);
    children_died(&cs, c, now_ms);
    must_rest_until(now_ms + 200);
}

static void one_that_was_ready_but_never_served_makes_pauses_too(void **state)
{
    (void)state;
    begin(1);
    children_died(&cs, worker[0], now_ms);
    for (int64_t pause_ms = 200; pause_ms <= 800; pause_ms *= 2) {
        struct child *c = must_start(1);
        children_is_ready(c);
        children_died(&cs, c, now_ms);
        must_rest_until(now_ms + pause_ms);
        now_ms += pause_ms;
    }
    struct child *c = must_start(1);
    serves(c);
    children_died(&cs, c, now_ms);
    must_start(1);
}

static void a_death_after_a_second_makes_no_pause(void **state)
{
    (void)state;
    begin(1);
    children_died(&cs, worker[0], now_ms);
    struct child *c = must_start(1);
    now_ms += 1000;
    children_died(&cs, c, now_ms);
    must_start(1);
}

static void one_seat_s_pause_is_not_another_s(void **state)
{
    (void)state;
    begin(2);
    children_died(&cs, worker[0], now_ms);
    struct child *c = must_start(1);
    children_died(&cs, c, now_ms);
    children_died(&cs, worker[1], now_ms);
    must_start(2);
    must_rest_until(now_ms + 200);
}

static void a_renewal_goes_seat_by_seat_and_the_new_one_is_ready_first(void **state)
{
    (void)state;
    begin(2);
    struct child *old[] = { keeper, worker[0], worker[1] };
    children_renew_all(&cs);
    assert_false(children_all_ready(&cs));
    for (int seat = 0; seat < 3; seat++) {
        struct child *c = must_start(seat);
        assert_true(c->follows);
        must_rest_until(seat == 0 ? CLOCK_NEVER
                                  : now_ms + DRAIN_MS); /* the old one goes on, and no other seat begins */
        children_is_ready(c);
        must_leave(old[seat]);
        assert_false(c->follows);
        assert_int_equal(children_all_ready(&cs), seat == 2);
    }
    must_rest_until(now_ms + DRAIN_MS);
    for (int seat = 0; seat < 3; seat++) assert_false(children_died(&cs, old[seat], now_ms));
    must_rest_until(CLOCK_NEVER);
    assert_int_equal(children_count(&cs), 3);
}

static void a_follower_that_dies_costs_nobody_the_seat(void **state)
{
    (void)state;
    begin(1);
    children_is_tired(worker[0]);
    struct child *c = must_start(1);
    assert_true(children_died(&cs, c, now_ms));
    must_rest_until(now_ms + 200); /* with pauses, as any quick death */
    assert_false(worker[0]->leaving);
    now_ms += 200;
    c = must_start(1);
    assert_true(c->follows);
    children_is_ready(c);
    must_leave(worker[0]);
    must_rest_until(now_ms + DRAIN_MS);
}

static void a_follower_takes_the_seat_of_one_who_dies_before_it_is_ready(void **state)
{
    (void)state;
    begin(1);
    children_is_tired(worker[0]);
    struct child *c = must_start(1);
    assert_true(children_died(&cs, worker[0], now_ms));
    must_rest_until(CLOCK_NEVER);
    assert_false(c->follows);
    assert_false(children_all_ready(&cs));
    children_is_ready(c);
    must_rest_until(CLOCK_NEVER);
    assert_true(children_all_ready(&cs));
}

static void one_seat_that_cannot_be_renewed_does_not_stop_the_others(void **state)
{
    (void)state;
    begin(2);
    children_is_tired(worker[0]);
    children_is_tired(worker[1]);
    children_died(&cs, must_start(1), now_ms);
    struct child *c = must_start(2);
    children_is_ready(c);
    must_leave(worker[1]);
    must_rest_until(now_ms + 200);
    now_ms += 200;
    must_start(1);
}

/* A child is a copy of the master as it was at the fork: what began before the reload knows nothing of it. */
static void a_follower_older_than_the_reload_is_renewed_itself(void **state)
{
    (void)state;
    begin(1);
    children_renew_all(&cs);
    struct child *k = must_start(CHILDREN_KEEPER);
    children_is_ready(k);
    must_leave(keeper);
    struct child *first = must_start(1);
    children_renew_all(&cs); /* again, before the first is through */
    children_is_ready(first);
    must_leave(worker[0]);
    assert_false(children_all_ready(&cs));
    children_is_ready(must_start(CHILDREN_KEEPER));
    must_leave(k);
    struct child *second = must_start(1);
    children_is_ready(second);
    must_leave(first);
    assert_true(children_all_ready(&cs));
}

static void one_that_was_starting_during_a_reload_is_renewed_itself(void **state)
{
    (void)state;
    begin(1);
    children_died(&cs, worker[0], now_ms);
    struct child *first = must_start(1);
    children_renew_all(&cs);
    children_is_ready(first);
    assert_false(children_all_ready(&cs));
    children_is_ready(must_start(CHILDREN_KEEPER));
    must_leave(keeper);
    children_is_ready(must_start(1));
    must_leave(first);
    assert_true(children_all_ready(&cs));
}

static void one_that_was_started_after_the_reload_is_new_enough(void **state)
{
    (void)state;
    begin(1);
    children_renew_all(&cs);
    children_is_ready(must_start(CHILDREN_KEEPER));
    must_leave(keeper);
    children_died(&cs, worker[0], now_ms);
    struct child *c = must_start(1);
    children_is_ready(c);
    must_rest_until(now_ms + DRAIN_MS);
    assert_true(children_all_ready(&cs));
}

static void a_reload_ends_the_pauses(void **state)
{
    (void)state;
    begin(1);
    children_died(&cs, worker[0], now_ms);
    children_died(&cs, must_start(1), now_ms);
    must_rest_until(now_ms + 200);
    children_renew_all(&cs);
    must_start(CHILDREN_KEEPER);
    must_start(1);
}

static void more_workers_are_started_and_fewer_told_to_leave(void **state)
{
    (void)state;
    begin(2);
    children_want_workers(&cs, 4);
    assert_int_equal(children_workers_wanted(&cs), 4);
    assert_false(children_all_ready(&cs));
    struct child *third = must_start(3), *fourth = must_start(4);
    children_is_ready(third);
    children_is_ready(fourth);
    assert_true(children_all_ready(&cs));
    children_want_workers(&cs, 1);
    must_leave(worker[1]);
    must_leave(third);
    must_leave(fourth);
    must_rest_until(now_ms + DRAIN_MS);
    assert_true(children_all_ready(&cs));
    children_want_workers(&cs, 2); /* while the old one still leaves */
    must_start(2);
    assert_int_equal(children_count(&cs), 6);
    assert_false(children_died(&cs, worker[1], now_ms));
    children_want_workers(&cs, 0);
    assert_int_equal(children_workers_wanted(&cs), 1); /* a pool without workers answers nobody */
    children_want_workers(&cs, 100000);
    assert_int_equal(children_workers_wanted(&cs), 256);
}

static void a_follower_whose_seat_is_not_wanted_any_more_leaves_too(void **state)
{
    (void)state;
    begin(2);
    children_is_tired(worker[1]);
    struct child *c = must_start(2);
    children_want_workers(&cs, 1);
    must_leave(worker[1]);
    must_leave(c);
    must_rest_until(now_ms + DRAIN_MS);
}

static void who_has_not_left_in_time_is_killed_once(void **state)
{
    (void)state;
    begin(2);
    children_want_workers(&cs, 1);
    must_leave(worker[1]);
    now_ms += DRAIN_MS - 1;
    must_rest_until(now_ms + 1);
    now_ms++;
    must_kill(worker[1]);
    must_rest_until(CLOCK_NEVER);
    assert_false(children_died(&cs, worker[1], now_ms));
    assert_int_equal(children_count(&cs), 2);
}

static void a_full_table_is_said(void **state)
{
    (void)state;
    begin(1);
    while (children_count(&cs) < CHILDREN_MOST) assert_non_null(children_started(&cs, 1, ++last_pid, -1, now_ms));
    assert_null(children_started(&cs, 1, ++last_pid, -1, now_ms));
}

/* Whatever happens in whatever order: no seat is ever empty of one that serves because of a renewal, no more than one
 * is renewed at a time, and in the end all is as it should be. */
static void nothing_is_lost_in_any_order_of_events(void **state)
{
    (void)state;
    uint32_t dice = 7;
    begin(4);
    for (int i = 0; i < 30000; i++) {
        enum child_action a;
        while ((a = next()) != CHILD_NOTHING) {
            if (a == CHILD_START)
                children_started(&cs, acted_seat, ++last_pid, -1, now_ms);
            else if (a == CHILD_LEAVE)
                children_is_leaving(acted_on, now_ms + 500);
        }
        int followers = 0, sitting[CHILDREN_SEATS] = { 0 };
        for (size_t n = 0; n < CHILDREN_MOST; n++) {
            struct child *c = &cs.child[n];
            if (c->pid == 0 || c->leaving) continue;
            followers += c->follows;
            sitting[c->seat] += !c->follows;
        }
        assert_true(followers <= 1);
        for (int s = 0; s < cs.seats; s++) assert_true(sitting[s] <= 1);
        dice = dice * 1664525 + 1013904223;
        struct child *c = &cs.child[(dice >> 20) % 12];
        now_ms += (dice >> 8) % 50;
        switch ((dice >> 16) % 16) {
        case 0:
            children_renew_all(&cs);
            break;
        case 1:
            children_want_workers(&cs, 1 + (int)((dice >> 4) % 5));
            break;
        case 2:
            if (c->pid != 0 && c->ready) children_is_tired(c);
            break;
        case 3:
        case 4:
            if (c->pid != 0) children_died(&cs, c, now_ms);
            break;
        default:
            if (c->pid != 0 && !c->ready) children_is_ready(c);
            break;
        }
    }
    for (int i = 0; i < 10000 && !children_all_ready(&cs); i++) {
        enum child_action a;
        while ((a = next()) != CHILD_NOTHING) {
            if (a == CHILD_START)
                children_is_ready(children_started(&cs, acted_seat, ++last_pid, -1, now_ms));
            else if (a == CHILD_LEAVE)
                children_is_leaving(acted_on, now_ms + 500);
        }
        for (size_t n = 0; n < CHILDREN_MOST; n++)
            if (cs.child[n].pid != 0 && !cs.child[n].ready) children_is_ready(&cs.child[n]);
        now_ms += 100;
    }
    assert_true(children_all_ready(&cs));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pool_begins_with_a_keeper_and_its_workers),
        cmocka_unit_test(who_dies_is_replaced_at_once),
        cmocka_unit_test(quick_deaths_make_pauses_that_double_up_to_a_limit),
        cmocka_unit_test(one_that_was_ready_but_never_served_makes_pauses_too),
        cmocka_unit_test(a_death_after_a_second_makes_no_pause),
        cmocka_unit_test(one_seat_s_pause_is_not_another_s),
        cmocka_unit_test(a_renewal_goes_seat_by_seat_and_the_new_one_is_ready_first),
        cmocka_unit_test(a_follower_that_dies_costs_nobody_the_seat),
        cmocka_unit_test(a_follower_takes_the_seat_of_one_who_dies_before_it_is_ready),
        cmocka_unit_test(one_seat_that_cannot_be_renewed_does_not_stop_the_others),
        cmocka_unit_test(a_follower_older_than_the_reload_is_renewed_itself),
        cmocka_unit_test(one_that_was_starting_during_a_reload_is_renewed_itself),
        cmocka_unit_test(one_that_was_started_after_the_reload_is_new_enough),
        cmocka_unit_test(a_reload_ends_the_pauses),
        cmocka_unit_test(more_workers_are_started_and_fewer_told_to_leave),
        cmocka_unit_test(a_follower_whose_seat_is_not_wanted_any_more_leaves_too),
        cmocka_unit_test(who_has_not_left_in_time_is_killed_once),
        cmocka_unit_test(a_full_table_is_said),
        cmocka_unit_test(nothing_is_lost_in_any_order_of_events),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
