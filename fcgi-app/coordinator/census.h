/* census.h: how many sessions Redis holds, at any time: as many as the last cleanup counted, and what the events have
 * said since. One number for all nodes, kept in Redis by the leader together with the event that it is true up to: so
 * no event counts twice, whoever leads. What expires says nothing; the next count corrects that. */
#ifndef HYPERPAGE_CENSUS_H
#define HYPERPAGE_CENSUS_H

#include "duties.h"
#include "session_events.h"

/* Every node's duty: shows the number to the other processes; the leader adds up the events. */
void census_run(struct duty *d);

/* A count of all sessions, from its beginning to its end. */
struct census {
    char place[SESSION_EVENTS_PLACE_BYTES]; /* in the events, when it began */
};
bool census_begin(struct census *c, struct coordinator *co, struct err *e);
bool census_end(struct census *c, struct coordinator *co, int64_t sessions, struct err *e);

#endif
