/* listener.h: the socket the pool listens on: made here, or passed in by whoever started us. */
#ifndef HYPERPAGE_LISTENER_H
#define HYPERPAGE_LISTENER_H

#include "config.h"

#include <sys/types.h>

struct listener {
    int fd;       /* non-blocking, close-on-exec */
    bool ours;    /* made here: the path is removed at the end, if it still is this socket */
    dev_t device; /* of that path */
    ino_t inode;
    char path[108]; /* of a unix socket made here, else "" */
    char text[300]; /* for the log */
};

/* The socket at descriptor `inherited` (from the binary before us, -1 if none; `made` says that it had made it), else
 * LISTEN_FDS, else descriptor 0 if that is a listening socket, else LISTEN. False: one line naming the option. */
bool listener_open(struct listener *l, const struct config *cfg, int inherited, bool made, struct err *e);
void listener_close(struct listener *l); /* removes the path if it is ours */

/* Is LISTEN, LISTEN_MODE and LISTEN_GROUP something that could be opened? For --check. */
bool listener_check(const struct config *cfg, struct err *e);

#endif
