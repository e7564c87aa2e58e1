/* remote.h: one request to a node over HTTP, for --url. The only user of libcurl. */
#ifndef HYPERPAGE_REMOTE_H
#define HYPERPAGE_REMOTE_H

#include "ctl.h"

struct remote_request {
    const char *method, *path;
    struct bytes body;      /* JSON; none: no body */
    const char *session_id; /* in a header, where no log has it; or NULL */
    bool as_admin;          /* with the token */
};

struct remote_answer {
    long status;
    struct buf body;     /* one JSON object */
    char expires_at[64]; /* of a session; "" where it is not known */
    char why[512];       /* what is wrong, for ctl_fail() */
};
#define REMOTE_ANSWER                                                                                                  \
    {                                                                                                                  \
        .body = BUF_INIT(64 << 20)                                                                                     \
    }

/* CTL_OK: the service has answered, whatever its status. Else a->why says what is wrong: the call, the way there, what
 * came back, or, with as_admin, the token. */
enum ctl_exit remote_ask(struct ctl *c, const struct remote_request *rq, struct remote_answer *a);

/* a->why becomes what an answer's error says; gives the code that its status means. */
enum ctl_exit remote_refused(struct remote_answer *a);

/* Appends `path` with `value` behind it as a query may have it. */
void remote_add_query(struct buf *path, const char *value);

#endif
