/* redis.h: commands and scripts on Redis in code that reads as blocking, whatever REDIS_URL names: one server, the
 * primary that Sentinels watch, a cluster. In a task a call parks while others run, and the commands of all tasks of a
 * round leave in one write for each server; outside of tasks it simply waits. Open it after fork. All that a
 * process asks, it asks through one of these: what that has learned of Sentinels and servers counts for all.
 *
 *   redis            finds the link for a key, and what to do about a failure or an error reply (redis_error)
 *   redis_sentinel   who is the primary          redis_cluster, redis_slots   who has which slot
 *   redis_links      the links by address        redis_link                   one pipelined connection */
#ifndef HYPERPAGE_REDIS_H
#define HYPERPAGE_REDIS_H

#include "redis_link.h"

struct redis;

struct redis_options {
    struct redis_url url;
    const char *sentinel_password; /* the Sentinels' own; "" for none */
    int64_t timeout_ms;            /* longest wait for one answer */
    int wait_replicas;             /* a write is acknowledged once so many replicas have it; one WAIT a round */
    const char *client_name;       /* as CLIENT LIST shows it */
    struct pollset *pollset;       /* NULL: only for use outside of tasks */
};

#define REDIS_NO_KEY ((struct bytes){ NULL, 0 })

/* Looks names up and connects at the first call, not here. A name that nobody knows is a server that is away. */
struct redis *redis_open(const struct redis_options *o);
void redis_close(struct redis *r);

/* Before the first call: these scripts are loaded with each connection, and must be there as long as `r` makes any. */
void redis_add_scripts(struct redis *r, struct redis_script *scripts, size_t count);

/* Sends one command and waits for its reply, which is the caller's (freeReplyObject). `key` decides where to; it
 * stands in argv too. REDIS_NO_KEY: any server. NULL: ERR_CORRUPT (the key is of another type) or ERR_UNAVAILABLE; then
 * e->away says whether that server is away for everybody (refused, reset, silent beyond the timeout, or an error reply
 * that says so: the table in redis_error.c) or just this command could not be served: the deadline has passed, WAIT
 * was answered by too few replicas, or what we send or may send is wrong, which an operator must mend (log_error). An
 * error reply is never returned.
 *
 * A connection that breaks under the command is made anew once, or to the server that has taken over, and the command
 * is sent again: then *repeated is true, and the command may have been executed twice. Redirections and refusals do not
 * count: they were not executed. While a cluster moves a slot, a script whose keys are here and there or not there yet
 * waits for the end of that, or of its time. `repeated` NULL says that the command only reads, or that it does not
 * matter if a failover loses it, so that it needs no WAIT. */
redisReply *redis_call(struct redis *r, struct bytes key, size_t argc, const struct bytes *argv, int64_t deadline_ms,
                       bool *repeated, struct err *e);

/* The same with a script on one key. */
redisReply *redis_eval(struct redis *r, struct redis_script *script, struct bytes key, size_t argc,
                       const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e);

/* The same with a script on several keys, at most 4, of one slot. They stand before the arguments in argv. */
redisReply *redis_eval_keys(struct redis *r, struct redis_script *script, size_t keys, size_t argc,
                            const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e);

/* The servers that hold keys: one, or a cluster's primaries. *list is the caller's (free). 0: `e` says why. */
size_t redis_primaries(struct redis *r, struct redis_address **list, int64_t deadline_ms, struct err *e);

/* Commands that are about a whole server and only read, as SCAN and PING. An error if it is no primary any more. */
redisReply *redis_call_at(struct redis *r, const struct redis_address *primary, size_t argc, const struct bytes *argv,
                          int64_t deadline_ms, struct err *e);

/* End of a round: sends what was appended. */
void redis_flush(struct redis *r);

#endif
