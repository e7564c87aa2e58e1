#include "coherence.h"

#include "clock.h"
#include "duties.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "redis_keys.h"
#include "redis_slots.h"
#include "session_cache.h"
#include "subscriber.h"
#include "task.h"

#include <inttypes.h>

#define CHECK_EVERY_MS 80 /* well below the age at which workers stop believing a stamp (COORDINATION_COHERENT_MS) */
#define RETRY_MS       500
#define COMPLAIN_MS    60000

/* One primary: the coordinator's connection to it tracks, and redirects what it sees to a subscriber's. RESP2 has no
 * other way: a connection that subscribes can do nothing else. */
struct tracker {
    struct coherence *ch;
    struct redis_address server;
    struct subscriber *subscriber;
    int64_t client_id;  /* of the subscriber's connection that is redirected to; 0: nothing is tracked */
    int64_t checked_ms; /* monotonic: when the last question was sent whose answer said that it tracks; 0: none */
    bool stopping, running, current;
    struct redis_node *others; /* of a cluster: the other primaries that its server knew at the last check */
    size_t other_count;
};

struct coherence {
    struct coordinator *co;
    struct session_cache *cache;
    struct tracker **tracker;
    size_t count;
    int64_t complain_ms;
    bool proven; /* as the log was told */
};

/* --- what Redis tells --- */

static void invalidate(struct coherence *ch, const redisReply *key)
{
    static const char prefix[] = REDIS_SESSION_PREFIX;
    char id[IDS_TEXT_BYTES];
    if (key->type != REDIS_REPLY_STRING || strncmp(key->str, prefix, sizeof prefix - 1) != 0) return;
    struct bytes name = { key->str + sizeof prefix - 1, (size_t)key->len - (sizeof prefix - 1) };
    if (ids_read(name, id)) session_cache_invalidate(ch->cache, id);
}

/* The payload is a list of keys, or nil: everything (FLUSHALL). */
static void message(void *ctx, struct bytes channel, const redisReply *payload)
{
    struct coherence *ch = ((struct tracker *)ctx)->ch;
    (void)channel;
    if (payload->type == REDIS_REPLY_ARRAY) {
        metrics_add(METRIC_cache_invalidations_total, payload->elements);
        for (size_t i = 0; i < payload->elements; i++) invalidate(ch, payload->element[i]);
    } else {
        session_cache_invalidate_all(ch->cache);
    }
}

static void set_proven(struct coherence *ch, bool proven)
{
    if (proven && !ch->proven) log_info("session cache is coherent, workers read from it");
    if (!proven && ch->proven) log_info("session cache is not known to be coherent, every read asks redis");
    ch->proven = proven;
}

/* What was sent from now on may have been lost. */
static void forget(struct tracker *t)
{
    free(t->others);
    t->others = NULL;
    t->other_count = 0;
    if (t->client_id == 0) return;
    t->client_id = t->checked_ms = 0;
    coordination_new_generation(t->ch->co->coordination); /* takes the stamp away */
    set_proven(t->ch, false);
}

static void lost(void *ctx)
{
    forget(ctx);
}

static void subscribed(void *ctx)
{
    (void)ctx; /* the tracker's task sees the new connection's number */
}

/* --- tracking --- */

static void complain(struct coherence *ch, const struct err *e)
{
    int64_t now_ms = clock_mono_ms();
    if (now_ms < ch->complain_ms) return;
    ch->complain_ms = now_ms + COMPLAIN_MS;
    log_warn("redis does not tell of changes, every read asks it: error=\"%s\"", e->text);
}

static redisReply *ask(struct tracker *t, size_t argc, const struct bytes *argv, struct err *e)
{
    struct coordinator *co = t->ch->co;
    return redis_call_at(co->redis, &t->server, argc, argv, clock_mono_ms() + co->config->redis_timeout_ms, e);
}

static bool tell(struct tracker *t, size_t argc, const struct bytes *argv, struct err *e)
{
    redisReply *reply = ask(t, argc, argv, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

/* What changed before this was missed, so every copy that is older is unproven; and that before the first stamp. */
static bool begin(struct tracker *t, int64_t client_id, struct err *e)
{
    struct number id;
    struct bytes off[] = { BYTES_LITERAL("CLIENT"), BYTES_LITERAL("TRACKING"), BYTES_LITERAL("OFF") };
    struct bytes on[] = { off[0],
                          off[1],
                          BYTES_LITERAL("ON"),
                          BYTES_LITERAL("REDIRECT"),
                          number(&id, client_id),
                          BYTES_LITERAL("BCAST"),
                          BYTES_LITERAL("PREFIX"),
                          BYTES_LITERAL(REDIS_SESSION_PREFIX) };
    if (!tell(t, 3, off, e) || !tell(t, 8, on, e)) return false;
    session_cache_invalidate_all(t->ch->cache);
    t->client_id = client_id;
    return true;
}

static bool has_word(const redisReply *list, const char *word)
{
    for (size_t i = 0; list->type == REDIS_REPLY_ARRAY && i < list->elements; i++)
        if (list->element[i]->type == REDIS_REPLY_STRING && strcmp(list->element[i]->str, word) == 0) return true;
    return false;
}

/* The value behind a name in a flat list. */
static const redisReply *value_of(const redisReply *list, const char *name)
{
    for (size_t i = 0; list->type == REDIS_REPLY_ARRAY && i + 1 < list->elements; i += 2)
        if (list->element[i]->type == REDIS_REPLY_STRING && strcmp(list->element[i]->str, name) == 0)
            return list->element[i + 1];
    return NULL;
}

/* A cluster may grow, and the slots of our sessions go elsewhere: before a server can send anybody to another one, by
 * ASK or by MOVED, it knows that one. So all that it knows are tracked, slots or not. One that has lost the others, and
 * so does not hear that it was replaced, says that the cluster is not whole. */
static bool look_around(struct tracker *t, struct err *e)
{
    redisReply *info = ask(t, 2, (struct bytes[]){ BYTES_LITERAL("CLUSTER"), BYTES_LITERAL("INFO") }, e);
    if (info == NULL) return false;
    bool whole = info->type == REDIS_REPLY_STRING && strstr(info->str, "cluster_state:ok") != NULL;
    freeReplyObject(info);
    if (!whole) return err_set_away(e, "%s sees no whole cluster", t->server.host);
    redisReply *nodes = ask(t, 2, (struct bytes[]){ BYTES_LITERAL("CLUSTER"), BYTES_LITERAL("NODES") }, e);
    if (nodes == NULL) return false;
    free(t->others);
    t->others = NULL;
    t->other_count = nodes->type == REDIS_REPLY_STRING
                         ? redis_slots_others((struct bytes){ nodes->str, (size_t)nodes->len }, &t->others)
                         : 0;
    freeReplyObject(nodes);
    return true;
}

/* Does it still track, and is it still a primary? A connection that was made anew does not track; a primary that was
 * replaced goes on answering, and hears of nothing any more. */
static bool check(struct tracker *t, struct err *e)
{
    int64_t sent_ms = clock_mono_ms();
    if (t->ch->co->url.topology == REDIS_CLUSTER && !look_around(t, e)) return false;
    redisReply *role = ask(t, 1, (struct bytes[]){ BYTES_LITERAL("ROLE") }, e);
    if (role == NULL) return false;
    bool primary = has_word(role, "master");
    freeReplyObject(role);
    if (!primary) return err_set_away(e, "%s is no primary any more", t->server.host);
    redisReply *info = ask(t, 2, (struct bytes[]){ BYTES_LITERAL("CLIENT"), BYTES_LITERAL("TRACKINGINFO") }, e);
    if (info == NULL) return false;
    const redisReply *flags = value_of(info, "flags"), *redirect = value_of(info, "redirect");
    bool whole = flags != NULL && redirect != NULL && has_word(flags, "bcast") && !has_word(flags, "broken_redirect") &&
                 redirect->integer == t->client_id;
    freeReplyObject(info);
    if (!whole) return err_set_away(e, "the connection that tracks was lost");
    t->checked_ms = sent_ms;
    return true;
}

static bool look_after(struct tracker *t, struct err *e)
{
    int64_t client_id = subscriber_client_id(t->subscriber);
    if (client_id == 0) return err_set_away(e, "messages are not heard");
    if (client_id != t->client_id && !begin(t, client_id, e)) return false;
    return check(t, e);
}

static void run_tracker(void *arg)
{
    struct tracker *t = arg;
    while (!t->stopping) {
        struct err e = { .kind = ERR_NONE };
        bool ok = look_after(t, &e);
        if (!ok) {
            forget(t);
            if (e.kind != ERR_NONE && !e.away) complain(t->ch, &e);
        }
        if (!t->stopping) task_park(clock_mono_ms() + (ok || e.away ? CHECK_EVERY_MS : RETRY_MS));
    }
    t->running = false;
}

static struct tracker *tracker_open(struct coherence *ch, const struct redis_address *server)
{
    const struct config *cfg = ch->co->config;
    struct tracker *t = mem_alloc(sizeof *t);
    *t = (struct tracker){ .ch = ch, .server = *server, .running = true };
    struct subscriber_options o = { .redis = ch->co->redis,
                                    .url = &ch->co->url,
                                    .server = &t->server,
                                    .client_name = "hyperpage-invalidations",
                                    .purpose = "invalidations",
                                    .timeout_ms = cfg->redis_timeout_ms,
                                    .ping_every_ms = CHECK_EVERY_MS,
                                    .channels = { "__redis__:invalidate" },
                                    .channel_count = 1,
                                    .pollset = ch->co->pollset,
                                    .events = { subscribed, message, lost, t } };
    t->subscriber = subscriber_open(&o);
    subscriber_start(t->subscriber);
    task_start(run_tracker, t);
    return t;
}

/* Its tasks end soon; then it can be closed. */
static void tracker_stop(struct tracker *t)
{
    forget(t);
    t->stopping = true;
    subscriber_stop(t->subscriber);
}

static bool tracker_has_ended(const struct tracker *t)
{
    return !t->running && subscriber_has_ended(t->subscriber);
}

static void tracker_close(struct tracker *t)
{
    forget(t);
    subscriber_close(t->subscriber);
    free(t);
}

/* --- all of them --- */

static struct tracker *tracker_of(struct coherence *ch, const struct redis_address *server)
{
    for (size_t i = 0; i < ch->count; i++)
        if (!ch->tracker[i]->stopping && redis_address_equal(&ch->tracker[i]->server, server)) return ch->tracker[i];
    return NULL;
}

static void close_ended(struct coherence *ch)
{
    size_t kept = 0;
    for (size_t i = 0; i < ch->count; i++) {
        if (ch->tracker[i]->stopping && tracker_has_ended(ch->tracker[i]))
            tracker_close(ch->tracker[i]);
        else
            ch->tracker[kept++] = ch->tracker[i];
    }
    ch->count = kept;
}

/* Others may call the same server by its name. */
static void follow(struct coherence *ch, const struct redis_address *server, const struct redis_address *name)
{
    struct tracker *t = tracker_of(ch, server);
    if (t == NULL && name->host[0] != '\0') t = tracker_of(ch, name);
    if (t == NULL) {
        ch->tracker = mem_resize(ch->tracker, (ch->count + 1) * sizeof *ch->tracker);
        t = ch->tracker[ch->count++] = tracker_open(ch, server);
    }
    t->current = true;
}

/* One tracker for each primary, and for nobody else. While nobody knows who they are, those that there are stay.
 * Nothing parks from where we know who they are until the stamp. */
static void follow_primaries(struct coherence *ch)
{
    struct redis_address *list = NULL;
    struct err e;
    size_t n = redis_primaries(ch->co->redis, &list, clock_mono_ms() + ch->co->config->redis_timeout_ms, &e);
    size_t had = ch->count;
    for (size_t i = 0; i < had; i++) ch->tracker[i]->current = n == 0;
    for (size_t i = 0; i < n; i++) follow(ch, &list[i], &list[i]);
    for (size_t i = 0; i < had; i++)
        for (size_t other = 0; !ch->tracker[i]->stopping && other < ch->tracker[i]->other_count; other++)
            follow(ch, &ch->tracker[i]->others[other].address, &ch->tracker[i]->others[other].name);
    for (size_t i = 0; i < ch->count; i++)
        if (!ch->tracker[i]->current && !ch->tracker[i]->stopping) tracker_stop(ch->tracker[i]);
    free(list);
    close_ended(ch);
}

/* Everything that changed in Redis before this moment is known here. 0: nobody can say. A question's answer comes after
 * all that was sent before the question was seen, and that it was tracked until then says the other connection. */
static int64_t known_until_ms(const struct coherence *ch)
{
    int64_t until_ms = CLOCK_NEVER;
    size_t tracked = 0;
    for (size_t i = 0; i < ch->count; i++) {
        const struct tracker *t = ch->tracker[i];
        if (t->stopping) continue;
        int64_t heard_ms = subscriber_heard_ms(t->subscriber);
        if (t->client_id == 0 || t->client_id != subscriber_client_id(t->subscriber)) return 0;
        if (t->checked_ms < until_ms) until_ms = t->checked_ms;
        if (heard_ms < until_ms) until_ms = heard_ms;
        tracked++;
    }
    return tracked > 0 ? until_ms : 0;
}

static void stamp(struct coherence *ch)
{
    int64_t until_ms = known_until_ms(ch);
    if (until_ms > 0) coordination_stamp(ch->co->coordination, until_ms);
    set_proven(ch, until_ms > 0);
}

static bool all_ended(struct coherence *ch)
{
    close_ended(ch);
    return ch->count == 0;
}

void coherence_keep(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    const struct config *cfg = co->config;
    struct err e;
    struct coherence ch = { .co = co };
    if (co->redis == NULL || cfg->session_cache_bytes == 0 || !cfg->session_cache_reads) {
        while (duty_wait(d, CLOCK_NEVER)) continue;
        return;
    }
    ch.cache = session_cache_open(cfg->run_dir, cfg->session_cache_bytes, &e);
    if (ch.cache == NULL) {
        complain(&ch, &e);
        return;
    }
    do {
        follow_primaries(&ch);
        stamp(&ch);
    } while (duty_wait(d, clock_mono_ms() + CHECK_EVERY_MS / 2));
    for (size_t i = 0; i < ch.count; i++) tracker_stop(ch.tracker[i]);
    while (!all_ended(&ch)) task_park(clock_mono_ms() + 1);
    free(ch.tracker);
    session_cache_close(ch.cache);
}
