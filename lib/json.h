/* json.h: checks on JSON that came from outside, beyond what one pass over the bytes can see, and ISO times.
 * The only user of json-c. No I/O, no clock. */
#ifndef HYPERPAGE_JSON_H
#define HYPERPAGE_JSON_H

#include "buf.h"

enum json_fault_kind {
    JSON_FINE,
    JSON_MALFORMED,  /* not JSON, not UTF-8, NaN, a repeated member, U+0000 in a name */
    JSON_NOT_OBJECT, /* JSON, but not an object */
    JSON_TOO_DEEP,
    JSON_WRONG_TYPE, /* a member that we know has another type or an impossible value */
    JSON_PROTECTED   /* a member that this caller may not change */
};

/* What is wrong with a document, and where. */
struct json_fault {
    enum json_fault_kind kind;
    char pointer[256]; /* RFC 6901; "" is the document itself; cut at a whole segment if longer */
    char reason[120];  /* one sentence for the client, without any of the client's bytes */
};

/* Always false, so that a check can end in `return json_fault_set(...)`. */
bool json_fault_set(struct json_fault *f, enum json_fault_kind kind, const char *pointer, const char *reason);

/* Appends "/segment" to an RFC 6901 pointer of at most `cap` bytes, escaping ~ and /. `raw` is a raw JSON name. */
void json_pointer_add(char *pointer, size_t cap, struct bytes raw);

/* Is `text` one JSON object of at most max_depth levels, in which no member stands twice and no name holds U+0000?
 * False sets `f`. */
bool json_check(struct bytes text, int max_depth, struct json_fault *f);

/* Do two JSON values (raw texts that were checked) mean the same? White space, escapes and member order do not
 * count; numbers are equal if their texts or their values are. */
bool json_equal(struct bytes a, struct bytes b);

/* Is this raw value a string holding an ISO 8601 time with date, time and zone ("2026-01-31T23:59:59.123Z")? Then
 * its wall milliseconds go to *ms, unless NULL. */
bool json_iso_time(struct bytes raw, int64_t *ms);

#endif
