/* Whatever the bytes are, nothing reads outside of them; what span_check_object() accepts, json-c accepts too, and the
 * spans of its members put together again are the text that they came from. */
#include "json.h"
#include "session.h"
#include "span.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* On a text that may be anything: only the sanitizers judge. */
static void walk_unchecked(struct bytes text)
{
    struct bytes rest = text, name;
    struct span_member m;
    struct buf out = BUF_INIT(1 << 20);
    for (struct span_walk w = span_walk(text); span_next(&w, &m);) {
        span_decode(m.name, &out);
        span_is_plain_text(m.value);
    }
    while (span_next_name(&rest, &name)) assert(name.at >= text.at && name.at + name.len < text.at + text.len);
    span_find(text, "lastActivity", &m);
    assert(span_count_containers(text) <= text.len);
    buf_done(&out);
}

/* Decoded and escaped again, a name is the same name. */
static void check_name(struct bytes raw)
{
    struct buf text = BUF_INIT(1 << 20), again = BUF_INIT(1 << 20);
    assert(span_same_name(raw, raw));
    span_decode(raw, &text);
    buf_json_string(&again, buf_bytes(&text));
    struct bytes inner = { again.data + 1, again.len - 2 };
    bool plain = span_is_plain_text(raw);
    assert(!plain || (span_compare_names(raw, inner) == 0 && span_same_name(inner, raw)));
    assert(!plain || memchr(buf_text(&text), '\0', text.len) == NULL);
    buf_done(&text);
    buf_done(&again);
}

static void check_value(struct bytes value)
{
    struct buf alone = BUF_INIT(1 << 20);
    size_t at;
    buf_puts(&alone, "{\"\":");
    buf_add(&alone, value);
    buf_puts(&alone, "}");
    assert(span_check_object(buf_bytes(&alone), 0, &at) == SPAN_OK);
    assert(json_equal(value, value));
    buf_done(&alone);
}

static void check_members(struct bytes text)
{
    struct buf again = BUF_INIT(1 << 20);
    struct span_member m;
    const char *first = memchr(text.at, '{', text.len), *last = memrchr(text.at, '}', text.len);
    buf_append(&again, text.at, (size_t)(first - text.at));
    const char *comma = "{";
    for (struct span_walk w = span_walk(text); span_next(&w, &m); comma = ",") {
        buf_puts(&again, comma);
        buf_add(&again, m.around);
        check_name(m.name);
        check_value(m.value);
    }
    if (*comma == '{') buf_append(&again, first, (size_t)(last - first));
    buf_append(&again, last, (size_t)(text.at + text.len - last));
    assert(bytes_equal(buf_bytes(&again), text));
    buf_done(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes text = { (const char *)data, size };
    struct session_facts facts;
    struct json_fault f = { .kind = JSON_FINE };
    size_t at = 0;
    walk_unchecked(text);
    enum span_check found = span_check_object(text, SESSION_DEPTH, &at);
    assert(at <= size);
    assert(json_check(text, SESSION_DEPTH, &f) == (f.kind == JSON_FINE));
    assert(session_facts(text, &facts) == (span_check_object(text, 0, &at) == SPAN_OK));
    session_check(text, true, &f);
    if (found != SPAN_OK) return 0;
    check_members(text);
    if (f.kind == JSON_MALFORMED) assert(strncmp(f.reason, "the member", 10) == 0); /* else json-c sees it otherwise */
    return 0;
}
