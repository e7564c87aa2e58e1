#include "breaker.h"

#include "clock.h"
#include "log.h"
#include "test.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The file's layout is a promise between versions; the test knows it by heart. */
struct layout {
    char magic[8];
    uint32_t version, unused;
    uint64_t boot;
    _Alignas(64) uint64_t outage;
    _Alignas(64) uint64_t reports;
    _Alignas(64) uint64_t next_probe_ms;
    _Alignas(64) uint64_t dirty;
};

static char dir[] = "/tmp/test_breaker.XXXXXX";
static char path[64], log_path[64];

static int make_dir(void **state)
{
    (void)state;
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(path, sizeof path, "%s/breaker", dir);
    snprintf(log_path, sizeof log_path, "%s/log", dir);
    return !log_open("test", LOG_INFO, LOG_TEXT, log_path, NULL);
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(log_path);
    return rmdir(dir);
}

static int remove_file(void **state)
{
    (void)state;
    clock_set(-1, -1);
    return unlink(path) | truncate(log_path, 0);
}

static struct breaker *open_breaker(void)
{
    struct err e = { 0 };
    struct breaker *b = breaker_open(dir, &e);
    if (b == NULL) print_error("%s\n", e.text);
    assert_non_null(b);
    return b;
}

static struct layout *map_file(void)
{
    int fd = open(path, O_RDWR);
    struct layout *l = mmap(NULL, sizeof *l, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    assert_ptr_not_equal(l, MAP_FAILED);
    return l;
}

static void assert_logged(const char *text)
{
    char all[4096] = "";
    FILE *f = fopen(log_path, "r");
    size_t n = fread(all, 1, sizeof all - 1, f);
    fclose(f);
    all[n] = '\0';
    if (strstr(all, text) == NULL) print_error("log holds \"%s\", not \"%s\"\n", all, text);
    assert_non_null(strstr(all, text));
}

/* -------------------------------------------------------------------------------------------------------------- */

static void the_first_to_see_the_loss_opens_it_and_says_so(void **state)
{
    (void)state;
    struct breaker *b = open_breaker(), *other = open_breaker();
    struct breaker_outage o;
    clock_set(1700000010000, 60000);
    assert_false(breaker_is_open(b));
    assert_false(breaker_outage(b, &o));
    assert_true(breaker_trip(b, "connection refused", 50000));
    assert_true(breaker_is_open(other));
    assert_false(breaker_trip(other, "timeout", 50001));
    assert_false(breaker_trip(b, "timeout", 50002));
    assert_true(breaker_outage(other, &o));
    assert_int_equal(o.number, 1);
    assert_int_equal(o.since_ms, 50000);
    assert_int_equal(breaker_since_ms(other), 50000);
    assert_int_equal(o.since_wall_ms, 1700000000000);
    assert_int_equal(o.reports, 2);
    assert_logged("redis lost, no request waits for it any more: error=\"connection refused\" outage=1");
    breaker_close(other);
    breaker_close(b);
}

static void a_probe_that_succeeds_closes_it(void **state)
{
    (void)state;
    struct breaker *b = open_breaker();
    struct breaker_outage o;
    assert_false(breaker_reset(b, 1)); /* nothing was lost */
    assert_true(breaker_trip(b, "gone", 1000));
    assert_false(breaker_reset(b, 1100)); /* and nobody has looked */
    assert_true(breaker_is_open(b));
    assert_true(breaker_may_probe(b, 1200, 200));
    assert_true(breaker_reset(b, 3500));
    assert_false(breaker_is_open(b));
    assert_false(breaker_outage(b, &o));
    assert_int_equal(breaker_since_ms(b), 0);
    assert_logged("redis back, requests go to it again: away_ms=2500 outage=1 reports=1");
    assert_true(breaker_trip(b, "gone again", 4000));
    assert_true(breaker_outage(b, &o));
    assert_int_equal(o.number, 2);
    assert_int_equal(o.since_ms, 4000);
    breaker_close(b);
}

static void one_process_probes_at_a_time(void **state)
{
    (void)state;
    struct breaker *b = open_breaker(), *other = open_breaker();
    assert_false(breaker_may_probe(b, 1000, 200)); /* no outage */
    breaker_trip(b, "gone", 1000);
    assert_true(breaker_may_probe(b, 1000, 200));
    assert_false(breaker_may_probe(other, 1249, 200));
    breaker_probe_failed(b);
    assert_false(breaker_may_probe(other, 1249, 200)); /* not more often than that */
    assert_true(breaker_may_probe(other, 1250, 2000)); /* a probe that may take long */
    assert_false(breaker_may_probe(b, 1600, 200));
    breaker_probe_failed(other);
    assert_true(breaker_may_probe(b, 1600, 2000)); /* this one dies */
    assert_false(breaker_may_probe(other, 3599, 200));
    assert_true(breaker_may_probe(other, 3600, 200));
    breaker_probe_failed(b); /* so late that it is somebody else's turn */
    assert_false(breaker_may_probe(b, 3849, 200));
    assert_true(breaker_may_probe(b, 3850, 200));
    breaker_close(other);
    breaker_close(b);
}

static void a_prober_that_slept_cannot_end_a_later_outage(void **state)
{
    (void)state;
    struct breaker *slow = open_breaker(), *b = open_breaker();
    breaker_trip(b, "gone", 1000);
    assert_true(breaker_may_probe(slow, 1000, 200));
    assert_true(breaker_may_probe(b, 1300, 200));
    assert_true(breaker_reset(b, 1301));
    assert_false(breaker_reset(slow, 1302)); /* it is over already */
    assert_true(breaker_may_probe(slow, 1600, 200) == false);
    breaker_trip(b, "gone", 1400);
    assert_true(breaker_may_probe(slow, 1700, 200));
    assert_true(breaker_may_probe(b, 2000, 200));
    assert_true(breaker_reset(b, 2001));
    breaker_trip(b, "gone", 2100);
    assert_false(breaker_reset(slow, 2200)); /* its probe was of another outage */
    assert_true(breaker_is_open(b));
    breaker_close(b);
    breaker_close(slow);
}

static void the_file_is_private_reserved_and_keeps_its_layout(void **state)
{
    (void)state;
    struct stat st;
    struct breaker *b = open_breaker();
    struct layout *l = map_file();
    breaker_trip(b, "gone", 77);
    breaker_dirty_add(b, 3);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_true((size_t)st.st_blocks * 512 >= sizeof(struct layout));
    assert_memory_equal(l->magic, "HP_break", 8);
    assert_int_equal(l->version, 1);
    assert_true(l->boot == clock_boot());
    assert_true(l->outage == ((uint64_t)1 << 63 | (uint64_t)1 << 40 | 77));
    assert_true(breaker_may_probe(b, 100, 0));
    assert_true(l->next_probe_ms == 350);
    assert_true(l->dirty == ((uint64_t)1 << 32 | 3));
    munmap(l, sizeof *l);
    breaker_close(b);
}

static void zeros_are_a_closed_breaker_and_a_longer_file_is_left_long(void **state)
{
    (void)state;
    struct stat st;
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    assert_int_equal(ftruncate(fd, 8192), 0);
    assert_int_equal(pwrite(fd, "later", 5, 6000), 5);
    struct breaker *b = open_breaker();
    assert_false(breaker_is_open(b));
    assert_int_equal(breaker_dirty(b), 0);
    struct layout *l = map_file();
    l->version = 9; /* a newer program's; an older one leaves it */
    breaker_close(b);
    b = open_breaker();
    assert_int_equal(l->version, 9);
    char later[5];
    assert_int_equal(fstat(fd, &st), 0);
    assert_int_equal(st.st_size, 8192);
    assert_int_equal(pread(fd, later, 5, 6000), 5);
    assert_memory_equal(later, "later", 5);
    munmap(l, sizeof *l);
    breaker_close(b);
    close(fd);
}

static void an_outage_outlives_all_processes_but_not_the_machine(void **state)
{
    (void)state;
    struct breaker *b = open_breaker();
    breaker_trip(b, "gone", 1000);
    assert_true(breaker_may_probe(b, 100000000, 0));
    breaker_dirty_add(b, 5);
    breaker_close(b);
    b = open_breaker();
    assert_true(breaker_is_open(b));
    breaker_close(b);
    struct layout *l = map_file();
    l->boot ^= 1;
    b = open_breaker();
    assert_false(breaker_is_open(b));
    assert_int_equal(breaker_dirty(b), 5);
    breaker_trip(b, "gone", 10);
    assert_true(breaker_may_probe(b, 10, 0)); /* though the claim of then lay far ahead */
    munmap(l, sizeof *l);
    breaker_close(b);
}

static void a_file_of_something_else_is_refused(void **state)
{
    (void)state;
    struct err e = { 0 };
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "precious", 8), 8);
    close(fd);
    assert_null(breaker_open(dir, &e));
    assert_int_equal(e.kind, ERR_INPUT);
    assert_non_null(strstr(e.text, path));
    assert_null(breaker_open("/nowhere", &e));
    assert_int_equal(e.kind, ERR_INPUT);
}

static void dirty_sessions_are_never_counted_too_low(void **state)
{
    (void)state;
    struct breaker *b = open_breaker();
    breaker_dirty_add(b, 1);
    breaker_dirty_add(b, 2);
    uint64_t mark = breaker_dirty_mark(b);
    assert_int_equal(breaker_dirty_of(mark), 3);
    breaker_dirty_add(b, 1); /* somebody writes while we replay */
    assert_false(breaker_dirty_settle(b, mark, 0));
    assert_int_equal(breaker_dirty(b), 4);
    mark = breaker_dirty_mark(b);
    assert_true(breaker_dirty_settle(b, mark, 1));
    assert_false(breaker_dirty_settle(b, mark, 0)); /* a mark is good for once */
    assert_int_equal(breaker_dirty(b), 1);
    breaker_close(b);
}

/* --- races of processes --- */

#define PROCESSES 6
#define OUTAGES   200

struct race {
    _Atomic int ready, round;
    _Atomic int64_t now_ms;
    _Atomic int trips, probes, resets, done;
};

/* In each round all trip, all try to probe for a second of the race's own clock, all who may close it. */
static void run(struct race *r)
{
    struct breaker *b = breaker_open(dir, NULL);
    if (b == NULL) _exit(1);
    for (int round = 1; round <= OUTAGES; round++) {
        atomic_fetch_add(&r->ready, 1);
        while (atomic_load(&r->round) < round) sched_yield();
        if (breaker_trip(b, "race", atomic_load(&r->now_ms))) atomic_fetch_add(&r->trips, 1);
        int64_t begin_ms = atomic_load(&r->now_ms);
        for (int64_t ms = 0; ms < 1000; ms += 10)
            if (breaker_may_probe(b, begin_ms + ms, 0)) atomic_fetch_add(&r->probes, 1);
        atomic_fetch_add(&r->done, 1);
        while (atomic_load(&r->done) < PROCESSES * round) sched_yield();
        if (breaker_reset(b, begin_ms + 1000)) atomic_fetch_add(&r->resets, 1);
        breaker_dirty_add(b, 1);
    }
    _exit(0);
}

static void of_many_processes_one_opens_one_probes_and_one_closes(void **state)
{
    (void)state;
    struct race *r = mmap(NULL, sizeof *r, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid[PROCESSES];
    for (int i = 0; i < PROCESSES; i++)
        if ((pid[i] = fork()) == 0) run(r);
    for (int round = 1; round <= OUTAGES; round++) {
        while (atomic_load(&r->ready) < PROCESSES * round) sched_yield();
        atomic_store(&r->now_ms, (int64_t)round * 10000);
        atomic_store(&r->round, round);
    }
    for (int i = 0, status; i < PROCESSES; i++) {
        waitpid(pid[i], &status, 0);
        assert_int_equal(status, 0);
    }
    struct breaker *b = open_breaker();
    assert_int_equal(r->trips, OUTAGES);
    assert_int_equal(r->resets, OUTAGES);
    assert_in_range(r->probes, OUTAGES, OUTAGES * 4); /* 0, 250, 500, 750; fewer if a late clock claimed first */
    assert_int_equal(breaker_dirty(b), PROCESSES * OUTAGES);
    breaker_close(b);
    munmap(r, sizeof *r);
}

/* Whoever is killed wherever, the next outage begins and ends. */
static void killed_processes_leave_nothing_half_done(void **state)
{
    (void)state;
    struct breaker *b = open_breaker();
    for (int i = 0; i < 100; i++) {
        int64_t begin_ms = i * (int64_t)1000000000;
        pid_t pid = fork();
        if (pid == 0) {
            for (int64_t now_ms = begin_ms + 1;; now_ms += 300) {
                breaker_trip(b, "killed soon", now_ms);
                if (breaker_may_probe(b, now_ms, 0)) breaker_reset(b, now_ms + 1);
            }
        }
        usleep((useconds_t)(rand() % 2000));
        kill(pid, SIGKILL);
        waitpid(pid, NULL, 0);
        struct breaker_outage o;
        if (breaker_outage(b, &o)) assert_true(o.since_ms > 0 && o.number > 0);
        int64_t now_ms = begin_ms + 900000000; /* later than the other one can have come */
        breaker_trip(b, "test", now_ms);
        assert_true(breaker_may_probe(b, now_ms, 0));
        assert_true(breaker_reset(b, now_ms + 1));
    }
    breaker_close(b);
}

#define TEST(f) cmocka_unit_test_teardown(f, remove_file)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(the_first_to_see_the_loss_opens_it_and_says_so),
        TEST(a_probe_that_succeeds_closes_it),
        TEST(one_process_probes_at_a_time),
        TEST(a_prober_that_slept_cannot_end_a_later_outage),
        TEST(the_file_is_private_reserved_and_keeps_its_layout),
        TEST(zeros_are_a_closed_breaker_and_a_longer_file_is_left_long),
        TEST(an_outage_outlives_all_processes_but_not_the_machine),
        TEST(a_file_of_something_else_is_refused),
        TEST(dirty_sessions_are_never_counted_too_low),
        TEST(of_many_processes_one_opens_one_probes_and_one_closes),
        TEST(killed_processes_leave_nothing_half_done),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
