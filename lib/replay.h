/* replay.h: brings what the refuge holds back to Redis. In a task calls park, in plain code
 * they wait. Any number of processes may replay at once, the same rows too, and be killed at any moment: a script that
 * leaves a mark with the name of the version makes that each version reaches Redis once.
 *
 * What Redis holds           what becomes of it
 * what the row is based on   the row's document; the life is never shortened
 * something else             both, merged by member (session_merge)
 * nothing, and the row was born here, or Redis has lost its data   the row's document
 * nothing, otherwise, or a gone-mark in its place   nothing: the session has ended, the row is dropped
 * anything, and the row is a tombstone   nothing but the gone-mark
 * what is no session document, or nothing of ours may be written   it stays, and the row too */
#ifndef HYPERPAGE_REPLAY_H
#define HYPERPAGE_REPLAY_H

#include "redis.h"
#include "session_cache.h"
#include "store_refuge.h"

struct replay;

/* What a replay did to a session. */
struct replay_change {
    const char *id;
    bool deleted;
    struct bytes doc, base; /* what Redis holds now; no bytes: deleted, or not known here. What the row was based on */
    int64_t life_ms;        /* of `doc`, at least */
};

struct replay_options {
    struct refuge *refuge;        /* must outlive the replay, as what follows */
    struct session_cache *copies; /* what Redis has taken is kept here; NULL: nowhere */
    struct redis *redis;          /* where to; it must not have been used yet, and is flushed by its owner */
    const char *node;             /* borrowed; who we are, in the marks that the replay leaves */
    /* Unless NULL, called when Redis may hold something else than before, before the row goes. Must not park. */
    void (*changed)(void *ctx, const struct replay_change *change);
    void *ctx;
};

struct replay *replay_open(const struct replay_options *o);
void replay_close(struct replay *rp);

/* Brings the row of `id` back, if it has one: afterwards the id is Redis' alone. For a request that is about to use it.
 * False: the row is still there; ERR_UNAVAILABLE: for now; ERR_CORRUPT: as long as Redis holds there what it holds. */
bool replay_one(struct replay *rp, const char *id, int64_t deadline_ms, struct err *e);

#define REPLAY_MOST 100

/* Brings back at most `most` rows (at most REPLAY_MOST), the oldest first; in a task all at once. *more: call again
 * soon. False if Redis cannot be used; nothing is lost by that. For the one process of the node that keeps house. */
bool replay_step(struct replay *rp, size_t most, int64_t deadline_ms, bool *more, struct err *e);

/* hyperpage:epoch names the data that Redis holds: whoever finds it missing sets it. *lost: it is another than this
 * node saw last, so Redis has lost its data meanwhile. To be called before the first replay after an outage, and now
 * and then: rows remember the epoch that was seen last when they were made. */
bool replay_check_epoch(struct replay *rp, int64_t deadline_ms, bool *lost, struct err *e);

#endif
