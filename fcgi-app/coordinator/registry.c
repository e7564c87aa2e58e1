#include "registry.h"

#include "clock.h"
#include "fault.h"
#include "fence.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "redis_keys.h"
#include "session.h"
#include "session_events.h"
#include "store_backend.h"

#include <inttypes.h>
#include <stdio.h>

#define GROUP               "hyperpage-registry"
#define CONSUMER            "leader" /* one name for all leaders: what a dead one was handed is read again by the next */
#define MOST_EVENTS         500      /* one transaction */
#define SEEN                1024     /* a power of two, well above MOST_EVENTS */
#define STEP_MS             5000
#define LOOK_MS             500   /* between looks for new events: blocking would hold the connection */
#define LEFTOVERS_MS        60000 /* between looks for what a leader that stood still was handed */
#define COMPLAIN_MS         60000
#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024)
#define MOST_SQL_BYTES      (4 * 1024 * 1024)

/* --- rows --- */

/* What is to become of user_sessions: arrays as PostgreSQL reads them. Ids are [A-Za-z0-9._-], users' version-5 UUIDs,
 * so quotes are all they need (an id may be "NULL"). */
struct changes {
    struct buf tokens, ids, users, lives; /* rows that shall be there; lives in ms from now */
    struct buf dead;                      /* tokens of rows that shall not */
    size_t count;
    bool lost; /* an event that nobody can read any more */
};

static void changes_init(struct changes *c)
{
    struct buf empty = BUF_INIT(MOST_SQL_BYTES);
    *c = (struct changes){ empty, empty, empty, empty, empty, 0, false };
}

static void changes_reset(struct changes *c)
{
    buf_reset(&c->tokens);
    buf_reset(&c->ids);
    buf_reset(&c->users);
    buf_reset(&c->lives);
    buf_reset(&c->dead);
    c->count = 0;
}

static void changes_done(struct changes *c)
{
    buf_done(&c->tokens);
    buf_done(&c->ids);
    buf_done(&c->users);
    buf_done(&c->lives);
    buf_done(&c->dead);
}

static void add_item(struct buf *array, const char *text)
{
    buf_printf(array, "%s\"%s\"", array->len > 0 ? "," : "", text);
}

/* A row's own id is the version-5 UUID of the session's key: so rows of ours are told from those that others have made.
 */
static void row_id(const char *id, char out[IDS_TEXT_BYTES])
{
    struct session_key k;
    ids_v5(session_key(&k, id), out);
}

static void add_row(struct changes *c, const char *id, const char *user, int64_t life_ms)
{
    char row[IDS_TEXT_BYTES], uuid[IDS_TEXT_BYTES], life[24];
    row_id(id, row);
    ids_v5(bytes_of(user), uuid);
    snprintf(life, sizeof life, "%" PRId64, life_ms);
    add_item(&c->tokens, id);
    add_item(&c->ids, row);
    add_item(&c->users, uuid);
    add_item(&c->lives, life);
    c->count++;
}

static void add_dead(struct changes *c, const char *id)
{
    add_item(&c->dead, id);
    c->count++;
}

static char *as_array(const struct buf *items)
{
    struct buf array = BUF_INIT(MOST_SQL_BYTES + 8);
    buf_printf(&array, "{%s}", buf_text(items));
    return array.data;
}

/* In the fenced transaction that has begun. expires_at is later than the session's end by a tenth of the usual life,
 * since not every touch is announced; a row that would change by less is left as it is. */
static bool write_changes(struct coordinator *co, const struct changes *c, struct err *e)
{
    char slack[24];
    char *arrays[] = { as_array(&c->tokens), as_array(&c->ids), as_array(&c->users), as_array(&c->lives),
                       as_array(&c->dead) };
    const char *rows[] = { arrays[0], arrays[1], arrays[2], arrays[3], slack };
    const char *dead[] = { arrays[4] };
    snprintf(slack, sizeof slack, "%" PRId64, co->config->session_default_ttl_seconds * 100);
    bool ok = c->dead.len == 0 ||
              pg_run(co->pg, "DELETE FROM user_sessions WHERE session_token = ANY ($1::text[])", 1, dead, NULL, e);
    if (ok && c->tokens.len > 0)
        ok = pg_run(
            co->pg,
            "INSERT INTO user_sessions AS s (id, user_id, session_token, expires_at, created_at) "
            "SELECT id, user_id, token, now() + (life + $5::bigint) * interval '1 millisecond', now() "
            "FROM unnest($1::text[], $2::uuid[], $3::uuid[], $4::bigint[]) AS new (token, id, user_id, life) "
            "ON CONFLICT (session_token) DO UPDATE SET user_id = excluded.user_id, expires_at = excluded.expires_at "
            "WHERE s.user_id <> excluded.user_id OR s.expires_at NOT BETWEEN excluded.expires_at - interval "
            "'1 second' AND excluded.expires_at + interval '1 second'",
            5, rows, NULL, e);
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) free(arrays[i]);
    return ok;
}

static bool commit_changes(struct coordinator *co, const struct changes *c, struct err *e)
{
    if (c->count == 0) return true;
    fault_point("registry-write");
    bool ok = fence_begin(co, STEP_MS, e) && write_changes(co, c, e);
    if (ok) fault_point("registry-written");
    ok = ok && pg_commit(co->pg, e);
    pg_rollback(co->pg);
    return ok;
}

/* --- what is so --- */

/* Reads a session and says what shall become of its row. */
static bool look_at(struct coordinator *co, const char *id, struct buf *doc, struct changes *c, int64_t deadline_ms,
                    struct err *e)
{
    struct session_key k;
    struct session_facts facts;
    char user[STORE_USER_BYTES] = "";
    struct bytes get[] = { BYTES_LITERAL("GET"), session_key(&k, id) };
    struct bytes pttl[] = { BYTES_LITERAL("PTTL"), get[1] };
    int64_t life_ms = -2;
    redisReply *reply = redis_call(co->redis, get[1], 2, get, deadline_ms, NULL, e);
    if (reply == NULL && e->kind != ERR_CORRUPT) return false;
    buf_reset(doc);
    if (reply != NULL && reply->type == REDIS_REPLY_STRING) buf_append(doc, reply->str, (size_t)reply->len);
    if (reply != NULL) freeReplyObject(reply);
    if (doc->len > 0 && session_facts(buf_bytes(doc), &facts)) session_user(facts.user_id, user, sizeof user);
    if (user[0] != '\0') {
        if ((reply = redis_call(co->redis, get[1], 2, pttl, deadline_ms, NULL, e)) == NULL) return false;
        life_ms = reply->integer;
        freeReplyObject(reply);
        if (life_ms == -1) life_ms = co->config->session_default_ttl_seconds * 1000;
    }
    if (life_ms > 0)
        add_row(c, id, user, life_ms);
    else
        add_dead(c, id);
    return true;
}

/* --- the stream --- */

struct follower {
    struct coordinator *co;
    bool sure;      /* the group is there, and whether events were lost has been looked at */
    bool leftovers; /* what was handed out and not acknowledged comes first */
    int64_t leftovers_at_ms;
    int most;                               /* events in one transaction: one by one where a batch was refused */
    char place[SESSION_EVENTS_PLACE_BYTES]; /* all up to this entry were handed out; "": none yet */
    int64_t gap_quiet_until_ms;
    struct buf doc;
    uint64_t seen[SEEN]; /* fingerprints of the sessions of this batch: an open hash table, 0 is free */
};

static redisReply *ask(struct follower *f, size_t argc, const struct bytes *argv, bool writes, struct err *e)
{
    bool repeated;
    return redis_call(f->co->redis, BYTES_LITERAL(REDIS_EVENTS_KEY), argc, argv, clock_mono_ms() + STEP_MS,
                      writes ? &repeated : NULL, e);
}

static bool read_id(struct bytes text, uint64_t id[2])
{
    char copy[48], *end;
    if (text.len == 0 || text.len >= sizeof copy) return false;
    memcpy(copy, text.at, text.len);
    copy[text.len] = '\0';
    id[0] = strtoull(copy, &end, 10);
    id[1] = *end == '-' ? strtoull(end + 1, NULL, 10) : 0;
    return true;
}

/* Was an entry behind f->place perhaps trimmed before the group could read it? Sure it was not while the stream still
 * begins at or before what was read last. If it was, the next one to be read is f->place: what is trimmed from now on
 * is another gap. */
static bool look_for_gap(struct follower *f, bool *gap, struct err *e)
{
    uint64_t last[2], first[2];
    struct bytes range[] = { BYTES_LITERAL("XRANGE"), BYTES_LITERAL(REDIS_EVENTS_KEY), BYTES_LITERAL("-"),
                             BYTES_LITERAL("+"),      BYTES_LITERAL("COUNT"),          BYTES_LITERAL("1") };
    redisReply *reply = ask(f, 6, range, false, e);
    if (reply == NULL) return false;
    const redisReply *entry = reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 ? reply->element[0] : NULL;
    *gap = false;
    if (entry != NULL && entry->type == REDIS_REPLY_ARRAY && entry->elements == 2 &&
        read_id(bytes_of(f->place), last) &&
        read_id((struct bytes){ entry->element[0]->str, (size_t)entry->element[0]->len }, first))
        *gap = first[0] > last[0] || (first[0] == last[0] && first[1] > last[1]);
    if (*gap) snprintf(f->place, sizeof f->place, "%s", entry->element[0]->str);
    freeReplyObject(reply);
    return true;
}

/* What is lost is written down before anything else is read, so that it is not forgotten with this leader. A database
 * that knows of no registry has lost nothing: it gets its first one. */
static bool note_gap(struct follower *f, struct err *e)
{
    struct coordinator *co = f->co;
    int64_t fresh = 0;
    bool ok = fence_begin(co, STEP_MS, e) &&
              pg_run(co->pg,
                     "INSERT INTO app_state (key, value, updated_at) "
                     "VALUES ('coordinator.registry', '{\"gap\":true}', now()) ON CONFLICT (key) DO NOTHING",
                     0, NULL, &fresh, e) &&
              (fresh > 0 || pg_run(co->pg,
                                   "UPDATE app_state SET value = '{\"gap\":true}', updated_at = now() "
                                   "WHERE key = 'coordinator.registry'",
                                   0, NULL, NULL, e)) &&
              pg_commit(co->pg, e);
    pg_rollback(co->pg);
    if (!ok) return false;
    if (fresh > 0) {
        log_info("registry begins, the next cleanup builds it");
        return true;
    }
    metrics_add(METRIC_registry_gaps_total, 1);
    if (clock_mono_ms() < f->gap_quiet_until_ms) return true;
    f->gap_quiet_until_ms = clock_mono_ms() + COMPLAIN_MS;
    log_warn("session events may have been lost, the next cleanup builds the registry anew");
    return true;
}

/* f->place becomes the group's last entry, or an empty text where there is no such group, or no stream. */
static bool find_group(struct follower *f, struct err *e)
{
    struct bytes exists[] = { BYTES_LITERAL("EXISTS"), BYTES_LITERAL(REDIS_EVENTS_KEY) };
    struct bytes groups[] = { BYTES_LITERAL("XINFO"), BYTES_LITERAL("GROUPS"), BYTES_LITERAL(REDIS_EVENTS_KEY) };
    f->place[0] = '\0';
    redisReply *reply = ask(f, 2, exists, false, e);
    if (reply == NULL) return false;
    bool there = reply->integer == 1;
    freeReplyObject(reply);
    if (!there) return true; /* XINFO would be an error */
    if ((reply = ask(f, 3, groups, false, e)) == NULL) return false;
    for (size_t i = 0; reply->type == REDIS_REPLY_ARRAY && i < reply->elements; i++)
        if (bytes_is(session_events_member(reply->element[i], "name"), GROUP)) {
            struct bytes id = session_events_member(reply->element[i], "last-delivered-id");
            snprintf(f->place, sizeof f->place, "%.*s", (int)id.len, id.at);
        }
    freeReplyObject(reply);
    return true;
}

/* A new group begins with the oldest event that is there; what was before it is lost to us too. */
static bool make_sure(struct follower *f, struct err *e)
{
    bool gap = true;
    if (!find_group(f, e)) return false;
    bool there = f->place[0] != '\0';
    if (there && !look_for_gap(f, &gap, e)) return false;
    if (gap && !note_gap(f, e)) return false;
    fault_point("registry-group");
    if (!there) {
        struct bytes create[] = { BYTES_LITERAL("XGROUP"), BYTES_LITERAL("CREATE"), BYTES_LITERAL(REDIS_EVENTS_KEY),
                                  BYTES_LITERAL(GROUP),    BYTES_LITERAL("0"),      BYTES_LITERAL("MKSTREAM") };
        redisReply *reply = ask(f, 6, create, true, e);
        if (reply == NULL) return false;
        freeReplyObject(reply);
    }
    return true;
}

/* Whoever writes faster than we read has the stream trimmed before us: XREADGROUP then goes on behind the gap and says
 * nothing of it. */
static bool note_what_is_trimmed(struct follower *f, struct err *e)
{
    bool gap;
    if (f->place[0] == '\0') return true;
    return look_for_gap(f, &gap, e) && (!gap || note_gap(f, e));
}

/* The next events; the reply is the caller's, *entries its list of them or NULL. */
static redisReply *read_events(struct follower *f, const redisReply **entries, struct err *e)
{
    struct number most;
    struct bytes read[] = { BYTES_LITERAL("XREADGROUP"),
                            BYTES_LITERAL("GROUP"),
                            BYTES_LITERAL(GROUP),
                            BYTES_LITERAL(CONSUMER),
                            BYTES_LITERAL("COUNT"),
                            number(&most, f->most),
                            BYTES_LITERAL("STREAMS"),
                            BYTES_LITERAL(REDIS_EVENTS_KEY),
                            f->leftovers ? BYTES_LITERAL("0") : BYTES_LITERAL(">") };
    redisReply *reply = ask(f, 9, read, true, e); /* one whose answer is lost leaves leftovers */
    *entries = NULL;
    if (reply == NULL) return NULL;
    const redisReply *stream = reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 ? reply->element[0] : NULL;
    if (stream != NULL && stream->type == REDIS_REPLY_ARRAY && stream->elements == 2 &&
        stream->element[1]->type == REDIS_REPLY_ARRAY && stream->element[1]->elements > 0)
        *entries = stream->element[1];
    if (*entries != NULL && !f->leftovers) {
        const redisReply *last = (*entries)->element[(*entries)->elements - 1];
        snprintf(f->place, sizeof f->place, "%s", last->element[0]->str);
    }
    return reply;
}

/* Is this session known from this batch? Remembers it. */
static bool was_seen(struct follower *f, const char *id)
{
    uint64_t hash = ids_hash(bytes_of(id), 0) | 1;
    size_t at = (hash >> 1) % SEEN;
    while (f->seen[at] != 0 && f->seen[at] != hash) at = (at + 1) % SEEN;
    if (f->seen[at] == hash) return true;
    f->seen[at] = hash;
    return false;
}

/* What one event says to look at. Without a user there is nothing to look at: there is no row. But what is left over
 * may be older than what was read since. */
static bool take_event(struct follower *f, const redisReply *entry, struct changes *c, struct err *e)
{
    char id[IDS_TEXT_BYTES];
    const redisReply *members = entry->element[1];
    struct bytes was = session_events_member(members, "wasSessionId");
    bool has_user = session_events_member(members, "userId").len > 0 &&
                    !bytes_is(session_events_member(members, "type"), "deleted");
    if (members->type == REDIS_REPLY_NIL) c->lost = true; /* trimmed after it was handed out */
    if (was.len > 0 && ids_read(was, id) && !was_seen(f, id)) add_dead(c, id);
    if (!ids_read(session_events_member(members, "sessionId"), id) || was_seen(f, id)) return true;
    if (has_user || f->leftovers) return look_at(f->co, id, &f->doc, c, clock_mono_ms() + STEP_MS, e);
    add_dead(c, id);
    return true;
}

static bool acknowledge(struct follower *f, const redisReply *entries, struct err *e)
{
    struct bytes ack[3 + MOST_EVENTS] = { BYTES_LITERAL("XACK"), BYTES_LITERAL(REDIS_EVENTS_KEY),
                                          BYTES_LITERAL(GROUP) };
    for (size_t i = 0; i < entries->elements; i++) {
        const redisReply *id = entries->element[i]->element[0];
        ack[3 + i] = (struct bytes){ id->str, (size_t)id->len };
    }
    redisReply *reply = ask(f, 3 + entries->elements, ack, true, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

/* Values that the database will not have would stop everything behind them: they are sought one by one, and passed
 * over. False: `e` is still a failure. */
static bool meet_refusal(struct follower *f, const redisReply *entries, struct err *e)
{
    if (e->kind != ERR_INPUT) return false;
    if (f->most > 1) {
        f->most = 1;
        f->leftovers = true;
        return false;
    }
    log_error("session event passed over: error=\"%s\"", e->text);
    return acknowledge(f, entries, e);
}

static bool bring_in(struct follower *f, const redisReply *entries, struct err *e)
{
    struct changes c;
    bool ok = true;
    changes_init(&c);
    memset(f->seen, 0, sizeof f->seen);
    for (size_t i = entries->elements; ok && i > 0; i--) /* the last event about a session counts */
        if (entries->element[i - 1]->elements == 2) ok = take_event(f, entries->element[i - 1], &c, e);
    if (ok && c.lost) ok = note_gap(f, e);
    ok = ok && commit_changes(f->co, &c, e);
    changes_done(&c);
    if (!ok) return meet_refusal(f, entries, e);
    fault_point("registry-acknowledge");
    metrics_add(METRIC_registry_events_total, entries->elements);
    return acknowledge(f, entries, e);
}

/* A batch; *more: there may be others. */
static bool follow(struct follower *f, bool *more, struct err *e)
{
    const redisReply *entries;
    *more = false;
    if (!f->sure && !(f->sure = make_sure(f, e))) return false;
    if (clock_mono_ms() >= f->leftovers_at_ms) f->leftovers = true;
    if (!f->leftovers && !note_what_is_trimmed(f, e)) return false;
    redisReply *reply = read_events(f, &entries, e);
    if (reply == NULL) return false;
    bool ok = entries == NULL || bring_in(f, entries, e);
    if (ok && entries == NULL && f->leftovers) {
        f->leftovers = false;
        f->most = MOST_EVENTS;
        f->leftovers_at_ms = clock_mono_ms() + LEFTOVERS_MS;
        *more = true;
    }
    if (entries != NULL) *more = true;
    freeReplyObject(reply);
    return ok;
}

void registry_run(struct duty *d)
{
    struct coordinator *co = duty_coordinator(d);
    struct follower *f = mem_alloc(sizeof *f);
    *f = (struct follower){ .co = co, .leftovers = true, .most = MOST_EVENTS, .doc = BUF_INIT(MOST_DOCUMENT_BYTES) };
    struct err e;
    bool more;
    int64_t quiet_until_ms = 0;
    while (duty_goes_on(d) && co->pg != NULL && co->redis != NULL) {
        bool ok = follow(f, &more, &e);
        if (!ok) {
            f->leftovers = true;
            f->sure = false; /* events may be trimmed meanwhile, or be gone with all of Redis' data */
        }
        if (!ok && clock_mono_ms() >= quiet_until_ms && duty_goes_on(d)) {
            log_warn("session events cannot be followed: error=\"%s\"", e.text);
            quiet_until_ms = clock_mono_ms() + COMPLAIN_MS;
        }
        if (!ok || !more) duty_wait(d, clock_mono_ms() + LOOK_MS);
    }
    buf_done(&f->doc);
    free(f);
    if (co->pg == NULL || co->redis == NULL) duty_wait(d, CLOCK_NEVER);
}

/* --- all rows anew --- */

struct registry_rebuild {
    struct coordinator *co;
    char noted[64]; /* when the gap was; "": there is none */
    struct changes changes;
};

static bool read_gap(struct registry_rebuild *rb, struct err *e)
{
    struct coordinator *co = rb->co;
    struct pg_rows *rows = NULL;
    if (pg_begin(co->pg, clock_mono_ms() + STEP_MS, e))
        rows = pg_query(
            co->pg, "SELECT updated_at FROM app_state WHERE key = 'coordinator.registry' AND value->>'gap' = 'true'", 0,
            NULL, e);
    bool ok = rows != NULL && pg_commit(co->pg, e);
    if (ok && pg_count(rows) > 0) snprintf(rb->noted, sizeof rb->noted, "%s", pg_text(rows, 0, 0));
    pg_free(rows);
    pg_rollback(co->pg);
    return ok;
}

struct registry_rebuild *registry_rebuild_open(struct coordinator *co, struct err *e)
{
    struct registry_rebuild *rb = mem_alloc(sizeof *rb);
    rb->co = co;
    changes_init(&rb->changes);
    if (read_gap(rb, e)) return rb;
    registry_rebuild_close(rb);
    return NULL;
}

void registry_rebuild_close(struct registry_rebuild *rb)
{
    if (rb == NULL) return;
    changes_done(&rb->changes);
    free(rb);
}

void registry_rebuild_see(void *rebuild, const char *id, const char *user, int64_t expires_at_ms)
{
    struct registry_rebuild *rb = rebuild;
    int64_t life_ms = expires_at_ms - clock_wall_ms();
    if (rb->noted[0] == '\0') return;
    if (user[0] != '\0' && life_ms > 0)
        add_row(&rb->changes, id, user, life_ms);
    else
        add_dead(&rb->changes, id);
}

bool registry_rebuild_write(struct registry_rebuild *rb, struct err *e)
{
    bool ok = commit_changes(rb->co, &rb->changes, e);
    changes_reset(&rb->changes);
    return ok;
}

/* A page of rows behind `after`, whose last id it becomes; *more: there are others. Of those that are ours the ones
 * whose session is not there go. */
static bool sweep_page(struct registry_rebuild *rb, char after[40], bool *more, struct err *e)
{
    struct coordinator *co = rb->co;
    const char *values[] = { after };
    struct pg_rows *rows = NULL;
    if (pg_begin(co->pg, clock_mono_ms() + STEP_MS, e))
        rows = pg_query(co->pg, "SELECT id, session_token FROM user_sessions WHERE id > $1::uuid ORDER BY id LIMIT 500",
                        1, values, e);
    bool ok = rows != NULL && pg_commit(co->pg, e);
    pg_rollback(co->pg);
    *more = ok && pg_count(rows) > 0;
    for (size_t i = 0; ok && i < pg_count(rows); i++) {
        struct session_key k;
        char ours[IDS_TEXT_BYTES], id[IDS_TEXT_BYTES];
        snprintf(after, 40, "%s", pg_text(rows, i, 0));
        if (!ids_read(bytes_of(pg_text(rows, i, 1)), id)) continue;
        row_id(id, ours);
        if (strcmp(ours, after) != 0) continue;
        struct bytes exists[] = { BYTES_LITERAL("EXISTS"), session_key(&k, id) };
        redisReply *reply = redis_call(co->redis, exists[1], 2, exists, clock_mono_ms() + STEP_MS, NULL, e);
        if (!(ok = reply != NULL)) break;
        if (reply->integer == 0) add_dead(&rb->changes, id);
        freeReplyObject(reply);
    }
    pg_free(rows);
    return ok && registry_rebuild_write(rb, e);
}

/* The mark goes unless there was another gap meanwhile. */
static bool forget_gap(struct registry_rebuild *rb, struct err *e)
{
    struct coordinator *co = rb->co;
    const char *values[] = { rb->noted };
    fault_point("registry-forget");
    bool ok = fence_begin(co, STEP_MS, e) &&
              pg_run(co->pg,
                     "UPDATE app_state SET value = '{\"gap\":false}', updated_at = now() "
                     "WHERE key = 'coordinator.registry' AND updated_at = $1::timestamptz",
                     1, values, NULL, e) &&
              pg_commit(co->pg, e);
    pg_rollback(co->pg);
    return ok;
}

bool registry_rebuild_finish(struct registry_rebuild *rb, struct job *job, struct err *e)
{
    char after[40] = "00000000-0000-0000-0000-000000000000";
    bool more = rb->noted[0] != '\0';
    if (!more) return true;
    while (more) {
        if (!job_goes_on(job)) return err_set(e, ERR_UNAVAILABLE, "not the leader any more, or out of time");
        fault_point("registry-sweep");
        if (!sweep_page(rb, after, &more, e)) return false;
    }
    log_info("registry built anew");
    return forget_gap(rb, e);
}
