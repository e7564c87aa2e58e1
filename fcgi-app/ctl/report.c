#include "report.h"

#include "clock.h"
#include "span.h"

#include <inttypes.h>
#include <string.h>

#define MOST_BYTES (64 << 20)

void report_init(struct report *r, bool json)
{
    *r = (struct report){ .text = BUF_INIT(MOST_BYTES), .to = stdout, .json = json, .first = true };
    if (json) buf_puts(&r->text, "{");
}

void report_forget(struct report *r)
{
    r->text.len = 0;
    if (r->json) buf_puts(&r->text, "{");
    r->level = 0;
    r->in_row = false;
    r->first = true;
}

bool report_print(struct report *r)
{
    if (r->json) buf_puts(&r->text, "}\n");
    bool ok = !buf_overflowed(&r->text) && fwrite(buf_text(&r->text), 1, r->text.len, r->to) == r->text.len;
    return fflush(r->to) == 0 && ok;
}

void report_done(struct report *r)
{
    buf_done(&r->text);
}

/* What stands before a value: the comma or the line, and the name. */
static void begin(struct report *r, const char *name)
{
    if (r->json) {
        if (!r->first) buf_puts(&r->text, ",");
        if (name != NULL) buf_printf(&r->text, "\"%s\":", name);
    } else if (r->in_row) {
        buf_printf(&r->text, "%s%s=", r->first ? "" : " ", name);
    } else {
        buf_printf(&r->text, "%*s%s", 2 * r->level, "", name != NULL ? name : "-");
        buf_puts(&r->text, name != NULL ? ": " : " ");
    }
    r->first = false;
}

static void end(struct report *r)
{
    if (!r->json && !r->in_row) buf_puts(&r->text, "\n");
}

/* A heading has its members below it; a blank behind it would be one too many. */
static void heading(struct report *r)
{
    r->text.len--;
    buf_puts(&r->text, "\n");
}

void report_open(struct report *r, const char *name)
{
    begin(r, name);
    if (r->json)
        buf_puts(&r->text, "{");
    else if (name == NULL)
        r->in_row = true;
    else
        heading(r);
    r->level++;
    r->first = true;
}

void report_close(struct report *r)
{
    r->level--;
    r->first = false;
    if (r->json)
        buf_puts(&r->text, "}");
    else if (r->in_row)
        buf_puts(&r->text, "\n");
    r->in_row = false;
}

void report_open_list(struct report *r, const char *name)
{
    begin(r, name);
    if (r->json)
        buf_puts(&r->text, "[");
    else
        heading(r);
    r->level++;
    r->first = true;
}

void report_close_list(struct report *r)
{
    r->level--;
    r->first = false;
    if (r->json) buf_puts(&r->text, "]");
}

/* C1 is U+0080 to U+009F, in UTF-8 0xC2 and the byte. */
void report_add_shown(struct buf *out, struct bytes value)
{
    for (size_t i = 0; i < value.len;) {
        unsigned char c = (unsigned char)value.at[i];
        size_t n = utf8_sequence(value.at + i, value.len - i);
        bool control = c < 0x20 || c == 0x7f || n == 0 || (c == 0xc2 && (unsigned char)value.at[i + 1] < 0xa0);
        if (control)
            buf_puts(out, "?");
        else
            buf_append(out, value.at + i, n);
        i += n > 0 ? n : 1;
    }
}

void report_text(struct report *r, const char *name, struct bytes value)
{
    begin(r, name);
    if (r->json) {
        buf_json_string(&r->text, value);
    } else if (r->in_row && memchr(value.at, ' ', value.len) != NULL) {
        buf_puts(&r->text, "\"");
        report_add_shown(&r->text, value);
        buf_puts(&r->text, "\"");
    } else {
        report_add_shown(&r->text, value);
    }
    end(r);
}

static void add_plain(struct report *r, const char *name, const char *value)
{
    begin(r, name);
    buf_puts(&r->text, value);
    end(r);
}

static void add_null(struct report *r, const char *name)
{
    add_plain(r, name, r->json ? "null" : "-");
}

void report_string(struct report *r, const char *name, const char *value)
{
    if (value[0] == '\0')
        add_null(r, name);
    else
        report_text(r, name, bytes_of(value));
}

void report_number(struct report *r, const char *name, int64_t value)
{
    begin(r, name);
    buf_printf(&r->text, "%" PRId64, value);
    end(r);
}

void report_flag(struct report *r, const char *name, bool value)
{
    add_plain(r, name, value ? "true" : "false");
}

void report_time(struct report *r, const char *name, int64_t wall_ms)
{
    char when[CLOCK_ISO_BYTES];
    clock_iso(wall_ms, when);
    report_string(r, name, wall_ms != 0 ? when : "");
}

void report_ms(struct report *r, const char *name, int64_t us)
{
    begin(r, name);
    buf_printf(&r->text, "%" PRId64 ".%03" PRId64, us / 1000, us % 1000);
    end(r);
}

void report_json(struct report *r, const char *name, struct bytes raw)
{
    struct buf plain = BUF_INIT(MOST_BYTES);
    if (raw.len == 0 || span_type(raw) == SPAN_NULL) {
        add_null(r, name);
    } else if (r->json) {
        begin(r, name);
        buf_add(&r->text, raw);
    } else if (span_type(raw) == SPAN_STRING) {
        span_decode((struct bytes){ raw.at + 1, raw.len - 2 }, &plain);
        report_text(r, name, buf_bytes(&plain));
    } else {
        report_text(r, name, raw);
    }
    buf_done(&plain);
}
