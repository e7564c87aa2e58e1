#include "schema.h"

#include "clock.h"
#include "fault.h"
#include "log.h"

#include <inttypes.h>
#include <stdio.h>

#define APPLY_MS 60000 /* building an index takes its time */

static const struct step {
    int version;
    const char *name, *sql;
} steps[] = {
#include "schema.inc"
};
#define STEPS (sizeof steps / sizeof steps[0])

/* The newest step that the database has. */
static bool read_version(struct pg *pg, int64_t *version, struct err *e)
{
    struct pg_rows *rows = pg_query(pg, "SELECT coalesce(max(version), 0) FROM hyperpage_schema", 0, NULL, e);
    if (rows == NULL) return false;
    *version = pg_number(rows, 0, 0);
    pg_free(rows);
    return true;
}

bool schema_version(struct pg *pg, int64_t *version, struct err *e)
{
    struct pg_rows *rows = pg_query(pg, "SELECT to_regclass('hyperpage_schema')", 0, NULL, e);
    bool ok = rows != NULL, there = ok && pg_text(rows, 0, 0) != NULL;
    pg_free(rows);
    *version = 0;
    return there ? read_version(pg, version, e) : ok;
}

int64_t schema_newest(void)
{
    return steps[STEPS - 1].version;
}

/* Is all there? It is asked for before anything is made: where an administrator has made everything, we need no right
 * to make anything. */
static bool is_complete(struct pg *pg, bool *complete, struct err *e)
{
    int64_t version;
    bool ok = schema_version(pg, &version, e);
    *complete = ok && version >= schema_newest();
    return ok;
}

static bool apply(struct pg *pg, const struct step *s, struct err *e)
{
    char version[16];
    snprintf(version, sizeof version, "%d", s->version);
    fault_point("schema-step");
    if (!pg_script(pg, s->sql, e)) return false;
    log_info("schema of the database changed: step=%s", s->name);
    return pg_run(pg, "INSERT INTO hyperpage_schema (version, name) VALUES ($1, $2)", 2,
                  (const char *[]){ version, s->name }, NULL, e);
}

/* The lock ends with the transaction, so it is one's own behind pgbouncer too. Who waited for it looks again, at the
 * table itself: what to_regclass() said before is remembered by the server's process for the rest of the transaction.
 */
static bool apply_missing(struct pg *pg, struct err *e)
{
    int64_t version;
    bool ok = pg_run(pg, "SELECT pg_advisory_xact_lock(hashtext('hyperpage_schema'))", 0, NULL, NULL, e) &&
              pg_script(pg,
                        "CREATE TABLE IF NOT EXISTS hyperpage_schema (version integer PRIMARY KEY, name text NOT NULL, "
                        "applied_at timestamptz NOT NULL DEFAULT now())",
                        e) &&
              read_version(pg, &version, e);
    for (size_t i = 0; ok && i < STEPS; i++)
        if (steps[i].version > version) ok = apply(pg, &steps[i], e);
    return ok;
}

bool schema_apply(struct pg *pg, struct err *e)
{
    bool complete = false;
    bool ok = pg_begin(pg, clock_mono_ms() + APPLY_MS, e) && is_complete(pg, &complete, e);
    if (ok && !complete) ok = apply_missing(pg, e);
    ok = ok && pg_commit(pg, e);
    pg_rollback(pg);
    return ok;
}
