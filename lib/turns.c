#include "turns.h"

#include "clock.h"
#include "mem.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define PLACES         1024 /* most processes at once */
#define TICK_MS        5    /* how often a waiter looks whether whose turn it is still lives */
#define PATIENCE_TICKS 50   /* after these without progress the turn of a living one (stopped, stuck) is passed over */

/* What a process says of itself in its place: nothing, "about to take a ticket", or "holds this ticket". The middle
 * one comes before the ticket is drawn, so that a ticket nobody holds is known to be lost, not just not yet noted. */
#define CLAIM_NONE    0
#define CLAIM_DRAWING ((uint64_t)1 << 32)
#define CLAIM_HOLDS   ((uint64_t)2 << 32) /* | ticket */

struct place {
    _Alignas(64) _Atomic uint64_t claim;
};

#define MAGIC   0x736e72757450485full /* "_HPturns" */
#define VERSION 1

/* The file. Old and new programs share it during an upgrade: what stands here never moves, new fields go to the end.
 * A file of zeros is a queue that is empty. */
struct queue {
    uint64_t magic;
    uint32_t version;
    _Atomic uint32_t places_used;          /* no place from here on was ever taken */
    _Alignas(64) _Atomic uint32_t next;    /* the ticket that the next comer draws; wraps around */
    _Alignas(64) _Atomic uint32_t serving; /* the ticket whose turn it is; the futex */
    struct place place[PLACES];
    _Alignas(64) _Atomic uint32_t paused_until; /* us of the kernel's clock, its low half; 0: no pause. A futex */
};

struct turns {
    struct queue *queue;
    struct place *own;
    uint32_t own_pause; /* what we wrote into paused_until */
    uint32_t ticket;    /* while own->claim holds it */
    int fd;
};

/* Locks on the file: byte 0 while it is created, byte 1 + n as long as the process in place n lives. They belong to the
 * open file (OFD), so that the kernel drops them with the process, whatever pid it had in whatever namespace. */
#define CREATION_LOCK 0
#define PLACE_LOCK(n) (1 + (off_t)(n))

static bool lock_byte(int fd, int command, off_t byte)
{
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    int rc;
    do rc = fcntl(fd, command, &l);
    while (rc < 0 && errno == EINTR);
    return rc == 0;
}

static void unlock_byte(int fd, off_t byte)
{
    struct flock l = { .l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    fcntl(fd, F_OFD_SETLK, &l);
}

static bool place_lives(const struct turns *t, uint32_t n)
{
    struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = PLACE_LOCK(n), .l_len = 1 };
    return &t->queue->place[n] == t->own || fcntl(t->fd, F_OFD_GETLK, &l) < 0 || l.l_type != F_UNLCK;
}

/* Each ticket has one bit of 32, so that a hand-over wakes the one whose turn it is and hardly anybody else. */
static uint32_t ticket_bit(uint32_t ticket)
{
    return 1u << (ticket % 32);
}

static void wake_ticket(struct queue *q, uint32_t ticket)
{
    syscall(SYS_futex, &q->serving, FUTEX_WAKE_BITSET, INT32_MAX, NULL, NULL, ticket_bit(ticket));
}

/* Sleeps until woken for `ticket`, or at most wait_ms. True if nothing happened in that time. */
static bool sleep_quietly(struct queue *q, uint32_t serving, uint32_t ticket, int64_t wait_ms)
{
    struct timespec until; /* the kernel's clock, not clock.h's: a test may have stopped that one */
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)wait_ms * 1000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    long rc = syscall(SYS_futex, &q->serving, FUTEX_WAIT_BITSET, serving, &until, NULL, ticket_bit(ticket));
    return rc < 0 && errno == ETIMEDOUT && atomic_load(&q->serving) == serving;
}

/* Is the turn of `ticket`, which was drawn, nobody's any more? Without a quiet tick behind us this looks only at what
 * the places say; asking the kernel who lives waits until there is reason to. */
static bool turn_is_lost(struct turns *t, uint32_t ticket, int quiet_ticks)
{
    struct queue *q = t->queue;
    uint32_t used = atomic_load(&q->places_used);
    bool drawing = false;
    if (quiet_ticks >= PATIENCE_TICKS) return true;
    for (uint32_t n = 0; n < used; n++) {
        uint64_t claim = atomic_load(&q->place[n].claim);
        if (claim == (CLAIM_HOLDS | ticket)) return quiet_ticks > 0 && !place_lives(t, n);
        if (claim == CLAIM_DRAWING) drawing = drawing || quiet_ticks == 0 || place_lives(t, n);
    }
    return !drawing;
}

/* Gives the turn of `ticket` to the next one whose turn is not lost. */
static void pass_on(struct turns *t, uint32_t ticket)
{
    struct queue *q = t->queue;
    uint32_t expected = ticket;
    do {
        if (!atomic_compare_exchange_strong(&q->serving, &expected, ticket + 1)) return; /* somebody else did */
        expected = ++ticket;
        if (atomic_load(&q->next) == ticket) return;
    } while (turn_is_lost(t, ticket, 0));
    wake_ticket(q, ticket);
}

/* The kernel's, not clock.h's, which a test may have stopped. */
static uint32_t now_us(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint32_t)((uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000);
}

void turns_pause(struct turns *t, int64_t us)
{
    uint32_t *own = &t->own_pause, was = *own;
    if (us > TURNS_MOST_PAUSE_US) us = TURNS_MOST_PAUSE_US;
    *own = us > 0 ? (now_us() + (uint32_t)us) | 1 : 0; /* a microsecond more, and never 0 */
    if (*own != 0)
        atomic_store(&t->queue->paused_until, *own);
    else if (atomic_compare_exchange_strong(&t->queue->paused_until, &was, 0)) /* else it is another's by now */
        syscall(SYS_futex, &t->queue->paused_until, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Waits while there is a pause. One that nobody has ended is taken away, or the clock would come round to it again; one
 * that is further ahead than anybody may ask for is from another start of the machine. */
static void wait_out_pause(struct turns *t, int64_t deadline_ms)
{
    uint32_t until;
    while ((until = atomic_load_explicit(&t->queue->paused_until, memory_order_relaxed)) != 0 &&
           until != t->own_pause) {
        int32_t left_us = (int32_t)(until - now_us());
        if (left_us <= 0 || left_us > TURNS_MOST_PAUSE_US + 1) {
            atomic_compare_exchange_strong(&t->queue->paused_until, &until, 0);
            return;
        }
        if (clock_mono_ms() >= deadline_ms) return;
        struct timespec wait = { .tv_nsec = (long)left_us * 1000 };
        syscall(SYS_futex, &t->queue->paused_until, FUTEX_WAIT, until, &wait, NULL, 0);
    }
}

bool turns_take(struct turns *t, int64_t deadline_ms)
{
    struct queue *q = t->queue;
    assert(atomic_load(&t->own->claim) == CLAIM_NONE);
    wait_out_pause(t, deadline_ms);
    atomic_store(&t->own->claim, CLAIM_DRAWING);
    t->ticket = atomic_fetch_add(&q->next, 1);
    atomic_store(&t->own->claim, CLAIM_HOLDS | t->ticket);

    for (int quiet_ticks = 0;;) {
        uint32_t serving = atomic_load(&q->serving);
        if ((int32_t)(serving - t->ticket) >= 0) return true; /* beyond our ticket: we were passed over; go ahead */
        if (turn_is_lost(t, serving, quiet_ticks)) {
            pass_on(t, serving);
            quiet_ticks = quiet_ticks > 0; /* where one has died more may have: look at once */
            continue;
        }
        int64_t left_ms = deadline_ms - clock_mono_ms();
        if (left_ms <= 0) {
            turns_leave(t);
            return false;
        }
        bool quiet = sleep_quietly(q, serving, t->ticket, left_ms < TICK_MS ? left_ms : TICK_MS);
        quiet_ticks = quiet ? quiet_ticks + 1 : 0;
    }
}

void turns_leave(struct turns *t)
{
    atomic_store(&t->own->claim, CLAIM_NONE); /* before our turn this is all: it will be found to be nobody's */
    pass_on(t, t->ticket);
}

/* A file too short, or of zeros, was never finished: a killed creator leaves nothing that the next cannot complete.
 * Reserved, not just extended: a store into a hole on a full disk is a SIGBUS. */
static bool create(int fd, const char *path, struct queue **queue, struct err *e)
{
    int rc = posix_fallocate(fd, 0, sizeof **queue);
    if (rc != 0)
        return err_set(e, ERR_UNAVAILABLE, "%s: no room for %zu bytes: %s", path, sizeof **queue, strerror(rc));
    struct queue *q = mmap(NULL, sizeof *q, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (q == MAP_FAILED) return err_set(e, ERR_UNAVAILABLE, "%s: cannot be mapped: %s", path, strerror(errno));
    *queue = q;
    if (q->magic != 0 && q->magic != MAGIC)
        return err_set(e, ERR_INPUT, "%s: is not a queue of ours; remove it if nothing else needs it", path);
    if (q->version < VERSION) q->version = VERSION;
    q->magic = MAGIC;
    return true;
}

static bool find_place(struct turns *t, const char *path, struct err *e)
{
    for (uint32_t n = 0; n < PLACES; n++) {
        if (!lock_byte(t->fd, F_OFD_SETLK, PLACE_LOCK(n))) continue;
        t->own = &t->queue->place[n];
        atomic_store(&t->own->claim, CLAIM_NONE); /* what a dead one left; its turn is found lost at once */
        if (atomic_load(&t->queue->places_used) <= n) atomic_store(&t->queue->places_used, n + 1);
        return true;
    }
    return err_set(e, ERR_UNAVAILABLE, "%s: %d processes use it already", path, PLACES);
}

struct turns *turns_open(const char *path, struct err *e)
{
    bool ok = false;
    struct turns *t = mem_alloc(sizeof *t);
    t->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (t->fd < 0 || !lock_byte(t->fd, F_OFD_SETLKW, CREATION_LOCK)) {
        err_set(e, ERR_INPUT, "%s: %s", path, strerror(errno));
        goto out;
    }
    ok = create(t->fd, path, &t->queue, e) && find_place(t, path, e);
    unlock_byte(t->fd, CREATION_LOCK);
out:
    if (ok) return t;
    turns_close(t);
    return NULL;
}

void turns_close(struct turns *t)
{
    if (t == NULL) return;
    if (t->own != NULL && atomic_load(&t->own->claim) != CLAIM_NONE) turns_leave(t);
    if (t->queue != NULL) munmap(t->queue, sizeof *t->queue);
    if (t->fd >= 0) close(t->fd);
    free(t);
}
