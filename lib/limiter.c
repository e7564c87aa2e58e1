#include "limiter.h"

#include "ids.h"
#include "mem.h"
#include "shared.h"

#include <arpa/inet.h>
#include <errno.h>
#include <sys/mman.h>
#include <sys/random.h>

/* An address is known by when it will have paid for all it did (the "theoretical arrival time" of the generic cell rate
 * algorithm): each time costs a per_minute'th of a minute, and it may owe a minute at most. So one number says all, and
 * one compare-and-swap takes or refuses. That number in microseconds, 40 bits of it (it comes round after 12 days), and
 * 24 bits of the address's keyed hash make one word. A time in the past, or further ahead than anybody may be, says
 * nothing: the word is free. */
#define TIME_BITS 40
#define TIME_MASK ((1ULL << TIME_BITS) - 1)
#define MINUTE_US 60000000LL
#define SLACK_US  1000000 /* another process may have read the clock a moment later */
#define WAYS      8       /* words an address may be in: one cache line */
#define SETS      8192    /* 512 KiB for 65,536 addresses of one minute */

struct table {
    _Atomic uint64_t seed; /* of the hash, so that nobody can choose addresses that meet in one set; 0: not yet */
    uint64_t reserved[WAYS - 1];
    _Alignas(64) _Atomic uint64_t words[SETS][WAYS];
};

struct limiter {
    struct table *table;
    uint64_t seed;
    int64_t cost_us;
};

struct limiter *limiter_open(const char *run_dir, const char *name, int64_t per_minute, struct err *e)
{
    uint64_t seed = 0, none = 0;
    struct table *t = shared_map(run_dir, name, sizeof *t, NULL, e);
    if (t == NULL) return NULL;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) {
        err_set(e, ERR_INTERNAL, "getrandom: %s", strerror(errno));
        munmap(t, sizeof *t);
        return NULL;
    }
    seed |= 1;
    if (!atomic_compare_exchange_strong(&t->seed, &none, seed)) seed = none;
    struct limiter *l = mem_alloc(sizeof *l);
    *l = (struct limiter){ .table = t, .seed = seed, .cost_us = MINUTE_US / per_minute };
    return l;
}

void limiter_close(struct limiter *l)
{
    if (l == NULL) return;
    munmap(l->table, sizeof *l->table);
    free(l);
}

/* An IPv6 client has at least a /64 to itself and may use any address of it. */
static uint64_t hash_of(const struct limiter *l, const char *address)
{
    struct in6_addr a6;
    struct in_addr a4;
    if (inet_pton(AF_INET6, address, &a6) == 1) {
        bool mapped = IN6_IS_ADDR_V4MAPPED(&a6);
        return ids_hash((struct bytes){ (const char *)&a6 + (mapped ? 12 : 0), mapped ? 4 : 8 }, l->seed);
    }
    if (inet_pton(AF_INET, address, &a4) == 1) return ids_hash((struct bytes){ (const char *)&a4, 4 }, l->seed);
    return l->seed;
}

/* How far the time in `word` lies ahead of now; 0 if it says nothing. */
static int64_t ahead_us(uint64_t word, int64_t now_us)
{
    uint64_t ahead = (word - (uint64_t)now_us) & TIME_MASK;
    return ahead <= (uint64_t)MINUTE_US + SLACK_US ? (int64_t)ahead : 0;
}

/* The word of this tag with what its owner owes, else the one that says least, to be replaced. */
static _Atomic uint64_t *find_word(struct limiter *l, uint64_t hash, int64_t now_us, uint64_t *seen, int64_t *owed_us)
{
    _Atomic uint64_t *words = l->table->words[hash % SETS], *least = NULL;
    int64_t least_us = INT64_MAX;
    *owed_us = 0;
    for (int i = 0; i < WAYS; i++) {
        uint64_t word = atomic_load_explicit(&words[i], memory_order_relaxed);
        int64_t ahead = ahead_us(word, now_us);
        if (ahead > 0 && word >> TIME_BITS == hash >> TIME_BITS) {
            *seen = word;
            *owed_us = ahead;
            return &words[i];
        }
        if (ahead < least_us) {
            least_us = ahead;
            least = &words[i];
            *seen = word;
        }
    }
    return least;
}

bool limiter_take(struct limiter *l, const char *address, int64_t now_us, int64_t *wait_ms)
{
    uint64_t hash = hash_of(l, address), seen;
    int64_t owed_us;
    for (;;) {
        _Atomic uint64_t *word = find_word(l, hash, now_us, &seen, &owed_us);
        *wait_ms = (owed_us + l->cost_us - MINUTE_US + 999) / 1000;
        if (owed_us + l->cost_us > MINUTE_US) return false;
        uint64_t next = (hash & ~TIME_MASK) | ((uint64_t)(now_us + owed_us + l->cost_us) & TIME_MASK);
        if (atomic_compare_exchange_weak_explicit(word, &seen, next, memory_order_relaxed, memory_order_relaxed))
            return true;
    }
}
