/* record.h: FastCGI records, as far as a worker must understand them before it lets libfcgi read: is the request on
 * this connection whole, and is it fit to be read? libfcgi reads blocking and trusts lengths. Pure. */
#ifndef HYPERPAGE_RECORD_H
#define HYPERPAGE_RECORD_H

#include "buf.h"

#include <stdint.h>

#define RECORD_HEADER_BYTES      8
#define RECORD_MOST_PARAMS_BYTES (64 * 1024)

enum record_verdict {
    RECORD_MORE,            /* fine so far; the rest is still to come */
    RECORD_WHOLE,           /* a request through its empty STDIN record, and nothing behind it */
    RECORD_BODY_TOO_LONG,   /* answer 413 and close */
    RECORD_PARAMS_TOO_LONG, /* answer 431 and close */
    RECORD_MANAGEMENT,      /* starts with a management record of `bytes`: answer it, then look again */
    RECORD_ABORTED,         /* the front server has given the request up */
    RECORD_BROKEN           /* not what a FastCGI front server sends */
};

struct record_request {
    uint16_t id;
    uint8_t management_type;
    size_t bytes;        /* of the whole request, or of the management record */
    struct bytes params; /* once all of them are there; in `data` or in `scratch` */
};

/* Looks at the first bytes of a connection. `scratch` is for params that came in pieces; its content is lost. */
enum record_verdict record_scan(struct bytes data, size_t most_body_bytes, struct buf *scratch,
                                struct record_request *rq);

/* The value of a parameter, or no bytes. For answers that must be given before libfcgi has read anything. */
struct bytes record_param(struct bytes params, const char *name);

/* Appends a whole answer: STDOUT with `text` (at most 65,535 bytes), its end, END_REQUEST. */
void record_answer(uint16_t id, struct bytes text, struct buf *out);

/* Appends the answer to a management record: `data` starts with it. */
void record_answer_management(struct bytes data, const struct record_request *rq, struct buf *out);

#endif
