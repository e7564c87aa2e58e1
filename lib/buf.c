#include "buf.h"

#include "mem.h"

#include <stdarg.h>

struct bytes bytes_of(const char *s)
{
    return (struct bytes){ s, s ? strlen(s) : 0 };
}

bool bytes_equal(struct bytes a, struct bytes b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.at, b.at, a.len) == 0);
}

bool bytes_is(struct bytes a, const char *s)
{
    return bytes_equal(a, bytes_of(s));
}

struct bytes number(struct number *n, int64_t value)
{
    char *end = n->text + sizeof n->text, *at = end;
    uint64_t rest = value < 0 ? -(uint64_t)value : (uint64_t)value;
    do *--at = (char)('0' + rest % 10);
    while ((rest /= 10) > 0);
    if (value < 0) *--at = '-';
    return (struct bytes){ at, (size_t)(end - at) };
}

/* Makes room for `more` bytes and the NUL behind them; false when that would pass the limit. */
static bool buf_grow(struct buf *b, size_t more)
{
    if (b->overflowed || more > b->limit || b->len > b->limit - more) {
        b->overflowed = true;
        return false;
    }
    size_t need = b->len + more + 1;
    if (need <= b->cap) return true;
    size_t cap = b->cap ? b->cap * 2 : 256;
    while (cap < need) cap *= 2;
    if (cap > b->limit + 1) cap = b->limit + 1;
    b->data = mem_resize(b->data, cap);
    b->cap = cap;
    return true;
}

void buf_append(struct buf *b, const void *data, size_t len)
{
    if (!buf_grow(b, len)) return;
    if (len > 0) memcpy(b->data + b->len, data, len);
    b->len += len;
    b->data[b->len] = '\0';
}

void buf_add(struct buf *b, struct bytes s)
{
    buf_append(b, s.at, s.len);
}

void buf_puts(struct buf *b, const char *s)
{
    buf_append(b, s, strlen(s));
}

void buf_printf(struct buf *b, const char *fmt, ...)
{
    size_t room = b->cap - b->len; /* the first try goes straight into it, which mostly suffices */
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(b->data ? b->data + b->len : NULL, room, fmt, ap);
    va_end(ap);
    if (n >= 0 && buf_grow(b, (size_t)n)) {
        if ((size_t)n >= room) {
            va_start(ap, fmt);
            vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
            va_end(ap);
        }
        b->len += (size_t)n;
    } else if (room > 0) {
        b->data[b->len] = '\0'; /* the try wrote behind what counts */
    }
}

size_t utf8_sequence(const char *s, size_t len)
{
    const unsigned char *u = (const unsigned char *)s;
    if (len == 0) return 0;
    if (u[0] < 0x80) return 1;
    size_t n = u[0] >= 0xf0 ? 4 : u[0] >= 0xe0 ? 3 : 2;
    if (u[0] < 0xc2 || u[0] > 0xf4 || len < n) return 0;
    for (size_t i = 1; i < n; i++)
        if ((u[i] & 0xc0) != 0x80) return 0;
    if (u[0] == 0xe0 && u[1] < 0xa0) return 0; /* overlong */
    if (u[0] == 0xed && u[1] > 0x9f) return 0; /* surrogates */
    if (u[0] == 0xf0 && u[1] < 0x90) return 0; /* overlong */
    if (u[0] == 0xf4 && u[1] > 0x8f) return 0; /* beyond U+10FFFF */
    return n;
}

void buf_json_string(struct buf *b, struct bytes s)
{
    buf_append(b, "\"", 1);
    size_t plain = 0; /* start of the run that needs no escape */
    for (size_t i = 0; i < s.len;) {
        unsigned char c = (unsigned char)s.at[i];
        size_t n = utf8_sequence(s.at + i, s.len - i);
        if (n > 0 && c >= 0x20 && c != '"' && c != '\\') {
            i += n;
            continue;
        }
        buf_append(b, s.at + plain, i - plain);
        if (n == 0)
            buf_puts(b, "\xef\xbf\xbd");
        else if (c == '"')
            buf_puts(b, "\\\"");
        else if (c == '\\')
            buf_puts(b, "\\\\");
        else if (c == '\n')
            buf_puts(b, "\\n");
        else if (c == '\r')
            buf_puts(b, "\\r");
        else if (c == '\t')
            buf_puts(b, "\\t");
        else
            buf_printf(b, "\\u%04x", c);
        plain = ++i;
    }
    buf_append(b, s.at + plain, s.len - plain);
    buf_append(b, "\"", 1);
}

struct bytes buf_bytes(const struct buf *b)
{
    return (struct bytes){ b->data, b->len };
}

const char *buf_text(const struct buf *b)
{
    return b->data ? b->data : "";
}

bool buf_overflowed(const struct buf *b)
{
    return b->overflowed;
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    b->overflowed = false;
    if (b->data) b->data[0] = '\0';
}

void buf_trim(struct buf *b, size_t keep_bytes)
{
    if (b->cap > keep_bytes)
        buf_done(b);
    else
        buf_reset(b);
}

void buf_done(struct buf *b)
{
    free(b->data);
    *b = (struct buf){ .limit = b->limit };
}
