#include "message.h"

#include "mem.h"
#include "span.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

#define MOST_LEVELS 32

const char *const message_types[] = { "cache_invalidate", "rate_limit_sync", "job_coordination", "broadcast" };
const char *const message_priorities[] = { "low", "normal", "high" };

/* --- members --- */

bool message_text(struct bytes object, const char *name, struct buf *out)
{
    struct span_member m;
    buf_reset(out);
    if (!span_find(object, name, &m) || span_type(m.value) != SPAN_STRING) return false;
    span_decode((struct bytes){ m.value.at + 1, m.value.len - 2 }, out);
    return !buf_overflowed(out) && memchr(buf_text(out), '\0', out->len) == NULL;
}

/* strtod needs an end, and a number in our messages is short. */
static bool number_of(struct bytes raw, double *value)
{
    char text[40];
    if (span_type(raw) != SPAN_NUMBER || raw.len >= sizeof text) return false;
    memcpy(text, raw.at, raw.len);
    text[raw.len] = '\0';
    *value = strtod(text, NULL);
    return isfinite(*value);
}

bool message_number(struct bytes object, const char *name, int64_t *value)
{
    struct span_member m;
    double n;
    if (!span_find(object, name, &m) || !number_of(m.value, &n) || fabs(n) > 9e15) return false;
    *value = (int64_t)n;
    return true;
}

/* The member's text if it is a string that fits. */
static bool copy_text(struct bytes object, const char *name, char *out, size_t cap)
{
    struct buf text = BUF_INIT(cap - 1);
    bool ok = message_text(object, name, &text) && text.len > 0;
    if (ok) memcpy(out, buf_text(&text), text.len + 1);
    buf_done(&text);
    return ok;
}

static bool find_name(struct bytes name, const char *const *names, int count, int *index)
{
    for (int i = 0; i < count; i++)
        if (bytes_is(name, names[i])) {
            *index = i;
            return true;
        }
    return false;
}

bool message_type_of(struct bytes name, enum message_type *type)
{
    int index;
    bool known = find_name(name, message_types, MESSAGE_TYPES, &index);
    if (known) *type = (enum message_type)index;
    return known;
}

bool message_priority_of(struct bytes name, enum message_priority *priority)
{
    int index;
    bool known = find_name(name, message_priorities, MESSAGE_PRIORITIES, &index);
    if (known) *priority = (enum message_priority)index;
    return known;
}

/* They stand in metrics.def in this order. */
static_assert(METRIC_messages_received_unknown_high - METRIC_messages_received_cache_invalidate_low + 1 ==
                      (MESSAGE_UNKNOWN + 1) * MESSAGE_PRIORITIES &&
                  METRIC_messages_sent_broadcast_high - METRIC_messages_sent_cache_invalidate_low + 1 ==
                      MESSAGE_TYPES * MESSAGE_PRIORITIES,
              "a counter for each type and priority");

enum metric message_received(enum message_type type, enum message_priority priority)
{
    return METRIC_messages_received_cache_invalidate_low + type * MESSAGE_PRIORITIES + priority;
}

enum metric message_sent(enum message_type type, enum message_priority priority)
{
    return METRIC_messages_sent_cache_invalidate_low + type * MESSAGE_PRIORITIES + priority;
}

struct bytes message_pod(const char *source)
{
    return (struct bytes){ source, strcspn(source, "/") };
}

/* --- rate limits --- */

static bool is_object(struct bytes value)
{
    return value.len > 0 && span_type(value) == SPAN_OBJECT;
}

static void read_limits(struct bytes object, struct message_limit *l)
{
    int64_t n;
    struct span_member m;
    double percent;
    if (message_number(object, "limit", &n) && n >= 0) l->limit = n;
    if (message_number(object, "remaining", &n) && n >= 0) l->remaining = n;
    if (message_number(object, "resetTime", &n) && n >= 0) l->reset_ms = n;
    if (message_number(object, "retryAfter", &n) && n > 0) l->retry_after_s = n;
    copy_text(object, "endpoint", l->endpoint, sizeof l->endpoint);
    if (span_find(object, "usagePercent", &m) && number_of(m.value, &percent) && percent >= 0 && percent <= 1e6)
        l->usage_permille = (int64_t)(percent * 10);
}

static bool says_something(const struct message_limit *l)
{
    return l->limit >= 0 || l->remaining >= 0 || l->reset_ms >= 0 || l->usage_permille >= 0 || l->retry_after_s > 0;
}

bool message_limit_read(struct bytes payload, struct message_limit *l)
{
    struct span_member usage;
    double percent;
    *l = (struct message_limit){
        .endpoint = "global", .limit = -1, .remaining = -1, .reset_ms = -1, .usage_permille = -1
    };
    if (!copy_text(payload, "platform", l->platform, sizeof l->platform)) return false;
    if (span_find(payload, "usage", &usage)) {
        if (is_object(usage.value))
            read_limits(usage.value, l);
        else if (number_of(usage.value, &percent) && percent >= 0 && percent <= 1e6)
            l->usage_permille = (int64_t)(percent * 10);
    }
    read_limits(payload, l);
    if (!says_something(l)) return false;
    if (l->usage_permille < 0 && l->limit > 0 && l->remaining >= 0)
        l->usage_permille =
            l->remaining >= l->limit ? 0 : (int64_t)((double)(l->limit - l->remaining) * 1000 / (double)l->limit);
    return true;
}

/* --- messages --- */

bool message_payload_check(enum message_type type, struct bytes payload, struct err *e)
{
    struct span_member m;
    struct message_limit limit;
    if (!is_object(payload)) return err_set(e, ERR_INPUT, "the payload is no object");
    if (type == MESSAGE_CACHE_INVALIDATE && (!span_find(payload, "keys", &m) || span_type(m.value) != SPAN_ARRAY))
        return err_set(e, ERR_INPUT, "keys is no array");
    if (type == MESSAGE_RATE_LIMIT_SYNC && !message_limit_read(payload, &limit))
        return err_set(e, ERR_INPUT, "no platform and number of its rate limits");
    return true;
}

/* Which start of which sender, and which of its messages: of ours only. */
static void read_place(struct bytes text, struct message *m)
{
    char boot[33];
    m->boot = 0;
    if (!message_number(text, "seq", &m->seq) || m->seq <= 0 || !copy_text(text, "boot", boot, sizeof boot)) return;
    m->boot = ids_hash(bytes_of(boot), ids_hash(bytes_of(m->source), 0)) | 1;
}

bool message_read(struct bytes text, struct message *m, struct err *e)
{
    size_t at;
    char name[MESSAGE_NAME_BYTES];
    struct span_member payload;
    *m = (struct message){ .type = MESSAGE_UNKNOWN, .priority = MESSAGE_NORMAL };
    if (text.len == 0) return err_set(e, ERR_INPUT, "it is empty, or much too long");
    if (text.len > MESSAGE_MOST_BYTES) return err_set(e, ERR_INPUT, "it is longer than %d bytes", MESSAGE_MOST_BYTES);
    if (span_check_object(text, MOST_LEVELS, &at) != SPAN_OK)
        return err_set(e, ERR_INPUT, "it is no JSON object of %d levels: byte %zu", MOST_LEVELS, at);
    if (!copy_text(text, "type", name, sizeof name)) return err_set(e, ERR_INPUT, "the type is missing");
    message_type_of(bytes_of(name), &m->type);
    if (!copy_text(text, "sourcePod", m->source, sizeof m->source))
        return err_set(e, ERR_INPUT, "the sender is missing");
    if (!span_find(text, "payload", &payload)) return err_set(e, ERR_INPUT, "the payload is missing");
    m->payload = payload.value;
    if (copy_text(text, "priority", name, sizeof name)) message_priority_of(bytes_of(name), &m->priority);
    message_number(text, "timestamp", &m->timestamp_ms);
    read_place(text, m);
    return message_payload_check(m->type, m->payload, e);
}

void message_write(const struct message *m, const char *id, struct buf *out)
{
    buf_printf(out, "{\"id\":\"msg-%s\",\"type\":\"%s\",\"payload\":", id, message_types[m->type]);
    buf_add(out, m->payload);
    buf_printf(out, ",\"timestamp\":%" PRId64 ",\"sourcePod\":", m->timestamp_ms);
    buf_json_string(out, bytes_of(m->source));
    buf_printf(out, ",\"priority\":\"%s\"", message_priorities[m->priority]);
    if (m->seq > 0) buf_printf(out, ",\"boot\":\"%016" PRIx64 "\",\"seq\":%" PRId64, m->boot, m->seq);
    buf_puts(out, "}");
}
