/* life.h: until when a session may live, and when others are told that it does. Pure: time is passed in. */
#ifndef HYPERPAGE_LIFE_H
#define HYPERPAGE_LIFE_H

#include "session.h"

struct life_rules {
    int64_t ttl_ms;      /* from the last write on */
    int64_t absolute_ms; /* from its creation on, whatever is written; 0: no limit */
};

/* What is left until a session must end whatever is written: 0 or less if that is past, INT64_MAX without such an end.
 * A document that does not say when it was created has none. */
int64_t life_left_ms(const struct life_rules *rules, const struct session_facts *facts, int64_t now_ms);

/* The smaller one of the usual life and what is left. */
int64_t life_ttl_ms(const struct life_rules *rules, int64_t left_ms);

/* Is a life so much shorter than `ttl_ms` that setting it back to that is worth a write? */
bool life_roll_due(int64_t ttl_ms, int64_t life_ms);

/* A session that is written all the time is announced once a tenth of its usual life: by the write that first passes
 * one of the moments that divide time for this id. No state, no question to the store, and the sessions of a pool do
 * not all come at once. */
bool life_announce_due(const struct life_rules *rules, const char *id, const struct session_facts *was, int64_t now_ms);

#endif
