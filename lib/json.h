/* json.h: checks on JSON that came from outside, beyond what one pass over the bytes can see, and ISO times.
 * The only user of json-c. No I/O, no clock. */
#ifndef HYPERPAGE_JSON_H
#define HYPERPAGE_JSON_H

#include "buf.h"

enum json_fault_kind {
    JSON_FINE,
    JSON_MALFORMED,  /* not JSON, not UTF-8, NaN, a repeated member, U+0000 in a name */
    JSON_NOT_OBJECT, /* JSON, but not an object */
    JSON_TOO_DEEP,   /* or too many objects and arrays */
    JSON_WRONG_TYPE, /* a member that we know has another type or an impossible value */
    JSON_PROTECTED   /* a member that this caller may not change */
};

/* What is wrong with a document, and where. */
struct json_fault {
    enum json_fault_kind kind;
    char pointer[256]; /* RFC 6901; "" is the document itself; cut at a whole segment if longer */
    char reason[120];  /* one sentence for the client, without any of the client's bytes */
};

/* Both are always false, so that a check can end in `return json_fault_...(...)`. */
bool json_fault_set(struct json_fault *f, enum json_fault_kind kind, const char *pointer, const char *reason);

/* The pointer leads to the member or element of `text` in which the byte `at` stands. */
bool json_fault_at(struct json_fault *f, enum json_fault_kind kind, struct bytes text, const char *at,
                   const char *reason);

#define JSON_MOST_LEVELS     64   /* json-c recurses, and tasks have small stacks */
#define JSON_MOST_CONTAINERS 4096 /* an empty object costs json-c 816 bytes: 64 KiB of them are 17 MB and 15 ms */

/* Is `text` one JSON object of at most max_depth levels (1 to JSON_MOST_LEVELS) and JSON_MOST_CONTAINERS objects and
 * arrays, in which no member stands twice and every name is Unicode text without U+0000? False sets `f`. */
bool json_check(struct bytes text, int max_depth, struct json_fault *f);

/* Do two JSON values (raw texts that were checked) mean the same? White space, escapes and member order do not
 * count; of a repeated member the last counts; numbers are equal if their texts are or, unless both are integers,
 * their values. */
bool json_equal(struct bytes a, struct bytes b);

/* Is this raw value a string holding an ISO 8601 time with date, time and zone ("2026-01-31T23:59:59.123Z")? Then
 * its wall milliseconds go to *ms, unless NULL. */
bool json_iso_time(struct bytes raw, int64_t *ms);

#endif
