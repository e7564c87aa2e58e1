#include "turns.h"

#include "clock.h"
#include "test.h"

#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* The file's layout is a promise between versions; the test knows it by heart. */
struct layout {
    char magic[8];
    uint32_t version;
    uint32_t places_used;
    _Alignas(64) _Atomic uint32_t next;
    _Alignas(64) _Atomic uint32_t serving;
    struct {
        _Alignas(64) _Atomic uint64_t claim;
    } place[1024];
    _Alignas(64) _Atomic uint32_t paused_until;
};
#define DRAWING ((uint64_t)1 << 32)

static char dir[] = "/tmp/test_turns.XXXXXX";
static char path[64];

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    (void)state;
    return rmdir(dir);
}

static int fresh_file(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "%s/turns", dir);
    return 0;
}

static int remove_file(void **state)
{
    (void)state;
    return unlink(path);
}

static struct turns *open_turns(void)
{
    struct err e = { 0 };
    struct turns *t = turns_open(path, &e);
    if (t == NULL) fprintf(stderr, "%s\n", e.text);
    return t;
}

static struct layout *map_file(void)
{
    int fd = open(path, O_RDWR);
    struct layout *q = mmap(NULL, sizeof *q, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    assert_ptr_not_equal(q, MAP_FAILED);
    return q;
}

/* Runs `job` in a process of its own and returns when it has said that it is where it should be (one byte). */
static pid_t start(void (*job)(int said_fd, void *arg), void *arg)
{
    int said[2];
    char c;
    assert_int_equal(pipe(said), 0);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion must not leave it behind */
        close(said[0]);
        job(said[1], arg);
        _exit(0);
    }
    close(said[1]);
    assert_int_equal(read(said[0], &c, 1), 1);
    close(said[0]);
    return pid;
}

static void say(int fd)
{
    if (write(fd, "!", 1) != 1) _exit(9);
}

static void finish(pid_t pid, int signal)
{
    int status;
    if (signal != 0) kill(pid, signal);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (signal == 0) assert_int_equal(status, 0);
}

static void wait_until_drawn(struct layout *q, uint32_t tickets)
{
    int64_t give_up_ms = clock_mono_ms() + 5000;
    while (atomic_load(&q->next) != tickets) {
        assert_true(clock_mono_ms() < give_up_ms);
        sched_yield();
    }
}

static void take_and_hold(int said_fd, void *arg)
{
    (void)arg;
    struct turns *t = open_turns();
    if (t == NULL || !turns_take(t, CLOCK_NEVER)) _exit(1);
    say(said_fd);
    pause();
}

static void take_once(int said_fd, void *arg)
{
    (void)arg;
    struct turns *t = open_turns();
    if (t == NULL) _exit(1);
    say(said_fd);
    if (!turns_take(t, CLOCK_NEVER)) _exit(2);
    turns_leave(t);
}

/* -------------------------------------------------------------------------------------------------------------- */

static void a_turn_nobody_else_wants_costs_no_system_call(void **state)
{
    (void)state;
    struct turns *t = open_turns();
    assert_non_null(t);
    const int times = 1000000;
    int64_t begin_us = clock_mono_us();
    for (int i = 0; i < times; i++) {
        if (!turns_take(t, 0)) fail();
        turns_leave(t);
    }
    double ns = (double)(clock_mono_us() - begin_us) * 1000 / times;
    print_message("           take and leave: %.0f ns\n", ns);
    assert_true(ns < 5 * 200);
    turns_close(t);
}

static void the_file_is_private_and_keeps_its_layout(void **state)
{
    (void)state;
    struct stat st;
    struct turns *t = open_turns();
    assert_non_null(t);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_true((size_t)st.st_size >= sizeof(struct layout));
    assert_true((size_t)st.st_blocks * 512 >= sizeof(struct layout)); /* reserved, no hole */
    struct layout *q = map_file();
    assert_memory_equal(q->magic, "_HPturns", 8);
    assert_int_equal(q->version, 1);
    assert_int_equal(q->places_used, 1);
    assert_true(turns_take(t, 0));
    assert_int_equal(atomic_load(&q->next), 1);
    assert_int_equal(atomic_load(&q->serving), 0);
    assert_true(atomic_load(&q->place[0].claim) == (uint64_t)2 << 32);
    turns_close(t); /* leaves */
    assert_int_equal(atomic_load(&q->serving), 1);
    munmap(q, sizeof *q);
}

static void a_file_of_something_else_is_refused(void **state)
{
    (void)state;
    struct err e = { 0 };
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, "precious", 8), 8);
    close(fd);
    assert_null(turns_open(path, &e));
    assert_int_equal(e.kind, ERR_INPUT);
    assert_non_null(strstr(e.text, path));
    assert_null(turns_open("/nowhere/turns", &e));
    assert_int_equal(e.kind, ERR_INPUT);
}

struct order {
    _Atomic uint32_t served;
    uint32_t who[8];
    uint32_t me;
};

static void take_in_order(int said_fd, void *arg)
{
    struct order *o = arg;
    struct turns *t = open_turns();
    uint32_t me = o->me;
    if (t == NULL) _exit(1);
    say(said_fd);
    if (!turns_take(t, CLOCK_NEVER)) _exit(2);
    o->who[atomic_fetch_add(&o->served, 1)] = me;
    turns_leave(t);
}

/* Also over the edge where tickets start again from 0. */
static void turns_come_in_the_order_of_asking(void **state)
{
    (void)state;
    struct order *o = mmap(NULL, sizeof *o, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct turns *t = open_turns();
    struct layout *q = map_file();
    const uint32_t begin = UINT32_MAX - 3;
    pid_t pid[8];
    atomic_store(&q->next, begin);
    atomic_store(&q->serving, begin);
    assert_true(turns_take(t, 0));
    for (uint32_t i = 0; i < 8; i++) {
        o->me = i;
        pid[i] = start(take_in_order, o);
        wait_until_drawn(q, begin + 2 + i);
    }
    assert_int_equal(atomic_load(&o->served), 0);
    turns_leave(t);
    for (int i = 0; i < 8; i++) finish(pid[i], 0);
    for (uint32_t i = 0; i < 8; i++) assert_int_equal(o->who[i], i);
    turns_close(t);
    munmap(o, sizeof *o);
    munmap(q, sizeof *q);
}

static void who_gives_up_holds_nobody_up(void **state)
{
    (void)state;
    struct turns *first = open_turns(), *second = open_turns();
    struct layout *q = map_file();
    assert_true(turns_take(first, 0));
    int64_t begin_ms = clock_mono_ms();
    assert_false(turns_take(second, begin_ms + 30));
    int64_t waited_ms = clock_mono_ms() - begin_ms;
    assert_in_range(waited_ms, 29, 300);
    pid_t pid = start(take_once, NULL);
    wait_until_drawn(q, 3);
    turns_leave(first);
    finish(pid, 0);
    assert_true(turns_take(second, 0)); /* the queue is empty, so at once */
    turns_close(second);
    turns_close(first);
    munmap(q, sizeof *q);
}

/* Time until a turn comes though the one whose it is was killed. */
static int64_t take_after_death_ms(struct turns *t)
{
    int64_t begin_ms = clock_mono_ms();
    assert_true(turns_take(t, begin_ms + 5000));
    int64_t took_ms = clock_mono_ms() - begin_ms;
    turns_leave(t);
    return took_ms;
}

static void a_killed_owner_loses_its_turn(void **state)
{
    (void)state;
    struct turns *t = open_turns();
    int64_t worst_ms = 0;
    for (int i = 0; i < 10; i++) {
        finish(start(take_and_hold, NULL), SIGKILL);
        int64_t took_ms = take_after_death_ms(t);
        if (took_ms > worst_ms) worst_ms = took_ms;
    }
    print_message("           turn of a killed owner back after at most %d ms\n", (int)worst_ms);
    assert_true(worst_ms <= 5 * 20);
    turns_close(t);
}

static void killed_waiters_lose_their_turns(void **state)
{
    (void)state;
    struct turns *t = open_turns();
    struct layout *q = map_file();
    pid_t pid[4];
    assert_true(turns_take(t, 0));
    for (uint32_t i = 0; i < 4; i++) {
        pid[i] = start(take_once, NULL);
        wait_until_drawn(q, i + 2);
    }
    for (int i = 0; i < 4; i++) finish(pid[i], SIGKILL);
    turns_leave(t);
    int64_t took_ms = take_after_death_ms(t);
    print_message("           past 4 killed waiters after %d ms\n", (int)took_ms);
    assert_true(took_ms <= 5 * 4 * 10);
    turns_close(t);
    munmap(q, sizeof *q);
}

/* Stands where a process is after it has drawn its ticket and before it has noted it. */
static void draw_and_stop(int said_fd, void *arg)
{
    (void)arg;
    struct turns *t = open_turns();
    if (t == NULL) _exit(1);
    struct layout *q = map_file();
    for (int n = 1024; n-- > 0;) /* its place is the last that is taken */
        if (n + 1 == (int)q->places_used) atomic_store(&q->place[n].claim, DRAWING);
    atomic_fetch_add(&q->next, 1);
    say(said_fd);
    pause();
}

static void killed_between_drawing_and_noting_a_ticket(void **state)
{
    (void)state;
    struct turns *t = open_turns();
    pid_t pid = start(draw_and_stop, NULL);
    assert_false(turns_take(t, clock_mono_ms() + 60)); /* it lives: it may be about to note it */
    finish(pid, SIGKILL);
    int64_t took_ms = take_after_death_ms(t);
    print_message("           lost ticket passed over after %d ms\n", (int)took_ms);
    assert_true(took_ms <= 5 * 20);
    turns_close(t);
}

static void a_stopped_owner_is_passed_over(void **state)
{
    (void)state;
    struct turns *t = open_turns();
    pid_t pid = start(take_and_hold, NULL);
    kill(pid, SIGSTOP);
    int64_t took_ms = take_after_death_ms(t);
    print_message("           a stopped owner is passed over after %d ms\n", (int)took_ms);
    assert_in_range(took_ms, 200, 5 * 300);
    finish(pid, SIGKILL);
    turns_close(t);
}

struct crowd {
    _Atomic int32_t inside;
    _Atomic uint32_t collisions;
    _Atomic uint32_t turns[4];
    _Atomic int64_t worst_wait_us;
    _Atomic int stop;
    int me;
};

static void take_turns_until_told(int said_fd, void *arg)
{
    struct crowd *c = arg;
    int me = c->me;
    struct turns *t = open_turns();
    if (t == NULL) _exit(1);
    say(said_fd);
    while (!atomic_load(&c->stop)) {
        int64_t begin_us = clock_mono_us();
        if (!turns_take(t, CLOCK_NEVER)) _exit(2);
        int64_t waited_us = clock_mono_us() - begin_us;
        if (waited_us > atomic_load(&c->worst_wait_us)) atomic_store(&c->worst_wait_us, waited_us);
        if (atomic_fetch_add(&c->inside, 1) != 0) atomic_fetch_add(&c->collisions, 1);
        for (int64_t until_us = clock_mono_us() + 50; clock_mono_us() < until_us;) continue; /* a short commit */
        atomic_fetch_sub(&c->inside, 1);
        atomic_fetch_add(&c->turns[me], 1);
        turns_leave(t);
    }
    turns_close(t);
}

static struct crowd *new_crowd(void)
{
    return mmap(NULL, sizeof(struct crowd), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void a_crowd_takes_turns_evenly(void **state)
{
    (void)state;
    struct crowd *c = new_crowd();
    pid_t pid[4];
    for (c->me = 0; c->me < 4; c->me++) pid[c->me] = start(take_turns_until_told, c);
    int64_t end_ms = clock_mono_ms() + 10000;
    while (atomic_load(&c->turns[0]) < 2000 && clock_mono_ms() < end_ms) usleep(1000);
    atomic_store(&c->stop, 1);
    for (int i = 0; i < 4; i++) finish(pid[i], 0);
    assert_true(atomic_load(&c->turns[0]) >= 2000); /* handed over by waking: looking now and then takes longer */
    uint32_t least = UINT32_MAX, most = 0;
    for (int i = 0; i < 4; i++) {
        uint32_t n = atomic_load(&c->turns[i]);
        least = n < least ? n : least;
        most = n > most ? n : most;
    }
    print_message("           turns of 4 processes: %u to %u, longest wait %d us\n", least, most,
                  (int)atomic_load(&c->worst_wait_us));
    assert_int_equal(atomic_load(&c->collisions), 0);
    assert_true(most < least + least / 2 + 200);
    munmap(c, sizeof *c);
}

/* Kills at whatever instruction it hits; the others must go on each time. */
static void a_crowd_survives_kills_anywhere(void **state)
{
    (void)state;
    struct crowd *c = new_crowd();
    pid_t pid[4];
    int64_t worst_ms = 0;
    struct turns *t = open_turns();
    for (c->me = 0; c->me < 4; c->me++) pid[c->me] = start(take_turns_until_told, c);
    for (int round = 0; round < 100; round++) {
        c->me = round % 4;
        for (int64_t until_us = clock_mono_us() + rand() % 2000; clock_mono_us() < until_us;) continue;
        finish(pid[c->me], SIGKILL);
        atomic_store(&c->inside, 0);
        int64_t took_ms = take_after_death_ms(t);
        if (took_ms > worst_ms) worst_ms = took_ms;
        pid[c->me] = start(take_turns_until_told, c);
    }
    atomic_store(&c->stop, 1);
    for (int i = 0; i < 4; i++) finish(pid[i], 0);
    print_message("           100 kills among 4 processes: next turn after at most %d ms\n", (int)worst_ms);
    assert_true(worst_ms <= 5 * 20);
    turns_close(t);
    munmap(c, sizeof *c);
}

static void open_and_take(int said_fd, void *arg)
{
    struct crowd *c = arg;
    say(said_fd);
    while (!atomic_load(&c->stop)) continue;
    struct turns *t = open_turns();
    if (t == NULL || !turns_take(t, clock_mono_ms() + 5000)) _exit(1);
    if (atomic_fetch_add(&c->inside, 1) != 0) _exit(2);
    atomic_fetch_sub(&c->inside, 1);
    turns_close(t);
}

static void whoever_comes_first_creates_the_file(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        struct crowd *c = new_crowd();
        pid_t pid[4];
        unlink(path);
        for (int i = 0; i < 4; i++) pid[i] = start(open_and_take, c);
        atomic_store(&c->stop, 1);
        for (int i = 0; i < 4; i++) finish(pid[i], 0);
        munmap(c, sizeof *c);
    }
}

/* Takes a turn and returns how long that took. */
static int64_t take_us(struct turns *t)
{
    int64_t begin_us = clock_mono_us();
    assert_true(turns_take(t, CLOCK_NEVER));
    turns_leave(t);
    return clock_mono_us() - begin_us;
}

static void a_pause_keeps_others_waiting_until_its_end_and_not_its_caller(void **state)
{
    (void)state;
    struct turns *a = open_turns(), *b = open_turns();
    struct layout *q = map_file();
    turns_pause(a, 20000);
    assert_true(take_us(a) < 20000);
    assert_true(take_us(b) >= 10000); /* the rest of it */
    assert_int_equal(atomic_load(&q->paused_until), 0);
    turns_pause(a, INT64_MAX); /* nobody can ask for more than */
    int64_t took_us = take_us(b);
    assert_true(took_us >= TURNS_MOST_PAUSE_US / 2 && took_us < 1000000);
    turns_pause(a, 20000);
    turns_pause(a, 0);
    assert_int_equal(atomic_load(&q->paused_until), 0);
    turns_pause(a, 20000);
    turns_pause(b, 30000);
    turns_pause(a, 0); /* that is b's now */
    assert_int_not_equal(atomic_load(&q->paused_until), 0);
    assert_true(take_us(a) >= 10000);
    munmap(q, sizeof *q);
    turns_close(a);
    turns_close(b);
}

static void pause_and_die(int said_fd, void *arg)
{
    (void)arg;
    struct turns *t = open_turns();
    if (t == NULL) _exit(1);
    turns_pause(t, TURNS_MOST_PAUSE_US);
    say(said_fd);
    pause();
}

static void a_pause_ends_with_its_time_whoever_asked_for_it(void **state)
{
    (void)state;
    struct turns *t = open_turns();
    struct layout *q = map_file();
    finish(start(pause_and_die, NULL), SIGKILL);
    assert_true(take_us(t) < 1000000);
    assert_int_equal(atomic_load(&q->paused_until), 0); /* or it would come again with the clock */
    atomic_store(&q->paused_until,
                 (uint32_t)clock_mono_us() + 2 * TURNS_MOST_PAUSE_US); /* another start of the machine */
    assert_true(take_us(t) < TURNS_MOST_PAUSE_US);
    assert_int_equal(atomic_load(&q->paused_until), 0);
    munmap(q, sizeof *q);
    turns_close(t);
}

#define TURNS_TEST(test) cmocka_unit_test_setup_teardown(test, fresh_file, remove_file)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TURNS_TEST(a_turn_nobody_else_wants_costs_no_system_call),
        TURNS_TEST(the_file_is_private_and_keeps_its_layout),
        TURNS_TEST(a_file_of_something_else_is_refused),
        TURNS_TEST(turns_come_in_the_order_of_asking),
        TURNS_TEST(who_gives_up_holds_nobody_up),
        TURNS_TEST(a_killed_owner_loses_its_turn),
        TURNS_TEST(killed_waiters_lose_their_turns),
        TURNS_TEST(killed_between_drawing_and_noting_a_ticket),
        TURNS_TEST(a_stopped_owner_is_passed_over),
        TURNS_TEST(a_pause_keeps_others_waiting_until_its_end_and_not_its_caller),
        TURNS_TEST(a_pause_ends_with_its_time_whoever_asked_for_it),
        TURNS_TEST(a_crowd_takes_turns_evenly),
        TURNS_TEST(a_crowd_survives_kills_anywhere),
        TURNS_TEST(whoever_comes_first_creates_the_file),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
