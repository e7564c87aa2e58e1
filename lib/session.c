#include "session.h"

#include "clock.h"
#include "ids.h"
#include "mem.h"
#include "span.h"

#define NO_LIMIT (SIZE_MAX / 4) /* for scratch texts, whose parts are bounded already */

/* --- what known members must look like --- */

enum want { OBJECT, STRING, STRINGS, BOOLEAN, INTERVAL, TIME, THEME };

static const char *const want_reasons[] = {
    [OBJECT] = "must be an object",
    [STRING] = "must be a string",
    [STRINGS] = "must be an array of strings",
    [BOOLEAN] = "must be true or false",
    [INTERVAL] = "must be a number that is not negative",
    [TIME] = "must be an ISO 8601 time with date, time and zone",
    [THEME] = "must be light, dark or system",
};

/* An outline: the rows that follow an object's with a higher level are what it may hold. The name * is any. */
static const struct rule {
    int level;
    const char *name;
    enum want want;
    bool or_null;
} rules[] = {
    /* clang-format off */
    { 0, "", OBJECT, false },
    { 1,   "preferences", OBJECT, false },
    { 2,     "theme", THEME, false },
    { 2,     "timezone", STRING, false },
    { 2,     "language", STRING, false },
    { 2,     "refreshInterval", INTERVAL, false },
    { 1,   "uiState", OBJECT, false },
    { 2,     "expandedWidgets", STRINGS, false },
    { 2,     "lastVisitedTools", STRINGS, false },
    { 2,     "dashboardLayout", STRING, false },
    { 2,     "filterSettings", OBJECT, false },
    { 1,   "toolConfigs", OBJECT, false },
    { 2,     "*", OBJECT, false },
    { 3,       "enabled", BOOLEAN, false },
    { 3,       "settings", OBJECT, false },
    { 3,       "lastUsed", TIME, false },
    { 1,   "authenticatedTools", OBJECT, false },
    { 2,     "*", OBJECT, false },
    { 3,       "connected", BOOLEAN, false },
    { 3,       "connectedAt", TIME, false },
    { 3,       "lastUsed", TIME, false },
    { 1,   "lastActivity", TIME, false },
    { 1,   "metadata", OBJECT, false },
    { 2,     "ipAddress", STRING, false },
    { 2,     "userAgent", STRING, false },
    { 2,     "created", TIME, false },
    { 2,     "updated", TIME, false },
    { 1,   "userId", STRING, true },
    { 1,   "user", OBJECT, true },
    { 2,     "id", STRING, false },
    { 2,     "provider", STRING, false },
    { 2,     "email", STRING, true },
    { 2,     "username", STRING, true },
    { 2,     "displayName", STRING, true },
    { 2,     "avatarUrl", STRING, true },
    /* clang-format on */
    { 0, NULL, OBJECT, false },
};

/* The rule for a member of the object whose own rule is `parent`; NULL: we know nothing of it. */
static const struct rule *rule_for(const struct rule *parent, struct bytes raw_name)
{
    for (const struct rule *r = parent + 1; r->level > parent->level; r++) {
        if (r->level != parent->level + 1) continue;
        if (r->name[0] == '*' || span_same_name(raw_name, bytes_of(r->name))) return r;
    }
    return NULL;
}

static bool is_strings(struct bytes array)
{
    struct span_member m;
    if (span_type(array) != SPAN_ARRAY) return false;
    for (struct span_walk w = span_walk(array); span_next(&w, &m);)
        if (span_type(m.value) != SPAN_STRING) return false;
    return true;
}

static bool is_theme(struct bytes value)
{
    return span_same_name(value, BYTES_LITERAL("\"system\"")) || span_same_name(value, BYTES_LITERAL("\"light\"")) ||
           span_same_name(value, BYTES_LITERAL("\"dark\""));
}

static bool fits(struct bytes value, enum want want)
{
    enum span_type type = span_type(value);
    switch (want) {
    case OBJECT:
        return type == SPAN_OBJECT;
    case STRING:
        return type == SPAN_STRING;
    case STRINGS:
        return is_strings(value);
    case BOOLEAN:
        return type == SPAN_BOOL;
    case INTERVAL:
        return type == SPAN_NUMBER && value.at[0] != '-';
    case TIME:
        return json_iso_time(value, NULL);
    case THEME:
        return is_theme(value);
    }
    return false;
}

/* Goes no deeper than the outline. */
static bool check_members(struct bytes doc, struct bytes object, const struct rule *rule, bool patch,
                          struct json_fault *f)
{
    struct span_member m;
    for (struct span_walk w = span_walk(object); span_next(&w, &m);) {
        const struct rule *r = rule_for(rule, m.name);
        if (r == NULL || (span_type(m.value) == SPAN_NULL && (patch || r->or_null))) continue;
        if (!fits(m.value, r->want)) return json_fault_at(f, JSON_WRONG_TYPE, doc, m.value.at, want_reasons[r->want]);
        if (r->want == OBJECT && !check_members(doc, m.value, r, patch, f)) return false;
    }
    return true;
}

bool session_check_members(struct bytes doc, bool patch, struct json_fault *f)
{
    if (span_type(doc) != SPAN_OBJECT) return json_fault_set(f, JSON_NOT_OBJECT, "", "must be an object");
    return check_members(doc, doc, &rules[0], patch, f);
}

bool session_check(struct bytes doc, bool patch, struct json_fault *f)
{
    return json_check(doc, SESSION_DEPTH, f) && session_check_members(doc, patch, f);
}

/* --- edits ---
 * An edit is a list of changes to the members of one object. The object's text is copied up to each member that a
 * change names, the new value takes the old one's place, and the copy goes on behind it. */

enum how {
    PUT,   /* the value takes the member's place */
    PATCH, /* RFC 7396: null removes, an object goes into the member's, anything else is put */
    REMOVE,
    METADATA /* the server's own view of what becomes of metadata */
};

struct change {
    struct bytes name; /* raw */
    enum how how;
    struct bytes value;
    const char *hit; /* the name of the last member of the object that this applies to; NULL: there is none */
};

struct changes {
    struct change *at; /* in the order in which new members are appended */
    struct change **by_name;
    size_t count, cap;
};

/* What is the same for all levels of one edit. */
struct editor {
    const struct session_edit *edit;
    struct bytes now; /* as a raw value */
};

static void splice(const struct editor *ed, struct bytes object, struct changes *list, struct buf *out);

static void changes_add(struct changes *list, struct bytes name, enum how how, struct bytes value)
{
    if (list->count == list->cap) {
        list->cap = list->cap ? list->cap * 2 : 8;
        list->at = mem_resize(list->at, list->cap * sizeof *list->at);
    }
    list->at[list->count++] = (struct change){ name, how, value, NULL };
}

static int compare_changes(const void *a, const void *b)
{
    return span_compare_names((*(struct change *const *)a)->name, (*(struct change *const *)b)->name);
}

/* A hostile change may hold thousands of names: sorted, so that finding each member's costs no walk of the list. */
static void changes_sort(struct changes *list)
{
    list->by_name = mem_alloc(list->count * sizeof(struct change *));
    for (size_t i = 0; i < list->count; i++) list->by_name[i] = &list->at[i];
    qsort(list->by_name, list->count, sizeof(struct change *), compare_changes);
}

static struct change *changes_find(const struct changes *list, struct bytes raw_name)
{
    struct change key = { .name = raw_name }, *wanted = &key;
    struct change **found = bsearch(&wanted, list->by_name, list->count, sizeof(struct change *), compare_changes);
    return found ? *found : NULL;
}

static void changes_done(struct changes *list)
{
    free(list->by_name);
    free(list->at);
}

static bool removes(const struct change *c)
{
    return c->how == REMOVE || (c->how == PATCH && span_type(c->value) == SPAN_NULL);
}

static bool is_any_of(struct bytes raw_name, const char *const *names)
{
    for (; *names != NULL; names++)
        if (span_same_name(raw_name, bytes_of(*names))) return true;
    return false;
}

/* Members that only the server writes; those of the origin only if the edit says so. */
static const char *const top_names[] = { "lastActivity", "metadata", NULL };
static const char *const origin_names[] = { "ipAddress", "userAgent", "created", NULL };

/* What becomes of metadata. `other` is the client's part of it; for SESSION_REPLACE, where the client's is what is
 * edited, it is the stored one. */
static void metadata_changes(const struct editor *ed, struct bytes other, struct changes *list)
{
    const struct session_edit *edit = ed->edit;
    struct span_member m;
    if (span_type(other) != SPAN_OBJECT) other = BYTES_LITERAL("{}");
    if (edit->kind != SESSION_REPLACE) {
        for (struct span_walk w = span_walk(other); span_next(&w, &m);) {
            if (span_same_name(m.name, BYTES_LITERAL("updated"))) continue;
            if (edit->keep_origin && is_any_of(m.name, origin_names)) continue;
            changes_add(list, m.name, edit->kind == SESSION_MERGE ? PUT : PATCH, m.value);
        }
    } else if (edit->keep_origin) {
        for (const char *const *name = origin_names; *name != NULL; name++) {
            if (span_find(other, *name, &m))
                changes_add(list, bytes_of(*name), PUT, m.value);
            else
                changes_add(list, bytes_of(*name), REMOVE, (struct bytes){ NULL, 0 });
        }
    }
    changes_add(list, BYTES_LITERAL("updated"), PUT, ed->now);
}

/* Appends what the member with the value `old` (no bytes: there is none) becomes. */
static void add_value(const struct editor *ed, const struct change *c, struct bytes old, struct buf *out)
{
    struct changes inner = { 0 };
    struct span_member m;
    if (c->how == PUT || (c->how == PATCH && span_type(c->value) != SPAN_OBJECT)) {
        buf_add(out, c->value);
        return;
    }
    if (c->how == METADATA)
        metadata_changes(ed, c->value, &inner);
    else
        for (struct span_walk w = span_walk(c->value); span_next(&w, &m);) changes_add(&inner, m.name, PATCH, m.value);
    splice(ed, span_type(old) == SPAN_OBJECT ? old : BYTES_LITERAL("{}"), &inner, out);
}

/* Appends the object with the changes applied, and frees the list. */
static void splice(const struct editor *ed, struct bytes object, struct changes *list, struct buf *out)
{
    struct span_member m;
    struct change *c;
    changes_sort(list);
    for (struct span_walk w = span_walk(object); span_next(&w, &m);)
        if ((c = changes_find(list, m.name)) != NULL) c->hit = m.name.at;

    const char *comma = "{";
    for (struct span_walk w = span_walk(object); span_next(&w, &m);) {
        const char *after = m.value.at + m.value.len;
        c = changes_find(list, m.name);
        if (c != NULL && removes(c)) continue;
        buf_puts(out, comma);
        if (c == NULL || c->hit != m.name.at) {
            buf_add(out, m.around);
        } else {
            buf_append(out, m.around.at, (size_t)(m.value.at - m.around.at));
            add_value(ed, c, m.value, out);
            buf_append(out, after, (size_t)(m.around.at + m.around.len - after));
        }
        comma = ",";
    }
    for (size_t i = 0; i < list->count; i++) {
        c = &list->at[i];
        if (c->hit != NULL || removes(c)) continue;
        buf_puts(out, comma);
        buf_puts(out, "\"");
        buf_add(out, c->name);
        buf_puts(out, "\":");
        add_value(ed, c, (struct bytes){ NULL, 0 }, out);
        comma = ",";
    }
    buf_puts(out, *comma == '{' ? "{}" : "}");
    changes_done(list);
}

/* The client's changes, but for what is the server's. */
static void merge_changes(const struct session_edit *edit, struct changes *list)
{
    struct span_member m;
    for (struct span_walk w = span_walk(edit->change); span_next(&w, &m);)
        if (!is_any_of(m.name, top_names))
            changes_add(list, m.name, edit->kind == SESSION_MERGE ? PUT : PATCH, m.value);
}

/* Here the client's document is what is edited: the protected members that it leaves out go into it. */
static void replace_changes(const struct session_edit *edit, struct bytes doc, struct changes *list)
{
    static const char *const none[] = { NULL };
    struct span_member m;
    for (const char *const *name = edit->protected ? edit->protected : none; *name != NULL; name++) {
        if (is_any_of(bytes_of(*name), top_names)) continue;
        if (!span_find(edit->change, *name, &m) && span_find(doc, *name, &m)) changes_add(list, m.name, PUT, m.value);
    }
}

/* Was a protected member that the client named changed? Compares what came out with what was stored, so that it holds
 * for every kind of edit. */
static bool keeps_protected(const struct session_edit *edit, struct bytes doc, struct bytes edited,
                            struct json_fault *f)
{
    struct span_member named, was, is;
    if (edit->trusted || edit->protected == NULL) return true;
    for (const char *const *name = edit->protected; *name != NULL; name++) {
        if (!span_find(edit->change, *name, &named)) continue;
        bool there = span_find(doc, *name, &was);
        if (there != span_find(edited, *name, &is) || (there && !json_equal(was.value, is.value)))
            return json_fault_at(f, JSON_PROTECTED, edit->change, named.name.at,
                                 "only a service may change this member");
    }
    return true;
}

bool session_apply(const struct session_edit *edit, struct bytes doc, struct buf *out, struct json_fault *f)
{
    char now[CLOCK_ISO_BYTES], now_raw[CLOCK_ISO_BYTES + 2];
    clock_iso(edit->now_ms, now);
    snprintf(now_raw, sizeof now_raw, "\"%s\"", now);
    const struct editor ed = { edit, bytes_of(now_raw) };
    const bool replace = edit->kind == SESSION_REPLACE;
    const size_t from = out->len;
    struct changes list = { 0 };
    struct span_member metadata = { 0 };

    if (replace)
        replace_changes(edit, doc, &list);
    else
        merge_changes(edit, &list);
    changes_add(&list, BYTES_LITERAL("lastActivity"), PUT, ed.now);
    span_find(replace ? doc : edit->change, "metadata", &metadata);
    changes_add(&list, BYTES_LITERAL("metadata"), METADATA, metadata.value);
    splice(&ed, replace ? edit->change : doc, &list, out);
    return buf_overflowed(out) || keeps_protected(edit, doc, (struct bytes){ out->data + from, out->len - from }, f);
}

/* --- a new session --- */

static void add_defaults(const struct session_origin *from, int64_t now_ms, struct buf *out)
{
    char now[CLOCK_ISO_BYTES];
    clock_iso(now_ms, now);
    buf_puts(out, "{\"preferences\":{\"theme\":\"system\",\"timezone\":\"UTC\",\"language\":\"en\","
                  "\"refreshInterval\":300000},"
                  "\"uiState\":{\"expandedWidgets\":[],\"lastVisitedTools\":[],\"dashboardLayout\":\"default\","
                  "\"filterSettings\":{}},\"toolConfigs\":{},\"authenticatedTools\":{},");
    buf_printf(out, "\"lastActivity\":\"%s\",\"metadata\":{\"ipAddress\":", now);
    buf_json_string(out, bytes_of(from->ip_address));
    buf_puts(out, ",\"userAgent\":");
    buf_json_string(out, bytes_of(from->user_agent));
    buf_printf(out, ",\"created\":\"%s\",\"updated\":\"%s\"}}", now, now);
}

bool session_new(const struct session_edit *given, const struct session_origin *from, struct buf *out,
                 struct json_fault *f)
{
    struct session_edit edit = *given;
    struct buf defaults = BUF_INIT(NO_LIMIT);
    bool ok = true;
    edit.kind = SESSION_MERGE;
    if (given->change.len == 0) {
        add_defaults(from, given->now_ms, out);
    } else {
        add_defaults(from, given->now_ms, &defaults);
        ok = session_apply(&edit, buf_bytes(&defaults), out, f);
    }
    buf_done(&defaults);
    return ok;
}

/* --- names for a stored document --- */

static void put_tag(char *out, const char *head, uint64_t hash)
{
    size_t n = strlen(head);
    memcpy(out, head, n);
    for (int shift = 60; shift >= 0; shift -= 4) out[n++] = "0123456789abcdef"[hash >> shift & 15];
    out[n++] = '"';
    out[n] = '\0';
}

/* Of a repeated member the last one counts, also where it is another type. */
static void metadata_facts(struct bytes metadata, struct session_facts *facts)
{
    struct span_member m;
    facts->created = facts->updated = facts->ip_address = facts->user_agent = (struct bytes){ NULL, 0 };
    if (span_type(metadata) != SPAN_OBJECT) return;
    for (struct span_walk w = span_walk(metadata); span_next(&w, &m);) {
        if (span_same_name(m.name, BYTES_LITERAL("updated")))
            facts->updated = m.value;
        else if (span_same_name(m.name, BYTES_LITERAL("created")))
            facts->created = m.value;
        else if (span_same_name(m.name, BYTES_LITERAL("ipAddress")))
            facts->ip_address = m.value;
        else if (span_same_name(m.name, BYTES_LITERAL("userAgent")))
            facts->user_agent = m.value;
    }
}

bool session_facts(struct bytes doc, struct session_facts *facts)
{
    size_t at;
    struct span_member m;
    *facts = (struct session_facts){ .etag = "" };
    if (span_check_object(doc, 0, &at) != SPAN_OK) return false;
    for (struct span_walk w = span_walk(doc); span_next(&w, &m);) {
        if (span_same_name(m.name, BYTES_LITERAL("lastActivity")))
            facts->last_activity = m.value;
        else if (span_same_name(m.name, BYTES_LITERAL("userId")))
            facts->user_id = m.value;
        else if (span_same_name(m.name, BYTES_LITERAL("metadata")))
            metadata_facts(m.value, facts);
    }

    /* The two values that come and go, in the order in which they stand. */
    struct bytes gap[2] = { facts->last_activity, facts->updated };
    if (gap[0].at > gap[1].at) {
        struct bytes first = gap[1];
        gap[1] = gap[0];
        gap[0] = first;
    }

    const char *from = doc.at;
    uint64_t rest = 0;
    for (int i = 0; i < 2; i++) {
        if (gap[i].at == NULL) continue;
        rest = ids_hash((struct bytes){ from, (size_t)(gap[i].at - from) }, rest);
        from = gap[i].at + gap[i].len;
    }
    rest = ids_hash((struct bytes){ from, (size_t)(doc.at + doc.len - from) }, rest);
    put_tag(facts->etag, "\"", ids_hash(doc, 0));
    put_tag(facts->version, "\"v", rest);
    return true;
}

void session_user(struct bytes user_id, char *out, size_t out_bytes)
{
    struct buf name = BUF_INIT(out_bytes - 1);
    out[0] = '\0';
    if (span_type(user_id) != SPAN_STRING) return;
    struct bytes raw = { user_id.at + 1, user_id.len - 2 };
    if (span_is_plain_text(raw)) span_decode(raw, &name);
    if (!buf_overflowed(&name)) memcpy(out, buf_text(&name), name.len + 1);
    buf_done(&name);
}
