#include "leadership.h"

#include "clock.h"
#include "election.h"
#include "inbox.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "redis_keys.h"
#include "span.h"
#include "task.h"
#include "waiters.h"

#define LEADER_KEY       "hyperpage:leader"
#define TERM_KEY         "{hyperpage:leader}:term" /* lies in the slot of the other */
#define MOST_VALUE_BYTES 1024

struct leadership {
    struct coordinator *co;
    void (*changed)(struct coordinator *co);
    bool alone; /* no Redis: this node is its own leader; else, with coordination off, it never is one */
    struct election election;
    enum election_action todo;  /* asked for by an event from outside */
    struct waiters waiters;     /* its task */
    char owner[IDS_TEXT_BYTES]; /* names this start of this node in the key's value: only ours holds it */
    bool failing;               /* the last attempt had no answer */
    /* What the node knows: */
    bool is_leader;
    bool gives_back; /* it ends because we want it to */
    char leader[POD_NAME_BYTES];
    int64_t leader_term, since_ms, leader_until_ms; /* wall; monotonic: then nobody knows any more */
};

/* --- the key in Redis; all scripts: KEYS leader, term --- */

/* ARGV owner, highest term seen, lease in ms, the value before and behind the term. Gives 1, the term, whether it is
 * sound; or 0, the other's value, its ms left.
 *
 * A lease that is ours already was taken by an attempt whose answer got lost. One of another node of ours whose term is
 * below one that we have seen comes from a Redis that had lost its counter: it must not stand. Whoever takes over in
 * such cases, or finds no counter, is not sound: its predecessor may act until its lease ends or is not renewed. */
const char *const leadership_acquire_script =
    "local held, seen = redis.call('GET', KEYS[1]), tonumber(ARGV[2]) "
    "if held and not string.find(held, ARGV[1], 1, true) then "
    "  local term = string.match(held, '^{\"leaderId\":\"[^\"]*\",\"term\":(%d+),\"owner\"') "
    "  if not term or tonumber(term) >= seen then "
    "    return {0, string.sub(held, 1, 1024), redis.call('PTTL', KEYS[1])} "
    "  end "
    "end "
    "local sound = redis.call('EXISTS', KEYS[2]) "
    "local term = redis.call('INCR', KEYS[2]) "
    "if term <= seen then "
    "  sound, term = 0, seen + 1 "
    "  redis.call('SET', KEYS[2], string.format('%.0f', term)) "
    "end "
    "redis.call('SET', KEYS[1], ARGV[4] .. string.format('%.0f', term) .. ARGV[5], 'PX', ARGV[3]) "
    "return {1, term, held and 0 or sound}";

/* ARGV how the value begins while it is ours: name, term and owner; the new value; the lease in ms. */
const char *const leadership_renew_script = "local held = redis.call('GET', KEYS[1]) "
                                            "if not held or string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then return 0 end "
                                            "redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) "
                                            "return 1";

/* ARGV as above. */
const char *const leadership_release_script =
    "local held = redis.call('GET', KEYS[1]) "
    "if not held or string.sub(held, 1, #ARGV[1]) ~= ARGV[1] then return 0 end "
    "return redis.call('DEL', KEYS[1])";

/* {"leaderId":POD,"term": and N and ,"owner":"...", and the rest; an original pod wants all four of its members. */
static void value_head(const struct leadership *l, struct buf *out)
{
    buf_puts(out, "{\"leaderId\":");
    buf_json_string(out, bytes_of(l->co->pod));
    buf_puts(out, ",\"term\":");
}

static void value_middle(const struct leadership *l, struct buf *out)
{
    buf_printf(out, ",\"owner\":\"%s\"", l->owner);
}

static void value_tail(struct buf *out)
{
    buf_printf(out, ",\"lastHeartbeat\":%" PRId64 ",\"status\":\"active\"}", clock_wall_ms());
}

static redisReply *eval(struct leadership *l, enum coordinator_script script, const struct bytes *argv, size_t argc,
                        int64_t deadline_ms, struct err *e)
{
    struct bytes all[2 + 5] = { BYTES_LITERAL(LEADER_KEY), BYTES_LITERAL(TERM_KEY) };
    bool repeated; /* does not matter: whoever holds the lease is told by the value */
    memcpy(&all[2], argv, argc * sizeof *argv);
    return redis_eval_keys(l->co->redis, &l->co->scripts[script], 2, 2 + argc, all, deadline_ms, &repeated, e);
}

/* --- who leads, as far as this node knows --- */

static void write_view(struct leadership *l)
{
    struct coordination_leader view;
    coordination_read_leader(l->co->coordination, &view); /* for what is not ours to say */
    view.term = l->leader_term;
    view.since_ms = l->since_ms;
    view.is_leader = l->is_leader;
    view.seen_term = l->election.seen_term;
    snprintf(view.pod, sizeof view.pod, "%s", l->co->pod);
    snprintf(view.leader, sizeof view.leader, "%s", l->leader);
    coordination_write_leader(l->co->coordination, &view);
}

static const char *why_it_ends(const struct leadership *l, const char *leader)
{
    if (l->gives_back) return "given back";
    return leader[0] != '\0' && strcmp(leader, l->co->pod) != 0 ? "another took the lease"
                                                                : "lease not renewed in time";
}

/* Says what has changed to the log, to the other processes of the node, and to the coordinator. */
static void note(struct leadership *l, bool is_leader, const char *leader, int64_t term)
{
    bool other = strcmp(l->leader, leader) != 0 || l->leader_term != term;
    if (!other && l->is_leader == is_leader) return;
    if (is_leader && !l->is_leader) {
        log_info("this node leads, its duties begin: pod=%s term=%" PRId64, l->co->pod, term);
        metrics_add(METRIC_coordination_elections_won_total, 1);
    } else if (!is_leader && l->is_leader) {
        log_write(l->gives_back ? LOG_INFO : LOG_WARN,
                  "this node does not lead any more, its duties stop: pod=%s term=%" PRId64 " cause=\"%s\"", l->co->pod,
                  l->leader_term, why_it_ends(l, leader));
        if (!l->gives_back) metrics_add(METRIC_coordination_leaderships_lost_total, 1);
    } else if (other && leader[0] != '\0' && strcmp(leader, l->co->pod) != 0) {
        log_info("another node leads: leader=\"%s\" term=%" PRId64, leader, term);
    } else if (other && leader[0] != '\0') {
        log_info("this node holds the lease, and leads once one that redis may have forgotten has ended: pod=%s "
                 "term=%" PRId64 " wait_ms=%" PRId64,
                 l->co->pod, term, l->election.waits_until_ms - clock_mono_ms());
    }
    if (other) l->since_ms = clock_wall_ms();
    l->is_leader = is_leader;
    snprintf(l->leader, sizeof l->leader, "%s", leader);
    l->leader_term = term;
    write_view(l);
    l->changed(l->co);
}

/* What a step of the election means for what we know. The outcome of an attempt to win tells of another leader. */
static void note_step(struct leadership *l)
{
    const struct election *el = &l->election;
    bool holds = el->role == ELECTION_LEADER || el->role == ELECTION_WAITING;
    if (holds)
        note(l, el->role == ELECTION_LEADER, l->co->pod, el->term);
    else if (l->is_leader || strcmp(l->leader, l->co->pod) == 0 || clock_mono_ms() >= l->leader_until_ms)
        note(l, false, "", 0);
}

/* The value of another's key. An original pod's term is not of our counter, so it says nothing about ours. */
static struct election_event held_by(struct leadership *l, struct bytes value, int64_t ttl_ms)
{
    struct election_event ev = { .kind = ELECTION_HELD, .ttl_ms = ttl_ms };
    struct buf name = BUF_INIT(POD_NAME_BYTES - 1);
    struct span_member owner;
    size_t at;
    int64_t term = 0;
    l->leader_until_ms = ttl_ms < 0 ? CLOCK_NEVER : clock_mono_ms() + ttl_ms;
    if (span_check_object(value, 8, &at) == SPAN_OK && message_text(value, "leaderId", &name)) {
        message_number(value, "term", &term);
        if (span_find(value, "owner", &owner)) ev.term = term;
        note(l, false, buf_text(&name), term);
    } else {
        log_warn("the leader's key holds what nobody here understands: ttl_ms=%" PRId64, ttl_ms);
        note(l, false, "?", 0);
    }
    buf_done(&name);
    return ev;
}

/* --- what the election asks for; each gives the event that tells of the outcome --- */

static struct election_event do_acquire(struct leadership *l, int64_t deadline_ms, struct err *e)
{
    struct election_event ev = { .kind = ELECTION_UNANSWERED };
    struct number seen, lease;
    struct buf head = BUF_INIT(MOST_VALUE_BYTES), tail = BUF_INIT(MOST_VALUE_BYTES);
    value_head(l, &head);
    value_middle(l, &tail);
    value_tail(&tail);
    redisReply *r = eval(l, SCRIPT_ACQUIRE,
                         (struct bytes[]){ bytes_of(l->owner), number(&seen, l->election.seen_term),
                                           number(&lease, l->election.lease_ms), buf_bytes(&head), buf_bytes(&tail) },
                         5, deadline_ms, e);
    if (r != NULL && r->type == REDIS_REPLY_ARRAY && r->elements == 3) {
        if (r->element[0]->integer == 1)
            ev = (struct election_event){ .kind = ELECTION_WON,
                                          .term = r->element[1]->integer,
                                          .sound = r->element[2]->integer == 1 };
        else
            ev = held_by(l, (struct bytes){ r->element[1]->str, (size_t)r->element[1]->len }, r->element[2]->integer);
    }
    if (r != NULL) freeReplyObject(r);
    buf_done(&head);
    buf_done(&tail);
    return ev;
}

/* Renews or releases: `yes` if it was ours. */
static struct election_event do_if_ours(struct leadership *l, enum coordinator_script script,
                                        enum election_event_kind yes, int64_t deadline_ms, struct err *e)
{
    struct election_event ev = { .kind = ELECTION_UNANSWERED };
    struct number lease, term;
    struct buf value = BUF_INIT(MOST_VALUE_BYTES);
    value_head(l, &value);
    buf_add(&value, number(&term, l->election.term));
    value_middle(l, &value);
    size_t ours = value.len;
    value_tail(&value);
    redisReply *r = eval(
        l, script, (struct bytes[]){ { value.data, ours }, buf_bytes(&value), number(&lease, l->election.lease_ms) }, 3,
        deadline_ms, e);
    if (r != NULL) {
        ev.kind = r->integer == 1 ? yes : ELECTION_REFUSED;
        freeReplyObject(r);
    }
    buf_done(&value);
    return ev;
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static struct election_event perform(struct leadership *l, enum election_action action)
{
    struct err e = { .kind = ERR_NONE };
    struct election_event ev = { .kind = ELECTION_TIME };
    int64_t deadline_ms = clock_mono_ms() + l->election.heartbeat_ms;
    if (action == ELECTION_ACQUIRE) ev = do_acquire(l, deadline_ms, &e);
    if (action == ELECTION_RENEW)
        ev = do_if_ours(l, SCRIPT_RENEW, ELECTION_RENEWED, earlier(deadline_ms, l->election.acts_until_ms), &e);
    if (action == ELECTION_RELEASE) ev = do_if_ours(l, SCRIPT_RELEASE, ELECTION_RELEASED, deadline_ms, &e);
    bool failing = ev.kind == ELECTION_UNANSWERED;
    if (failing && !l->failing) log_warn("election cannot be held: error=\"%s\"", e.text);
    l->failing = failing;
    return ev;
}

/* --- what others are told --- */

/* Followers need not wait for the end of the lease, nor for their next look; who misses it does. */
static void announce(struct leadership *l, enum election_event_kind outcome, bool became_leader)
{
    const char *channel = "election", *what = became_leader ? "leader_elected" : "leader_released";
    struct buf payload = BUF_INIT(MOST_VALUE_BYTES);
    struct err e;
    if (outcome == ELECTION_RENEWED) {
        channel = "all";
        what = "leader_heartbeat";
    } else if (!became_leader && outcome != ELECTION_RELEASED) {
        return;
    }
    buf_printf(&payload, "{\"type\":\"%s\",\"leaderId\":", what);
    buf_json_string(&payload, bytes_of(l->co->pod));
    buf_printf(&payload, ",\"term\":%" PRId64 "}", l->election.term);
    if (!messenger_send(&l->co->messenger, channel, MESSAGE_BROADCAST, MESSAGE_HIGH, buf_bytes(&payload),
                        clock_mono_ms() + l->election.heartbeat_ms / 2, NULL, NULL, &e))
        log_debug("nobody was told: what=%s error=\"%s\"", what, e.text);
    buf_done(&payload);
}

/* --- the task --- */

static enum election_action step(struct leadership *l, const struct election_event *ev)
{
    int64_t seen_term = l->election.seen_term;
    enum election_action action = election_step(&l->election, ev, clock_mono_ms());
    note_step(l);
    if (l->election.seen_term != seen_term) write_view(l); /* a successor of this process shall know it */
    return action;
}

/* An event from outside. What it asks for is done by the task: at most one thing at a time. */
static void tell(struct leadership *l, const struct election_event *ev)
{
    enum election_action action = step(l, ev);
    if (action != ELECTION_WAIT) l->todo = action;
    waiters_wake(&l->waiters);
}

static void run(void *arg)
{
    static const struct election_event time_event = { .kind = ELECTION_TIME };
    struct leadership *l = arg;
    for (;;) {
        enum election_action action = l->todo;
        l->todo = ELECTION_WAIT;
        if (action == ELECTION_WAIT) action = step(l, &time_event);
        if (action != ELECTION_WAIT) {
            bool led = l->is_leader;
            struct election_event outcome = perform(l, action);
            l->todo = step(l, &outcome);
            announce(l, outcome.kind, l->is_leader && !led);
        } else if (l->election.role == ELECTION_STOPPED) {
            return;
        } else {
            waiters_wait(&l->waiters, election_due_ms(&l->election));
        }
    }
}

struct leadership *leadership_open(struct coordinator *co, void (*changed)(struct coordinator *co))
{
    struct coordination_leader before;
    struct leadership *l = mem_alloc(sizeof *l);
    *l = (struct leadership){ .co = co, .changed = changed, .alone = co->config->redis_url[0] == '\0' };
    ids_new_public(l->owner);
    election_init(&l->election, co->config->leader_election_timeout, co->config->leader_heartbeat_interval,
                  ids_hash(bytes_of(l->owner), 0), clock_mono_ms());
    coordination_read_leader(co->coordination, &before);
    l->election.seen_term = before.seen_term;
    write_view(l);
    return l;
}

void leadership_close(struct leadership *l)
{
    free(l);
}

void leadership_start(struct leadership *l)
{
    if (l->co->redis != NULL)
        task_start(run, l);
    else if (l->alone)
        note(l, true, l->co->pod, 1);
}

void leadership_stop(struct leadership *l)
{
    l->gives_back = true;
    if (l->co->redis != NULL)
        tell(l, &(struct election_event){ .kind = ELECTION_STOP });
    else
        note(l, false, "", 0);
}

/* --- questions and hints --- */

bool leadership_may_act(const struct leadership *l)
{
    return clock_mono_ms() < leadership_acts_until_ms(l);
}

int64_t leadership_acts_until_ms(const struct leadership *l)
{
    if (!l->is_leader) return 0;
    return l->alone ? CLOCK_NEVER : l->election.acts_until_ms;
}

bool leadership_is_leader(const struct leadership *l)
{
    return l->is_leader;
}

int64_t leadership_term(const struct leadership *l)
{
    return l->is_leader ? l->leader_term : 0;
}

const char *leadership_leader(const struct leadership *l)
{
    return l->leader;
}

int64_t leadership_leader_term(const struct leadership *l)
{
    return l->leader_term;
}

int64_t leadership_since_ms(const struct leadership *l)
{
    return l->since_ms;
}

void leadership_yield(struct leadership *l)
{
    if (l->co->redis == NULL || !l->is_leader) return;
    l->gives_back = true;
    tell(l, &(struct election_event){ .kind = ELECTION_YIELD });
    l->gives_back = false;
}

void leadership_lift_term(struct leadership *l, int64_t above)
{
    if (l->co->redis != NULL)
        tell(l, &(struct election_event){ .kind = ELECTION_OVERRULED, .term = above });
    else if (l->is_leader && l->leader_term <= above)
        note(l, true, l->co->pod, above + 1);
}

void leadership_look(struct leadership *l)
{
    if (l->co->redis != NULL && !l->is_leader) tell(l, &(struct election_event){ .kind = ELECTION_VACANT });
}
