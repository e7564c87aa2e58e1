/* ctl_jobs.c: the table of jobs in PostgreSQL, which belongs to the whole cluster. */
#include "ctl.h"

#include "pg.h"
#include "rounds.h"
#include "task.h"

#include <string.h>

#define LOCK_MS 1000

static const char *const statuses[] = { "pending", "running", "completed", "failed", "cancelled", "timeout" };
#define STATUSES (sizeof statuses / sizeof statuses[0])

/* Columns as they are told, in this order; times are ms. */
static const char newest[] =
    "SELECT id, type, status, attempts, extract(epoch FROM scheduled_at) * 1000, "
    "extract(epoch FROM started_at) * 1000, extract(epoch FROM completed_at) * 1000, last_error "
    "FROM jobs WHERE $1::text IS NULL OR status = $1::text ORDER BY id DESC LIMIT 50";

struct question {
    struct ctl *c;
    struct pg *pg;
    enum ctl_exit code;
};

static void tell_job(struct report *r, const struct pg_rows *rows, size_t i)
{
    const char *error = pg_text(rows, i, 7);
    report_open(r, NULL);
    report_number(r, "id", pg_number(rows, i, 0));
    report_string(r, "type", pg_text(rows, i, 1));
    report_string(r, "status", pg_text(rows, i, 2));
    report_number(r, "attempts", pg_number(rows, i, 3));
    report_time(r, "scheduledAt", pg_number(rows, i, 4));
    report_time(r, "startedAt", pg_number(rows, i, 5));
    report_time(r, "completedAt", pg_number(rows, i, 6));
    report_string(r, "lastError", error != NULL ? error : "");
    report_close(r);
}

/* A leader makes the tables when it first reaches the database. */
static bool has_table(struct pg *pg, bool *there, struct err *e)
{
    struct pg_rows *rows = pg_query(pg, "SELECT to_regclass('jobs')", 0, NULL, e);
    bool ok = rows != NULL;
    if (ok) *there = pg_text(rows, 0, 0) != NULL;
    pg_free(rows);
    return ok;
}

/* A task: pg waits in no other way. */
static void ask(void *arg)
{
    struct question *q = arg;
    struct pg_rows *rows = NULL;
    struct err e;
    bool there = true;
    bool ok = pg_begin(q->pg, q->c->deadline_ms, &e) && has_table(q->pg, &there, &e);
    if (ok && there) ok = (rows = pg_query(q->pg, newest, 1, &q->c->word[0], &e)) != NULL;
    if (!ok) q->code = ctl_failed(q->c, &e);
    if (ok && !there) q->code = ctl_fail(CTL_NOT_SO, "the database has no jobs: no leader has made its tables yet");
    if (rows != NULL) {
        report_open_list(&q->c->report, "jobs");
        for (size_t i = 0; i < pg_count(rows); i++) tell_job(&q->c->report, rows, i);
        report_close_list(&q->c->report);
    }
    pg_free(rows);
    pg_rollback(q->pg); /* nothing was changed */
}

enum ctl_exit jobs_list(struct ctl *c)
{
    struct err e;
    struct question q = { .c = c };
    size_t known = 0;
    while (c->word[0] != NULL && known < STATUSES && strcmp(c->word[0], statuses[known]) != 0) known++;
    if (known == STATUSES)
        return ctl_fail(CTL_USAGE, "STATUS %s: allowed is pending, running, completed, failed, cancelled, timeout",
                        c->word[0]);
    if (c->config->database_url[0] == '\0') return ctl_fail(CTL_USAGE, "without DATABASE_URL there are no jobs");
    struct pollset *ps = pollset_new(&e);
    struct pg_options o = { .url = c->config->database_url,
                            .name = "hyperpagectl",
                            .lock_timeout_ms = LOCK_MS,
                            .idle_timeout_ms = LOCK_MS,
                            .pollset = ps };
    if (ps != NULL) q.pg = pg_open(&o, &e);
    if (q.pg != NULL) {
        task_start(ask, &q);
        rounds_run(ps, NULL);
    } else {
        q.code = ctl_failed(c, &e);
    }
    pg_close(q.pg);
    pollset_free(ps);
    return q.code;
}
