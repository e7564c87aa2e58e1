/* processes.h: what the pool's processes are doing, from their slots, and what they use, from /proc. */
#ifndef HYPERPAGE_PROCESSES_H
#define HYPERPAGE_PROCESSES_H

#include "shared.h"

#define PROCESS_ROLES (SLOT_COORDINATOR + 1)

struct process_use {
    uint64_t processes, resident_bytes, virtual_bytes, open_fds;
};

/* The living processes of the pool, and workers whose slot nobody has taken over since they died. */
struct processes {
    uint64_t starting, idle, busy, draining, dead; /* workers */
    uint64_t connections, requests;                /* in their hands */
    int64_t started_ms;                            /* wall: the oldest of the living; 0: there is none */
};

/* `own` is the caller's slot, which the kernel does not tell it about. */
void processes_read(struct shared *sh, const struct slot *own, struct processes *p);

/* The same processes' memory and descriptors, by enum slot_role. Reads some files for each. */
void processes_read_use(struct shared *sh, const struct slot *own, struct process_use use[PROCESS_ROLES]);

extern const char *const process_roles[]; /* names, by enum slot_role */

#endif
