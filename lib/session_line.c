#include "session_line.h"

#include "clock.h"
#include "span.h"

static bool is_document(struct bytes doc)
{
    size_t at;
    return span_check_object(doc, 0, &at) == SPAN_OK;
}

bool session_line_fits(struct bytes id, struct bytes doc)
{
    char read[IDS_TEXT_BYTES];
    return ids_read(id, read) && bytes_is(id, read) && is_document(doc);
}

void session_line_write(struct bytes id, struct bytes doc, int64_t expires_at_ms, struct buf *out)
{
    char when[CLOCK_ISO_BYTES];
    clock_iso(expires_at_ms, when);
    buf_puts(out, "{\"id\":");
    buf_json_string(out, id);
    buf_puts(out, ",\"expiresAt\":");
    if (expires_at_ms != 0)
        buf_json_string(out, bytes_of(when));
    else
        buf_puts(out, "null");
    buf_puts(out, ",\"document\":");
    buf_json_string(out, doc);
    buf_puts(out, "}\n");
}

/* --- reading: each member has its way --- */

static bool wrong(struct json_fault *f, const char *pointer, const char *reason)
{
    return json_fault_set(f, JSON_WRONG_TYPE, pointer, reason);
}

/* Without its quotes. */
static struct bytes inside(struct bytes string)
{
    return (struct bytes){ string.at + 1, string.len - 2 };
}

static bool read_id(struct bytes value, struct session_line *l, struct json_fault *f)
{
    bool ok = span_type(value) == SPAN_STRING && ids_read(inside(value), l->id) && bytes_is(inside(value), l->id);
    return ok || wrong(f, "/id", "must be 1 to 128 of A-Z a-z 0-9 . _ -");
}

static bool read_end(struct bytes value, struct session_line *l, struct json_fault *f)
{
    l->expires_at_ms = 0;
    return span_type(value) == SPAN_NULL || (json_iso_time(value, &l->expires_at_ms) && l->expires_at_ms > 0) ||
           wrong(f, "/expiresAt", "must be an ISO 8601 time or null");
}

static bool read_document(struct bytes value, struct session_line *l, struct json_fault *f)
{
    if (span_type(value) != SPAN_STRING) return wrong(f, "/document", "must be a string that holds a JSON object");
    if (!span_is_plain_text(inside(value)))
        return wrong(f, "/document", "must be text without U+0000 and halves of characters");
    span_decode(inside(value), &l->doc);
    if (buf_overflowed(&l->doc)) return wrong(f, "/document", "must not be longer than SESSION_MAX_BYTES");
    return is_document(buf_bytes(&l->doc)) || wrong(f, "/document", "must be a string that holds a JSON object");
}

static const struct member {
    const char *name;
    bool (*read)(struct bytes value, struct session_line *l, struct json_fault *f);
} members[] = {
    { "id", read_id },
    { "expiresAt", read_end },
    { "document", read_document },
};
#define MEMBERS (sizeof members / sizeof members[0])

bool session_line_read(struct bytes line, struct session_line *l, struct json_fault *f)
{
    struct span_member m;
    size_t found = 0, i;
    buf_reset(&l->doc);
    if (!json_check(line, 1, f)) return false;
    for (struct span_walk w = span_walk(line); span_next(&w, &m); found++) {
        for (i = 0; i < MEMBERS && !bytes_is(m.name, members[i].name); i++) continue;
        if (i == MEMBERS) return wrong(f, "", "a line has id, expiresAt and document, and nothing else");
        if (!members[i].read(m.value, l, f)) return false;
    }
    return found == MEMBERS || wrong(f, "", "a line has id, expiresAt and document");
}
