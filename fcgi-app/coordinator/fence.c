#include "fence.h"

#include "clock.h"
#include "leadership.h"
#include "log.h"
#include "metrics.h"
#include "schema.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Who has written last. */
struct mark {
    int64_t term; /* 0: nobody, or what stands there is none of ours */
    bool ours;
};

/* Locks the row until the end of the transaction; *there: it exists. */
static bool read_mark(struct coordinator *co, struct mark *m, bool *there, struct err *e)
{
    struct pg_rows *rows = pg_query(co->pg,
                                    "SELECT value->>'term', value->>'leaderId' FROM app_state "
                                    "WHERE key = 'coordinator.term' FOR UPDATE",
                                    0, NULL, e);
    if (rows == NULL) return false;
    *m = (struct mark){ 0 };
    *there = pg_count(rows) > 0;
    if (*there) {
        const char *leader = pg_text(rows, 0, 1);
        m->term = pg_number(rows, 0, 0);
        m->ours = leader != NULL && strcmp(leader, co->pod) == 0;
    }
    pg_free(rows);
    return true;
}

/* Two may meet here, when the row is made: one inserts, the other waits for it and finds it. */
static bool make_mark(struct coordinator *co, struct mark *m, struct err *e)
{
    bool there;
    return pg_run(co->pg,
                  "INSERT INTO app_state (key, value, updated_at) VALUES ('coordinator.term', '{}', now()) "
                  "ON CONFLICT (key) DO NOTHING",
                  0, NULL, NULL, e) &&
           read_mark(co, m, &there, e);
}

static bool set_mark(struct coordinator *co, int64_t term, struct err *e)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, term);
    return pg_run(co->pg,
                  "UPDATE app_state SET value = jsonb_build_object('term', $1::bigint, 'leaderId', $2::text), "
                  "updated_at = now() WHERE key = 'coordinator.term'",
                  2, (const char *[]){ text, co->pod }, NULL, e);
}

/* A term that we are not above: either another has been elected after us, or Redis has lost its counter. Standing for
 * election again, with a counter above that term, is right both times. */
static bool refuse(struct coordinator *co, int64_t term, const struct mark *m, struct err *e)
{
    metrics_add(METRIC_fence_refusals_total, 1);
    log_warn("leader refused by the database, standing down: term=%" PRId64 " stored_term=%" PRId64, term, m->term);
    leadership_lift_term(co->leadership, m->term);
    return err_set(e, ERR_UNAVAILABLE, "postgres: a leader of a later term has written");
}

static bool pass(struct coordinator *co, int64_t term, struct err *e)
{
    struct mark m;
    bool there;
    if (!read_mark(co, &m, &there, e) || (!there && !make_mark(co, &m, e))) return false;
    if (m.term == term && m.ours) return true;
    return term > m.term ? set_mark(co, term, e) : refuse(co, term, &m, e);
}

bool fence_begin(struct coordinator *co, int64_t most_ms, struct err *e)
{
    if (!leadership_may_act(co->leadership)) return err_set(e, ERR_UNAVAILABLE, "not the leader");
    if (!co->schema_applied && !(co->schema_applied = schema_apply(co->pg, e))) return false;
    int64_t by_ms = clock_mono_ms() + most_ms, lease_ms = leadership_acts_until_ms(co->leadership);
    int64_t term = leadership_term(co->leadership);
    bool ok = pg_begin(co->pg, lease_ms < by_ms ? lease_ms : by_ms, e) && pass(co, term, e);
    if (ok)
        co->fenced_term = term;
    else
        pg_rollback(co->pg);
    return ok;
}
