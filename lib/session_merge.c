#include "session_merge.h"

#include "json.h"
#include "mem.h"
#include "session.h"
#include "span.h"

#define NO_LIMIT (SIZE_MAX / 4) /* for scratch texts, whose parts are bounded already */

/* A member as one of the three documents has it. */
struct side {
    bool there;
    struct bytes raw; /* its value */
};

/* The object whose members are being merged. */
struct place {
    int level; /* 1: the document */
    bool metadata;
};

/* A member as all three have it. */
struct member {
    struct bytes name; /* raw */
    struct side base, ours, theirs;
};

struct merge {
    bool ours_win; /* conflicts */
    int conflicts;
};

static void merge_objects(struct merge *m, struct place in, struct bytes base, struct bytes ours, struct bytes theirs,
                          struct buf *out);

static int compare_name(const void *key, const void *member)
{
    return span_compare_names(*(const struct bytes *)key, ((const struct span_member *)member)->name);
}

static const struct span_member *member_find(const struct span_members *list, struct bytes raw_name)
{
    return list->count > 0 ? bsearch(&raw_name, list->at, list->count, sizeof *list->at, compare_name) : NULL;
}

static struct side side_of(const struct span_members *list, struct bytes raw_name)
{
    const struct span_member *m = member_find(list, raw_name);
    return m != NULL ? (struct side){ true, m->value } : (struct side){ false, { NULL, 0 } };
}

static bool same(struct side a, struct side b)
{
    return a.there == b.there && (!a.there || json_equal(a.raw, b.raw));
}

static bool is_object(struct side s)
{
    return s.there && span_type(s.raw) == SPAN_OBJECT;
}

/* One of the two times that every write moves? */
static bool is_time(struct place in, struct bytes raw_name)
{
    return (in.level == 1 && span_same_name(raw_name, BYTES_LITERAL("lastActivity"))) ||
           (in.metadata && span_same_name(raw_name, BYTES_LITERAL("updated")));
}

/* We write no document of more levels than SESSION_DEPTH; others may have, and tasks have small stacks. */
static bool may_descend(struct place in, const struct member *x)
{
    bool whole = in.level == 1 && span_same_name(x->name, BYTES_LITERAL("user"));
    return in.level < SESSION_DEPTH && !whole && is_object(x->ours) && is_object(x->theirs) &&
           (is_object(x->base) || !x->base.there);
}

/* What becomes of a member that both sides changed, each in its way. */
static struct side settle(struct merge *m, struct place in, const struct member *x)
{
    int64_t ours_ms, theirs_ms;
    if (is_time(in, x->name) && x->ours.there && x->theirs.there && json_iso_time(x->ours.raw, &ours_ms) &&
        json_iso_time(x->theirs.raw, &theirs_ms))
        return ours_ms > theirs_ms ? x->ours : x->theirs;
    m->conflicts++;
    return m->ours_win ? x->ours : x->theirs;
}

/* What the member becomes. A text that stands in none of the documents is made in `made`. */
static struct side merge_member(struct merge *m, struct place in, const struct member *x, struct buf *made)
{
    if (same(x->base, x->ours)) return x->theirs;
    if (same(x->base, x->theirs)) return x->ours;
    if (same(x->ours, x->theirs)) return x->theirs;
    if (!may_descend(in, x)) return settle(m, in, x);
    struct place inside = { in.level + 1, in.level == 1 && span_same_name(x->name, BYTES_LITERAL("metadata")) };
    buf_reset(made);
    merge_objects(m, inside, x->base.there ? x->base.raw : BYTES_LITERAL("{}"), x->ours.raw, x->theirs.raw, made);
    return (struct side){ true, buf_bytes(made) };
}

/* Appends the member `as` with another value; no bytes around it change. */
static void add_member(const struct span_member *as, struct bytes value, const char **comma, struct buf *out)
{
    const char *after = as->value.at + as->value.len;
    buf_puts(out, *comma);
    buf_append(out, as->around.at, (size_t)(as->value.at - as->around.at));
    buf_add(out, value);
    buf_append(out, after, (size_t)(as->around.at + as->around.len - after));
    *comma = ",";
}

static void merge_objects(struct merge *m, struct place in, struct bytes base, struct bytes ours, struct bytes theirs,
                          struct buf *out)
{
    struct span_members bases = span_members_by_name(base), our = span_members_by_name(ours),
                        their = span_members_by_name(theirs);
    const struct {
        struct bytes object;
        bool theirs;
    } walks[] = { { theirs, true }, { ours, false } };
    struct buf made = BUF_INIT(NO_LIMIT);
    struct span_member at;
    const char *comma = "{";
    for (int i = 0; i < 2; i++) {
        for (struct span_walk w = span_walk(walks[i].object); span_next(&w, &at);) {
            struct member x = { at.name, side_of(&bases, at.name), side_of(&our, at.name), side_of(&their, at.name) };
            if (!walks[i].theirs && x.theirs.there) continue;                          /* done */
            if (at.value.at != (walks[i].theirs ? x.theirs : x.ours).raw.at) continue; /* repeated further on */
            struct side is = merge_member(m, in, &x, &made);
            if (is.there) add_member(&at, is.raw, &comma, out);
        }
    }
    buf_puts(out, *comma == '{' ? "{}" : "}");
    buf_done(&made);
    free(bases.at);
    free(our.at);
    free(their.at);
}

/* When the document was last used; one that does not say is older than any that does. */
static int64_t last_activity_ms(struct bytes doc)
{
    struct span_member m;
    int64_t ms;
    return span_find(doc, "lastActivity", &m) && json_iso_time(m.value, &ms) ? ms : INT64_MIN;
}

bool session_merge(struct bytes base, struct bytes ours, struct bytes theirs, struct buf *out, int *conflicts)
{
    const struct bytes all[] = { base, ours, theirs };
    size_t at;
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (span_check_object(all[i], JSON_MOST_LEVELS, &at) != SPAN_OK) return false;
    struct merge m = { .ours_win = last_activity_ms(ours) > last_activity_ms(theirs) };
    merge_objects(&m, (struct place){ .level = 1 }, base, ours, theirs, out);
    *conflicts = m.conflicts;
    return true;
}
