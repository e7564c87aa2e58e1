#include "life.h"

#include "clock.h"
#include "mem.h"
#include "test.h"

#define NOW_MS   1800000000000LL
#define DAY_MS   86400000LL
#define TENTH_MS (DAY_MS / 10)

static const struct life_rules daily = { .ttl_ms = DAY_MS }, bounded = { .ttl_ms = DAY_MS, .absolute_ms = 3 * DAY_MS };

/* What a document says that was created and updated then. The texts live until the next call but one. */
static struct session_facts facts(int64_t created_ms, int64_t updated_ms)
{
    static char docs[2][200];
    static int turn;
    char created[CLOCK_ISO_BYTES], updated[CLOCK_ISO_BYTES], *doc = docs[turn++ % 2];
    struct session_facts f;
    clock_iso(created_ms, created);
    clock_iso(updated_ms, updated);
    snprintf(doc, sizeof docs[0], "{\"metadata\":{\"created\":\"%s\",\"updated\":\"%s\"}}", created, updated);
    assert_true(session_facts(bytes_of(doc), &f));
    return f;
}

static void a_session_has_what_is_left_of_its_absolute_life(void **state)
{
    (void)state;
    struct session_facts young = facts(NOW_MS - DAY_MS, NOW_MS), old = facts(NOW_MS - 4 * DAY_MS, NOW_MS);
    assert_int_equal(life_left_ms(&bounded, &young, NOW_MS), 2 * DAY_MS);
    assert_int_equal(life_left_ms(&bounded, &old, NOW_MS), -DAY_MS);
    assert_int_equal(life_left_ms(&daily, &old, NOW_MS), INT64_MAX);
    assert_int_equal(life_ttl_ms(&bounded, 2 * DAY_MS), DAY_MS);
    assert_int_equal(life_ttl_ms(&bounded, DAY_MS / 2), DAY_MS / 2);
}

static void a_creation_in_the_future_is_now(void **state)
{
    (void)state;
    struct session_facts f = facts(NOW_MS + DAY_MS, NOW_MS);
    assert_int_equal(life_left_ms(&bounded, &f, NOW_MS), 3 * DAY_MS);
}

static void a_document_that_does_not_say_when_has_no_absolute_end(void **state)
{
    (void)state;
    static const char *const silent[] = { "{}", "{\"metadata\":1}", "{\"metadata\":{\"created\":\"today\"}}",
                                          "{\"metadata\":{\"created\":5}}" };
    struct session_facts f;
    for (size_t i = 0; i < sizeof silent / sizeof silent[0]; i++) {
        assert_true(session_facts(bytes_of(silent[i]), &f));
        assert_int_equal(life_left_ms(&bounded, &f, NOW_MS), INT64_MAX);
        assert_true(life_announce_due(&daily, "id", &f, NOW_MS));
    }
}

static void a_life_is_rolled_on_once_a_tenth_is_gone(void **state)
{
    (void)state;
    assert_false(life_roll_due(1000, 1000));
    assert_false(life_roll_due(1000, 900));
    assert_true(life_roll_due(1000, 899));
    assert_false(life_roll_due(1000, 5000));
}

/* However often it is written, and in whichever steps. */
static void a_session_is_announced_once_a_tenth_of_its_life(void **state)
{
    (void)state;
    static const int64_t steps_ms[] = { 1000, 60007, TENTH_MS / 3, TENTH_MS };
    for (size_t s = 0; s < sizeof steps_ms / sizeof steps_ms[0]; s++) {
        int64_t was_ms = NOW_MS, end_ms = NOW_MS + DAY_MS, due = 0;
        for (int64_t now_ms = NOW_MS; now_ms < end_ms; was_ms = now_ms) {
            now_ms += steps_ms[s];
            struct session_facts f = facts(NOW_MS, was_ms);
            due += life_announce_due(&daily, "some-id", &f, now_ms);
        }
        assert_in_range(due, 10, 11);
    }
}

static void sessions_are_not_announced_all_at_once(void **state)
{
    (void)state;
    int due = 0;
    for (int i = 0; i < 1000; i++) {
        char id[16];
        struct session_facts f = facts(NOW_MS, NOW_MS);
        snprintf(id, sizeof id, "id-%d", i);
        due += life_announce_due(&daily, id, &f, NOW_MS + TENTH_MS / 10);
    }
    assert_in_range(due, 60, 140); /* a tenth of them in a tenth of the time */
}

static void a_users_name_is_what_its_json_stands_for(void **state)
{
    (void)state;
    static const struct {
        const char *doc, *user;
    } cases[] = {
        { "{\"userId\":\"anna\"}", "anna" },
        { "{\"userId\":\"a\",\"userId\":\"b\"}", "b" },
        { "{\"userId\":\"\\u00e4\\\"\\n\"}", "\xc3\xa4\"\n" },
        { "{\"user\\u0049d\":\"escaped\"}", "escaped" },
        { "{\"userId\":\"a\\u0000b\"}", "" },
        { "{\"userId\":null}", "" },
        { "{\"userId\":5}", "" },
        { "{\"userId\":\"\"}", "" },
        { "{\"user\":{\"userId\":\"x\"}}", "" },
        { "{}", "" },
    };
    char user[16];
    struct session_facts f;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_true(session_facts(bytes_of(cases[i].doc), &f));
        session_user(f.user_id, user, sizeof user);
        assert_string_equal(user, cases[i].user);
    }
    session_user(BYTES_LITERAL("\"0123456789abcde\""), user, sizeof user);
    assert_string_equal(user, "0123456789abcde");
    session_user(BYTES_LITERAL("\"0123456789abcdef\""), user, sizeof user);
    assert_string_equal(user, "");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_session_has_what_is_left_of_its_absolute_life),
        cmocka_unit_test(a_creation_in_the_future_is_now),
        cmocka_unit_test(a_document_that_does_not_say_when_has_no_absolute_end),
        cmocka_unit_test(a_life_is_rolled_on_once_a_tenth_is_gone),
        cmocka_unit_test(a_session_is_announced_once_a_tenth_of_its_life),
        cmocka_unit_test(sessions_are_not_announced_all_at_once),
        cmocka_unit_test(a_users_name_is_what_its_json_stands_for),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
