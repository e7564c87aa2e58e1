#include "redis.h"

#include "clock.h"
#include "mem.h"
#include "metrics.h"
#include "redis_cluster.h"
#include "redis_error.h"
#include "redis_sentinel.h"
#include "task.h"

#include <assert.h>
#include <poll.h>

#define MOST_SENDINGS 10 /* of one command, all redirections between two pauses together */
#define TRY_AGAIN_MS  10

struct redis {
    struct redis_options o;
    struct redis_links servers;
    struct redis_script **scripts;   /* of all modules that use it */
    struct redis_sentinel *sentinel; /* or NULL */
    struct redis_cluster *cluster;   /* or NULL */
};

/* One command on its way to whoever can execute it. */
struct journey {
    struct bytes key;
    const struct redis_address *server; /* NULL: where the key is */
    struct redis_command command;
    struct redis_link *next; /* named by a redirection */
    int sendings;            /* since it began or paused */
    bool repeated;           /* may have been executed before */
    bool looked_again;
    int64_t deadline_ms;
};

/* --- where to --- */

static struct redis_link *primary_at(struct redis *r, const struct journey *j, struct err *e)
{
    struct redis_link *link = redis_sentinel_primary(r->sentinel, j->deadline_ms, e);
    if (link == NULL || j->server == NULL || redis_address_equal(redis_link_address(link), j->server)) return link;
    err_set(e, ERR_UNAVAILABLE, "redis: %s is not the primary any more", j->server->host);
    return NULL;
}

static struct redis_link *link_for(struct redis *r, const struct journey *j, struct err *e)
{
    if (j->next != NULL) return j->next;
    if (r->sentinel != NULL) return primary_at(r, j, e);
    if (r->cluster == NULL) return redis_links_to(&r->servers, &r->o.url.servers[0]);
    if (j->server != NULL) return redis_links_to(&r->servers, j->server);
    return redis_cluster_server(r->cluster, j->key, j->deadline_ms, e);
}

/* --- what to do when it was the wrong place, or the wrong time: each answers whether to send again --- */

static bool look_again(struct redis *r, struct journey *j, const struct redis_link *link)
{
    bool first = !j->looked_again;
    j->looked_again = true;
    if (r->sentinel != NULL)
        redis_sentinel_doubt(r->sentinel, link); /* the next link_for() asks */
    else if (r->cluster != NULL && first)
        redis_cluster_look_again(r->cluster, j->deadline_ms);
    else if (r->cluster != NULL)
        redis_cluster_doubt(r->cluster);
    return first && (r->sentinel != NULL || r->cluster != NULL);
}

static bool wait_a_bit(struct journey *j)
{
    int64_t until_ms = clock_mono_ms() + TRY_AGAIN_MS;
    if (until_ms >= j->deadline_ms) return false;
    for (int64_t now_ms; (now_ms = clock_mono_ms()) < until_ms;) {
        if (task_current() != NULL)
            task_park(until_ms);
        else
            poll(NULL, 0, (int)(until_ms - now_ms));
    }
    j->sendings = 0;
    return true;
}

static bool after_error_reply(struct redis *r, struct journey *j, const struct redis_link *link, const char *text)
{
    switch (redis_error_of(text)->remedy) {
    case REDIS_GO_THERE:
        j->next = r->cluster ? redis_cluster_moved(r->cluster, j->key, text, link) : NULL;
        return j->next != NULL;
    case REDIS_ASK_THERE:
        j->next = r->cluster ? redis_cluster_asked(r->cluster, text, link) : NULL;
        j->command.asking = j->next != NULL;
        return j->next != NULL;
    case REDIS_WAIT_A_BIT:
        return wait_a_bit(j);
    case REDIS_LOOK_AGAIN:
        return look_again(r, j, link);
    case REDIS_NOTHING_HELPS:
    case REDIS_SEND_SCRIPT:
        break;
    }
    return false;
}

static bool after_silence(struct redis *r, struct journey *j, const struct redis_link *link, enum redis_fate fate)
{
    if (fate == REDIS_BROKEN) {
        bool first = !j->repeated;
        j->repeated = true;
        look_again(r, j, link);
        return first;
    }
    return fate == REDIS_NOT_SENT && look_again(r, j, link); /* another may serve it by now */
}

/* Sends until there is a reply that no other server and no later moment would improve. It may be an error reply. */
static redisReply *travel(struct redis *r, struct journey *j, struct err *e)
{
    for (j->sendings = 1;; j->sendings++) {
        enum redis_fate fate;
        struct redis_link *link = link_for(r, j, e);
        if (link == NULL) return NULL;
        int64_t began_us = clock_mono_us();
        redisReply *reply = redis_link_call(link, &j->command, j->deadline_ms, &fate, e);
        metrics_phase(PHASE_REDIS, clock_mono_us() - began_us);
        j->next = NULL;
        j->command.asking = false;
        if (reply == NULL) {
            if (!after_silence(r, j, link, fate) || j->sendings == MOST_SENDINGS) return NULL;
            continue;
        }
        if (reply->type != REDIS_REPLY_ERROR || !after_error_reply(r, j, link, reply->str) ||
            j->sendings == MOST_SENDINGS)
            return reply;
        freeReplyObject(reply);
    }
}

/* --- the calls --- */

static redisReply *refuse_error(redisReply *reply, struct err *e)
{
    if (reply == NULL || reply->type != REDIS_REPLY_ERROR) return reply;
    metrics_add(METRIC_redis_error_replies, 1);
    redis_error_set(redis_error_of(reply->str), reply->str, e);
    freeReplyObject(reply);
    return NULL;
}

redisReply *redis_call(struct redis *r, struct bytes key, size_t argc, const struct bytes *argv, int64_t deadline_ms,
                       bool *repeated, struct err *e)
{
    struct journey j = { .key = key,
                         .command = { .argc = argc, .argv = argv, .writes = repeated != NULL },
                         .deadline_ms = deadline_ms };
    redisReply *reply = travel(r, &j, e);
    if (repeated != NULL) *repeated = j.repeated;
    return refuse_error(reply, e);
}

redisReply *redis_eval_keys(struct redis *r, struct redis_script *script, size_t keys, size_t argc,
                            const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e)
{
    struct bytes all[3 + 4 + 8];
    assert(keys >= 1 && keys <= 4 && argc >= keys && argc <= keys + 8);
    all[0] = BYTES_LITERAL("EVALSHA");
    all[1] = (struct bytes){ script->sha, sizeof script->sha - 1 }; /* filled in before the first command is sent */
    all[2] = (struct bytes){ &"1234"[keys - 1], 1 };
    memcpy(&all[3], argv, argc * sizeof *argv);
    struct journey j = { .key = argv[0],
                         .command = { .argc = 3 + argc, .argv = all, .writes = repeated != NULL },
                         .deadline_ms = deadline_ms };
    redisReply *reply = travel(r, &j, e);
    if (reply != NULL && reply->type == REDIS_REPLY_ERROR && redis_error_of(reply->str)->remedy == REDIS_SEND_SCRIPT) {
        freeReplyObject(reply);
        all[0] = BYTES_LITERAL("EVAL");
        all[1] = bytes_of(script->text);
        reply = travel(r, &j, e);
    }
    if (repeated != NULL) *repeated = j.repeated;
    return refuse_error(reply, e);
}

redisReply *redis_eval(struct redis *r, struct redis_script *script, struct bytes key, size_t argc,
                       const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e)
{
    struct bytes all[1 + 8] = { key };
    assert(argc <= 8);
    if (argc > 0) memcpy(&all[1], argv, argc * sizeof *argv);
    return redis_eval_keys(r, script, 1, 1 + argc, all, deadline_ms, repeated, e);
}

size_t redis_primaries(struct redis *r, struct redis_address **list, int64_t deadline_ms, struct err *e)
{
    if (r->cluster != NULL) return redis_cluster_primaries(r->cluster, list, deadline_ms, e);
    struct journey j = { .deadline_ms = deadline_ms };
    const struct redis_link *link = link_for(r, &j, e);
    if (link == NULL) return 0;
    *list = mem_alloc(sizeof **list);
    **list = *redis_link_address(link);
    return 1;
}

redisReply *redis_call_at(struct redis *r, const struct redis_address *primary, size_t argc, const struct bytes *argv,
                          int64_t deadline_ms, struct err *e)
{
    struct journey j = { .server = primary, .command = { .argc = argc, .argv = argv }, .deadline_ms = deadline_ms };
    return refuse_error(travel(r, &j, e), e);
}

void redis_flush(struct redis *r)
{
    if (r->sentinel != NULL) redis_sentinel_flush(r->sentinel);
    redis_links_flush(&r->servers);
}

/* --- opening and closing --- */

struct redis *redis_open(const struct redis_options *o)
{
    struct redis *r = mem_alloc(sizeof *r);
    r->o = *o;
    const struct redis_url *url = &r->o.url;
    r->servers.options = (struct redis_link_options){ .user = url->user,
                                                      .password = url->password,
                                                      .db = url->db,
                                                      .client_name = o->client_name,
                                                      .timeout_ms = o->timeout_ms,
                                                      .wait_replicas = o->wait_replicas,
                                                      .pollset = o->pollset };
    if (url->topology == REDIS_SENTINEL)
        r->sentinel = redis_sentinel_open(url, o->sentinel_password ? o->sentinel_password : "", &r->servers);
    if (url->topology == REDIS_CLUSTER) r->cluster = redis_cluster_open(url, &r->servers);
    return r;
}

void redis_add_scripts(struct redis *r, struct redis_script *scripts, size_t count)
{
    struct redis_link_options *o = &r->servers.options;
    assert(r->servers.first == NULL);
    o->scripts = r->scripts = mem_resize(r->scripts, (o->script_count + count) * sizeof *r->scripts);
    for (size_t i = 0; i < count; i++) r->scripts[o->script_count++] = &scripts[i];
}

void redis_close(struct redis *r)
{
    if (r == NULL) return;
    redis_sentinel_close(r->sentinel);
    redis_cluster_close(r->cluster);
    redis_links_done(&r->servers);
    free(r->scripts);
    free(r);
}
