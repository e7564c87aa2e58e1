#include "census.h"

#include "clock.h"
#include "leadership.h"
#include "log.h"
#include "redis_keys.h"

#include <stdlib.h>
#include <string.h>

#define LOOK_MS     500 /* what happens is seen so much later at most, and a round trip */
#define STEP_MS     3000
#define COMPLAIN_MS 60000

/* The number as it stands in Redis. */
struct tally {
    int64_t sessions;
    char place[SESSION_EVENTS_PLACE_BYTES]; /* the last event that is in it */
};

/* *known is false where nobody has counted yet. */
static bool read_tally(struct coordinator *co, struct tally *t, bool *known, struct err *e)
{
    struct bytes get[] = { BYTES_LITERAL("HMGET"), BYTES_LITERAL(REDIS_CENSUS_KEY), BYTES_LITERAL("sessions"),
                           BYTES_LITERAL("place") };
    redisReply *reply = redis_call(co->redis, get[1], 4, get, clock_mono_ms() + STEP_MS, NULL, e);
    if (reply == NULL) return false;
    *known = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
             reply->element[0]->type == REDIS_REPLY_STRING && reply->element[1]->type == REDIS_REPLY_STRING &&
             reply->element[1]->len < SESSION_EVENTS_PLACE_BYTES;
    if (*known) {
        t->sessions = strtoll(reply->element[0]->str, NULL, 10);
        strcpy(t->place, reply->element[1]->str);
    }
    freeReplyObject(reply);
    return true;
}

/* Any pair of number and place is true; but one that was counted anew must not give way to one that was added up. */
static bool move_tally(struct coordinator *co, const char *from, const struct tally *to, struct err *e)
{
    struct number sessions;
    bool repeated; /* would change nothing */
    struct bytes eval[] = { BYTES_LITERAL("EVAL"),
                            BYTES_LITERAL("return redis.call('HGET', KEYS[1], 'place') == ARGV[1] and "
                                          "redis.call('HSET', KEYS[1], 'sessions', ARGV[2], 'place', ARGV[3])"),
                            BYTES_LITERAL("1"),
                            BYTES_LITERAL(REDIS_CENSUS_KEY),
                            bytes_of(from),
                            number(&sessions, to->sessions),
                            bytes_of(to->place) };
    redisReply *reply = redis_call(co->redis, eval[3], 7, eval, clock_mono_ms() + STEP_MS, &repeated, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

static bool set_tally(struct coordinator *co, const struct tally *t, struct err *e)
{
    struct number sessions;
    bool repeated;
    struct bytes set[] = { BYTES_LITERAL("HSET"),          BYTES_LITERAL(REDIS_CENSUS_KEY), BYTES_LITERAL("sessions"),
                           number(&sessions, t->sessions), BYTES_LITERAL("place"),          bytes_of(t->place) };
    redisReply *reply = redis_call(co->redis, set[1], 6, set, clock_mono_ms() + STEP_MS, &repeated, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

/* --- a count --- */

bool census_begin(struct census *c, struct coordinator *co, struct err *e)
{
    return session_events_end(co->redis, c->place, clock_mono_ms() + STEP_MS, e);
}

/* Of those that came and went while it was counted, about half were seen as they were before. */
bool census_end(struct census *c, struct coordinator *co, int64_t sessions, struct err *e)
{
    struct session_events_sum sum;
    struct tally t;
    int64_t change = 0;
    do {
        if (!session_events_sum(co->redis, c->place, &sum, clock_mono_ms() + STEP_MS, e)) return false;
        change += sum.sessions;
    } while (sum.more);
    t.sessions = sessions + change / 2;
    strcpy(t.place, c->place);
    return set_tally(co, &t, e);
}

/* --- between two counts --- */

static void show(struct coordinator *co, bool known, int64_t sessions)
{
    struct coordination_survey s;
    coordination_read_survey(co->coordination, &s);
    s.sessions_ms = known ? clock_wall_ms() : 0;
    s.sessions = sessions > 0 ? sessions : 0;
    coordination_write_survey(co->coordination, &s);
}

static bool add_events(struct coordinator *co, struct tally *t, struct session_events_sum *sum, struct err *e)
{
    char from[SESSION_EVENTS_PLACE_BYTES];
    strcpy(from, t->place);
    if (!session_events_sum(co->redis, t->place, sum, clock_mono_ms() + STEP_MS, e)) return false;
    t->sessions += sum->sessions;
    return strcmp(from, t->place) == 0 || move_tally(co, from, t, e);
}

/* One look. *more: there are more events to add, at once. */
static bool look(struct coordinator *co, struct session_events_sum *sum, bool *more, struct err *e)
{
    struct tally t = { 0 };
    bool known;
    *sum = (struct session_events_sum){ 0 };
    *more = false;
    if (!read_tally(co, &t, &known, e)) return false;
    if (known && leadership_may_act(co->leadership) && !add_events(co, &t, sum, e)) return false;
    show(co, known, t.sessions);
    *more = sum->more;
    return true;
}

/* Is it time to say it again? */
static bool may_say(int64_t *quiet_until_ms)
{
    int64_t now_ms = clock_mono_ms();
    if (now_ms < *quiet_until_ms) return false;
    *quiet_until_ms = now_ms + COMPLAIN_MS;
    return true;
}

void census_run(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    struct session_events_sum sum;
    struct err e;
    int64_t gap_quiet_until_ms = 0, quiet_until_ms = 0;
    while (co->redis != NULL && duty_goes_on(d)) {
        bool more, ok = look(co, &sum, &more, &e);
        if (sum.gap && may_say(&gap_quiet_until_ms))
            log_warn("session events were lost, how many sessions there are is not exact until the next cleanup");
        if (!ok && duty_goes_on(d) && may_say(&quiet_until_ms))
            log_warn("the number of sessions cannot be kept: error=\"%s\"", e.text);
        if (!more) duty_wait(d, clock_mono_ms() + LOOK_MS);
    }
    if (co->redis == NULL) duty_wait(d, CLOCK_NEVER);
}
