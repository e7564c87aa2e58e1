#include "user_sessions.h"

#include "clock.h"
#include "mem.h"
#include "metrics.h"

#define MOST_PASSES 8 /* over a user's sessions while new ones keep coming */

static bool is_theirs(const char *user, struct bytes doc, struct session_facts *facts)
{
    char owner[STORE_USER_BYTES];
    if (!session_facts(doc, facts)) return false;
    session_user(facts->user_id, owner, sizeof owner);
    return strcmp(owner, user) == 0;
}

/* --- list --- */

struct listing {
    const struct life_rules *life;
    const char *user;
    void (*each)(void *ctx, const struct user_session *s);
    void *ctx;
};

static bool tell_session(void *ctx, const char *id, struct bytes doc, int64_t expires_at_ms)
{
    struct listing *l = ctx;
    struct session_facts facts;
    struct user_session s = { .expires_at_ms = expires_at_ms, .facts = &facts };
    if (!is_theirs(l->user, doc, &facts)) return false;
    if (life_left_ms(l->life, &facts, clock_wall_ms()) <= 0) return true;
    ids_short(id, s.hash);
    l->each(l->ctx, &s);
    return true;
}

bool user_sessions_each(struct store *st, const struct life_rules *life, const char *user, int64_t deadline_ms,
                        void (*each)(void *ctx, const struct user_session *s), void *ctx, struct err *e)
{
    struct listing l = { life, user, each, ctx };
    return store_list(st, user, deadline_ms, tell_session, &l, e);
}

/* --- revoke --- */

struct found {
    const char *user;
    char (*ids)[IDS_TEXT_BYTES];
    size_t count, cap;
};

static bool add_id(void *ctx, const char *id, struct bytes doc, int64_t expires_at_ms)
{
    struct found *f = ctx;
    struct session_facts facts;
    (void)expires_at_ms;
    if (!is_theirs(f->user, doc, &facts)) return false;
    if (f->count == f->cap) {
        f->cap = f->cap ? f->cap * 2 : 16;
        f->ids = mem_resize(f->ids, f->cap * sizeof *f->ids);
    }
    snprintf(f->ids[f->count++], sizeof *f->ids, "%s", id);
    return true;
}

struct revocation {
    const char *user;
    struct store_terms terms;
};

/* It may have become another's since it was listed. */
static enum store_verdict delete_if_theirs(void *ctx, struct bytes doc, struct buf *out)
{
    struct revocation *r = ctx;
    struct session_facts facts;
    (void)out;
    snprintf(r->terms.was_user, sizeof r->terms.was_user, "%s", r->user);
    return is_theirs(r->user, doc, &facts) ? STORE_DELETE : STORE_KEEP;
}

static bool revoke_found(struct store *st, const struct found *f, int64_t deadline_ms, int64_t *revoked, struct err *e)
{
    for (size_t i = 0; i < f->count; i++) {
        struct revocation r = { .user = f->user, .terms = { .strict = true } };
        struct store_result res;
        if (!store_update(st, f->ids[i], delete_if_theirs, &r, &r.terms, deadline_ms, &res, e)) return false;
        if (!res.changed) continue;
        metrics_add(METRIC_sessions_revoked_total, 1);
        ++*revoked;
    }
    return true;
}

/* Again until a list is empty: a session that was given a new id in between is in the next one. */
bool user_sessions_revoke(struct store *st, const char *user, int64_t deadline_ms, int64_t *revoked, struct err *e)
{
    struct found f = { .user = user };
    bool ok = true;
    *revoked = 0;
    for (int pass = 0; ok && pass < MOST_PASSES; pass++) {
        f.count = 0;
        ok = store_list(st, user, deadline_ms, add_id, &f, e) && revoke_found(st, &f, deadline_ms, revoked, e);
        if (f.count == 0) break;
    }
    free(f.ids);
    return ok;
}
