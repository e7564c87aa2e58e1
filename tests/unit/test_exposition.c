#include "exposition.h"

#include "test.h"

#include <stdio.h>
#include <string.h>

static uint64_t totals[METRICS_COUNTERS];
static struct buf text = BUF_INIT(1024 * 1024);

static int end(void **state)
{
    (void)state;
    buf_done(&text);
    memset(totals, 0, sizeof totals);
    return 0;
}

static void tell(bool openmetrics)
{
    struct exposition ex = { .out = &text, .openmetrics = openmetrics };
    buf_reset(&text);
    exposition_totals(&ex, totals);
    exposition_end(&ex);
}

static void must_say(const char *what)
{
    if (strstr(buf_text(&text), what) == NULL) fail_msg("missing: %s\nin: %s", what, buf_text(&text));
}

static void a_counter_is_a_family_of_one(void **state)
{
    (void)state;
    totals[METRIC_cas_retries_total] = (uint64_t)1 << 63;
    totals[METRIC_cache_hits_total] = 4;
    tell(false);
    must_say("# HELP hyperpage_cas_retries_total Writes repeated because another one came first.\n"
             "# TYPE hyperpage_cas_retries_total counter\n"
             "hyperpage_cas_retries_total 9223372036854775808\n");
    must_say("# TYPE cache_hits_total counter\ncache_hits_total 4\n");
    assert_null(strstr(buf_text(&text), "EOF"));
}

static void openmetrics_names_the_family_without_total_and_has_an_end(void **state)
{
    (void)state;
    tell(true);
    must_say("# TYPE hyperpage_cas_retries counter\nhyperpage_cas_retries_total 0\n");
    assert_string_equal(buf_text(&text) + text.len - 6, "# EOF\n");
}

static void series_of_a_family_stand_together_under_one_help(void **state)
{
    (void)state;
    totals[METRIC_redis_timeouts] = 1;
    totals[METRIC_redis_error_replies] = 2;
    totals[METRIC_cpu_worker] = 1234567;
    tell(false);
    must_say("# TYPE hyperpage_redis_errors_total counter\n"
             "hyperpage_redis_errors_total{kind=\"timeout\"} 1\n"
             "hyperpage_redis_errors_total{kind=\"reply\"} 2\n"
             "hyperpage_redis_errors_total{kind=\"connect\"} 0\n");
    must_say("hyperpage_process_role_cpu_seconds_total{role=\"worker\"} 1.234567\n");
    for (const char *help = buf_text(&text); (help = strstr(help, "# HELP ")) != NULL; help++) {
        char line[128];
        snprintf(line, sizeof line, "%.*s ", (int)(strcspn(help + 7, " ") + 7), help);
        assert_null(strstr(help + 1, line)); /* each once */
    }
}

static void only_requests_that_occurred_are_told(void **state)
{
    (void)state;
    totals[metrics_request_at(HTTP_PATCH, ENDPOINT_SESSION, 0)] = 3;
    totals[metrics_request_at(HTTP_OTHER, ENDPOINT_NONE, METRICS_STATUSES - 1)] = 5;
    tell(false);
    must_say("# TYPE hyperpage_requests_total counter\n"
             "hyperpage_requests_total{endpoint=\"-\",method=\"OTHER\",status=\"other\"} 5\n"
             "hyperpage_requests_total{endpoint=\"/api/sessions/*\",method=\"PATCH\",status=\"200\"} 3\n#");
    must_say(
        "api_requests_total{platform=\"hyperpage\",endpoint=\"/api/sessions/*\",method=\"PATCH\",status=\"200\"} 3\n#");
}

static void buckets_of_a_histogram_add_up_to_its_count(void **state)
{
    (void)state;
    uint64_t *h = totals + METRICS_PHASES_AT + PHASE_SERIALISE * METRICS_HISTOGRAM;
    h[0] = 1;
    h[12] = 2;
    h[METRICS_BUCKETS - 1] = 4;
    h[METRICS_SUM_US] = 61000001;
    tell(false);
    must_say("hyperpage_phase_seconds_bucket{phase=\"serialise\",le=\"0.0001\"} 1\n"
             "hyperpage_phase_seconds_bucket{phase=\"serialise\",le=\"0.00025\"} 1\n");
    must_say("le=\"0.5\"} 1\nhyperpage_phase_seconds_bucket{phase=\"serialise\",le=\"1.0\"} 3\n");
    must_say("hyperpage_phase_seconds_bucket{phase=\"serialise\",le=\"10.0\"} 3\n"
             "hyperpage_phase_seconds_bucket{phase=\"serialise\",le=\"+Inf\"} 7\n"
             "hyperpage_phase_seconds_sum{phase=\"serialise\"} 61.000001\n"
             "hyperpage_phase_seconds_count{phase=\"serialise\"} 7\n");
}

#define TEXT(f) cmocka_unit_test_teardown(f, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEXT(a_counter_is_a_family_of_one),
        TEXT(openmetrics_names_the_family_without_total_and_has_an_end),
        TEXT(series_of_a_family_stand_together_under_one_help),
        TEXT(only_requests_that_occurred_are_told),
        TEXT(buckets_of_a_histogram_add_up_to_its_count),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
