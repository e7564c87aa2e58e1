/* Whatever a peer sends: nothing is read outside of it; what is called whole is one request that libfcgi reads to its
 * end without asking for another byte, with params whose lengths are true. */
#include "record.h"

#include <assert.h>
#include <fcgiapp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define MOST_BODY_BYTES 4096

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* What a whole request holds, seen by other eyes than record.c's. */
struct content {
    struct buf params, body;
};

static void take_apart(struct bytes whole, struct content *c)
{
    const unsigned char *p = (const unsigned char *)whole.at;
    size_t at = 0;
    while (at < whole.len) {
        size_t length = (size_t)p[at + 4] << 8 | p[at + 5];
        assert(at + 8 + length + p[at + 6] <= whole.len);
        if (p[at + 1] == 4) buf_append(&c->params, p + at + 8, length);
        if (p[at + 1] == 5) buf_append(&c->body, p + at + 8, length);
        at += 8 + length + p[at + 6];
    }
    assert(at == whole.len);
}

static size_t length_at(const struct buf *b, size_t *at)
{
    const unsigned char *p = (const unsigned char *)b->data + *at;
    assert(*at < b->len && (p[0] < 128 || *at + 4 <= b->len));
    *at += p[0] < 128 ? 1 : 4;
    return p[0] < 128 ? p[0] : (size_t)(p[0] & 127) << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
}

static size_t count_true_pairs(const struct buf *params)
{
    size_t pairs = 0;
    for (size_t at = 0; at < params->len; pairs++) {
        size_t name = length_at(params, &at), value = length_at(params, &at);
        assert(name + value <= params->len - at);
        at += name + value;
    }
    return pairs;
}

static void let_libfcgi_read(struct bytes whole, const struct content *c, size_t pairs)
{
    int pair[2], room = 1 << 20;
    FCGX_Request rq;
    char chunk[4096];
    size_t body = 0, params = 0;
    assert(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    setsockopt(pair[1], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    assert(send(pair[1], whole.at, whole.len, MSG_DONTWAIT) == (ssize_t)whole.len);
    assert(shutdown(pair[1], SHUT_WR) == 0); /* if it asks for more it meets the end */
    assert(FCGX_Init() == 0 && FCGX_InitRequest(&rq, -1, FCGI_FAIL_ACCEPT_ON_INTR) == 0);
    rq.ipcFd = pair[0];
    rq.keepConnection = 1;
    assert(FCGX_Accept_r(&rq) == 0);
    while (rq.envp[params] != NULL) params++;
    assert(params == pairs + 1); /* libfcgi adds FCGI_ROLE */
    for (int n; (n = FCGX_GetStr(chunk, sizeof chunk, rq.in)) > 0; body += (size_t)n)
        assert(memcmp(chunk, c->body.data + body, (size_t)n) == 0);
    assert(body == c->body.len && FCGX_GetError(rq.in) == 0);
    assert(recv(pair[0], chunk, 1, MSG_DONTWAIT) == 0); /* nothing is left for the next request to stumble over */
    FCGX_Detach(&rq);
    FCGX_Finish_r(&rq);
    close(pair[0]);
    close(pair[1]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf scratch = BUF_INIT(RECORD_MOST_PARAMS_BYTES), answer = BUF_INIT(1024);
    struct bytes all = { (const char *)data, size };
    struct record_request rq;
    enum record_verdict verdict = record_scan(all, MOST_BODY_BYTES, &scratch, &rq);
    if (verdict == RECORD_WHOLE) {
        struct content c = { BUF_INIT(RECORD_MOST_PARAMS_BYTES), BUF_INIT(MOST_BODY_BYTES) };
        assert(rq.bytes == size);
        take_apart(all, &c);
        assert(!buf_overflowed(&c.params) && !buf_overflowed(&c.body));
        let_libfcgi_read(all, &c, count_true_pairs(&c.params));
        for (size_t less = 1; less <= 8; less++) /* and one byte less is not whole */
            assert(record_scan((struct bytes){ all.at, size - less }, MOST_BODY_BYTES, &scratch, &rq) == RECORD_MORE);
        buf_done(&c.params);
        buf_done(&c.body);
    } else if (verdict == RECORD_MANAGEMENT) {
        assert(rq.bytes >= RECORD_HEADER_BYTES && rq.bytes <= size);
        record_answer_management(all, &rq, &answer);
        assert(!buf_overflowed(&answer) && answer.len >= RECORD_HEADER_BYTES);
    }
    buf_done(&scratch);
    buf_done(&answer);
    return 0;
}
