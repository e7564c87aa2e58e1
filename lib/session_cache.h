/* session_cache.h: the latest copies of sessions that this node's processes read from Redis or wrote to it, in memory
 * that they share. Readers take no lock and never wait; writers never wait either: who cannot write at once kills the
 * copy, which needs no lock. A process may be killed at any instruction: at worst the copy it was writing is gone.
 *
 * What holds for all processes of the node that open the cache, at every moment: no copy is ever torn, expired, or
 * older than one that session_cache_note_write() or session_cache_drop() has replaced before it returned. So a process
 * tells the cache of a write after Redis has taken it and before anybody else hears of it.
 *
 * The order of two writes is not known here, so fills and writes say what they are based on: session_cache_epoch() is
 * asked before Redis is, and what has been overtaken since is not stored. */
#ifndef HYPERPAGE_SESSION_CACHE_H
#define HYPERPAGE_SESSION_CACHE_H

#include "buf.h"
#include "err.h"

#include <stdbool.h>
#include <stdint.h>

#define SESSION_CACHE_MOST_ID_BYTES  128
#define SESSION_CACHE_MOST_DOC_BYTES (64 * 1024) /* a longer document is never kept */

struct session_cache;

/* Joins the cache of RUN_DIR; whoever comes first makes it, of `bytes` (rounded down to 128 KiB, at least as much).
 * Made with another size before, it is made anew, and the others follow at their next call; with 0 it is off for all of
 * them. Every process that writes sessions to Redis has to join, also with 0, since a neighbour may have other options
 * during a reload. Where there is no room, a warning is logged and all goes on without cache: nothing is found or kept.
 * With SESSION_CACHE_AS_IT_IS one that is there stays what it is.
 * NULL with `e` if RUN_DIR cannot be used at all. Open it after fork, never before: a child that inherits the
 * descriptor makes its dead parent look alive. Not for use by two threads at once; each may have its own. */
#define SESSION_CACHE_AS_IT_IS (-1)
struct session_cache *session_cache_open(const char *run_dir, int64_t bytes, struct err *e);
void session_cache_close(struct session_cache *c);

/* What must be done now and then by the one process of the node that keeps house: makes the cache if it could not be
 * made before. May take long. */
void session_cache_tend(struct session_cache *c);

/* Is anything kept now? */
bool session_cache_is_on(struct session_cache *c);

struct session_copy {
    int64_t expires_at_ms; /* wall; 0: not known */
    int64_t filled_ms;     /* monotonic: when it came from Redis or was written there */
    bool proven;           /* nobody has said since that it might have changed */
};

/* Appends the copy of session `id` to `doc`; false if there is none that still lives (or `doc` is full). */
bool session_cache_get(struct session_cache *c, const char *id, struct buf *doc, struct session_copy *copy);

/* The same without the document, for whom it is enough that there is a copy: a fraction of the cost. In one of four
 * thousand million cases it is another session's. */
bool session_cache_look(struct session_cache *c, const char *id, struct session_copy *copy);

/* Where session `id` stands now. Ask before Redis is asked, and hand it on with the result. */
uint64_t session_cache_epoch(struct session_cache *c, const char *id);

/* Redis holds `doc`: it was read there. Ignored if the session has been written, dropped or invalidated since `epoch`.
 * expires_at_ms is wall time, 0 if not known. */
void session_cache_put(struct session_cache *c, const char *id, struct bytes doc, int64_t expires_at_ms,
                       uint64_t epoch);

/* `doc` has been written to Redis. If the session has been invalidated since `epoch`, its copy is unproven: Redis tells
 * of our own writes, too, and nobody here knows whether it was that. If others have written since, nobody knows what
 * came last, nor where there was no copy before: then there is none until the next fill, and the answer is false. */
bool session_cache_note_write(struct session_cache *c, const char *id, struct bytes doc, int64_t expires_at_ms,
                              uint64_t epoch);

/* The session is gone, or has become what nobody here knows. */
void session_cache_drop(struct session_cache *c, const char *id);

/* The session may have changed in Redis: its copy stays, no longer proven. */
void session_cache_invalidate(struct session_cache *c, const char *id);

/* The same for all sessions, or for all that share a prefix: copies are not in an order that prefixes could use. */
void session_cache_invalidate_all(struct session_cache *c);

struct session_cache_stats {
    int64_t limit_bytes; /* 0: the cache is off */
    int64_t entries;
    int64_t bytes; /* of ids and documents, as they take room */
};
void session_cache_stats(struct session_cache *c, struct session_cache_stats *stats);

#endif
