/* api_coordination.c: /api/coordination: what the node's coordinator knows of the cluster; and messages that an
 * administrator sends to other nodes. */
#include "api.h"

#include "clock.h"
#include "mem.h"
#include "platforms.h"
#include "pod_name.h"
#include "span.h"

#define MOST_LEVELS 32

/* --- what a worker needs for that --- */

bool api_coordination_open(struct api *api, struct err *e)
{
    const struct config *cfg = api->config;
    char pod[POD_NAME_BYTES];
    api->coordination = coordination_open(cfg->run_dir, e);
    if (api->coordination == NULL || !pod_name(cfg, pod, e)) return false;
    api->redis = cfg->pod_coordination_enabled ? store_connection(api->store) : NULL;
    if (api->redis != NULL) messenger_init(&api->messenger, api->redis, cfg->pod_channel_prefix, pod, "worker");
    return true;
}

void api_coordination_close(struct api *api)
{
    coordination_close(api->coordination);
}

/* --- GET /api/coordination --- */

static void add_time(struct buf *body, const char *name, int64_t wall_ms)
{
    char when[CLOCK_ISO_BYTES];
    clock_iso(wall_ms, when);
    if (wall_ms == 0)
        buf_printf(body, "\"%s\":null", name);
    else
        buf_printf(body, "\"%s\":\"%s\"", name, when);
}

static void add_name(struct buf *body, const char *name, const char *text)
{
    buf_printf(body, "\"%s\":", name);
    if (text[0] == '\0')
        buf_puts(body, "null");
    else
        buf_json_string(body, bytes_of(text));
}

static void add_leader(struct buf *body, const struct coordination *c)
{
    struct coordination_leader l;
    coordination_read_leader(c, &l);
    add_name(body, "podId", l.pod);
    buf_printf(body, ",\"coordinator\":{\"alive\":%s,\"subscribed\":%s,\"loopLagMs\":%lld},\"leader\":{",
               coordination_alive(c, clock_mono_ms()) ? "true" : "false", l.subscribed ? "true" : "false",
               (long long)coordination_lag_ms(c));
    add_name(body, "leaderId", l.leader);
    buf_printf(body, ",\"term\":%lld,\"isSelf\":%s,", (long long)l.term, l.is_leader ? "true" : "false");
    add_time(body, "since", l.leader[0] != '\0' ? l.since_ms : 0);
    buf_puts(body, "}");
}

static void add_pods(struct buf *body, const struct coordination *c)
{
    struct coordination_pods *pods = mem_alloc(sizeof *pods); /* too large for a task's stack */
    coordination_read_pods(c, pods);
    buf_printf(body, ",\"podCount\":%lld,\"pods\":[", (long long)pods->all);
    for (int64_t i = 0; i < pods->count; i++) {
        buf_puts(body, i > 0 ? ",{" : "{");
        add_name(body, "podId", pods->pod[i].name);
        buf_puts(body, ",");
        add_time(body, "activeUntil", pods->pod[i].until_ms);
        buf_puts(body, "}");
    }
    buf_puts(body, "]");
    free(pods);
}

static void add_messages(struct buf *body, const struct coordination *c)
{
    struct coordination_messages seen;
    coordination_read_messages(c, &seen);
    buf_puts(body, ",\"messages\":{");
    for (int t = 0; t <= MESSAGE_UNKNOWN; t++) {
        buf_printf(body, "%s\"%s\":{\"received\":%lld,", t > 0 ? "," : "",
                   t < MESSAGE_TYPES ? message_types[t] : "unknown", (long long)seen.type[t].count);
        add_time(body, "last", seen.type[t].last_ms);
        buf_puts(body, ",");
        add_name(body, "sourcePod", seen.type[t].source);
        buf_puts(body, "}");
    }
    buf_puts(body, "}");
}

void api_tell_coordination(struct buf *body, const struct coordination *c)
{
    add_leader(body, c);
    add_pods(body, c);
    add_messages(body, c);
}

void coordination_show(struct exchange *x)
{
    struct buf *body = &x->rs.body;
    buf_puts(body, "{\"success\":true,");
    api_tell_coordination(body, x->api->coordination);
    buf_puts(body, "}");
}

/* --- rate limits, for /api/status --- */

static void add_number(struct buf *body, const char *name, int64_t value) /* -1: not known */
{
    if (value < 0)
        buf_printf(body, "\"%s\":null,", name);
    else
        buf_printf(body, "\"%s\":%lld,", name, (long long)value);
}

static void add_limit(struct buf *body, const struct coordination_limit *l)
{
    add_name(body, "platform", l->platform);
    buf_puts(body, ",");
    add_name(body, "endpoint", l->endpoint);
    buf_puts(body, ",");
    add_number(body, "limit", l->limit);
    add_number(body, "remaining", l->remaining);
    if (l->usage_permille < 0)
        buf_puts(body, "\"usagePercent\":null,");
    else
        buf_printf(body, "\"usagePercent\":%.1f,", (double)l->usage_permille / 10.0);
    buf_printf(body, "\"retryAfterSeconds\":%lld,", (long long)l->retry_after_s);
    add_time(body, "reset", l->reset_ms < 0 ? 0 : l->reset_ms);
    buf_puts(body, ",");
    add_time(body, "updated", l->updated_ms);
}

void api_tell_limits(struct buf *body, const struct coordination *c)
{
    struct coordination_limits *ls = mem_alloc(sizeof *ls); /* too large for a task's stack */
    coordination_read_limits(c, ls);
    for (int64_t i = 0; i < ls->count; i++) {
        struct coordination_limit now = platform_limit_at(&ls->limit[i], clock_wall_ms());
        buf_puts(body, i > 0 ? ",{" : "{");
        add_limit(body, &now);
        buf_puts(body, "}");
    }
    free(ls);
}

/* --- POST /api/admin/coordination/messages --- */

struct order {
    enum message_type type;
    enum message_priority priority;
    struct bytes payload;
    char channel[IDS_TEXT_BYTES];
};

/* The text of an optional member. False: it is there, but no text of 1 to 128 bytes. */
static bool read_text(struct bytes body, const char *name, struct buf *text, bool *given)
{
    struct span_member m;
    *given = span_find(body, name, &m) && span_type(m.value) != SPAN_NULL;
    return !*given || (message_text(body, name, text) && text->len > 0);
}

static bool refuse(struct exchange *x, const char *reason)
{
    return !response_error(&x->rs, 400, "INVALID_MESSAGE", reason);
}

/* False: it is answered. */
static bool read_order(struct exchange *x, struct bytes body, struct order *o, struct buf *text)
{
    struct span_member payload = { .value = { NULL, 0 } };
    struct err e;
    bool given;
    *o = (struct order){ .priority = MESSAGE_NORMAL, .channel = "all" };
    if (!read_text(body, "type", text, &given) || !given || !message_type_of(buf_bytes(text), &o->type))
        return refuse(x, "type must be cache_invalidate, rate_limit_sync, job_coordination or broadcast");
    if (!read_text(body, "priority", text, &given) || (given && !message_priority_of(buf_bytes(text), &o->priority)))
        return refuse(x, "priority must be low, normal or high");
    if (!read_text(body, "podId", text, &given) || (given && !ids_read(buf_bytes(text), o->channel)))
        return refuse(x, "podId must be the name of a pod");
    span_find(body, "payload", &payload);
    o->payload = payload.value;
    if (!message_payload_check(o->type, o->payload, &e))
        return refuse(x, "payload must be an object, that of cache_invalidate with an array of keys, that of "
                         "rate_limit_sync with a platform and a number of its limits");
    return true;
}

static void send_order(struct exchange *x, const struct order *o)
{
    char id[IDS_TEXT_BYTES];
    int64_t receivers = 0;
    if (messenger_send(&x->api->messenger, o->channel, o->type, o->priority, o->payload, x->deadline_ms, id, &receivers,
                       &x->error)) {
        buf_printf(&x->rs.body, "{\"success\":true,\"messageId\":\"msg-%s\",\"receivers\":%lld}", id,
                   (long long)receivers);
    } else if (x->error.kind == ERR_INPUT) {
        response_error(&x->rs, 413, "MESSAGE_TOO_LARGE", "The message is too large");
    } else {
        response_header(&x->rs, "Retry-After", "1");
        response_error(&x->rs, 503, "COORDINATION_UNAVAILABLE", "Redis cannot take messages now");
    }
}

void coordination_send(struct exchange *x)
{
    struct json_fault fault;
    struct order o;
    struct buf text = BUF_INIT(IDS_MOST_BYTES);
    if (!api_is_admin(x)) return;
    x->phase = "redis";
    if (!json_check(x->rq.body, MOST_LEVELS, &fault))
        response_fault(&x->rs, 400, fault.kind == JSON_MALFORMED ? "INVALID_JSON" : "INVALID_MESSAGE",
                       "The request body is not a message", &fault);
    else if (x->api->redis == NULL) {
        x->planned = true; /* it has been told to know none */
        response_error(&x->rs, 503, "COORDINATION_UNAVAILABLE", "This node knows no others");
    } else if (read_order(x, x->rq.body, &o, &text))
        send_order(x, &o);
    buf_done(&text);
}
