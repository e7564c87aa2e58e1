/* election.h: who may act as leader: event and time in, what to do next out. Pure: the caller talks to Redis, reports
 * each outcome as the next event, and owns the clock.
 *
 * The lease is a key in Redis that expires by itself. A leader counts its time from before it asked for it, and stops a
 * margin earlier than that, so on any clock that runs at the right speed it has stopped before another can begin. */
#ifndef HYPERPAGE_ELECTION_H
#define HYPERPAGE_ELECTION_H

#include <stdbool.h>
#include <stdint.h>

enum election_role {
    ELECTION_FOLLOWER,
    ELECTION_WAITING, /* holds the lease, but one that Redis has forgotten may still act: waits until that has ended */
    ELECTION_LEADER,
    ELECTION_STOPPED
};

enum election_action {
    ELECTION_WAIT,    /* until election_due_ms(), or until another event */
    ELECTION_ACQUIRE, /* take the lease if nobody has it, with a term above seen_term; otherwise see who has */
    ELECTION_RENEW,   /* if it is still ours, by name and term */
    ELECTION_RELEASE  /* if it is still ours */
};

struct election_event {
    enum election_event_kind {
        ELECTION_TIME,       /* nothing else has happened */
        ELECTION_WON,        /* of acquire: `term`; `sound` unless one that Redis knows nothing of may still act: the
                              * counter of terms was not there or not above all that we had seen, or the lease was ours
                              * already, so that nobody knows how we came by it */
        ELECTION_HELD,       /* of acquire: another has it, with `term` (0: not known, or not of our counter), for
                              * `ttl_ms` more (below 0: for ever) */
        ELECTION_RENEWED,    /* of renew */
        ELECTION_REFUSED,    /* of renew: it is not ours any more */
        ELECTION_RELEASED,   /* of release */
        ELECTION_UNANSWERED, /* of any: it may have been done or not */
        ELECTION_VACANT,     /* somebody says that the lease may have changed hands */
        ELECTION_OVERRULED,  /* `term` is on record elsewhere, so ours is worth nothing unless it is above */
        ELECTION_YIELD,      /* give the lease back, and leave the next one to others: do not stand for so long */
        ELECTION_STOP        /* give the lease back and end */
    } kind;
    int64_t term, ttl_ms;
    bool sound;
};

struct election {
    int64_t lease_ms, heartbeat_ms; /* lease > 2 heartbeats */
    uint64_t random;                /* any seed but 0: who stands for election together should not do so again */
    /* Its own; all times monotonic: */
    enum election_role role;
    bool asking;            /* an action is under way; until its outcome there is no other */
    bool to_release;        /* stopped or yielding, and the lease is still ours */
    bool hinted;            /* ELECTION_VACANT came meanwhile: the outcome may be out of date */
    int64_t asked_ms;       /* since when */
    int64_t acts_until_ms;  /* of the one who holds the lease */
    int64_t waits_until_ms; /* in ELECTION_WAITING */
    int64_t next_ms;        /* when the next action is due */
    int64_t term;           /* of the lease that we hold, or held last */
    int64_t seen_term;      /* the highest that we know of */
};

void election_init(struct election *el, int64_t lease_ms, int64_t heartbeat_ms, uint64_t seed, int64_t now_ms);

/* Never asks for an action while one is under way. In ELECTION_STOPPED, ELECTION_WAIT with nothing under way is the
 * end. */
enum election_action election_step(struct election *el, const struct election_event *ev, int64_t now_ms);

/* When ELECTION_TIME is due. */
int64_t election_due_ms(const struct election *el);

/* May the one whose election this is act as leader at this moment? */
bool election_may_act(const struct election *el, int64_t now_ms);

#endif
