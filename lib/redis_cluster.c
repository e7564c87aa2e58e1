#include "redis_cluster.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "redis_error.h"
#include "redis_slots.h"
#include "task.h"
#include "waiters.h"

#define PAUSE_MS     100   /* between two readings of the map */
#define MOST_AGE_MS  10000 /* servers may have joined, and nobody here have been redirected to them */
#define MOST_ANSWERS 10    /* one reading takes at most the time of so many answers */

struct redis_cluster {
    const struct redis_url *url;
    struct redis_links *servers;
    struct redis_slots map;
    struct redis_link **links; /* of the map's primaries, in their order */
    bool known, doubtful, reading;
    struct waiters waiters; /* for the end of the reading */
    int64_t read_again_ms, outdated_ms;
    struct err error; /* why the last reading was in vain */
};

/* --- reading the map --- */

static void take_map(struct redis_cluster *c, const struct redis_slots *map)
{
    if (!c->known) log_info("redis cluster found: primaries=%zu", map->count);
    redis_slots_done(&c->map);
    c->map = *map;
    c->links = mem_resize(c->links, map->count * sizeof *c->links);
    redis_links_retire_all(c->servers);
    for (size_t i = 0; i < map->count; i++) c->links[i] = redis_links_to(c->servers, &map->primaries[i]);
    c->known = true;
}

static bool read_from(struct redis_cluster *c, struct redis_link *server, int64_t deadline_ms, struct err *e)
{
    enum redis_fate fate;
    struct redis_slots *map = mem_alloc(sizeof *map); /* too large for a task's stack */
    struct redis_address asked = *redis_link_address(server);
    struct redis_command slots = { .argc = 2,
                                   .argv = (struct bytes[]){ BYTES_LITERAL("CLUSTER"), BYTES_LITERAL("SLOTS") } };
    redisReply *reply = redis_link_call(server, &slots, deadline_ms, &fate, e);
    bool ok = reply != NULL;
    if (ok && reply->type == REDIS_REPLY_ERROR) ok = redis_error_set(redis_error_of(reply->str), reply->str, e);
    if (ok) ok = redis_slots_read(reply, &asked, map, e);
    if (ok) take_map(c, map);
    if (reply != NULL) freeReplyObject(reply);
    free(map);
    return ok;
}

/* Asks first who is connected, then the others, then whom REDIS_URL names. */
static bool read_map(struct redis_cluster *c, int64_t deadline_ms, struct err *e)
{
    size_t known = c->map.count, all = known + c->url->server_count;
    struct redis_address *ask = mem_alloc(all * sizeof *ask); /* a copy: MOVED may change the map meanwhile */
    size_t n = 0;
    for (int up = 1; up >= 0; up--)
        for (size_t i = 0; i < known; i++)
            if ((redis_link_connection(c->links[i]) != 0) == up) ask[n++] = c->map.primaries[i];
    memcpy(&ask[n], c->url->servers, c->url->server_count * sizeof *ask);
    bool ok = false;
    for (size_t i = 0; !ok && i < all; i++) ok = read_from(c, redis_links_to(c->servers, &ask[i]), deadline_ms, e);
    free(ask);
    return ok;
}

/* One reading at a time, in a task of its own: its outcome is everybody's, not one request's deadline's. */
static void read_once(void *arg)
{
    struct redis_cluster *c = arg;
    struct err e;
    int64_t now_ms = clock_mono_ms();
    c->doubtful = false;
    if (!read_map(c, now_ms + MOST_ANSWERS * c->servers->options.timeout_ms, &e)) {
        c->error = e;
        c->doubtful = true;
    }
    now_ms = clock_mono_ms();
    c->read_again_ms = now_ms + PAUSE_MS;
    c->outdated_ms = now_ms + MOST_AGE_MS;
    c->reading = false;
    waiters_wake(&c->waiters);
}

static void read_beside(struct redis_cluster *c)
{
    if (c->reading || clock_mono_ms() < c->read_again_ms) return;
    c->reading = true;
    if (task_current() != NULL)
        task_start(read_once, c);
    else
        read_once(c);
}

static bool wait_for_map(struct redis_cluster *c, int64_t deadline_ms, struct err *e)
{
    if (c->doubtful || (c->known && clock_mono_ms() >= c->outdated_ms)) read_beside(c);
    while (!c->known) {
        read_beside(c);
        if (!c->reading && !c->known) {
            *e = c->error;
            return false;
        }
        if (clock_mono_ms() >= deadline_ms)
            return err_set(e, ERR_UNAVAILABLE, "redis: the request's time is over before the cluster is known");
        if (c->reading) waiters_wait(&c->waiters, deadline_ms);
    }
    return true;
}

void redis_cluster_doubt(struct redis_cluster *c)
{
    c->doubtful = true;
}

void redis_cluster_look_again(struct redis_cluster *c, int64_t deadline_ms)
{
    c->doubtful = true;
    read_beside(c);
    while (c->reading && clock_mono_ms() < deadline_ms) waiters_wait(&c->waiters, deadline_ms);
}

/* --- using it --- */

struct redis_link *redis_cluster_server(struct redis_cluster *c, struct bytes key, int64_t deadline_ms, struct err *e)
{
    if (!wait_for_map(c, deadline_ms, e)) return NULL;
    if (key.at == NULL) return c->links[0];
    uint16_t slot = redis_slot_of(key);
    if (c->map.owner[slot] >= 0) return c->links[c->map.owner[slot]];
    c->doubtful = true;
    err_set_away(e, "redis: no server of the cluster holds slot %u", slot);
    return NULL;
}

struct redis_link *redis_cluster_moved(struct redis_cluster *c, struct bytes key, const char *reply_text,
                                       const struct redis_link *from)
{
    struct redis_address to;
    if (key.at == NULL || !redis_slots_redirection(reply_text, redis_link_address(from), &to)) return NULL;
    metrics_add(METRIC_redis_redirections_total, 1);
    c->doubtful = true;
    size_t known = c->map.count, i = redis_slots_move(&c->map, redis_slot_of(key), &to);
    if (c->map.count > known) {
        c->links = mem_resize(c->links, c->map.count * sizeof *c->links);
        c->links[i] = redis_links_to(c->servers, &to);
    }
    return c->links[i];
}

struct redis_link *redis_cluster_asked(struct redis_cluster *c, const char *reply_text, const struct redis_link *from)
{
    struct redis_address to;
    if (!redis_slots_redirection(reply_text, redis_link_address(from), &to)) return NULL;
    metrics_add(METRIC_redis_redirections_total, 1);
    return redis_links_to(c->servers, &to);
}

size_t redis_cluster_primaries(struct redis_cluster *c, struct redis_address **list, int64_t deadline_ms, struct err *e)
{
    if (!wait_for_map(c, deadline_ms, e)) return 0;
    *list = mem_alloc(c->map.count * sizeof **list);
    memcpy(*list, c->map.primaries, c->map.count * sizeof **list);
    return c->map.count;
}

/* --- one cluster --- */

struct redis_cluster *redis_cluster_open(const struct redis_url *url, struct redis_links *servers)
{
    struct redis_cluster *c = mem_alloc(sizeof *c);
    c->url = url;
    c->servers = servers;
    return c;
}

void redis_cluster_close(struct redis_cluster *c)
{
    if (c == NULL) return;
    redis_slots_done(&c->map);
    free(c->links);
    free(c);
}
