/* breaker.h: is Redis up? One answer for all processes of this node, so that an outage costs one timeout and not one
 * per worker and request. The file RUN_DIR/breaker is shared by old and new programs during an upgrade. */
#ifndef HYPERPAGE_BREAKER_H
#define HYPERPAGE_BREAKER_H

#include "err.h"

#include <stdbool.h>
#include <stdint.h>

#define BREAKER_PROBE_MS 250 /* probes of a lost Redis are at least so far apart */

struct breaker;

/* Maps the file, which whoever comes first creates, its blocks reserved, mode 0600. May be opened before or after a
 * fork. What another start of the machine left is forgotten. NULL with `e` on failure. */
struct breaker *breaker_open(const char *run_dir, struct err *e);
void breaker_close(struct breaker *b);

/* True while Redis is taken for lost. One load: for every request. */
bool breaker_is_open(const struct breaker *b);

/* Redis was seen to be lost at now_ms (monotonic). The first to say so opens the breaker, logs `reason` and gets true;
 * while it is open all others are only counted. */
bool breaker_trip(struct breaker *b, const char *reason, int64_t now_ms);

/* May this process probe Redis now? True for one process of the node at a time, and at most every BREAKER_PROBE_MS;
 * false while the breaker is closed. The claim ends with breaker_probe_failed(), with breaker_reset(), or, if this
 * process dies, after timeout_ms: the longest that its probe may take. */
bool breaker_may_probe(struct breaker *b, int64_t now_ms, int64_t timeout_ms);
void breaker_probe_failed(struct breaker *b);

/* The probe that breaker_may_probe() allowed has succeeded: closes the breaker and logs how long Redis was away.
 * False, and nothing happens, if that outage is over already: the word of a prober that was stopped in between is
 * worth nothing in a later outage. */
bool breaker_reset(struct breaker *b, int64_t now_ms);

struct breaker_outage {
    uint32_t number;       /* 1 for the first of this start of the machine; starts again after 8 million */
    int64_t since_ms;      /* monotonic */
    int64_t since_wall_ms; /* the same moment on today's wall clock */
    uint64_t reports;      /* trips beside the one that opened it */
};

/* The present outage; false while there is none. */
bool breaker_outage(const struct breaker *b, struct breaker_outage *o);

int64_t breaker_since_ms(const struct breaker *b); /* of the present outage; 0: there is none, or `b` is NULL */

/* --- sessions of this node that await their replay to Redis ("dirty") ---
 *
 * An upper bound of their number, so that 0 is a proof that none waits and the embedded store need not be asked. It
 * stays one if a process is killed at any moment, because it is raised before what it counts is committed and lowered
 * only after:
 *   - who makes rows dirty calls breaker_dirty_add() inside the write transaction, before its commit;
 *   - who makes rows clean, or counts them anew, takes a mark inside the write transaction and calls
 *     breaker_dirty_settle() after the commit, with the number of rows that were dirty then (or with
 *     breaker_dirty_of(mark) less the rows it cleaned). It changes nothing if anybody added or settled since the mark:
 *     then the bound stays too high until the next settling. */
int64_t breaker_dirty(const struct breaker *b);
void breaker_dirty_add(struct breaker *b, uint32_t ids);
uint64_t breaker_dirty_mark(const struct breaker *b);
int64_t breaker_dirty_of(uint64_t mark);
bool breaker_dirty_settle(struct breaker *b, uint64_t mark, int64_t ids);

#endif
