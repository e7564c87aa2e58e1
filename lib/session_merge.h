/* session_merge.h: two versions of a session document that grew from one, made one again. Pure: bytes in, bytes out. */
#ifndef HYPERPAGE_SESSION_MERGE_H
#define HYPERPAGE_SESSION_MERGE_H

#include "buf.h"

/* Appends to `out` what `base` becomes by the changes of both `ours` and `theirs`:
 *   - a member that one side changed, added or removed, and the other did not, is as that side has it;
 *   - one that both changed alike is as both have it. Values are compared by meaning (json_equal()), null is not
 *     absent;
 *   - an object on both sides is merged member by member, at every level; `user` says who somebody is and is one value,
 *     since half of one and half of another would be nobody;
 *   - of two different times in lastActivity and metadata.updated the later counts;
 *   - any other member that both changed is a conflict: the document with the later lastActivity wins it, theirs if
 *     neither is later.
 * Members keep their bytes; their order is that of `theirs`, what only we have stands behind it. False, and `out` as
 * it was, if one of the three is no JSON object of at most JSON_MOST_LEVELS. True says nothing about the length: see
 * buf_overflowed(out). */
bool session_merge(struct bytes base, struct bytes ours, struct bytes theirs, struct buf *out, int *conflicts);

#endif
