#include "json.h"

#include "mem.h"
#include "span.h"

#include <json-c/json.h>

#include <assert.h>
#include <limits.h>
#include <string.h>
#include <time.h>

bool json_fault_set(struct json_fault *f, enum json_fault_kind kind, const char *pointer, const char *reason)
{
    f->kind = kind;
    snprintf(f->pointer, sizeof f->pointer, "%s", pointer);
    snprintf(f->reason, sizeof f->reason, "%s", reason);
    return false;
}

/* Appends "/segment", unless that takes the pointer over its limit: the member's name, or without one the index. */
static bool pointer_add(struct buf *pointer, struct bytes raw_name, size_t index)
{
    struct buf name = BUF_INIT(SIZE_MAX / 4), segment = BUF_INIT(pointer->limit - pointer->len);
    if (raw_name.at != NULL)
        span_decode(raw_name, &name);
    else
        buf_printf(&name, "%zu", index);
    buf_puts(&segment, "/");
    for (size_t i = 0; i < name.len; i++) {
        if (name.data[i] == '~')
            buf_puts(&segment, "~0");
        else if (name.data[i] == '/')
            buf_puts(&segment, "~1");
        else if (name.data[i] == '\0')
            buf_puts(&segment, "\xef\xbf\xbd"); /* the pointer is a C string */
        else
            buf_append(&segment, &name.data[i], 1);
    }
    bool fits = !buf_overflowed(&segment);
    if (fits) buf_add(pointer, buf_bytes(&segment));
    buf_done(&name);
    buf_done(&segment);
    return fits;
}

bool json_fault_at(struct json_fault *f, enum json_fault_kind kind, struct bytes text, const char *at,
                   const char *reason)
{
    struct buf pointer = BUF_INIT(sizeof f->pointer - 1);
    for (bool inside = true; inside;) { /* a round goes one level down */
        struct span_member m;
        size_t index = 0;
        inside = false;
        for (struct span_walk w = span_walk(text); !inside && span_next(&w, &m); index++)
            inside = at >= m.around.at && at < m.around.at + m.around.len;
        inside = inside && pointer_add(&pointer, m.name, index - 1) && at > m.value.at &&
                 (span_type(m.value) == SPAN_OBJECT || span_type(m.value) == SPAN_ARRAY);
        if (inside) text = m.value;
    }
    json_fault_set(f, kind, buf_text(&pointer), reason);
    buf_done(&pointer);
    return false;
}

/* --- repeated members ---
 * json-c keeps the last of several members with one name, where the first one stood. So a text without repeats has as
 * many names as its tree has members; and within an object with one, the first name that is not the tree's next
 * member is the repeat. */

static size_t count_members(struct json_object *tree)
{
    size_t n = 0;
    if (json_object_is_type(tree, json_type_object)) {
        struct lh_entry *e;
        lh_foreach(json_object_get_object(tree), e) n += 1 + count_members(lh_entry_v(e));
    } else if (json_object_is_type(tree, json_type_array)) {
        size_t elements = json_object_array_length(tree);
        for (size_t i = 0; i < elements; i++) n += count_members(json_object_array_get_idx(tree, i));
    }
    return n;
}

static const char *repeat_in_object(struct bytes text, struct json_object *tree)
{
    struct buf name = BUF_INIT(SIZE_MAX / 4);
    struct lh_entry *e = lh_table_head(json_object_get_object(tree));
    const char *repeat = NULL;
    struct span_member m;
    for (struct span_walk w = span_walk(text); repeat == NULL && span_next(&w, &m);) {
        buf_reset(&name);
        span_decode(m.name, &name);
        if (e == NULL || !bytes_is(buf_bytes(&name), lh_entry_k(e)))
            repeat = m.name.at;
        else
            e = lh_entry_next(e);
    }
    buf_done(&name);
    return repeat;
}

/* The first repeated name, outer objects before inner ones; NULL: there is none. */
static const char *find_repeat(struct bytes text, struct json_object *tree)
{
    bool object = json_object_is_type(tree, json_type_object);
    if (!object && !json_object_is_type(tree, json_type_array)) return NULL;
    const char *repeat = object ? repeat_in_object(text, tree) : NULL;
    struct lh_entry *e = object ? lh_table_head(json_object_get_object(tree)) : NULL;
    struct span_walk w = span_walk(text);
    struct span_member m;
    for (size_t i = 0; repeat == NULL && span_next(&w, &m); i++) {
        repeat = find_repeat(m.value, object ? lh_entry_v(e) : json_object_array_get_idx(tree, i));
        if (object) e = lh_entry_next(e);
    }
    return repeat;
}

/* --- */

/* From 0.17 on json-c's strict mode also refuses integers over 64 bits, which are JSON all the same; whatever else it
 * is strict about, the span checker has refused before. */
#if JSON_C_VERSION_NUM < (17 << 8)
#define TOKENER_FLAGS (JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8)
#else
#define TOKENER_FLAGS JSON_TOKENER_VALIDATE_UTF8
#endif

/* NULL, with *at where json-c stopped, if json-c does not take the text for JSON. */
static struct json_object *parse(struct bytes text, int max_depth, size_t *at)
{
    struct json_tokener *tokener = mem_or_die(json_tokener_new_ex(max_depth + 1)); /* it counts a scalar as a level */
    json_tokener_set_flags(tokener, TOKENER_FLAGS);
    struct json_object *tree = json_tokener_parse_ex(tokener, text.at, (int)text.len);
    *at = json_tokener_get_parse_end(tokener);
    if (*at != text.len) {
        json_object_put(tree);
        tree = NULL;
    }
    json_tokener_free(tokener);
    return tree;
}

static bool malformed(struct json_fault *f, struct bytes text, size_t at)
{
    char reason[sizeof f->reason];
    snprintf(reason, sizeof reason, "not valid JSON at byte %zu%s", at, at == text.len ? ", where it ends" : "");
    return json_fault_set(f, JSON_MALFORMED, "", reason);
}

/* What one pass over the bytes can see: the grammar, the depth and each name by itself. Counts the names. */
static bool check_text(struct bytes text, int max_depth, size_t *names, struct json_fault *f)
{
    char reason[sizeof f->reason];
    size_t at;
    struct bytes name, rest = text;
    switch (text.len > INT_MAX ? SPAN_MALFORMED : span_check_object(text, max_depth, &at)) {
    case SPAN_OK:
        break;
    case SPAN_NOT_OBJECT:
        return json_fault_set(f, JSON_NOT_OBJECT, "", "must be an object");
    case SPAN_TOO_DEEP:
        snprintf(reason, sizeof reason, "nested deeper than %d levels", max_depth);
        return json_fault_at(f, JSON_TOO_DEEP, (struct bytes){ text.at, at + 1 }, text.at + at, reason);
    default:
        return malformed(f, text, at);
    }
    if (span_count_containers(text) > JSON_MOST_CONTAINERS)
        return json_fault_set(f, JSON_TOO_DEEP, "", "too many objects and arrays");
    for (*names = 0; span_next_name(&rest, &name); ++*names)
        if (!span_is_plain_text(name))
            return json_fault_at(f, JSON_MALFORMED, text, name.at,
                                 "the member's name holds U+0000 or half a surrogate pair");
    return true;
}

bool json_check(struct bytes text, int max_depth, struct json_fault *f)
{
    assert(max_depth > 0 && max_depth <= JSON_MOST_LEVELS);
    size_t names = 0, at;
    if (!check_text(text, max_depth, &names, f)) return false;
    struct json_object *tree = parse(text, max_depth, &at);
    if (tree == NULL) return malformed(f, text, at);
    bool ok = count_members(tree) == names;
    if (!ok) json_fault_at(f, JSON_MALFORMED, text, find_repeat(text, tree), "the member stands twice in its object");
    json_object_put(tree);
    return ok;
}

/* --- equality --- */

static bool equal_objects(struct bytes a, struct bytes b)
{
    struct span_members in_a = span_members_by_name(a), in_b = span_members_by_name(b);
    bool equal = in_a.count == in_b.count;
    for (size_t i = 0; equal && i < in_a.count; i++)
        equal = span_same_name(in_a.at[i].name, in_b.at[i].name) && json_equal(in_a.at[i].value, in_b.at[i].value);
    free(in_a.at);
    free(in_b.at);
    return equal;
}

static bool equal_arrays(struct bytes a, struct bytes b)
{
    struct span_walk in_a = span_walk(a), in_b = span_walk(b);
    struct span_member m, n;
    for (;;) {
        bool more_a = span_next(&in_a, &m), more_b = span_next(&in_b, &n);
        if (!more_a || !more_b) return more_a == more_b;
        if (!json_equal(m.value, n.value)) return false;
    }
}

/* Integers are compared as texts: beyond 2^53 many share one double. */
static bool equal_numbers(struct bytes a, struct bytes b)
{
    struct buf text = BUF_INIT(SIZE_MAX / 4);
    buf_add(&text, a);
    buf_append(&text, "\0", 1);
    buf_add(&text, b);
    const char *text_a = buf_text(&text), *text_b = text_a + a.len + 1;
    bool integers = strpbrk(text_a, ".eE") == NULL && strpbrk(text_b, ".eE") == NULL;
    bool equal = !integers && strtod(text_a, NULL) == strtod(text_b, NULL);
    buf_done(&text);
    return equal;
}

bool json_equal(struct bytes a, struct bytes b)
{
    enum span_type type = span_type(a);
    if (bytes_equal(a, b)) return true;
    if (type != span_type(b)) return false;
    switch (type) {
    case SPAN_OBJECT:
        return equal_objects(a, b);
    case SPAN_ARRAY:
        return equal_arrays(a, b);
    case SPAN_STRING:
        return span_same_name(a, b);
    case SPAN_NUMBER:
        return equal_numbers(a, b);
    default:
        return false; /* words are equal only as bytes */
    }
}

/* --- times --- */

/* Reads `pattern` off the front of *p: its letters are fields of decimal digits, in order; the rest stands for
 * itself. */
static bool read_fields(const char **p, const char *pattern, int *fields)
{
    for (const char *c = pattern; *c != '\0'; c++, ++*p) {
        bool field = *c >= 'a' && *c <= 'z';
        if (field ? **p < '0' || **p > '9' : **p != *c) return false;
        if (field) fields[*c - 'a'] = fields[*c - 'a'] * 10 + (**p - '0');
    }
    return true;
}

/* "Z" or "+01:30", as milliseconds east of Greenwich. */
static bool read_zone(const char **p, int64_t *east_ms)
{
    int field[2] = { 0 }, sign = **p == '-' ? -1 : 1;
    *east_ms = 0;
    if (*(*p)++ == 'Z') return true;
    if ((*p)[-1] != '+' && (*p)[-1] != '-') return false;
    if (!read_fields(p, "aa:bb", field) || field[0] > 23 || field[1] > 59) return false;
    *east_ms = sign * (field[0] * 60 + field[1]) * INT64_C(60000);
    return true;
}

static bool read_iso_time(const char *p, int64_t *ms)
{
    enum { YEAR, MONTH, DAY, HOUR, MINUTE, SECOND, FIELDS };
    int field[FIELDS] = { 0 };
    int64_t fraction_ms = 0, east_ms;
    if (!read_fields(&p, "aaaa-bb-ccTdd:ee:ff", field)) return false;
    if (p[0] == '.') {
        if (p[1] < '0' || p[1] > '9') return false;
        for (int worth_ms = 100; *++p >= '0' && *p <= '9'; worth_ms /= 10) fraction_ms += worth_ms * (*p - '0');
    }
    if (!read_zone(&p, &east_ms) || *p != '\0') return false;
    if (field[HOUR] > 23 || field[MINUTE] > 59 || field[SECOND] > 59) return false;
    struct tm t = { .tm_year = field[YEAR] - 1900,
                    .tm_mon = field[MONTH] - 1,
                    .tm_mday = field[DAY],
                    .tm_hour = field[HOUR],
                    .tm_min = field[MINUTE],
                    .tm_sec = field[SECOND] };
    time_t s = timegm(&t); /* which turns 31 April into 1 May: then the month is another one now */
    if (t.tm_mon != field[MONTH] - 1) return false;
    if (ms != NULL) *ms = (int64_t)s * 1000 + fraction_ms - east_ms;
    return true;
}

bool json_iso_time(struct bytes raw, int64_t *ms)
{
    if (span_type(raw) != SPAN_STRING || raw.len < 2) return false;
    struct buf text = BUF_INIT(SIZE_MAX / 4);
    span_decode((struct bytes){ raw.at + 1, raw.len - 2 }, &text);
    bool ok = text.len == strlen(buf_text(&text)) && read_iso_time(buf_text(&text), ms);
    buf_done(&text);
    return ok;
}
