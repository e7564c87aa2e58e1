#include "redis.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "task.h"

#include <assert.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST_UNSENT_BYTES (64 * 1024 * 1024)
#define READ_BYTES (64 * 1024)
#define FIRST_PAUSE_MS 20
#define LONGEST_PAUSE_MS 500

enum link_state { LINK_DOWN, LINK_CONNECTING, LINK_GREETING, LINK_UP };

/* One command on its way. It lives on the stack of whoever waits for it. */
struct call {
    struct task *task;
    redisReply *reply;
    bool done;   /* answered (reply) or failed (no reply) */
};

/* Commands are answered in the order in which they were sent: a queue of who waits. */
struct expected {
    struct call *call; /* NULL: nobody waits any more, or a greeting */
    struct redis_script *script; /* greeting: SCRIPT LOAD of this one */
};

/* A task that waits until the connection is up. */
struct waiter {
    struct task *task;
    struct waiter *next;
};

struct redis {
    struct watch watch; /* first: a watch is cast back to its redis */
    struct redis_options o;
    enum link_state state;
    bool watched, wants_write;
    redisReader *reader;
    struct buf unsent;
    size_t sent; /* bytes of `unsent` that are gone */
    struct expected *expected;
    size_t expected_first, expected_count, expected_cap; /* a ring */
    size_t greetings_left;
    struct waiter *waiters;
    struct sockaddr_storage address;
    socklen_t address_len;
    struct gaicb lookup; /* a name is looked up again beside the loop, after a failed connect */
    bool lookup_running;
    struct addrinfo lookup_hints;
    char port_text[8];
    int64_t connect_by_ms, retry_at_ms, pause_ms, down_since_ms;
    char reason[160]; /* why it is down */
};

static void link_ready(struct watch *w, uint32_t events);

/* --- who waits for which reply --- */

static void expect(struct redis *r, struct call *call, struct redis_script *script)
{
    if (r->expected_count == r->expected_cap) {
        size_t cap = r->expected_cap ? r->expected_cap * 2 : 64;
        struct expected *ring = mem_alloc(cap * sizeof *ring);
        for (size_t i = 0; i < r->expected_count; i++)
            ring[i] = r->expected[(r->expected_first + i) % r->expected_cap];
        free(r->expected);
        r->expected = ring;
        r->expected_cap = cap;
        r->expected_first = 0;
    }
    r->expected[(r->expected_first + r->expected_count++) % r->expected_cap] = (struct expected){ call, script };
}

static struct expected next_expected(struct redis *r)
{
    struct expected x = r->expected[r->expected_first];
    r->expected_first = (r->expected_first + 1) % r->expected_cap;
    r->expected_count--;
    return x;
}

/* The reply will still come, for nobody. */
static void abandon(struct redis *r, const struct call *call)
{
    for (size_t i = 0; i < r->expected_count; i++) {
        struct expected *x = &r->expected[(r->expected_first + i) % r->expected_cap];
        if (x->call == call) x->call = NULL;
    }
}

static void finish(struct call *call, redisReply *reply)
{
    call->reply = reply;
    call->done = true;
    if (call->task) task_wake(call->task);
}

static void wake_waiters(struct redis *r)
{
    for (struct waiter *w = r->waiters; w != NULL; w = w->next)
        if (w->task) task_wake(w->task);
    r->waiters = NULL;
}

/* --- the connection --- */

/* Nothing of a connection survives a failure: a late reply must never meet a later call. */
static void link_drop(struct redis *r, const char *why)
{
    bool was_up = r->state == LINK_UP;
    snprintf(r->reason, sizeof r->reason, "%s", why);
    if (r->state == LINK_DOWN) return;
    if (r->watched) pollset_remove(r->o.pollset, &r->watch);
    if (r->watch.fd >= 0) close(r->watch.fd);
    r->watched = false;
    r->watch.fd = -1;
    r->state = LINK_DOWN;
    if (r->reader != NULL) redisReaderFree(r->reader);
    r->reader = NULL;
    buf_trim(&r->unsent, 256 * 1024);
    r->sent = 0;
    while (r->expected_count > 0) {
        struct call *call = next_expected(r).call;
        if (call != NULL) finish(call, NULL);
    }
    int64_t now_ms = clock_mono_ms();
    if (was_up) { /* one try at once: a connection that Redis closed for idleness is no outage */
        r->down_since_ms = now_ms;
        r->retry_at_ms = now_ms;
        r->pause_ms = 0;
    } else {
        r->pause_ms = r->pause_ms == 0 ? FIRST_PAUSE_MS : r->pause_ms * 2;
        if (r->pause_ms > LONGEST_PAUSE_MS) r->pause_ms = LONGEST_PAUSE_MS;
        r->retry_at_ms = now_ms + r->pause_ms / 2 + random() % (r->pause_ms / 2 + 1);
        if (r->pause_ms == FIRST_PAUSE_MS) log_warn("redis cannot be reached: reason=\"%s\"", why);
        metrics_add(METRIC_redis_connect_errors_total, 1);
    }
    wake_waiters(r);
}

/* "*3\r\n" or "$700\r\n". Several for each request: without printf. */
static void append_length(struct buf *b, char kind, size_t n)
{
    char text[24], *p = text + sizeof text;
    *--p = '\n';
    *--p = '\r';
    do *--p = (char)('0' + n % 10);
    while ((n /= 10) > 0);
    *--p = kind;
    buf_append(b, p, (size_t)(text + sizeof text - p));
}

static void append_command(struct redis *r, size_t argc, const struct bytes *argv)
{
    append_length(&r->unsent, '*', argc);
    for (size_t i = 0; i < argc; i++) {
        append_length(&r->unsent, '$', argv[i].len);
        buf_add(&r->unsent, argv[i]);
        buf_append(&r->unsent, "\r\n", 2);
    }
    metrics_add(METRIC_redis_commands_total, 1);
}

static void greet(struct redis *r, struct redis_script *script, size_t argc, const struct bytes *argv)
{
    append_command(r, argc, argv);
    expect(r, NULL, script);
    r->greetings_left++;
}

/* All that a connection needs before its first command; a command waits until all of it is answered, since behind a
 * failed SELECT it would reach another database. */
static void send_greeting(struct redis *r)
{
    const struct redis_url *u = &r->o.url;
    char db[16];
    snprintf(db, sizeof db, "%d", u->db);
    r->greetings_left = 0;
    if (u->user[0] != '\0' || u->password[0] != '\0') {
        struct bytes auth[] = { BYTES_LITERAL("AUTH"), bytes_of(u->user), bytes_of(u->password) };
        if (u->user[0] == '\0') auth[1] = auth[2];
        greet(r, NULL, u->user[0] ? 3 : 2, auth);
    }
    greet(r, NULL, 3, (struct bytes[]){ BYTES_LITERAL("CLIENT"), BYTES_LITERAL("SETNAME"), bytes_of(r->o.client_name) });
    if (u->db != 0) greet(r, NULL, 2, (struct bytes[]){ BYTES_LITERAL("SELECT"), bytes_of(db) });
    for (size_t i = 0; i < r->o.script_count; i++)
        greet(r, &r->o.scripts[i], 3, (struct bytes[]){ BYTES_LITERAL("SCRIPT"), BYTES_LITERAL("LOAD"), bytes_of(r->o.scripts[i].text) });
}

static void use_address(struct redis *r, struct addrinfo *found)
{
    memcpy(&r->address, found->ai_addr, found->ai_addrlen);
    r->address_len = found->ai_addrlen;
    freeaddrinfo(found);
}

static void resolve_now(struct redis *r)
{
    struct addrinfo *found = NULL;
    int rc = getaddrinfo(r->o.url.host, r->port_text, &r->lookup_hints, &found);
    if (rc == 0) use_address(r, found);
    else log_warn("redis host is not known: host=%s error=\"%s\"", r->o.url.host, gai_strerror(rc));
}

/* After a failed connect the name may mean another address by now. The lookup runs beside the loop (getaddrinfo_a);
 * its outcome is used by a later attempt. */
static void resolve_beside(struct redis *r)
{
    if (r->o.url.path[0] != '\0') return;
    if (r->lookup_running) {
        int rc = gai_error(&r->lookup);
        if (rc == EAI_INPROGRESS) return;
        r->lookup_running = false;
        if (rc == 0) {
            use_address(r, r->lookup.ar_result);
            return;
        }
    }
    r->lookup = (struct gaicb){ .ar_name = r->o.url.host, .ar_service = r->port_text, .ar_request = &r->lookup_hints };
    struct gaicb *list[] = { &r->lookup };
    r->lookup_running = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL) == 0;
}

static void link_connect(struct redis *r)
{
    if (r->pause_ms > 0 || r->address_len == 0) resolve_beside(r);
    r->state = LINK_CONNECTING;
    r->connect_by_ms = clock_mono_ms() + r->o.timeout_ms;
    r->watch = (struct watch){ .fd = socket(r->address.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), .ready = link_ready };
    r->reader = redisReaderCreate();
    int one = 1;
    if (r->address.ss_family != AF_UNIX) {
        setsockopt(r->watch.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        setsockopt(r->watch.fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof one);
    }
    if (r->address_len == 0) {
        link_drop(r, "its host is not known");
        return;
    }
    if (r->watch.fd < 0 || r->reader == NULL ||
        (connect(r->watch.fd, (struct sockaddr *)&r->address, r->address_len) != 0 && errno != EINPROGRESS)) {
        link_drop(r, strerror(errno));
        return;
    }
    r->wants_write = true;
    if (r->o.pollset != NULL) {
        struct err e;
        r->watched = pollset_add(r->o.pollset, &r->watch, EPOLLIN | EPOLLOUT, &e);
        if (!r->watched) link_drop(r, e.text);
    }
}

static void link_connected(struct redis *r)
{
    int error = 0;
    socklen_t len = sizeof error;
    getsockopt(r->watch.fd, SOL_SOCKET, SO_ERROR, &error, &len);
    if (error != 0) {
        link_drop(r, strerror(error));
        return;
    }
    r->state = LINK_GREETING;
    send_greeting(r);
}

static void link_is_up(struct redis *r)
{
    r->state = LINK_UP;
    if (r->down_since_ms > 0)
        log_info("redis back: away_ms=%lld", (long long)(clock_mono_ms() - r->down_since_ms));
    else log_debug("redis connected");
    r->down_since_ms = 0;
    r->pause_ms = 0;
    wake_waiters(r);
}

static void got_greeting(struct redis *r, struct expected x, redisReply *reply)
{
    char why[160];
    bool wrong = reply->type == REDIS_REPLY_ERROR;
    if (wrong) snprintf(why, sizeof why, "%s", reply->str);
    else if (x.script != NULL && reply->type == REDIS_REPLY_STRING && reply->len == 40) memcpy(x.script->sha, reply->str, 41);
    freeReplyObject(reply);
    if (wrong) link_drop(r, why);
    else if (--r->greetings_left == 0) link_is_up(r);
}

static void link_write(struct redis *r)
{
    while (r->state >= LINK_GREETING && r->sent < r->unsent.len) {
        ssize_t n = send(r->watch.fd, r->unsent.data + r->sent, r->unsent.len - r->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) {
            link_drop(r, strerror(errno));
            return;
        }
        r->sent += (size_t)n;
    }
    bool all = r->sent == r->unsent.len;
    if (all) {
        buf_trim(&r->unsent, 256 * 1024);
        r->sent = 0;
    }
    if (r->watched && r->wants_write == all && r->state >= LINK_GREETING) {
        pollset_change(r->o.pollset, &r->watch, all ? EPOLLIN : EPOLLIN | EPOLLOUT);
        r->wants_write = !all;
    }
}

static void link_read(struct redis *r)
{
    static char chunk[READ_BYTES];
    ssize_t n;
    do n = recv(r->watch.fd, chunk, sizeof chunk, 0);
    while (n < 0 && errno == EINTR);
    if (n <= 0) {
        if (n == 0 || errno != EAGAIN) link_drop(r, n == 0 ? "closed by Redis" : strerror(errno));
        return;
    }
    redisReaderFeed(r->reader, chunk, (size_t)n);
    while (r->state >= LINK_GREETING) {
        void *reply = NULL;
        if (redisReaderGetReply(r->reader, &reply) != REDIS_OK) {
            link_drop(r, r->reader->errstr);
            return;
        }
        if (reply == NULL) return;
        if (r->expected_count == 0) {
            freeReplyObject(reply);
            link_drop(r, "a reply that nobody asked for");
            return;
        }
        struct expected x = next_expected(r);
        if (r->state == LINK_GREETING) got_greeting(r, x, reply);
        else if (x.call != NULL) finish(x.call, reply);
        else freeReplyObject(reply);
    }
}

static void link_ready(struct watch *w, uint32_t events)
{
    struct redis *r = (struct redis *)w;
    if (r->state == LINK_CONNECTING && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) link_connected(r);
    if (r->state >= LINK_GREETING) link_write(r);
    if (r->state >= LINK_GREETING && (events & (EPOLLIN | EPOLLERR | EPOLLHUP))) link_read(r);
}

/* --- waiting --- */

/* Waits until something has happened to the connection, or until `until_ms`. */
static void wait_some(struct redis *r, int64_t until_ms)
{
    if (task_current() != NULL) {
        task_park(until_ms);
        return;
    }
    if (r->state >= LINK_GREETING) link_write(r);
    if (r->state == LINK_DOWN) return;
    int64_t left_ms = until_ms - clock_mono_ms();
    bool write = r->state == LINK_CONNECTING || r->sent < r->unsent.len;
    struct pollfd p = { .fd = r->watch.fd, .events = POLLIN | (write ? POLLOUT : 0) };
    if (left_ms > 0 && poll(&p, 1, (int)left_ms) > 0) link_ready(&r->watch, (uint32_t)p.revents);
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Waits until the connection is up; makes it if it is down and the pause since the last attempt is over. */
static bool wait_until_up(struct redis *r, int64_t deadline_ms, struct err *e)
{
    for (bool tried = false; r->state != LINK_UP;) {
        int64_t now_ms = clock_mono_ms();
        if (r->state == LINK_DOWN) {
            if (tried || now_ms < r->retry_at_ms) return err_set(e, ERR_UNAVAILABLE, "redis is away: %s", r->reason);
            link_connect(r);
            tried = true;
            continue;
        }
        tried = true;
        if (now_ms >= r->connect_by_ms) {
            link_drop(r, "no answer to the greeting in time");
            continue;
        }
        if (now_ms >= deadline_ms) return err_set(e, ERR_UNAVAILABLE, "redis is away: the request's time is over");
        struct waiter self = { task_current(), r->waiters };
        r->waiters = &self;
        wait_some(r, earlier(deadline_ms, r->connect_by_ms));
        for (struct waiter **w = &r->waiters; *w != NULL; w = &(*w)->next)
            if (*w == &self) {
                *w = self.next;
                break;
            }
    }
    return true;
}

/* One attempt. NULL with e when it did not come back; *broken if the connection broke under it. */
static redisReply *call_once(struct redis *r, size_t argc, const struct bytes *argv, int64_t deadline_ms, bool *broken,
                             struct err *e)
{
    *broken = false;
    if (!wait_until_up(r, deadline_ms, e)) return NULL;
    if (clock_mono_ms() >= deadline_ms) { /* nobody waits any more: it must not be executed either */
        err_set(e, ERR_UNAVAILABLE, "the request's time is over");
        return NULL;
    }
    struct call call = { .task = task_current() };
    append_command(r, argc, argv);
    if (buf_overflowed(&r->unsent)) {
        link_drop(r, "too much waits to be sent");
        err_set(e, ERR_UNAVAILABLE, "redis: %s", r->reason);
        return NULL;
    }
    expect(r, &call, NULL);
    int64_t answer_by_ms = clock_mono_ms() + r->o.timeout_ms;
    while (!call.done) {
        int64_t now_ms = clock_mono_ms();
        if (now_ms >= answer_by_ms) {
            metrics_add(METRIC_redis_timeouts_total, 1);
            abandon(r, &call);
            link_drop(r, "no answer in time");
            err_set(e, ERR_UNAVAILABLE, "redis did not answer within %lld ms", (long long)r->o.timeout_ms);
            return NULL;
        }
        if (now_ms >= deadline_ms) {
            abandon(r, &call);
            err_set(e, ERR_UNAVAILABLE, "the request's time is over");
            return NULL;
        }
        wait_some(r, earlier(deadline_ms, answer_by_ms));
    }
    if (call.reply != NULL) return call.reply;
    *broken = true;
    err_set(e, ERR_UNAVAILABLE, "redis: %s", r->reason);
    return NULL;
}

/* Which error replies mean what. The rest is an answer that we did not expect: nothing to build on. */
static const struct error_meaning {
    const char *prefix;
    enum err_kind kind;
    bool ours; /* the operator must act: waiting does not help */
} error_meanings[] = {
    { "WRONGTYPE", ERR_CORRUPT, false },   { "LOADING", ERR_UNAVAILABLE, false },
    { "READONLY", ERR_UNAVAILABLE, false }, { "MASTERDOWN", ERR_UNAVAILABLE, false },
    { "OOM", ERR_UNAVAILABLE, false },     { "MISCONF", ERR_UNAVAILABLE, false },
    { "BUSY", ERR_UNAVAILABLE, false },    { "NOREPLICAS", ERR_UNAVAILABLE, false },
    { "NOAUTH", ERR_UNAVAILABLE, true },   { "NOPERM", ERR_UNAVAILABLE, true },
    { "MOVED", ERR_UNAVAILABLE, true },    { "", ERR_UNAVAILABLE, true },
};

static void say_once_a_minute(const char *text)
{
    static int64_t last_ms = -60000;
    int64_t now_ms = clock_mono_ms();
    if (now_ms - last_ms < 60000) return;
    last_ms = now_ms;
    log_error("redis refuses commands: reply=\"%.120s\"", text);
}

static redisReply *refuse_error(redisReply *reply, struct err *e)
{
    const struct error_meaning *m = error_meanings;
    while (strncmp(reply->str, m->prefix, strlen(m->prefix)) != 0) m++;
    metrics_add(METRIC_redis_error_replies_total, 1);
    if (m->ours) say_once_a_minute(reply->str);
    err_set(e, m->kind, "redis: %.150s", reply->str);
    freeReplyObject(reply);
    return NULL;
}

/* Sends until there is a reply of any kind, at most twice. */
static redisReply *call_raw(struct redis *r, size_t argc, const struct bytes *argv, int64_t deadline_ms, bool *repeated,
                            struct err *e)
{
    bool broken;
    redisReply *reply = call_once(r, argc, argv, deadline_ms, &broken, e);
    if (reply != NULL || !broken) return reply;
    if (repeated) *repeated = true;
    return call_once(r, argc, argv, deadline_ms, &broken, e);
}

redisReply *redis_call(struct redis *r, size_t argc, const struct bytes *argv, int64_t deadline_ms, bool *repeated,
                       struct err *e)
{
    redisReply *reply = call_raw(r, argc, argv, deadline_ms, repeated, e);
    return reply != NULL && reply->type == REDIS_REPLY_ERROR ? refuse_error(reply, e) : reply;
}

redisReply *redis_eval(struct redis *r, struct redis_script *script, struct bytes key, size_t argc,
                       const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e)
{
    struct bytes all[3 + 1 + 8];
    assert(argc <= 8);
    if (!wait_until_up(r, deadline_ms, e)) return NULL; /* the greeting fills in the SHA */
    all[0] = BYTES_LITERAL("EVALSHA");
    all[1] = bytes_of(script->sha);
    all[2] = BYTES_LITERAL("1");
    all[3] = key;
    for (size_t i = 0; i < argc; i++) all[4 + i] = argv[i];
    redisReply *reply = call_raw(r, 4 + argc, all, deadline_ms, repeated, e);
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR && strncmp(reply->str, "NOSCRIPT", 8) == 0) {
        freeReplyObject(reply);
        all[0] = BYTES_LITERAL("EVAL");
        all[1] = bytes_of(script->text);
        reply = call_raw(r, 4 + argc, all, deadline_ms, repeated, e);
    }
    return reply != NULL && reply->type == REDIS_REPLY_ERROR ? refuse_error(reply, e) : reply;
}

void redis_flush(struct redis *r)
{
    if (r->state >= LINK_GREETING && r->sent < r->unsent.len && !r->wants_write) link_write(r);
}

struct redis *redis_open(const struct redis_options *o)
{
    struct redis *r = mem_alloc(sizeof *r);
    r->o = *o;
    r->watch.fd = -1;
    r->unsent = (struct buf)BUF_INIT(MOST_UNSENT_BYTES);
    if (o->url.path[0] != '\0') {
        struct sockaddr_un *un = (struct sockaddr_un *)&r->address;
        un->sun_family = AF_UNIX;
        memcpy(un->sun_path, o->url.path, sizeof un->sun_path);
        r->address_len = sizeof *un;
        return r;
    }
    r->lookup_hints = (struct addrinfo){ .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
    snprintf(r->port_text, sizeof r->port_text, "%d", o->url.port);
    resolve_now(r);
    return r;
}

void redis_close(struct redis *r)
{
    if (r == NULL) return;
    link_drop(r, "closing");
    if (r->lookup_running) {
        if (gai_cancel(&r->lookup) == EAI_NOTCANCELED) /* its thread still writes into it */
            while (gai_suspend((const struct gaicb *[]){ &r->lookup }, 1, NULL) == EAI_INTR) continue;
        if (gai_error(&r->lookup) == 0) freeaddrinfo(r->lookup.ar_result);
    }
    buf_done(&r->unsent);
    free(r->expected);
    free(r);
}
