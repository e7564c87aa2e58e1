/* span.h: where things lie in a JSON text. Nothing is copied or converted: documents stay the bytes they were.
 * The checker is strict RFC 8259; everything else here expects a text that it has passed. Pure: no allocation. */
#ifndef HYPERPAGE_SPAN_H
#define HYPERPAGE_SPAN_H

#include "buf.h"

enum span_type { SPAN_NULL, SPAN_BOOL, SPAN_NUMBER, SPAN_STRING, SPAN_ARRAY, SPAN_OBJECT };

enum span_check { SPAN_OK, SPAN_MALFORMED, SPAN_NOT_OBJECT, SPAN_TOO_DEEP };

/* Is `text` one JSON object, white space around it allowed, nested at most `max_depth` levels (the object itself is
 * level 1; 0 = no limit), in valid UTF-8, without raw control characters, NaN or Infinity? Iterative: depth costs no
 * stack. On anything but SPAN_OK, *at is the offset of the offending byte. Names may still repeat or hold \u0000:
 * json_check() looks for that. */
enum span_check span_check_object(struct bytes text, int max_depth, size_t *at);

struct span_member {
    struct bytes name;  /* raw text between the quotes: escapes are still escapes */
    struct bytes value; /* raw text of the value, no white space around it */
    struct bytes whole; /* from the opening quote of the name to the end of the value */
};

/* Walks the members of an object text, or the elements of an array text (name and whole are then empty):
 *     for (struct span_walk w = span_walk(object); span_next(&w, &m);)  */
struct span_walk {
    const char *at, *end;
};
struct span_walk span_walk(struct bytes container);
bool span_next(struct span_walk *w, struct span_member *m);

enum span_type span_type(struct bytes value);
const char *span_type_name(enum span_type type); /* "an object", "a string", ... for messages */

/* The member of object text `object` whose name, escapes decoded, is `name` (plain ASCII). The last one wins, as in
 * JSON.parse. */
bool span_find(struct bytes object, const char *name, struct span_member *m);

/* Does a raw name, escapes decoded, equal another raw one? */
bool span_same_name(struct bytes raw_a, struct bytes raw_b);

/* Appends the UTF-8 text that a raw string (without its quotes) stands for. Lone surrogates become U+FFFD. */
void span_decode(struct bytes raw, struct buf *out);

#endif
