/* backlog.h: how many connections wait to be accepted. */
#ifndef HYPERPAGE_BACKLOG_H
#define HYPERPAGE_BACKLOG_H

#include <stdbool.h>
#include <stdint.h>

/* Asks the kernel for the queue of a listening socket: how many wait, and at most how many may. False: it does not
 * tell. */
bool backlog_read(int listen_fd, uint32_t *waiting, uint32_t *most);

#endif
