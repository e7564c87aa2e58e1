#include "election.h"

#define MOST_JITTER_MS 50

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* At most an eighth of a heartbeat: it only keeps those who wait for the same moment apart. */
static int64_t jitter_ms(struct election *el)
{
    el->random ^= el->random << 13; /* xorshift64 */
    el->random ^= el->random >> 7;
    el->random ^= el->random << 17;
    return 1 + (int64_t)(el->random % (uint64_t)earlier(el->heartbeat_ms / 8 + 1, MOST_JITTER_MS));
}

static bool is_outcome(enum election_event_kind kind)
{
    return kind >= ELECTION_WON && kind <= ELECTION_UNANSWERED;
}

static bool holds(const struct election *el)
{
    return el->role == ELECTION_WAITING || el->role == ELECTION_LEADER;
}

static void stand_down(struct election *el, int64_t now_ms)
{
    if (el->role != ELECTION_STOPPED) el->role = ELECTION_FOLLOWER;
    el->acts_until_ms = 0;
    el->next_ms = now_ms;
}

/* The lease counts from when it was asked for: Redis' own clock for it starts later. */
static void take_lease(struct election *el, int64_t now_ms)
{
    el->acts_until_ms = el->asked_ms + el->lease_ms - el->lease_ms / 10;
    el->next_ms = el->asked_ms + el->heartbeat_ms;
    if (now_ms >= el->acts_until_ms) stand_down(el, now_ms); /* the answer took as long as the lease */
}

static void won(struct election *el, const struct election_event *ev, int64_t now_ms)
{
    el->term = ev->term;
    if (ev->term <= el->seen_term) { /* overruled since it was asked for */
        stand_down(el, now_ms);
        return;
    }
    el->seen_term = ev->term;
    el->role = ev->sound ? ELECTION_LEADER : ELECTION_WAITING;
    el->waits_until_ms = el->asked_ms + el->lease_ms;
    take_lease(el, now_ms);
}

/* Stands again at the end of that lease, and looks now and then before, so that this node knows who leads. */
static void held_by_another(struct election *el, int64_t ttl_ms, int64_t now_ms)
{
    int64_t wait_ms = ttl_ms < 0 ? el->heartbeat_ms : earlier(el->heartbeat_ms, ttl_ms);
    stand_down(el, now_ms);
    el->next_ms = now_ms + (el->hinted ? 0 : wait_ms) + jitter_ms(el);
}

static enum election_action ask(struct election *el, enum election_action action, int64_t now_ms)
{
    el->asking = true;
    el->hinted = false;
    el->asked_ms = now_ms;
    return action;
}

static void take_event(struct election *el, const struct election_event *ev, int64_t now_ms)
{
    bool was_ours = holds(el);
    if (is_outcome(ev->kind)) el->asking = false;
    switch (ev->kind) {
    case ELECTION_TIME:
    case ELECTION_RELEASED:
        break;
    case ELECTION_WON:
        won(el, ev, now_ms);
        break;
    case ELECTION_HELD:
        if (ev->term > el->seen_term) el->seen_term = ev->term;
        held_by_another(el, ev->ttl_ms, now_ms);
        break;
    case ELECTION_RENEWED:
        if (was_ours) take_lease(el, now_ms);
        break;
    case ELECTION_REFUSED:
        stand_down(el, now_ms);
        el->to_release = false;
        break;
    case ELECTION_UNANSWERED: /* the lease that we hold still counts until its end */
        el->next_ms = now_ms + el->heartbeat_ms / 4 + jitter_ms(el);
        break;
    case ELECTION_VACANT:
        el->hinted = el->asking;
        if (!was_ours) el->next_ms = earlier(el->next_ms, now_ms + jitter_ms(el));
        break;
    case ELECTION_OVERRULED:
        if (ev->term > el->seen_term) el->seen_term = ev->term;
        if (was_ours && el->term <= ev->term) stand_down(el, now_ms);
        break;
    case ELECTION_YIELD:
        if (el->role != ELECTION_LEADER) break;
        stand_down(el, now_ms);
        el->to_release = true;
        el->next_ms = now_ms + el->lease_ms;
        break;
    case ELECTION_STOP:
        break;
    }
}

/* Gives a leader's lease back, also one whose winning or renewal is still on its way. One that was not sound yet is
 * left to expire: whoever takes the next must not begin before it would have ended. */
static enum election_action stop_step(struct election *el, const struct election_event *ev, int64_t now_ms)
{
    if (el->role != ELECTION_STOPPED) el->to_release = el->role == ELECTION_LEADER;
    if (is_outcome(ev->kind)) {
        el->asking = false;
        if (ev->kind == ELECTION_WON) el->to_release = ev->sound;
        if (ev->kind == ELECTION_REFUSED) el->to_release = false;
    }
    el->role = ELECTION_STOPPED;
    el->acts_until_ms = 0;
    el->next_ms = INT64_MAX;
    if (!el->to_release || el->asking) return ELECTION_WAIT;
    el->to_release = false;
    return ask(el, ELECTION_RELEASE, now_ms);
}

enum election_action election_step(struct election *el, const struct election_event *ev, int64_t now_ms)
{
    if (ev->kind == ELECTION_STOP || el->role == ELECTION_STOPPED) return stop_step(el, ev, now_ms);
    take_event(el, ev, now_ms);
    if (holds(el) && now_ms >= el->acts_until_ms) stand_down(el, now_ms);
    if (el->role == ELECTION_WAITING && now_ms >= el->waits_until_ms) el->role = ELECTION_LEADER;
    if (el->asking) return ELECTION_WAIT;
    if (el->to_release) {
        el->to_release = false;
        return ask(el, ELECTION_RELEASE, now_ms);
    }
    if (now_ms < el->next_ms) return ELECTION_WAIT;
    return ask(el, holds(el) ? ELECTION_RENEW : ELECTION_ACQUIRE, now_ms);
}

int64_t election_due_ms(const struct election *el)
{
    int64_t due_ms = el->next_ms;
    if (holds(el)) due_ms = earlier(due_ms, el->acts_until_ms);
    return el->role == ELECTION_WAITING ? earlier(due_ms, el->waits_until_ms) : due_ms;
}

bool election_may_act(const struct election *el, int64_t now_ms)
{
    return el->role == ELECTION_LEADER && now_ms < el->acts_until_ms;
}

void election_init(struct election *el, int64_t lease_ms, int64_t heartbeat_ms, uint64_t seed, int64_t now_ms)
{
    *el =
        (struct election){ .lease_ms = lease_ms, .heartbeat_ms = heartbeat_ms, .random = seed | 1, .next_ms = now_ms };
}
