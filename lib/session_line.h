/* session_line.h: a session as a line of text, on its way from one store to another:
 *
 *     {"id":"…","expiresAt":"2026-11-24T12:00:00.000Z","document":"{\"preferences\":…}"}
 *
 * The document is a JSON string, so that its bytes, white space and all, are the same at the other end, and a line is a
 * line. expiresAt is null for a session without an end. Pure. */
#ifndef HYPERPAGE_SESSION_LINE_H
#define HYPERPAGE_SESSION_LINE_H

#include "ids.h"
#include "json.h"

struct session_line {
    char id[IDS_TEXT_BYTES];
    int64_t expires_at_ms; /* wall; 0: no end */
    struct buf doc;        /* its limit is the largest document that is taken */
};

/* Can it be written? `id` and `doc` as they stand in a store: what no node would serve is no session. */
bool session_line_fits(struct bytes id, struct bytes doc);

/* Appends the line, with its end. */
void session_line_write(struct bytes id, struct bytes doc, int64_t expires_at_ms, struct buf *out);

/* Reads a line, without its end, into `l`, whose buf is the caller's and is emptied first. Nothing is passed over:
 * these three members, each once, and a document that session_line_fits(). False sets `f`. */
bool session_line_read(struct bytes line, struct session_line *l, struct json_fault *f);

/* Most bytes of the line of a document of `doc_bytes`: each may be an escape of six. */
#define SESSION_LINE_MOST(doc_bytes) (6 * (doc_bytes) + 1024)

#endif
