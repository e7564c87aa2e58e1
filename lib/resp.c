#include "resp.h"

/* --- a limit for what Redis sends --- */

/* Is this line the length of a string that follows? Nil ("$-1") has none. */
static bool read_length(const struct resp_sieve *s, size_t *length)
{
    *length = 0;
    if (s->long_line || s->line_bytes < 3 || s->line[0] != '$') return false;
    for (size_t i = 1; s->line[i] >= '0' && s->line[i] <= '9' && *length < SIZE_MAX / 100; i++)
        *length = *length * 10 + (size_t)(s->line[i] - '0');
    return s->line[1] != '-';
}

static void end_line(struct resp_sieve *s, struct buf *out)
{
    size_t length;
    bool string = read_length(s, &length);
    s->passes = !string || length <= s->most_bytes;
    if (s->passes)
        buf_append(out, s->line, s->line_bytes);
    else
        buf_puts(out, "$0\r\n\r\n");
    s->string_bytes = string ? length + 2 : 0;
    s->line_bytes = 0;
    s->long_line = false;
}

static void take_character(struct resp_sieve *s, char c, struct buf *out)
{
    s->line[s->line_bytes++] = c;
    if (c == '\n') {
        end_line(s, out);
    } else if (s->line_bytes == sizeof s->line) {
        buf_append(out, s->line, s->line_bytes);
        s->line_bytes = 0;
        s->long_line = true;
    }
}

void resp_sieve(struct resp_sieve *s, struct bytes data, struct buf *out)
{
    while (data.len > 0) {
        size_t n = s->string_bytes < data.len ? s->string_bytes : data.len;
        if (n > 0 && s->passes) buf_append(out, data.at, n);
        s->string_bytes -= n;
        if (n == 0) take_character(s, data.at[n++], out);
        data = (struct bytes){ data.at + n, data.len - n };
    }
}

/* --- commands --- */

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

void resp_command(struct buf *out, size_t argc, const struct bytes *argv)
{
    append_length(out, '*', argc);
    for (size_t i = 0; i < argc; i++) {
        append_length(out, '$', argv[i].len);
        buf_add(out, argv[i]);
        buf_append(out, "\r\n", 2);
    }
}
