#include "replay.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "session_merge.h"
#include "task.h"

#include <inttypes.h>
#include <stdio.h>

#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024)
#define MARK_LIFE           "86400000" /* ms: a day */
#define MOST_MARKS          "16"       /* nodes in one */
#define PROBE_LIFE          "1000"     /* ms */

/* What the scripts answer, but for a value that somebody else has written. */
enum answer { WRITTEN = 1, APPLIED, GONE, ABSENT, OTHER_VALUE, FAILED };

/* The applied-mark names the last version of each node, "NODE:VERSION" with blanks between, the latest first: where two
 * nodes bring back their changes of one session, neither may take what the other has done for the end of its own. */
#define IS_APPLIED                                                                                                     \
    "local marks = redis.call('GET', KEYS[3]) or ''\n"                                                                 \
    "if string.find(' ' .. marks .. ' ', ' ' .. ARGV[1] .. ' ', 1, true) then return 2 end\n"
#define NOTE_APPLIED(life)                                                                                             \
    "local node, new, n = string.match(ARGV[1], '^(.*):'), ARGV[1], 1\n"                                               \
    "for mark in string.gmatch(marks, '[^ ]+') do\n"                                                                   \
    "  if n < " MOST_MARKS " and string.match(mark, '^(.*):') ~= node then new, n = new .. ' ' .. mark, n + 1 end\n"   \
    "end\n"                                                                                                            \
    "redis.call('SET', KEYS[3], new, 'PX', " life ")\n"                                                                \
    "return 1"

/* clang-format off */
/* KEYS: the session, its gone-mark, its applied-mark. ARGV: the name of this version, what the key should hold, the new
 * document, its life in ms, '1' if the key may be missing, the life of marks. */
static const char *const script_session = IS_APPLIED
    "local now = redis.call('GET', KEYS[1])\n"
    "if not now and redis.call('EXISTS', KEYS[2]) == 1 then return 3 end\n"
    "if not now and ARGV[5] ~= '1' then return 4 end\n"
    "if now and now ~= ARGV[2] and now ~= ARGV[3] then return now end\n"
    "local left, life = redis.call('PTTL', KEYS[1]), tonumber(ARGV[4])\n"
    "if left > life then life = left end\n"
    "if life > 0 then redis.call('SET', KEYS[1], ARGV[3], 'PX', life)\n"
    "else redis.call('SET', KEYS[1], ARGV[3], 'KEEPTTL') end\n"
    NOTE_APPLIED("ARGV[6]");

/* The same keys. ARGV: the name of this version, the life of marks. STRLEN is an error if the key is no string: then it
 * is not ours to delete. */
static const char *const script_tombstone = IS_APPLIED
    "redis.call('STRLEN', KEYS[1])\n"
    "redis.call('SET', KEYS[2], '-', 'PX', ARGV[2])\n"
    "redis.call('DEL', KEYS[1])\n"
    NOTE_APPLIED("ARGV[2]");
/* clang-format on */

/* KEYS: hyperpage:epoch. ARGV: the value it gets if it has none. Answers its value, and 1 if that is new. */
static const char *const script_epoch = "local now = redis.call('GET', KEYS[1])\n"
                                        "if now then return {now, 0} end\n"
                                        "redis.call('SET', KEYS[1], ARGV[1])\n"
                                        "return {ARGV[1], 1}";

enum { SCRIPT_SESSION, SCRIPT_TOMBSTONE, SCRIPT_EPOCH, SCRIPTS };

struct replay {
    struct refuge *refuge;
    struct redis *redis;
    struct session_cache *copies;
    struct redis_script scripts[SCRIPTS];
    const char *node;
    void (*changed)(void *ctx, const struct replay_change *change);
    void *ctx;
};

/* ---- What the scripts are called with ------------------------------------------------------------------------ */

#define SESSION_PREFIX "hyperpage:session:"
enum { KEY_SESSION, KEY_GONE, KEY_APPLIED, KEYS };

struct names {
    char session[sizeof SESSION_PREFIX + IDS_TEXT_BYTES];
    char gone[64 + IDS_TEXT_BYTES], applied[64 + IDS_TEXT_BYTES], probe[64 + IDS_TEXT_BYTES];
    char version[64 + IDS_TEXT_BYTES];
};

/* The side keys carry the session's as hash tag, so that all lie in one slot of a cluster. */
static void names_of(const struct replay *rp, const struct refuge_row *row, struct names *n)
{
    snprintf(n->session, sizeof n->session, SESSION_PREFIX "%s", row->id);
    snprintf(n->gone, sizeof n->gone, "hyperpage:gone:{%s}", n->session);
    snprintf(n->applied, sizeof n->applied, "hyperpage:applied:{%s}", n->session);
    snprintf(n->probe, sizeof n->probe, "hyperpage:probe:{%s}", n->session);
    snprintf(n->version, sizeof n->version, "%.*s:%016" PRIx64, IDS_MOST_BYTES, rp->node, (uint64_t)row->version);
}

/* Runs one of the first two scripts. On OTHER_VALUE `theirs` is what the key holds. */
static enum answer call(struct replay *rp, int script, const struct names *n, size_t argc, const struct bytes *args,
                        int64_t deadline_ms, struct buf *theirs, struct err *e)
{
    struct bytes argv[KEYS + 6] = { bytes_of(n->session), bytes_of(n->gone), bytes_of(n->applied) };
    enum answer answer = FAILED;
    bool repeated = false;
    for (size_t i = 0; i < argc; i++) argv[KEYS + i] = args[i];
    redisReply *reply =
        redis_eval_keys(rp->redis, &rp->scripts[script], KEYS, KEYS + argc, argv, deadline_ms, &repeated, e);
    if (reply == NULL) return FAILED;
    if (reply->type == REDIS_REPLY_INTEGER && reply->integer >= WRITTEN && reply->integer <= ABSENT) {
        answer = (enum answer)reply->integer;
    } else if (reply->type == REDIS_REPLY_STRING && theirs != NULL) {
        buf_reset(theirs);
        buf_append(theirs, reply->str, (size_t)reply->len);
        answer = OTHER_VALUE;
    } else {
        err_set(e, ERR_UNAVAILABLE, "redis: a reply of type %d was not expected", reply->type);
    }
    freeReplyObject(reply);
    return answer;
}

/* ---- The epoch ----------------------------------------------------------------------------------------------- */

static bool present_epoch(struct replay *rp, int64_t deadline_ms, char epoch[IDS_TEXT_BYTES], bool *new, struct err *e)
{
    char fresh[IDS_TEXT_BYTES];
    bool repeated = false;
    ids_new_public(fresh);
    struct bytes argv[] = { bytes_of(fresh) };
    redisReply *reply = redis_eval(rp->redis, &rp->scripts[SCRIPT_EPOCH], BYTES_LITERAL("hyperpage:epoch"), 1, argv,
                                   deadline_ms, &repeated, e);
    if (reply == NULL) return false;
    bool ok = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
              reply->element[0]->type == REDIS_REPLY_STRING && reply->element[1]->type == REDIS_REPLY_INTEGER;
    if (ok) {
        snprintf(epoch, IDS_TEXT_BYTES, "%s", reply->element[0]->str);
        *new = reply->element[1]->integer == 1 || strcmp(epoch, fresh) == 0; /* sent twice, the first may have set it */
    } else {
        err_set(e, ERR_UNAVAILABLE, "redis: a reply of type %d was not expected", reply->type);
    }
    freeReplyObject(reply);
    return ok;
}

/* Has Redis lost the data that the row is based on? */
static bool has_lost(struct replay *rp, const struct refuge_row *row, int64_t deadline_ms, bool *lost, struct err *e)
{
    char epoch[IDS_TEXT_BYTES];
    bool new;
    if (!present_epoch(rp, deadline_ms, epoch, &new, e)) return false;
    *lost = new || (row->epoch[0] != '\0' && strcmp(row->epoch, epoch) != 0);
    return true;
}

bool replay_check_epoch(struct replay *rp, int64_t deadline_ms, bool *lost, struct err *e)
{
    struct buf seen = BUF_INIT(64 * 1024);
    char epoch[IDS_TEXT_BYTES];
    bool new, same = false;
    *lost = false;
    bool ok = refuge_fact(rp->refuge, REFUGE_EPOCH, &seen, e) && present_epoch(rp, deadline_ms, epoch, &new, e);
    if (ok) {
        same = strcmp(buf_text(&seen), epoch) == 0;
        *lost = seen.len > 0 && !same;
    }
    if (ok && !same) ok = refuge_fact_set(rp->refuge, REFUGE_EPOCH, bytes_of(epoch), deadline_ms, e);
    if (ok && *lost) log_warn("redis has lost its data, sessions that were changed in the outage are restored");
    buf_done(&seen);
    return ok;
}

/* ---- One row ------------------------------------------------------------------------------------------------- */

/* The next try to bring a version back. */
struct attempt {
    struct bytes expected, doc; /* what the key should hold, and what it gets then */
    bool may_be_missing;        /* the key */
    bool asked;                 /* whether Redis has lost its data, or that does not matter */
    struct buf theirs, merged;
    int conflicts;
};

static enum answer make_attempt(struct replay *rp, const struct refuge_row *row, struct attempt *a, int64_t life_ms,
                                int64_t deadline_ms, struct err *e)
{
    struct names n;
    char life[24];
    snprintf(life, sizeof life, "%" PRId64, life_ms);
    names_of(rp, row, &n);
    struct bytes missing = a->may_be_missing ? BYTES_LITERAL("1") : BYTES_LITERAL("0");
    struct bytes args[] = {
        bytes_of(n.version), a->expected, a->doc, bytes_of(life), missing, BYTES_LITERAL(MARK_LIFE)
    };
    return call(rp, SCRIPT_SESSION, &n, 6, args, deadline_ms, &a->theirs, e);
}

/* The key holds something else: then it gets both. If that is missing in turn, somebody has ended it. */
static bool attempt_merged(const struct refuge_row *row, struct attempt *a, struct err *e)
{
    struct bytes base = row->born_here ? BYTES_LITERAL("{}") : buf_bytes(&row->base);
    buf_reset(&a->merged);
    if (buf_overflowed(&a->theirs) ||
        !session_merge(base, buf_bytes(&row->doc), buf_bytes(&a->theirs), &a->merged, &a->conflicts))
        return err_set(e, ERR_CORRUPT, "redis holds what cannot be merged with the session of the outage");
    if (buf_overflowed(&a->merged)) return err_set(e, ERR_CORRUPT, "the merged session is too large");
    a->expected = buf_bytes(&a->theirs);
    a->doc = buf_bytes(&a->merged);
    a->may_be_missing = false;
    a->asked = true;
    return true;
}

/* Keeps what Redis holds now, as far as it is known, and tells of it; `epoch` is from before Redis was asked. */
static void tell(struct replay *rp, const struct replay_change *change, int64_t expires_at_ms, uint64_t epoch)
{
    if (rp->copies != NULL && change->doc.len > 0)
        session_cache_note_write(rp->copies, change->id, change->doc, expires_at_ms, epoch);
    else if (rp->copies != NULL)
        session_cache_drop(rp->copies, change->id);
    if (rp->changed != NULL) rp->changed(rp->ctx, change);
}

/* Tries until Redis has the version or it is clear that it will not. FAILED with `e` else. */
static enum answer bring_session(struct replay *rp, const struct refuge_row *row, int64_t deadline_ms, int *conflicts,
                                 struct err *e)
{
    const int64_t life_ms = row->expires_at_ms - clock_wall_ms();
    const bool alive = life_ms > 0;
    const uint64_t epoch = rp->copies != NULL ? session_cache_epoch(rp->copies, row->id) : 0;
    struct attempt a = { .expected = buf_bytes(row->born_here ? &row->doc : &row->base),
                         .doc = buf_bytes(&row->doc),
                         .may_be_missing = row->born_here && alive,
                         .asked = row->born_here || !alive,
                         .theirs = BUF_INIT(MOST_DOCUMENT_BYTES),
                         .merged = BUF_INIT(MOST_DOCUMENT_BYTES) };
    enum answer answer;
    bool again;
    do {
        again = false;
        answer = make_attempt(rp, row, &a, life_ms, deadline_ms, e);
        if (answer == OTHER_VALUE) {
            again = attempt_merged(row, &a, e);
            if (!again) answer = FAILED;
        } else if (answer == ABSENT && !a.asked) {
            a.asked = true;
            if (has_lost(rp, row, deadline_ms, &a.may_be_missing, e))
                again = a.may_be_missing;
            else
                answer = FAILED;
        }
    } while (again);
    if (answer != FAILED) {
        struct replay_change change = { .id = row->id, .base = buf_bytes(&row->base), .life_ms = life_ms };
        if (answer == WRITTEN && alive) change.doc = a.doc;
        tell(rp, &change, row->expires_at_ms, epoch);
    }
    *conflicts = a.conflicts;
    buf_done(&a.theirs);
    buf_done(&a.merged);
    return answer;
}

static enum answer bring_tombstone(struct replay *rp, const struct refuge_row *row, int64_t deadline_ms, struct err *e)
{
    struct names n;
    names_of(rp, row, &n);
    struct bytes args[] = { bytes_of(n.version), BYTES_LITERAL(MARK_LIFE) };
    enum answer answer = call(rp, SCRIPT_TOMBSTONE, &n, 2, args, deadline_ms, NULL, e);
    struct replay_change change = { .id = row->id, .deleted = true, .base = buf_bytes(&row->base) };
    if (answer != FAILED) tell(rp, &change, 0, 0);
    return answer;
}

/* Could Redis take another write beside the row's? Then it is the row that it does not take. */
static bool takes_writes(struct replay *rp, const struct refuge_row *row, int64_t deadline_ms)
{
    struct names n;
    struct err e;
    bool repeated = false;
    names_of(rp, row, &n);
    struct bytes set[] = { BYTES_LITERAL("SET"), bytes_of(n.probe), BYTES_LITERAL(""), BYTES_LITERAL("PX"),
                           BYTES_LITERAL(PROBE_LIFE) };
    redisReply *reply = redis_call(rp->redis, set[1], 5, set, deadline_ms, &repeated, &e);
    if (reply == NULL) return false;
    freeReplyObject(reply);
    return true;
}

static enum answer bring_once(struct replay *rp, const struct refuge_row *row, int64_t deadline_ms, int *conflicts,
                              struct err *e)
{
    if (row->doc.len > MOST_DOCUMENT_BYTES || row->base.len > MOST_DOCUMENT_BYTES) {
        err_set(e, ERR_CORRUPT, "the session of the outage is too large: bytes=%zu", row->doc.len);
        return FAILED;
    }
    return row->deleted ? bring_tombstone(rp, row, deadline_ms, e) : bring_session(rp, row, deadline_ms, conflicts, e);
}

static void say(const struct refuge_row *row, enum answer answer, int conflicts, const struct err *e)
{
    char name[9];
    ids_short(row->id, name);
    if (answer == WRITTEN && conflicts > 0)
        log_warn("replay: members changed on both sides, the later document won: session=%s members=%d", name,
                 conflicts);
    if (answer == FAILED && !row->refused)
        log_error("replay: session kept, Redis does not take it: session=%s error=\"%s\"", name, e->text);
}

/* Finds out what becomes of the row. False, and the row is unsettled, if Redis cannot be used; true with
 * REFUGE_REFUSED has `e` set too. */
static bool bring(struct replay *rp, struct refuge_row *row, int64_t deadline_ms, struct err *e)
{
    static const enum refuge_outcome outcomes[] = { [WRITTEN] = REFUGE_REPLAYED,
                                                    [APPLIED] = REFUGE_REPLAYED,
                                                    [GONE] = REFUGE_DROPPED,
                                                    [ABSENT] = REFUGE_DROPPED,
                                                    [FAILED] = REFUGE_REFUSED };
    int conflicts = 0;
    enum answer answer = bring_once(rp, row, deadline_ms, &conflicts, e);
    if (answer == FAILED && e->kind != ERR_CORRUPT) {
        if (!takes_writes(rp, row, deadline_ms)) return false;
        answer = bring_once(rp, row, deadline_ms, &conflicts, e); /* it may have come back just between the two */
        if (answer == FAILED && e->kind != ERR_CORRUPT && !takes_writes(rp, row, deadline_ms)) return false;
    }
    row->outcome = outcomes[answer];
    if (answer == WRITTEN) metrics_add(METRIC_replay_conflicts_total, (uint64_t)conflicts);
    say(row, answer, conflicts, e);
    return true;
}

/* Counts what this process has settled, so that nothing is counted by two. */
static void count(const struct refuge_row *row)
{
    char name[9];
    if (!row->settled) return;
    if (row->outcome == REFUGE_REPLAYED) metrics_add(METRIC_sessions_replayed_total, 1);
    if (row->outcome == REFUGE_REFUSED && !row->refused) metrics_add(METRIC_replay_kept_total, 1);
    if (row->outcome == REFUGE_DROPPED) {
        ids_short(row->id, name);
        metrics_add(METRIC_replay_dropped_total, 1);
        log_warn("replay: session dropped, it has ended in Redis: session=%s", name);
    }
}

static bool settle(struct replay *rp, struct refuge_row *rows, size_t taken, int64_t deadline_ms, struct err *e)
{
    if (!refuge_settle(rp->refuge, rows, taken, deadline_ms, e)) return false;
    for (size_t i = 0; i < taken; i++) count(&rows[i]);
    return true;
}

/* ---- The calls ----------------------------------------------------------------------------------------------- */

bool replay_one(struct replay *rp, const char *id, int64_t deadline_ms, struct err *e)
{
    bool ok = true;
    size_t taken = 1;
    while (ok && taken > 0) { /* again, if the row was changed meanwhile */
        struct refuge_row row = { 0 };
        struct err why = { .kind = ERR_NONE };
        ok = refuge_take(rp->refuge, id, &row, 1, &taken, deadline_ms, e);
        if (ok && taken > 0) {
            ok = bring(rp, &row, deadline_ms, &why) && settle(rp, &row, 1, deadline_ms, &why) &&
                 row.outcome != REFUGE_REFUSED;
            if (!ok) *e = why;
        }
        refuge_rows_done(&row, 1);
    }
    return ok;
}

/* Rows on their way, each in a task: their sessions differ, so their order does not matter, and Redis gets all in one
 * piece. */
struct bringing {
    struct replay *rp;
    int64_t deadline_ms;
    struct task *waits;
    size_t left;
    bool ok;
    struct err *e; /* of the first failure */
};

struct carrier {
    struct bringing *all;
    struct refuge_row *row;
};

static void run_carrier(void *arg)
{
    struct carrier *c = arg;
    struct bringing *all = c->all;
    struct err e = { .kind = ERR_NONE };
    if (!bring(all->rp, c->row, all->deadline_ms, &e) && all->ok) {
        all->ok = false;
        *all->e = e;
    }
    if (--all->left == 0) task_wake(all->waits);
}

/* True if Redis has answered for each row. */
static bool bring_all(struct replay *rp, struct refuge_row *rows, size_t count, int64_t deadline_ms, struct err *e)
{
    struct carrier carrier[REPLAY_MOST];
    struct bringing all = { rp, deadline_ms, task_current(), count, true, e };
    for (size_t i = 0; i < count && all.waits == NULL; i++)
        if (!bring(rp, &rows[i], deadline_ms, e)) return false;
    for (size_t i = 0; i < count && all.waits != NULL; i++) {
        carrier[i] = (struct carrier){ &all, &rows[i] };
        task_start(run_carrier, &carrier[i]);
    }
    while (all.waits != NULL && all.left > 0) task_park(CLOCK_NEVER);
    return all.ok;
}

bool replay_step(struct replay *rp, size_t most, int64_t deadline_ms, bool *more, struct err *e)
{
    struct refuge_row *rows = mem_alloc(REPLAY_MOST * sizeof *rows);
    struct err later;
    size_t taken = 0;
    *more = false;
    if (most > REPLAY_MOST) most = REPLAY_MOST;
    bool ok = refuge_take(rp->refuge, NULL, rows, most, &taken, deadline_ms, e);
    ok = ok && bring_all(rp, rows, taken, deadline_ms, e);
    if (taken > 0 && !settle(rp, rows, taken, clock_mono_ms() + 1000, ok ? e : &later)) ok = false;
    *more = ok && taken == most;
    for (size_t i = 0; i < taken; i++) *more = *more || (ok && rows[i].stays);
    refuge_rows_done(rows, most);
    free(rows);
    return ok;
}

struct replay *replay_open(const struct replay_options *o)
{
    struct replay *rp = mem_alloc(sizeof *rp);
    rp->refuge = o->refuge;
    rp->copies = o->copies;
    rp->node = o->node;
    rp->changed = o->changed;
    rp->ctx = o->ctx;
    rp->scripts[SCRIPT_SESSION].text = script_session;
    rp->scripts[SCRIPT_TOMBSTONE].text = script_tombstone;
    rp->scripts[SCRIPT_EPOCH].text = script_epoch;
    rp->redis = o->redis;
    redis_add_scripts(rp->redis, rp->scripts, SCRIPTS);
    return rp;
}

void replay_close(struct replay *rp)
{
    free(rp);
}
