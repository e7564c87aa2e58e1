#include "platforms.h"

#include "test.h"

#include <string.h>

#define NOW_MS 1700000000000

static struct coordination_limits ls;

static struct coordination_limit *row(const char *platform, const char *endpoint)
{
    struct coordination_limit *l = coordination_limit_row(&ls, platform, endpoint);
    l->updated_ms = NOW_MS;
    return l;
}

static int forget(void **state)
{
    (void)state;
    memset(&ls, 0, sizeof ls);
    return 0;
}

static void a_platform_is_as_bad_as_its_worst_endpoint(void **state)
{
    static const struct {
        int64_t usage_permille;
        enum platform_status status;
    } cases[] = { { 0, PLATFORM_NORMAL },    { 749, PLATFORM_NORMAL },   { 750, PLATFORM_WARNING },
                  { 899, PLATFORM_WARNING }, { 900, PLATFORM_CRITICAL }, { 1200, PLATFORM_CRITICAL } };
    (void)state;
    row("github", "search")->usage_permille = 0;
    row("jira", "global")->usage_permille = 999;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        row("github", "core")->usage_permille = cases[i].usage_permille;
        struct platform_state s = platform_state_at(&ls, PLATFORM_GITHUB, NOW_MS);
        assert_int_equal(s.status, cases[i].status);
        assert_int_equal(s.usage_permille, cases[i].usage_permille);
    }
}

static void what_was_not_reported_is_unknown(void **state)
{
    (void)state;
    struct platform_state s = platform_state_at(&ls, PLATFORM_GITLAB, NOW_MS);
    assert_int_equal(s.status, PLATFORM_UNKNOWN);
    assert_int_equal(s.updated_ms, 0);
    assert_false(s.fresh);
    row("gitlab", "global")->remaining = 5; /* of how many? */
    s = platform_state_at(&ls, PLATFORM_GITLAB, NOW_MS);
    assert_int_equal(s.status, PLATFORM_UNKNOWN);
    assert_int_equal(s.usage_permille, -1);
    assert_true(s.fresh);
    row("gitlab", "other")->usage_permille = 10;
    assert_int_equal(platform_state_at(&ls, PLATFORM_GITLAB, NOW_MS).status, PLATFORM_NORMAL);
}

static void a_report_is_fresh_for_five_minutes(void **state)
{
    (void)state;
    row("jira", "global");
    assert_true(platform_state_at(&ls, PLATFORM_JIRA, NOW_MS + PLATFORM_FRESH_MS - 1).fresh);
    assert_false(platform_state_at(&ls, PLATFORM_JIRA, NOW_MS + PLATFORM_FRESH_MS).fresh);
}

static void after_its_reset_all_of_a_limit_remains(void **state)
{
    (void)state;
    struct coordination_limit *l = row("jira", "global");
    l->limit = 100;
    l->remaining = 0;
    l->usage_permille = 1000;
    l->reset_ms = NOW_MS + 60000;
    assert_int_equal(platform_state_at(&ls, PLATFORM_JIRA, NOW_MS + 59999).status, PLATFORM_CRITICAL);
    assert_int_equal(platform_limit_at(l, NOW_MS + 59999).remaining, 0);
    assert_int_equal(platform_state_at(&ls, PLATFORM_JIRA, NOW_MS + 60000).status, PLATFORM_NORMAL);
    assert_int_equal(platform_limit_at(l, NOW_MS + 60000).remaining, 100);
    l->reset_ms = NOW_MS - 1; /* had passed when it was reported, so it says nothing */
    assert_int_equal(platform_state_at(&ls, PLATFORM_JIRA, NOW_MS).status, PLATFORM_CRITICAL);
}

static void a_time_to_wait_gets_shorter_and_ends(void **state)
{
    (void)state;
    struct coordination_limit *l = row("jira", "global");
    l->usage_permille = 10;
    l->retry_after_s = 30;
    assert_int_equal(platform_limit_at(l, NOW_MS + 10500).retry_after_s, 20);
    assert_int_equal(platform_state_at(&ls, PLATFORM_JIRA, NOW_MS + 29000).status, PLATFORM_CRITICAL);
    assert_int_equal(platform_state_at(&ls, PLATFORM_JIRA, NOW_MS + 30000).status, PLATFORM_NORMAL);
    assert_int_equal(platform_limit_at(l, NOW_MS - 5000).retry_after_s, 30); /* a clock that was set back */
}

static void names_are_those_of_the_original(void **state)
{
    enum platform p;
    (void)state;
    for (int i = 0; i < PLATFORMS; i++) {
        assert_true(platform_of(platform_names[i], &p));
        assert_int_equal(p, i);
        assert_int_not_equal(platform_hits(p), platform_retries(p));
    }
    assert_false(platform_of("GitHub", &p));
    assert_true(platform_has(PLATFORM_GITHUB, "graphql"));
    assert_true(platform_has(PLATFORM_JIRA, "global"));
    assert_false(platform_has(PLATFORM_JIRA, "core"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_platform_is_as_bad_as_its_worst_endpoint, forget),
        cmocka_unit_test_teardown(what_was_not_reported_is_unknown, forget),
        cmocka_unit_test_teardown(a_report_is_fresh_for_five_minutes, forget),
        cmocka_unit_test_teardown(after_its_reset_all_of_a_limit_remains, forget),
        cmocka_unit_test_teardown(a_time_to_wait_gets_shorter_and_ends, forget),
        cmocka_unit_test(names_are_those_of_the_original),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
