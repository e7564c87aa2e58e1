/* daemon.h: the master or the coordinator of this node, by its pid file, and only if it is one: a number in a file may
 * have become anybody's. It is held by a descriptor, so what is signalled is what was looked at. */
#ifndef HYPERPAGE_DAEMON_H
#define HYPERPAGE_DAEMON_H

#include "err.h"

#include <stdint.h>
#include <sys/types.h>

struct daemon {
    pid_t pid; /* 0: there is none */
    int fd;    /* of the process; -1 */
};
#define DAEMON_NONE                                                                                                    \
    {                                                                                                                  \
        0, -1                                                                                                          \
    }

struct daemon_kind {
    const char *title, *pid_file, *name; /* the last as the kernel knows it */
};
extern const struct daemon_kind daemon_master, daemon_coordinator;

/* A process of that name that has the state of `run_dir` mapped. False, ERR_UNAVAILABLE: there is none. */
bool daemon_find(const char *run_dir, const struct daemon_kind *kind, struct daemon *p, struct err *e);
void daemon_done(struct daemon *p);

bool daemon_signal(const struct daemon *p, int signal_number, struct err *e);

/* Waits for its end. False: it still lives at the deadline. */
bool daemon_wait(const struct daemon *p, int64_t deadline_ms);

#endif
