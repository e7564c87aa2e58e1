#include "clock.h"

#include "test.h"

#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int let_run(void **state)
{
    (void)state;
    clock_set(-1, -1);
    return 0;
}

static void a_set_clock_stands_still_until_it_is_let_go(void **state)
{
    (void)state;
    clock_set(1000, 7);
    assert_int_equal(clock_wall_ms(), 1000);
    assert_int_equal(clock_mono_ms(), 7);
    assert_int_equal(clock_mono_us(), 7000);
    clock_set(-1, 8); /* each for itself */
    assert_true(clock_wall_ms() > 1600000000000);
    assert_int_equal(clock_mono_ms(), 8);
    clock_set(0, 0);
    assert_int_equal(clock_wall_ms(), 0);
    assert_int_equal(clock_mono_ms(), 0);
    clock_set(-1, -1);
    assert_in_range(clock_wall_ms() / 1000 - time(NULL) + 1, 0, 2);
}

static void the_monotonic_clock_never_goes_back(void **state)
{
    (void)state;
    int64_t last_ms = clock_mono_ms(), last_us = clock_mono_us();
    for (int i = 0; i < 100000; i++) {
        int64_t us = clock_mono_us(), ms = clock_mono_ms();
        assert_true(us >= last_us && ms >= last_ms && ms >= us / 1000);
        last_us = us;
        last_ms = ms;
    }
}

/* Deadlines and "busy since" of one process are read by another. */
static void processes_share_the_monotonic_clock(void **state)
{
    (void)state;
    int to_us[2], status;
    int64_t before_us = clock_mono_us(), theirs_us;
    assert_int_equal(pipe(to_us), 0);
    pid_t pid = fork();
    if (pid == 0) {
        theirs_us = clock_mono_us();
        _exit(write(to_us[1], &theirs_us, sizeof theirs_us) != sizeof theirs_us);
    }
    assert_int_equal(read(to_us[0], &theirs_us, sizeof theirs_us), sizeof theirs_us);
    assert_true(before_us <= theirs_us && theirs_us <= clock_mono_us());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    close(to_us[0]);
    close(to_us[1]);
}

static void a_time_is_written_as_iso_8601(void **state)
{
    (void)state;
    static const struct {
        int64_t ms;
        const char *text;
    } times[] = {
        { 0, "1970-01-01T00:00:00.000Z" },
        { 1, "1970-01-01T00:00:00.001Z" },
        { 951782399999, "2000-02-28T23:59:59.999Z" },
        { 951782400000, "2000-02-29T00:00:00.000Z" },
        { 1769903999123, "2026-01-31T23:59:59.123Z" },
        { 4102444800000, "2100-01-01T00:00:00.000Z" },
        { 253402300799999, "9999-12-31T23:59:59.999Z" },
    };
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        char text[CLOCK_ISO_BYTES + 1];
        memset(text, '#', sizeof text);
        clock_iso(times[i].ms, text);
        assert_string_equal(text, times[i].text);
        assert_int_equal(text[CLOCK_ISO_BYTES], '#');
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_set_clock_stands_still_until_it_is_let_go, let_run),
        cmocka_unit_test(the_monotonic_clock_never_goes_back),
        cmocka_unit_test(processes_share_the_monotonic_clock),
        cmocka_unit_test(a_time_is_written_as_iso_8601),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
