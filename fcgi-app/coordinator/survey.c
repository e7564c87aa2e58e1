#include "survey.h"

#include "clock.h"
#include "leadership.h"
#include "log.h"
#include "message.h"
#include "span.h"

#include <inttypes.h>
#include <string.h>

#define LOOK_MS     2000 /* at the database; what is seen counts for CHECK_MOST_AGE_MS */
#define COUNT_MS    10000
#define STEP_MS     3000
#define CLEANED_KEY "hyperpage:cleanup:last" /* {"at": when the last one ended} */

/* --- does PostgreSQL answer? --- */

/* One that other tasks keep busy for long answers those; only who does not get through to it knows that it is away. */
static void look_at_database(struct coordinator *co)
{
    struct err e = { .kind = ERR_NONE };
    int64_t began_us = clock_mono_us();
    enum check_state is = CHECK_UNUSED;
    if (co->pg != NULL) is = pg_begin(co->pg, began_us / 1000 + STEP_MS, &e) || !e.away ? CHECK_UP : CHECK_DOWN;
    if (co->pg != NULL) pg_rollback(co->pg);
    if (!co->leaving) shared_check_note(co->shared, DEPENDENCY_POSTGRES, is, began_us);
}

/* --- when the cluster's last cleanup ended --- */

static void show_cleaned(struct coordinator *co, int64_t cleaned_ms)
{
    struct coordination_survey s;
    coordination_read_survey(co->coordination, &s);
    if (cleaned_ms <= s.cleaned_ms) return;
    s.cleaned_ms = cleaned_ms;
    coordination_write_survey(co->coordination, &s);
}

void survey_cleaned(struct coordinator *co)
{
    struct buf value = BUF_INIT(64);
    struct err e;
    int64_t now_ms = clock_wall_ms();
    show_cleaned(co, now_ms);
    if (co->redis == NULL) return;
    buf_printf(&value, "{\"at\":%" PRId64 "}", now_ms);
    struct bytes set[] = { BYTES_LITERAL("SET"), BYTES_LITERAL(CLEANED_KEY), buf_bytes(&value) };
    redisReply *reply = redis_call(co->redis, set[1], 3, set, clock_mono_ms() + STEP_MS, NULL, &e);
    if (reply == NULL)
        log_debug("other nodes do not hear of the cleanup: error=\"%s\"", e.text);
    else
        freeReplyObject(reply);
    buf_done(&value);
}

static void read_cleaned(struct coordinator *co)
{
    struct err e;
    struct bytes get[] = { BYTES_LITERAL("GET"), BYTES_LITERAL(CLEANED_KEY) };
    redisReply *reply = redis_call(co->redis, get[1], 2, get, clock_mono_ms() + STEP_MS, NULL, &e);
    int64_t at_ms;
    size_t wrong;
    if (reply == NULL) return;
    struct bytes value = { reply->str, reply->type == REDIS_REPLY_STRING ? (size_t)reply->len : 0 };
    if (span_check_object(value, 2, &wrong) == SPAN_OK && message_number(value, "at", &at_ms)) show_cleaned(co, at_ms);
    freeReplyObject(reply);
}

/* --- jobs --- */

static void show_jobs(struct coordinator *co, const struct pg_rows *rows)
{
    struct coordination_survey s;
    coordination_read_survey(co->coordination, &s);
    s.jobs_ms = clock_wall_ms();
    memset(s.jobs, 0, sizeof s.jobs);
    for (size_t i = 0; i < pg_count(rows); i++)
        for (int status = 0; status < COORDINATION_JOB_STATUSES; status++)
            if (strcmp(pg_text(rows, i, 0), coordination_job_statuses[status]) == 0)
                s.jobs[status] = pg_number(rows, i, 1);
    coordination_write_survey(co->coordination, &s);
}

static void count_jobs(struct coordinator *co)
{
    struct err e;
    struct pg_rows *rows = NULL;
    if (pg_begin(co->pg, clock_mono_ms() + STEP_MS, &e))
        rows = pg_query(co->pg, "SELECT status, count(*) FROM jobs GROUP BY status", 0, NULL, &e);
    pg_rollback(co->pg);
    if (rows != NULL) show_jobs(co, rows);
    pg_free(rows);
}

/* --- */

void survey_run(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    int64_t count_at_ms = 0;
    do {
        look_at_database(co);
        if (clock_mono_ms() >= count_at_ms) {
            if (co->redis != NULL) read_cleaned(co);
            if (co->schema_applied && leadership_may_act(co->leadership)) count_jobs(co);
            count_at_ms = clock_mono_ms() + COUNT_MS;
        }
    } while (duty_wait(d, clock_mono_ms() + LOOK_MS));
}
