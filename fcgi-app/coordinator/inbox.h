/* inbox.h: what other nodes send: received, queued by priority, counted, and done. */
#ifndef HYPERPAGE_INBOX_H
#define HYPERPAGE_INBOX_H

#include "coordinator.h"

struct inbox;

struct inbox *inbox_open(struct coordinator *co, struct err *e);
void inbox_close(struct inbox *ib); /* once its tasks have ended */

void inbox_start(struct inbox *ib);
void inbox_stop(struct inbox *ib);

#endif
