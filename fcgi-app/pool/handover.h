/* handover.h: kept connections on their way from a worker that leaves to one that stays. Closing an idle one loses the
 * request that the front server may be sending on it at that moment. All workers of a pool hold both ends; the messages
 * lie in the kernel until somebody takes them, also over the exec of a new binary. */
#ifndef HYPERPAGE_HANDOVER_H
#define HYPERPAGE_HANDOVER_H

#include "err.h"

struct handover {
    int give_fd, take_fd; /* -1, -1: there are no siblings */
};

bool handover_open(struct handover *h, struct err *e);

/* Sends `fd` to whoever takes it; the caller still closes its own copy. False: the way is full or there is none. */
bool handover_give(const struct handover *h, int fd);

/* A descriptor that is now ours, or -1: none is there. */
int handover_take(const struct handover *h);

#endif
