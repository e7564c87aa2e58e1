/* resp.h: a command as Redis wants it on the wire; and what it sends, with a limit. Pure. */
#ifndef HYPERPAGE_RESP_H
#define HYPERPAGE_RESP_H

#include "buf.h"

void resp_command(struct buf *out, size_t argc, const struct bytes *argv);

/* Takes strings that are too long out of what Redis sends, however it comes in pieces; each becomes an empty one. So
 * who listens to others is not filled up by what they say. */
#define RESP_SIEVE_KEEPS 32 /* bytes of a line that has begun */
struct resp_sieve {
    size_t most_bytes; /* the longest string that passes */
    /* Its own: */
    char line[RESP_SIEVE_KEEPS];
    size_t line_bytes;   /* of the line that has begun and not ended */
    size_t string_bytes; /* of the string that has begun, its end included */
    bool passes;         /* that string does */
    bool long_line;      /* it is no length, and its beginning has passed */
};

/* Appends what passes of `data` to `out`: at most so much as it has, and RESP_SIEVE_KEEPS. */
void resp_sieve(struct resp_sieve *s, struct bytes data, struct buf *out);

#endif
