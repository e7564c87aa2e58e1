/* user_sessions.h: which sessions a user has, and the end of all of them: for administrators. */
#ifndef HYPERPAGE_USER_SESSIONS_H
#define HYPERPAGE_USER_SESSIONS_H

#include "life.h"
#include "store.h"

/* What is told of a session. An id is its session's key: whoever reads it, in an answer or in the log of a proxy on the
 * way, could act as that user. So it is the short hash that stands in our own log lines too. */
struct user_session {
    char hash[9];
    int64_t expires_at_ms; /* wall; 0: a key without end, of somebody else's making */
    const struct session_facts *facts;
};

/* Calls `each` for the user's live sessions. */
bool user_sessions_each(struct store *st, const struct life_rules *life, const char *user, int64_t deadline_ms,
                        void (*each)(void *ctx, const struct user_session *s), void *ctx, struct err *e);

/* Deletes them all, also one that gets another id meanwhile. False: some may be left; *revoked are not. */
bool user_sessions_revoke(struct store *st, const char *user, int64_t deadline_ms, int64_t *revoked, struct err *e);

#endif
