#include "span.h"

#include "mem.h"

#include <endian.h>
#include <stdlib.h>
#include <string.h>

/* What a byte can begin outside of a string. */
enum lexeme { WRONG, BLANK, QUOTE, OPEN, CLOSE, NUMBER, WORD };

static const unsigned char lexemes[256] = {
    [' '] = BLANK,  ['\t'] = BLANK, ['\n'] = BLANK, ['\r'] = BLANK, ['"'] = QUOTE,  ['{'] = OPEN,
    ['['] = OPEN,   ['}'] = CLOSE,  [']'] = CLOSE,  ['-'] = NUMBER, ['0'] = NUMBER, ['1'] = NUMBER,
    ['2'] = NUMBER, ['3'] = NUMBER, ['4'] = NUMBER, ['5'] = NUMBER, ['6'] = NUMBER, ['7'] = NUMBER,
    ['8'] = NUMBER, ['9'] = NUMBER, ['t'] = WORD,   ['f'] = WORD,   ['n'] = WORD,
};

static enum lexeme lexeme_at(const char *p)
{
    return lexemes[(unsigned char)*p];
}

static const char *skip_blanks(const char *p, const char *end)
{
    while (p < end && lexeme_at(p) == BLANK) p++;
    return p;
}

/* The byte at p, or NUL, which no JSON text holds outside of a mistake, at the end. */
static char peek(const char *p, const char *end)
{
    return p < end ? *p : '\0';
}

/* The first byte at or after p that means something in a string: a quote, a backslash, a control character or the
 * start of a sequence of UTF-8. Eight bytes at a time: a bit trick marks each byte of a word that is special. A mark
 * can be false only above a true one, so the lowest is always right. */
static const char *skip_plain(const char *p, const char *end)
{
    const uint64_t each = 0x0101010101010101, high = 0x8080808080808080;
    for (; end - p >= 8; p += 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        word = le64toh(word);
        uint64_t quote = word ^ (each * '"'), backslash = word ^ (each * '\\');
        uint64_t special =
            (((word - each * 0x20) & ~word) | ((quote - each) & ~quote) | ((backslash - each) & ~backslash) | word) &
            high;
        if (special != 0) return p + __builtin_ctzll(special) / 8;
    }
    while (p < end && (unsigned char)*p >= 0x20 && (unsigned char)*p < 0x80 && *p != '"' && *p != '\\') p++;
    return p;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9') return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The value of "\uXXXX" at p, or -1. */
static int32_t unicode_escape(const char *p, const char *end)
{
    if (end - p < 6 || p[0] != '\\' || p[1] != 'u') return -1;
    int32_t value = 0;
    for (int i = 2; i < 6; i++) {
        int digit = hex_digit(p[i]);
        if (digit < 0) return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* The checkers below return the end of what they were asked to check, or NULL with *bad at the offending byte. */

static const char *check_string(const char *p, const char *end, const char **bad)
{
    for (;;) {
        p = skip_plain(p, end);
        *bad = p;
        if (p == end) return NULL;
        size_t n = 0;
        if (*p == '"') return p + 1;
        if (*p != '\\')
            n = (unsigned char)*p < 0x20 ? 0 : utf8_sequence(p, (size_t)(end - p));
        else if (unicode_escape(p, end) >= 0)
            n = 6;
        else if (end - p >= 2 && p[1] != '\0' && strchr("\"\\/bfnrt", p[1]) != NULL)
            n = 2;
        if (n == 0) return NULL;
        p += n;
    }
}

static const char *skip_digits(const char *p, const char *end)
{
    while (p < end && *p >= '0' && *p <= '9') p++;
    return p;
}

static const char *check_number(const char *p, const char *end, const char **bad)
{
    const char *from = p += *p == '-';
    p = peek(p, end) == '0' ? p + 1 : skip_digits(p, end);
    if (p == from) goto wrong;
    if (peek(p, end) == '.') {
        from = ++p;
        p = skip_digits(p, end);
        if (p == from) goto wrong;
    }
    if (peek(p, end) == 'e' || peek(p, end) == 'E') {
        p++;
        from = p += peek(p, end) == '+' || peek(p, end) == '-';
        p = skip_digits(p, end);
        if (p == from) goto wrong;
    }
    return p;
wrong:
    *bad = p;
    return NULL;
}

static const char *check_word(const char *p, const char *end, const char **bad)
{
    struct bytes word = *p == 't' ? BYTES_LITERAL("true") : *p == 'f' ? BYTES_LITERAL("false") : BYTES_LITERAL("null");
    *bad = p;
    return (size_t)(end - p) >= word.len && memcmp(p, word.at, word.len) == 0 ? p + word.len : NULL;
}

/* A member's name and its colon. */
static const char *check_name(const char *p, const char *end, const char **bad)
{
    *bad = p = skip_blanks(p, end);
    if (peek(p, end) != '"') return NULL;
    p = check_string(p + 1, end, bad);
    if (p == NULL) return NULL;
    *bad = p = skip_blanks(p, end);
    return peek(p, end) == ':' ? p + 1 : NULL;
}

/* Which brackets are open: one bit a level, set for an object, so that depth costs neither stack nor heap. */
struct levels {
    int depth;
    char closer; /* what ends the innermost one */
    uint64_t is_object[(SPAN_MOST_LEVELS + 64) / 64];
};

static void level_enter(struct levels *l, bool object)
{
    uint64_t bit = UINT64_C(1) << (++l->depth % 64), *word = &l->is_object[l->depth / 64];
    *word = object ? *word | bit : *word & ~bit;
    l->closer = object ? '}' : ']';
}

static void level_leave(struct levels *l)
{
    l->depth--;
    l->closer = l->is_object[l->depth / 64] >> (l->depth % 64) & 1 ? '}' : ']';
}

enum span_check span_check_object(struct bytes text, int max_depth, size_t *at)
{
    if (text.len == 0) text = BYTES_LITERAL(""); /* an empty buf has no address */
    const char *end = text.at + text.len, *start = skip_blanks(text.at, end), *p = start, *bad = start;
    const int most = max_depth > 0 && max_depth < SPAN_MOST_LEVELS ? max_depth : SPAN_MOST_LEVELS;
    enum span_check found = SPAN_MALFORMED;
    struct levels open = { 0 };
    for (;;) { /* a round is one value with the name before it and the brackets that close behind it */
        if (open.closer == '}' && (p = check_name(p, end, &bad)) == NULL) goto out;
        bad = p = skip_blanks(p, end);
        if (p == end) goto out;
        switch (lexeme_at(p)) {
        case QUOTE:
            p = check_string(p + 1, end, &bad);
            break;
        case NUMBER:
            p = check_number(p, end, &bad);
            break;
        case WORD:
            p = check_word(p, end, &bad);
            break;
        case OPEN:
            found = open.depth == most ? SPAN_TOO_DEEP : SPAN_MALFORMED;
            if (found == SPAN_TOO_DEEP) goto out;
            level_enter(&open, *p == '{');
            p = skip_blanks(p + 1, end);
            if (peek(p, end) != open.closer) continue;
            break;
        default:
            goto out;
        }
        if (p == NULL) goto out;
        while (open.depth > 0 && (p = skip_blanks(p, end)) < end && *p == open.closer) {
            level_leave(&open);
            p++;
        }
        bad = p;
        if (open.depth == 0) break;
        if (peek(p, end) != ',') goto out;
        p++;
    }
    bad = skip_blanks(p, end);
    if (bad < end) goto out; /* something stands behind the value */
    bad = start;
    found = *start == '{' ? SPAN_OK : SPAN_NOT_OBJECT;
out:
    *at = (size_t)(bad - text.at);
    return found;
}

/* From here on texts have passed the check. Behind the opening quote of a string: where it ends. */
static const char *string_end(const char *p, const char *end)
{
    while ((p = skip_plain(p, end)) < end) {
        if (*p == '"') return p + 1;
        p += *p == '\\' && end - p >= 2 ? 2 : 1;
    }
    return end;
}

static const char *value_end(const char *p, const char *end)
{
    int depth = 0;
    while (p < end) {
        switch (lexeme_at(p)) {
        case QUOTE:
            p = string_end(p + 1, end);
            break;
        case OPEN:
            depth++;
            p++;
            continue;
        case CLOSE:
            depth--;
            p++;
            break;
        default: /* a number or a word, a comma or a colon; it ends where one of the others begins */
            if (depth == 0)
                while (p < end && *p != ',' && lexeme_at(p) != CLOSE && lexeme_at(p) != BLANK) p++;
            else
                p++;
        }
        if (depth <= 0) break;
    }
    return p;
}

struct span_walk span_walk(struct bytes container)
{
    if (container.len == 0) container = BYTES_LITERAL("");
    const char *end = container.at + container.len, *p = skip_blanks(container.at, end);
    return (struct span_walk){ p < end ? p + 1 : end, end, peek(p, end) == '{' };
}

bool span_next(struct span_walk *w, struct span_member *m)
{
    const char *from = w->at, *p = skip_blanks(from, w->end);
    if (p == w->end || lexeme_at(p) == CLOSE) return false;
    *m = (struct span_member){ .name = { NULL, 0 } };
    if (w->named) {
        const char *name_end = string_end(p + 1, w->end);
        m->name = (struct bytes){ p + 1, name_end > p + 1 ? (size_t)(name_end - p - 2) : 0 };
        p = skip_blanks(name_end, w->end);
        if (p < w->end) p = skip_blanks(p + 1, w->end); /* past the colon */
    }
    const char *after = value_end(p, w->end);
    m->value = (struct bytes){ p, (size_t)(after - p) };
    p = skip_blanks(after, w->end);
    m->around = (struct bytes){ from, (size_t)(p - from) };
    w->at = p + (peek(p, w->end) == ',');
    return true;
}

bool span_next_name(struct bytes *rest, struct bytes *name)
{
    const char *end = rest->at + rest->len, *p = rest->at;
    while (p < end && (p = memchr(p, '"', (size_t)(end - p))) != NULL) {
        const char *from = ++p;
        p = string_end(p, end);
        if (peek(skip_blanks(p, end), end) != ':') continue; /* a value */
        *name = (struct bytes){ from, (size_t)(p - from) - 1 };
        *rest = (struct bytes){ p, (size_t)(end - p) };
        return true;
    }
    return false;
}

size_t span_count_containers(struct bytes text)
{
    size_t n = 0;
    for (const char *p = text.at, *end = p + text.len; p < end;) {
        enum lexeme lexeme = lexeme_at(p++);
        if (lexeme == QUOTE) p = string_end(p, end);
        n += lexeme == OPEN;
    }
    return n;
}

enum span_type span_type(struct bytes value)
{
    if (value.len == 0) return SPAN_NULL;
    const char *end = value.at + value.len;
    switch (peek(skip_blanks(value.at, end), end)) {
    case '{':
        return SPAN_OBJECT;
    case '[':
        return SPAN_ARRAY;
    case '"':
        return SPAN_STRING;
    case 't':
    case 'f':
        return SPAN_BOOL;
    case 'n':
        return SPAN_NULL;
    default:
        return SPAN_NUMBER;
    }
}

const char *span_type_name(enum span_type type)
{
    static const char *const names[] = {
        [SPAN_NULL] = "null",       [SPAN_BOOL] = "a boolean", [SPAN_NUMBER] = "a number",
        [SPAN_STRING] = "a string", [SPAN_ARRAY] = "an array", [SPAN_OBJECT] = "an object",
    };
    return names[type];
}

bool span_find(struct bytes object, const char *name, struct span_member *m)
{
    struct bytes wanted = bytes_of(name);
    struct span_member candidate;
    bool found = false;
    for (struct span_walk w = span_walk(object); span_next(&w, &candidate);) {
        if (!span_same_name(candidate.name, wanted)) continue;
        *m = candidate;
        found = true;
    }
    return found;
}

/* The code point that the text at *p begins with, escaped or not; *p moves past it. */
static uint32_t next_point(const char **p, const char *end)
{
    const unsigned char *u = (const unsigned char *)*p;
    if (u[0] >= 0x80) {
        size_t n = utf8_sequence(*p, (size_t)(end - *p));
        uint32_t point = u[0] & (0x7fu >> n);
        for (size_t i = 1; i < n; i++) point = point << 6 | (u[i] & 0x3f);
        *p += n > 0 ? n : 1;
        return n > 0 ? point : 0xfffd;
    }
    if (u[0] != '\\' || end - *p < 2) {
        *p += 1;
        return u[0];
    }
    int32_t unit = unicode_escape(*p, end);
    if (unit < 0) {
        static const char escapes[] = "b\bf\fn\nr\rt\t"; /* a letter and what it stands for; others are themselves */
        const char *pair = strchr(escapes, (char)u[1]);
        *p += 2;
        return pair != NULL && u[1] >= 'a' ? (uint32_t)pair[1] : u[1];
    }
    *p += 6;
    int32_t low = unit >> 10 == 0xd800 >> 10 ? unicode_escape(*p, end) : -1;
    if (low >> 10 != 0xdc00 >> 10) return (uint32_t)unit;
    *p += 6;
    return 0x10000 + ((uint32_t)(unit & 0x3ff) << 10 | (uint32_t)(low & 0x3ff));
}

static bool has_escape(struct bytes raw)
{
    return raw.len > 0 && memchr(raw.at, '\\', raw.len) != NULL;
}

int span_compare_names(struct bytes raw_a, struct bytes raw_b)
{
    const char *a = raw_a.at, *a_end = a + raw_a.len, *b = raw_b.at, *b_end = b + raw_b.len;
    while (a < a_end && b < b_end) {
        uint32_t point_a = next_point(&a, a_end), point_b = next_point(&b, b_end);
        if (point_a != point_b) return point_a < point_b ? -1 : 1;
    }
    return (a < a_end) - (b < b_end);
}

bool span_same_name(struct bytes raw_a, struct bytes raw_b)
{
    if (bytes_equal(raw_a, raw_b)) return true; /* equal escapes mean the same */
    return (has_escape(raw_a) || has_escape(raw_b)) && span_compare_names(raw_a, raw_b) == 0;
}

/* By name; of one name, the later in the text first. */
static int compare_members(const void *a, const void *b)
{
    const struct span_member *m = a, *n = b;
    int order = span_compare_names(m->name, n->name);
    return order != 0 ? order : (m->name.at < n->name.at) - (m->name.at > n->name.at);
}

struct span_members span_members_by_name(struct bytes object)
{
    struct span_members list = { NULL, 0 };
    struct span_member m;
    size_t cap = 0, kept = 0;
    for (struct span_walk w = span_walk(object); span_next(&w, &m); list.at[list.count++] = m)
        if (list.count == cap) list.at = mem_resize(list.at, (cap = cap ? cap * 2 : 16) * sizeof m);
    if (list.count > 0) qsort(list.at, list.count, sizeof m, compare_members);
    for (size_t i = 0; i < list.count; i++)
        if (kept == 0 || !span_same_name(list.at[i].name, list.at[kept - 1].name)) list.at[kept++] = list.at[i];
    list.count = kept;
    return list;
}

static bool is_surrogate(uint32_t point)
{
    return point >> 11 == 0xd800 >> 11;
}

bool span_is_plain_text(struct bytes raw)
{
    if (!has_escape(raw)) return true;
    for (const char *p = raw.at, *end = p + raw.len; p < end;) {
        uint32_t point = next_point(&p, end);
        if (point == 0 || is_surrogate(point)) return false;
    }
    return true;
}

static void add_point(struct buf *out, uint32_t c)
{
    char u[4];
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char lead[] = { 0, 0, 0xc0, 0xe0, 0xf0 };
    for (size_t i = n; i-- > 1; c >>= 6) u[i] = (char)(0x80 | (c & 0x3f));
    u[0] = (char)(lead[n] | c);
    buf_append(out, u, n);
}

void span_decode(struct bytes raw, struct buf *out)
{
    if (!has_escape(raw)) {
        buf_add(out, raw);
        return;
    }
    for (const char *p = raw.at, *end = p + raw.len; p < end;) {
        uint32_t point = next_point(&p, end);
        add_point(out, is_surrogate(point) ? 0xfffd : point);
    }
}
