/* warmup.h: loads sessions into the nodes' session caches before somebody asks for them. The leader says which, by a
 * message; every node loads them for itself. */
#ifndef HYPERPAGE_WARMUP_H
#define HYPERPAGE_WARMUP_H

#include "jobs.h"

/* The job "cache_warmup": tells all nodes to load the sessions that its payload names, {"sessionIds":[...]}, or else
 * those of users that were active last, at most {"limit":N} (1000). */
bool warmup_run(struct job *job, struct err *e);

/* On a node: loads what `data`, {"sessionIds":[...]}, names, in a task of its own, when it is its turn. */
void warmup_load(struct coordinator *co, struct bytes data);

#endif
