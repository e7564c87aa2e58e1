#include "pods.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "redis_keys.h"
#include "totals.h"

#include <stdio.h>
#include <unistd.h>

#define PODS_KEY                                                                                                       \
    "hyperpage:pods" /* sorted set: names by the moment (ms, Redis' clock) from which they count as gone               \
                      */
#define HEARTBEATS 3 /* a node that has missed so many is gone */

/* KEYS pods; ARGV our name, the ms that we may be silent, the most names to give. Redis' clock is everybody's: theirs
 * may differ. Gives the time, how many there are, and names with their moments. */
const char *const pods_lives_script =
    "local t = redis.call('TIME') "
    "local now = t[1] * 1000 + math.floor(t[2] / 1000) "
    "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now) "
    "redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1]) "
    "return {now, redis.call('ZCARD', KEYS[1]), redis.call('ZRANGE', KEYS[1], 0, ARGV[3] - 1, 'WITHSCORES')}";

static int64_t silence_ms(const struct coordinator *co)
{
    return HEARTBEATS * co->config->leader_heartbeat_interval;
}

static int count_workers(struct coordinator *co)
{
    int n = 0;
    for (size_t i = 0; i < shared_slots_used(co->shared); i++) /* others are pages that nobody has touched */
        n += atomic_load(&shared_slot(co->shared, i)->role) == SLOT_WORKER && shared_slot_alive(co->shared, i);
    return n;
}

/* hyperpage:pod:POD:heartbeat, which original pods read. */
static struct bytes heartbeat_key(const struct coordinator *co, char key[256])
{
    snprintf(key, 256, "hyperpage:pod:%s:heartbeat", co->pod);
    return bytes_of(key);
}

static bool write_heartbeat(struct coordinator *co, int64_t deadline_ms, struct err *e)
{
    char key[256], host[65] = "";
    struct number life;
    struct buf value = BUF_INIT(1024);
    uint64_t *totals = mem_alloc(METRICS_COUNTERS * sizeof *totals); /* too much for a task's stack */
    gethostname(host, sizeof host - 1);
    totals_read(co->shared, totals);
    buf_printf(&value, "{\"podId\":\"%s\",\"timestamp\":%" PRId64 ",\"host\":", co->pod, clock_wall_ms());
    buf_json_string(&value, bytes_of(host));
    buf_printf(&value,
               ",\"version\":\"" HYPERPAGE_VERSION "\",\"workers\":%d,\"requestsServed\":%" PRIu64
               ",\"sessionsCreated\":%" PRIu64 "}",
               count_workers(co), totals_requests(totals), totals[METRIC_sessions_created_total]);
    free(totals);
    struct bytes k = heartbeat_key(co, key);
    redisReply *r = redis_call(co->redis, k, 5,
                               (struct bytes[]){ BYTES_LITERAL("SET"), k, buf_bytes(&value), BYTES_LITERAL("PX"),
                                                 number(&life, silence_ms(co)) },
                               deadline_ms, NULL, e);
    buf_done(&value);
    if (r != NULL) freeReplyObject(r);
    return r != NULL;
}

/* --- who is there --- */

static void read_list(const redisReply *r, struct coordination_pods *pods)
{
    const redisReply *names = r->element[2];
    int64_t now_ms = r->element[0]->integer, wall_ms = clock_wall_ms();
    *pods = (struct coordination_pods){ .all = r->element[1]->integer, .seen_ms = wall_ms };
    for (size_t i = 0; i + 1 < names->elements && pods->count < COORDINATION_MOST_PODS; i += 2) {
        struct coordination_pod *pod = &pods->pod[pods->count++];
        snprintf(pod->name, sizeof pod->name, "%s", names->element[i]->str);
        pod->until_ms = wall_ms + (strtoll(names->element[i + 1]->str, NULL, 10) - now_ms);
    }
}

static bool list_pods(struct coordinator *co, struct coordination_pods *pods, int64_t deadline_ms, struct err *e)
{
    struct number silence, most;
    redisReply *r = redis_eval(
        co->redis, &co->scripts[SCRIPT_POD_LIVES], BYTES_LITERAL(PODS_KEY), 3,
        (struct bytes[]){ bytes_of(co->pod), number(&silence, silence_ms(co)), number(&most, COORDINATION_MOST_PODS) },
        deadline_ms, NULL, e);
    if (r == NULL) return false;
    bool ok = r->type == REDIS_REPLY_ARRAY && r->elements == 3 && r->element[2]->type == REDIS_REPLY_ARRAY;
    if (ok) read_list(r, pods);
    freeReplyObject(r);
    return ok || err_set(e, ERR_INTERNAL, "an answer that is no list of pods");
}

static bool holds_pod(const struct coordination_pods *pods, const char *name)
{
    for (int64_t i = 0; i < pods->count; i++)
        if (strcmp(pods->pod[i].name, name) == 0) return true;
    return false;
}

static void log_changes(const struct coordination_pods *before, const struct coordination_pods *now)
{
    if (before->seen_ms == 0) {
        log_info("pods are seen: pods=%" PRId64, now->all);
        return;
    }
    for (int64_t i = 0; i < now->count; i++)
        if (!holds_pod(before, now->pod[i].name))
            log_info("pod has joined: pod=\"%s\" pods=%" PRId64, now->pod[i].name, now->all);
    for (int64_t i = 0; i < before->count && now->all <= COORDINATION_MOST_PODS; i++)
        if (!holds_pod(now, before->pod[i].name))
            log_info("pod has left: pod=\"%s\" pods=%" PRId64, before->pod[i].name, now->all);
}

static void look(struct coordinator *co, struct coordination_pods lists[2], int *present, bool *failing)
{
    struct err e = { .kind = ERR_NONE };
    int64_t deadline_ms = clock_mono_ms() + co->config->leader_heartbeat_interval;
    struct coordination_pods *now = &lists[!*present], *before = &lists[*present];
    bool ok = write_heartbeat(co, deadline_ms, &e) && list_pods(co, now, deadline_ms, &e);
    if (ok) {
        log_changes(before, now);
        coordination_write_pods(co->coordination, now);
        *present = !*present;
    } else if (!*failing) {
        log_warn("other nodes cannot be seen: error=\"%s\"", e.text);
    }
    *failing = !ok;
}

/* Who leaves says so, and need not be waited for. */
static void leave(struct coordinator *co)
{
    char key[256];
    struct err e;
    int64_t deadline_ms = clock_mono_ms() + co->config->redis_timeout_ms;
    struct bytes del[] = { BYTES_LITERAL("DEL"), heartbeat_key(co, key) };
    struct bytes zrem[] = { BYTES_LITERAL("ZREM"), BYTES_LITERAL(PODS_KEY), bytes_of(co->pod) };
    redisReply *r = redis_call(co->redis, del[1], 2, del, deadline_ms, NULL, &e);
    if (r != NULL) freeReplyObject(r);
    r = redis_call(co->redis, zrem[1], 3, zrem, deadline_ms, NULL, &e);
    if (r != NULL) freeReplyObject(r);
}

/* A node alone is all the nodes there are. */
static void show_alone(struct coordinator *co, struct coordination_pods *pods)
{
    *pods = (struct coordination_pods){ .count = 1, .all = 1, .seen_ms = clock_wall_ms() };
    snprintf(pods->pod[0].name, sizeof pods->pod[0].name, "%s", co->pod);
    pods->pod[0].until_ms = pods->seen_ms + silence_ms(co);
    coordination_write_pods(co->coordination, pods);
}

void pods_keep(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    struct coordination_pods *lists = mem_alloc(2 * sizeof *lists); /* too large for a task's stack */
    int present = 0;
    bool failing = false;
    int64_t next_ms;
    do {
        next_ms = clock_mono_ms() + co->config->leader_heartbeat_interval;
        if (co->redis != NULL)
            look(co, lists, &present, &failing);
        else
            show_alone(co, lists);
    } while (duty_wait(d, next_ms));
    if (co->redis != NULL && !failing) leave(co);
    free(lists);
}
