/* session.h: the session document: a new one's defaults, what its known members must look like, and edits that leave
 * every byte they do not touch as it was. Pure: bytes in, bytes out; time is passed in. */
#ifndef HYPERPAGE_SESSION_H
#define HYPERPAGE_SESSION_H

#include "json.h"

#include <stdint.h>

#define SESSION_DEPTH 32 /* most levels of a document */

/* Who asks for a session, as its metadata keeps it. */
struct session_origin {
    const char *ip_address;
    const char *user_agent;
};

enum session_edit_kind {
    SESSION_MERGE,       /* top-level members replace, `metadata` merges one level (application/json) */
    SESSION_MERGE_PATCH, /* RFC 7396 */
    SESSION_REPLACE      /* the change is the whole new document */
};

struct session_edit {
    enum session_edit_kind kind;
    struct bytes change;          /* a JSON object that passed session_check() */
    const char *const *protected; /* members that an untrusted caller cannot change, each once, then NULL; or NULL */
    bool trusted;                 /* may change them */
    bool keep_origin;             /* metadata's ipAddress, userAgent and created stay the server's */
    int64_t now_ms;               /* wall; becomes lastActivity and metadata.updated */
};

/* Is `doc` (a whole document, or the part of one that a client wants changed) JSON that we accept: json_check() with
 * SESSION_DEPTH, and the members that we know, where they stand, have their types? With `patch`, null is allowed for
 * each of them (RFC 7396: "remove"), else only for userId, user and what is optional in user. Unknown members are
 * fine. False sets `f`. */
bool session_check(struct bytes doc, bool patch, struct json_fault *f);

/* The second half of it, for a value inside a text that json_check() has passed. */
bool session_check_members(struct bytes doc, bool patch, struct json_fault *f);

/* Appends a new document: the defaults, replaced by the members of given->change (no bytes: none) by the rules of
 * SESSION_MERGE, whatever given->kind says: an untrusted caller that gives protected members other than their
 * defaults gets JSON_PROTECTED. given->now_ms is the time of creation. */
bool session_new(const struct session_edit *given, const struct session_origin *from, struct buf *out,
                 struct json_fault *f);

/* Appends `doc` (a stored document: any JSON object) with the edit applied. Members that are not touched keep their
 * bytes, the white space around them and their order; new ones go to the end. lastActivity and metadata.updated
 * become now_ms. SESSION_REPLACE keeps the stored protected members that the change leaves out. Of a member that
 * `doc` repeats the last one counts and is replaced; removing takes all of them. False sets `f` and leaves `out`
 * unusable. True says nothing about the length: see buf_overflowed(out). */
bool session_apply(const struct session_edit *edit, struct bytes doc, struct buf *out, struct json_fault *f);

/* What one pass over a stored document tells. Two names: `etag` for its bytes, `version` for its bytes without the
 * values of lastActivity and metadata.updated, which change with every move of a mouse; both come with their quotes and
 * are never equal. And raw values, in the document's own bytes; no bytes where it has none.
 * False if `doc` is no JSON object: then it is corrupt. */
#define SESSION_TAG_BYTES 24
struct session_facts {
    char etag[SESSION_TAG_BYTES], version[SESSION_TAG_BYTES];
    struct bytes user_id, last_activity;
    struct bytes created, updated, ip_address, user_agent; /* in metadata */
};
bool session_facts(struct bytes doc, struct session_facts *facts);

/* The user's name that a raw userId stands for, or "": nobody's, or longer than out_bytes - 1. */
void session_user(struct bytes user_id, char *out, size_t out_bytes);

#endif
