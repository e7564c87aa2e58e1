/* Input: a byte of switches, a stored document, a NUL, a change. Whatever edit session_apply() accepts yields an object
 * in which every member that the edit did not name has the bytes it had, in the order it had. */
#include "session.h"
#include "span.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NOW    "\"2026-01-31T23:59:59.123Z\""
#define NOW_MS INT64_C(1769903999123)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const protected_names[] = { "userId", "user", "authenticatedTools", NULL };
static const char *const server_names[] = { "lastActivity", "metadata", NULL };

static bool is_any_of(struct bytes raw_name, const char *const *names)
{
    for (; *names != NULL; names++)
        if (span_same_name(raw_name, bytes_of(*names))) return true;
    return false;
}

/* May the edit touch members of this name? */
static bool is_named(const struct session_edit *edit, struct bytes raw_name)
{
    struct span_member m;
    if (is_any_of(raw_name, server_names)) return true;
    if (edit->kind == SESSION_REPLACE) return edit->protected != NULL && is_any_of(raw_name, edit->protected);
    for (struct span_walk w = span_walk(edit->change); span_next(&w, &m);)
        if (span_same_name(m.name, raw_name)) return true;
    return false;
}

static bool next_unnamed(const struct session_edit *edit, struct span_walk *w, struct span_member *m)
{
    while (span_next(w, m))
        if (!is_named(edit, m->name)) return true;
    return false;
}

static void check_untouched(const struct session_edit *edit, struct bytes before, struct bytes after)
{
    struct span_walk in_before = span_walk(before), in_after = span_walk(after);
    struct span_member was, is;
    while (next_unnamed(edit, &in_before, &was)) {
        assert(next_unnamed(edit, &in_after, &is));
        assert(bytes_equal(was.around, is.around));
    }
    assert(!next_unnamed(edit, &in_after, &is));
}

static void check_times(struct bytes doc)
{
    struct span_member m;
    assert(span_find(doc, "lastActivity", &m) && bytes_is(m.value, NOW));
    assert(span_find(doc, "metadata", &m) && span_find(m.value, "updated", &m) && bytes_is(m.value, NOW));
}

static void check_protected(const struct session_edit *edit, struct bytes before, struct bytes after)
{
    struct span_member was, is;
    if (edit->trusted || edit->protected == NULL) return;
    for (const char *const *name = edit->protected; *name != NULL; name++) {
        bool there = span_find(before, *name, &was);
        assert(there == span_find(after, *name, &is));
        assert(!there || json_equal(was.value, is.value));
    }
}

/* A touch afterwards, at another time, changes the etag and not the version. */
static void check_touch(struct bytes doc)
{
    struct session_facts was, is;
    struct session_edit touch = { .kind = SESSION_MERGE, .change = BYTES_LITERAL("{}"), .now_ms = NOW_MS + 1 };
    struct buf touched = BUF_INIT(1 << 22);
    struct json_fault f;
    assert(session_apply(&touch, doc, &touched, &f));
    assert(session_facts(doc, &was) && session_facts(buf_bytes(&touched), &is));
    assert(strcmp(was.etag, is.etag) != 0 && strcmp(was.version, is.version) == 0);
    buf_done(&touched);
}

static void check_edit(const struct session_edit *edit, struct bytes doc)
{
    struct buf out = BUF_INIT(1 << 22);
    struct json_fault f = { .kind = JSON_FINE };
    size_t at;
    if (session_apply(edit, doc, &out, &f)) {
        struct bytes edited = buf_bytes(&out);
        assert(!buf_overflowed(&out));
        assert(span_check_object(edited, 0, &at) == SPAN_OK);
        check_untouched(edit, edit->kind == SESSION_REPLACE ? edit->change : doc, edited);
        check_times(edited);
        check_protected(edit, doc, edited);
        check_touch(edited);
    } else {
        assert(f.kind == JSON_PROTECTED && f.pointer[0] == '/' && !edit->trusted && edit->protected != NULL);
    }
    buf_done(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) return 0;
    const char *text = (const char *)data + 1, *end = (const char *)data + size;
    const char *nul = memchr(text, '\0', size - 1);
    if (nul == NULL) return 0;
    struct bytes doc = { text, (size_t)(nul - text) };
    struct session_edit edit = {
        .kind = (enum session_edit_kind)(data[0] % 3),
        .change = { nul + 1, (size_t)(end - nul - 1) },
        .protected = data[0] & 4 ? protected_names : NULL,
        .trusted = data[0] & 8,
        .keep_origin = data[0] & 16,
        .now_ms = NOW_MS,
    };
    struct session_origin origin = { "192.0.2.17", "fuzz" };
    struct buf fresh = BUF_INIT(1 << 22);
    struct json_fault f;
    size_t at;
    if (!session_check(edit.change, edit.kind == SESSION_MERGE_PATCH, &f)) return 0;
    if (span_check_object(doc, 0, &at) == SPAN_OK) check_edit(&edit, doc);
    if (session_new(&edit, &origin, &fresh, &f)) assert(span_check_object(buf_bytes(&fresh), 0, &at) == SPAN_OK);
    buf_done(&fresh);
    return 0;
}
