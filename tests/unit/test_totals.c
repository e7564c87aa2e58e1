#include "totals.h"

#include "counted.h"
#include "test.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define A METRIC_sessions_created_total
#define B METRIC_sessions_deleted_total

static char dir[] = "/tmp/test_totals.XXXXXX";
static struct shared *sh;

static int begin(void **state)
{
    (void)state;
    struct err e;
    sh = mkdtemp(dir) != NULL ? shared_open(dir, &e) : NULL;
    return sh == NULL;
}

static int end(void **state)
{
    (void)state;
    metrics_use(NULL);
    shared_close(sh);
    for (const char *path; (path = state_path_in(dir))[0] != '\0';) unlink(path);
    int rc = rmdir(dir);
    strcpy(dir + sizeof dir - 7, "XXXXXX");
    return rc;
}

static void count(uint64_t a)
{
    struct err e;
    struct slot *s = shared_claim(sh, SLOT_WORKER, &e);
    assert_non_null(s);
    metrics_use(s->counter);
    metrics_add(A, a);
}

/* What another build left: its counters in another order, in slots of another size, one of which no build of ours
 * knows. */
static const char legend[] = "sessions_deleted_total\nnobody_knows_this\nsessions_created_total\n";
struct other {
    struct shared_head head;
    uint64_t base[2][3];
    struct {
        uint64_t more[5], counter[3];
    } slots[2];
    char legend[sizeof legend - 1];
};
#define OTHER_ID 77

static const char *other_path(void)
{
    static char path[256];
    snprintf(path, sizeof path, "%s/" SHARED_FILE "other", dir);
    return path;
}

static bool other_is_there(void)
{
    return access(other_path(), F_OK) == 0;
}

static struct other other_now(void)
{
    struct other o = { .head = { .magic = SHARED_MAGIC,
                                 .bytes = sizeof o,
                                 .id = OTHER_ID,
                                 .slots = 2,
                                 .slot_bytes = 64,
                                 .slots_at = offsetof(struct other, slots),
                                 .counters_at = 40,
                                 .counters = 3,
                                 .base_at = offsetof(struct other, base),
                                 .legend_at = offsetof(struct other, legend),
                                 .legend_bytes = sizeof legend - 1,
                                 .slots_used = 2,
                                 .folded = 1 },
                       .base = { { 1000, 1000, 1000 }, { 1, 2, 3 } }, /* the second counts */
                       .slots = { { .counter = { 10, 20, 30 } }, { .counter = { 100, 200, 300 } } } };
    memcpy(o.legend, legend, sizeof o.legend);
    return o;
}

/* Its descriptor, which holds what a process of that build would. */
static int write_other(const struct other *o)
{
    struct flock lock = { .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = SHARED_OPEN_BYTE, .l_len = 1 };
    int fd = open(other_path(), O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_int_equal(write(fd, o, sizeof *o), sizeof *o);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    return fd;
}

static void a_total_is_over_all_slots(void **state)
{
    (void)state;
    uint64_t expected = 0;
    struct shared *others[4];
    struct err e;
    for (size_t i = 0; i < 4; i++) {
        others[i] = shared_open(dir, &e);
        struct slot *s = shared_claim(others[i], SLOT_WORKER, &e);
        metrics_use(s->counter);
        metrics_add(A, (uint64_t)1 << (20 * i > 40 ? 40 : 20 * i));
        expected += (uint64_t)1 << (20 * i > 40 ? 40 : 20 * i);
    }
    assert_true(counted_in(sh, A) == expected);
    for (size_t i = 0; i < 4; i++) shared_close(others[i]);
    assert_true(counted_in(sh, A) == expected);
    assert_int_equal(counted_in(sh, B), 0);
}

static void another_build_s_counters_are_found_by_their_names(void **state)
{
    (void)state;
    struct other o = other_now();
    close(write_other(&o));
    count(5);
    assert_int_equal(counted_in(sh, A), 5 + 3 + 30 + 300);
    assert_int_equal(counted_in(sh, B), 1 + 10 + 100);
    uint64_t totals[METRICS_COUNTERS], sum = 0;
    totals_read(sh, totals);
    for (size_t i = 0; i < METRICS_COUNTERS; i++) sum += totals[i];
    assert_int_equal(sum, 338 + 111); /* and nothing else went anywhere */
}

static void they_are_taken_over_when_nobody_writes_them_any_more(void **state)
{
    (void)state;
    struct other o = other_now();
    int fd = write_other(&o);
    count(5);
    totals_fold(sh);
    assert_true(other_is_there());
    assert_int_equal(counted_in(sh, A), 338);
    close(fd);
    totals_fold(sh);
    assert_false(other_is_there());
    assert_int_equal(counted_in(sh, A), 338);
    totals_fold(sh);
    o.head.id = OTHER_ID + 1; /* that build comes and goes once more */
    close(write_other(&o));
    totals_fold(sh);
    assert_false(other_is_there());
    assert_int_equal(counted_in(sh, A), 338 + 333);
    assert_int_equal(counted_in(sh, B), 111 + 111);
}

/* Killed after it was added and before it was removed. */
static void a_file_that_was_taken_over_but_not_removed_counts_once(void **state)
{
    (void)state;
    struct other o = other_now();
    close(write_other(&o));
    totals_fold(sh);
    close(write_other(&o));
    assert_int_equal(counted_in(sh, A), 333);
    totals_fold(sh);
    assert_false(other_is_there());
    assert_int_equal(counted_in(sh, A), 333);
}

static void a_file_that_makes_no_sense_is_left_alone(void **state)
{
    (void)state;
    for (int wrong = 0; wrong < 8; wrong++) {
        struct other o = other_now();
        switch (wrong) {
        case 0:
            o.head.magic++;
            break;
        case 1:
            o.head.bytes++;
            break;
        case 2:
            o.head.slots = 4;
            break;
        case 3:
            o.head.slots_used = 3;
            break;
        case 4:
            o.head.counters = 4;
            break;
        case 5:
            o.head.legend_bytes += 100;
            break;
        case 6:
            o.head.base_at = UINT32_MAX - 7;
            break;
        case 7:
            o.head.slots_at += 4;
            break;
        }
        close(write_other(&o));
        totals_fold(sh);
        assert_int_equal(counted_in(sh, A), 0);
        assert_true(other_is_there());
    }
}

/* The file that it opened may be taken over and removed before it has its lock. */
static void a_build_that_comes_back_begins_a_file_of_its_own(void **state)
{
    (void)state;
    struct err e;
    char path[256];
    snprintf(path, sizeof path, "%s", state_path_in(dir));
    count(5);
    struct other o = other_now();
    int fd = write_other(&o);
    shared_close(sh);
    assert_int_equal(unlink(path), 0);
    sh = shared_open(dir, &e);
    assert_non_null(sh);
    assert_string_equal(state_path_in(dir), path);
    assert_int_equal(counted_in(sh, A), 333);
    close(fd);
}

#define FRESH(f) cmocka_unit_test_setup_teardown(f, begin, end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(a_total_is_over_all_slots),
        FRESH(another_build_s_counters_are_found_by_their_names),
        FRESH(they_are_taken_over_when_nobody_writes_them_any_more),
        FRESH(a_file_that_was_taken_over_but_not_removed_counts_once),
        FRESH(a_file_that_makes_no_sense_is_left_alone),
        FRESH(a_build_that_comes_back_begins_a_file_of_its_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
