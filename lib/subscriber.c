#include "subscriber.h"

#include "clock.h"
#include "log.h"
#include "lookup.h"
#include "mem.h"
#include "metrics.h"
#include "redis_error.h"
#include "resp.h"
#include "task.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PING_EVERY_MS     1000
#define SILENCE_MS        3000 /* after so long without a byte the connection is dead, whatever the kernel thinks */
#define FIRST_PAUSE_MS    20
#define LONGEST_PAUSE_MS  1000
#define LOOKUP_STEP_MS    5
#define READ_BYTES        (64 * 1024)
#define MOST_STRING_BYTES (256 * 1024)   /* who publishes more than that must not make us grow: it is heard as nothing \
                                          */
#define MOST_MESSAGE_BYTES (1024 * 1024) /* so much are all keys that one message may name; more end the connection */

struct subscriber {
    struct watch watch; /* first: a watch is cast back to its subscriber */
    struct subscriber_options o;
    struct task *task;
    bool stopping, watched, up;
    redisReader *reader;
    struct resp_sieve sieve; /* before it */
    struct buf unsent;
    size_t unread_bytes; /* fed to the reader since its last reply */
    size_t confirmed;    /* channels */
    int64_t client_id;
    int64_t heard_ms, ping_at_ms;  /* the last byte; the next question */
    int64_t asked_ms, answered_ms; /* the question under way (0: none), and the last one that was answered */
    int64_t pause_ms, lost_ms;
    size_t turn; /* which server of a cluster */
    struct redis_address server;
    struct lookup lookup;
};

/* --- waiting --- */

static void ready(struct watch *w, uint32_t events)
{
    (void)events;
    task_wake(((struct subscriber *)w)->task);
}

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* Parks until the descriptor is ready. False: the time is over, or we shall stop. */
static bool wait_ready(struct subscriber *s, int64_t until_ms, struct err *e)
{
    if (!s->stopping && clock_mono_ms() < until_ms) task_park(until_ms);
    if (s->stopping) return err_set(e, ERR_UNAVAILABLE, "stopping");
    return clock_mono_ms() < until_ms || err_set_away(e, "redis did not answer in time");
}

/* --- connecting --- */

static bool find_server(struct subscriber *s, int64_t until_ms, struct err *e)
{
    struct redis_address *list;
    if (s->o.server != NULL) {
        s->server = *s->o.server;
        return true;
    }
    size_t n = redis_primaries(s->o.redis, &list, until_ms, e);
    if (n == 0) return false;
    s->server = list[s->turn++ % n];
    free(list);
    return true;
}

static bool look_up(struct subscriber *s, int64_t until_ms, struct addresses *found, struct err *e)
{
    const char *why = "";
    enum lookup_state state = LOOKUP_RUNNING;
    if (lookup_literal(s->server.host, s->server.port, found)) return true;
    lookup_start(&s->lookup, s->server.host, s->server.port);
    while (!s->stopping && (state = lookup_poll(&s->lookup, found, &why)) == LOOKUP_RUNNING &&
           clock_mono_ms() < until_ms)
        task_park(earlier(until_ms, clock_mono_ms() + LOOKUP_STEP_MS));
    return state == LOOKUP_FOUND || err_set_away(e, "redis is away: its host is not known: %s", why);
}

static bool connect_to(struct subscriber *s, const struct sockaddr *address, socklen_t len, int64_t until_ms,
                       struct err *e)
{
    int one = 1, error = 0;
    socklen_t error_len = sizeof error;
    s->watch = (struct watch){ socket(address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), ready };
    if (s->watch.fd < 0) return err_set(e, ERR_INTERNAL, "socket: %s", strerror(errno));
    if (address->sa_family != AF_UNIX) setsockopt(s->watch.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(s->watch.fd, address, len) != 0 && errno != EINPROGRESS) return err_set_away(e, "%s", strerror(errno));
    s->watched = pollset_add(s->o.pollset, &s->watch, EPOLLOUT, e);
    if (!s->watched) return false;
    while (poll(&(struct pollfd){ .fd = s->watch.fd, .events = POLLOUT }, 1, 0) == 0)
        if (!wait_ready(s, until_ms, e)) return false;
    getsockopt(s->watch.fd, SOL_SOCKET, SO_ERROR, &error, &error_len);
    if (error != 0) return err_set_away(e, "%s", strerror(error));
    pollset_change(s->o.pollset, &s->watch, EPOLLIN);
    s->reader = mem_or_die(redisReaderCreate());
    s->sieve = (struct resp_sieve){ .most_bytes = MOST_STRING_BYTES };
    s->unread_bytes = 0;
    s->heard_ms = clock_mono_ms();
    return true;
}

static void disconnect(struct subscriber *s)
{
    if (s->watched) pollset_remove(s->o.pollset, &s->watch);
    if (s->watch.fd >= 0) close(s->watch.fd);
    if (s->reader != NULL) redisReaderFree(s->reader);
    s->reader = NULL;
    s->watch.fd = -1;
    s->watched = s->up = false;
    s->client_id = s->asked_ms = s->answered_ms = 0;
}

/* --- speaking --- */

/* Commands are few and short, and there is always room for them in the socket's buffer unless the other side is dead.
 */
static bool send_command(struct subscriber *s, size_t argc, const struct bytes *argv, struct err *e)
{
    buf_reset(&s->unsent);
    resp_command(&s->unsent, argc, argv);
    if (send(s->watch.fd, s->unsent.data, s->unsent.len, MSG_NOSIGNAL) == (ssize_t)s->unsent.len) return true;
    return err_set_away(e, "it takes no commands: %s", strerror(errno));
}

/* Once: then the loop has its turn, however much there is to read. */
static bool read_some(struct subscriber *s, struct err *e)
{
    static char chunk[READ_BYTES]; /* nobody parks with these two in his hands */
    static struct buf passed = BUF_INIT(READ_BYTES + RESP_SIEVE_KEEPS);
    ssize_t n = recv(s->watch.fd, chunk, sizeof chunk, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return true;
    if (n <= 0) return err_set_away(e, "%s", n == 0 ? "closed by Redis" : strerror(errno));
    s->heard_ms = clock_mono_ms();
    buf_reset(&passed);
    resp_sieve(&s->sieve, (struct bytes){ chunk, (size_t)n }, &passed);
    s->unread_bytes += passed.len;
    if (passed.len > 0 && redisReaderFeed(s->reader, passed.data, passed.len) != REDIS_OK)
        return err_set_away(e, "%s", s->reader->errstr);
    return true;
}

/* The next reply that has arrived whole; *reply is NULL if there is none. */
static bool take_reply(struct subscriber *s, redisReply **reply, struct err *e)
{
    void *r = NULL;
    if (redisReaderGetReply(s->reader, &r) != REDIS_OK) return err_set_away(e, "%s", s->reader->errstr);
    if (r != NULL) s->unread_bytes = 0;
    if (s->unread_bytes > MOST_MESSAGE_BYTES) return err_set_away(e, "a message over %d bytes", MOST_MESSAGE_BYTES);
    *reply = r;
    return true;
}

/* One command and its answer, before there is a subscription. NULL with `e`, also for an error reply. */
static redisReply *ask(struct subscriber *s, size_t argc, const struct bytes *argv, int64_t until_ms, struct err *e)
{
    redisReply *reply = NULL;
    if (!send_command(s, argc, argv, e)) return NULL;
    for (;;) {
        if (!take_reply(s, &reply, e)) return NULL;
        if (reply != NULL) break;
        if (!wait_ready(s, until_ms, e) || !read_some(s, e)) return NULL;
    }
    if (reply->type != REDIS_REPLY_ERROR) return reply;
    redis_error_set(redis_error_of(reply->str), reply->str, e);
    freeReplyObject(reply);
    return NULL;
}

static bool tell(struct subscriber *s, size_t argc, const struct bytes *argv, int64_t until_ms, struct err *e)
{
    redisReply *reply = ask(s, argc, argv, until_ms, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

static bool greet(struct subscriber *s, int64_t until_ms, struct err *e)
{
    const struct redis_url *url = s->o.url;
    struct bytes auth[] = { BYTES_LITERAL("AUTH"), bytes_of(url->user), bytes_of(url->password) };
    struct bytes setname[] = { BYTES_LITERAL("CLIENT"), BYTES_LITERAL("SETNAME"), bytes_of(s->o.client_name) };
    bool user = url->user[0] != '\0';
    if (!user) auth[1] = auth[2];
    if ((user || url->password[0] != '\0') && !tell(s, user ? 3 : 2, auth, until_ms, e)) return false;
    if (!tell(s, 3, setname, until_ms, e)) return false;
    redisReply *id = ask(s, 2, (struct bytes[]){ BYTES_LITERAL("CLIENT"), BYTES_LITERAL("ID") }, until_ms, e);
    if (id == NULL) return false;
    s->client_id = id->integer;
    freeReplyObject(id);
    return true;
}

/* --- listening --- */

static bool is_word(const redisReply *r, const char *word)
{
    return r->type == REDIS_REPLY_STRING && strcmp(r->str, word) == 0;
}

/* Whatever is no message answers something that we have sent. */
static bool take_push(struct subscriber *s, const redisReply *r, struct err *e)
{
    if (r->type == REDIS_REPLY_ERROR) return redis_error_set(redis_error_of(r->str), r->str, e);
    if (r->type != REDIS_REPLY_ARRAY || r->elements < 2) return err_set_away(e, "an answer that nobody asked for");
    if (r->elements == 3 && is_word(r->element[0], "message") && r->element[1]->type == REDIS_REPLY_STRING) {
        s->o.events.message(s->o.events.ctx, (struct bytes){ r->element[1]->str, (size_t)r->element[1]->len },
                            r->element[2]);
    } else if (is_word(r->element[0], "subscribe")) {
        s->confirmed++;
    } else if (is_word(r->element[0], "pong")) {
        s->answered_ms = s->asked_ms;
        s->asked_ms = 0;
    }
    return true;
}

static bool take_pushes(struct subscriber *s, struct err *e)
{
    redisReply *reply;
    bool ok = true;
    while (ok && !s->stopping && (ok = take_reply(s, &reply, e)) && reply != NULL) {
        ok = take_push(s, reply, e);
        freeReplyObject(reply);
    }
    return ok;
}

static bool subscribe(struct subscriber *s, int64_t until_ms, struct err *e)
{
    struct bytes words[1 + SUBSCRIBER_MOST_CHANNELS] = { BYTES_LITERAL("SUBSCRIBE") };
    for (size_t i = 0; i < s->o.channel_count; i++) words[1 + i] = bytes_of(s->o.channels[i]);
    s->confirmed = 0;
    if (!send_command(s, 1 + s->o.channel_count, words, e)) return false;
    while (s->confirmed < s->o.channel_count)
        if (!wait_ready(s, until_ms, e) || !read_some(s, e) || !take_pushes(s, e)) return false;
    return true;
}

/* Is this still a server that gets what is published? A replaced primary goes on for a while as if it were one. */
static bool still_there(struct subscriber *s, int64_t until_ms, struct err *e)
{
    struct redis_address *list;
    struct err ignored;
    pollset_change(s->o.pollset, &s->watch, 0); /* what arrives meanwhile would wake us without end */
    size_t n = redis_primaries(s->o.redis, &list, until_ms, &ignored);
    pollset_change(s->o.pollset, &s->watch, EPOLLIN);
    if (n == 0) return true; /* nobody knows better */
    bool there = false;
    for (size_t i = 0; i < n; i++) there |= redis_address_equal(&list[i], &s->server);
    free(list);
    return there || err_set_away(e, "another server is the primary");
}

static bool look_after(struct subscriber *s, int64_t now_ms, struct err *e)
{
    if (now_ms - s->heard_ms >= SILENCE_MS) return err_set_away(e, "it is silent");
    if (now_ms < s->ping_at_ms) return true;
    s->ping_at_ms = now_ms + s->o.ping_every_ms;
    if (s->asked_ms == 0) {
        s->asked_ms = now_ms;
        if (!send_command(s, 1, (struct bytes[]){ BYTES_LITERAL("PING") }, e)) return false;
    }
    return s->o.server != NULL || still_there(s, now_ms + s->o.timeout_ms, e);
}

static void listen_until_lost(struct subscriber *s, struct err *e)
{
    while (!s->stopping && look_after(s, clock_mono_ms(), e)) {
        task_park(earlier(s->ping_at_ms, s->heard_ms + SILENCE_MS));
        if (s->stopping || !read_some(s, e) || !take_pushes(s, e)) return;
    }
}

/* --- the task --- */

static bool connect_and_subscribe(struct subscriber *s, struct err *e)
{
    struct addresses found;
    int64_t until_ms = clock_mono_ms() + s->o.timeout_ms;
    if (!find_server(s, until_ms, e)) return false;
    until_ms = clock_mono_ms() + s->o.timeout_ms;
    if (!look_up(s, until_ms, &found, e)) return false;
    bool connected = false;
    for (size_t i = 0; !connected && i < found.count && !s->stopping; i++) {
        disconnect(s);
        until_ms = clock_mono_ms() + s->o.timeout_ms;
        connected = connect_to(s, (struct sockaddr *)&found.at[i], found.len[i], until_ms, e);
    }
    until_ms = clock_mono_ms() + s->o.timeout_ms;
    return connected && greet(s, until_ms, e) && subscribe(s, until_ms, e);
}

static void is_up(struct subscriber *s)
{
    s->up = true;
    s->ping_at_ms = 0;
    metrics_add(METRIC_coordination_subscriptions_total, 1);
    if (s->lost_ms > 0)
        log_info("messages are heard again: for=%s deaf_ms=%lld", s->o.purpose,
                 (long long)(clock_mono_ms() - s->lost_ms));
    else
        log_info("messages are heard: for=%s channels=%zu", s->o.purpose, s->o.channel_count);
    s->pause_ms = s->lost_ms = 0;
    s->o.events.subscribed(s->o.events.ctx);
}

static void is_lost(struct subscriber *s, const struct err *why)
{
    bool was_up = s->up;
    disconnect(s);
    if (s->stopping) return;
    if (s->lost_ms == 0) {
        s->lost_ms = clock_mono_ms();
        log_warn("messages are not heard: for=%s error=\"%s\"", s->o.purpose, why->text);
    }
    if (was_up) s->o.events.lost(s->o.events.ctx);
}

/* Grows with each vain attempt; jittered, since all nodes have lost the same server. */
static void pause_a_while(struct subscriber *s)
{
    s->pause_ms = s->pause_ms == 0 ? FIRST_PAUSE_MS : s->pause_ms * 2;
    if (s->pause_ms > LONGEST_PAUSE_MS) s->pause_ms = LONGEST_PAUSE_MS;
    int64_t until_ms = clock_mono_ms() + s->pause_ms / 2 + random() % (s->pause_ms / 2 + 1);
    while (!s->stopping && clock_mono_ms() < until_ms) task_park(until_ms);
}

static void run(void *arg)
{
    struct subscriber *s = arg;
    s->task = task_current();
    while (!s->stopping) {
        struct err e = { .kind = ERR_NONE };
        if (connect_and_subscribe(s, &e)) {
            is_up(s);
            listen_until_lost(s, &e);
        }
        is_lost(s, &e);
        pause_a_while(s);
    }
    s->task = NULL;
}

struct subscriber *subscriber_open(const struct subscriber_options *o)
{
    struct subscriber *s = mem_alloc(sizeof *s);
    s->o = *o;
    if (s->o.ping_every_ms == 0) s->o.ping_every_ms = PING_EVERY_MS;
    s->watch.fd = -1;
    s->unsent = (struct buf)BUF_INIT(64 * 1024);
    return s;
}

void subscriber_close(struct subscriber *s)
{
    if (s == NULL) return;
    disconnect(s);
    lookup_done(&s->lookup);
    buf_done(&s->unsent);
    free(s);
}

void subscriber_start(struct subscriber *s)
{
    s->task = task_start(run, s);
}

void subscriber_stop(struct subscriber *s)
{
    s->stopping = true;
    if (s->task != NULL) task_wake(s->task);
}

bool subscriber_has_ended(const struct subscriber *s)
{
    return s->stopping && s->task == NULL;
}

int64_t subscriber_client_id(const struct subscriber *s)
{
    return s->up ? s->client_id : 0;
}

int64_t subscriber_heard_ms(const struct subscriber *s)
{
    return s->up ? s->answered_ms : 0;
}
