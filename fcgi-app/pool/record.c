#include "record.h"

#include <string.h>

/* https://fastcgi-archives.github.io/FastCGI_Specification.html, section 8 */
enum {
    TYPE_BEGIN_REQUEST = 1,
    TYPE_ABORT_REQUEST = 2,
    TYPE_END_REQUEST = 3,
    TYPE_PARAMS = 4,
    TYPE_STDIN = 5,
    TYPE_STDOUT = 6,
    TYPE_GET_VALUES = 9,
    TYPE_GET_VALUES_RESULT = 10,
    TYPE_UNKNOWN_TYPE = 11,
    ROLE_RESPONDER = 1
};

struct header {
    uint8_t version, type, padding;
    uint16_t id, length;
};

static struct header read_header(const unsigned char *p)
{
    return (struct header){ .version = p[0],
                            .type = p[1],
                            .id = (uint16_t)(p[2] << 8 | p[3]),
                            .length = (uint16_t)(p[4] << 8 | p[5]),
                            .padding = p[6] };
}

static void add_header(struct buf *out, uint8_t type, uint16_t id, size_t length)
{
    unsigned char h[RECORD_HEADER_BYTES] = {
        1, type, (uint8_t)(id >> 8), (uint8_t)id, (uint8_t)(length >> 8), (uint8_t)length, 0, 0
    };
    buf_append(out, h, sizeof h);
}

/* A length of a name or a value: one byte, or four with the first bit set. */
static bool read_length(struct bytes *rest, size_t *length)
{
    const unsigned char *p = (const unsigned char *)rest->at;
    if (rest->len == 0) return false;
    size_t used = p[0] & 0x80 ? 4 : 1;
    if (rest->len < used) return false;
    *length = used == 1 ? p[0] : (size_t)(p[0] & 0x7f) << 24 | (size_t)p[1] << 16 | (size_t)p[2] << 8 | p[3];
    rest->at += used;
    rest->len -= used;
    return true;
}

/* Takes the next pair off the front of *rest. */
static bool next_pair(struct bytes *rest, struct bytes *name, struct bytes *value)
{
    if (!read_length(rest, &name->len) || !read_length(rest, &value->len)) return false;
    if (name->len > rest->len || value->len > rest->len - name->len) return false;
    name->at = rest->at;
    value->at = rest->at + name->len;
    rest->at += name->len + value->len;
    rest->len -= name->len + value->len;
    return true;
}

/* libfcgi allocates what a length says before it looks whether so much is there: lengths must be true. */
static bool params_are_true(struct bytes params)
{
    struct bytes name, value;
    while (params.len > 0)
        if (!next_pair(&params, &name, &value)) return false;
    return true;
}

static enum record_verdict scan_management(struct bytes data, struct header h, struct record_request *rq)
{
    rq->management_type = h.type;
    rq->bytes = RECORD_HEADER_BYTES + h.length + h.padding;
    return data.len < rq->bytes ? RECORD_MORE : RECORD_MANAGEMENT;
}

enum record_verdict record_scan(struct bytes data, size_t most_body_bytes, struct buf *scratch,
                                struct record_request *rq)
{
    enum { WANT_BEGIN, WANT_PARAMS, WANT_STDIN } want = WANT_BEGIN;
    size_t at = 0, params_bytes = 0, body_bytes = 0;
    struct bytes first_params = { NULL, 0 };
    *rq = (struct record_request){ 0 };
    buf_reset(scratch);

    while (data.len - at >= RECORD_HEADER_BYTES) {
        const unsigned char *p = (const unsigned char *)data.at + at;
        struct header h = read_header(p);
        struct bytes content = { data.at + at + RECORD_HEADER_BYTES, h.length };
        if (h.version != 1) return RECORD_BROKEN;
        if (want == WANT_BEGIN && h.id == 0) return scan_management(data, h, rq);
        if (want != WANT_BEGIN && h.id != rq->id) return RECORD_BROKEN; /* we do not multiplex */
        if (want != WANT_BEGIN && h.type == TYPE_ABORT_REQUEST) return RECORD_ABORTED;
        /* libfcgi skips padding behind a stream's bytes only; that of BEGIN_REQUEST and of an empty record it would
         * take for the next record. No front server pads these. */
        if (h.padding > 0 && (want == WANT_BEGIN || h.length == 0)) return RECORD_BROKEN;
        if (want == WANT_STDIN && h.type == TYPE_STDIN) {
            body_bytes += h.length;
            if (body_bytes > most_body_bytes) return RECORD_BODY_TOO_LONG;
        }
        if (want == WANT_PARAMS && h.type == TYPE_PARAMS) {
            params_bytes += h.length;
            if (params_bytes > RECORD_MOST_PARAMS_BYTES) return RECORD_PARAMS_TOO_LONG;
        }
        size_t size = RECORD_HEADER_BYTES + (size_t)h.length + h.padding;
        if (data.len - at < size) break;

        if (want == WANT_BEGIN) {
            if (h.type != TYPE_BEGIN_REQUEST || h.length != 8 || (p[8] << 8 | p[9]) != ROLE_RESPONDER)
                return RECORD_BROKEN;
            rq->id = h.id;
            want = WANT_PARAMS;
        } else if (want == WANT_PARAMS && h.type == TYPE_PARAMS) {
            if (h.length == 0) {
                rq->params = scratch->len > 0 ? buf_bytes(scratch) : first_params;
                if (!params_are_true(rq->params)) return RECORD_BROKEN;
                want = WANT_STDIN;
            } else if (first_params.len == 0) {
                first_params = content;
            } else {
                if (scratch->len == 0) buf_add(scratch, first_params);
                buf_add(scratch, content);
            }
        } else if (want == WANT_STDIN && h.type == TYPE_STDIN) {
            if (h.length == 0) {
                rq->bytes = at + size;
                return rq->bytes == data.len ? RECORD_WHOLE : RECORD_BROKEN; /* the next one comes after our answer */
            }
        } else {
            return RECORD_BROKEN;
        }
        at += size;
    }
    return RECORD_MORE;
}

struct bytes record_param(struct bytes params, const char *name)
{
    struct bytes key, value;
    while (next_pair(&params, &key, &value))
        if (bytes_is(key, name)) return value;
    return (struct bytes){ NULL, 0 };
}

void record_answer(uint16_t id, struct bytes text, struct buf *out)
{
    static const unsigned char end[8] = { 0 }; /* status 0, FCGI_REQUEST_COMPLETE */
    add_header(out, TYPE_STDOUT, id, text.len);
    buf_add(out, text);
    add_header(out, TYPE_STDOUT, id, 0);
    add_header(out, TYPE_END_REQUEST, id, sizeof end);
    buf_append(out, end, sizeof end);
}

/* What a front server may ask before its first request. */
static const struct {
    const char *name, *value;
} values[] = { { "FCGI_MAX_CONNS", "1024" }, { "FCGI_MAX_REQS", "1024" }, { "FCGI_MPXS_CONNS", "0" } };

void record_answer_management(struct bytes data, const struct record_request *rq, struct buf *out)
{
    if (rq->management_type != TYPE_GET_VALUES) {
        unsigned char body[8] = { rq->management_type };
        add_header(out, TYPE_UNKNOWN_TYPE, 0, sizeof body);
        buf_append(out, body, sizeof body);
        return;
    }
    struct header h = read_header((const unsigned char *)data.at);
    struct bytes asked = { data.at + RECORD_HEADER_BYTES, h.length }, name, value;
    bool said[3] = { false };
    struct buf answer = BUF_INIT(256);
    while (next_pair(&asked, &name, &value))
        for (size_t i = 0; i < 3; i++)
            if (!said[i] && bytes_is(name, values[i].name)) {
                said[i] = true; /* once, however often it was asked */
                buf_printf(&answer, "%c%c%s%s", (int)name.len, (int)strlen(values[i].value), values[i].name,
                           values[i].value);
            }
    add_header(out, TYPE_GET_VALUES_RESULT, 0, answer.len);
    buf_add(out, buf_bytes(&answer));
    buf_done(&answer);
}
