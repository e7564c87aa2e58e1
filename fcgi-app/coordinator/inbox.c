#include "inbox.h"

#include "clock.h"
#include "duties.h"
#include "leadership.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "operations.h"
#include "platforms.h"
#include "redis_keys.h"
#include "session_cache.h"
#include "span.h"
#include "subscriber.h"
#include "task.h"
#include "waiters.h"

#define MOST_WAITING       4096
#define MOST_WAITING_BYTES (1024 * 1024)
#define AT_ONCE            256  /* messages, then the loop has its turn */
#define AT_ONCE_US         5000 /* and after so long: one message may name thousands of keys */
#define MOST_SENDERS       256
#define REFRESH_EVERY_MS   1000  /* at most, however much is missed */
#define COMPLAIN_EVERY_MS  60000 /* at most, however much is malformed */

/* A message that waits for its turn, with its payload behind it. */
struct letter {
    struct letter *next;
    struct message message;
    bool election; /* it came on that channel */
    char payload[];
};

struct queue {
    struct letter *first, **last;
    size_t count;
};

/* The last message to all that came from one start of one sender. */
struct sender {
    uint64_t boot; /* 0: free */
    int64_t seq, heard_ms;
};

struct inbox {
    struct coordinator *co;
    struct subscriber *subscriber;
    struct session_cache *cache;
    char self[MESSAGE_SOURCE_BYTES]; /* who we are when we send: what comes back from there is passed over */
    char channel_election[512], channel_all[512], channel_pod[512];
    struct queue queue[MESSAGE_PRIORITIES];
    size_t waiting, waiting_bytes;
    struct waiters waiters; /* the task that works off the queues */
    struct sender sender[MOST_SENDERS];
    struct coordination_messages seen;
    struct coordination_limits limits;
    bool seen_changed, limits_changed;
    bool missed; /* something was, so all that it could have changed is to be learnt anew */
    int64_t refresh_at_ms, complain_at_ms;
};

/* --- what was missed --- */

static void refresh(struct inbox *ib, int64_t now_ms)
{
    ib->missed = false;
    ib->refresh_at_ms = now_ms + REFRESH_EVERY_MS;
    metrics_add(METRIC_coordination_refreshes_total, 1);
    coordination_new_generation(ib->co->coordination);
    session_cache_invalidate_all(ib->cache);
    leadership_look(ib->co->leadership);
    duties_ask(ib->co->duties, "pods");
}

static void note_missed(struct inbox *ib)
{
    ib->missed = true;
    waiters_wake(&ib->waiters);
}

/* Their messages to all are counted, so a number that is left out was a message that did not reach us. */
static void look_for_gap(struct inbox *ib, const struct message *m)
{
    int64_t now_ms = clock_mono_ms();
    struct sender *s = &ib->sender[0];
    for (size_t i = 0; i < MOST_SENDERS && s->boot != m->boot; i++) {
        struct sender *at = &ib->sender[i];
        if (at->boot == m->boot || at->heard_ms < s->heard_ms) s = at;
    }
    if (s->boot == m->boot && m->seq > s->seq + 1) {
        metrics_add(METRIC_coordination_gaps_total, 1);
        log_warn("messages were missed: sender=\"%s\" number=%" PRId64, m->source, m->seq - s->seq - 1);
        note_missed(ib);
    }
    if (s->boot != m->boot || m->seq > s->seq) s->seq = m->seq;
    s->boot = m->boot;
    s->heard_ms = now_ms;
}

/* --- the queues --- */

static struct letter *take_letter(struct inbox *ib, struct queue *q)
{
    struct letter *l = q->first;
    q->first = l->next;
    if (q->first == NULL) q->last = &q->first;
    q->count--;
    ib->waiting--;
    ib->waiting_bytes -= l->message.payload.len;
    return l;
}

/* What is dropped may have been one that we must not miss. */
static void drop_one(struct inbox *ib, enum message_priority p)
{
    static const enum metric dropped[] = { METRIC_coordination_messages_dropped_low,
                                           METRIC_coordination_messages_dropped_normal,
                                           METRIC_coordination_messages_dropped_high };
    metrics_add(dropped[p], 1);
    note_missed(ib);
}

/* Makes room for a message of this priority at the cost of lower ones, the oldest first. */
static bool make_room(struct inbox *ib, enum message_priority p, size_t bytes)
{
    for (int lower = MESSAGE_LOW; ib->waiting >= MOST_WAITING || ib->waiting_bytes + bytes > MOST_WAITING_BYTES;) {
        while (lower < (int)p && ib->queue[lower].count == 0) lower++;
        if (lower >= (int)p) return false;
        free(take_letter(ib, &ib->queue[lower]));
        drop_one(ib, (enum message_priority)lower);
    }
    return true;
}

static void put_in_queue(struct inbox *ib, const struct message *m, bool election)
{
    struct queue *q = &ib->queue[m->priority];
    if (!make_room(ib, m->priority, m->payload.len)) {
        drop_one(ib, m->priority);
        return;
    }
    struct letter *l = mem_alloc(sizeof *l + m->payload.len);
    l->message = *m;
    l->election = election;
    memcpy(l->payload, m->payload.at, m->payload.len);
    l->message.payload.at = l->payload;
    *q->last = l;
    q->last = &l->next;
    q->count++;
    ib->waiting++;
    ib->waiting_bytes += m->payload.len;
    coordination_show_waiting(ib->co->coordination, (int64_t)ib->waiting);
    waiters_wake(&ib->waiters);
}

/* --- what the subscriber hears --- */

static void complain(struct inbox *ib, struct bytes channel, const struct err *e)
{
    int64_t now_ms = clock_mono_ms();
    metrics_add(METRIC_coordination_messages_malformed_total, 1);
    if (now_ms < ib->complain_at_ms) return;
    ib->complain_at_ms = now_ms + COMPLAIN_EVERY_MS;
    log_warn("what came on a channel is no message: channel=\"%.*s\" reason=\"%s\"", (int)channel.len, channel.at,
             e->text);
}

static void received(void *ctx, struct bytes channel, const redisReply *payload)
{
    struct inbox *ib = ctx;
    struct message m;
    struct err e;
    if (payload->type != REDIS_REPLY_STRING) return;
    if (!message_read((struct bytes){ payload->str, (size_t)payload->len }, &m, &e)) {
        complain(ib, channel, &e);
        return;
    }
    if (strcmp(m.source, ib->self) == 0) return;
    metrics_add(message_received(m.type, m.priority), 1);
    if (m.boot != 0 && bytes_is(channel, ib->channel_all)) look_for_gap(ib, &m);
    put_in_queue(ib, &m, bytes_is(channel, ib->channel_election));
}

static void show_subscribed(struct inbox *ib, bool subscribed)
{
    struct coordination_leader view;
    coordination_read_leader(ib->co->coordination, &view);
    view.subscribed = subscribed;
    coordination_write_leader(ib->co->coordination, &view);
}

static void subscribed(void *ctx)
{
    struct inbox *ib = ctx;
    memset(ib->sender, 0, sizeof ib->sender); /* what was missed is refreshed now; it is no gap any more */
    show_subscribed(ib, true);
    refresh(ib, clock_mono_ms());
}

static void lost(void *ctx)
{
    struct inbox *ib = ctx;
    show_subscribed(ib, false);
    coordination_new_generation(ib->co->coordination);
}

/* --- what a message does --- */

/* Keys of other caches than ours may be named as well; those hold what no id does. With a * at its end a key is a
 * prefix, and then all copies may be meant: they are in no order that a prefix could use. */
static void invalidate_key(struct inbox *ib, struct bytes key)
{
    static const struct bytes before = BYTES_LITERAL(REDIS_SESSION_PREFIX);
    char id[IDS_TEXT_BYTES];
    bool prefix = key.len > 0 && key.at[key.len - 1] == '*';
    if (prefix) key.len--;
    size_t common = key.len < before.len ? key.len : before.len;
    bool alike = memcmp(key.at, before.at, common) == 0;
    if (alike && common == before.len) key = (struct bytes){ key.at + common, key.len - common };
    if (!prefix && ids_read(key, id))
        session_cache_drop(ib->cache, id);
    else if (prefix && (key.len == 0 || (alike && common < before.len) || ids_read(key, id)))
        session_cache_invalidate_all(ib->cache);
}

static void cache_invalidate(struct inbox *ib, const struct message *m)
{
    struct span_member keys, key;
    struct buf text = BUF_INIT(1024);
    span_find(m->payload, "keys", &keys);
    for (struct span_walk w = span_walk(keys.value); span_next(&w, &key);) {
        buf_reset(&text);
        if (span_type(key.value) != SPAN_STRING) continue;
        span_decode((struct bytes){ key.value.at + 1, key.value.len - 2 }, &text);
        if (!buf_overflowed(&text)) invalidate_key(ib, buf_bytes(&text));
    }
    buf_done(&text);
}

static void rate_limit_sync(struct inbox *ib, const struct message *m)
{
    struct message_limit said;
    enum platform platform;
    if (!message_limit_read(m->payload, &said)) return;
    if (!ib->limits_changed) coordination_read_limits(ib->co->coordination, &ib->limits); /* rate_limits writes too */
    struct coordination_limit *row = coordination_limit_row(&ib->limits, said.platform, said.endpoint);
    if (said.limit >= 0) row->limit = said.limit;
    if (said.remaining >= 0) row->remaining = said.remaining;
    if (said.reset_ms >= 0) row->reset_ms = said.reset_ms;
    if (said.usage_permille >= 0) row->usage_permille = said.usage_permille;
    row->retry_after_s = said.retry_after_s;
    row->updated_ms = clock_wall_ms();
    ib->limits_changed = true;
    if (!platform_of(said.platform, &platform)) return;
    metrics_add(platform_hits(platform), said.remaining == 0);
    metrics_add(platform_retries(platform), said.retry_after_s > 0);
}

/* Only the leader may set others to work. */
static void job_coordination(struct inbox *ib, const struct message *m)
{
    const char *leader = leadership_leader(ib->co->leadership);
    struct buf operation = BUF_INIT(64);
    struct span_member data = { .value = { NULL, 0 } };
    if (leader[0] == '\0' || !bytes_is(message_pod(m->source), leader)) {
        metrics_add(METRIC_coordination_messages_refused_total, 1);
        log_warn("a job message does not come from the leader: sender=\"%s\" leader=\"%s\"", m->source, leader);
        return;
    }
    message_text(m->payload, "operation", &operation);
    span_find(m->payload, "data", &data);
    if (!operations_do(ib->co, buf_bytes(&operation), data.value))
        log_warn("a job message asks for what is not known here: operation=\"%s\"", buf_text(&operation));
    buf_done(&operation);
}

/* A leader's heartbeat that we expected says nothing new. */
static void broadcast(struct inbox *ib, const struct message *m)
{
    struct buf text = BUF_INIT(256);
    bool heartbeat = message_text(m->payload, "type", &text) && strcmp(buf_text(&text), "leader_heartbeat") == 0;
    if (heartbeat && message_text(m->payload, "leaderId", &text) &&
        strcmp(buf_text(&text), leadership_leader(ib->co->leadership)) != 0)
        leadership_look(ib->co->leadership);
    buf_done(&text);
}

static void unknown(struct inbox *ib, const struct message *m)
{
    (void)ib, (void)m; /* which a newer node may know; it is counted like all others */
}

static void (*const effects[])(struct inbox *ib, const struct message *m) = {
    [MESSAGE_CACHE_INVALIDATE] = cache_invalidate,
    [MESSAGE_RATE_LIMIT_SYNC] = rate_limit_sync,
    [MESSAGE_JOB_COORDINATION] = job_coordination,
    [MESSAGE_BROADCAST] = broadcast,
    [MESSAGE_UNKNOWN] = unknown,
};

static void do_letter(struct inbox *ib, const struct letter *l)
{
    const struct message *m = &l->message;
    struct coordination_message *seen = &ib->seen.type[m->type];
    seen->count++;
    seen->last_ms = clock_wall_ms();
    snprintf(seen->source, sizeof seen->source, "%.*s", (int)sizeof seen->source - 1, m->source);
    ib->seen_changed = true;
    effects[m->type](ib, m);
    if (l->election) leadership_look(ib->co->leadership);
}

/* --- the task that works off the queues --- */

static void show_others(struct inbox *ib)
{
    coordination_show_waiting(ib->co->coordination, (int64_t)ib->waiting);
    if (ib->seen_changed) coordination_write_messages(ib->co->coordination, &ib->seen);
    if (ib->limits_changed) coordination_write_limits(ib->co->coordination, &ib->limits);
    ib->seen_changed = ib->limits_changed = false;
}

static void work_off_some(struct inbox *ib)
{
    int64_t until_us = clock_mono_us() + AT_ONCE_US;
    for (int n = 0; n < AT_ONCE && ib->waiting > 0 && clock_mono_us() < until_us; n++) {
        int p = MESSAGE_HIGH;
        while (ib->queue[p].count == 0) p--;
        struct letter *l = take_letter(ib, &ib->queue[p]);
        do_letter(ib, l);
        free(l);
    }
    show_others(ib);
}

static void run(void *arg)
{
    struct inbox *ib = arg;
    while (!ib->co->leaving) {
        int64_t now_ms = clock_mono_ms();
        if (ib->missed && now_ms >= ib->refresh_at_ms) refresh(ib, now_ms);
        if (ib->waiting > 0) {
            work_off_some(ib);
            task_park(now_ms); /* the others have their turn */
        } else {
            waiters_wait(&ib->waiters, ib->missed ? ib->refresh_at_ms : CLOCK_NEVER);
        }
    }
}

/* --- start and end --- */

static struct subscriber *open_subscriber(struct inbox *ib)
{
    const struct config *cfg = ib->co->config;
    const char *prefix = cfg->pod_channel_prefix;
    snprintf(ib->channel_all, sizeof ib->channel_all, "%.300s:all", prefix);
    snprintf(ib->channel_election, sizeof ib->channel_election, "%.300s:election", prefix);
    snprintf(ib->channel_pod, sizeof ib->channel_pod, "%.300s:%s", prefix, ib->co->pod);
    struct subscriber_options o = { .redis = ib->co->redis,
                                    .url = &ib->co->url,
                                    .client_name = "hyperpage-subscriber",
                                    .purpose = "messages",
                                    .timeout_ms = cfg->redis_timeout_ms,
                                    .channels = { ib->channel_all, ib->channel_election, ib->channel_pod },
                                    .channel_count = 3,
                                    .pollset = ib->co->pollset,
                                    .events = { subscribed, received, lost, ib } };
    return subscriber_open(&o);
}

struct inbox *inbox_open(struct coordinator *co, struct err *e)
{
    struct inbox *ib = mem_alloc(sizeof *ib);
    ib->co = co;
    for (int p = 0; p < MESSAGE_PRIORITIES; p++) ib->queue[p].last = &ib->queue[p].first;
    snprintf(ib->self, sizeof ib->self, "%s", co->messenger.source);
    coordination_read_messages(co->coordination, &ib->seen);
    coordination_read_limits(co->coordination, &ib->limits);
    show_subscribed(ib, false);
    ib->cache = session_cache_open(co->config->run_dir, co->config->session_cache_bytes, e);
    if (ib->cache == NULL) {
        inbox_close(ib);
        return NULL;
    }
    ib->subscriber = open_subscriber(ib);
    return ib;
}

void inbox_close(struct inbox *ib)
{
    if (ib == NULL) return;
    for (int p = 0; p < MESSAGE_PRIORITIES; p++)
        while (ib->queue[p].count > 0) free(take_letter(ib, &ib->queue[p]));
    subscriber_close(ib->subscriber);
    session_cache_close(ib->cache);
    free(ib);
}

void inbox_start(struct inbox *ib)
{
    subscriber_start(ib->subscriber);
    task_start(run, ib);
}

void inbox_stop(struct inbox *ib)
{
    subscriber_stop(ib->subscriber);
    waiters_wake(&ib->waiters);
    show_subscribed(ib, false);
}
