#include "redis_sentinel.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "redis_error.h"
#include "task.h"
#include "waiters.h"

#define MOST_SENTINELS      32
#define CHECK_EVERY_MS      100 /* for so long a primary that was replaced without knowing it may be written to */
#define COLLEAGUES_EVERY_MS 10000
#define PAUSE_MS            50 /* after all Sentinels were asked in vain */
#define MOST_ANSWERS        10 /* one round of asking takes at most the time of so many answers */

struct redis_sentinel {
    struct redis_links sentinels, *servers;
    struct redis_address known[MOST_SENTINELS]; /* who answered last comes first */
    size_t known_count;
    char name[sizeof((struct redis_url *)0)->primary];
    struct redis_link *primary;
    uint64_t connection; /* of `primary`, on which ROLE confirmed it; 0: in doubt */
    bool asking;
    struct waiters waiters; /* for the outcome */
    int64_t ask_again_ms, check_at_ms, colleagues_at_ms;
    struct err error; /* why the last asking was in vain */
};

/* --- asking --- */

/* A connection that was idle for long may turn out to be closed, hence the second try. Error replies are errors here.
 */
static redisReply *ask_server(struct redis_link *link, size_t argc, const struct bytes *argv, int64_t deadline_ms,
                              struct err *e)
{
    enum redis_fate fate;
    struct redis_command c = { .argc = argc, .argv = argv };
    redisReply *reply = redis_link_call(link, &c, deadline_ms, &fate, e);
    if (fate == REDIS_BROKEN) reply = redis_link_call(link, &c, deadline_ms, &fate, e);
    if (reply == NULL || reply->type != REDIS_REPLY_ERROR) return reply;
    redis_error_set(redis_error_of(reply->str), reply->str, e);
    freeReplyObject(reply);
    return NULL;
}

static bool set_address(struct redis_address *a, const redisReply *host, const redisReply *port)
{
    if (host->type != REDIS_REPLY_STRING || port->type != REDIS_REPLY_STRING) return false;
    if ((size_t)host->len >= sizeof a->host || host->len == 0) return false;
    *a = (struct redis_address){ .port = atoi(port->str) };
    memcpy(a->host, host->str, (size_t)host->len);
    return a->port > 0 && a->port < 65536;
}

static bool ask_for_primary(struct redis_sentinel *s, struct redis_link *sentinel, int64_t deadline_ms,
                            struct redis_address *primary, struct err *e)
{
    redisReply *reply = ask_server(
        sentinel, 3,
        (struct bytes[]){ BYTES_LITERAL("SENTINEL"), BYTES_LITERAL("GET-MASTER-ADDR-BY-NAME"), bytes_of(s->name) },
        deadline_ms, e);
    if (reply == NULL) return false;
    bool ok = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
              set_address(primary, reply->element[0], reply->element[1]);
    freeReplyObject(reply);
    return ok || err_set(e, ERR_UNAVAILABLE, "redis: the Sentinel at %s knows no primary named %s",
                         redis_link_name(sentinel), s->name);
}

static bool ask_for_role(struct redis_link *server, int64_t deadline_ms, struct err *e)
{
    redisReply *reply = ask_server(server, 1, (struct bytes[]){ BYTES_LITERAL("ROLE") }, deadline_ms, e);
    if (reply == NULL) return false;
    bool ok = reply->type == REDIS_REPLY_ARRAY && reply->elements > 0 &&
              reply->element[0]->type == REDIS_REPLY_STRING && strcmp(reply->element[0]->str, "master") == 0;
    freeReplyObject(reply);
    return ok || err_set_away(e, "redis: %s is named as primary, but is none", redis_link_name(server));
}

static bool confirmed(const struct redis_sentinel *s)
{
    return s->connection != 0 && redis_link_connection(s->primary) == s->connection;
}

/* --- which Sentinels there are --- */

/* A new one takes the place of the one that has not answered for longest, if there are too many. */
static bool add_sentinel(struct redis_sentinel *s, const struct redis_address *address)
{
    for (size_t i = 0; i < s->known_count; i++)
        if (redis_address_equal(&s->known[i], address)) return false;
    if (s->known_count < MOST_SENTINELS) s->known_count++;
    s->known[s->known_count - 1] = *address;
    return true;
}

static void put_first(struct redis_sentinel *s, size_t i)
{
    struct redis_address first = s->known[i];
    memmove(&s->known[1], &s->known[0], i * sizeof first);
    s->known[0] = first;
}

/* Each of the reply's elements is a list of names and values. */
static void learn_sentinel(struct redis_sentinel *s, const redisReply *fields)
{
    const redisReply *host = NULL, *port = NULL;
    struct redis_address address;
    for (size_t i = 0; fields->type == REDIS_REPLY_ARRAY && i + 1 < fields->elements; i += 2) {
        if (fields->element[i]->type != REDIS_REPLY_STRING) return;
        if (strcmp(fields->element[i]->str, "ip") == 0) host = fields->element[i + 1];
        if (strcmp(fields->element[i]->str, "port") == 0) port = fields->element[i + 1];
    }
    if (host != NULL && port != NULL && set_address(&address, host, port) && add_sentinel(s, &address))
        log_info("redis Sentinel found: server=%s", redis_link_name(redis_links_to(&s->sentinels, &address)));
}

/* REDIS_URL may name one that is gone by now, while its colleagues are known to each other. */
static void ask_for_colleagues(struct redis_sentinel *s, struct redis_link *sentinel, int64_t deadline_ms)
{
    struct err e;
    int64_t now_ms = clock_mono_ms();
    if (now_ms < s->colleagues_at_ms) return;
    s->colleagues_at_ms = now_ms + COLLEAGUES_EVERY_MS;
    redisReply *reply = ask_server(
        sentinel, 3, (struct bytes[]){ BYTES_LITERAL("SENTINEL"), BYTES_LITERAL("SENTINELS"), bytes_of(s->name) },
        deadline_ms, &e);
    if (reply == NULL) return;
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++)
        learn_sentinel(s, reply->element[i]);
    freeReplyObject(reply);
}

/* --- one asking at a time, in a task of its own: its outcome is everybody's, not one request's deadline's --- */

static void take_primary(struct redis_sentinel *s, struct redis_link *server)
{
    if (s->primary == NULL)
        log_info("redis primary found: server=%s", redis_link_name(server));
    else if (s->primary != server)
        log_warn("redis primary changed: from=%s to=%s", redis_link_name(s->primary), redis_link_name(server));
    redis_links_retire_all(s->servers);
    s->primary = redis_links_to(s->servers, redis_link_address(server));
    s->connection = redis_link_connection(s->primary);
}

static bool ask_all(struct redis_sentinel *s, int64_t deadline_ms, struct err *e)
{
    for (size_t i = 0; i < s->known_count; i++) {
        struct redis_link *sentinel = redis_links_to(&s->sentinels, &s->known[i]);
        struct redis_address named;
        if (!ask_for_primary(s, sentinel, deadline_ms, &named, e)) continue;
        struct redis_link *server = redis_links_to(s->servers, &named);
        bool known = server == s->primary && confirmed(s);
        if (!known && !ask_for_role(server, deadline_ms, e)) continue;
        if (!known) take_primary(s, server);
        put_first(s, i);
        ask_for_colleagues(s, sentinel, deadline_ms);
        return true;
    }
    return false;
}

static void ask(void *arg)
{
    struct redis_sentinel *s = arg;
    struct err e;
    int64_t now_ms = clock_mono_ms();
    bool ok = ask_all(s, now_ms + MOST_ANSWERS * s->servers->options.timeout_ms, &e);
    if (!ok) s->error = e;
    now_ms = clock_mono_ms();
    s->ask_again_ms = ok ? 0 : now_ms + PAUSE_MS;
    s->check_at_ms = now_ms + CHECK_EVERY_MS;
    s->asking = false;
    waiters_wake(&s->waiters);
}

static void ask_beside(struct redis_sentinel *s)
{
    if (s->asking) return;
    s->asking = true;
    if (task_current() != NULL)
        task_start(ask, s);
    else
        ask(s);
}

struct redis_link *redis_sentinel_primary(struct redis_sentinel *s, int64_t deadline_ms, struct err *e)
{
    int64_t now_ms = clock_mono_ms();
    if (confirmed(s) && now_ms >= s->check_at_ms) ask_beside(s);
    for (; !confirmed(s); now_ms = clock_mono_ms()) {
        if (!s->asking && now_ms < s->ask_again_ms) {
            *e = s->error;
            return NULL;
        }
        if (now_ms >= deadline_ms) {
            err_set(e, ERR_UNAVAILABLE, "redis: the request's time is over before a primary is found");
            return NULL;
        }
        ask_beside(s);
        if (s->asking) waiters_wait(&s->waiters, deadline_ms);
    }
    return s->primary;
}

void redis_sentinel_doubt(struct redis_sentinel *s, const struct redis_link *link)
{
    if (link == s->primary) s->connection = 0;
}

void redis_sentinel_flush(struct redis_sentinel *s)
{
    redis_links_flush(&s->sentinels);
}

struct redis_sentinel *redis_sentinel_open(const struct redis_url *url, const char *password,
                                           struct redis_links *servers)
{
    struct redis_sentinel *s = mem_alloc(sizeof *s);
    s->servers = servers;
    s->sentinels.options = (struct redis_link_options){ .user = "",
                                                        .password = password,
                                                        .client_name = servers->options.client_name,
                                                        .timeout_ms = servers->options.timeout_ms,
                                                        .pollset = servers->options.pollset };
    for (size_t i = 0; i < url->server_count; i++) add_sentinel(s, &url->servers[i]);
    memcpy(s->name, url->primary, sizeof s->name);
    return s;
}

void redis_sentinel_close(struct redis_sentinel *s)
{
    if (s == NULL) return;
    redis_links_done(&s->sentinels);
    free(s);
}
