/* What processes share in the session cache, from the threads of one, for ThreadSanitizer: it sees a race only where
 * two touch the same address, so all threads use one mapping, which takes the insides of the module. */
#include "session_cache.c"

#include "cache_world.h"
#include "test.h"

#include <pthread.h>

#define THREADS 4
#define STEPS   60000

static char dir[] = "/tmp/test_cache_threads.XXXXXX";
static struct world world;

struct thread {
    pthread_t id;
    uint32_t seed;
    struct session_cache *cache;
};

/* A handle of its own (its place, its scratch) on the mapping of `first`. */
static struct session_cache *join(struct session_cache *first)
{
    struct err e = { 0 };
    struct session_cache *c = session_cache_open(dir, SET_BYTES, &e);
    assert_non_null(c);
    if (first == NULL) return c;
    munmap(c->table, c->mapped_bytes);
    munmap(c->control, sizeof *c->control);
    c->table = first->table;
    c->control = first->control;
    return c;
}

static void leave(struct session_cache *c)
{
    c->table = NULL;
    c->control = NULL;
    session_cache_close(c);
}

static void *work(void *arg)
{
    struct thread *t = arg;
    struct buf doc = BUF_INIT(100000);
    for (int i = 0; i < STEPS; i++) world_step(&world, t->cache, world_dice(&t->seed), &doc);
    buf_done(&doc);
    return NULL;
}

static void threads_see_no_torn_and_no_stale_copy(void **state)
{
    (void)state;
    struct thread thread[THREADS];
    struct session_cache *first = join(NULL);
    for (int s = 0; s < WORLD_SESSIONS; s++) world.redis[s] = 1;
    for (uint32_t i = 0; i < THREADS; i++) {
        thread[i] = (struct thread){ .seed = i + 1, .cache = join(first) };
        pthread_create(&thread[i].id, NULL, work, &thread[i]);
    }
    for (int i = 0; i < THREADS; i++) pthread_join(thread[i].id, NULL);
    print_message("           %llu copies read\n", (unsigned long long)world.hits);
    assert_int_equal(world.torn, 0);
    assert_int_equal(world.stale, 0);
    assert_true(world.hits > STEPS / 10);
    for (int i = 0; i < THREADS; i++) leave(thread[i].cache);
    session_cache_close(first);
}

static int make_dir(void **state)
{
    (void)state;
    return mkdtemp(dir) == NULL;
}

static int remove_dir(void **state)
{
    (void)state;
    char path[64];
    snprintf(path, sizeof path, "%s/session_cache", dir);
    unlink(path);
    snprintf(path, sizeof path, "%s/session_cache-1", dir);
    unlink(path);
    return rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(threads_see_no_torn_and_no_stale_copy) };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
