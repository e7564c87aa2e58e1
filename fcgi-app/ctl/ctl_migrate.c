/* ctl_migrate.c: the Redis and the PostgreSQL of an original portal, before nodes of this service join it: what is
 * there, what their start would change, and what stands in the way. --apply changes it: what a leader would do, and no
 * more. */
#include "ctl.h"

#include "clock.h"
#include "json.h"
#include "mem.h"
#include "message.h"
#include "redis_keys.h"
#include "redis_scan.h"
#include "rounds.h"
#include "schema.h"
#include "session.h"
#include "span.h"
#include "task.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define STEP_MS    10000
#define LOCK_MS    5000
#define LEADER_KEY "hyperpage:leader"
#define PODS       "hyperpage:pod:*:heartbeat"

/* What is counted, and what it means where it is not 0. */
enum weight { REMARK, CHANGE, OBSTACLE, WEIGHTS };
static const char *const weight_names[WEIGHTS] = { "remarks", "changes", "obstacles" };

enum fact {
    SESSIONS,
    WITHOUT_END,
    NOT_INDEXED,
    FOREIGN_USERS,
    NO_OBJECTS,
    REFUSED_IDS,
    TOO_LARGE,
    PODS_SEEN,
    LEADER_FOREVER,
    EVICTION,
    FACTS
};
static const struct {
    const char *name;
    enum weight weight;
    const char *meaning; /* NULL: nothing to say */
} facts[FACTS] = {
    [SESSIONS] = { "sessions", REMARK, NULL },
    [WITHOUT_END] = { "withoutEnd", CHANGE, "sessions without an end get the life of SESSION_DEFAULT_TTL_SECONDS" },
    [NOT_INDEXED] = { "notIndexed", CHANGE, "sessions of users are entered in the index of users" },
    [FOREIGN_USERS] = { "userIdsMapped", REMARK,
                        "sessions have a userId that is no UUID: user_sessions gets its version-5 UUID" },
    [NO_OBJECTS] = { "notObjects", OBSTACLE, "session keys hold no JSON object: they are answered with 500 and kept" },
    [REFUSED_IDS] = { "refusedIds", OBSTACLE,
                      "sessions have an id that is answered with 400: allowed are 1 to 128 of A-Z a-z 0-9 . _ -" },
    [TOO_LARGE] = { "tooLarge", OBSTACLE, "sessions are larger than SESSION_MAX_BYTES: they can be read, not written" },
    [PODS_SEEN] = { "pods", REMARK, NULL },
    [LEADER_FOREVER] = { "leaderWithoutEnd", OBSTACLE,
                         "hyperpage:leader has no end, so nobody else can ever lead: delete it" },
    [EVICTION] = { "evicts", REMARK,
                   "maxmemory-policy is not noeviction: Redis throws sessions away when memory is short" },
};

struct migration {
    struct ctl *c;
    struct store *store;
    struct redis *redis;
    struct pg *pg; /* NULL: no DATABASE_URL */
    int64_t count[FACTS];
    const char *leader;       /* whose form its value has */
    struct buf said[WEIGHTS]; /* of PostgreSQL: lines */
    int64_t schema;
    enum ctl_exit code;
};

static bool command(struct migration *m, redisReply **reply, size_t argc, const struct bytes *argv, struct bytes key,
                    struct err *e)
{
    *reply = redis_call(m->redis, key, argc, argv, ctl_step_deadline(m->c, STEP_MS), NULL, e);
    return *reply != NULL;
}

/* --- sessions --- */

/* -1: cannot be asked. */
static int is_indexed(struct migration *m, const char *user, const char *id)
{
    struct buf key = BUF_INIT(STORE_USER_BYTES + 64);
    struct err e;
    redisReply *reply = NULL;
    buf_printf(&key, REDIS_USER_PREFIX "%s" REDIS_USER_SUFFIX, user);
    struct bytes zscore[] = { BYTES_LITERAL("ZSCORE"), buf_bytes(&key), bytes_of(id) };
    int is = command(m, &reply, 3, zscore, zscore[1], &e) ? reply->type != REDIS_REPLY_NIL : -1;
    if (is < 0 && m->code == CTL_OK) m->code = ctl_failed(m->c, &e);
    if (reply != NULL) freeReplyObject(reply);
    buf_done(&key);
    return is;
}

static void look_at_user(struct migration *m, const char *id, struct bytes user_id)
{
    char user[STORE_USER_BYTES], uuid[IDS_TEXT_BYTES];
    session_user(user_id, user, sizeof user);
    if (user[0] == '\0') return;
    ids_v5(bytes_of(user), uuid);
    m->count[FOREIGN_USERS] += strcasecmp(user, uuid) != 0;
    m->count[NOT_INDEXED] += is_indexed(m, user, id) == 0;
}

static void look_at_session(void *ctx, const struct store_found *f)
{
    struct migration *m = ctx;
    struct session_facts of;
    char id[IDS_TEXT_BYTES];
    bool good_id = ids_read(f->id, id) && bytes_is(f->id, id), object = f->is_text && session_facts(f->doc, &of);
    m->count[SESSIONS]++;
    m->count[REFUSED_IDS] += !good_id;
    m->count[NO_OBJECTS] += !object;
    m->count[TOO_LARGE] += f->doc.len > (size_t)m->c->config->session_max_bytes;
    /* Nobody gives a life to what is no session. */
    m->count[WITHOUT_END] += good_id && f->is_text && f->expires_at_ms == 0;
    if (good_id && object) look_at_user(m, id, of.user_id);
}

static bool count_key(void *ctx, struct bytes key, struct err *e)
{
    (void)key, (void)e;
    ++*(int64_t *)ctx;
    return true;
}

/* --- the rest of Redis --- */

/* An original pod writes four members and nothing else; ours adds to them. */
static const char *form_of(struct bytes value)
{
    struct span_member m;
    size_t at;
    int64_t number;
    if (span_check_object(value, 0, &at) != SPAN_OK) return "unreadable";
    if (!span_find(value, "leaderId", &m) || span_type(m.value) != SPAN_STRING ||
        !message_number(value, "term", &number) || !message_number(value, "lastHeartbeat", &number) ||
        !span_find(value, "status", &m))
        return "incomplete";
    return span_find(value, "owner", &m) ? "this" : "original";
}

static bool look_at_leader(struct migration *m, struct err *e)
{
    struct bytes get[] = { BYTES_LITERAL("GET"), BYTES_LITERAL(LEADER_KEY) };
    struct bytes pttl[] = { BYTES_LITERAL("PTTL"), get[1] };
    redisReply *value = NULL, *left = NULL;
    bool ok = command(m, &value, 2, get, get[1], e) || e->kind == ERR_CORRUPT;
    ok = ok && command(m, &left, 2, pttl, get[1], e);
    if (ok && (value == NULL || value->type != REDIS_REPLY_NIL))
        m->leader = value == NULL ? "unreadable" : form_of((struct bytes){ value->str, (size_t)value->len });
    if (ok) m->count[LEADER_FOREVER] = left->integer == -1;
    if (value != NULL) freeReplyObject(value);
    if (left != NULL) freeReplyObject(left);
    return ok;
}

static bool look_at_eviction(struct migration *m, struct err *e)
{
    struct bytes info[] = { BYTES_LITERAL("INFO"), BYTES_LITERAL("memory") };
    redisReply *reply = NULL;
    if (!command(m, &reply, 2, info, REDIS_NO_KEY, e)) return false;
    bool known = reply->type == REDIS_REPLY_STRING && strstr(reply->str, "maxmemory_policy:") != NULL;
    m->count[EVICTION] = known && strstr(reply->str, "maxmemory_policy:noeviction") == NULL;
    freeReplyObject(reply);
    return true;
}

static bool look_at_redis(struct migration *m, struct err *e)
{
    struct store_scan scan = { .each = look_at_session, .ctx = m };
    struct redis_scan pods = { 0 };
    bool ok = true, done = false;
    memset(m->count, 0, sizeof m->count);
    m->leader = NULL;
    while (ok && !scan.done && m->code == CTL_OK) ok = store_scan(m->store, &scan, ctl_step_deadline(m->c, STEP_MS), e);
    while (ok && !done)
        ok = redis_scan_page(m->redis, &pods, PODS, ctl_step_deadline(m->c, STEP_MS), &done, count_key,
                             &m->count[PODS_SEEN], e);
    return ok && look_at_leader(m, e) && look_at_eviction(m, e);
}

/* --- PostgreSQL: what the files of conf/schema make, against what is there --- */

static const char wrong_columns[] =
    "SELECT w.t, w.c, w.u, a.udt_name, to_regclass(w.t) IS NULL, row_number() OVER (PARTITION BY w.t) FROM (VALUES "
    "('app_state','key','varchar'), ('app_state','value','jsonb'), ('app_state','updated_at','timestamptz'), "
    "('rate_limits','id','int8'), ('rate_limits','key','varchar'), ('rate_limits','remaining','int4'), "
    "('rate_limits','reset_at','timestamptz'), ('rate_limits','metadata','jsonb'), "
    "('rate_limits','created_at','timestamptz'), ('jobs','id','int8'), ('jobs','type','varchar'), "
    "('jobs','payload','jsonb'), ('jobs','status','varchar'), ('jobs','scheduled_at','timestamptz'), "
    "('jobs','started_at','timestamptz'), ('jobs','completed_at','timestamptz'), ('jobs','attempts','int4'), "
    "('jobs','last_error','text'), ('jobs','created_at','timestamptz'), ('jobs','updated_at','timestamptz'), "
    "('job_history','id','int8'), ('job_history','job_id','int8'), ('job_history','status','varchar'), "
    "('job_history','details','jsonb'), ('job_history','created_at','timestamptz'), ('user_sessions','id','uuid'), "
    "('user_sessions','user_id','uuid'), ('user_sessions','session_token','varchar'), "
    "('user_sessions','expires_at','timestamptz'), ('user_sessions','created_at','timestamptz')) w(t, c, u) "
    "LEFT JOIN information_schema.columns a ON a.table_schema = current_schema() AND a.table_name = w.t "
    "AND a.column_name = w.c WHERE a.udt_name IS DISTINCT FROM w.u ORDER BY w.t, w.c";

static const char missing_indexes[] =
    "SELECT w.i FROM (VALUES ('jobs_status_idx'), ('jobs_scheduled_at_idx'), ('rate_limits_key_idx'), "
    "('job_history_job_id_idx'), ('user_sessions_user_id_idx'), ('user_sessions_session_token_unique'), "
    "('user_sessions_expires_at_idx')) w(i) WHERE to_regclass(w.i) IS NULL";

static const char missing_rows[] =
    "SELECT w.k FROM (VALUES ('coordinator.term'), ('coordinator.cleanup'), ('coordinator.registry')) w(k) "
    "WHERE NOT EXISTS (SELECT FROM app_state WHERE key = w.k)";

static const char may_create[] = "SELECT has_schema_privilege(current_schema(), 'CREATE')";

/* The uuid column of an original is one; where somebody has made it text, what is in it may be anything. */
static const char foreign_users[] = "SELECT count(*) FROM user_sessions WHERE user_id::text !~* "
                                    "'^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$'";

static void tell_columns(struct migration *m, const struct pg_rows *rows)
{
    for (size_t i = 0; i < pg_count(rows); i++) {
        const char *table = pg_text(rows, i, 0), *has = pg_text(rows, i, 3);
        bool no_table = pg_text(rows, i, 4)[0] == 't';
        if (no_table && pg_number(rows, i, 5) == 1)
            buf_printf(&m->said[CHANGE], "table %s is made\n", table);
        else if (!no_table)
            buf_printf(&m->said[OBSTACLE], "column %s.%s is %s, wanted is %s\n", table, pg_text(rows, i, 1),
                       has != NULL ? has : "missing", pg_text(rows, i, 2));
    }
}

static void tell_each(struct buf *said, const struct pg_rows *rows, const char *what)
{
    for (size_t i = 0; i < pg_count(rows); i++) buf_printf(said, "%s %s is made\n", what, pg_text(rows, i, 0));
}

static bool ask(struct migration *m, const char *sql, struct pg_rows **rows, struct err *e)
{
    pg_free(*rows);
    *rows = pg_query(m->pg, sql, 0, NULL, e);
    return *rows != NULL;
}

static bool exists(struct migration *m, const char *table, struct pg_rows **rows, bool *there, struct err *e)
{
    pg_free(*rows);
    *rows = pg_query(m->pg, "SELECT to_regclass($1)", 1, &table, e);
    *there = *rows != NULL && pg_text(*rows, 0, 0) != NULL;
    return *rows != NULL;
}

static bool look_at_tables(struct migration *m, struct err *e)
{
    struct pg_rows *rows = NULL;
    bool there = false, ok = ask(m, wrong_columns, &rows, e);
    if (ok) tell_columns(m, rows);
    ok = ok && ask(m, missing_indexes, &rows, e);
    if (ok) tell_each(&m->said[CHANGE], rows, "index");
    ok = ok && exists(m, "app_state", &rows, &there, e);
    if (ok && there) {
        ok = ask(m, missing_rows, &rows, e);
        if (ok) tell_each(&m->said[REMARK], rows, "row of app_state by the leader:");
    }
    ok = ok && exists(m, "user_sessions", &rows, &there, e);
    if (ok && there) {
        ok = ask(m, foreign_users, &rows, e);
        if (ok && pg_number(rows, 0, 0) > 0)
            buf_printf(&m->said[OBSTACLE], "%" PRId64 " rows of user_sessions have a user_id that is no UUID\n",
                       pg_number(rows, 0, 0));
    }
    ok = ok && ask(m, may_create, &rows, e);
    if (ok && m->schema < schema_newest() && pg_text(rows, 0, 0)[0] != 't')
        buf_puts(&m->said[OBSTACLE], "this user may not make tables and indexes in the schema\n");
    pg_free(rows);
    return ok;
}

/* A task. */
static void look_at_postgres(void *ctx)
{
    struct migration *m = ctx;
    struct err e;
    for (int w = 0; w < WEIGHTS; w++) buf_reset(&m->said[w]);
    bool ok = pg_begin(m->pg, ctl_step_deadline(m->c, STEP_MS), &e) && schema_version(m->pg, &m->schema, &e) &&
              look_at_tables(m, &e);
    pg_rollback(m->pg); /* nothing was changed */
    if (!ok) m->code = ctl_failed(m->c, &e);
    if (m->schema > schema_newest())
        buf_puts(&m->said[OBSTACLE], "the schema was made by a newer version of this service\n");
}

/* --- --apply --- */

/* A task. */
static void apply_schema(void *ctx)
{
    struct migration *m = ctx;
    struct err e;
    if (!schema_apply(m->pg, &e)) m->code = ctl_failed(m->c, &e);
}

static bool heal_sessions(struct migration *m, struct err *e)
{
    struct store_heal heal = { .life_ms = m->c->config->session_default_ttl_seconds * 1000 };
    bool ok = true;
    while (ok && !heal.done) ok = store_heal(m->store, &heal, ctl_step_deadline(m->c, STEP_MS), e);
    return ok;
}

/* --- all of it --- */

static void look(struct migration *m, struct pollset *ps)
{
    struct err e;
    if (!look_at_redis(m, &e) && m->code == CTL_OK) m->code = ctl_failed(m->c, &e);
    if (m->code != CTL_OK || m->pg == NULL) return;
    task_start(look_at_postgres, m);
    rounds_run(ps, NULL);
}

/* Where something in the database stands in the way, it stays as it is. */
static void apply(struct migration *m, struct pollset *ps)
{
    struct err e;
    if (!heal_sessions(m, &e)) m->code = ctl_failed(m->c, &e);
    if (m->code != CTL_OK || m->pg == NULL || m->said[OBSTACLE].len > 0) return;
    task_start(apply_schema, m);
    rounds_run(ps, NULL);
}

static void tell_lines(struct report *r, const struct buf *lines)
{
    for (const char *at = buf_text(lines), *end; (end = strchr(at, '\n')) != NULL; at = end + 1) {
        report_open(r, NULL);
        report_text(r, "what", (struct bytes){ at, (size_t)(end - at) });
        report_close(r);
    }
}

static int64_t tell_weight(struct migration *m, enum weight w)
{
    struct report *r = &m->c->report;
    int64_t found = m->said[w].len;
    report_open_list(r, weight_names[w]);
    for (int f = 0; f < FACTS; f++) {
        if (facts[f].weight != w || facts[f].meaning == NULL || m->count[f] == 0) continue;
        report_open(r, NULL);
        report_number(r, "count", m->count[f]);
        report_string(r, "what", facts[f].meaning);
        report_close(r);
        found++;
    }
    tell_lines(r, &m->said[w]);
    report_close_list(r);
    return found;
}

static void tell(struct migration *m)
{
    struct report *r = &m->c->report;
    report_flag(r, "applied", m->c->flag[CTL_APPLY] != NULL);
    report_open(r, "redis");
    for (int f = 0; f < FACTS; f++) report_number(r, facts[f].name, m->count[f]);
    report_string(r, "leader", m->leader != NULL ? m->leader : "");
    report_close(r);
    report_open(r, "postgres");
    report_flag(r, "used", m->pg != NULL);
    if (m->pg != NULL) report_number(r, "schemaVersion", m->schema);
    if (m->pg != NULL) report_number(r, "schemaNewest", schema_newest());
    report_close(r);
    tell_weight(m, REMARK);
    tell_weight(m, CHANGE);
    if (tell_weight(m, OBSTACLE) > 0) m->code = CTL_NOT_SO;
}

static bool open_redis(struct migration *m, struct err *e)
{
    const struct config *cfg = m->c->config;
    struct redis_options o = { .sentinel_password = cfg->redis_sentinel_password,
                               .timeout_ms = cfg->redis_timeout_ms,
                               .client_name = "hyperpagectl" };
    if (!redis_url_parse(cfg->redis_url, &o.url, e)) return false;
    m->redis = redis_open(&o);
    return true;
}

static bool open_postgres(struct migration *m, struct pollset *ps, struct err *e)
{
    struct pg_options o = { .url = m->c->config->database_url,
                            .name = "hyperpagectl",
                            .lock_timeout_ms = LOCK_MS,
                            .idle_timeout_ms = LOCK_MS,
                            .pollset = ps };
    return o.url[0] == '\0' || (m->pg = pg_open(&o, e)) != NULL;
}

enum ctl_exit migrate(struct ctl *c)
{
    struct migration m = { .c = c, .said = { BUF_INIT(1 << 16), BUF_INIT(1 << 16), BUF_INIT(1 << 16) } };
    struct err e;
    if (c->config->redis_url[0] == '\0')
        return ctl_fail(CTL_USAGE, "the original keeps its sessions in Redis: REDIS_URL");
    struct pollset *ps = pollset_new(&e);
    if (ps == NULL || !open_redis(&m, &e) || !open_postgres(&m, ps, &e)) m.code = ctl_failed(c, &e);
    if (m.code == CTL_OK) m.store = ctl_open_store(c, NULL, &m.code);
    if (m.code == CTL_OK) look(&m, ps);
    if (m.code == CTL_OK && c->flag[CTL_APPLY] != NULL) {
        apply(&m, ps);
        if (m.code == CTL_OK) look(&m, ps);
    }
    if (m.code == CTL_OK) tell(&m);
    store_close(m.store);
    redis_close(m.redis);
    pg_close(m.pg);
    pollset_free(ps);
    for (int w = 0; w < WEIGHTS; w++) buf_done(&m.said[w]);
    return m.code;
}
