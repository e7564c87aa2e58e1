#include "connection.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "record.h"
#include "routes.h"
#include "task.h"

#include <errno.h>
#include <fcgiapp.h>
#include <malloc.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define PEEK_BYTES      (64 * 1024) /* a request beyond half of this is read into memory at the first look */
#define WRITE_BYTES     (32 * 1024) /* written at once without a look whether there is room */
#define LINGER_MS       2000        /* how long we read on after an answer that came before the request's end */
#define MOST_BITES      16          /* of one connection in one round: one that never stops sending must not hold it */
#define SPARE_EXCHANGES 16
#define WATCH_EVENTS    (EPOLLIN | EPOLLRDHUP | EPOLLET)

enum connection_state { CONNECTION_WAITING, CONNECTION_SERVING, CONNECTION_LINGERING };

struct connection {
    struct watch watch; /* first: a watch is cast back to its connection */
    struct connections *all;
    struct connection *next, *prev;
    FCGX_Request fcgi;
    enum connection_state state;
    struct connection *next_fresh;
    bool fresh;         /* in the list of those */
    bool watched;       /* in the epoll set; an unkept connection mostly never is */
    bool wake_for_room; /* `task` waits until the peer has read */
    bool news;          /* something came while it was being served */
    bool ended;         /* the peer sends nothing more */
    struct task *task;
    int64_t whole_us;         /* since when a whole request lies here */
    int64_t partial_since_ms; /* since when half a request lies here; or since when it lingers */
    struct buf spool; /* a large request, read; empty for the usual one, which stays in the socket until it is whole */
};

static void connection_ready(struct watch *w, uint32_t events);
static void connection_look(struct connection *c);

/* --- the set --- */

/* We accept ourselves and lend libfcgi the descriptor: `ipcFd` and `keepConnection` stand below "don't use" in
 * fcgiapp.h. So look once, at start, that it reads a request from them and leaves the connection open. */
static bool libfcgi_behaves(struct err *e)
{
    static const unsigned char request[] = {
        1, 1, 0, 1, 0, 8, 0, 0, 0, 1, 1,   0,   0, 0, 0, 0, /* BEGIN_REQUEST, keep */
        1, 4, 0, 1, 0, 4, 0, 0, 1, 1, 'A', 'b', 1, 4, 0, 1, 0, 0, 0, 0, 1, 5, 0, 1, 0, 0, 0, 0
    };
    int pair[2];
    FCGX_Request rq;
    bool ok = false;
    char byte;
    if (FCGX_Init() != 0 || FCGX_InitRequest(&rq, -1, FCGI_FAIL_ACCEPT_ON_INTR) != 0)
        return err_set(e, ERR_INTERNAL, "libfcgi cannot be initialised");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0)
        return err_set(e, ERR_INTERNAL, "socketpair: %s", strerror(errno));
    rq.ipcFd = pair[0];
    rq.keepConnection = 1;
    if (send(pair[1], request, sizeof request, 0) == sizeof request && FCGX_Accept_r(&rq) == 0) {
        const char *a = FCGX_GetParam("A", rq.envp);
        ok = a != NULL && strcmp(a, "b") == 0;
        FCGX_Finish_r(&rq);
        ok = ok && rq.ipcFd == pair[0] && recv(pair[1], &byte, 1, 0) == 1;
    }
    if (rq.ipcFd == pair[0]) close(pair[0]);
    close(pair[1]);
    return ok || err_set(e, ERR_INTERNAL, "this libfcgi does not keep a connection that it was lent");
}

bool connections_init(struct connections *cs, struct api *api, struct pollset *ps, struct err *e)
{
    *cs = (struct connections){ .api = api,
                                .pollset = ps,
                                .peeked = BUF_INIT(PEEK_BYTES),
                                .scratch = BUF_INIT(RECORD_MOST_PARAMS_BYTES),
                                .head = BUF_INIT(64 * 1024) };
    return libfcgi_behaves(e);
}

void connections_done(struct connections *cs)
{
    while (cs->first != NULL) connection_close(cs->first);
    exchanges_free(&cs->exchanges, 0);
    buf_done(&cs->peeked);
    buf_done(&cs->scratch);
    buf_done(&cs->head);
}

void connections_leave(struct connections *cs)
{
    cs->leaving = true;
    for (struct connection *c = cs->first, *next; c != NULL; c = next) {
        next = c->next;
        if (c->state == CONNECTION_WAITING && c->spool.len == 0) (void)cs->idle(cs, c);
    }
}

void connections_tidy(struct connections *cs, int64_t now_ms)
{
    for (struct connection *c = cs->first, *next; c != NULL; c = next) {
        next = c->next;
        int64_t most_ms = c->state == CONNECTION_LINGERING ? LINGER_MS : cs->api->config->request_timeout_ms;
        if (c->state == CONNECTION_SERVING || c->partial_since_ms == 0) continue;
        if (now_ms - c->partial_since_ms < most_ms) {
            connection_look(c);
            continue;
        }
        if (c->state == CONNECTION_WAITING) metrics_add(METRIC_connections_refused_total, 1);
        connection_close(c);
    }
    if (cs->exchanges.count == 0 && cs->exchanges.spares > SPARE_EXCHANGES) { /* after a peak */
        exchanges_free(&cs->exchanges, SPARE_EXCHANGES);
        task_free_stacks(SPARE_EXCHANGES);
        malloc_trim(0);
    }
}

/* --- one connection --- */

void connection_open(struct connections *cs, int fd)
{
    struct connection *c = mem_alloc(sizeof *c);
    c->all = cs;
    c->watch = (struct watch){ .fd = fd, .ready = connection_ready };
    c->spool = (struct buf)BUF_INIT(0);
    FCGX_InitRequest(&c->fcgi, -1, FCGI_FAIL_ACCEPT_ON_INTR);
    c->fcgi.ipcFd = fd;
    c->fcgi.keepConnection = 1;
    c->prev = cs->last;
    *(cs->last ? &cs->last->next : &cs->first) = c;
    cs->last = c;
    cs->open++;
    c->fresh = true;
    c->next_fresh = cs->fresh;
    cs->fresh = c;
}

void connections_look_at_fresh(struct connections *cs, bool last)
{
    struct connection *c = cs->fresh;
    cs->fresh = NULL;
    for (struct connection *next; c != NULL; c = next) {
        next = c->next_fresh;
        c->fresh = !last; /* as long as it is, connection_wait() leaves it out of the epoll set */
        c->next_fresh = NULL;
        connection_look(c);
    }
}

/* Ends our part of it; the descriptor is closed already or somebody else's. */
static void connection_forget(struct connection *c)
{
    struct connections *cs = c->all;
    for (struct connection **f = &cs->fresh; c->fresh && *f != NULL; f = &(*f)->next_fresh)
        if (*f == c) {
            *f = c->next_fresh;
            break;
        }
    *(c->prev ? &c->prev->next : &cs->first) = c->next;
    *(c->next ? &c->next->prev : &cs->last) = c->prev;
    cs->open--;
    buf_done(&c->spool);
    free(c);
}

void connection_close(struct connection *c)
{
    if (c->watched) pollset_forget(c->all->pollset, &c->watch);
    close(c->watch.fd);
    connection_forget(c);
}

bool connection_give(struct connection *c, const struct handover *way)
{
    if (!handover_give(way, c->watch.fd)) return false;
    /* Closing does not take it out of our epoll set: the sibling's copy keeps it alive. */
    if (c->watched) pollset_remove(c->all->pollset, &c->watch);
    c->watched = false;
    connection_close(c);
    return true;
}

/* It waits for its next request: into the epoll set with it, or on to a sibling. Edge-triggered: we look once for each
 * arrival, and a connection that is being served wakes nobody. */
static void connection_wait(struct connection *c)
{
    struct err e;
    c->state = CONNECTION_WAITING;
    if (c->all->leaving && c->spool.len == 0 && c->all->idle(c->all, c)) return;
    if (c->fresh) {
        c->next_fresh = c->all->fresh;
        c->all->fresh = c;
        return;
    }
    if (c->watched) return;
    c->watched = pollset_add(c->all->pollset, &c->watch, WATCH_EVENTS, &e);
    if (c->watched) return;
    log_error("connection cannot be watched: error=\"%s\"", e.text);
    connection_close(c);
}

static void connection_refuse(struct connection *c)
{
    metrics_add(METRIC_connections_refused_total, 1);
    connection_close(c);
}

static void watch_for(struct connection *c, uint32_t events)
{
    if (c->watched)
        pollset_change(c->all->pollset, &c->watch, events);
    else
        c->watched = pollset_add(c->all->pollset, &c->watch, events, NULL);
}

/* An answer before the request's end. Closing with unread bytes would take the answer back (ECONNRESET), so read on
 * until the peer has closed, a little while. */
static void refuse_length(struct connection *c, const struct record_request *rq, int status, const char *code,
                          const char *message)
{
    struct response rs;
    struct buf text = BUF_INIT(4096), answer = BUF_INIT(8192);
    char request_id[IDS_TEXT_BYTES];
    response_init(&rs, 1024);
    if (!ids_read(record_param(rq->params, "HTTP_X_REQUEST_ID"), request_id)) ids_new_public(request_id);
    response_header(&rs, "X-Request-Id", request_id);
    response_error(&rs, status, code, message);
    response_head(&rs, &text);
    buf_add(&text, buf_bytes(&rs.body));
    record_answer(rq->id, buf_bytes(&text), &answer);
    metrics_request(http_method_of(record_param(rq->params, "REQUEST_METHOD")), ENDPOINT_NONE, status, 0);
    ssize_t n = send(c->watch.fd, answer.data, answer.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    (void)n; /* a peer that does not take a first answer gets none */
    shutdown(c->watch.fd, SHUT_WR);
    response_done(&rs);
    buf_done(&text);
    buf_done(&answer);
    buf_done(&c->spool);
    c->state = CONNECTION_LINGERING;
    c->partial_since_ms = clock_mono_ms();
    watch_for(c, WATCH_EVENTS);
    connection_look(c);
}

/* It has had its share of this round: the rest of what it has sent is for the next one. Changing what is watched
 * brings the edge anew. */
static void look_next_round(struct connection *c)
{
    c->fresh = false;
    watch_for(c, WATCH_EVENTS);
    if (!c->watched) connection_close(c);
}

/* Reads and throws away. */
static void linger(struct connection *c)
{
    struct buf *b = &c->all->peeked;
    for (int bites = 0; bites < MOST_BITES; bites++) {
        ssize_t n = recv(c->watch.fd, b->data, b->cap - 1, MSG_DONTWAIT);
        if (n > 0) continue;
        if (n == 0 || errno != EAGAIN) connection_close(c);
        return;
    }
    look_next_round(c);
}

/* Takes `bytes` that were only peeked out of the socket. */
static void swallow(struct connection *c, size_t bytes)
{
    char sink[512];
    while (bytes > 0) {
        ssize_t n = recv(c->watch.fd, sink, bytes < sizeof sink ? bytes : sizeof sink, MSG_DONTWAIT);
        if (n <= 0) return;
        bytes -= (size_t)n;
    }
}

static bool answer_management(struct connection *c, struct bytes data, const struct record_request *rq)
{
    struct buf answer = BUF_INIT(1024);
    record_answer_management(data, rq, &answer);
    swallow(c, rq->bytes);
    bool ok = send(c->watch.fd, answer.data, answer.len, MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)answer.len;
    buf_done(&answer);
    return ok;
}

/* Most bytes a request may have, with room for the heads of its records. */
static size_t most_request_bytes(const struct connection *c)
{
    return (size_t)c->all->api->config->session_max_bytes + RECORD_MOST_PARAMS_BYTES + PEEK_BYTES;
}

/* Moves what has come into memory, as far as there is room: a request that does not fit into the socket's buffer would
 * never be whole in it. False if the peer is gone. */
static bool fill_spool(struct connection *c)
{
    char chunk[16 * 1024];
    c->spool.limit = most_request_bytes(c);
    for (size_t room; (room = c->spool.limit - c->spool.len) > 0;) {
        ssize_t n = recv(c->watch.fd, chunk, room < sizeof chunk ? room : sizeof chunk, MSG_DONTWAIT);
        if (n == 0) return false;
        if (n < 0) return errno == EAGAIN || errno == EINTR;
        buf_append(&c->spool, chunk, (size_t)n);
    }
    return true;
}

/* What is there, without taking it away; false if the peer is gone. */
static bool peek(struct connection *c, struct bytes *data)
{
    struct buf *b = &c->all->peeked;
    if (b->data == NULL) {
        b->data = mem_alloc(PEEK_BYTES);
        b->cap = PEEK_BYTES;
    }
    ssize_t n = recv(c->watch.fd, b->data, b->cap, MSG_PEEK | MSG_DONTWAIT);
    *data = (struct bytes){ b->data, n > 0 ? (size_t)n : 0 };
    return n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR));
}

static void serve(void *arg);

/* Looks what has arrived, and starts a task if that is a whole request. */
static void connection_look(struct connection *c)
{
    struct connections *cs = c->all;
    struct record_request rq;
    struct bytes data;
    c->news = false;
    if (c->state == CONNECTION_LINGERING) {
        linger(c);
        return;
    }
    for (int managed = 0;;) {
        bool alive = c->spool.len > 0 ? fill_spool(c) : peek(c, &data);
        if (c->spool.len > 0) data = buf_bytes(&c->spool);
        if (!alive) {
            connection_close(c);
            return;
        }
        switch (record_scan(data, (size_t)cs->api->config->session_max_bytes, &cs->scratch, &rq)) {
        case RECORD_WHOLE:
            c->state = CONNECTION_SERVING;
            c->fresh = false;
            c->partial_since_ms = 0;
            c->whole_us = clock_mono_us();
            c->task = task_start(serve, c);
            return;
        case RECORD_MORE:
            /* Small pieces fill the socket's buffer long before they are many bytes: at the second look, read. */
            if (c->spool.len == 0 && (data.len >= PEEK_BYTES / 2 || (data.len > 0 && c->partial_since_ms != 0))) {
                if (fill_spool(c)) continue;
                connection_refuse(c);
                return;
            }
            if (c->spool.len > 0 && c->spool.len == c->spool.limit) {
                connection_refuse(c);
                return;
            }
            if (c->partial_since_ms == 0 && data.len > 0) c->partial_since_ms = clock_mono_ms();
            connection_wait(c);
            return;
        case RECORD_MANAGEMENT:
            if (c->spool.len > 0 || !answer_management(c, data, &rq)) {
                connection_refuse(c);
                return;
            }
            if (++managed < MOST_BITES) continue;
            look_next_round(c);
            return;
        case RECORD_BODY_TOO_LONG:
            refuse_length(c, &rq, 413, "PAYLOAD_TOO_LARGE", "The request body is larger than SESSION_MAX_BYTES");
            return;
        case RECORD_PARAMS_TOO_LONG:
            refuse_length(c, &rq, 431, "HEADERS_TOO_LARGE", "The request's headers are too large");
            return;
        case RECORD_ABORTED:
            connection_close(c);
            return;
        case RECORD_BROKEN:
            connection_refuse(c);
            return;
        }
    }
}

static void connection_ready(struct watch *w, uint32_t events)
{
    struct connection *c = (struct connection *)w;
    if (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) c->ended = true; /* said once, perhaps with the last request */
    if (c->state == CONNECTION_SERVING) {
        if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) c->news = true;
        if (c->wake_for_room) task_wake(c->task);
        return;
    }
    connection_look(c);
}

/* --- one request, in its task --- */

/* Lets libfcgi read the whole request that lies in the socket, or, if it is in memory, in a file of the same bytes.
 * False: it could not. Then libfcgi has closed what it was lent. */
static bool parse(struct connection *c, struct exchange *x)
{
    int lent = c->watch.fd;
    bool whole;
    if (c->spool.len > 0) {
        lent = memfd_create("request", MFD_CLOEXEC);
        bool filled = lent >= 0 && write(lent, c->spool.data, c->spool.len) == (ssize_t)c->spool.len &&
                      lseek(lent, 0, SEEK_SET) == 0;
        buf_done(&c->spool);
        if (!filled) {
            if (lent >= 0) close(lent);
            return false;
        }
    }
    c->fcgi.ipcFd = lent;
    c->fcgi.keepConnection = 1;
    FCGX_Detach(&c->fcgi); /* if libfcgi closes, then without waiting for the peer */
    if (FCGX_Accept_r(&c->fcgi) != 0) {
        if (lent == c->watch.fd) c->watch.fd = -1;
        return false;
    }
    for (char chunk[4096];;) {
        int n = FCGX_GetStr(chunk, sizeof chunk, c->fcgi.in);
        if (n <= 0) break;
        buf_append(&x->body, chunk, (size_t)n);
    }
    whole = FCGX_GetError(c->fcgi.in) == 0;
    if (lent != c->watch.fd) close(lent);
    c->fcgi.ipcFd = c->watch.fd;
    return whole;
}

/* Ends the request in libfcgi, which writes what it still holds; true if the connection can take another one. Of an
 * answer that could not be written whole nothing more is: with END_REQUEST behind it the web server would take it for
 * one. */
static bool finish(struct connection *c, bool ok)
{
    if (c->watch.fd < 0) return false;
    if (!ok) {
        FCGX_Free(&c->fcgi, 0);
        return false;
    }
    bool keep = c->fcgi.keepConnection;
    c->fcgi.keepConnection = 1; /* closing is ours... */
    FCGX_Detach(&c->fcgi);
    c->fcgi.ipcFd = c->watch.fd;
    FCGX_Finish_r(&c->fcgi);
    if (c->fcgi.ipcFd < 0) c->watch.fd = -1; /* ...unless the write failed */
    return keep && c->watch.fd >= 0;
}

static void answer(struct exchange *x, char *const params[])
{
    bool path_ok = http_read_request(params, &x->rq);
    x->rq.body = buf_bytes(&x->body);
    if (!ids_read(bytes_of(x->rq.request_id), x->request_id)) ids_new_public(x->request_id);
    response_header(&x->rs, "X-Request-Id", x->request_id);
    if (path_ok)
        routes_answer(x);
    else
        response_error(&x->rs, 400, "INVALID_PATH", "The path is too long or not properly encoded");
    if (buf_overflowed(&x->rs.body)) response_error(&x->rs, 500, "INTERNAL_ERROR", "The answer is too large");
    if (store_in_refuge(x->api->store)) response_header(&x->rs, "X-Session-Store", "refuge");
    x->rs.head_only = x->rq.method == HTTP_HEAD;
}

/* Parks until the peer has read so much that there is room again. */
static bool wait_for_room(struct connection *c, int64_t deadline_ms)
{
    bool room = false, in_time = true;
    while (!room && in_time) {
        struct pollfd p = { .fd = c->watch.fd, .events = POLLOUT };
        room = poll(&p, 1, 0) == 1;
        if (room) break;
        watch_for(c, WATCH_EVENTS | EPOLLOUT);
        c->wake_for_room = true;
        in_time = c->watched && task_park(deadline_ms);
        c->wake_for_room = false;
        watch_for(c, WATCH_EVENTS);
    }
    return room;
}

/* The usual answer leaves in one write, in FCGX_Finish_r. A long one goes in pieces, each when there is room for it. */
static bool write_answer(struct connection *c, struct exchange *x)
{
    struct buf *head = &c->all->head;
    if (x->rs.body.len > WRITE_BYTES) x->phase = "write";
    buf_reset(head);
    response_head(&x->rs, head);
    if (FCGX_PutStr(head->data, (int)head->len, c->fcgi.out) < 0) return false;
    size_t bytes = x->rs.head_only || x->rs.status == 304 ? 0 : x->rs.body.len;
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at;
        if (n > WRITE_BYTES) n = WRITE_BYTES;
        if (at > 0 && (FCGX_FFlush(c->fcgi.out) < 0 || !wait_for_room(c, x->deadline_ms))) return false;
        if (FCGX_PutStr(x->rs.body.data + at, (int)n, c->fcgi.out) < 0) return false;
        at += n;
    }
    return true;
}

static void serve(void *arg)
{
    struct connection *c = arg;
    struct connections *cs = c->all;
    struct exchange *x = exchange_begin(&cs->exchanges, cs->api, c->whole_us);
    metrics_phase(PHASE_WAIT, clock_mono_us() - c->whole_us);
    bool ok = parse(c, x);
    if (ok) {
        x->error = (struct err){ .kind = ERR_NONE };
        answer(x, c->fcgi.envp);
        int64_t answered_us = clock_mono_us();
        ok = write_answer(c, x);
        int64_t now_us = clock_mono_us();
        metrics_phase(PHASE_SERIALISE, now_us - answered_us);
        /* Before finish() lets the answer go: who has it finds it counted. */
        metrics_request(x->rq.method, x->endpoint, x->rs.status, now_us - c->whole_us);
        exchange_log(x, now_us - c->whole_us);
    }
    exchange_end(&cs->exchanges, x);
    if (cs->exchanges.answered == 1) cs->serves();
    bool keep = finish(c, ok) && !cs->closing;
    c->task = NULL;
    if (c->watch.fd < 0) {
        connection_forget(c);
    } else if (!keep) {
        connection_close(c);
    } else {
        c->state = CONNECTION_WAITING;
        if (c->news || c->ended)
            connection_look(c);
        else
            connection_wait(c);
    }
}
