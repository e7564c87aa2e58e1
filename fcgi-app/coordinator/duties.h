/* duties.h: what the coordinator does by itself: a table of tasks, each on every node or on the leader only. */
#ifndef HYPERPAGE_DUTIES_H
#define HYPERPAGE_DUTIES_H

#include "coordinator.h"

struct duty;

struct duties *duties_open(struct coordinator *co);
void duties_close(struct duties *ds);
void duties_start(struct duties *ds);

/* Leadership came or went, or the coordinator is leaving: every duty looks whether it goes on. */
void duties_wake(struct duties *ds);

/* Somebody asks for what duty `name` does next to be done now. False: it does not run here now. */
bool duties_ask(struct duties *ds, const char *name);

/* --- for a duty's function; it runs as a task, returns when one of these says false, and is called anew when it shall
 * work again (for a leader's: with the next leadership), or 1 s after it has returned by itself --- */

struct coordinator *duty_coordinator(const struct duty *d);

/* Shall it go on? Of a leader's duty: while leadership_may_act(). Before every step. */
bool duty_goes_on(const struct duty *d);

/* Parks until `until_ms` (monotonic), until somebody asks, or until it shall end; the same answer. */
bool duty_wait(struct duty *d, int64_t until_ms);

#endif
