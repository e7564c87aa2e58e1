#include "jobs.h"

#include "cleanup.h"
#include "clock.h"
#include "fault.h"
#include "fence.h"
#include "leadership.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "task.h"
#include "warmup.h"

#include <inttypes.h>
#include <stdio.h>

#define LOOK_MS         1000  /* between looks for due jobs */
#define STEP_MS         3000  /* one transaction */
#define COMPLAIN_MS     60000 /* a database that is away is told of once a minute */
#define MOST_ATTEMPTS   "5"
#define FIRST_BACKOFF_S "10"         /* doubled with each attempt, give or take a tenth */
#define STALE           "30 minutes" /* a running job of whomever that began so long ago is given up */
#define REPORT_BYTES    4096
#define MOST_PAYLOAD    (1 << 20)

static bool run_balance(struct job *job, struct err *e);

static const struct job_kind {
    const char *type;
    int64_t most_ms; /* one attempt */
    bool (*run)(struct job *job, struct err *e);
} kinds[] = {
    { "cleanup", 3600000, cleanup_run },
    { "cache_warmup", 300000, warmup_run },
    { "bg_job_balance", 60000, run_balance },
};
#define KINDS     (sizeof kinds / sizeof kinds[0])
#define OUR_TYPES "'{cleanup,cache_warmup,bg_job_balance}'" /* other types are somebody else's to run */

static int64_t most_ms(const struct job_kind *kind)
{
#ifdef HYPERPAGE_FAULTS /* for tests, which cannot wait for an hour */
    const char *other = getenv("HYPERPAGE_JOB_MS");
    if (other != NULL) return strtoll(other, NULL, 10);
#endif
    return kind->most_ms;
}

/* A number as a value of a statement. */
struct decimal {
    char text[24];
};

static const char *decimal(struct decimal *d, int64_t value)
{
    snprintf(d->text, sizeof d->text, "%" PRId64, value);
    return d->text;
}

struct coordinator *job_coordinator(const struct job *job)
{
    return duty_coordinator(job->duty);
}

bool job_goes_on(const struct job *job)
{
    return duty_goes_on(job->duty) && clock_mono_ms() < job->deadline_ms;
}

/* --- what is due --- */

/* What a message asked for, in a task of its own: whoever received it has other things to do. */
struct request {
    struct coordinator *co;
    const char *type;
};

static void add_job(void *arg)
{
    struct request *rq = arg;
    struct coordinator *co = rq->co;
    struct err e;
    bool ok = fence_begin(co, STEP_MS, &e) &&
              pg_run(co->pg,
                     "INSERT INTO jobs (type, payload, status, scheduled_at, attempts, created_at, updated_at) "
                     "SELECT $1::text, '{}', 'pending', now(), 0, now(), now() WHERE NOT EXISTS (SELECT FROM jobs "
                     "WHERE type = $1::text AND status = 'pending')",
                     1, &rq->type, NULL, &e) &&
              pg_commit(co->pg, &e);
    pg_rollback(co->pg);
    if (!ok) log_warn("job that a message asked for cannot be added: type=%s error=\"%s\"", rq->type, e.text);
    free(rq);
    duties_ask(co->duties, "jobs");
}

void jobs_ask(struct coordinator *co, const char *type)
{
    if (co->pg == NULL || co->leaving || !leadership_may_act(co->leadership)) return;
    struct request *rq = mem_alloc(sizeof *rq);
    *rq = (struct request){ co, type };
    task_start(add_job, rq);
}

/* Cheap enough for once a second: only where something is due the fence is passed. */
static bool anything_due(struct coordinator *co, bool *due, struct err *e)
{
    struct pg_rows *rows = NULL;
    if (pg_begin(co->pg, clock_mono_ms() + STEP_MS, e))
        rows = pg_query(co->pg,
                        "SELECT EXISTS (SELECT FROM jobs WHERE status = 'pending' AND type = ANY (" OUR_TYPES ") "
                        "AND coalesce(scheduled_at <= now(), true)) OR NOT EXISTS (SELECT FROM app_state "
                        "WHERE key = 'coordinator.cleanup' AND (value->>'next')::timestamptz > now())",
                        0, NULL, e);
    if (rows != NULL) *due = pg_text(rows, 0, 0)[0] == 't';
    bool ok = rows != NULL && pg_commit(co->pg, e);
    pg_free(rows);
    pg_rollback(co->pg);
    return ok;
}

/* The hourly cleanup becomes a job in the transaction that also moves the time of the next one: whoever leads, none is
 * left out and none comes twice. An interval that was made shorter counts at once. */
static bool schedule_cleanup(struct coordinator *co, struct err *e)
{
    struct decimal interval;
    const char *values[] = { decimal(&interval, co->config->session_cleanup_interval_minutes * 60) };
    int64_t due;
    fault_point("cleanup-schedule");
    bool ok = fence_begin(co, STEP_MS, e) &&
              pg_run(co->pg,
                     "INSERT INTO app_state (key, value, updated_at) VALUES ('coordinator.cleanup', '{}', now()) "
                     "ON CONFLICT (key) DO NOTHING",
                     0, NULL, NULL, e) &&
              pg_run(co->pg,
                     "UPDATE app_state SET updated_at = now(), value = value || jsonb_build_object('last', now(), "
                     "'next', now() + $1::float8 * (0.9 + 0.2 * random()) * interval '1 second') "
                     "WHERE key = 'coordinator.cleanup' AND (coalesce((value->>'next')::timestamptz <= now(), true) "
                     "OR (value->>'last')::timestamptz + $1::float8 * 1.1 * interval '1 second' <= now())",
                     1, values, &due, e);
    if (ok && due > 0)
        ok = pg_run(co->pg,
                    "INSERT INTO jobs (type, payload, status, scheduled_at, attempts, created_at, updated_at) "
                    "SELECT 'cleanup', '{}', 'pending', now(), 0, now(), now() WHERE NOT EXISTS (SELECT FROM jobs "
                    "WHERE type = 'cleanup' AND status IN ('pending', 'running'))",
                    0, NULL, NULL, e);
    if (ok) fault_point("cleanup-scheduled");
    ok = ok && pg_commit(co->pg, e);
    pg_rollback(co->pg);
    return ok;
}

/* What was running when an earlier leadership ended, another's or our own: every claim names its run, and nobody of an
 * earlier one can finish anything now that we have passed the fence. */
static bool put_back_orphans(struct coordinator *co, const char *run, struct err *e)
{
    int64_t orphans = 0;
    fault_point("jobs-put-back");
    bool ok =
        fence_begin(co, STEP_MS, e) &&
        pg_run(co->pg,
               "WITH orphans AS (UPDATE jobs j SET updated_at = now(), last_error = 'its leader was lost', status = "
               "CASE WHEN attempts >= " MOST_ATTEMPTS " THEN 'failed' ELSE 'pending' END, scheduled_at = now() "
               "FROM job_history h WHERE j.status = 'running' AND j.type = ANY (" OUR_TYPES ") AND h.job_id = j.id "
               "AND h.status = 'running' AND h.details->>'attempt' = j.attempts::text AND h.details->>'run' <> $1 "
               "RETURNING j.id, j.status) INSERT INTO job_history (job_id, status, details, created_at) "
               "SELECT id, status, jsonb_build_object('error', 'its leader was lost'), now() FROM orphans",
               1, &run, &orphans, e) &&
        pg_commit(co->pg, e);
    pg_rollback(co->pg);
    if (ok && orphans > 0) log_info("jobs of an earlier leader put back: jobs=%" PRId64, orphans);
    return ok;
}

/* --- one job --- */

/* What was claimed; `kind` NULL: nothing was due. */
struct claim {
    const struct job_kind *kind;
    struct job job;
    char *payload;
    const char *run; /* names the leadership under which it was claimed */
};

static void take_claim(struct claim *c, const struct pg_rows *rows)
{
    const char *type = pg_text(rows, 0, 1), *payload = pg_text(rows, 0, 2);
    for (size_t i = 0; i < KINDS; i++)
        if (strcmp(kinds[i].type, type) == 0) c->kind = &kinds[i];
    c->job.id = pg_number(rows, 0, 0);
    c->job.attempt = pg_number(rows, 0, 3);
    c->job.payload = c->payload = mem_strdup(payload != NULL && strlen(payload) <= MOST_PAYLOAD ? payload : "{}");
    c->job.deadline_ms = clock_mono_ms() + most_ms(c->kind);
}

static bool write_history(struct coordinator *co, const struct claim *c, const char *status, const char *details,
                          struct err *e)
{
    struct decimal id;
    return pg_run(co->pg, "INSERT INTO job_history (job_id, status, details, created_at) VALUES ($1, $2, $3, now())", 3,
                  (const char *[]){ decimal(&id, c->job.id), status, details }, NULL, e);
}

static bool claim_job(struct coordinator *co, struct claim *c, struct err *e)
{
    struct buf details = BUF_INIT(REPORT_BYTES);
    struct pg_rows *rows = NULL;
    fault_point("job-claim");
    if (fence_begin(co, STEP_MS, e))
        rows = pg_query(
            co->pg,
            "UPDATE jobs SET status = 'running', started_at = now(), attempts = attempts + 1, updated_at = now() "
            "WHERE id = (SELECT id FROM jobs WHERE status = 'pending' AND type = ANY (" OUR_TYPES ") "
            "AND coalesce(scheduled_at <= now(), true) ORDER BY scheduled_at, id LIMIT 1 FOR UPDATE SKIP LOCKED) "
            "RETURNING id, type, payload, attempts",
            0, NULL, e);
    bool ok = rows != NULL;
    if (ok && pg_count(rows) > 0) {
        take_claim(c, rows);
        buf_printf(&details, "{\"attempt\":%" PRId64 ",\"term\":%" PRId64 ",\"leaderId\":\"%s\",\"run\":\"%s\"}",
                   c->job.attempt, co->fenced_term, co->pod, c->run);
        ok = write_history(co, c, "running", buf_text(&details), e);
    }
    ok = ok && pg_commit(co->pg, e);
    pg_free(rows);
    pg_rollback(co->pg);
    buf_done(&details);
    return ok;
}

/* The status of a job that has not succeeded: it is tried again, later each time, or has had its last attempt. */
static bool set_failed(struct coordinator *co, const struct claim *c, const char *last, const char *error,
                       char status[16], struct err *e)
{
    struct decimal id, attempt;
    const char *values[] = { decimal(&id, c->job.id), decimal(&attempt, c->job.attempt), error, last };
    struct pg_rows *rows = pg_query(
        co->pg,
        "UPDATE jobs SET status = CASE WHEN attempts >= " MOST_ATTEMPTS " THEN $4 ELSE 'pending' END, completed_at = "
        "CASE WHEN attempts >= " MOST_ATTEMPTS " THEN now() END, last_error = $3, updated_at = now(), scheduled_at = "
        "now() + " FIRST_BACKOFF_S " * 2 ^ (attempts - 1) * (0.9 + 0.2 * random()) * interval '1 second' "
        "WHERE id = $1 AND status = 'running' AND attempts = $2 RETURNING status",
        4, values, e);
    if (rows == NULL) return false;
    snprintf(status, 16, "%s", pg_count(rows) > 0 ? pg_text(rows, 0, 0) : "");
    pg_free(rows);
    return true;
}

static bool set_completed(struct coordinator *co, const struct claim *c, char status[16], struct err *e)
{
    struct decimal id, attempt;
    const char *values[] = { decimal(&id, c->job.id), decimal(&attempt, c->job.attempt) };
    int64_t changed = 0;
    bool ok =
        pg_run(co->pg,
               "UPDATE jobs SET status = 'completed', completed_at = now(), last_error = NULL, updated_at = now() "
               "WHERE id = $1 AND status = 'running' AND attempts = $2",
               2, values, &changed, e);
    snprintf(status, 16, "%s", changed > 0 ? "completed" : "");
    return ok;
}

/* Its end is written where it still is this attempt of ours: an operator may have cancelled it, or put it back. */
static bool finish_job(struct coordinator *co, struct claim *c, const struct err *why, struct err *e)
{
    struct buf details = BUF_INIT(2 * REPORT_BYTES);
    char status[16] = "";
    bool late = clock_mono_ms() >= c->job.deadline_ms;
    fault_point("job-finish");
    buf_printf(&details, "{\"attempt\":%" PRId64, c->job.attempt);
    if (why != NULL) {
        buf_puts(&details, ",\"error\":");
        buf_json_string(&details, bytes_of(why->text));
    }
    buf_add(&details, buf_bytes(&c->job.report));
    buf_puts(&details, "}");
    bool ok = fence_begin(co, STEP_MS, e);
    if (ok && why == NULL) ok = set_completed(co, c, status, e);
    if (ok && why != NULL) ok = set_failed(co, c, late ? "timeout" : "failed", why->text, status, e);
    if (ok && status[0] != '\0') ok = write_history(co, c, status, buf_text(&details), e);
    if (ok) fault_point("job-finished");
    ok = ok && pg_commit(co->pg, e);
    pg_rollback(co->pg);
    buf_done(&details);
    if (!ok) return false;
    metrics_add(why == NULL ? METRIC_jobs_completed_total : METRIC_jobs_failed_total, 1);
    if (why == NULL)
        log_info("job done: type=%s id=%" PRId64 " attempt=%" PRId64, c->kind->type, c->job.id, c->job.attempt);
    else
        log_warn("job failed: type=%s id=%" PRId64 " attempt=%" PRId64 " error=\"%s\"", c->kind->type, c->job.id,
                 c->job.attempt, why->text);
    return true;
}

/* A job that leadership was lost under is not finished: the next leader puts it back. One whose end the database did
 * not take, although we still lead, is tried until it does: its work is done. */
static bool run_job(struct duty *d, struct claim *c, struct err *e)
{
    struct err why;
    c->job.duty = d;
    c->job.report = (struct buf)BUF_INIT(REPORT_BYTES);
    fault_point("job-run");
    bool done = c->kind->run(&c->job, &why), ok = false;
    while (duty_goes_on(d) && !(ok = finish_job(duty_coordinator(d), c, done ? NULL : &why, e)))
        duty_wait(d, clock_mono_ms() + LOOK_MS);
    buf_done(&c->job.report);
    return ok || err_set(e, ERR_UNAVAILABLE, "leadership was lost while a job was running");
}

/* --- bg_job_balance: stale jobs are put back, and what is due all at once is spread --- */

static bool run_balance(struct job *job, struct err *e)
{
    struct coordinator *co = job_coordinator(job);
    struct decimal id;
    const char *values[] = { decimal(&id, job->id) };
    int64_t stale = 0, spread = 0;
    fault_point("balance");
    bool ok =
        fence_begin(co, STEP_MS, e) &&
        pg_run(
            co->pg,
            "WITH stale AS (UPDATE jobs SET updated_at = now(), last_error = 'no end after " STALE
            "', status = CASE WHEN attempts >= " MOST_ATTEMPTS " THEN 'timeout' ELSE 'pending' END, scheduled_at = "
            "now() WHERE id IN (SELECT id FROM jobs WHERE status = 'running' AND started_at < now() - interval '" STALE
            "' AND id <> $1 FOR UPDATE SKIP LOCKED) RETURNING id, status) INSERT INTO job_history (job_id, status, "
            "details, created_at) SELECT id, status, jsonb_build_object('error', 'no "
            "end after " STALE "'), now() FROM stale",
            1, values, &stale, e) &&
        pg_run(co->pg,
               "WITH due AS (SELECT id FROM jobs WHERE status = 'pending' AND scheduled_at <= now() "
               "ORDER BY scheduled_at, id FOR UPDATE SKIP LOCKED), nth AS (SELECT id, row_number() OVER (ORDER BY "
               "id) - 1 AS n FROM due) UPDATE jobs SET scheduled_at = now() + n / 10 * interval '1 second', "
               "updated_at = now() FROM nth WHERE jobs.id = nth.id AND n >= 10",
               0, NULL, &spread, e) &&
        pg_commit(co->pg, e);
    pg_rollback(co->pg);
    buf_printf(&job->report, ",\"putBack\":%" PRId64 ",\"spread\":%" PRId64, stale, spread);
    return ok;
}

/* --- the duty --- */

/* One look, and a job if there is one; *worked: look again at once. */
static bool work(struct duty *d, const char *run, bool *worked, struct err *e)
{
    struct coordinator *co = duty_coordinator(d);
    struct claim c = { .run = run };
    bool due = false;
    *worked = false;
    if (!anything_due(co, &due, e)) return false;
    if (!due) return true;
    bool ok = schedule_cleanup(co, e) && claim_job(co, &c, e);
    if (ok && c.kind != NULL) {
        *worked = true;
        ok = run_job(d, &c, e);
    }
    free(c.payload);
    return ok;
}

void jobs_run(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    struct err e;
    char run[IDS_TEXT_BYTES];
    bool ready = false, worked = false;
    int64_t quiet_until_ms = 0;
    ids_new_public(run);
    while (duty_goes_on(d) && co->pg != NULL) {
        bool ok = (ready || (ready = put_back_orphans(co, run, &e))) && work(d, run, &worked, &e);
        if (!ok && clock_mono_ms() >= quiet_until_ms && duty_goes_on(d)) {
            log_warn("jobs cannot be worked off: error=\"%s\"", e.text);
            quiet_until_ms = clock_mono_ms() + COMPLAIN_MS;
        }
        if (!ok || !worked) duty_wait(d, clock_mono_ms() + LOOK_MS);
    }
    if (co->pg == NULL) duty_wait(d, CLOCK_NEVER);
}
