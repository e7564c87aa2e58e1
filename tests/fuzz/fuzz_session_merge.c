/* Input: two or three documents with NULs between. The merge of any three is a JSON object and says the same when asked
 * again; a side that changed nothing gives way to the other; changes to different members never conflict. */
#include "json.h"
#include "session_merge.h"
#include "span.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct bytes next_part(const char **p, const char *end)
{
    const char *from = *p, *nul = from < end ? memchr(from, '\0', (size_t)(end - from)) : NULL;
    const char *to = nul != NULL ? nul : end;
    *p = nul != NULL ? nul + 1 : end;
    return (struct bytes){ from, (size_t)(to - from) };
}

static void check_equals(struct bytes base, struct bytes ours, struct bytes theirs, struct bytes expected)
{
    struct buf out = BUF_INIT(1 << 22);
    int conflicts = -1;
    assert(session_merge(base, ours, theirs, &out, &conflicts));
    assert(conflicts == 0 && json_equal(buf_bytes(&out), expected));
    buf_done(&out);
}

/* `doc` with one more member, whose name no input is likely to hold: it would only make the check fail to find a
 * conflict where there is one. */
static void add_member(struct bytes doc, const char *member, struct buf *out)
{
    struct span_member m;
    struct span_walk w = span_walk(doc);
    const char *open = memchr(doc.at, '{', doc.len);
    buf_puts(out, "{");
    buf_puts(out, member);
    buf_puts(out, span_next(&w, &m) ? "," : "");
    buf_append(out, open + 1, (size_t)(doc.at + doc.len - open - 1));
}

static void check_disjoint(struct bytes base)
{
    struct buf ours = BUF_INIT(1 << 22), theirs = BUF_INIT(1 << 22), both = BUF_INIT(1 << 22);
    struct span_member m;
    if (!span_find(base, "\x01ours", &m) && !span_find(base, "\x01theirs", &m)) {
        add_member(base, "\"\\u0001ours\":{\"a\":1}", &ours);
        add_member(base, "\"\\u0001theirs\":[2]", &theirs);
        add_member(buf_bytes(&ours), "\"\\u0001theirs\":[2]", &both);
        check_equals(base, buf_bytes(&ours), buf_bytes(&theirs), buf_bytes(&both));
    }
    buf_done(&ours);
    buf_done(&theirs);
    buf_done(&both);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *p = (const char *)data, *end = p + size;
    struct bytes part[3] = { next_part(&p, end), next_part(&p, end), next_part(&p, end) };
    struct buf once = BUF_INIT(1 << 22), again = BUF_INIT(1 << 22);
    int conflicts = -1, none = -1;
    size_t at;
    for (int i = 0; i < 3; i++)
        if (span_check_object(part[i], JSON_MOST_LEVELS, &at) != SPAN_OK) {
            assert(!session_merge(part[0], part[1], part[2], &once, &conflicts));
            part[i] = BYTES_LITERAL("{}");
        }
    assert(session_merge(part[0], part[1], part[2], &once, &conflicts));
    assert(conflicts >= 0 && span_check_object(buf_bytes(&once), JSON_MOST_LEVELS, &at) == SPAN_OK);

    /* Applied to its own result, nothing changes: what a second replay of the same change would do. */
    if (conflicts == 0) {
        assert(session_merge(part[0], part[1], buf_bytes(&once), &again, &none));
        assert(none == 0 && json_equal(buf_bytes(&once), buf_bytes(&again)));
    }
    check_equals(part[0], part[1], part[0], part[1]);
    check_equals(part[0], part[0], part[1], part[1]);
    check_equals(part[0], part[1], part[1], part[1]);
    check_disjoint(part[0]);
    buf_done(&once);
    buf_done(&again);
    return 0;
}
