#include "redis_link.h"

#include "clock.h"
#include "log.h"
#include "lookup.h"
#include "mem.h"
#include "metrics.h"
#include "redis_error.h"
#include "resp.h"
#include "task.h"
#include "waiters.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_UNSENT_BYTES (64 * 1024 * 1024)
#define READ_BYTES        (64 * 1024)
#define KEPT_BYTES        (256 * 1024)
#define FIRST_PAUSE_MS    20
#define LONGEST_PAUSE_MS  200
#define LOOKUP_STEP_MS    5
#define WAIT_LATE_MS      100 /* Redis looks ten times a second whether the time of a WAIT is over */

enum link_state { LINK_DOWN, LINK_LOOKUP, LINK_CONNECTING, LINK_GREETING, LINK_UP };

/* One command on its way. It lives on the stack of whoever waits for it. */
struct call {
    struct task *task;
    redisReply *reply;
    bool done;          /* answered (reply) or failed (no reply) */
    bool silent;        /* failed because another call of the connection was not answered in time */
    bool to_confirm;    /* answered is not done: WAIT must answer too */
    long long replicas; /* that have confirmed it */
    struct call *next;  /* among the answered that wait for WAIT */
};

/* Commands are answered in the order in which they were sent: a queue of what is expected. */
enum expected_kind { EXPECT_REPLY, EXPECT_GREETING, EXPECT_WAIT };
struct expected {
    enum expected_kind kind;
    struct call *call;           /* reply: of this one, or NULL: nobody waits for it (any more) */
    struct redis_script *script; /* greeting: SCRIPT LOAD of this one */
};

struct redis_link {
    struct watch watch; /* first: a watch is cast back to its link */
    struct redis_link_options o;
    struct redis_address address;
    char name[sizeof((struct redis_address *)0)->host + 16];
    enum link_state state;
    bool watched, wants_write;
    uint64_t connection;
    redisReader *reader;
    struct buf unsent;
    size_t sent; /* bytes of `unsent` that are gone */
    struct expected *expected;
    size_t expected_first, expected_count, expected_cap; /* a ring */
    size_t greetings_left;
    bool wait_owed, wait_sent; /* writes have been appended since the last WAIT; one is on its way */
    struct call *unconfirmed;
    int64_t heard_ms;       /* with WAIT: the last answer */
    struct waiters waiters; /* for the connection to come up */
    size_t callers;
    struct addresses addresses;
    size_t address_at;
    bool address_is_literal;
    struct lookup lookup; /* a name is looked up again after a failed connect; a later attempt uses the outcome */
    int64_t connect_by_ms, retry_at_ms, pause_ms, down_since_ms;
    struct err down; /* why it is down */
    bool complained; /* the log was told that it is */
    bool silent;     /* it is being dropped because an answer did not come */
};

static void link_ready(struct watch *w, uint32_t events);

/* --- who waits for which reply --- */

static void expect(struct redis_link *l, struct expected x)
{
    if (l->expected_count == l->expected_cap) {
        size_t cap = l->expected_cap ? l->expected_cap * 2 : 64;
        struct expected *ring = mem_alloc(cap * sizeof *ring);
        for (size_t i = 0; i < l->expected_count; i++) ring[i] = l->expected[(l->expected_first + i) % l->expected_cap];
        free(l->expected);
        l->expected = ring;
        l->expected_cap = cap;
        l->expected_first = 0;
    }
    l->expected[(l->expected_first + l->expected_count++) % l->expected_cap] = x;
}

static struct expected next_expected(struct redis_link *l)
{
    struct expected x = l->expected[l->expected_first];
    l->expected_first = (l->expected_first + 1) % l->expected_cap;
    l->expected_count--;
    return x;
}

static void finish(struct call *call, redisReply *reply)
{
    call->reply = reply;
    call->done = true;
    if (call->task) task_wake(call->task);
}

/* The reply will still come, for nobody. */
static void abandon(struct redis_link *l, struct call *call)
{
    for (size_t i = 0; i < l->expected_count; i++) {
        struct expected *x = &l->expected[(l->expected_first + i) % l->expected_cap];
        if (x->call == call) x->call = NULL;
    }
    for (struct call **at = &l->unconfirmed; *at != NULL; at = &(*at)->next)
        if (*at == call) {
            *at = call->next;
            freeReplyObject(call->reply);
            call->reply = NULL;
            return;
        }
}

/* A write that was executed is done only when WAIT has said that replicas have it. */
static void answered(struct redis_link *l, struct call *call, redisReply *reply)
{
    if (!call->to_confirm || reply->type == REDIS_REPLY_ERROR) {
        finish(call, reply);
        return;
    }
    call->reply = reply;
    call->next = l->unconfirmed;
    l->unconfirmed = call;
}

/* WAIT's answer counts for every write that was answered before it. */
static void confirmed(struct redis_link *l, redisReply *reply)
{
    struct err e;
    long long replicas = reply->type == REDIS_REPLY_INTEGER ? reply->integer : 0;
    if (reply->type == REDIS_REPLY_ERROR) redis_error_set(redis_error_of(reply->str), reply->str, &e);
    freeReplyObject(reply);
    l->wait_sent = false;
    for (struct call *call; (call = l->unconfirmed) != NULL;) {
        l->unconfirmed = call->next;
        call->replicas = replicas;
        finish(call, call->reply);
    }
}

/* All who wait learn that no reply comes any more. */
static void fail_call(struct redis_link *l, struct call *call)
{
    call->silent = l->silent;
    finish(call, NULL);
}

static void fail_calls(struct redis_link *l)
{
    while (l->expected_count > 0) {
        struct call *call = next_expected(l).call;
        if (call != NULL) fail_call(l, call);
    }
    for (struct call *call; (call = l->unconfirmed) != NULL;) {
        l->unconfirmed = call->next;
        freeReplyObject(call->reply);
        fail_call(l, call);
    }
    l->wait_owed = l->wait_sent = false;
}

/* --- the connection --- */

/* When to try again: after a connection that was up at once, since one that Redis closed for idleness is no outage;
 * after a failed attempt at once with the host's next address, and then after a growing pause. */
static void plan_next_attempt(struct redis_link *l, bool was_up)
{
    int64_t now_ms = clock_mono_ms();
    l->retry_at_ms = now_ms;
    if (was_up) {
        l->down_since_ms = now_ms;
        l->pause_ms = 0;
        return;
    }
    metrics_add(METRIC_redis_connect_errors, 1);
    if (l->addresses.count > 0 && ++l->address_at < l->addresses.count) return;
    l->address_at = 0;
    l->pause_ms = l->pause_ms == 0 ? FIRST_PAUSE_MS : l->pause_ms * 2;
    if (l->pause_ms > LONGEST_PAUSE_MS) l->pause_ms = LONGEST_PAUSE_MS;
    l->retry_at_ms = now_ms + l->pause_ms / 2 + random() % (l->pause_ms / 2 + 1);
    if (l->down_since_ms == 0) l->down_since_ms = now_ms;
    if (l->complained) return;
    log_warn("redis cannot be reached: server=%s reason=\"%s\"", l->name, l->down.text);
    l->complained = true;
}

/* Nothing of a connection survives a failure: a late reply must never meet a later call. */
static void link_fail(struct redis_link *l, const struct err *why)
{
    bool was_up = l->state == LINK_UP;
    if (l->state == LINK_DOWN) return;
    l->down = *why;
    if (l->watched) pollset_remove(l->o.pollset, &l->watch);
    if (l->watch.fd >= 0) close(l->watch.fd);
    l->watched = false;
    l->watch.fd = -1;
    l->state = LINK_DOWN;
    if (l->reader != NULL) redisReaderFree(l->reader);
    l->reader = NULL;
    buf_trim(&l->unsent, KEPT_BYTES);
    l->sent = 0;
    fail_calls(l);
    plan_next_attempt(l, was_up);
    waiters_wake(&l->waiters);
}

static void link_drop(struct redis_link *l, const char *why)
{
    struct err e;
    err_set_away(&e, "redis is away: %s (%s)", why, l->name);
    link_fail(l, &e);
}

static void append_command(struct redis_link *l, size_t argc, const struct bytes *argv)
{
    resp_command(&l->unsent, argc, argv);
    metrics_add(METRIC_redis_commands_total, 1);
}

static void greet(struct redis_link *l, struct redis_script *script, size_t argc, const struct bytes *argv)
{
    append_command(l, argc, argv);
    expect(l, (struct expected){ .kind = EXPECT_GREETING, .script = script });
    l->greetings_left++;
}

/* All that a connection needs before its first command; a command waits until all of it is answered, since behind a
 * failed SELECT it would reach another database. */
static void send_greeting(struct redis_link *l)
{
    const struct redis_link_options *o = &l->o;
    char db[16];
    snprintf(db, sizeof db, "%d", o->db);
    l->greetings_left = 0;
    if (o->user[0] != '\0' || o->password[0] != '\0') {
        struct bytes auth[] = { BYTES_LITERAL("AUTH"), bytes_of(o->user), bytes_of(o->password) };
        if (o->user[0] == '\0') auth[1] = auth[2];
        greet(l, NULL, o->user[0] ? 3 : 2, auth);
    }
    greet(l, NULL, 3, (struct bytes[]){ BYTES_LITERAL("CLIENT"), BYTES_LITERAL("SETNAME"), bytes_of(o->client_name) });
    if (o->db != 0) greet(l, NULL, 2, (struct bytes[]){ BYTES_LITERAL("SELECT"), bytes_of(db) });
    for (size_t i = 0; i < o->script_count; i++)
        greet(l, o->scripts[i], 3,
              (struct bytes[]){ BYTES_LITERAL("SCRIPT"), BYTES_LITERAL("LOAD"), bytes_of(o->scripts[i]->text) });
}

static void link_connect(struct redis_link *l)
{
    const struct sockaddr *address = (struct sockaddr *)&l->addresses.at[l->address_at];
    l->state = LINK_CONNECTING;
    l->watch = (struct watch){ .fd = socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
                               .ready = link_ready };
    l->reader = redisReaderCreate();
    int one = 1;
    if (address->sa_family != AF_UNIX) {
        setsockopt(l->watch.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(l->watch.fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    }
    if (l->watch.fd < 0 || l->reader == NULL ||
        (connect(l->watch.fd, address, l->addresses.len[l->address_at]) != 0 && errno != EINPROGRESS)) {
        link_drop(l, strerror(errno));
        return;
    }
    l->wants_write = true;
    if (l->o.pollset != NULL) {
        struct err e;
        l->watched = pollset_add(l->o.pollset, &l->watch, EPOLLIN | EPOLLOUT, &e);
        if (!l->watched) link_drop(l, e.text);
    }
}

/* The name was looked up, or is known from before: the lookup that follows a failed connect is for a later attempt. */
static void link_looked_up(struct redis_link *l)
{
    const char *why;
    enum lookup_state state = LOOKUP_FOUND;
    if (!l->address_is_literal && (l->addresses.count == 0 || l->lookup.running)) {
        state = lookup_poll(&l->lookup, &l->addresses, &why);
        if (state == LOOKUP_FOUND) l->address_at = 0;
    }
    if (l->addresses.count > 0)
        link_connect(l);
    else if (state == LOOKUP_FAILED) {
        struct err e;
        err_set_away(&e, "redis is away: its host is not known: %s (%s)", why, l->name);
        link_fail(l, &e);
    }
}

static void link_start(struct redis_link *l)
{
    l->state = LINK_LOOKUP;
    l->connect_by_ms = clock_mono_ms() + l->o.timeout_ms;
    if (!l->address_is_literal && (l->addresses.count == 0 || l->pause_ms > 0))
        lookup_start(&l->lookup, l->address.host, l->address.port);
    link_looked_up(l);
}

static void link_connected(struct redis_link *l)
{
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(l->watch.fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error != 0) {
        link_drop(l, strerror(error));
        return;
    }
    l->state = LINK_GREETING;
    send_greeting(l);
}

static void link_is_up(struct redis_link *l)
{
    l->state = LINK_UP;
    l->connection++;
    metrics_add(METRIC_redis_connects_total, 1);
    if (l->complained)
        log_info("redis reached again: server=%s away_ms=%lld", l->name,
                 (long long)(clock_mono_ms() - l->down_since_ms));
    else
        log_debug("redis connected: server=%s", l->name);
    l->down_since_ms = 0;
    l->pause_ms = 0;
    l->complained = false;
    waiters_wake(&l->waiters);
}

static void got_greeting(struct redis_link *l, struct expected x, redisReply *reply)
{
    struct err e = { .kind = ERR_NONE };
    if (reply->type == REDIS_REPLY_ERROR)
        redis_error_set(redis_error_of(reply->str), reply->str, &e);
    else if (x.script != NULL && reply->type == REDIS_REPLY_STRING && reply->len == 40)
        memcpy(x.script->sha, reply->str, 41);
    freeReplyObject(reply);
    if (e.kind != ERR_NONE)
        link_fail(l, &e);
    else if (--l->greetings_left == 0)
        link_is_up(l);
}

static void link_write(struct redis_link *l)
{
    while (l->state >= LINK_GREETING && l->sent < l->unsent.len) {
        ssize_t n = send(l->watch.fd, l->unsent.data + l->sent, l->unsent.len - l->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            link_drop(l, strerror(errno));
            return;
        }
        l->sent += (size_t)n;
    }
    bool all = l->sent == l->unsent.len;
    if (all) {
        buf_trim(&l->unsent, KEPT_BYTES);
        l->sent = 0;
    }
    if (l->watched && l->wants_write == all && l->state >= LINK_GREETING) {
        pollset_change(l->o.pollset, &l->watch, all ? EPOLLIN : EPOLLIN | EPOLLOUT);
        l->wants_write = !all;
    }
}

static void got_reply(struct redis_link *l, redisReply *reply)
{
    struct expected x = next_expected(l);
    if (x.kind == EXPECT_GREETING)
        got_greeting(l, x, reply);
    else if (x.kind == EXPECT_WAIT)
        confirmed(l, reply);
    else if (x.call != NULL)
        answered(l, x.call, reply);
    else
        freeReplyObject(reply);
}

static void link_read(struct redis_link *l)
{
    static char chunk[READ_BYTES];
    ssize_t n;
    do n = recv(l->watch.fd, chunk, sizeof chunk, 0);
    while (n < 0 && errno == EINTR);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) link_drop(l, n == 0 ? "closed by Redis" : strerror(errno));
        return;
    }
    if (l->o.wait_replicas > 0) l->heard_ms = clock_mono_ms();
    redisReaderFeed(l->reader, chunk, (size_t)n);
    while (l->state >= LINK_GREETING) {
        void *reply = NULL;
        if (redisReaderGetReply(l->reader, &reply) != REDIS_OK) {
            link_drop(l, l->reader->errstr);
            return;
        }
        if (reply == NULL) return;
        if (l->expected_count == 0) {
            freeReplyObject(reply);
            link_drop(l, "a reply that nobody asked for");
            return;
        }
        got_reply(l, reply);
    }
}

static void link_ready(struct watch *w, uint32_t events)
{
    struct redis_link *l = (struct redis_link *)w;
    if (l->state == LINK_CONNECTING && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) link_connected(l);
    if (l->state >= LINK_GREETING) link_write(l);
    if (l->state >= LINK_GREETING && (events & (EPOLLIN | EPOLLERR | EPOLLHUP))) link_read(l);
    redis_link_flush(l);
}

/* One WAIT for all writes since the last one, and one at a time: Redis serves a connection nothing else meanwhile, so
 * that a WAIT a round, while a replica is away, would add up to more than the longest wait for an answer. */
static void append_wait(struct redis_link *l)
{
    char replicas[24], most_ms[24];
    if (!l->wait_owed || l->wait_sent) return;
    snprintf(replicas, sizeof replicas, "%d", l->o.wait_replicas);
    snprintf(most_ms, sizeof most_ms, "%lld", (long long)l->o.timeout_ms / 2); /* 0 would be for ever */
    append_command(l, 3, (struct bytes[]){ BYTES_LITERAL("WAIT"), bytes_of(replicas), bytes_of(most_ms) });
    expect(l, (struct expected){ .kind = EXPECT_WAIT });
    l->wait_owed = false;
    l->wait_sent = true;
}

void redis_link_flush(struct redis_link *l)
{
    if (l->state < LINK_GREETING) return;
    append_wait(l);
    if (l->sent < l->unsent.len && !(l->watched && l->wants_write)) link_write(l);
}

/* --- waiting --- */

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Outside of tasks: waits until something has happened to the connection, or until `until_ms`. */
static void wait_plainly(struct redis_link *l, int64_t until_ms)
{
    redis_link_flush(l);
    int64_t left_ms = until_ms - clock_mono_ms();
    if (l->state == LINK_DOWN || left_ms <= 0) return;
    if (l->state == LINK_LOOKUP) {
        lookup_wait(&l->lookup, left_ms);
        return;
    }
    bool write = l->state == LINK_CONNECTING || l->sent < l->unsent.len;
    struct pollfd p = { .fd = l->watch.fd, .events = POLLIN | (write ? POLLOUT : 0) };
    if (poll(&p, 1, (int)left_ms) > 0) link_ready(&l->watch, (uint32_t)p.revents);
}

/* The state of the connection is about to change, or the time is over at `until_ms`. */
static void wait_for_change(struct redis_link *l, int64_t until_ms)
{
    if (task_current() == NULL)
        wait_plainly(l, until_ms);
    else if (l->state == LINK_LOOKUP)
        task_park(earlier(until_ms, clock_mono_ms() + LOOKUP_STEP_MS));
    else
        waiters_wait(&l->waiters, until_ms);
    if (l->state == LINK_LOOKUP) link_looked_up(l);
}

/* Waits until the connection is up; makes it if it is down and the pause since the last attempt is over. */
static bool wait_until_up(struct redis_link *l, int64_t deadline_ms, struct err *e)
{
    while (l->state != LINK_UP || clock_mono_ms() >= deadline_ms) { /* too late: it must not be executed either */
        int64_t now_ms = clock_mono_ms();
        if (l->state == LINK_DOWN && now_ms < l->retry_at_ms) {
            *e = l->down;
            return false;
        }
        if (now_ms >= deadline_ms)
            return err_set(e, ERR_UNAVAILABLE, "redis: the request's time is over before there is a connection (%s)",
                           l->name);
        if (l->state == LINK_DOWN)
            link_start(l);
        else if (now_ms >= l->connect_by_ms)
            link_drop(l, l->state == LINK_GREETING ? "no answer to the greeting in time" : "no connection in time");
        else
            wait_for_change(l, earlier(deadline_ms, l->connect_by_ms));
    }
    return true;
}

static bool append_call(struct redis_link *l, const struct redis_command *c, struct call *call, struct err *e)
{
    if (c->asking) {
        append_command(l, 1, (struct bytes[]){ BYTES_LITERAL("ASKING") });
        expect(l, (struct expected){ .kind = EXPECT_REPLY });
    }
    append_command(l, c->argc, c->argv);
    if (buf_overflowed(&l->unsent)) {
        link_drop(l, "too much waits to be sent");
        *e = l->down;
        return false;
    }
    expect(l, (struct expected){ .kind = EXPECT_REPLY, .call = call });
    l->wait_owed |= call->to_confirm;
    return true;
}

/* A command may stand behind one WAIT and before another, in whose time Redis answers nothing else: then the longest
 * wait for an answer counts from the last sign of life. */
static int64_t answer_by(const struct redis_link *l, int64_t sent_ms)
{
    if (l->o.wait_replicas == 0) return sent_ms + l->o.timeout_ms;
    return (l->heard_ms > sent_ms ? l->heard_ms : sent_ms) + l->o.timeout_ms + WAIT_LATE_MS;
}

/* False: nobody waits for the call any more. */
static bool wait_until_done(struct redis_link *l, struct call *call, int64_t deadline_ms, struct err *e)
{
    int64_t sent_ms = clock_mono_ms();
    while (!call->done) {
        int64_t now_ms = clock_mono_ms(), answer_by_ms = answer_by(l, sent_ms);
        if (now_ms >= answer_by_ms) {
            metrics_add(METRIC_redis_timeouts, 1);
            abandon(l, call);
            l->silent = true; /* who waits behind must not try again and wait as long */
            link_drop(l, "no answer in time");
            l->silent = false;
            return err_set_away(e, "redis did not answer within %lld ms (%s)", (long long)l->o.timeout_ms, l->name);
        }
        if (now_ms >= deadline_ms) {
            abandon(l, call);
            return err_set(e, ERR_UNAVAILABLE, "redis: the request's time is over before its answer (%s)", l->name);
        }
        if (call->task != NULL)
            task_park(earlier(deadline_ms, answer_by_ms));
        else
            wait_plainly(l, earlier(deadline_ms, answer_by_ms));
    }
    return true;
}

/* The reply of a call that is done, if it is one to go by. */
static redisReply *take_reply(struct redis_link *l, const struct call *call, enum redis_fate *fate, struct err *e)
{
    *fate = call->reply != NULL ? REDIS_ANSWERED : call->silent ? REDIS_SILENT : REDIS_BROKEN;
    if (call->reply == NULL) *e = l->down;
    if (call->reply == NULL || call->reply->type == REDIS_REPLY_ERROR) return call->reply;
    if (!call->to_confirm || call->replicas >= l->o.wait_replicas) return call->reply;
    freeReplyObject(call->reply);
    *fate = REDIS_SILENT;
    err_set(e, ERR_UNAVAILABLE, "redis: not confirmed by %d replicas, only by %lld (%s)", l->o.wait_replicas,
            call->replicas, l->name);
    return NULL;
}

redisReply *redis_link_call(struct redis_link *l, const struct redis_command *c, int64_t deadline_ms,
                            enum redis_fate *fate, struct err *e)
{
    struct call call = { .task = task_current(), .to_confirm = c->writes && l->o.wait_replicas > 0 };
    redisReply *reply = NULL;
    *fate = REDIS_NOT_SENT;
    l->callers++;
    if (wait_until_up(l, deadline_ms, e) && append_call(l, c, &call, e)) {
        *fate = REDIS_SILENT;
        if (wait_until_done(l, &call, deadline_ms, e)) reply = take_reply(l, &call, fate, e);
    }
    l->callers--;
    return reply;
}

/* --- one link --- */

uint64_t redis_link_connection(const struct redis_link *l)
{
    return l->state == LINK_UP ? l->connection : 0;
}

bool redis_link_in_use(const struct redis_link *l)
{
    return l->callers > 0;
}

const struct redis_address *redis_link_address(const struct redis_link *l)
{
    return &l->address;
}

const char *redis_link_name(const struct redis_link *l)
{
    return l->name;
}

struct redis_link *redis_link_open(const struct redis_address *address, const struct redis_link_options *o)
{
    struct redis_link *l = mem_alloc(sizeof *l);
    l->o = *o;
    l->address = *address;
    l->watch.fd = -1;
    l->unsent = (struct buf)BUF_INIT(MOST_UNSENT_BYTES);
    bool v6 = strchr(address->host, ':') != NULL;
    if (address->port == 0)
        snprintf(l->name, sizeof l->name, "%s", address->host);
    else
        snprintf(l->name, sizeof l->name, v6 ? "[%s]:%d" : "%s:%d", address->host, address->port);
    l->address_is_literal = lookup_literal(address->host, address->port, &l->addresses);
    return l;
}

void redis_link_close(struct redis_link *l)
{
    if (l == NULL) return;
    link_drop(l, "closing");
    lookup_done(&l->lookup);
    buf_done(&l->unsent);
    free(l->expected);
    free(l);
}
