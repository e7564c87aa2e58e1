#include "metrics.h"

#include "test.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static _Atomic uint64_t counters[METRICS_COUNTERS];

static int begin(void **state)
{
    (void)state;
    memset((void *)counters, 0, sizeof counters);
    metrics_use(counters);
    return 0;
}

static uint64_t sum(size_t from, size_t to)
{
    uint64_t n = 0;
    for (size_t i = from; i < to; i++) n += counters[i];
    return n;
}

static void what_nobody_owns_is_counted_nowhere(void **state)
{
    (void)state;
    metrics_use(NULL);
    metrics_add(METRIC_sessions_created_total, 7);
    metrics_request(HTTP_GET, ENDPOINT_SESSIONS, 200, 5);
    assert_int_equal(sum(0, METRICS_COUNTERS), 0);
}

static void a_request_is_counted_once_by_method_endpoint_and_status(void **state)
{
    (void)state;
    for (size_t m = 0; m < HTTP_METHODS; m++)
        for (size_t p = 0; p < ENDPOINT_COUNT; p++)
            for (size_t s = 0; s < METRICS_STATUSES; s++) {
                size_t at = metrics_request_at((enum http_method)m, (enum endpoint)p, s);
                assert_in_range(at, METRICS_REQUESTS_AT, METRICS_DURATIONS_AT - 1);
                assert_int_equal(counters[at], 0); /* nobody else's */
                metrics_request((enum http_method)m, (enum endpoint)p, metrics_statuses[s], 1);
                assert_int_equal(counters[at], 1);
            }
    assert_int_equal(sum(METRICS_REQUESTS_AT, METRICS_DURATIONS_AT), HTTP_METHODS * ENDPOINT_COUNT * METRICS_STATUSES);
}

static void a_status_that_is_not_in_the_table_is_counted_as_another(void **state)
{
    (void)state;
    metrics_request(HTTP_GET, ENDPOINT_NONE, 418, 1);
    assert_int_equal(counters[metrics_request_at(HTTP_GET, ENDPOINT_NONE, METRICS_STATUSES - 1)], 1);
}

/* Each time goes to the first bucket whose bound it does not exceed: `le` means less or equal. */
static void a_time_is_counted_in_its_bucket(void **state)
{
    (void)state;
    static const struct {
        int64_t us;
        const char *le;
    } rows[] = { { 0, "0.0001" },      { -3, "0.0001" },     { 100, "0.0001" },
                 { 101, "0.00025" },   { 1000, "0.001" },    { 1001, "0.0025" },
                 { 10000000, "10.0" }, { 10000001, "+Inf" }, { INT32_MAX, "+Inf" } };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        size_t at = METRICS_PHASES_AT + PHASE_REDIS * METRICS_HISTOGRAM, b = 0;
        begin(NULL);
        metrics_phase(PHASE_REDIS, rows[i].us);
        while (counters[at + b] == 0) b++;
        assert_string_equal(metrics_bounds[b], rows[i].le);
        assert_int_equal(counters[at + METRICS_SUM_US], rows[i].us > 0 ? rows[i].us : 0);
        assert_int_equal(sum(0, METRICS_COUNTERS), 1 + counters[at + METRICS_SUM_US]);
    }
}

static void processor_time_is_counted_once(void **state)
{
    (void)state;
    struct timespec t;
    metrics_cpu(METRIC_cpu_worker);
    for (volatile int i = 0; i < 3000000; i++) continue;
    metrics_cpu(METRIC_cpu_worker);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    uint64_t now_us = (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
    assert_true(counters[METRIC_cpu_worker] > 0 && counters[METRIC_cpu_worker] <= now_us);
}

static void every_counter_has_a_name_of_its_own(void **state)
{
    (void)state;
    struct buf legend = BUF_INIT(1024 * 1024);
    size_t lines = 0;
    metrics_legend(&legend);
    buf_append(&legend, "", 0);
    for (char *line = legend.data, *end; (end = strchr(line, '\n')) != NULL; line = end + 1, lines++) {
        char name[256];
        snprintf(name, sizeof name, "\n%.*s\n", (int)(end - line), line);
        assert_null(strstr(end, name));
    }
    assert_int_equal(lines, METRICS_COUNTERS);
    buf_done(&legend);
}

#define FRESH(f) cmocka_unit_test_setup(f, begin)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(what_nobody_owns_is_counted_nowhere),
        FRESH(a_request_is_counted_once_by_method_endpoint_and_status),
        FRESH(a_status_that_is_not_in_the_table_is_counted_as_another),
        FRESH(a_time_is_counted_in_its_bucket),
        FRESH(processor_time_is_counted_once),
        FRESH(every_counter_has_a_name_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
