#include "metrics.h"

#include "test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[] = "/tmp/test_metrics.XXXXXX";
static struct shared *sh;

static int open_state(void **state)
{
    (void)state;
    struct err e;
    sh = mkdtemp(dir) != NULL ? shared_open(dir, &e) : NULL;
    return sh == NULL;
}

static int close_state(void **state)
{
    (void)state;
    char path[64];
    metrics_use(NULL);
    shared_close(sh);
    snprintf(path, sizeof path, "%s/pool.state-1", dir);
    unlink(path);
    rmdir(dir);
    strcpy(dir + sizeof dir - 7, "XXXXXX");
    return 0;
}

static void what_nobody_owns_is_counted_nowhere(void **state)
{
    (void)state;
    metrics_use(NULL);
    metrics_add(METRIC_requests_total, 7);
    assert_int_equal(metrics_sum(sh, METRIC_requests_total), 0);
}

static void a_sum_is_over_all_slots(void **state)
{
    (void)state;
    uint64_t expected = 0;
    for (size_t i = 0; i < SHARED_SLOTS; i++) {
        metrics_use(shared_slot(sh, i));
        metrics_add(METRIC_sessions_created_total, i + 1);
        metrics_add(METRIC_sessions_deleted_total, 0);
        expected += i + 1;
    }
    assert_int_equal(metrics_sum(sh, METRIC_sessions_created_total), expected);
    assert_int_equal(metrics_sum(sh, METRIC_sessions_deleted_total), 0);
    assert_int_equal(metrics_sum(sh, METRIC_requests_total), 0);
    metrics_use(shared_slot(sh, 0));
    metrics_add(METRIC_sessions_created_total, (uint64_t)1 << 40); /* beyond 32 bits */
    assert_true(metrics_sum(sh, METRIC_sessions_created_total) == expected + ((uint64_t)1 << 40));
}

static void metrics_are_prometheus_text(void **state)
{
    (void)state;
    struct buf text = BUF_INIT(64 * 1024);
    metrics_use(shared_slot(sh, 3));
    metrics_add(METRIC_redis_timeouts_total, 3);
    metrics_text(sh, &text);
    assert_non_null(strstr(buf_text(&text),
                           "# HELP hyperpage_redis_timeouts_total Commands that Redis did not answer in time.\n"
                           "# TYPE hyperpage_redis_timeouts_total counter\n"
                           "hyperpage_redis_timeouts_total 3\n"));
    static const char *const names[] = {
#define METRIC(name, help) "\nhyperpage_" #name " ",
#define KEPT(name, help)   "\n" #name " ",
#include "metrics.def"
    };
    for (size_t m = 0; m < METRIC_COUNT; m++) {
        const char *at = strstr(buf_text(&text), names[m]);
        assert_non_null(at);
        assert_null(strstr(at + 1, names[m]));
    }
    assert_int_equal(text.data[text.len - 1], '\n');
    buf_done(&text);
}

#define FRESH(f) cmocka_unit_test_setup_teardown(f, open_state, close_state)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(what_nobody_owns_is_counted_nowhere),
        FRESH(a_sum_is_over_all_slots),
        FRESH(metrics_are_prometheus_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
