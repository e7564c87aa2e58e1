#include "shelter.h"

#include "breaker.h"
#include "clock.h"
#include "mem.h"

#define PROBE_MS       1000  /* longest time for one look whether Redis is back */
#define STEP_MS        2000  /* and for one step of the replay */
#define EPOCH_EVERY_MS 10000 /* has Redis lost its data? */
#define COUNT_EVERY_MS 1000
#define ADOPT_STEP     1000 /* sessions that move in one transaction */
#define ADOPT_MS       5000

struct shelter {
    struct shelter_options o;
    struct breaker *breaker;
    struct refuge *refuge; /* NULL: nothing is served */
    struct replay *replay;
    int64_t epoch_due_ms, count_due_ms; /* monotonic */
};

/* --- what the node knows --- */

static bool away(struct err *e)
{
    return err_set_away(e, "redis is away");
}

static bool unknown(struct err *e)
{
    return err_set(e, ERR_UNAVAILABLE, "redis is away, and this node does not know the session well enough");
}

/* The copy of a session, if it was fresh enough when the outage began: it has not aged since, as nobody here could have
 * learned better. */
struct known {
    struct refuge_copy copy; /* first: what the refuge sees of it */
    struct shelter *sh;
    const char *id;
    struct buf doc;
};

static bool look(struct refuge_copy *self)
{
    struct known *k = (struct known *)self;
    struct session_copy copy;
    struct breaker_outage outage;
    int64_t began_ms = breaker_outage(k->sh->breaker, &outage) ? outage.since_ms : clock_mono_ms();
    buf_reset(&k->doc);
    if (!session_cache_get(k->sh->o.copies, k->id, &k->doc, &copy) || copy.expires_at_ms == 0) return false;
    if (began_ms - copy.filled_ms > k->sh->o.most_age_ms) return false;
    k->copy.doc = buf_bytes(&k->doc);
    k->copy.expires_at_ms = copy.expires_at_ms;
    return true;
}

static struct known known_of(struct shelter *sh, const char *id)
{
    return (
        struct known){ .copy = { .look = look }, .sh = sh, .id = id, .doc = BUF_INIT(SESSION_CACHE_MOST_DOC_BYTES) };
}

/* What the refuge says, as a store does. False where that is no answer. */
static bool answer(const struct refuge_result *r, struct store_result *res, struct err *e)
{
    switch (r->knows) {
    case REFUGE_SESSION:
        *res = (struct store_result){ .found = true, .changed = r->changed, .expires_at_ms = r->expires_at_ms };
        return true;
    case REFUGE_DELETED:
        *res = (struct store_result){ .found = r->changed, .changed = r->changed, .deleted = r->changed };
        return true;
    case REFUGE_NOTHING:
    case REFUGE_EXPIRED:
        break;
    }
    return unknown(e);
}

/* --- the operations --- */

static bool get(void *self, const char *id, int64_t roll_ms, int64_t deadline_ms, struct buf *doc,
                struct store_result *res, struct err *e)
{
    struct shelter *sh = self;
    struct refuge_result r = { .knows = REFUGE_NOTHING };
    struct known known = known_of(sh, id);
    (void)roll_ms, (void)deadline_ms; /* a life that a read prolongs is not worth a write here */
    *res = (struct store_result){ 0 };
    if (sh->refuge == NULL) return away(e);
    if (breaker_dirty(sh->breaker) > 0 && !refuge_get(sh->refuge, id, doc, &r, e)) return false;
    if (r.knows == REFUGE_NOTHING && look(&known.copy)) {
        buf_add(doc, known.copy.doc);
        r = (struct refuge_result){ .knows = REFUGE_SESSION, .expires_at_ms = known.copy.expires_at_ms };
    }
    buf_done(&known.doc);
    return answer(&r, res, e);
}

/* An id that a client chose may be anybody's: who knows whether it is free? */
static bool create(void *self, const char *id, struct bytes doc, const struct store_terms *terms, int64_t deadline_ms,
                   struct store_result *res, struct err *e)
{
    struct shelter *sh = self;
    struct refuge_result r;
    *res = (struct store_result){ 0 };
    if (sh->refuge == NULL) return away(e);
    if (!terms->minted) return unknown(e);
    if (!refuge_create(sh->refuge, id, doc, terms, deadline_ms, &r, e)) return false;
    *res = (struct store_result){ .found = !r.changed, .changed = r.changed, .expires_at_ms = r.expires_at_ms };
    return true;
}

static bool update(void *self, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                   int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct shelter *sh = self;
    struct known known = known_of(sh, id);
    struct refuge_result r;
    *res = (struct store_result){ 0 };
    if (sh->refuge == NULL || terms->strict) return away(e);
    bool ok = refuge_update(sh->refuge, id, &known.copy, edit, ctx, terms, deadline_ms, &r, e) && answer(&r, res, e);
    buf_done(&known.doc);
    return ok;
}

static bool expire(void *self, const char *id, int64_t life_ms, bool only_longer, int64_t deadline_ms,
                   struct store_result *res, struct err *e)
{
    struct shelter *sh = self;
    struct known known = known_of(sh, id);
    struct refuge_result r;
    *res = (struct store_result){ 0 };
    if (sh->refuge == NULL) return away(e);
    bool ok =
        refuge_expire(sh->refuge, id, &known.copy, life_ms, only_longer, deadline_ms, &r, e) && answer(&r, res, e);
    buf_done(&known.doc);
    return ok;
}

static bool del(void *self, const char *id, int64_t deadline_ms, struct buf *was, struct store_result *res,
                struct err *e)
{
    struct shelter *sh = self;
    struct known known = known_of(sh, id);
    struct refuge_result r;
    (void)was; /* who wants it tells others, and nobody hears now */
    *res = (struct store_result){ 0 };
    if (sh->refuge == NULL) return away(e);
    bool ok = refuge_delete(sh->refuge, id, &known.copy, deadline_ms, &r, e) && answer(&r, res, e);
    buf_done(&known.doc);
    return ok;
}

static bool rotate(void *self, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                   struct store_rotation *rotation, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                   struct err *e)
{
    (void)self, (void)id, (void)edit, (void)ctx, (void)terms, (void)rotation, (void)deadline_ms, (void)doc;
    *res = (struct store_result){ 0 };
    return away(e);
}

static bool list(void *self, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx, struct err *e)
{
    (void)self, (void)user, (void)deadline_ms, (void)each, (void)ctx;
    return away(e);
}

static bool heal(void *self, struct store_heal *h, int64_t deadline_ms, struct err *e)
{
    (void)self, (void)h, (void)deadline_ms;
    return away(e);
}

/* Sessions that were written here, tombstones too: copies are not counted. */
static bool count(void *self, int64_t deadline_ms, int64_t *sessions, struct err *e)
{
    struct shelter *sh = self;
    return sh->refuge != NULL ? refuge_count(sh->refuge, NULL, NULL, deadline_ms, sessions, e) : away(e);
}

static void flush(void *self)
{
    struct shelter *sh = self;
    if (sh->refuge == NULL) return;
    store_embedded_ops.flush(sh->o.embedded);
}

static void close_it(void *self)
{
    shelter_close(self);
}

const struct store_ops shelter_ops = {
    .name = "refuge",
    .get = get,
    .create = create,
    .update = update,
    .rotate = rotate,
    .expire = expire,
    .del = del,
    .list = list,
    .heal = heal,
    .count = count,
    .flush = flush,
    .close = close_it,
};

/* --- going in and out --- */

bool shelter_serves(const struct shelter *sh)
{
    return sh->refuge != NULL;
}

bool shelter_is_needed(const struct shelter *sh)
{
    return breaker_is_open(sh->breaker);
}

void shelter_report(struct shelter *sh, const struct err *why)
{
    breaker_trip(sh->breaker, why->text, clock_mono_ms());
}

bool shelter_release(struct shelter *sh, const char *id, int64_t deadline_ms, struct err *e)
{
    bool dirty;
    if (sh->refuge == NULL || breaker_dirty(sh->breaker) == 0) return true;
    if (!refuge_is_dirty(sh->refuge, id, &dirty, e)) return false;
    return !dirty || replay_one(sh->replay, id, deadline_ms, e);
}

/* As a version whose replay has begun, and is not settled. */
bool shelter_hold(struct shelter *sh, const char *id, int64_t deadline_ms, struct err *e)
{
    struct refuge_row row = { 0 };
    size_t taken;
    bool ok = refuge_take(sh->refuge, id, &row, 1, &taken, deadline_ms, e);
    refuge_rows_done(&row, 1);
    return ok;
}

/* As a session that was known here and is deleted. */
bool shelter_disown(struct shelter *sh, const char *id, int64_t deadline_ms, struct err *e)
{
    struct refuge_copy nothing = { .doc = BYTES_LITERAL("") };
    struct refuge_result r;
    return refuge_delete(sh->refuge, id, &nothing, deadline_ms, &r, e);
}

/* --- the way back --- */

/* How many rows there are, and where the bound of them stood when they were counted. */
struct counting {
    struct breaker *breaker;
    uint64_t mark;
};

static void take_mark(void *ctx)
{
    struct counting *c = ctx;
    c->mark = breaker_dirty_mark(c->breaker);
}

/* Makes the bound exact, unless somebody adds meanwhile: then it stays one. */
static bool count_dirty(struct shelter *sh, int64_t deadline_ms, struct err *e)
{
    struct counting c = { .breaker = sh->breaker };
    int64_t rows;
    if (!refuge_count(sh->refuge, take_mark, &c, deadline_ms, &rows, e)) return false;
    breaker_dirty_settle(sh->breaker, c.mark, rows);
    return true;
}

static bool adopt(struct shelter *sh, struct err *e)
{
    bool more = true, ok = true;
    while (ok && more) ok = refuge_adopt(sh->refuge, ADOPT_STEP, clock_mono_ms() + ADOPT_MS, &more, e);
    return ok;
}

/* Rows remember which data they are based on, so this comes before Redis is used again. */
static bool check_epoch(struct shelter *sh, int64_t deadline_ms, struct err *e)
{
    bool lost;
    return sh->refuge == NULL || replay_check_epoch(sh->replay, deadline_ms, &lost, e);
}

static void probe(struct shelter *sh)
{
    struct err e;
    int64_t now_ms = clock_mono_ms(), deadline_ms = now_ms + PROBE_MS;
    if (!breaker_may_probe(sh->breaker, now_ms, 2 * PROBE_MS)) return;
    if (store_redis_ready(sh->o.redis, deadline_ms, &e) && check_epoch(sh, deadline_ms, &e))
        breaker_reset(sh->breaker, clock_mono_ms());
    else
        breaker_probe_failed(sh->breaker);
}

/* What is looked at now and then: has Redis lost its data; did a worker with older options go on writing to the
 * embedded store; is the bound of what is dirty too high by now? */
static bool look_around(struct shelter *sh, struct err *e)
{
    int64_t now_ms = clock_mono_ms();
    if (now_ms >= sh->epoch_due_ms) {
        sh->epoch_due_ms = now_ms + EPOCH_EVERY_MS;
        if (!check_epoch(sh, now_ms + STEP_MS, e) || !adopt(sh, e)) return false;
    }
    if (breaker_dirty(sh->breaker) == 0 || now_ms < sh->count_due_ms) return true;
    sh->count_due_ms = now_ms + COUNT_EVERY_MS;
    return count_dirty(sh, now_ms + STEP_MS, e);
}

bool shelter_tend(struct shelter *sh, bool *more, struct err *e)
{
    *more = false;
    if (shelter_is_needed(sh)) {
        probe(sh);
        return true;
    }
    if (sh->refuge == NULL) return true;
    bool ok =
        breaker_dirty(sh->breaker) == 0 || replay_step(sh->replay, REPLAY_MOST, clock_mono_ms() + STEP_MS, more, e);
    ok = ok && look_around(sh, e);
    if (!ok && e->away) shelter_report(sh, e);
    return ok || e->away;
}

/* --- opening --- */

static void adding(void *breaker, int64_t rows)
{
    breaker_dirty_add(breaker, (uint32_t)rows);
}

/* The rows of an earlier start are counted before anybody relies on their bound: RUN_DIR may be newer than they are. */
static bool open_refuge(struct shelter *sh, struct err *e)
{
    struct refuge_options o = { .embedded = sh->o.embedded, .adding = adding, .ctx = sh->breaker };
    struct replay_options ro = { .copies = sh->o.copies,
                                 .redis = store_redis_connection(sh->o.redis),
                                 .node = sh->o.node,
                                 .changed = sh->o.changed,
                                 .ctx = sh->o.ctx };
    sh->refuge = ro.refuge = refuge_open(&o, e);
    if (sh->refuge == NULL) return false;
    sh->replay = replay_open(&ro);
    return count_dirty(sh, clock_mono_ms() + ADOPT_MS, e) && adopt(sh, e);
}

struct shelter *shelter_open(const struct shelter_options *o, struct err *e)
{
    struct shelter *sh = mem_alloc(sizeof *sh);
    sh->o = *o;
    sh->breaker = breaker_open(o->run_dir, e);
    if (sh->breaker != NULL && (o->embedded == NULL || open_refuge(sh, e))) return sh;
    shelter_close(sh);
    return NULL;
}

void shelter_close(struct shelter *sh)
{
    if (sh == NULL) return;
    replay_close(sh->replay);
    refuge_close(sh->refuge);
    breaker_close(sh->breaker);
    free(sh);
}
