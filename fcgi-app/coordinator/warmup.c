#include "warmup.h"

#include "clock.h"
#include "fault.h"
#include "log.h"
#include "mem.h"
#include "session_cache.h"
#include "span.h"
#include "store_redis.h"
#include "task.h"

#include <inttypes.h>
#include <stdio.h>

#define MOST_SESSIONS       1000
#define IDS_IN_MESSAGE      300 /* of 128 bytes each they fit */
#define MOST_WARMUPS        8   /* messages that wait to be followed, one at a time; more are passed over */
#define TURN_MS             20
#define MESSAGE_BYTES       (48 * 1024)
#define STEP_MS             3000
#define LOAD_MS             60000 /* longest warm-up of a node */
#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024)

/* --- the leader --- */

/* A message as it grows: ids are added, and when it is full it leaves. */
struct outgoing {
    struct coordinator *co;
    struct buf ids;
    int64_t count, all;
};

static bool send(struct outgoing *out, struct err *e)
{
    struct coordinator *co = out->co;
    struct buf data = BUF_INIT(MESSAGE_BYTES + 64), payload = BUF_INIT(MESSAGE_BYTES + 1024);
    if (out->count == 0) return true;
    buf_printf(&data, "{\"sessionIds\":[%s]}", buf_text(&out->ids));
    buf_printf(&payload, "{\"operation\":\"cache_warmup\",\"data\":%s,\"coordinator\":\"%s\"}", buf_text(&data),
               co->pod);
    fault_point("warmup-send");
    bool ok = messenger_send(&co->messenger, "all", MESSAGE_JOB_COORDINATION, MESSAGE_LOW, buf_bytes(&payload),
                             clock_mono_ms() + STEP_MS, NULL, NULL, e);
    if (ok) warmup_load(co, buf_bytes(&data)); /* a coordinator passes over what it has sent itself */
    buf_done(&data);
    buf_done(&payload);
    buf_reset(&out->ids);
    out->count = 0;
    return ok;
}

static bool add(struct outgoing *out, struct bytes text, struct err *e)
{
    char id[IDS_TEXT_BYTES];
    if (out->all >= MOST_SESSIONS || !ids_read(text, id)) return true;
    buf_printf(&out->ids, "%s\"%s\"", out->count > 0 ? "," : "", id);
    out->all++;
    return ++out->count < IDS_IN_MESSAGE || send(out, e);
}

/* Those whose row in user_sessions ends last were written last. */
static bool add_active(struct outgoing *out, int64_t most, struct err *e)
{
    struct coordinator *co = out->co;
    char limit[24];
    const char *values[] = { limit };
    struct pg_rows *rows = NULL;
    snprintf(limit, sizeof limit, "%" PRId64, most < MOST_SESSIONS ? most : MOST_SESSIONS);
    if (pg_begin(co->pg, clock_mono_ms() + STEP_MS, e))
        rows = pg_query(co->pg,
                        "SELECT session_token FROM user_sessions WHERE expires_at > now() "
                        "ORDER BY expires_at DESC LIMIT $1",
                        1, values, e);
    bool ok = rows != NULL && pg_commit(co->pg, e);
    pg_rollback(co->pg);
    for (size_t i = 0; ok && i < pg_count(rows); i++) ok = add(out, bytes_of(pg_text(rows, i, 0)), e);
    pg_free(rows);
    return ok;
}

/* The raw text of a JSON string that holds an id: ids need no escapes, so one with an escape is none. */
static struct bytes unquoted(struct bytes value)
{
    if (span_type(value) != SPAN_STRING) return (struct bytes){ NULL, 0 };
    return (struct bytes){ value.at + 1, value.len - 2 };
}

bool warmup_run(struct job *job, struct err *e)
{
    struct coordinator *co = job_coordinator(job);
    struct outgoing out = { .co = co, .ids = BUF_INIT(MESSAGE_BYTES) };
    struct span_member named, id;
    struct bytes payload = bytes_of(job->payload);
    int64_t most = MOST_SESSIONS;
    bool ok = true;
    if (co->redis == NULL) return true; /* a node alone keeps no copies */
    if (span_type(payload) != SPAN_OBJECT) payload = BYTES_LITERAL("{}");
    if (span_find(payload, "sessionIds", &named) && span_type(named.value) == SPAN_ARRAY) {
        for (struct span_walk w = span_walk(named.value); ok && span_next(&w, &id);)
            ok = add(&out, unquoted(id.value), e);
    } else {
        message_number(payload, "limit", &most);
        ok = most < 0 || add_active(&out, most, e);
    }
    ok = ok && send(&out, e);
    buf_printf(&job->report, ",\"sessions\":%" PRId64, out.all);
    buf_done(&out.ids);
    return ok;
}

/* --- every node --- */

struct load {
    struct coordinator *co;
    struct buf ids; /* the JSON array */
};

static int64_t load_all(struct load *ld, struct store_redis *sr, struct err *e)
{
    struct buf doc = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct span_member member;
    struct store_result res;
    char id[IDS_TEXT_BYTES];
    int64_t loaded = 0, until_ms = clock_mono_ms() + LOAD_MS;
    for (struct span_walk w = span_walk(buf_bytes(&ld->ids)); span_next(&w, &member);) {
        if (ld->co->leaving || clock_mono_ms() >= until_ms) break;
        if (!ids_read(unquoted(member.value), id)) continue;
        buf_reset(&doc);
        if (store_redis_ops.get(sr, id, 0, clock_mono_ms() + STEP_MS, &doc, &res, e))
            loaded += res.found;
        else if (e->away)
            break;
    }
    buf_done(&doc);
    return loaded;
}

/* Reading a session is what brings its copy into the cache. The store's own connection lasts as long as this. */
static bool load(struct load *ld, struct err *e)
{
    struct coordinator *co = ld->co;
    const struct config *cfg = co->config;
    struct store_redis_options o = { .connection = { .url = co->url,
                                                     .sentinel_password = cfg->redis_sentinel_password,
                                                     .timeout_ms = cfg->redis_timeout_ms,
                                                     .client_name = "hyperpage-coordinator",
                                                     .pollset = co->pollset } };
    struct session_cache *copies = o.copies = session_cache_open(cfg->run_dir, cfg->session_cache_bytes, e);
    if (copies == NULL) return false;
    struct store_redis *sr = co->warming = store_redis_open(&o);
    log_info("session cache warmed up: sessions=%" PRId64, load_all(ld, sr, e));
    while (!store_redis_is_idle(sr)) task_park(clock_mono_ms() + TURN_MS); /* a copy that had changed is read anew */
    co->warming = NULL;
    store_redis_ops.close(sr);
    session_cache_close(copies);
    return e->kind == ERR_NONE;
}

static void load_task(void *arg)
{
    struct load *ld = arg;
    struct coordinator *co = ld->co;
    struct err e = { .kind = ERR_NONE };
    while (co->warming != NULL && !co->leaving) task_park(clock_mono_ms() + TURN_MS);
    if (!co->leaving && !load(ld, &e)) log_warn("sessions cannot be loaded into the cache: error=\"%s\"", e.text);
    co->warmups--;
    buf_done(&ld->ids);
    free(ld);
}

void warmup_load(struct coordinator *co, struct bytes data)
{
    struct span_member ids;
    if (co->redis == NULL || co->leaving || co->warmups >= MOST_WARMUPS) return;
    if (span_type(data) != SPAN_OBJECT || !span_find(data, "sessionIds", &ids) || span_type(ids.value) != SPAN_ARRAY)
        return;
    struct load *ld = mem_alloc(sizeof *ld);
    *ld = (struct load){ co, BUF_INIT(MESSAGE_MOST_BYTES) };
    buf_add(&ld->ids, ids.value);
    co->warmups++;
    task_start(load_task, ld);
}
