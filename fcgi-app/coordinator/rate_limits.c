#include "rate_limits.h"

#include "clock.h"
#include "coordination.h"
#include "fault.h"
#include "fence.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"

#include <inttypes.h>
#include <limits.h>
#include <stdio.h>

#define LOOK_MS     500 /* between looks for reports that are not written yet */
#define STEP_MS     3000
#define RETRY_MS    5000
#define COMPLAIN_MS 60000

/* --- from the database --- */

/* Rows of ours and of the original; what is written in metadata as something else than a number is passed over. */
#define NUMBER_IN(member)                                                                                              \
    "CASE jsonb_typeof(metadata->'" member "') WHEN 'number' THEN trunc((metadata->>'" member "')::numeric) END"

static int64_t number_or(const struct pg_rows *rows, size_t row, int column, int64_t otherwise)
{
    return pg_text(rows, row, column) == NULL ? otherwise : pg_number(rows, row, column);
}

/* `key` is platform:endpoint. */
static void take_row(struct coordination_limits *ls, const struct pg_rows *rows, size_t row)
{
    const char *key = pg_text(rows, row, 0), *colon = strchr(key, ':');
    int64_t updated_ms = number_or(rows, row, 5, 0);
    char platform[64], endpoint[64];
    if (updated_ms <= 0 || colon == NULL || colon - key >= (int)sizeof platform || strlen(colon + 1) >= sizeof endpoint)
        return;
    snprintf(platform, sizeof platform, "%.*s", (int)(colon - key), key);
    snprintf(endpoint, sizeof endpoint, "%s", colon + 1);
    struct coordination_limit *limit = coordination_limit_row(ls, platform, endpoint);
    if (limit->updated_ms >= updated_ms) return;
    limit->remaining = number_or(rows, row, 1, -1);
    limit->reset_ms = number_or(rows, row, 2, -1);
    limit->limit = number_or(rows, row, 3, -1);
    limit->usage_permille = number_or(rows, row, 4, -1);
    if (limit->usage_permille < 0 && limit->limit > 0 && limit->remaining >= 0)
        limit->usage_permille = (limit->limit - limit->remaining) * 1000 / limit->limit;
    limit->updated_ms = updated_ms;
}

/* NULL in *rows: there is no table yet. */
static bool read_rows(struct coordinator *co, struct pg_rows **rows, struct err *e)
{
    struct pg_rows *table = pg_query(co->pg, "SELECT to_regclass('rate_limits')", 0, NULL, e);
    bool ok = table != NULL, there = ok && pg_text(table, 0, 0) != NULL;
    pg_free(table);
    if (there)
        *rows = pg_query(co->pg,
                         "SELECT DISTINCT ON (key) key, remaining, CASE WHEN reset_at > now() THEN trunc(extract(epoch "
                         "FROM reset_at) * 1000)::bigint END, " NUMBER_IN("limitTotal") ", " NUMBER_IN(
                             "usagePermille") ", " NUMBER_IN("lastUpdated") " FROM rate_limits ORDER BY key, id DESC",
                         0, NULL, e);
    return ok && (!there || *rows != NULL);
}

static bool load(struct coordinator *co, struct err *e)
{
    struct pg_rows *rows = NULL;
    bool ok = pg_begin(co->pg, clock_mono_ms() + STEP_MS, e) && read_rows(co, &rows, e) && pg_commit(co->pg, e);
    pg_rollback(co->pg);
    if (ok && rows != NULL) { /* nothing parks from here on: the view is read and written as one */
        struct coordination_limits *ls = mem_alloc(sizeof *ls);
        coordination_read_limits(co->coordination, ls);
        for (size_t i = 0; i < pg_count(rows) && i < COORDINATION_MOST_LIMITS; i++) take_row(ls, rows, i);
        coordination_write_limits(co->coordination, ls);
        free(ls);
    }
    pg_free(rows);
    return ok;
}

void rate_limits_load_run(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    struct err e;
    int64_t quiet_until_ms = 0;
    while (duty_goes_on(d) && co->pg != NULL && !load(co, &e)) {
        if (clock_mono_ms() >= quiet_until_ms) {
            log_warn("rate limits cannot be read: error=\"%s\"", e.text);
            quiet_until_ms = clock_mono_ms() + COMPLAIN_MS;
        }
        duty_wait(d, clock_mono_ms() + RETRY_MS);
    }
    while (duty_wait(d, CLOCK_NEVER)) continue; /* once is enough */
}

/* --- to the database --- */

/* A number that a column of type integer takes; what is not known is left out (NULL), but for those that must be there.
 */
static const char *text_of(char text[24], int64_t value)
{
    if (value < 0) return NULL;
    snprintf(text, 24, "%" PRId64, value < INT_MAX ? value : INT_MAX);
    return text;
}

static int64_t remaining_of(const struct coordination_limit *l)
{
    if (l->remaining >= 0 || l->limit < 0 || l->usage_permille < 0 || l->usage_permille > 1000) return l->remaining;
    return l->limit / 1000 * (1000 - l->usage_permille) + l->limit % 1000 * (1000 - l->usage_permille) / 1000;
}

/* The newest row of the key, if what it says is older, or a new one: the key is not unique, but who may write is, by
 * the fence. */
static bool write_limit(struct coordinator *co, const struct coordination_limit *l, struct err *e)
{
    char key[140], remaining[24], limit[24], usage[24], updated[24], reset[24];
    const char *values[] = { key,     text_of(remaining, remaining_of(l)), reset, l->platform, text_of(limit, l->limit),
                             updated, text_of(usage, l->usage_permille) };
    snprintf(key, sizeof key, "%s:%s", l->platform, l->endpoint);
    snprintf(updated, sizeof updated, "%" PRId64, l->updated_ms);
    snprintf(reset, sizeof reset, "%" PRId64, l->reset_ms >= 0 ? l->reset_ms : l->updated_ms);
    fault_point("rate-limit-write");
    bool ok =
        fence_begin(co, STEP_MS, e) &&
        pg_run(co->pg,
               "WITH new AS (SELECT $1::text AS key, coalesce($2::int, -1) AS remaining, "
               "to_timestamp(least($3::bigint, 253402300799000) / 1000.0) AS reset_at, "
               "jsonb_strip_nulls(jsonb_build_object('platform', $4::text, 'limitTotal', $5::bigint, 'lastUpdated', "
               "$6::bigint, 'usagePermille', $7::bigint)) AS metadata), latest AS (SELECT id, " NUMBER_IN(
                   "lastUpdated") " AS updated FROM rate_limits WHERE key = $1 "
                                  "ORDER BY id DESC LIMIT 1 FOR UPDATE), changed AS (UPDATE rate_limits r "
                                  "SET remaining = new.remaining, reset_at = new.reset_at, metadata = new.metadata "
                                  "FROM new, latest WHERE r.id = latest.id AND coalesce(updated < $6::bigint, true)) "
                                  "INSERT INTO rate_limits (key, remaining, reset_at, metadata, created_at) "
                                  "SELECT key, remaining, reset_at, metadata, now() FROM new "
                                  "WHERE NOT EXISTS (SELECT FROM latest)",
               7, values, NULL, e);
    if (ok) fault_point("rate-limit-written");
    ok = ok && pg_commit(co->pg, e);
    pg_rollback(co->pg);
    metrics_add(METRIC_rate_limits_stored_total, ok);
    return ok;
}

/* Is this report the one that was written last? */
static bool is_written(struct coordination_limits *written, const struct coordination_limit *l)
{
    for (int64_t i = 0; i < written->count; i++) {
        const struct coordination_limit *w = &written->limit[i];
        if (strcmp(w->platform, l->platform) == 0 && strcmp(w->endpoint, l->endpoint) == 0)
            return w->updated_ms == l->updated_ms;
    }
    return false;
}

/* Writes what the view holds and `written` does not. A report that the database will not have is passed over. */
static bool store(struct duty *d, struct coordination_limits *view, struct coordination_limits *written, struct err *e)
{
    struct coordinator *co = duty_coordinator(d);
    coordination_read_limits(co->coordination, view);
    for (int64_t i = 0; i < view->count && duty_goes_on(d); i++) {
        const struct coordination_limit *l = &view->limit[i];
        if (l->updated_ms == 0 || is_written(written, l)) continue;
        if (!write_limit(co, l, e)) {
            if (e->kind != ERR_INPUT) return false;
            log_error("rate limit passed over: error=\"%s\"", e->text);
        }
        *coordination_limit_row(written, l->platform, l->endpoint) = *l;
    }
    return true;
}

void rate_limits_store_run(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    struct coordination_limits *view = mem_alloc(sizeof *view), *written = mem_alloc(sizeof *written);
    struct err e;
    int64_t quiet_until_ms = 0;
    while (duty_goes_on(d) && co->pg != NULL) {
        if (!store(d, view, written, &e) && clock_mono_ms() >= quiet_until_ms && duty_goes_on(d)) {
            log_warn("rate limits cannot be written: error=\"%s\"", e.text);
            quiet_until_ms = clock_mono_ms() + COMPLAIN_MS;
        }
        duty_wait(d, clock_mono_ms() + LOOK_MS);
    }
    free(view);
    free(written);
    if (co->pg == NULL) duty_wait(d, CLOCK_NEVER);
}
