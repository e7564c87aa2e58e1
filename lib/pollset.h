/* pollset.h: the descriptors that a process waits for: one epoll set, a callback for each. */
#ifndef HYPERPAGE_POLLSET_H
#define HYPERPAGE_POLLSET_H

#include "err.h"

#include <stdint.h>
#include <sys/epoll.h>

struct pollset;

/* Belongs to whoever watches; must stay where it is while it is in the set. */
struct watch {
    int fd;
    void (*ready)(struct watch *w, uint32_t events); /* may add and remove any watch, itself too */
};

struct pollset *pollset_new(struct err *e);
void pollset_free(struct pollset *ps);

/* Readable while something in the set is ready: for a loop of another kind, which then calls pollset_wait(ps, 0). */
int pollset_fd(const struct pollset *ps);

/* `events` as for epoll_ctl. False: the descriptor cannot be watched (limits of the system). */
bool pollset_add(struct pollset *ps, struct watch *w, uint32_t events, struct err *e);
void pollset_change(struct pollset *ps, struct watch *w, uint32_t events);

/* After this `ready` is not called any more, also not for events that were already read. Call it before closing. */
void pollset_remove(struct pollset *ps, struct watch *w);

/* The same for a descriptor that is closed next and of which nobody holds a copy: closing takes it out of the set. */
void pollset_forget(struct pollset *ps, struct watch *w);

/* Waits until something is ready, at most timeout_ms (-1: without limit), and calls back for all that is. */
void pollset_wait(struct pollset *ps, int timeout_ms);

#endif
