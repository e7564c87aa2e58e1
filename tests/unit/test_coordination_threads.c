#include "coordination.h"

#include "clock.h"
#include "test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[] = "/tmp/test_coordination.XXXXXX";
static char path[64];

static int make_dir(void **state)
{
    (void)state;
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(path, sizeof path, "%s/coordination-3", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

static int remove_file(void **state)
{
    (void)state;
    clock_set(-1, -1);
    return unlink(path);
}

static struct coordination *open_it(void)
{
    struct err e = { 0 };
    struct coordination *c = coordination_open(dir, &e);
    if (c == NULL) fail_msg("%s", e.text);
    return c;
}

static void others_read_what_the_writer_wrote_and_a_successor_finds_it(void **state)
{
    (void)state;
    struct coordination *writer = open_it(), *reader = open_it();
    struct coordination_leader out, leader = { .pod = "a", .leader = "b", .term = 7, .since_ms = 8, .subscribed = 1 };
    coordination_read_leader(reader, &out);
    assert_string_equal(out.leader, "");
    coordination_begin(writer);
    coordination_write_leader(writer, &leader);
    coordination_close(writer);
    coordination_read_leader(reader, &out);
    assert_memory_equal(&out, &leader, sizeof leader);
    writer = open_it();
    coordination_begin(writer);
    coordination_read_leader(reader, &out);
    assert_memory_equal(&out, &leader, sizeof leader);
    coordination_close(writer);
    coordination_close(reader);
}

static void a_coordinator_that_shows_nothing_is_dead(void **state)
{
    (void)state;
    struct coordination *c = open_it();
    clock_set(-1, 100000);
    assert_false(coordination_alive(c, 100000));
    coordination_begin(c);
    assert_false(coordination_alive(c, 100000));
    assert_int_equal(coordination_beat_ms(c), 0);
    coordination_beat(c, 100000, 3);
    assert_int_equal(coordination_beat_ms(c), 100000);
    assert_true(coordination_alive(c, 100000 + COORDINATION_ALIVE_MS - 1));
    assert_false(coordination_alive(c, 100000 + COORDINATION_ALIVE_MS));
    coordination_close(c);
}

static void the_worst_lag_is_shown_for_a_while(void **state)
{
    (void)state;
    struct coordination *c = open_it();
    coordination_begin(c);
    coordination_beat(c, 100000, 30);
    coordination_beat(c, 100100, 2);
    assert_int_equal(coordination_lag_ms(c), 30);
    coordination_beat(c, 110100, 1);
    assert_int_equal(coordination_lag_ms(c), 30);
    coordination_beat(c, 120100, 4);
    assert_int_equal(coordination_lag_ms(c), 4);
    coordination_close(c);
}

static void a_new_generation_takes_the_proof_away(void **state)
{
    (void)state;
    struct coordination *c = open_it();
    coordination_begin(c);
    uint64_t generation = coordination_generation(c);
    coordination_stamp(c, 55);
    assert_int_equal(coordination_stamped_ms(c), 55);
    assert_true(coordination_is_coherent(c, 55 + COORDINATION_COHERENT_MS));
    assert_false(coordination_is_coherent(c, 55 + COORDINATION_COHERENT_MS + 1));
    coordination_new_generation(c);
    assert_true(coordination_generation(c) != generation);
    assert_int_equal(coordination_stamped_ms(c), 0);
    assert_false(coordination_is_coherent(c, 55));
    coordination_close(c);
}

/* RUN_DIR may lie on a disk. Then the monotonic times in it are those of a clock that began anew. */
static void what_was_proven_before_the_machine_was_started_anew_is_not_proven(void **state)
{
    (void)state;
    struct coordination *c = open_it();
    uint64_t another = clock_boot() + 1;
    coordination_begin(c);
    coordination_beat(c, 100000, 3);
    coordination_stamp(c, 100000);
    FILE *f = fopen(path, "r+");
    assert_non_null(f);
    assert_int_equal(fseek(f, sizeof(uint64_t), SEEK_SET), 0); /* behind the magic number */
    assert_int_equal(fwrite(&another, sizeof another, 1, f), 1);
    assert_int_equal(fclose(f), 0);
    for (int64_t now_ms = 5; now_ms < 200000; now_ms += 100) assert_false(coordination_is_coherent(c, now_ms));
    assert_int_equal(coordination_stamped_ms(c), 0);
    assert_int_equal(coordination_beat_ms(c), 0);
    coordination_begin(c);
    assert_false(coordination_is_coherent(c, 100000));
    coordination_stamp(c, 300000);
    assert_true(coordination_is_coherent(c, 300000));
    coordination_close(c);
}

static void a_successor_begins_without_messages_that_wait(void **state)
{
    (void)state;
    struct coordination *c = open_it(), *reader = open_it();
    coordination_begin(c);
    coordination_show_waiting(c, 12);
    assert_int_equal(coordination_waiting(reader), 12);
    coordination_begin(c);
    assert_int_equal(coordination_waiting(reader), 0);
    coordination_close(reader);
    coordination_close(c);
}

static void what_was_counted_outlives_who_counted(void **state)
{
    (void)state;
    struct coordination_survey out,
        in = { .cleaned_ms = 1, .sessions_ms = 2, .sessions = 2, .jobs_ms = 3, .jobs = { 4, 5, 6, 7, 8, 9 } };
    struct coordination *c = open_it(), *reader = open_it();
    coordination_begin(c);
    coordination_write_survey(c, &in);
    coordination_close(c);
    coordination_read_survey(reader, &out);
    assert_memory_equal(&out, &in, sizeof in);
    coordination_close(reader);
}

static void the_row_that_nobody_reports_makes_room(void **state)
{
    (void)state;
    struct coordination_limits ls = { .count = 0 };
    char name[16];
    for (int i = 0; i < COORDINATION_MOST_LIMITS; i++) {
        snprintf(name, sizeof name, "p%d", i);
        coordination_limit_row(&ls, name, "global")->updated_ms = 1000 + (i * 7) % COORDINATION_MOST_LIMITS;
    }
    assert_int_equal(ls.count, COORDINATION_MOST_LIMITS);
    assert_string_equal(coordination_limit_row(&ls, "p9", "global")->platform, "p9");
    struct coordination_limit *row = coordination_limit_row(&ls, "p9", "core");
    assert_string_equal(row->endpoint, "core");
    assert_ptr_equal(row, &ls.limit[0]); /* p0 was the oldest */
    assert_int_equal(ls.count, COORDINATION_MOST_LIMITS);
}

static void a_file_of_something_else_is_refused(void **state)
{
    (void)state;
    struct err e = { 0 };
    FILE *f = fopen(path, "w");
    fputs("precious", f);
    fclose(f);
    assert_null(coordination_open(dir, &e));
    assert_non_null(strstr(e.text, path));
    assert_null(coordination_open("/nowhere", &e));
}

/* --- one writes, others read: each reading is one of the writings, whole --- */

static atomic_bool over;

static void *keep_writing(void *arg)
{
    struct coordination *c = arg;
    struct coordination_pods pods = { 0 };
    for (int64_t n = 1; !atomic_load(&over); n++) {
        pods.count = pods.all = n;
        for (int i = 0; i < COORDINATION_MOST_PODS; i++) pods.pod[i].until_ms = n;
        coordination_write_pods(c, &pods);
    }
    return NULL;
}

static void *keep_reading(void *arg)
{
    struct coordination *c = arg;
    struct coordination_pods pods;
    int64_t last = 0, torn = 0;
    for (int times = 0; times < 2000; times++) {
        coordination_read_pods(c, &pods);
        torn += pods.count < last || pods.all != pods.count;
        for (int i = 0; i < COORDINATION_MOST_PODS; i++) torn += pods.pod[i].until_ms != pods.count;
        last = pods.count;
    }
    return torn == 0 ? NULL : arg;
}

static void nobody_reads_half_of_two_writings(void **state)
{
    (void)state;
    struct coordination *c = open_it();
    pthread_t writer, readers[3];
    atomic_store(&over, false);
    pthread_create(&writer, NULL, keep_writing, c);
    for (int i = 0; i < 3; i++) pthread_create(&readers[i], NULL, keep_reading, c);
    void *torn = NULL, *result;
    for (int i = 0; i < 3; i++) {
        pthread_join(readers[i], &result);
        if (result != NULL) torn = result;
    }
    atomic_store(&over, true);
    pthread_join(writer, NULL);
    assert_null(torn);
    coordination_close(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(others_read_what_the_writer_wrote_and_a_successor_finds_it, remove_file),
        cmocka_unit_test_teardown(a_coordinator_that_shows_nothing_is_dead, remove_file),
        cmocka_unit_test_teardown(the_worst_lag_is_shown_for_a_while, remove_file),
        cmocka_unit_test_teardown(a_new_generation_takes_the_proof_away, remove_file),
        cmocka_unit_test_teardown(what_was_proven_before_the_machine_was_started_anew_is_not_proven, remove_file),
        cmocka_unit_test_teardown(a_successor_begins_without_messages_that_wait, remove_file),
        cmocka_unit_test_teardown(what_was_counted_outlives_who_counted, remove_file),
        cmocka_unit_test(the_row_that_nobody_reports_makes_room),
        cmocka_unit_test_teardown(a_file_of_something_else_is_refused, remove_file),
        cmocka_unit_test_teardown(nobody_reads_half_of_two_writings, remove_file),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
