#include "coordination.h"

#include "clock.h"
#include "mem.h"
#include "shared.h"

#include <assert.h>
#include <stdatomic.h>
#include <sys/mman.h>

#define FILE_NAME   "coordination-3" /* the layout's version; another layout is another file */
#define MAGIC       0x74616e6964726f63ull
#define LAG_TERM_MS 10000

/* Something that one process writes and others read whole: two copies, of which the number says which one is valid. The
 * writer fills the other copy and then counts on, so that it may die at any moment. A reader that was overtaken while
 * it copied reads again; that needs two writings in the time of one copy. */
#define BOARD(type)                                                                                                    \
    struct {                                                                                                           \
        _Alignas(64) _Atomic uint64_t number;                                                                          \
        _Alignas(64) _Atomic uint64_t copy[2][sizeof(type) / sizeof(uint64_t)];                                        \
    }
#define WORDS(type) (sizeof(type) / sizeof(uint64_t))
static_assert(sizeof(struct coordination_leader) % 8 == 0 && sizeof(struct coordination_pods) % 8 == 0 &&
                  sizeof(struct coordination_messages) % 8 == 0 && sizeof(struct coordination_limits) % 8 == 0 &&
                  sizeof(struct coordination_survey) % 8 == 0,
              "boards are copied by words");

struct state {
    _Atomic uint64_t magic;
    _Atomic uint64_t boot;     /* of the machine: monotonic times of another mean nothing */
    _Atomic int64_t beat_ms;   /* monotonic; 0: never */
    _Atomic int64_t lag_ms[2]; /* the worst of this term, and of the one before */
    _Atomic int64_t lag_term;  /* of LAG_TERM_MS each */
    _Atomic int64_t stamp_ms;  /* monotonic; 0: nothing is proven */
    _Atomic uint64_t generation;
    _Atomic int64_t waiting;
    BOARD(struct coordination_leader) leader;
    BOARD(struct coordination_pods) pods;
    BOARD(struct coordination_messages) messages;
    BOARD(struct coordination_limits) limits;
    BOARD(struct coordination_survey) survey;
};

struct coordination {
    struct state *state;
    uint64_t boot; /* the present one */
};

static void board_write(_Atomic uint64_t *number, _Atomic uint64_t *copies, const void *in, size_t words)
{
    uint64_t next = atomic_load_explicit(number, memory_order_relaxed) + 1, word;
    _Atomic uint64_t *copy = copies + (next & 1) * words;
    for (size_t i = 0; i < words; i++) {
        memcpy(&word, (const char *)in + i * sizeof word, sizeof word);
        atomic_store_explicit(&copy[i], word, memory_order_release);
    }
    atomic_store_explicit(number, next, memory_order_release);
}

static void board_read(const _Atomic uint64_t *number, const _Atomic uint64_t *copies, void *out, size_t words)
{
    uint64_t seen, word;
    do {
        seen = atomic_load_explicit(number, memory_order_acquire);
        const _Atomic uint64_t *copy = copies + (seen & 1) * words;
        for (size_t i = 0; i < words; i++) {
            word = atomic_load_explicit(&copy[i], memory_order_acquire); /* whose writer has counted on before */
            memcpy((char *)out + i * sizeof word, &word, sizeof word);
        }
    } while (atomic_load_explicit(number, memory_order_relaxed) != seen);
}

const char *const coordination_job_statuses[] = { "pending", "running", "completed", "failed", "cancelled", "timeout" };

#define BOARD_FUNCTIONS(name)                                                                                          \
    void coordination_read_##name(const struct coordination *c, struct coordination_##name *out)                       \
    {                                                                                                                  \
        board_read(&c->state->name.number, c->state->name.copy[0], out, WORDS(struct coordination_##name));            \
    }                                                                                                                  \
    void coordination_write_##name(struct coordination *c, const struct coordination_##name *in)                       \
    {                                                                                                                  \
        board_write(&c->state->name.number, c->state->name.copy[0], in, WORDS(struct coordination_##name));            \
    }
BOARD_FUNCTIONS(leader)
BOARD_FUNCTIONS(pods)
BOARD_FUNCTIONS(messages)
BOARD_FUNCTIONS(limits)
BOARD_FUNCTIONS(survey)

/* --- */

struct coordination_limit *coordination_limit_row(struct coordination_limits *ls, const char *platform,
                                                  const char *endpoint)
{
    struct coordination_limit *row = &ls->limit[0];
    for (int64_t i = 0; i < ls->count; i++) {
        struct coordination_limit *at = &ls->limit[i];
        if (strcmp(at->platform, platform) == 0 && strcmp(at->endpoint, endpoint) == 0) return at;
        if (at->updated_ms < row->updated_ms) row = at;
    }
    if (ls->count < COORDINATION_MOST_LIMITS) row = &ls->limit[ls->count++];
    *row = (struct coordination_limit){ .limit = -1, .remaining = -1, .reset_ms = -1, .usage_permille = -1 };
    snprintf(row->platform, sizeof row->platform, "%s", platform);
    snprintf(row->endpoint, sizeof row->endpoint, "%s", endpoint);
    return row;
}

void coordination_beat(struct coordination *c, int64_t now_ms, int64_t lag_ms)
{
    struct state *s = c->state;
    int64_t term = now_ms / LAG_TERM_MS;
    if (atomic_load(&s->lag_term) != term) {
        atomic_store(&s->lag_ms[1], atomic_load(&s->lag_ms[0]));
        atomic_store(&s->lag_ms[0], 0);
        atomic_store(&s->lag_term, term);
    }
    if (lag_ms > atomic_load(&s->lag_ms[0])) atomic_store(&s->lag_ms[0], lag_ms);
    atomic_store(&s->beat_ms, now_ms);
}

/* What a coordinator has left behind from before the machine was started anew is a time of another clock. */
static bool is_of_this_boot(const struct coordination *c)
{
    return atomic_load(&c->state->boot) == c->boot;
}

bool coordination_alive(const struct coordination *c, int64_t now_ms)
{
    int64_t beat_ms = coordination_beat_ms(c);
    return beat_ms > 0 && now_ms - beat_ms < COORDINATION_ALIVE_MS;
}

int64_t coordination_beat_ms(const struct coordination *c)
{
    return is_of_this_boot(c) ? atomic_load(&c->state->beat_ms) : 0;
}

int64_t coordination_lag_ms(const struct coordination *c)
{
    int64_t now = atomic_load(&c->state->lag_ms[0]), before = atomic_load(&c->state->lag_ms[1]);
    return now > before ? now : before;
}

void coordination_show_waiting(struct coordination *c, int64_t messages)
{
    atomic_store(&c->state->waiting, messages);
}

int64_t coordination_waiting(const struct coordination *c)
{
    return atomic_load(&c->state->waiting);
}

void coordination_new_generation(struct coordination *c)
{
    atomic_store(&c->state->stamp_ms, 0);
    atomic_fetch_add(&c->state->generation, 1);
}

void coordination_stamp(struct coordination *c, int64_t stamp_ms)
{
    atomic_store(&c->state->stamp_ms, stamp_ms);
}

uint64_t coordination_generation(const struct coordination *c)
{
    return atomic_load(&c->state->generation);
}

int64_t coordination_stamped_ms(const struct coordination *c)
{
    return is_of_this_boot(c) ? atomic_load(&c->state->stamp_ms) : 0;
}

bool coordination_is_coherent(const struct coordination *c, int64_t now_ms)
{
    int64_t stamp_ms = coordination_stamped_ms(c);
    return stamp_ms > 0 && now_ms - stamp_ms <= COORDINATION_COHERENT_MS;
}

struct coordination *coordination_open(const char *run_dir, struct err *e)
{
    uint64_t fresh = 0;
    struct state *s = shared_map(run_dir, FILE_NAME, sizeof *s, NULL, e);
    if (s == NULL) return NULL;
    if (!atomic_compare_exchange_strong(&s->magic, &fresh, MAGIC) && fresh != MAGIC) {
        err_set(e, ERR_INPUT, "RUN_DIR: %s is not ours", FILE_NAME);
        munmap(s, sizeof *s);
        return NULL;
    }
    struct coordination *c = mem_alloc(sizeof *c);
    c->state = s;
    c->boot = clock_boot();
    return c;
}

void coordination_begin(struct coordination *c)
{
    atomic_store(&c->state->beat_ms, 0);
    coordination_new_generation(c); /* before the boot: the stamp of another one must not become one of this */
    atomic_store(&c->state->boot, c->boot);
    atomic_store(&c->state->waiting, 0);
}

void coordination_close(struct coordination *c)
{
    if (c == NULL) return;
    munmap(c->state, sizeof *c->state);
    free(c);
}
