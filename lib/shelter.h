/* shelter.h: this node's part in an outage of Redis. It knows that there is one (breaker), answers meanwhile from what
 * the node knows (session_cache) and from what was written here since (store_refuge), and brings that back (replay). */
#ifndef HYPERPAGE_SHELTER_H
#define HYPERPAGE_SHELTER_H

#include "replay.h"
#include "store_redis.h"

struct shelter;

struct shelter_options {
    const char *run_dir;
    struct store_redis *redis;       /* outlives the shelter, as all below */
    struct store_embedded *embedded; /* NULL: in an outage nothing is served; then the rest does not count */
    struct session_cache *copies;
    int64_t most_age_ms; /* of a copy when an outage began: older ones are not served in it */
    const char *node;
    void (*changed)(void *ctx, const struct replay_change *change); /* see replay.h */
    void *ctx;
};

/* Open it after fork. What the embedded store holds of its own goes to the refuge first: all of it is Redis' from now
 * on. NULL with `e` on failure. */
struct shelter *shelter_open(const struct shelter_options *o, struct err *e);
void shelter_close(struct shelter *sh);

bool shelter_serves(const struct shelter *sh);    /* has it a refuge? */
bool shelter_is_needed(const struct shelter *sh); /* is Redis away? One load: for every request */

/* `why` (with `away`) is how an operation on Redis failed: from now on all processes of the node know. */
void shelter_report(struct shelter *sh, const struct err *why);

/* To be called before Redis is asked about `id`: what was written here goes back first. False: it is still here;
 * ERR_UNAVAILABLE: Redis is away, or does not take it now; ERR_CORRUPT: what Redis holds is no session. */
bool shelter_release(struct shelter *sh, const char *id, int64_t deadline_ms, struct err *e);

/* What is answered while Redis is away; `self` is the shelter. A session that this node cannot know is ERR_UNAVAILABLE,
 * never absent: others may know it. So are the operations that need all nodes to agree: rotate, list, heal, and an
 * update with terms->strict. */
extern const struct store_ops shelter_ops;

/* What is written down of `id` by now has been sent to Redis before, and nobody heard whether it was done. It is kept
 * as a version of its own: if Redis did it, what follows here is a change of that, and no conflict with it. */
bool shelter_hold(struct shelter *sh, const char *id, int64_t deadline_ms, struct err *e);

/* Redis was told to make the session `id`, and nobody heard whether it did. No client knows the id: where there is such
 * a session it ends once Redis is back. */
bool shelter_disown(struct shelter *sh, const char *id, int64_t deadline_ms, struct err *e);

/* One step on the way back: in an outage Redis is tried, at most every BREAKER_PROBE_MS and by one process of the node;
 * else some of what was written here goes back. *more: call again soon. For whoever keeps house, a few times a second;
 * in a task it parks. */
bool shelter_tend(struct shelter *sh, bool *more, struct err *e);

#endif
