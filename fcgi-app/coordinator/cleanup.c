#include "cleanup.h"

#include "census.h"
#include "clock.h"
#include "fault.h"
#include "fence.h"
#include "log.h"
#include "metrics.h"
#include "redis_keys.h"
#include "registry.h"
#include "survey.h"
#include "user_index.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define BATCH          "1000" /* rows deleted in one transaction: whoever waits for one of them waits some milliseconds */
#define BATCH_ROWS     1000
#define BATCH_MS       5000
#define PAUSE_MS       10    /* between batches: others come first */
#define PAGE_MS        5000  /* one page of a SCAN */
#define LOOK_MS        60000 /* without a database: between looks whether the hour is over */
#define REDIS_DONE_KEY "hyperpage:cleanup"

/* --- in PostgreSQL --- */

/* The rows that go are chosen once (ARRAY), locked, looked at again as they are then, and left alone where somebody
 * else holds them. DAYS: so long finished jobs are kept. Sessions, of which there may be millions, are found again by
 * their place: that is half as long as by id. One that was changed meanwhile and has expired all the same is left for
 * later. */
static const struct table {
    const char *name, *report, *sql;
} tables[] = {
    { "user_sessions", "userSessions",
      "DELETE FROM user_sessions WHERE ctid = ANY (ARRAY(SELECT ctid FROM user_sessions "
      "WHERE expires_at < now() ORDER BY expires_at LIMIT " BATCH " FOR UPDATE SKIP LOCKED))" },
    { "rate_limits", "rateLimits",
      "DELETE FROM rate_limits WHERE id = ANY (ARRAY(SELECT id FROM rate_limits "
      "WHERE reset_at < now() - interval '1 day' LIMIT " BATCH " FOR UPDATE SKIP LOCKED))" },
    { "jobs", "jobs",
      "WITH old AS (DELETE FROM jobs WHERE id = ANY (ARRAY(SELECT id FROM jobs "
      "WHERE status IN ('completed', 'failed', 'cancelled', 'timeout') "
      "AND updated_at < now() - DAYS * interval '1 day' LIMIT " BATCH " FOR UPDATE SKIP LOCKED)) "
      "RETURNING id), history AS (DELETE FROM job_history USING old WHERE job_id = old.id) SELECT id FROM old" },
    /* Ids grow with time: the oldest show whether there is anything old, without reading all. */
    { "job_history", "jobHistory",
      "DELETE FROM job_history USING (SELECT id FROM job_history ORDER BY id LIMIT " BATCH ") oldest "
      "WHERE job_history.id = oldest.id AND created_at < now() - DAYS * interval '1 day'" },
};
#define TABLES (sizeof tables / sizeof tables[0])

static void add_statement(const struct table *t, int64_t days, struct buf *sql)
{
    const char *at = strstr(t->sql, "DAYS");
    size_t before = at != NULL ? (size_t)(at - t->sql) : strlen(t->sql);
    buf_append(sql, t->sql, before);
    if (at != NULL) buf_printf(sql, "%" PRId64 "%s", days, at + strlen("DAYS"));
}

/* Deletion and end are one message, so whoever wants one of the rows waits for the server alone. */
static bool delete_batch(struct coordinator *co, const struct table *t, int64_t *rows, struct err *e)
{
    char place[40];
    struct buf sql = BUF_INIT(2048);
    add_statement(t, co->config->job_retention_days, &sql);
    snprintf(place, sizeof place, "cleanup-%s", t->name);
    fault_point(place);
    bool ok = fence_begin(co, BATCH_MS, e);
    if (ok) {
        snprintf(place, sizeof place, "cleanup-%s-fenced", t->name);
        fault_point(place);
        ok = pg_finish(co->pg, buf_text(&sql), rows, e);
    }
    buf_done(&sql);
    if (ok) metrics_add(METRIC_cleanup_rows_total, (uint64_t)*rows);
    return ok;
}

static bool stopped(struct err *e)
{
    return err_set(e, ERR_UNAVAILABLE, "the job's time is over, or we do not lead any more");
}

static bool clean_table(struct job *job, const struct table *t, struct err *e)
{
    int64_t rows, all = 0;
    do {
        if (!job_goes_on(job)) return stopped(e);
        if (!delete_batch(job_coordinator(job), t, &rows, e)) return false;
        all += rows;
        if (rows > 0) duty_wait(job->duty, clock_mono_ms() + PAUSE_MS);
    } while (rows >= BATCH_ROWS / 2);
    buf_printf(&job->report, ",\"%s\":%" PRId64, t->report, all);
    return true;
}

/* --- in Redis --- */

/* Every session once, and every entry of the users' indexes, a page at a time. `rb`, unless NULL, sees the sessions.
 * They are counted when the first pass has ended. */
static bool clean_redis(struct duty *d, int64_t deadline_ms, struct registry_rebuild *rb, struct store_heal *heal,
                        struct err *e)
{
    struct coordinator *co = duty_coordinator(d);
    struct census census;
    *heal = (struct store_heal){ .life_ms = co->config->session_default_ttl_seconds * 1000 };
    if (rb != NULL) heal->each = registry_rebuild_see, heal->ctx = rb;
    if (!census_begin(&census, co, e)) return false;
    while (!heal->done) {
        bool counting = heal->phase == 0;
        if (!duty_goes_on(d) || clock_mono_ms() >= deadline_ms) return stopped(e);
        fault_point("cleanup-redis");
        if (!user_index_heal(co->redis, heal, clock_mono_ms() + PAGE_MS, e)) return false;
        if (rb != NULL && !registry_rebuild_write(rb, e)) return false;
        if (counting && heal->phase > 0 && !census_end(&census, co, heal->sessions, e)) return false;
    }
    metrics_add(METRIC_cleanup_index_entries_total, (uint64_t)heal->removed);
    metrics_add(METRIC_cleanup_sessions_ended_total, (uint64_t)heal->given_life);
    log_info("sessions in redis counted: sessions=%" PRId64 " without_end=%" PRId64 " dead_entries=%" PRId64,
             heal->sessions, heal->given_life, heal->removed);
    return true;
}

static bool clean_redis_and_registry(struct job *job, struct err *e)
{
    struct coordinator *co = job_coordinator(job);
    struct store_heal heal;
    if (co->redis == NULL) return true;
    struct registry_rebuild *rb = registry_rebuild_open(co, e);
    bool ok =
        rb != NULL && clean_redis(job->duty, job->deadline_ms, rb, &heal, e) && registry_rebuild_finish(rb, job, e);
    registry_rebuild_close(rb);
    if (ok)
        buf_printf(&job->report,
                   ",\"sessions\":%" PRId64 ",\"sessionsWithoutEnd\":%" PRId64 ",\"deadEntries\":%" PRId64,
                   heal.sessions, heal.given_life, heal.removed);
    return ok;
}

static void note_success(struct coordinator *co, int64_t began_us)
{
    metrics_add(METRIC_cleanup_runs_total, 1);
    metrics_add(METRIC_cleanup_us, (uint64_t)(clock_mono_us() - began_us));
    survey_cleaned(co);
}

bool cleanup_run(struct job *job, struct err *e)
{
    int64_t began_us = clock_mono_us();
    for (size_t i = 0; i < TABLES; i++)
        if (!clean_table(job, &tables[i], e)) return false;
    if (!clean_redis_and_registry(job, e)) return false;
    note_success(job_coordinator(job), began_us);
    return true;
}

/* --- without a database --- */

/* The key that says that it was done ends with the hour: who makes it anew is the one to do it. */
static bool hour_is_over(struct coordinator *co, bool *over, struct err *e)
{
    struct number life;
    bool repeated;
    int64_t hour_ms = co->config->session_cleanup_interval_minutes * 60000;
    struct bytes set[] = { BYTES_LITERAL("SET"),
                           BYTES_LITERAL(REDIS_DONE_KEY),
                           bytes_of(co->pod),
                           BYTES_LITERAL("PX"),
                           number(&life, hour_ms * 9 / 10 + random() % (hour_ms / 5)),
                           BYTES_LITERAL("NX") };
    redisReply *reply = redis_call(co->redis, set[1], 6, set, clock_mono_ms() + PAGE_MS, &repeated, e);
    if (reply == NULL) return false;
    *over = reply->type == REDIS_REPLY_STATUS;
    freeReplyObject(reply);
    return true;
}

void cleanup_redis_run(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    struct store_heal heal;
    struct err e;
    if (co->pg != NULL || co->redis == NULL) {
        duty_wait(d, CLOCK_NEVER); /* a job does it, or there is nothing to do */
        return;
    }
    bool owed = false;
    co->cleanup_asked = false;
    while (duty_goes_on(d)) {
        int64_t began_us = clock_mono_us();
        owed = owed || co->cleanup_asked;
        co->cleanup_asked = false;
        bool ok = owed || hour_is_over(co, &owed, &e);
        if (ok && owed && (ok = clean_redis(d, CLOCK_NEVER, NULL, &heal, &e))) {
            owed = false;
            note_success(co, began_us);
        }
        if (!ok && duty_goes_on(d)) log_warn("cleanup of redis failed: error=\"%s\"", e.text);
        duty_wait(d, clock_mono_ms() + LOOK_MS);
    }
}
