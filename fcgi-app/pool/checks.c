#include "checks.h"

#include "clock.h"
#include "health.h"
#include "log.h"
#include "totals.h"

#include <inttypes.h>

#define LOOK_MS                                                                                                        \
    3500 /* of one look at most: what was seen of the others must not grow too old (CHECK_MOST_AGE_MS) meanwhile */
#define FOLD_MS  1000
#define COUNT_MS 1000 /* between counts of the sessions at least... */
#define COUNT_OF 100  /* ...and so many times as long as one takes: it reads an index from end to end */

static const struct {
    const char *name;
    enum store_place place;
    int64_t every_ms; /* a look at the embedded store is a commit, so less often */
} dependencies[CHECKS_OURS] = {
    [DEPENDENCY_REDIS] = { "redis", STORE_REDIS, 500 },
    [DEPENDENCY_EMBEDDED] = { "embedded store", STORE_EMBEDDED, 1000 },
};

static void tell_change(enum dependency d, enum check_state was, bool up, int64_t was_ms, const struct err *e)
{
    if (!up && was != CHECK_DOWN) log_warn("%s does not answer: error=\"%s\"", dependencies[d].name, e->text);
    if (up && was == CHECK_DOWN) log_info("%s answers again: away_ms=%" PRId64, dependencies[d].name, was_ms);
}

static void look_at(struct checks *c, enum dependency d)
{
    struct err e = { 0 };
    int64_t began_us = clock_mono_us(), began_ms = began_us / 1000;
    enum check_state was = shared_check_state(c->shared, d, began_ms), is = CHECK_UNUSED;
    if (store_uses(c->store, dependencies[d].place)) {
        int64_t most_ms = c->timeout_ms < LOOK_MS ? c->timeout_ms : LOOK_MS;
        bool up = store_check(c->store, dependencies[d].place, began_ms + most_ms, &e);
        is = up ? CHECK_UP : CHECK_DOWN;
        tell_change(d, was, up, began_ms - atomic_load(&shared_check(c->shared, d)->since_ms), &e);
    }
    shared_check_note(c->shared, d, is, began_us);
}

static void count_sessions(struct checks *c)
{
    struct err e;
    int64_t sessions;
    if (store_uses(c->store, STORE_REDIS)) return; /* how many Redis holds is for the whole cluster to find out */
    if (store_count(c->store, clock_mono_ms() + c->timeout_ms, &sessions, &e))
        atomic_store(shared_sessions(c->shared), sessions);
}

void checks_run(struct checks *c)
{
    bool away = store_redis_is_away(c->store);
    if (away != c->redis_was_away) c->due_ms[DEPENDENCY_REDIS] = 0; /* others know more than our last look */
    c->redis_was_away = away;
    for (enum dependency d = 0; d < CHECKS_OURS; d++) {
        if (clock_mono_ms() < c->due_ms[d]) continue;
        look_at(c, d);
        c->due_ms[d] = clock_mono_ms() + dependencies[d].every_ms;
    }
    int64_t began_ms = clock_mono_ms();
    if (began_ms >= c->count_due_ms) {
        count_sessions(c);
        int64_t took_ms = clock_mono_ms() - began_ms;
        c->count_due_ms = began_ms + took_ms + (took_ms * COUNT_OF > COUNT_MS ? took_ms * COUNT_OF : COUNT_MS);
    }
    if (clock_mono_ms() >= c->fold_due_ms) {
        totals_fold(c->shared);
        c->fold_due_ms = clock_mono_ms() + FOLD_MS;
    }
}
