/* replay_cases.h: a refuge, a redis-server of the test's own, and a replay between them. */
#ifndef HYPERPAGE_REPLAY_CASES_H
#define HYPERPAGE_REPLAY_CASES_H

#include "refuge_cases.h"
#include "redis_server.h"

#include "metrics.h"
#include "replay.h"

#define KEY          "hyperpage:session:"
#define GONE_MARK    "hyperpage:gone:{" KEY "%s}"
#define APPLIED_MARK "hyperpage:applied:{" KEY "%s}"
#define EPOCH_KEY    "hyperpage:epoch"

static struct redis_server server;
static struct pollset *pollset;
static struct redis *redis;
static struct replay *replay;
static _Atomic uint64_t counters[METRICS_COUNTERS];
static char changed_id[64], changed_doc[256]; /* as replay_options.changed was told last */
static int64_t timeout_ms = 5000;
static const char *node_name = "node-1";

static void note_changed(void *ctx, const struct replay_change *change)
{
    (void)ctx;
    snprintf(changed_id, sizeof changed_id, "%s", change->id);
    snprintf(changed_doc, sizeof changed_doc, "%.*s", (int)change->doc.len, change->doc.len > 0 ? change->doc.at : "");
}

static void (*told_of_changes)(void *ctx, const struct replay_change *change) = note_changed;

static void replay_leave(void)
{
    replay_close(replay);
    replay = NULL;
    redis_close(redis);
    redis = NULL;
}

static void replay_reopen(void)
{
    struct redis_options ro = { .timeout_ms = timeout_ms, .client_name = "test-replay", .pollset = pollset };
    replay_leave();
    snprintf(ro.url.servers[0].host, sizeof ro.url.servers[0].host, "%s", server.path);
    ro.url.server_count = 1;
    redis = redis_open(&ro);
    struct replay_options o = { .redis = redis, .refuge = refuge, .node = node_name, .changed = told_of_changes };
    replay = replay_open(&o);
    must(replay != NULL);
}

/* Before a fork: SQLite's files must not be inherited. */
static void leave_files(void)
{
    replay_leave();
    refuge_leave();
}

static int replay_begin(void **state)
{
    memset((void *)counters, 0, sizeof counters);
    metrics_use(counters);
    if (refuge_begin(state) != 0 || (pollset == NULL && (pollset = pollset_new(&err)) == NULL)) return 1;
    if (server.pid == 0 && !redis_server_start(&server)) return 1;
    redisReply *flushed = redisCommand(server.admin, "FLUSHALL");
    freeReplyObject(flushed);
    replay_reopen();
    return 0;
}

static int replay_end(void **state)
{
    replay_leave();
    metrics_use(NULL);
    return refuge_end(state);
}

static int replay_done(void **state)
{
    (void)state;
    pollset_free(pollset);
    redis_server_done(&server);
    return 0;
}

/* --- Redis as another program uses it --- */

static void set_redis(const char *id, const char *doc)
{
    assert_int_equal(redis_server_ask(&server, "SET " KEY "%s %s PX %d", id, doc, LONG_MS), -1);
}

static void get_redis(const char *id, char out[256])
{
    redisReply *reply = redisCommand(server.admin, "GET " KEY "%s", id);
    snprintf(out, 256, "%s", reply->type == REDIS_REPLY_STRING ? reply->str : "");
    freeReplyObject(reply);
}

static void assert_redis(const char *id, const char *expected)
{
    char doc[256];
    get_redis(id, doc);
    assert_string_equal(doc, expected);
}

/* --- the replay --- */

static void one(const char *id)
{
    must(replay_one(replay, id, soon(), &err));
}

static void all(void)
{
    bool more = true;
    while (more) must(replay_step(replay, 3, soon(), &more, &err));
}

#endif
