#include "store_redis.h"

#include "clock.h"
#include "ids.h"
#include "mem.h"
#include "metrics.h"
#include "redis.h"
#include "task.h"

#include <inttypes.h>
#include <stdio.h>

#define KEY_PREFIX "hyperpage:session:"
#define KEY_BYTES (sizeof KEY_PREFIX + IDS_MOST_BYTES)
#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024)
#define EDITED_BUCKETS 64

/* Compare and set: writes ARGV[2] only where ARGV[1] still stands, and never shortens the remaining life. Answers the
 * life in ms; or what stands there now, which saves the next attempt its read; or nil: gone. */
static const char *const script_write =
    "local now = redis.call('GET', KEYS[1])\n"
    "if not now then return nil end\n"
    "if now ~= ARGV[1] then return now end\n"
    "local left, life = redis.call('PTTL', KEYS[1]), tonumber(ARGV[3])\n"
    "if left > life then life = left end\n"
    "redis.call('SET', KEYS[1], ARGV[2], 'PX', life)\n"
    "return life";

/* The same for a delete. */
static const char *const script_compare_and_delete =
    "local now = redis.call('GET', KEYS[1])\n"
    "if not now then return nil end\n"
    "if now ~= ARGV[1] then return now end\n"
    "return redis.call('DEL', KEYS[1])";

/* Whatever stands there, but for a key of another type: that is an error in STRLEN, and it is kept. */
static const char *const script_delete =
    "redis.call('STRLEN', KEYS[1])\n"
    "return redis.call('DEL', KEYS[1])";

enum { SCRIPT_WRITE, SCRIPT_COMPARE_AND_DELETE, SCRIPT_DELETE, SCRIPTS };

/* An update that waits its turn, on the stack of its task. */
struct update {
    store_edit_fn *edit;
    void *ctx;
    int64_t ttl_ms, deadline_ms;
    struct task *task;
    bool leads;                /* woken to do the work, for itself and for who waits behind */
    bool done;                 /* woken with the outcome below */
    struct store_result result;
    bool ok;
    struct err error;
    bool wrote;                /* its edit is part of the value being written */
    struct update *next;
};

/* A session that tasks of this process are updating: one of them leads; the others wait, and share its next write. */
struct edited {
    char id[IDS_TEXT_BYTES];
    struct update *first, **last; /* waiting */
    struct buf base;              /* what Redis held last, as far as this process knows... */
    bool known;                   /* ...if it does */
    struct edited *next;
};

struct store_redis {
    struct redis *redis;
    struct redis_script scripts[SCRIPTS];
    struct edited *edited[EDITED_BUCKETS];
};

struct key {
    char text[KEY_BYTES];
    struct bytes bytes;
};

static struct bytes key_of(struct key *k, const char *id)
{
    int n = snprintf(k->text, sizeof k->text, KEY_PREFIX "%s", id);
    k->bytes = (struct bytes){ k->text, (size_t)n };
    return k->bytes;
}

static bool unexpected(const redisReply *reply, struct err *e)
{
    return err_set(e, ERR_UNAVAILABLE, "redis: a reply of type %d was not expected", reply->type);
}

/* Appends the value of GET to `doc`; *found is false for nil. */
static bool take_value(redisReply *reply, struct buf *doc, bool *found, struct err *e)
{
    bool ok = true;
    *found = reply->type == REDIS_REPLY_STRING;
    if (*found) buf_append(doc, reply->str, (size_t)reply->len);
    else if (reply->type != REDIS_REPLY_NIL) ok = unexpected(reply, e);
    if (buf_overflowed(doc)) ok = err_set(e, ERR_CORRUPT, "the stored value is too large: bytes=%zu", (size_t)reply->len);
    freeReplyObject(reply);
    return ok;
}

static bool redis_store_get(void *self, const char *id, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                            struct err *e)
{
    struct store_redis *sr = self;
    struct key k;
    *res = (struct store_result){ 0 };
    struct bytes get[] = { BYTES_LITERAL("GET"), key_of(&k, id) };
    redisReply *reply = redis_call(sr->redis, get[1], 2, get, deadline_ms, NULL, e);
    return reply != NULL && take_value(reply, doc, &res->found, e);
}

static bool redis_store_create(void *self, const char *id, struct bytes doc, int64_t ttl_ms, int64_t deadline_ms,
                               struct store_result *res, struct err *e)
{
    struct store_redis *sr = self;
    struct key k;
    char life[24];
    int n = snprintf(life, sizeof life, "%" PRId64, ttl_ms);
    *res = (struct store_result){ 0 };
    struct bytes set[] = { BYTES_LITERAL("SET"), key_of(&k, id), doc, BYTES_LITERAL("PX"), { life, (size_t)n },
                           BYTES_LITERAL("NX") };
    bool repeated = false;
    int64_t now_ms = clock_wall_ms();
    redisReply *reply = redis_call(sr->redis, set[1], 6, set, deadline_ms, &repeated, e);
    if (reply == NULL) return false;
    res->changed = reply->type == REDIS_REPLY_STATUS;
    res->found = !res->changed;
    if (res->changed) res->expires_at_ms = now_ms + ttl_ms;
    freeReplyObject(reply);
    if (!res->found || !repeated) return true;

    /* The first sending may have made it, and only its answer was lost: then what stands there is ours. */
    struct buf stored = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct store_result read;
    bool ok = redis_store_get(self, id, deadline_ms, &stored, &read, e);
    if (ok && read.found && bytes_equal(buf_bytes(&stored), doc))
        *res = (struct store_result){ .changed = true, .expires_at_ms = now_ms + ttl_ms };
    buf_done(&stored);
    return ok;
}

static bool redis_store_del(void *self, const char *id, int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct store_redis *sr = self;
    struct key k;
    bool repeated = false;
    *res = (struct store_result){ 0 };
    redisReply *reply = redis_eval(sr->redis, &sr->scripts[SCRIPT_DELETE], key_of(&k, id), 0, NULL, deadline_ms, &repeated, e);
    if (reply == NULL) return false;
    /* Sent twice, the second may find nothing because the first did it. Gone is gone. */
    res->found = res->changed = reply->integer > 0 || repeated;
    freeReplyObject(reply);
    return true;
}

/* --- updates: read, edit, compare and set --- */

/* What one attempt to write came to. */
enum outcome { OUTCOME_WRITTEN, OUTCOME_OTHER_VALUE, OUTCOME_GONE, OUTCOME_FAILED };

/* Writes (or deletes, where `edited` is NULL) if `base` still stands; else `base` becomes what stands there. */
static enum outcome compare_and_set(struct store_redis *sr, const char *id, struct buf *base, const struct buf *edited,
                                    int64_t ttl_ms, int64_t deadline_ms, int64_t *life_ms, struct err *e)
{
    struct key k;
    char life[24];
    int n = snprintf(life, sizeof life, "%" PRId64, ttl_ms);
    struct bytes argv[] = { buf_bytes(base), { NULL, 0 }, { life, (size_t)n } };
    if (edited != NULL) argv[1] = buf_bytes(edited);
    bool repeated = false;
    redisReply *reply = redis_eval(sr->redis, &sr->scripts[edited ? SCRIPT_WRITE : SCRIPT_COMPARE_AND_DELETE], key_of(&k, id),
                                   edited ? 3 : 1, argv, deadline_ms, &repeated, e);
    if (reply == NULL) return OUTCOME_FAILED;
    enum outcome outcome = OUTCOME_FAILED;
    if (reply->type == REDIS_REPLY_INTEGER) {
        *life_ms = reply->integer;
        outcome = OUTCOME_WRITTEN;
    } else if (reply->type == REDIS_REPLY_NIL) {
        outcome = repeated && edited == NULL ? OUTCOME_WRITTEN : OUTCOME_GONE;
    } else if (reply->type == REDIS_REPLY_STRING) {
        struct bytes now = { reply->str, (size_t)reply->len };
        /* Sent twice, and the first did it: what stands there is what we wanted to write. */
        bool ours = repeated && edited != NULL && bytes_equal(now, buf_bytes(edited));
        *life_ms = ttl_ms;
        outcome = ours ? OUTCOME_WRITTEN : OUTCOME_OTHER_VALUE;
        if (!ours) {
            buf_reset(base);
            buf_add(base, now);
            metrics_add(METRIC_cas_retries_total, 1);
        }
    } else {
        unexpected(reply, e);
    }
    freeReplyObject(reply);
    return outcome;
}

/* Runs the edits of `batch` one after another on `base`. The result is in `*edited` (a swap partner for `scratch`);
 * *verdict is that of the whole batch. A delete ends the batch: the edits behind it find nothing. */
static void run_edits(struct update *batch, const struct buf *base, struct buf *edited, struct buf *scratch,
                      enum store_verdict *verdict, int64_t *ttl_ms)
{
    const struct buf *now = base;
    *verdict = STORE_KEEP;
    *ttl_ms = 0;
    for (struct update *u = batch; u != NULL; u = u->next) {
        u->result = (struct store_result){ .found = *verdict != STORE_DELETE };
        u->wrote = false;
        if (*verdict == STORE_DELETE) continue;
        struct buf *out = now == edited ? scratch : edited;
        buf_reset(out);
        enum store_verdict v = u->edit(u->ctx, buf_bytes(now), out);
        if (v == STORE_KEEP) continue;
        u->wrote = true;
        *verdict = v;
        if (u->ttl_ms > *ttl_ms) *ttl_ms = u->ttl_ms;
        if (v == STORE_WRITE) now = out;
    }
    if (now == scratch) { /* the caller looks into `edited` */
        struct buf swap = *edited;
        *edited = *scratch;
        *scratch = swap;
    }
}

/* Brings a batch of updates of one session to its end. */
static void write_batch(struct store_redis *sr, struct edited *ed, struct update *batch, int64_t deadline_ms)
{
    struct buf edited = BUF_INIT(MOST_DOCUMENT_BYTES), scratch = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct store_result read = { .found = true };
    struct err e = { .kind = ERR_NONE };
    enum store_verdict verdict = STORE_KEEP;
    int64_t ttl_ms = 0, life_ms = 0;
    bool ok = true;

    if (!ed->known) {
        buf_reset(&ed->base);
        ok = redis_store_get(sr, ed->id, deadline_ms, &ed->base, &read, &e);
    }
    for (enum outcome outcome = OUTCOME_OTHER_VALUE; ok && read.found && outcome == OUTCOME_OTHER_VALUE;) {
        run_edits(batch, &ed->base, &edited, &scratch, &verdict, &ttl_ms);
        if (verdict == STORE_KEEP) break;
        outcome = compare_and_set(sr, ed->id, &ed->base, verdict == STORE_WRITE ? &edited : NULL, ttl_ms, deadline_ms,
                                  &life_ms, &e);
        ok = outcome != OUTCOME_FAILED;
        read.found = outcome != OUTCOME_GONE;
    }
    int64_t now_ms = clock_wall_ms();
    for (struct update *u = batch; u != NULL; u = u->next) {
        u->ok = ok;
        u->error = e;
        if (!read.found) u->result = (struct store_result){ 0 };
        if (ok && u->wrote && read.found) {
            u->result.changed = true;
            if (verdict == STORE_WRITE) u->result.expires_at_ms = now_ms + life_ms;
        }
    }
    ed->known = ok && read.found && verdict == STORE_WRITE;
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
            err_set(&u->error, ERR_UNAVAILABLE, "the request's time is over");
            return true;
        }
    /* Its edit is on its way in the leader's write: the outcome is near, and the request's stack must stay till then. */
    while (!u->done) task_park(CLOCK_NEVER);
    return true;
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
    struct update *heir = ed->first;
    if (heir == NULL) return false;
    ed->first = heir->next;
    if (ed->first == NULL) ed->last = &ed->first;
    heir->leads = true;
    task_wake(heir->task);
    return true;
}

static bool redis_store_update(void *self, const char *id, store_edit_fn *edit, void *ctx, int64_t ttl_ms,
                               int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct store_redis *sr = self;
    struct update u = { .edit = edit, .ctx = ctx, .ttl_ms = ttl_ms, .deadline_ms = deadline_ms, .task = task_current() };
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

static bool count_at(struct store_redis *sr, const struct redis_address *server, int64_t deadline_ms,
                     int64_t *sessions, struct err *e)
{
    char cursor[24] = "0";
    do {
        struct bytes scan[] = { BYTES_LITERAL("SCAN"), bytes_of(cursor), BYTES_LITERAL("MATCH"), BYTES_LITERAL(KEY_PREFIX "*"),
                                BYTES_LITERAL("COUNT"), BYTES_LITERAL("1000") };
        redisReply *reply = redis_call_at(sr->redis, server, 6, scan, deadline_ms, e);
        if (reply == NULL) return false;
        bool good = reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 && reply->element[0]->len < (int)sizeof cursor &&
                    reply->element[1]->type == REDIS_REPLY_ARRAY;
        if (good) {
            memcpy(cursor, reply->element[0]->str, (size_t)reply->element[0]->len + 1);
            *sessions += (int64_t)reply->element[1]->elements;
        } else unexpected(reply, e);
        freeReplyObject(reply);
        if (!good) return false;
    } while (strcmp(cursor, "0") != 0);
    return true;
}

/* While a cluster moves slots, a session on its way may be counted twice or not at all. */
static bool redis_store_count(void *self, int64_t deadline_ms, int64_t *sessions, struct err *e)
{
    struct store_redis *sr = self;
    struct redis_address *servers = NULL;
    *sessions = 0;
    size_t n = redis_primaries(sr->redis, &servers, deadline_ms, e);
    bool ok = n > 0;
    for (size_t i = 0; ok && i < n; i++) ok = count_at(sr, &servers[i], deadline_ms, sessions, e);
    free(servers);
    return ok;
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
    free(sr);
}

struct store_redis *store_redis_open(const struct redis_options *connection)
{
    struct store_redis *sr = mem_alloc(sizeof *sr);
    struct redis_options o = *connection;
    sr->scripts[SCRIPT_WRITE].text = script_write;
    sr->scripts[SCRIPT_COMPARE_AND_DELETE].text = script_compare_and_delete;
    sr->scripts[SCRIPT_DELETE].text = script_delete;
    o.scripts = sr->scripts;
    o.script_count = SCRIPTS;
    sr->redis = redis_open(&o);
    return sr;
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

bool store_redis_ready(struct store_redis *sr, int64_t deadline_ms, struct err *e)
{
    struct redis_address *servers = NULL;
    size_t n = redis_primaries(sr->redis, &servers, deadline_ms, e);
    bool ok = n > 0;
    for (size_t i = 0; ok && i < n; i++) {
        redisReply *reply = redis_call_at(sr->redis, &servers[i], 1, (struct bytes[]){ BYTES_LITERAL("PING") }, deadline_ms, e);
        ok = reply != NULL;
        if (ok) freeReplyObject(reply);
    }
    free(servers);
    return ok && takes_writes(sr, deadline_ms, e);
}

const struct store_ops store_redis_ops = {
    .name = "redis",
    .get = redis_store_get,
    .create = redis_store_create,
    .update = redis_store_update,
    .del = redis_store_del,
    .count = redis_store_count,
    .flush = redis_store_flush,
    .close = redis_store_close,
};
