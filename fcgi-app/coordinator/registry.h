/* registry.h: keeps PostgreSQL's user_sessions true for sessions that have a user. The leader follows the stream
 * hyperpage:session-events; an event only says which session to look at, what is so is read from Redis. */
#ifndef HYPERPAGE_REGISTRY_H
#define HYPERPAGE_REGISTRY_H

#include "jobs.h"

/* The leader's duty. An event is acknowledged after what it led to was committed, so none is lost with a leader or a
 * database that dies. */
void registry_run(struct duty *d);

/* A part of the hourly cleanup: where the bounded stream has lost events, the rows are built anew from the sessions
 * that the cleanup sees: what it saw is written now and then, and at the end ours without a session go. Does nothing
 * where no event was lost. NULL: the database does not say. */
struct registry_rebuild;
struct registry_rebuild *registry_rebuild_open(struct coordinator *co, struct err *e);
void registry_rebuild_close(struct registry_rebuild *rb);
void registry_rebuild_see(void *rebuild, const char *id, const char *user, int64_t expires_at_ms);
bool registry_rebuild_write(struct registry_rebuild *rb, struct err *e);
bool registry_rebuild_finish(struct registry_rebuild *rb, struct job *job, struct err *e);

#endif
