/* shared.h: the state that the processes of this node share: one mapped file in RUN_DIR, created by whoever comes
 * first. Each process owns one slot and is its only writer; anybody may read, nobody waits. */
#ifndef HYPERPAGE_SHARED_H
#define HYPERPAGE_SHARED_H

#include "err.h"
#include "metrics.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Maps the first `bytes` of RUN_DIR/NAME, which whoever comes first creates: zeroed, and its blocks reserved, so that a
 * full tmpfs is an error here and not a SIGBUS later. It stays mapped; *fd, unless NULL, is the caller's. NULL with
 * `e` on failure, also if the file has another size. */
void *shared_map(const char *run_dir, const char *name, size_t bytes, int *fd, struct err *e);

#define SHARED_SLOTS                                                                                                   \
    576 /* two pools with WORKERS at its most, one of which replaces the other; coordinator and spares */

enum slot_role { SLOT_UNUSED, SLOT_MASTER, SLOT_WORKER, SLOT_KEEPER, SLOT_COORDINATOR };
enum slot_state { SLOT_STARTING, SLOT_SERVING, SLOT_DRAINING, SLOT_GONE };

struct slot {
    _Alignas(64) _Atomic int32_t pid;
    _Atomic int32_t role;            /* enum slot_role */
    _Atomic int32_t state;           /* enum slot_state */
    _Atomic int64_t started_ms;      /* wall */
    _Atomic int64_t busy_since_ms;   /* monotonic: the loop runs since then; 0 while it waits */
    _Atomic int64_t oldest_since_ms; /* monotonic: start of the oldest request in its hands; 0 if there is none */
    _Atomic int32_t oldest_method;   /* index into http_methods */
    _Atomic int32_t oldest_route;    /* index into the routes */
    _Atomic int32_t connections;     /* open, from front servers */
    _Atomic int32_t requests;        /* in its hands now */
    _Atomic int32_t workers_wanted;  /* of a master: how many it keeps */
    _Atomic uint64_t counter[METRICS_COUNTERS]; /* see metrics.h; these outlive the owner */
};

/* What the processes of a node depend on, as whoever keeps house saw it last. */
enum dependency {
    DEPENDENCY_REDIS, /* the keeper looks at these */
    DEPENDENCY_EMBEDDED,
    DEPENDENCY_POSTGRES, /* the coordinator */
    DEPENDENCY_COUNT
};
enum check_state { CHECK_UNKNOWN, CHECK_UNUSED, CHECK_UP, CHECK_DOWN };
struct check {
    _Atomic int32_t state;      /* enum check_state */
    _Atomic int64_t checked_ms; /* monotonic: when it was looked at last */
    _Atomic int64_t since_ms;   /* monotonic: the state is this since then */
    _Atomic int64_t latency_us; /* of that look */
};

struct shared;

/* Maps RUN_DIR/pool.state-XXXXXXXX, mode 0600, its blocks reserved: a hole on a full tmpfs would kill every process
 * that touches it. X names the layout, counters and all, so that another build never meets a file it does not
 * understand; it has its own, and totals.h adds up what stands in both. Each process opens its own, after fork. */
struct shared *shared_open(const char *run_dir, struct err *e);
void shared_close(struct shared *sh); /* gives the slot back */

/* In a forked child: lets go of the parent's mapping, and leaves the parent's slot alone. */
void shared_forget(struct shared *sh);

/* Takes a slot that nobody living owns, the counters as they stand. The kernel keeps the claim (a lock on one byte)
 * for as long as this process lives, however it ends. */
struct slot *shared_claim(struct shared *sh, enum slot_role role, struct err *e);

struct slot *shared_slot(struct shared *sh, size_t index);
bool shared_slot_alive(struct shared *sh, size_t index); /* has it an owner that lives? Never the caller's own slot. */

/* The slot of the living process `pid` with this role, or NULL: a dead one's may say that pid still, and so may that of
 * a process in another container. */
struct slot *shared_slot_of(struct shared *sh, enum slot_role role, int32_t pid);

/* Takes down the names of those of this role who died without giving their slots back, and whose slots nobody took
 * over: their successors sit elsewhere, or there are none. The counters stay. For whoever knows that none is missing.
 */
void shared_bury(struct shared *sh, enum slot_role role);

struct check *shared_check(struct shared *sh, enum dependency d);

/* What was seen last is worth something for so long: one who looks and was stopped must not vouch for Redis. */
#define CHECK_MOST_AGE_MS 5000

/* The state of a dependency as of now: CHECK_UNKNOWN if the last look was too long ago. */
enum check_state shared_check_state(struct shared *sh, enum dependency d, int64_t now_ms);

/* Tells of a look that began at `began_us` (monotonic) and ends now. */
void shared_check_note(struct shared *sh, enum dependency d, enum check_state is, int64_t began_us);

_Atomic int64_t *shared_sessions(struct shared *sh); /* live ones in the embedded store, when they were counted last */

/* How many slots, from the first on, have ever been claimed. */
size_t shared_slots_used(struct shared *sh);

/* --- for totals.c: the file as any build understands it --- */

#define SHARED_FILE  "pool.state-" /* and 8 hexadecimal digits */
#define SHARED_MAGIC 0x6870706f6f6c3202ULL

/* The start of the file. This never changes, whatever follows. Places are bytes from the start of the file, of
 * counters_at from the start of a slot. */
struct shared_head {
    _Atomic uint64_t magic; /* written last by the creator */
    uint64_t bytes;         /* of the file */
    uint64_t id;            /* which file this is: random */
    uint32_t slots, slot_bytes, slots_at, counters_at;
    uint32_t counters;                /* of a slot */
    uint32_t base_at;                 /* two arrays of as many: what files of other layouts had counted */
    uint32_t legend_at, legend_bytes; /* the counters' names, a line each */
    _Atomic uint32_t slots_used;
    _Atomic uint64_t folded; /* lowest bit: which array of the two counts; the rest: the id of the file added last */
};
#define SHARED_ID_MASK (UINT64_MAX >> 1)

/* Byte of the file that everyone who has it open holds a lock on, for reading. Who gets it for writing is alone. */
#define SHARED_OPEN_BYTE (1 << 20)

struct shared_head *shared_head(struct shared *sh);
const char *shared_run_dir(struct shared *sh);
const char *shared_name(struct shared *sh); /* of the file */

#endif
