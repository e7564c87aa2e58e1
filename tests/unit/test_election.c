#include "election.h"

#include "test.h"

#define LEASE     1000
#define HEARTBEAT 250
#define ACTS      900 /* the lease less its margin */

static struct election el;
static int64_t now_ms;

static int begin(void **state)
{
    (void)state;
    now_ms = 10000;
    election_init(&el, LEASE, HEARTBEAT, 7, now_ms);
    return 0;
}

static enum election_action tell(struct election_event ev)
{
    return election_step(&el, &ev, now_ms);
}

#define TELL(...) tell((struct election_event){ .kind = __VA_ARGS__ })

static enum election_action time_passes(int64_t ms)
{
    now_ms += ms;
    return TELL(ELECTION_TIME);
}

static enum election_action lead(int64_t term)
{
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    return TELL(ELECTION_WON, .term = term, .sound = true);
}

static void stands_for_election_at_once(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_false(election_may_act(&el, now_ms));
    assert_int_equal(TELL(ELECTION_WON, .term = 5, .sound = true), ELECTION_WAIT);
    assert_int_equal(el.role, ELECTION_LEADER);
    assert_int_equal(el.term, 5);
    assert_true(election_may_act(&el, now_ms));
    assert_int_equal(election_due_ms(&el), now_ms + HEARTBEAT);
}

static void asks_for_one_thing_at_a_time(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(time_passes(10 * LEASE), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_VACANT), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_OVERRULED, .term = 3), ELECTION_WAIT);
}

static void a_leader_renews_every_heartbeat_and_its_time_counts_from_the_asking(void **state)
{
    (void)state;
    lead(1);
    assert_int_equal(time_passes(HEARTBEAT - 1), ELECTION_WAIT);
    assert_int_equal(time_passes(1), ELECTION_RENEW);
    int64_t asked_ms = now_ms;
    now_ms += 100; /* on its way */
    assert_int_equal(TELL(ELECTION_RENEWED), ELECTION_WAIT);
    assert_true(election_may_act(&el, asked_ms + ACTS - 1));
    assert_false(election_may_act(&el, asked_ms + ACTS));
    assert_int_equal(time_passes(HEARTBEAT - 100), ELECTION_RENEW);
}

static void a_leader_stands_down_when_its_renewal_is_refused(void **state)
{
    (void)state;
    lead(1);
    assert_int_equal(time_passes(HEARTBEAT), ELECTION_RENEW);
    assert_int_equal(TELL(ELECTION_REFUSED), ELECTION_ACQUIRE); /* at once: who has it? */
    assert_int_equal(el.role, ELECTION_FOLLOWER);
    assert_false(election_may_act(&el, now_ms));
}

static void a_leader_without_an_answer_acts_until_its_lease_ends_and_not_longer(void **state)
{
    (void)state;
    lead(1);
    int64_t won_ms = now_ms;
    enum election_action action = time_passes(HEARTBEAT);
    while (now_ms < won_ms + ACTS) {
        assert_int_equal(el.role, ELECTION_LEADER);
        if (action == ELECTION_RENEW) TELL(ELECTION_UNANSWERED);
        assert_true(election_due_ms(&el) > now_ms && election_due_ms(&el) <= won_ms + ACTS);
        action = time_passes(election_due_ms(&el) - now_ms);
    }
    assert_int_equal(now_ms, won_ms + ACTS);
    assert_int_equal(el.role, ELECTION_FOLLOWER);
    assert_int_equal(action, ELECTION_ACQUIRE);
}

static void a_renewal_that_hangs_does_not_make_the_lease_longer(void **state)
{
    (void)state;
    lead(1);
    assert_int_equal(time_passes(HEARTBEAT), ELECTION_RENEW);
    assert_int_equal(time_passes(ACTS), ELECTION_WAIT);
    assert_int_equal(el.role, ELECTION_FOLLOWER);
    assert_int_equal(TELL(ELECTION_RENEWED), ELECTION_ACQUIRE); /* too late for this term */
    assert_false(election_may_act(&el, now_ms));
}

static void a_lease_whose_answer_took_as_long_as_the_lease_is_none(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    now_ms += ACTS;
    assert_int_equal(TELL(ELECTION_WON, .term = 4, .sound = true), ELECTION_ACQUIRE);
    assert_int_equal(el.role, ELECTION_FOLLOWER);
}

static void a_follower_stands_again_when_the_lease_has_ended(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_HELD, .ttl_ms = 40), ELECTION_WAIT);
    assert_int_equal(time_passes(40), ELECTION_WAIT);
    assert_int_equal(time_passes(HEARTBEAT / 8 + 1), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_HELD, .ttl_ms = 40000, .term = 6), ELECTION_WAIT);
    assert_int_equal(el.seen_term, 6);
    assert_int_equal(time_passes(HEARTBEAT), ELECTION_WAIT);
    assert_int_equal(time_passes(HEARTBEAT / 8 + 1), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_HELD, .ttl_ms = -1), ELECTION_WAIT); /* a key without an end */
    assert_true(election_due_ms(&el) >= now_ms + HEARTBEAT);
}

static void a_follower_tries_at_once_when_the_lease_is_given_back(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_HELD, .ttl_ms = 1000), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_VACANT), ELECTION_WAIT);
    assert_int_equal(time_passes(HEARTBEAT / 8 + 1), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_VACANT), ELECTION_WAIT); /* while the question is on its way */
    assert_int_equal(TELL(ELECTION_HELD, .ttl_ms = 1000), ELECTION_WAIT);
    assert_int_equal(time_passes(HEARTBEAT / 8 + 1), ELECTION_ACQUIRE);
}

static void who_waits_for_the_same_moment_does_not_ask_at_the_same_moment(void **state)
{
    (void)state;
    int64_t first_ms = 0;
    bool apart = false;
    for (uint64_t seed = 1; seed < 8; seed++) {
        election_init(&el, LEASE, HEARTBEAT, seed * 1234567, now_ms);
        assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
        TELL(ELECTION_HELD, .ttl_ms = 100);
        if (first_ms == 0) first_ms = election_due_ms(&el);
        apart |= election_due_ms(&el) != first_ms;
    }
    assert_true(apart);
}

static void a_winner_whom_redis_forgot_about_waits_for_the_other_lease_to_end(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    int64_t asked_ms = now_ms;
    assert_int_equal(TELL(ELECTION_WON, .term = 1, .sound = false), ELECTION_WAIT);
    while (now_ms < asked_ms + LEASE) {
        assert_int_equal(el.role, ELECTION_WAITING);
        assert_false(election_may_act(&el, now_ms));
        if (time_passes(election_due_ms(&el) - now_ms) == ELECTION_RENEW) TELL(ELECTION_RENEWED);
    }
    assert_int_equal(now_ms, asked_ms + LEASE);
    assert_int_equal(el.role, ELECTION_LEADER);
    assert_true(election_may_act(&el, now_ms));
}

static void a_term_on_record_elsewhere_overrules_ours(void **state)
{
    (void)state;
    lead(3);
    assert_int_equal(TELL(ELECTION_OVERRULED, .term = 2), ELECTION_WAIT);
    assert_true(election_may_act(&el, now_ms));
    assert_int_equal(TELL(ELECTION_OVERRULED, .term = 9), ELECTION_ACQUIRE);
    assert_false(election_may_act(&el, now_ms));
    assert_int_equal(el.seen_term, 9);
    assert_int_equal(TELL(ELECTION_OVERRULED, .term = 20), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_WON, .term = 10, .sound = true), ELECTION_ACQUIRE); /* that was asked before */
    assert_int_equal(TELL(ELECTION_WON, .term = 21, .sound = false), ELECTION_WAIT);
    assert_int_equal(el.role, ELECTION_WAITING);
}

static void who_stops_gives_its_lease_back(void **state)
{
    (void)state;
    lead(1);
    assert_int_equal(TELL(ELECTION_STOP), ELECTION_RELEASE);
    assert_false(election_may_act(&el, now_ms));
    assert_int_equal(TELL(ELECTION_RELEASED), ELECTION_WAIT);
    assert_false(el.asking);
    assert_int_equal(time_passes(10 * LEASE), ELECTION_WAIT);
}

static void who_stops_gives_back_what_is_still_on_its_way(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_STOP), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_WON, .term = 1, .sound = true), ELECTION_RELEASE);
    assert_false(election_may_act(&el, now_ms));
    assert_int_equal(TELL(ELECTION_UNANSWERED), ELECTION_WAIT); /* the lease ends by itself */
    assert_false(el.asking);

    begin(state);
    lead(1);
    assert_int_equal(time_passes(HEARTBEAT), ELECTION_RENEW);
    assert_int_equal(TELL(ELECTION_STOP), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_UNANSWERED), ELECTION_RELEASE);
}

/* Who comes next would have to wait for the one that Redis forgot about, and could not know it. */
static void who_stops_lets_a_lease_expire_that_was_not_sound_yet(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    TELL(ELECTION_WON, .term = 1, .sound = false);
    assert_int_equal(TELL(ELECTION_STOP), ELECTION_WAIT);
    assert_false(el.asking);

    begin(state);
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_STOP), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_WON, .term = 1, .sound = false), ELECTION_WAIT);

    begin(state);
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_STOP), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_UNANSWERED), ELECTION_WAIT);
    assert_false(el.asking);
}

static void who_yields_gives_its_lease_back_and_lets_others_have_the_next(void **state)
{
    (void)state;
    lead(5);
    assert_int_equal(TELL(ELECTION_YIELD), ELECTION_RELEASE);
    assert_false(election_may_act(&el, now_ms));
    assert_int_equal(TELL(ELECTION_RELEASED), ELECTION_WAIT);
    assert_int_equal(time_passes(LEASE - 1), ELECTION_WAIT);
    assert_int_equal(time_passes(1), ELECTION_ACQUIRE);
}

static void who_yields_gives_back_what_is_just_being_renewed(void **state)
{
    (void)state;
    lead(5);
    assert_int_equal(time_passes(HEARTBEAT), ELECTION_RENEW);
    assert_int_equal(TELL(ELECTION_YIELD), ELECTION_WAIT);
    assert_false(election_may_act(&el, now_ms));
    assert_int_equal(TELL(ELECTION_RENEWED), ELECTION_RELEASE);
    assert_false(election_may_act(&el, now_ms));
    assert_int_equal(TELL(ELECTION_RELEASED), ELECTION_WAIT);
}

static void a_follower_has_nothing_to_yield(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_HELD, .term = 3, .ttl_ms = LEASE), ELECTION_WAIT);
    int64_t due_ms = election_due_ms(&el);
    assert_int_equal(TELL(ELECTION_YIELD), ELECTION_WAIT);
    assert_int_equal(election_due_ms(&el), due_ms);
}

static void a_follower_that_stops_has_nothing_to_give_back(void **state)
{
    (void)state;
    assert_int_equal(TELL(ELECTION_TIME), ELECTION_ACQUIRE);
    assert_int_equal(TELL(ELECTION_HELD, .ttl_ms = 100), ELECTION_WAIT);
    assert_int_equal(TELL(ELECTION_STOP), ELECTION_WAIT);
    assert_false(el.asking);
}

/* A Redis that answers late, not at all, loses its data, and whose answers get lost after it has done what was asked;
 * followers whose processes stand still. Never may two act at once, and terms only grow. */
struct world {
    struct election node[5];
    enum election_action asked[5];
    int64_t stands_still_until[5];
    int owner, owner_self, self[5]; /* a started anew node is somebody else */
    int64_t term, owner_term, expires_ms, last_term;
    uint64_t random;
};

static uint64_t chance(struct world *w, uint64_t of)
{
    w->random = w->random * 6364136223846793005u + 1442695040888963407u;
    return (w->random >> 33) % of;
}

static struct election_event redis_does(struct world *w, int i, enum election_action action)
{
    const struct election *me = &w->node[i];
    bool ours = w->owner == i && w->owner_self == w->self[i];
    if (w->owner >= 0 && now_ms >= w->expires_ms) w->owner = -1;
    if (action == ELECTION_ACQUIRE) {
        if (w->owner >= 0 && !ours)
            return (struct election_event){ .kind = ELECTION_HELD, .ttl_ms = w->expires_ms - now_ms };
        bool known = w->term > 0 && (w->owner < 0 || !ours);
        w->term++;
        struct election_event won = { .kind = ELECTION_WON, .sound = known && w->term > me->seen_term };
        if (w->term <= me->seen_term) w->term = me->seen_term + 1;
        w->owner = i;
        w->owner_self = w->self[i];
        w->owner_term = won.term = w->term;
        w->expires_ms = now_ms + LEASE;
        return won;
    }
    if (!ours || w->owner < 0 || w->owner_term != me->term) return (struct election_event){ .kind = ELECTION_REFUSED };
    if (action == ELECTION_RELEASE) w->owner = -1;
    w->expires_ms = now_ms + LEASE;
    return (struct election_event){ .kind = action == ELECTION_RELEASE ? ELECTION_RELEASED : ELECTION_RENEWED };
}

static void step_node(struct world *w, int i)
{
    struct election_event ev = { .kind = ELECTION_TIME };
    if (now_ms < w->stands_still_until[i]) return;
    if (chance(w, 3000) == 0) w->stands_still_until[i] = now_ms + 500 + (int64_t)chance(w, 4500);
    if (w->asked[i] != ELECTION_WAIT) {
        if (chance(w, 3) == 0) return; /* on its way */
        uint64_t fate = chance(w, 12);
        if (fate != 0) ev = redis_does(w, i, w->asked[i]);
        if (fate <= 1) ev = (struct election_event){ .kind = ELECTION_UNANSWERED };
    } else if (w->node[i].role == ELECTION_STOPPED) { /* its successor knows nothing */
        election_init(&w->node[i], LEASE, HEARTBEAT, chance(w, 1 << 30), now_ms);
        w->self[i]++;
    } else if (chance(w, 5000) == 0) {
        static const enum election_event_kind kinds[] = { ELECTION_STOP, ELECTION_VACANT, ELECTION_YIELD };
        ev = (struct election_event){ .kind = kinds[chance(w, 3)] };
    }
    w->asked[i] = election_step(&w->node[i], &ev, now_ms);
}

static void never_two_act_at_once(void **state)
{
    (void)state;
    struct world w = { .owner = -1, .random = 4711 };
    int64_t acted = 0, terms = 0;
    for (int i = 0; i < 5; i++) election_init(&w.node[i], LEASE, HEARTBEAT, (uint64_t)i * 77 + 1, now_ms);
    for (int64_t end_ms = now_ms + 3600 * 1000; now_ms < end_ms; now_ms += 5) {
        int acting = 0;
        if (chance(&w, 20000) == 0) { /* Redis is started anew without its data */
            w.owner = -1;
            w.term = 0;
        }
        for (int i = 0; i < 5; i++) step_node(&w, i);
        for (int i = 0; i < 5; i++) {
            if (!election_may_act(&w.node[i], now_ms)) continue;
            acting++;
            terms += w.node[i].term != w.last_term;
            w.last_term = w.node[i].term;
        }
        assert_true(acting <= 1);
        acted += acting;
    }
    print_message("           an hour: led %.0f %% of the time, %d leaderships\n", (double)acted / 7200, (int)terms);
    assert_true(acted > 720000 / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(stands_for_election_at_once, begin),
        cmocka_unit_test_setup(asks_for_one_thing_at_a_time, begin),
        cmocka_unit_test_setup(a_leader_renews_every_heartbeat_and_its_time_counts_from_the_asking, begin),
        cmocka_unit_test_setup(a_leader_stands_down_when_its_renewal_is_refused, begin),
        cmocka_unit_test_setup(a_leader_without_an_answer_acts_until_its_lease_ends_and_not_longer, begin),
        cmocka_unit_test_setup(a_renewal_that_hangs_does_not_make_the_lease_longer, begin),
        cmocka_unit_test_setup(a_lease_whose_answer_took_as_long_as_the_lease_is_none, begin),
        cmocka_unit_test_setup(a_follower_stands_again_when_the_lease_has_ended, begin),
        cmocka_unit_test_setup(a_follower_tries_at_once_when_the_lease_is_given_back, begin),
        cmocka_unit_test_setup(who_waits_for_the_same_moment_does_not_ask_at_the_same_moment, begin),
        cmocka_unit_test_setup(a_winner_whom_redis_forgot_about_waits_for_the_other_lease_to_end, begin),
        cmocka_unit_test_setup(a_term_on_record_elsewhere_overrules_ours, begin),
        cmocka_unit_test_setup(who_stops_gives_its_lease_back, begin),
        cmocka_unit_test_setup(who_stops_gives_back_what_is_still_on_its_way, begin),
        cmocka_unit_test_setup(who_stops_lets_a_lease_expire_that_was_not_sound_yet, begin),
        cmocka_unit_test_setup(a_follower_that_stops_has_nothing_to_give_back, begin),
        cmocka_unit_test_setup(who_yields_gives_its_lease_back_and_lets_others_have_the_next, begin),
        cmocka_unit_test_setup(who_yields_gives_back_what_is_just_being_renewed, begin),
        cmocka_unit_test_setup(a_follower_has_nothing_to_yield, begin),
        cmocka_unit_test_setup(never_two_act_at_once, begin),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
