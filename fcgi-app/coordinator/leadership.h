/* leadership.h: is this node the one that does what must happen once for all? Holds the lease in Redis; without Redis
 * the node is alone, and its own leader. */
#ifndef HYPERPAGE_LEADERSHIP_H
#define HYPERPAGE_LEADERSHIP_H

#include "coordinator.h"

struct leadership;

extern const char *const leadership_acquire_script, *const leadership_renew_script, *const leadership_release_script;

/* `changed` is called whenever the answer to leadership_is_leader() or the known leader has become another. */
struct leadership *leadership_open(struct coordinator *co, void (*changed)(struct coordinator *co));
void leadership_close(struct leadership *l);

/* Starts its task. It ends after leadership_stop(), once the lease is given back. */
void leadership_start(struct leadership *l);
void leadership_stop(struct leadership *l);

/* May this node act as leader at this moment? Ask before every single step: the lease ends by itself, also while this
 * process stands still. */
bool leadership_may_act(const struct leadership *l);

/* Until when it may, unless the lease is renewed before (monotonic): already less the margin. 0: it may not;
 * CLOCK_NEVER: it is alone. */
int64_t leadership_acts_until_ms(const struct leadership *l);

/* Was it leader when it last looked? Between this and leadership_may_act() lies only the end of a lease. */
bool leadership_is_leader(const struct leadership *l);

/* The fencing token of our leadership: above that of every leader before. 0: we do not lead. */
int64_t leadership_term(const struct leadership *l);

/* Who leads, as far as this node knows: the name, "" if nobody does; its term (0: not known), and since when (wall). */
const char *leadership_leader(const struct leadership *l);
int64_t leadership_leader_term(const struct leadership *l);
int64_t leadership_since_ms(const struct leadership *l);

/* Somewhere a term is on record that ours is not above, so Redis has lost its counter. We stop acting at once, and
 * stand for election again with a term above that. */
void leadership_lift_term(struct leadership *l, int64_t above);

/* An operator wants another to lead: gives the lease back, and stands for election again after as long as one lasts. */
void leadership_yield(struct leadership *l);

/* The leader may have changed: looks at once. */
void leadership_look(struct leadership *l);

#endif
