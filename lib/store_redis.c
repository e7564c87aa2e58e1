#include "store_redis.h"

#include "clock.h"
#include "fault.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "redis.h"
#include "redis_keys.h"
#include "redis_rotation.h"
#include "redis_scan.h"
#include "session_events.h"
#include "task.h"
#include "user_index.h"

#include <inttypes.h>
#include <stdio.h>

#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024)
#define EDITED_BUCKETS      64
#define MOST_REFILLS        8
#define REFILL_MS           1000
#define COPY_FRESH_MS       250 /* a copy that was confirmed so lately is not compared with each read */
#define POLICY_EVERY_MS     3600000
#define TELL_MS             2000 /* how long the index and the stream are tried after an answer */

/* Compare and set: writes ARGV[2] only where ARGV[1] still stands. The life becomes ARGV[3], never shortened but never
 * above ARGV[4] (0: no such end). Answers the life in ms; or what stands there now, which saves the next attempt its
 * read; or nil: gone. */
static const char *const script_write = "local now = redis.call('GET', KEYS[1])\n"
                                        "if not now then return nil end\n"
                                        "if now ~= ARGV[1] then return now end\n"
                                        "local left, life = redis.call('PTTL', KEYS[1]), tonumber(ARGV[3])\n"
                                        "if left > life then life = left end\n"
                                        "local most = tonumber(ARGV[4])\n"
                                        "if most > 0 and life > most then life = most end\n"
                                        "redis.call('SET', KEYS[1], ARGV[2], 'PX', life)\n"
                                        "return life";

/* Deletes, with '1' as ARGV[1] only where ARGV[2] still stands, and leaves a gone-mark in KEYS[2] for ARGV[3] ms.
 * Answers what was deleted, or a list with what stands there instead, or nil. A key of another type is an error in GET,
 * and it is kept. */
static const char *const script_delete = "local now = redis.call('GET', KEYS[1])\n"
                                         "if not now then return nil end\n"
                                         "if ARGV[1] == '1' and now ~= ARGV[2] then return {now} end\n"
                                         "redis.call('SET', KEYS[2], '" REDIS_GONE_PLAIN "', 'PX', ARGV[3])\n"
                                         "redis.call('DEL', KEYS[1])\n"
                                         "return now";

/* Creates ARGV[1] for ARGV[2] ms under an id that somebody may have had before: 1, or 0: taken, or -1: gone, as KEYS[2]
 * says. */
static const char *const script_create = "if redis.call('EXISTS', KEYS[2]) == 1 then return -1 end\n"
                                         "return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') and 1 or 0";

/* Reads with the life left (-1: without end), and, where ARGV[1] is above 0, sets that back to it if more than a tenth
 * of it is gone: then the third of the list is 1. */
static const char *const script_read = "local now = redis.call('GET', KEYS[1])\n"
                                       "if not now then return nil end\n"
                                       "local left, life = redis.call('PTTL', KEYS[1]), tonumber(ARGV[1])\n"
                                       "if life <= 0 or left >= life - life / 10 then return {now, left, 0} end\n"
                                       "redis.call('PEXPIRE', KEYS[1], life)\n"
                                       "return {now, life, 1}";

/* Sets the life to ARGV[1], with '1' as ARGV[2] only if that is longer. Answers the old and the new life and the value,
 * or nil. */
static const char *const script_expire = "local now = redis.call('GET', KEYS[1])\n"
                                         "if not now then return nil end\n"
                                         "local left, life = redis.call('PTTL', KEYS[1]), tonumber(ARGV[1])\n"
                                         "if ARGV[2] == '1' and left > life then return {left, left, now} end\n"
                                         "redis.call('PEXPIRE', KEYS[1], life)\n"
                                         "return {left, life, now}";

enum { SCRIPT_WRITE, SCRIPT_DELETE, SCRIPT_CREATE, SCRIPT_READ, SCRIPT_EXPIRE, SCRIPT_ROTATE, SCRIPTS };
static const char *const script_texts[SCRIPTS] = {
    [SCRIPT_WRITE] = script_write, [SCRIPT_DELETE] = script_delete, [SCRIPT_CREATE] = script_create,
    [SCRIPT_READ] = script_read,   [SCRIPT_EXPIRE] = script_expire,
};

/* An update that waits its turn, on the stack of its task. */
struct update {
    store_edit_fn *edit;
    void *ctx;
    const struct store_terms *terms; /* as the edit left them */
    int64_t deadline_ms;
    struct task *task;
    bool leads; /* woken to do the work, for itself and for who waits behind */
    bool done;  /* woken with the outcome below */
    struct store_result result;
    bool ok;
    struct err error;
    bool wrote; /* its edit is part of the value being written */
    struct update *next;
};

/* A session that tasks of this process are updating: one of them leads; the others wait, and share its next write. */
struct edited {
    char id[IDS_TEXT_BYTES];
    struct update *first, **last; /* waiting */
    struct buf base;              /* what Redis held last, as far as this process knows... */
    bool known;                   /* ...if it does, by its own last write */
    struct edited *next;
};

struct store_redis {
    struct redis *redis;
    struct redis_script scripts[SCRIPTS];
    struct edited *edited[EDITED_BUCKETS];
    struct store_redis_options o;
    struct buf copy; /* scratch, not across a park */
    int refills;     /* under way */
    int tellings;
    int64_t look_at_policy_ms; /* when it is due again */
};

/* When a life that Redis names ends; 0: not known. */
static int64_t end_of(int64_t life_ms)
{
    return life_ms > 0 ? clock_wall_ms() + life_ms : 0;
}

static bool unexpected(const redisReply *reply, struct err *e)
{
    return err_set(e, ERR_UNAVAILABLE, "redis: a reply of type %d was not expected", reply->type);
}

/* --- what this node keeps of it --- */

/* What is known of a session before Redis is asked. */
struct before {
    uint64_t epoch;
    bool known; /* there is a copy that says how long the session lives */
    bool fresh; /* and it was confirmed just now: reading it once more is not worth its cost */
};

static bool find_copy(struct store_redis *sr, const char *id, struct session_copy *copy)
{
    buf_reset(&sr->copy);
    return sr->o.copies != NULL && session_cache_get(sr->o.copies, id, &sr->copy, copy);
}

/* A copy that may have changed may live another life, too. */
static struct before look_before(struct store_redis *sr, const char *id)
{
    struct session_copy copy;
    if (sr->o.copies == NULL || !session_cache_is_on(sr->o.copies)) return (struct before){ .known = true };
    struct before before = { .epoch = session_cache_epoch(sr->o.copies, id) };
    before.known = session_cache_look(sr->o.copies, id, &copy) && copy.proven && copy.expires_at_ms != 0;
    before.fresh = before.known && clock_mono_ms() - copy.filled_ms < COPY_FRESH_MS;
    return before;
}

/* Is a proven copy what Redis holds? */
static bool is_coherent(const struct store_redis *sr)
{
    return sr->o.coherence != NULL && coordination_is_coherent(sr->o.coherence, clock_mono_ms());
}

/* Can the copy be the answer? It is in sr->copy then. */
static bool believe_copy(struct store_redis *sr, const char *id, int64_t roll_ms, struct store_result *res)
{
    struct session_copy copy;
    if (sr->o.copies == NULL || sr->o.coherence == NULL) return false;
    bool good = is_coherent(sr) && find_copy(sr, id, &copy) && copy.proven && copy.expires_at_ms != 0 &&
                (roll_ms <= 0 || copy.expires_at_ms - clock_wall_ms() >= roll_ms - roll_ms / 10);
    metrics_add(good ? METRIC_cache_hits_total : METRIC_cache_misses_total, 1);
    if (good) *res = (struct store_result){ .found = true, .expires_at_ms = copy.expires_at_ms };
    return good;
}

static void refill(struct store_redis *sr, const char *id);

/* Redis holds `doc`. An end that is not known (0) is the copy's, if that still says the same; else there is no copy
 * until somebody has asked: in an outage nobody could tell when it ends. */
static void keep_read(struct store_redis *sr, const char *id, const struct before *before, struct bytes doc,
                      int64_t expires_at_ms)
{
    struct session_copy copy;
    if (sr->o.copies == NULL) return;
    if (expires_at_ms == 0) {
        if (before->fresh || !find_copy(sr, id, &copy)) return;
        bool same = bytes_equal(buf_bytes(&sr->copy), doc);
        expires_at_ms = same ? copy.expires_at_ms : 0;
    }
    if (expires_at_ms != 0) {
        session_cache_put(sr->o.copies, id, doc, expires_at_ms, before->epoch);
    } else {
        session_cache_drop(sr->o.copies, id);
        refill(sr, id);
    }
}

static void keep_written(struct store_redis *sr, const char *id, uint64_t epoch, struct bytes doc,
                         int64_t expires_at_ms)
{
    if (sr->o.copies == NULL || session_cache_note_write(sr->o.copies, id, doc, expires_at_ms, epoch)) return;
    refill(sr, id);
}

static void forget_copy(struct store_redis *sr, const char *id)
{
    if (sr->o.copies != NULL) session_cache_drop(sr->o.copies, id);
}

/* --- reading --- */

/* Appends the value of GET to `doc`; *found is false for nil. */
static bool take_value(redisReply *reply, struct buf *doc, bool *found, struct err *e)
{
    bool ok = true;
    *found = reply->type == REDIS_REPLY_STRING;
    if (*found)
        buf_append(doc, reply->str, (size_t)reply->len);
    else if (reply->type != REDIS_REPLY_NIL)
        ok = unexpected(reply, e);
    if (buf_overflowed(doc))
        ok = err_set(e, ERR_CORRUPT, "the stored value is too large: bytes=%zu", (size_t)reply->len);
    freeReplyObject(reply);
    return ok;
}

/* The same of script_read's answer, with the life beside it. */
static bool take_with_life(redisReply *reply, struct buf *doc, struct store_result *res, struct err *e)
{
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 3) return take_value(reply, doc, &res->found, e);
    res->expires_at_ms = end_of(reply->element[1]->integer);
    res->changed = reply->element[2]->integer == 1;
    redisReply *value = reply->element[0];
    reply->element[0] = NULL;
    freeReplyObject(reply);
    return take_value(value, doc, &res->found, e);
}

static bool read_with_life(struct store_redis *sr, const char *id, int64_t roll_ms, int64_t deadline_ms,
                           struct buf *doc, struct store_result *res, struct err *e)
{
    struct session_key k;
    struct number life;
    struct bytes argv[] = { number(&life, roll_ms) };
    redisReply *reply =
        redis_eval(sr->redis, &sr->scripts[SCRIPT_READ], session_key(&k, id), 1, argv, deadline_ms, NULL, e);
    return reply != NULL && take_with_life(reply, doc, res, e);
}

/* Of two writes at once nobody knows which was the later one, so neither is kept. The session is read anew, since it is
 * a busy one: an outage that comes just now must not find the node without it. */
struct refill {
    struct store_redis *sr;
    char id[IDS_TEXT_BYTES];
};

static void run_refill(void *arg)
{
    struct refill *r = arg;
    struct store_redis *sr = r->sr;
    struct before before = look_before(sr, r->id);
    struct buf doc = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct store_result res = { 0 };
    struct err e;
    if (!before.known && read_with_life(sr, r->id, 0, clock_mono_ms() + REFILL_MS, &doc, &res, &e) && res.found)
        keep_read(sr, r->id, &before, buf_bytes(&doc), res.expires_at_ms);
    buf_done(&doc);
    sr->refills--;
    free(r);
}

/* In a task of its own: nobody waits for it. */
static void refill(struct store_redis *sr, const char *id)
{
    if (task_current() == NULL || sr->refills == MOST_REFILLS) return;
    struct refill *r = mem_alloc(sizeof *r);
    r->sr = sr;
    snprintf(r->id, sizeof r->id, "%s", id);
    sr->refills++;
    task_start(run_refill, r);
}

static bool read_plainly(struct store_redis *sr, const char *id, int64_t deadline_ms, struct buf *doc,
                         struct store_result *res, struct err *e)
{
    struct session_key k;
    struct bytes get[] = { BYTES_LITERAL("GET"), session_key(&k, id) };
    redisReply *reply = redis_call(sr->redis, get[1], 2, get, deadline_ms, NULL, e);
    return reply != NULL && take_value(reply, doc, &res->found, e);
}

/* The life is asked for where nobody here knows it, so that the copy has one. */
static bool redis_store_get(void *self, const char *id, int64_t roll_ms, int64_t deadline_ms, struct buf *doc,
                            struct store_result *res, struct err *e)
{
    struct store_redis *sr = self;
    if (believe_copy(sr, id, roll_ms, res)) {
        buf_add(doc, buf_bytes(&sr->copy));
        return true;
    }
    struct before before = look_before(sr, id);
    size_t from = doc->len;
    *res = (struct store_result){ 0 };
    bool ok = roll_ms == 0 && before.known ? read_plainly(sr, id, deadline_ms, doc, res, e)
                                           : read_with_life(sr, id, roll_ms, deadline_ms, doc, res, e);
    if (!ok) return false;
    if (res->found)
        keep_read(sr, id, &before, (struct bytes){ doc->data + from, doc->len - from }, res->expires_at_ms);
    else if (before.known)
        forget_copy(sr, id);
    return true;
}

/* --- creating, deleting, lives --- */

/* Sends what creates a session: a plain SET where nobody can have had the id. */
static bool send_create(struct store_redis *sr, const char *id, struct bytes doc, int64_t life_ms, bool minted,
                        int64_t deadline_ms, bool *repeated, struct store_result *res, struct err *e)
{
    struct session_key k;
    struct gone_key g;
    struct number life;
    struct bytes set[] = { BYTES_LITERAL("SET"), session_key(&k, id),    doc,
                           BYTES_LITERAL("PX"),  number(&life, life_ms), BYTES_LITERAL("NX") };
    struct bytes argv[] = { set[1], gone_key(&g, id), doc, set[4] };
    redisReply *reply =
        minted ? redis_call(sr->redis, set[1], 6, set, deadline_ms, repeated, e)
               : redis_eval_keys(sr->redis, &sr->scripts[SCRIPT_CREATE], 2, 4, argv, deadline_ms, repeated, e);
    if (reply == NULL) return false;
    res->changed = reply->type == REDIS_REPLY_STATUS || reply->integer == 1;
    res->gone = reply->type == REDIS_REPLY_INTEGER && reply->integer == -1;
    res->found = !res->changed && !res->gone;
    freeReplyObject(reply);
    return true;
}

static bool redis_store_create(void *self, const char *id, struct bytes doc, const struct store_terms *terms,
                               int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct store_redis *sr = self;
    bool repeated = false, capped = terms->most_ms > 0 && terms->most_ms < terms->ttl_ms;
    int64_t life_ms = capped ? terms->most_ms : terms->ttl_ms, expires_at_ms = clock_wall_ms() + life_ms;
    struct before before = look_before(sr, id);
    *res = (struct store_result){ 0 };
    if (terms->user[0] != '\0' && !user_index_put(sr->redis, terms->user, id, expires_at_ms, deadline_ms, e))
        return false;
    fault_point("create-indexed");
    if (!send_create(sr, id, doc, life_ms, terms->minted, deadline_ms, &repeated, res, e)) return false;
    fault_point("create-stored");
    if (res->found && repeated) {
        /* The first sending may have made it, and only its answer was lost: then what stands there is ours. */
        struct buf stored = BUF_INIT(MOST_DOCUMENT_BYTES);
        struct store_result read;
        bool ok = read_plainly(sr, id, deadline_ms, &stored, &read, e);
        if (ok && read.found && bytes_equal(buf_bytes(&stored), doc)) *res = (struct store_result){ .changed = true };
        buf_done(&stored);
        if (!ok) return false;
    }
    if (res->changed) {
        res->expires_at_ms = expires_at_ms;
        /* Of an id that nobody knows yet nobody else can have written: what was heard meanwhile was our own write. */
        if (terms->minted && sr->o.copies != NULL) before.epoch = session_cache_epoch(sr->o.copies, id);
        keep_written(sr, id, before.epoch, doc, expires_at_ms);
    }
    return true;
}

/* Sends a delete: of `base` only, or of whatever stands there. What was deleted, or stands there instead, is the reply
 * (see the script). */
static redisReply *send_delete(struct store_redis *sr, const char *id, const struct buf *base, int64_t deadline_ms,
                               bool *repeated, struct err *e)
{
    struct session_key k;
    struct gone_key g;
    struct number gone_ms;
    struct bytes argv[] = { session_key(&k, id), gone_key(&g, id), base ? BYTES_LITERAL("1") : BYTES_LITERAL("0"),
                            base ? buf_bytes(base) : BYTES_LITERAL(""), number(&gone_ms, STORE_GONE_MS) };
    redisReply *reply = redis_eval_keys(sr->redis, &sr->scripts[SCRIPT_DELETE], 2, 5, argv, deadline_ms, repeated, e);
    /* Done or not there. Unanswered, it may be done yet; but then the copy is all that the outage's tombstone can stand
     * on. */
    if (reply != NULL) forget_copy(sr, id);
    return reply;
}

static bool redis_store_del(void *self, const char *id, int64_t deadline_ms, struct buf *was, struct store_result *res,
                            struct err *e)
{
    bool repeated = false;
    *res = (struct store_result){ 0 };
    redisReply *reply = send_delete(self, id, NULL, deadline_ms, &repeated, e);
    if (reply == NULL) return false;
    fault_point("delete-done");
    /* Sent twice, the second may find nothing because the first did it. Gone is gone. */
    res->found = res->changed = reply->type == REDIS_REPLY_STRING || repeated;
    if (was != NULL && reply->type == REDIS_REPLY_STRING) buf_append(was, reply->str, (size_t)reply->len);
    freeReplyObject(reply);
    return true;
}

static bool redis_store_expire(void *self, const char *id, int64_t life_ms, bool only_longer, int64_t deadline_ms,
                               struct store_result *res, struct err *e)
{
    struct store_redis *sr = self;
    struct session_key k;
    struct number life;
    bool repeated = false;
    struct before before = look_before(sr, id);
    *res = (struct store_result){ 0 };
    struct bytes argv[] = { number(&life, life_ms), only_longer ? BYTES_LITERAL("1") : BYTES_LITERAL("0") };
    redisReply *reply =
        redis_eval(sr->redis, &sr->scripts[SCRIPT_EXPIRE], session_key(&k, id), 2, argv, deadline_ms, &repeated, e);
    if (reply == NULL) return false;
    res->found = reply->type == REDIS_REPLY_ARRAY && reply->elements == 3;
    if (res->found) {
        const redisReply *value = reply->element[2];
        /* Sent twice, the second finds what the first did. */
        res->changed = repeated || reply->element[0]->integer != reply->element[1]->integer;
        res->expires_at_ms = end_of(reply->element[1]->integer);
        keep_written(sr, id, before.epoch, (struct bytes){ value->str, (size_t)value->len }, res->expires_at_ms);
    }
    freeReplyObject(reply);
    return true;
}

/* --- updates: read, edit, compare and set --- */

/* What one attempt to write came to. */
enum outcome { OUTCOME_WRITTEN, OUTCOME_OTHER_VALUE, OUTCOME_GONE, OUTCOME_FAILED };

/* What stands there instead becomes the base of the next attempt. */
static enum outcome other_value(struct buf *base, const redisReply *value)
{
    buf_reset(base);
    buf_append(base, value->str, (size_t)value->len);
    metrics_add(METRIC_cas_retries_total, 1);
    return OUTCOME_OTHER_VALUE;
}

/* Writes if `base` still stands; else `base` becomes what stands there. */
static enum outcome compare_and_set(struct store_redis *sr, const char *id, struct buf *base, const struct buf *edited,
                                    int64_t ttl_ms, int64_t most_ms, int64_t deadline_ms, int64_t *life_ms,
                                    struct err *e)
{
    struct session_key k;
    struct number ttl, most;
    struct bytes argv[] = { buf_bytes(base), buf_bytes(edited), number(&ttl, ttl_ms), number(&most, most_ms) };
    bool repeated = false;
    redisReply *reply =
        redis_eval(sr->redis, &sr->scripts[SCRIPT_WRITE], session_key(&k, id), 4, argv, deadline_ms, &repeated, e);
    if (reply == NULL) return OUTCOME_FAILED;
    enum outcome outcome = OUTCOME_FAILED;
    if (reply->type == REDIS_REPLY_INTEGER) {
        *life_ms = reply->integer;
        outcome = OUTCOME_WRITTEN;
    } else if (reply->type == REDIS_REPLY_NIL) {
        outcome = OUTCOME_GONE;
    } else if (reply->type == REDIS_REPLY_STRING) {
        /* Sent twice, and the first did it: what stands there is what we wanted to write. */
        bool ours = repeated && bytes_equal((struct bytes){ reply->str, (size_t)reply->len }, buf_bytes(edited));
        *life_ms = ttl_ms;
        outcome = ours ? OUTCOME_WRITTEN : other_value(base, reply);
    } else {
        unexpected(reply, e);
    }
    freeReplyObject(reply);
    return outcome;
}

/* The same for a delete. */
static enum outcome compare_and_delete(struct store_redis *sr, const char *id, struct buf *base, int64_t deadline_ms,
                                       struct err *e)
{
    bool repeated = false;
    redisReply *reply = send_delete(sr, id, base, deadline_ms, &repeated, e);
    if (reply == NULL) return OUTCOME_FAILED;
    enum outcome outcome = OUTCOME_FAILED;
    if (reply->type == REDIS_REPLY_STRING)
        outcome = OUTCOME_WRITTEN;
    else if (reply->type == REDIS_REPLY_NIL)
        outcome = repeated ? OUTCOME_WRITTEN : OUTCOME_GONE;
    else if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1)
        outcome = other_value(base, reply->element[0]);
    else
        unexpected(reply, e);
    freeReplyObject(reply);
    return outcome;
}

/* What the edits of a batch came to, taken together. */
struct verdict {
    enum store_verdict what;
    int64_t ttl_ms, most_ms;
    const char *user; /* of the document that is written, where somebody is to hear of it; else NULL */
};

/* Runs the edits of `batch` one after another on `base`. The result is in `*edited` (a swap partner for `scratch`). A
 * delete ends the batch: the edits behind it find nothing. */
static struct verdict run_edits(struct update *batch, const struct buf *base, struct buf *edited, struct buf *scratch)
{
    const struct buf *now = base;
    struct verdict verdict = { .what = STORE_KEEP };
    for (struct update *u = batch; u != NULL; u = u->next) {
        u->result = (struct store_result){ .found = verdict.what != STORE_DELETE };
        u->wrote = false;
        if (verdict.what == STORE_DELETE) continue;
        struct buf *out = now == edited ? scratch : edited;
        buf_reset(out);
        enum store_verdict v = u->edit(u->ctx, buf_bytes(now), out);
        if (v == STORE_KEEP) continue;
        u->wrote = true;
        u->result.deleted = v == STORE_DELETE;
        verdict.what = v;
        if (u->terms->ttl_ms > verdict.ttl_ms) verdict.ttl_ms = u->terms->ttl_ms;
        verdict.most_ms = u->terms->most_ms;
        if (u->terms->announce) verdict.user = u->terms->user;
        if (v == STORE_WRITE) now = out;
    }
    if (now == scratch) { /* the caller looks into `edited` */
        struct buf swap = *edited;
        *edited = *scratch;
        *scratch = swap;
    }
    return verdict;
}

/* Writes what a batch came to. The index of users comes first: it may hold more than there is, never less. */
static enum outcome write_verdict(struct store_redis *sr, struct edited *ed, const struct verdict *v,
                                  const struct buf *edited, int64_t deadline_ms, int64_t *life_ms, struct err *e)
{
    if (v->what == STORE_DELETE) return compare_and_delete(sr, ed->id, &ed->base, deadline_ms, e);
    if (v->user != NULL && v->user[0] != '\0') {
        if (!user_index_put(sr->redis, v->user, ed->id, clock_wall_ms() + v->ttl_ms, deadline_ms, e))
            return OUTCOME_FAILED;
        fault_point("update-indexed");
    }
    return compare_and_set(sr, ed->id, &ed->base, edited, v->ttl_ms, v->most_ms, deadline_ms, life_ms, e);
}

/* The value to begin with: our own last write, a copy, or else what Redis says. *sure is false for a copy. */
static bool find_base(struct store_redis *sr, struct edited *ed, int64_t deadline_ms, bool *sure, bool *found,
                      struct err *e)
{
    struct session_copy copy;
    struct store_result read;
    *sure = ed->known;
    *found = true;
    if (ed->known) return true;
    buf_reset(&ed->base);
    if (find_copy(sr, ed->id, &copy)) {
        buf_add(&ed->base, buf_bytes(&sr->copy));
        return true;
    }
    *sure = true;
    bool ok = read_plainly(sr, ed->id, deadline_ms, &ed->base, &read, e);
    *found = ok && read.found;
    return ok;
}

/* Brings a batch of updates of one session to its end. */
static void write_batch(struct store_redis *sr, struct edited *ed, struct update *batch, int64_t deadline_ms)
{
    struct buf edited = BUF_INIT(MOST_DOCUMENT_BYTES), scratch = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct err e = { .kind = ERR_NONE };
    struct verdict verdict = { .what = STORE_KEEP };
    struct before before = look_before(sr, ed->id);
    int64_t life_ms = 0;
    bool found, sure, ok = find_base(sr, ed, deadline_ms, &sure, &found, &e);

    for (enum outcome outcome = OUTCOME_OTHER_VALUE; ok && found && outcome == OUTCOME_OTHER_VALUE;) {
        verdict = run_edits(batch, &ed->base, &edited, &scratch);
        if (verdict.what == STORE_KEEP && sure) break;
        if (verdict.what == STORE_KEEP) { /* that nothing is to be done must not be said of an old copy */
            struct store_result read;
            buf_reset(&ed->base);
            ok = read_plainly(sr, ed->id, deadline_ms, &ed->base, &read, &e);
            found = ok && read.found;
        } else {
            outcome = write_verdict(sr, ed, &verdict, &edited, deadline_ms, &life_ms, &e);
            ok = outcome != OUTCOME_FAILED;
            found = outcome != OUTCOME_GONE;
        }
        sure = true;
    }
    fault_point("update-stored");
    const bool wrote = ok && found && verdict.what == STORE_WRITE;
    const int64_t expires_at_ms = wrote ? end_of(life_ms) : 0;
    if (wrote)
        keep_written(sr, ed->id, before.epoch, buf_bytes(&edited), expires_at_ms);
    else if (ok && !found)
        forget_copy(sr, ed->id);
    for (struct update *u = batch; u != NULL; u = u->next) {
        u->ok = ok;
        u->error = e;
        if (!found) u->result = (struct store_result){ 0 };
        if (ok && u->wrote && found) {
            u->result.changed = true;
            u->result.expires_at_ms = expires_at_ms;
        }
    }
    ed->known = wrote;
    if (ed->known) {
        buf_reset(&ed->base);
        buf_add(&ed->base, buf_bytes(&edited));
    }
    buf_done(&edited);
    buf_done(&scratch);
}

static struct edited **edited_find(struct store_redis *sr, const char *id)
{
    struct edited **ed = &sr->edited[ids_hash(bytes_of(id), 0) % EDITED_BUCKETS];
    while (*ed != NULL && strcmp((*ed)->id, id) != 0) ed = &(*ed)->next;
    return ed;
}

/* Waits behind the one who leads. True: the outcome is there. False: lead now (or, with u->ok false, time is over). */
static bool wait_behind(struct edited *ed, struct update *u)
{
    *ed->last = u;
    ed->last = &u->next;
    while (!u->done && !u->leads)
        if (!task_park(u->deadline_ms) && !u->done && !u->leads) break;
    if (u->done || u->leads) return u->done;
    for (struct update **w = &ed->first; *w != NULL; w = &(*w)->next)
        if (*w == u) {
            *w = u->next;
            if (u->next == NULL) ed->last = w;
            u->done = true;
            err_set(&u->error, ERR_UNAVAILABLE,
                    "redis: the request's time is over behind another write of the session");
            return true;
        }
    /* Its edit is on its way in the leader's write: the outcome is near, and the request's stack must stay till then.
     */
    while (!u->done) task_park(CLOCK_NEVER);
    return true;
}

/* Redis was found to be away: whoever led next would only wait for that once more, with Sentinels for each of them. */
static void fail_those_behind(struct edited *ed, const struct err *e)
{
    for (struct update *u = ed->first, *next; u != NULL; u = next) {
        next = u->next;
        u->error = *e;
        u->done = true;
        task_wake(u->task);
    }
    ed->first = NULL;
    ed->last = &ed->first;
}

/* Leads: takes along all who wait, and hands over to the first who came meanwhile, with the value just written, so
 * that a busy session costs one round trip for each batch. False if there is nobody to hand over to. */
static bool lead(struct store_redis *sr, struct edited *ed, struct update *self)
{
    self->next = ed->first;
    ed->first = NULL;
    ed->last = &ed->first;
    write_batch(sr, ed, self, self->deadline_ms);
    for (struct update *u = self->next, *next; u != NULL; u = next) {
        next = u->next;
        u->done = true;
        task_wake(u->task);
    }
    if (!self->ok && self->error.away) fail_those_behind(ed, &self->error);
    struct update *heir = ed->first;
    if (heir == NULL) return false;
    ed->first = heir->next;
    if (ed->first == NULL) ed->last = &ed->first;
    heir->leads = true;
    task_wake(heir->task);
    return true;
}

static bool redis_store_update(void *self, const char *id, store_edit_fn *edit, void *ctx,
                               const struct store_terms *terms, int64_t deadline_ms, struct store_result *res,
                               struct err *e)
{
    struct store_redis *sr = self;
    struct update u = { .edit = edit, .ctx = ctx, .terms = terms, .deadline_ms = deadline_ms, .task = task_current() };
    struct edited **slot = edited_find(sr, id), *ed = *slot;
    bool first = ed == NULL;

    if (first) {
        ed = *slot = mem_alloc(sizeof *ed);
        snprintf(ed->id, sizeof ed->id, "%s", id);
        ed->last = &ed->first;
        ed->base = (struct buf)BUF_INIT(MOST_DOCUMENT_BYTES);
    }
    if (first || !wait_behind(ed, &u)) {
        if (!lead(sr, ed, &u)) {
            slot = edited_find(sr, id);
            *slot = ed->next;
            buf_done(&ed->base);
            free(ed);
        }
    }
    *res = u.result;
    if (!u.ok) *e = u.error;
    return u.ok;
}

static bool redis_store_rotate(void *self, const char *id, store_edit_fn *edit, void *ctx,
                               const struct store_terms *terms, struct store_rotation *rotation, int64_t deadline_ms,
                               struct buf *doc, struct store_result *res, struct err *e)
{
    struct store_redis *sr = self;
    struct redis_rotation ro = { .redis = sr->redis,
                                 .script = &sr->scripts[SCRIPT_ROTATE],
                                 .ops = &store_redis_ops,
                                 .store = sr,
                                 .id = id,
                                 .edit = edit,
                                 .ctx = ctx,
                                 .terms = terms,
                                 .rotation = rotation,
                                 .deadline_ms = deadline_ms,
                                 .doc = doc };
    bool ok = redis_rotation_run(&ro, res, e);
    forget_copy(sr, id); /* also where Redis has not answered: the old id may have ended */
    return ok;
}

/* --- who else hears of it --- */

struct telling {
    struct store_redis *sr;
    struct store_event event; /* its texts are below */
    char id[IDS_TEXT_BYTES], was_id[IDS_TEXT_BYTES], user[STORE_USER_BYTES], was_user[STORE_USER_BYTES];
};

/* The new place first: between two steps the index holds more than there is, not less. A session that somebody took out
 * of the index while it was being written is in it again from here on. */
static bool tell_all(struct store_redis *sr, const struct store_event *ev, int64_t deadline_ms, struct err *e)
{
    const char *was_id = ev->was_id ? ev->was_id : ev->id;
    bool moved = strcmp(ev->user, ev->was_user) != 0 || was_id != ev->id;
    return (ev->user[0] == '\0' || user_index_put(sr->redis, ev->user, ev->id, ev->expires_at_ms, deadline_ms, e)) &&
           (ev->was_user[0] == '\0' || !moved || user_index_drop(sr->redis, ev->was_user, was_id, deadline_ms, e)) &&
           (sr->o.most_events == 0 || session_events_add(sr->redis, ev, sr->o.most_events, deadline_ms, e));
}

static void run_telling(void *arg)
{
    struct telling *t = arg;
    struct err e;
    fault_point("tell");
    bool ok = tell_all(t->sr, &t->event, clock_mono_ms() + TELL_MS, &e);
    metrics_add(ok ? METRIC_session_events_total : METRIC_session_events_lost_total, 1);
    t->sr->tellings--;
    free(t);
}

/* In a task of its own: the answer to the client does not wait. */
static void redis_store_tell(void *self, const struct store_event *event)
{
    struct telling *t = mem_alloc(sizeof *t);
    t->sr = self;
    t->event = *event;
    t->event.id = strcpy(t->id, event->id);
    if (event->was_id != NULL) t->event.was_id = strcpy(t->was_id, event->was_id);
    t->event.user = strcpy(t->user, event->user);
    t->event.was_user = strcpy(t->was_user, event->was_user);
    t->sr->tellings++;
    if (task_current() != NULL)
        task_start(run_telling, t);
    else
        run_telling(t);
}

static bool redis_store_list(void *self, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx,
                             struct err *e)
{
    return user_index_each(((struct store_redis *)self)->redis, user, deadline_ms, each, ctx, e);
}

static bool redis_store_heal(void *self, struct store_heal *heal, int64_t deadline_ms, struct err *e)
{
    return user_index_heal(((struct store_redis *)self)->redis, heal, deadline_ms, e);
}

static bool count_one(void *ctx, struct bytes key, struct err *e)
{
    (void)key, (void)e;
    ++*(int64_t *)ctx;
    return true;
}

/* While a cluster moves slots, a session on its way may be counted twice or not at all. */
static bool redis_store_count(void *self, int64_t deadline_ms, int64_t *sessions, struct err *e)
{
    struct store_redis *sr = self;
    struct redis_scan at = { 0 };
    bool ok, done;
    *sessions = 0;
    do ok = redis_scan_page(sr->redis, &at, REDIS_SESSION_PREFIX "*", deadline_ms, &done, count_one, sessions, e);
    while (ok && !done);
    return ok;
}

struct scanned {
    struct store_redis *sr;
    struct store_scan *scan;
    struct buf doc;
    int64_t deadline_ms;
};

/* Past the copies: it is Redis that is looked at, and what a node keeps is what its users need. */
static bool show_scanned(void *ctx, struct bytes key, struct err *e)
{
    struct scanned *s = ctx;
    struct store_result res = { 0 };
    struct err why = { .kind = ERR_NONE };
    struct number no_life;
    struct bytes argv[] = { number(&no_life, 0) };
    buf_reset(&s->doc);
    redisReply *reply =
        redis_eval(s->sr->redis, &s->sr->scripts[SCRIPT_READ], key, 1, argv, s->deadline_ms, NULL, &why);
    bool ok = reply != NULL && take_with_life(reply, &s->doc, &res, &why);
    if (!ok && why.kind != ERR_CORRUPT) {
        *e = why;
        return false;
    }
    struct store_found found = { .id = { key.at + sizeof REDIS_SESSION_PREFIX - 1,
                                         key.len - (sizeof REDIS_SESSION_PREFIX - 1) },
                                 .doc = buf_bytes(&s->doc),
                                 .is_text = ok,
                                 .expires_at_ms = res.expires_at_ms };
    if (!ok || res.found) s->scan->each(s->scan->ctx, &found);
    return true;
}

static bool redis_store_scan(void *self, struct store_scan *scan, int64_t deadline_ms, struct err *e)
{
    struct store_redis *sr = self;
    struct scanned s = { .sr = sr, .scan = scan, .doc = BUF_INIT(MOST_DOCUMENT_BYTES), .deadline_ms = deadline_ms };
    struct redis_scan at = { .server = scan->server };
    memcpy(at.cursor, scan->cursor, sizeof at.cursor);
    bool ok = redis_scan_page(sr->redis, &at, REDIS_SESSION_PREFIX "*", deadline_ms, &scan->done, show_scanned, &s, e);
    scan->server = at.server;
    memcpy(scan->cursor, at.cursor, sizeof scan->cursor);
    buf_done(&s.doc);
    return ok;
}

static bool redis_store_is_gone(void *self, const char *id, int64_t deadline_ms, bool *gone, struct err *e)
{
    struct store_redis *sr = self;
    struct gone_key g;
    struct bytes exists[] = { BYTES_LITERAL("EXISTS"), gone_key(&g, id) };
    redisReply *reply = redis_call(sr->redis, exists[1], 2, exists, deadline_ms, NULL, e);
    *gone = reply != NULL && reply->integer == 1;
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

static void redis_store_flush(void *self)
{
    redis_flush(((struct store_redis *)self)->redis);
}

static void redis_store_close(void *self)
{
    struct store_redis *sr = self;
    if (sr == NULL) return;
    redis_close(sr->redis);
    buf_done(&sr->copy);
    free(sr);
}

struct store_redis *store_redis_open(const struct store_redis_options *o)
{
    struct store_redis *sr = mem_alloc(sizeof *sr);
    sr->o = *o;
    sr->copy = (struct buf)BUF_INIT(SESSION_CACHE_MOST_DOC_BYTES);
    for (int i = 0; i < SCRIPTS; i++) sr->scripts[i].text = script_texts[i];
    sr->scripts[SCRIPT_ROTATE].text = redis_rotation_script;
    sr->redis = redis_open(&sr->o.connection);
    redis_add_scripts(sr->redis, sr->scripts, SCRIPTS);
    return sr;
}

struct redis *store_redis_connection(struct store_redis *sr)
{
    return sr->redis;
}

bool store_redis_is_idle(const struct store_redis *sr)
{
    return sr->refills == 0 && sr->tellings == 0;
}

void store_redis_doubt(struct store_redis *sr, const char *id)
{
    if (sr->o.copies != NULL) session_cache_invalidate(sr->o.copies, id);
}

/* A read-only replica and a Redis out of memory answer PING. They refuse a SET, also of a key that only has to be there
 * already (XX) and never is. */
static bool takes_writes(struct store_redis *sr, int64_t deadline_ms, struct err *e)
{
    struct bytes key = BYTES_LITERAL("hyperpage:ready");
    struct bytes set[] = { BYTES_LITERAL("SET"), key, BYTES_LITERAL("1"), BYTES_LITERAL("XX") };
    redisReply *reply = redis_call(sr->redis, key, 4, set, deadline_ms, NULL, e);
    bool ok = reply != NULL;
    if (ok) freeReplyObject(reply);
    return ok;
}

/* A Redis that makes room by throwing keys away logs users out, and nothing else would tell. One that may not be asked
 * is taken at its word. */
static void warn_of_eviction(struct store_redis *sr, const struct redis_address *server, int64_t deadline_ms)
{
    static const char policy[] = "maxmemory_policy:", wanted[] = "noeviction";
    struct err e;
    struct bytes info[] = { BYTES_LITERAL("INFO"), BYTES_LITERAL("memory") };
    redisReply *reply = redis_call_at(sr->redis, server, 2, info, deadline_ms, &e);
    const char *at = reply != NULL && reply->type == REDIS_REPLY_STRING ? strstr(reply->str, policy) : NULL;
    if (at != NULL && strncmp(at + strlen(policy), wanted, strlen(wanted)) != 0)
        log_warn(
            "redis throws sessions away when its memory is short: server=\"%s%s%.0d\" maxmemory_policy=%.*s wanted=%s",
            server->host, server->port > 0 ? ":" : "", server->port, (int)strcspn(at + strlen(policy), "\r\n"),
            at + strlen(policy), wanted);
    if (reply != NULL) freeReplyObject(reply);
}

bool store_redis_ready(struct store_redis *sr, int64_t deadline_ms, struct err *e)
{
    bool look_at_policy = clock_mono_ms() >= sr->look_at_policy_ms;
    struct redis_address *servers = NULL;
    size_t n = redis_primaries(sr->redis, &servers, deadline_ms, e);
    bool ok = n > 0;
    for (size_t i = 0; ok && i < n; i++) {
        redisReply *reply =
            redis_call_at(sr->redis, &servers[i], 1, (struct bytes[]){ BYTES_LITERAL("PING") }, deadline_ms, e);
        ok = reply != NULL;
        if (ok) freeReplyObject(reply);
        if (ok && look_at_policy) warn_of_eviction(sr, &servers[i], deadline_ms);
    }
    if (ok && look_at_policy) sr->look_at_policy_ms = clock_mono_ms() + POLICY_EVERY_MS;
    free(servers);
    return ok && takes_writes(sr, deadline_ms, e);
}

const struct store_ops store_redis_ops = {
    .name = "redis",
    .get = redis_store_get,
    .create = redis_store_create,
    .update = redis_store_update,
    .rotate = redis_store_rotate,
    .expire = redis_store_expire,
    .del = redis_store_del,
    .list = redis_store_list,
    .heal = redis_store_heal,
    .tell = redis_store_tell,
    .count = redis_store_count,
    .scan = redis_store_scan,
    .is_gone = redis_store_is_gone,
    .flush = redis_store_flush,
    .close = redis_store_close,
};
