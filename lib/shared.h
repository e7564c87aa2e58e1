/* shared.h: the state that the processes of this node share: one mapped file in RUN_DIR, created by whoever comes
 * first. Each process owns one slot and is its only writer; anybody may read, nobody waits. */
#ifndef HYPERPAGE_SHARED_H
#define HYPERPAGE_SHARED_H

#include "err.h"

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

/* Maps the first `bytes` of RUN_DIR/NAME, which whoever comes first creates: zeroed, and its blocks reserved, so that a
 * full tmpfs is an error here and not a SIGBUS later. It stays mapped; *fd, unless NULL, is the caller's. NULL with
 * `e` on failure, also if the file has another size. */
void *shared_map(const char *run_dir, const char *name, size_t bytes, int *fd, struct err *e);

#define SHARED_SLOTS 320   /* WORKERS at its most, their successors during a reload, and the others */
#define SLOT_COUNTERS 64

enum slot_role { SLOT_UNUSED, SLOT_MASTER, SLOT_WORKER, SLOT_KEEPER, SLOT_COORDINATOR };
enum slot_state { SLOT_STARTING, SLOT_SERVING, SLOT_DRAINING, SLOT_GONE };

struct slot {
    _Alignas(64) _Atomic int32_t pid;
    _Atomic int32_t role;             /* enum slot_role */
    _Atomic int32_t state;            /* enum slot_state */
    _Atomic int64_t started_ms;       /* wall */
    _Atomic int64_t busy_since_ms;    /* monotonic: the loop runs since then; 0 while it waits */
    _Atomic int64_t oldest_since_ms;  /* monotonic: start of the oldest request in its hands; 0 if there is none */
    _Atomic int32_t oldest_method;    /* index into http_methods */
    _Atomic int32_t oldest_route;     /* index into the routes */
    _Atomic int32_t connections;      /* open, from front servers */
    _Atomic int32_t requests;         /* in its hands now */
    _Atomic uint64_t counter[SLOT_COUNTERS]; /* by enum metric; these outlive the owner */
};

struct shared;

/* Maps RUN_DIR/pool.state-N (N: version of the layout), mode 0600, its blocks reserved: a hole on a full tmpfs would
 * kill every process that touches it. Each process opens its own, after fork. */
struct shared *shared_open(const char *run_dir, struct err *e);
void shared_close(struct shared *sh); /* gives the slot back */

/* In a forked child: lets go of the parent's mapping, and leaves the parent's slot alone. */
void shared_forget(struct shared *sh);

/* Takes a slot that nobody living owns, the counters as they stand. The kernel keeps the claim (a lock on one byte)
 * for as long as this process lives, however it ends. */
struct slot *shared_claim(struct shared *sh, enum slot_role role, struct err *e);

struct slot *shared_slot(struct shared *sh, size_t index);
bool shared_slot_alive(struct shared *sh, size_t index); /* has it an owner that lives? Never the caller's own slot. */

/* The slot of the process `pid`, or NULL. */
struct slot *shared_slot_of(struct shared *sh, int32_t pid);

#endif
