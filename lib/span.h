/* span.h: where things lie in a JSON text. Nothing is copied or converted: documents stay the bytes they were.
 * The checker is strict RFC 8259; everything else here expects a text that it has passed (given another, it still
 * never reads outside of it). Pure: no allocation but in span_decode's buf and span_members_by_name's list. */
#ifndef HYPERPAGE_SPAN_H
#define HYPERPAGE_SPAN_H

#include "buf.h"

enum span_type { SPAN_NULL, SPAN_BOOL, SPAN_NUMBER, SPAN_STRING, SPAN_ARRAY, SPAN_OBJECT };

enum span_check { SPAN_OK, SPAN_MALFORMED, SPAN_NOT_OBJECT, SPAN_TOO_DEEP };

#define SPAN_MOST_LEVELS 1024 /* what "no limit" means: no real document comes near it */

/* Is `text` one JSON object, white space around it allowed, nested at most `max_depth` levels (the object itself is
 * level 1; 0 = no limit), in valid UTF-8, without raw control characters, NaN or Infinity? Iterative: depth costs no
 * stack. On anything but SPAN_OK, *at is the offset of the offending byte. Names may still repeat or hold \u0000:
 * json_check() looks for that. */
enum span_check span_check_object(struct bytes text, int max_depth, size_t *at);

/* A member of an object, or an element of an array: then the name is empty. */
struct span_member {
    struct bytes name;   /* raw text between the quotes: escapes are still escapes */
    struct bytes value;  /* raw text of the value, no white space around it */
    struct bytes around; /* all that stands between the commas or brackets on both sides, white space too */
};

/* Walks the members of an object text, or the elements of an array text:
 *     for (struct span_walk w = span_walk(object); span_next(&w, &m);)  */
struct span_walk {
    const char *at, *end;
    bool named; /* an object's members */
};
struct span_walk span_walk(struct bytes container);
bool span_next(struct span_walk *w, struct span_member *m);

/* Moves *rest past the next name of a member in text order, at whatever level it stands. False: there is none left. */
bool span_next_name(struct bytes *rest, struct bytes *name);

/* How many objects and arrays `text` holds, at all levels, itself too. */
size_t span_count_containers(struct bytes text);

enum span_type span_type(struct bytes value);    /* white space before it does not count; no bytes are null */
const char *span_type_name(enum span_type type); /* "an object", "a string", ... for messages */

/* The member of object text `object` whose name, escapes decoded, is `name` (plain ASCII). The last one wins, as in
 * JSON.parse. */
bool span_find(struct bytes object, const char *name, struct span_member *m);

/* Order of two raw names by the code points that they stand for: negative, 0 for the same name, positive. A lone
 * surrogate is a code point of its own here. */
int span_compare_names(struct bytes raw_a, struct bytes raw_b);
bool span_same_name(struct bytes raw_a, struct bytes raw_b);

/* The members of an object that count (of a repeated one the last), in the order of span_compare_names(). The caller
 * frees `at`. */
struct span_members {
    struct span_member *at;
    size_t count;
};
struct span_members span_members_by_name(struct bytes object);

/* Does a raw string (without its quotes) stand for text that a C string in UTF-8 can hold: no U+0000, no lone
 * surrogate? */
bool span_is_plain_text(struct bytes raw);

/* Appends the UTF-8 text that a raw string (without its quotes) stands for. Lone surrogates become U+FFFD. */
void span_decode(struct bytes raw, struct buf *out);

#endif
