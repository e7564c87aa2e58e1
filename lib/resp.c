#include "resp.h"

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
