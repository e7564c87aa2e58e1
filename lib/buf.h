/* buf.h: growable bytes with a size limit. An append past the limit changes nothing and is remembered, so that
 * text can be built without a check at each step and checked once at the end. */
#ifndef HYPERPAGE_BUF_H
#define HYPERPAGE_BUF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes that belong to somebody else. Not NUL-terminated. */
struct bytes {
    const char *at;
    size_t len;
};
#define BYTES_LITERAL(s) ((struct bytes){ (s), sizeof(s) - 1 })
struct bytes bytes_of(const char *s); /* NULL gives no bytes */
bool bytes_equal(struct bytes a, struct bytes b);
bool bytes_is(struct bytes a, const char *s);

/* A number in digits, at a fraction of printf's cost; the text is in `n`. */
struct number {
    char text[24];
};
struct bytes number(struct number *n, int64_t value);

struct buf {
    char *data; /* NULL or followed by a NUL that len does not count */
    size_t len;
    size_t cap;
    size_t limit; /* most bytes it may ever hold */
    bool overflowed;
};
#define BUF_INIT(most)                                                                                                 \
    {                                                                                                                  \
        .limit = (most)                                                                                                \
    }

void buf_append(struct buf *b, const void *data, size_t len);
void buf_add(struct buf *b, struct bytes s);
void buf_puts(struct buf *b, const char *s);
void buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Appends `s` as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD. */
void buf_json_string(struct buf *b, struct bytes s);

struct bytes buf_bytes(const struct buf *b);
const char *buf_text(const struct buf *b); /* NUL-terminated, "" while empty; dies with the next append */
bool buf_overflowed(const struct buf *b);
void buf_reset(struct buf *b);                   /* empty again; the memory stays */
void buf_trim(struct buf *b, size_t keep_bytes); /* as buf_reset, and frees memory beyond keep_bytes */
void buf_done(struct buf *b);                    /* frees; the buf may be used again */

/* Length of the UTF-8 sequence at s, 1 to 4, or 0 if there is none (overlong forms and surrogates are none). */
size_t utf8_sequence(const char *s, size_t len);

#endif
