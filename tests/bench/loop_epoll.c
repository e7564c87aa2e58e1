/* loop_epoll: "L", the most that one process can do with FastCGI on this machine, a reference for `make bench`: an
 * epoll loop without libfcgi and without work. It reads requests as they come, kept connections or not, looks at
 * nothing but where a request ends, and gives all the same answer: one read and one write for each.
 *
 *     loop_epoll SOCKET ANSWER_FILE
 */
#include "answer.h"

#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG    1024
#define MOST_FDS   4096
#define MOST_READY 256

/* FastCGI 1.0, section 8: record header, record types, flags. */
#define HEADER_BYTES 8
enum { BEGIN_REQUEST = 1, END_REQUEST = 3, STDIN = 5, STDOUT = 6 };
enum { KEEP_CONN = 1 };
enum { FLAGS_AT = 2 }; /* in the content of BEGIN_REQUEST */

/* A connection from the front server, found by its descriptor. Content is not kept, only counted. */
struct peer {
    bool keep;                    /* the request that is coming in leaves the connection open */
    uint8_t header[HEADER_BYTES]; /* of the record that is coming in */
    size_t header_len;            /* how much of the header is here */
    size_t content_len;           /* how much of its content and padding is here */
};

static struct peer peers[MOST_FDS];

/* The records of the one answer, for request 1: the only id that nginx and lighttpd use. */
static uint8_t reply[ANSWER_MOST_BYTES + 64];
static size_t reply_len;

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static void reply_add(uint8_t type, const void *content, size_t len)
{
    uint8_t padding = (uint8_t)(-len & 7);
    uint8_t header[HEADER_BYTES] = { 1, type, 0, 1, (uint8_t)(len >> 8), (uint8_t)len, padding, 0 };
    memcpy(reply + reply_len, header, HEADER_BYTES);
    memcpy(reply + reply_len + HEADER_BYTES, content, len);
    reply_len += HEADER_BYTES + len + padding;
}

static void reply_build(const char *path)
{
    static struct answer answer;
    const uint8_t complete[8] = { 0 }; /* application status 0, FCGI_REQUEST_COMPLETE */
    answer_read(&answer, path);
    reply_add(STDOUT, answer.text, answer.len);
    reply_add(STDOUT, "", 0);
    reply_add(END_REQUEST, complete, sizeof complete);
}

/* Takes bytes in; true if they bring the end of a request, which is its empty STDIN record. */
static bool peer_take(struct peer *p, const uint8_t *at, size_t len)
{
    bool whole = false;
    while (len > 0) {
        size_t n = least(HEADER_BYTES - p->header_len, len);
        memcpy(p->header + p->header_len, at, n);
        p->header_len += n, at += n, len -= n;
        if (p->header_len < HEADER_BYTES) break;

        size_t content = (size_t)p->header[4] << 8 | p->header[5];
        size_t missing = content + p->header[6] - p->content_len;
        n = least(missing, len);
        if (p->header[1] == BEGIN_REQUEST && p->content_len <= FLAGS_AT && p->content_len + n > FLAGS_AT) {
            if (p->header[2] != 0 || p->header[3] != 1) errx(1, "a request whose id is not 1");
            p->keep = at[FLAGS_AT - p->content_len] & KEEP_CONN;
        }
        p->content_len += n, at += n, len -= n;
        if (n < missing) break;
        whole = p->header[1] == STDIN && content == 0;
        p->header_len = p->content_len = 0;
    }
    return whole;
}

/* Reads what is there and answers if that ends a request. False if the connection is closed now. */
static bool peer_serve(int fd)
{
    static uint8_t in[65536];
    struct peer *p = &peers[fd];
    ssize_t n = read(fd, in, sizeof in);
    if (n < 0 && errno == EAGAIN) return true;
    if (n > 0) {
        if (!peer_take(p, in, (size_t)n)) return true;
        /* A peer that waits for its answer has room for it: a part written is a broken connection. */
        if (write(fd, reply, reply_len) == (ssize_t)reply_len && p->keep) return true;
    }
    close(fd);
    return false;
}

/* Most requests on a new connection are there already and need no round through epoll. */
static void accept_all(int epoll_fd, int listen_fd)
{
    int fd;
    while ((fd = accept4(listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        if (fd >= MOST_FDS) errx(1, "more than %d connections", MOST_FDS);
        peers[fd] = (struct peer){ 0 };
        struct epoll_event readable = { .events = EPOLLIN, .data.fd = fd };
        if (peer_serve(fd) && epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &readable) != 0) err(1, "epoll_ctl");
    }
    if (errno != EAGAIN && errno != ECONNABORTED) err(1, "accept4");
}

static int listen_open(const char *path)
{
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (strlen(path) >= sizeof a.sun_path) errx(1, "%s: too long for a socket", path);
    strcpy(a.sun_path, path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&a, sizeof a) != 0 || listen(fd, BACKLOG) != 0) err(1, "%s", path);
    return fd;
}

int main(int argc, char **argv)
{
    if (argc != 3) errx(2, "usage: %s SOCKET ANSWER_FILE", argv[0]);
    signal(SIGPIPE, SIG_IGN);
    reply_build(argv[2]);

    int listen_fd = listen_open(argv[1]);
    int epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event events[MOST_READY] = { { .events = EPOLLIN, .data.fd = listen_fd } };
    if (epoll_fd < 0 || epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listen_fd, &events[0]) != 0) err(1, "epoll");
    for (;;) {
        int ready = epoll_wait(epoll_fd, events, MOST_READY, -1);
        if (ready < 0 && errno != EINTR) err(1, "epoll_wait");
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd == listen_fd)
                accept_all(epoll_fd, listen_fd);
            else
                peer_serve(events[i].data.fd);
        }
    }
}
