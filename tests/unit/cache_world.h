/* cache_world.h: sessions whose documents say which version they are, a stand-in for Redis that knows the newest, and
 * what was acknowledged to clients. For tests that hammer the session cache from processes or threads. */
#ifndef HYPERPAGE_CACHE_WORLD_H
#define HYPERPAGE_CACHE_WORLD_H

#include "session_cache.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WORLD_SESSIONS 200 /* more than a set holds of the size they have */

/* Shared by all. */
struct world {
    _Atomic uint32_t redis[WORLD_SESSIONS];        /* the version that Redis holds */
    _Atomic uint32_t acknowledged[WORLD_SESSIONS]; /* no answer may be older than this */
    _Atomic uint64_t hits, proven;
    _Atomic uint32_t torn, stale, lost;
};

static inline const char *world_id(uint32_t session, char out[40])
{
    snprintf(out, 40, "%08x-52f3-4c5a-9d3b-%012x", session * 2654435761u, session);
    return out;
}

/* Document `version` of a session: its length and each of its bytes follow from both. */
static inline struct bytes world_doc(uint32_t session, uint32_t version, char out[24000])
{
    size_t len = version % 50 == 7 ? 20000 : 500 + version % 4 * 100;
    uint32_t at[2] = { session, version };
    memcpy(out, at, sizeof at);
    memset(out + sizeof at, (int)('A' + (session * 31 + version) % 53), len - sizeof at);
    return (struct bytes){ out, len };
}

/* The version of a copy, or 0 if it is torn. */
static inline uint32_t world_version(uint32_t session, struct bytes doc)
{
    static _Thread_local char expected[24000];
    uint32_t at[2] = { 0 };
    if (doc.len < sizeof at) return 0;
    memcpy(at, doc.at, sizeof at);
    return at[0] == session && bytes_equal(doc, world_doc(session, at[1], expected)) ? at[1] : 0;
}

static inline void world_acknowledge(struct world *w, uint32_t session, uint32_t version)
{
    uint32_t was = atomic_load(&w->acknowledged[session]);
    while (was < version && !atomic_compare_exchange_weak(&w->acknowledged[session], &was, version)) {
    }
}

static inline void world_read(struct world *w, struct session_cache *c, uint32_t session, struct buf *doc)
{
    char id[40];
    struct session_copy copy;
    uint32_t least = atomic_load(&w->acknowledged[session]);
    buf_reset(doc);
    if (!session_cache_get(c, world_id(session, id), doc, &copy)) return;
    uint32_t version = world_version(session, buf_bytes(doc));
    atomic_fetch_add(&w->hits, 1);
    if (copy.proven) atomic_fetch_add(&w->proven, 1);
    if (version == 0)
        atomic_fetch_add(&w->torn, 1);
    else if (version < least)
        atomic_fetch_add(&w->stale, 1);
}

/* One operation as a worker does it, chosen by `dice`. */
static inline void world_step(struct world *w, struct session_cache *c, uint32_t dice, struct buf *doc)
{
    static _Thread_local char text[24000];
    char id[40];
    uint32_t session = dice / 100 % WORLD_SESSIONS, kind = dice % 100;
    if (kind < 50) {
        world_read(w, c, session, doc);
        return;
    }
    world_id(session, id);
    uint64_t epoch = session_cache_epoch(c, id);
    if (kind < 70) { /* a fill */
        uint32_t version = atomic_load(&w->redis[session]);
        session_cache_put(c, id, world_doc(session, version, text), 0, epoch);
    } else if (kind < 90) {
        uint32_t version = atomic_fetch_add(&w->redis[session], 1) + 1;
        session_cache_note_write(c, id, world_doc(session, version, text), 0, epoch);
        world_acknowledge(w, session, version);
    } else if (kind < 92) { /* a write of which the cache learns only that it was */
        uint32_t version = atomic_fetch_add(&w->redis[session], 1) + 1;
        session_cache_drop(c, id);
        world_acknowledge(w, session, version);
    } else {
        session_cache_invalidate(c, id);
    }
}

static inline uint32_t world_dice(uint32_t *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 4;
}

#endif
