/* What processes share, used by threads of one, for `make tsan`: the sanitizer sees nothing between processes. */
#include "counted.h"
#include "turns.h"

#include "clock.h"
#include "test.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS 4

static char dir[] = "/tmp/test_threads.XXXXXX";
static char turns_path[64];

static int make_dir(void **state)
{
    (void)state;
    bool ok = mkdtemp(dir) != NULL;
    snprintf(turns_path, sizeof turns_path, "%s/turns", dir);
    return !ok;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(state_path_in(dir));
    unlink(turns_path);
    return rmdir(dir);
}

static pthread_barrier_t barrier;

/* Runs job(n) in each thread, all beginning at once; none may answer anything but NULL. */
static void run_threads(void *(*job)(void *n))
{
    pthread_t thread[THREADS];
    pthread_barrier_init(&barrier, NULL, THREADS);
    for (intptr_t n = 0; n < THREADS; n++) assert_int_equal(pthread_create(&thread[n], NULL, job, (void *)n), 0);
    for (int n = 0; n < THREADS; n++) {
        void *wrong;
        assert_int_equal(pthread_join(thread[n], &wrong), 0);
        if (wrong != NULL) fail_msg("thread %d: %s", n, (char *)wrong);
    }
    pthread_barrier_destroy(&barrier);
}

/* ---- One counts, the others read ------------------------------------------------------------------------------------
 */

#define COUNTS 20000

static struct shared *shared;

static void *count_or_read(void *n)
{
    char *wrong = NULL;
    pthread_barrier_wait(&barrier);
    if (n == NULL) {
        for (int i = 0; i < COUNTS; i++) metrics_add(METRIC_sessions_created_total, 1);
        return NULL;
    }
    uint64_t last = 0;
    while (last < COUNTS && wrong == NULL) {
        uint64_t now = counted_in(shared, METRIC_sessions_created_total);
        if (now < last || now > COUNTS) wrong = "a counter fell, or counted what was not";
        last = now;
    }
    return wrong;
}

static void one_counts_while_others_read(void **state)
{
    (void)state;
    struct err e;
    shared = shared_open(dir, &e);
    assert_non_null(shared);
    struct slot *slot = shared_claim(shared, SLOT_WORKER, &e);
    assert_non_null(slot);
    metrics_use(slot->counter);
    run_threads(count_or_read);
    assert_int_equal(counted_in(shared, METRIC_sessions_created_total), COUNTS);
    metrics_use(NULL);
    shared_close(shared);
    unlink(state_path_in(dir));
}

/* ---- Slots ----------------------------------------------------------------------------------------------------------
 */

#define ROUNDS 50

static _Atomic int owners[SHARED_SLOTS];

/* Each with a mapping of its own, as a process: opens, claims, counts in its slot, looks at the others, leaves. */
static void *come_and_go(void *n)
{
    char *wrong = NULL;
    (void)n;
    pthread_barrier_wait(&barrier);
    for (int i = 0; i < ROUNDS && wrong == NULL; i++) {
        struct err e;
        struct shared *sh = shared_open(dir, &e);
        struct slot *s = sh ? shared_claim(sh, SLOT_WORKER, &e) : NULL;
        if (s == NULL) return "no slot";
        size_t index = (size_t)(s - shared_slot(sh, 0));
        if (atomic_fetch_add(&owners[index], 1) != 0) wrong = "two own one slot";
        if (index >= THREADS) wrong = "a slot was not given back";
        uint64_t counted = atomic_load_explicit(&s->counter[0], memory_order_relaxed);
        atomic_store_explicit(&s->counter[0], counted + 1, memory_order_relaxed);
        atomic_store(&s->state, SLOT_SERVING);
        for (size_t k = 0; k < THREADS; k++) {
            struct slot *other = shared_slot(sh, k);
            if (atomic_load(&other->state) > SLOT_GONE ||
                (k != index && shared_slot_alive(sh, k) && atomic_load(&other->role) > SLOT_KEEPER))
                wrong = "a slot holds nonsense";
        }
        atomic_fetch_sub(&owners[index], 1);
        shared_close(sh);
    }
    return wrong;
}

static void slots_come_and_go(void **state)
{
    (void)state;
    struct err e;
    run_threads(come_and_go);
    shared = shared_open(dir, &e);
    assert_int_equal(counted_in(shared, 0), THREADS * ROUNDS); /* no count was lost on the way */
    for (size_t i = 0; i < THREADS; i++) assert_false(shared_slot_alive(shared, i));
    shared_close(shared);
}

/* ---- Turns ----------------------------------------------------------------------------------------------------------
 */

#define TURNS 300

static _Atomic int inside, taken;

static void *take_turns(void *n)
{
    char *wrong = NULL;
    struct err e;
    struct turns *t = turns_open(turns_path, &e);
    (void)n;
    pthread_barrier_wait(&barrier);
    if (t == NULL) return "the queue cannot be opened";
    for (int i = 0; i < TURNS && wrong == NULL; i++) {
        if (!turns_take(t, clock_mono_ms() + 20000))
            wrong = "a turn did not come";
        else if (atomic_fetch_add(&inside, 1) != 0)
            wrong = "two have the turn";
        atomic_fetch_add(&taken, 1);
        atomic_fetch_sub(&inside, 1);
        turns_leave(t);
    }
    turns_close(t);
    return wrong;
}

static void turns_are_taken_one_by_one(void **state)
{
    (void)state;
    run_threads(take_turns);
    assert_int_equal(taken, THREADS * TURNS);
}

/* Some give up: their place in the queue must not hold the others. */
static void *take_some_turns(void *n)
{
    struct err e;
    struct turns *t = turns_open(turns_path, &e);
    bool impatient = (intptr_t)n % 2 == 1;
    pthread_barrier_wait(&barrier);
    if (t == NULL) return "the queue cannot be opened";
    for (int i = 0; i < TURNS; i++) {
        if (turns_take(t, clock_mono_ms() + (impatient ? 0 : 20000)))
            turns_leave(t);
        else if (!impatient)
            return "a turn did not come";
    }
    turns_close(t);
    return NULL;
}

static void who_gives_up_holds_nobody(void **state)
{
    (void)state;
    run_threads(take_some_turns);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_counts_while_others_read),
        cmocka_unit_test(slots_come_and_go),
        cmocka_unit_test(turns_are_taken_one_by_one),
        cmocka_unit_test(who_gives_up_holds_nobody),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
