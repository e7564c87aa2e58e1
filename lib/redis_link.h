/* redis_link.h: one pipelined connection to one server. In a task a call parks while others run, and the commands of
 * all tasks of a round leave in one write; outside of tasks it simply waits. hiredis parses the replies; connecting,
 * sending and deadlines are done here, so that every connection is made by one function, with AUTH, SELECT and scripts,
 * and none is ever used again after a failure: a reply that comes too late meets nobody. */
#ifndef HYPERPAGE_REDIS_LINK_H
#define HYPERPAGE_REDIS_LINK_H

#include "buf.h"
#include "err.h"
#include "pollset.h"
#include "redis_url.h"

#include <hiredis/read.h>
#include <hiredis/hiredis.h>
#include <stdint.h>

struct redis_link;

/* A Lua script; loaded with each connection, and again when Redis says it has lost it. */
struct redis_script {
    const char *text;
    char sha[41]; /* filled in by the first connection; all zero before */
};

struct redis_link_options {
    const char *user, *password; /* "" for none */
    int db;
    const char *client_name;       /* as CLIENT LIST shows it */
    struct redis_script **scripts; /* shared by all connections of the process */
    size_t script_count;
    int64_t timeout_ms;      /* longest wait for a connection, and for one answer */
    int wait_replicas;       /* a write counts once so many replicas have it */
    struct pollset *pollset; /* NULL: only for use outside of tasks */
};

struct redis_command {
    size_t argc;
    const struct bytes *argv;
    bool writes; /* and is to be confirmed by replicas, if options say so */
    bool asking; /* with ASKING before it */
};

/* What became of a command. */
enum redis_fate {
    REDIS_ANSWERED,
    REDIS_NOT_SENT, /* no connection */
    REDIS_BROKEN,   /* the connection broke after it was sent: it may have been executed */
    REDIS_SILENT    /* no answer in time, or WAIT was answered by too few: it may have been executed, or still be */
};

/* Connects at the first call, not here. What the options point at must outlive the link. */
struct redis_link *redis_link_open(const struct redis_address *address, const struct redis_link_options *o);
void redis_link_close(struct redis_link *l);

/* One attempt: connects if need be, sends, waits. The reply is the caller's and may be an error reply. NULL: *fate
 * and `e` say why there is none. */
redisReply *redis_link_call(struct redis_link *l, const struct redis_command *c, int64_t deadline_ms,
                            enum redis_fate *fate, struct err *e);

/* End of a round: sends what was appended, behind writes one WAIT for all of them. */
void redis_link_flush(struct redis_link *l);

/* Counts connections: another number, another connection. 0 while there is none that commands may use. */
uint64_t redis_link_connection(const struct redis_link *l);
bool redis_link_in_use(const struct redis_link *l); /* is a call under way? */
const struct redis_address *redis_link_address(const struct redis_link *l);
const char *redis_link_name(const struct redis_link *l); /* the address as the log shows it */

#endif
