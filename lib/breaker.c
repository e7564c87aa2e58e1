#include "breaker.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#define MAGIC   0x6b616572625f5048ull /* "HP_break" */
#define VERSION 1

/* An outage in one word, so that it begins and ends in one instruction whoever is killed meanwhile:
 * bit 63 open | bits 40 to 62 its number | bits 0 to 39 when it began (monotonic ms: 34 years). */
#define OPEN         ((uint64_t)1 << 63)
#define NUMBER_SHIFT 40
#define NUMBER_MASK  0x7fffffu
#define SINCE_MASK   (((uint64_t)1 << NUMBER_SHIFT) - 1)

/* dirty: how often it changed << 32 | sessions. The count of changes makes a mark good for one settling. */
#define DIRTY_CHANGE ((uint64_t)1 << 32)

/* The file. What stands here never moves, new fields go to the end, and zeros are a closed breaker. */
struct state {
    uint64_t magic;
    uint32_t version;
    uint32_t unused;
    uint64_t boot;                               /* of the machine: monotonic times of another mean nothing */
    _Alignas(64) _Atomic uint64_t outage;        /* the hot word: alone in its line */
    _Alignas(64) _Atomic uint64_t reports;       /* trips while it was open already */
    _Alignas(64) _Atomic uint64_t next_probe_ms; /* monotonic: no probe before */
    _Alignas(64) _Atomic uint64_t dirty;
};

struct breaker {
    struct state *state;
    uint64_t probed;          /* the outage that this process may probe */
    uint64_t claim_ms;        /* what it wrote into next_probe_ms for that */
    uint64_t claim_failed_ms; /* what stands there instead once its probe has failed */
};

static uint32_t number_of(uint64_t outage)
{
    return (uint32_t)(outage >> NUMBER_SHIFT) & NUMBER_MASK;
}

static int64_t away_ms(uint64_t outage, int64_t now_ms)
{
    return now_ms - (int64_t)(outage & SINCE_MASK);
}

/* Byte 0 of the file: held by who completes it. */
static bool creation_lock(int fd, short type)
{
    struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1 };
    int rc;
    do rc = fcntl(fd, F_OFD_SETLKW, &l);
    while (rc < 0 && errno == EINTR);
    return rc == 0;
}

/* Under the creation lock. A killed creator leaves nothing that the next cannot complete. Reserved, not just extended:
 * a store into a hole on a full disk is a SIGBUS. */
static bool prepare(int fd, const char *path, struct state **state, struct err *e)
{
    int rc = posix_fallocate(fd, 0, sizeof **state);
    if (rc != 0)
        return err_set(e, ERR_INPUT, "RUN_DIR: %s: %zu bytes cannot be reserved: %s", path, sizeof **state,
                       strerror(rc));
    struct state *s = mmap(NULL, sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (s == MAP_FAILED) return err_set(e, ERR_INTERNAL, "%s: cannot be mapped: %s", path, strerror(errno));
    *state = s;
    if (s->magic != 0 && s->magic != MAGIC) return err_set(e, ERR_INPUT, "RUN_DIR: %s is not ours", path);
    if (s->boot != clock_boot()) {
        atomic_store(&s->outage, 0);
        atomic_store(&s->next_probe_ms, 0);
        s->boot = clock_boot();
    }
    if (s->version < VERSION) s->version = VERSION;
    s->magic = MAGIC;
    return true;
}

struct breaker *breaker_open(const char *run_dir, struct err *e)
{
    char path[4096];
    bool ok = false;
    struct breaker *b = mem_alloc(sizeof *b);
    snprintf(path, sizeof path, "%s/breaker", run_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0 || !creation_lock(fd, F_WRLCK)) {
        err_set(e, ERR_INPUT, "RUN_DIR=%s: %s cannot be opened: %s", run_dir, path, strerror(errno));
        goto out;
    }
    ok = prepare(fd, path, &b->state, e);
    creation_lock(fd, F_UNLCK); /* a close would leave it: the mapping keeps the open file */
out:
    if (fd >= 0) close(fd);
    if (ok) return b;
    breaker_close(b);
    return NULL;
}

void breaker_close(struct breaker *b)
{
    if (b == NULL) return;
    if (b->state != NULL) munmap(b->state, sizeof *b->state);
    free(b);
}

bool breaker_is_open(const struct breaker *b)
{
    return (atomic_load_explicit(&b->state->outage, memory_order_acquire) & OPEN) != 0;
}

bool breaker_trip(struct breaker *b, const char *reason, int64_t now_ms)
{
    uint64_t was = atomic_load(&b->state->outage), outage;
    do {
        if (was & OPEN) {
            atomic_fetch_add(&b->state->reports, 1);
            return false;
        }
        outage =
            OPEN | (uint64_t)((number_of(was) + 1) & NUMBER_MASK) << NUMBER_SHIFT | ((uint64_t)now_ms & SINCE_MASK);
    } while (!atomic_compare_exchange_weak(&b->state->outage, &was, outage));
    atomic_store(&b->state->reports, 0);
    metrics_add(METRIC_breaker_trips_total, 1);
    log_warn("redis lost, no request waits for it any more: error=\"%s\" outage=%" PRIu32, reason, number_of(outage));
    return true;
}

bool breaker_may_probe(struct breaker *b, int64_t now_ms, int64_t timeout_ms)
{
    uint64_t outage = atomic_load(&b->state->outage), next_ms = atomic_load(&b->state->next_probe_ms);
    if (!(outage & OPEN) || (uint64_t)now_ms < next_ms) return false;
    uint64_t claim_ms = (uint64_t)now_ms + (uint64_t)(timeout_ms > BREAKER_PROBE_MS ? timeout_ms : BREAKER_PROBE_MS);
    if (!atomic_compare_exchange_strong(&b->state->next_probe_ms, &next_ms, claim_ms)) return false; /* another did */
    b->probed = outage;
    b->claim_ms = claim_ms;
    b->claim_failed_ms = (uint64_t)now_ms + BREAKER_PROBE_MS;
    return true;
}

void breaker_probe_failed(struct breaker *b)
{
    uint64_t claim_ms = b->claim_ms; /* if it stands there no more, we were too late and another one probes */
    atomic_compare_exchange_strong(&b->state->next_probe_ms, &claim_ms, b->claim_failed_ms);
    b->probed = 0;
}

bool breaker_reset(struct breaker *b, int64_t now_ms)
{
    uint64_t outage = b->probed;
    b->probed = 0;
    if (!(outage & OPEN)) return false;
    uint64_t expected = outage;
    if (!atomic_compare_exchange_strong(&b->state->outage, &expected, outage & ~(OPEN | SINCE_MASK))) return false;
    log_info("redis back, requests go to it again: away_ms=%" PRId64 " outage=%" PRIu32 " reports=%" PRIu64,
             away_ms(outage, now_ms), number_of(outage), atomic_load(&b->state->reports) + 1);
    return true;
}

bool breaker_outage(const struct breaker *b, struct breaker_outage *o)
{
    uint64_t outage = atomic_load(&b->state->outage);
    if (!(outage & OPEN)) return false;
    *o = (struct breaker_outage){ .number = number_of(outage), .since_ms = (int64_t)(outage & SINCE_MASK) };
    o->since_wall_ms = clock_wall_ms() - away_ms(outage, clock_mono_ms());
    o->reports = atomic_load(&b->state->reports);
    return true;
}

int64_t breaker_since_ms(const struct breaker *b)
{
    uint64_t outage = b != NULL ? atomic_load(&b->state->outage) : 0;
    return outage & OPEN ? (int64_t)(outage & SINCE_MASK) : 0;
}

/* --- dirty sessions --- */

int64_t breaker_dirty(const struct breaker *b)
{
    return breaker_dirty_of(breaker_dirty_mark(b));
}

void breaker_dirty_add(struct breaker *b, uint32_t ids)
{
    atomic_fetch_add(&b->state->dirty, DIRTY_CHANGE + ids);
}

uint64_t breaker_dirty_mark(const struct breaker *b)
{
    return atomic_load(&b->state->dirty);
}

int64_t breaker_dirty_of(uint64_t mark)
{
    return (int64_t)(mark & (DIRTY_CHANGE - 1));
}

bool breaker_dirty_settle(struct breaker *b, uint64_t mark, int64_t ids)
{
    uint64_t settled = (mark & ~(DIRTY_CHANGE - 1)) + DIRTY_CHANGE + (uint64_t)(ids > 0 ? ids : 0);
    return atomic_compare_exchange_strong(&b->state->dirty, &mark, settled);
}
