/* redis.h: commands and scripts on one pipelined connection to Redis, in code that reads as blocking: in a task the
 * call parks while others run, and the commands of all tasks of a round leave in one write; outside of tasks it simply
 * waits. hiredis parses the replies; connecting, sending and deadlines are done here, so that every connection is
 * made by one function, with AUTH, SELECT and scripts, and none is ever reused after a failure. Open it after fork. */
#ifndef HYPERPAGE_REDIS_H
#define HYPERPAGE_REDIS_H

#include "buf.h"
#include "err.h"
#include "pollset.h"
#include "redis_url.h"

#include <hiredis/read.h>
#include <hiredis/hiredis.h>
#include <stdint.h>

struct redis;

/* A Lua script; loaded with each connection, and again when Redis says it has lost it. */
struct redis_script {
    const char *text;
    char sha[41]; /* filled in by the first connection; all zero before */
};

struct redis_options {
    struct redis_url url;
    int64_t timeout_ms;            /* longest wait for one answer */
    const char *client_name;       /* as CLIENT LIST shows it */
    struct redis_script *scripts;  /* shared by all connections of the process */
    size_t script_count;
    struct pollset *pollset;       /* NULL: only for use outside of tasks */
};

/* Looks the host's name up, which may take a moment, and connects at the first call. A name that nobody knows yet is
 * looked up again, beside the loop, with each attempt to connect. */
struct redis *redis_open(const struct redis_options *o);
void redis_close(struct redis *r);

/* Sends one command and waits for its reply, which is the caller's (freeReplyObject). NULL: ERR_UNAVAILABLE (away,
 * silent beyond the timeout or the deadline, or an error reply that says that it cannot serve now), ERR_CORRUPT (the
 * key is of another type). An error reply is never returned. A connection that breaks under the command is made anew
 * once and the command sent again: then *repeated is true, and the command may have been executed twice. */
redisReply *redis_call(struct redis *r, size_t argc, const struct bytes *argv, int64_t deadline_ms, bool *repeated,
                       struct err *e);

/* The same with a script on one key. */
redisReply *redis_eval(struct redis *r, struct redis_script *script, struct bytes key, size_t argc,
                       const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e);

/* End of a round: sends what was appended. */
void redis_flush(struct redis *r);

#endif
