/* connection.h: one FastCGI connection from a front server: waits until a request lies whole in the socket, lets
 * libfcgi parse it, runs it as a task and writes the answer. The only user of libfcgi. Nothing here blocks: a peer that
 * is silent, slow or hostile costs nobody else anything. */
#ifndef HYPERPAGE_CONNECTION_H
#define HYPERPAGE_CONNECTION_H

#include "exchange.h"
#include "handover.h"
#include "pollset.h"

struct connection;

/* What a worker's connections share, and what it wants to know of them. The worker's, for its whole life. */
struct connections {
    struct api *api;
    struct pollset *pollset;
    struct connection *first, *last; /* all that are open */
    struct connection *fresh;        /* of these, the ones that came in this round and have sent nothing yet */
    size_t open;
    struct exchanges exchanges; /* being answered */
    bool leaving;
    bool closing; /* leaving without siblings: an answered connection is not kept */
    bool (*idle)(struct connections *cs, struct connection *c); /* called while leaving: this one waits for its next
                                                                 * request. True: it has been closed */
    void (*serves)(void);                                       /* called once, before the first answer leaves */
    struct buf peeked, scratch, head;
};

/* Checks that libfcgi behaves as connection.c needs it; false with `e` if not. Call it once, in the worker. */
bool connections_init(struct connections *cs, struct api *api, struct pollset *ps, struct err *e);
void connections_done(struct connections *cs);

/* Takes over an accepted, non-blocking socket. */
void connection_open(struct connections *cs, int fd);

/* Looks whether those that are new have sent a request by now. A front server sends right behind its connect, so the
 * set of what is watched is spared most of them; with `last` the rest goes there. */
void connections_look_at_fresh(struct connections *cs, bool last);

/* While leaving: calls cs->idle for each that waits for its next request. */
void connections_leave(struct connections *cs);

/* Closes what has sent half a request for longer than the request timeout, and gives idle memory back. */
void connections_tidy(struct connections *cs, int64_t now_ms);

void connection_close(struct connection *c);

/* Passes one that waits to a sibling; false if the way is full, and it stays ours. */
bool connection_give(struct connection *c, const struct handover *way);

#endif
