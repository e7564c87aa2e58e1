#include "store_refuge.h"

#include "clock.h"
#include "mem.h"

#include <inttypes.h>
#include <sqlite3.h>

#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024) /* as in Redis: a larger one would not come back */
#define KEEP_BYTES          (64 * 1024)        /* of the edit buffer between rounds */
#define REFUSED_PAUSE_MS    60000

/* ---- The table -----------------------------------------------------------------------------------------------------
 * doc           the session now; NULL: deleted
 * base          what it is based on: what Redis held, or the version of doc that was replayed last; NULL: born here
 * epoch         which Redis' data `base` belongs to
 * version       random, another with each change: names what is replayed. Not a counter: a file that comes back from a
 *               backup would count again from there, and Redis may still know the numbers that follow.
 * sent_version  the version whose replay has begun and is not settled; NULL: none
 * sent          its document, if doc is another by now
 * retry_ms      wall; a row that Redis refused is not tried in bulk before; 0: it was not refused
 *
 * Why `sent`: a replay that was killed or timed out may have reached Redis, or may yet. If the version after it went
 * out based on what was before, members that it had put back would look unchanged and be lost. So the unsettled version
 * is replayed again first, and the next is based on it. (Not on what Redis made of it: that holds changes of others,
 * which the next version never saw and would seem to have removed.) A tombstone needs none of this: it ends everything.
 */

#define CHANGED "version = random(), sent = CASE WHEN sent_version = version THEN doc ELSE sent END"
#define EPOCH   "(SELECT value FROM refuge_facts WHERE name = '" REFUGE_EPOCH "')"
#define TAKEN                                                                                                          \
    "SELECT number, id, expires_ms, sent_version, retry_ms, epoch,"                                                    \
    " CASE WHEN sent_version = version THEN doc ELSE sent END, base FROM refuge"

/* clang-format off */
enum sql {
    SQL_FIND, SQL_INSERT, SQL_UPDATE, SQL_LIFE, SQL_BURY, SQL_COUNT,
    SQL_MARK_ONE, SQL_MARK_DUE, SQL_TAKE_ONE, SQL_TAKE_DUE, SQL_LEAVE, SQL_REBASE, SQL_FORGET_SENT, SQL_REFUSE,
    SQL_FACT, SQL_FACT_SET, SQL_ADOPT, SQL_ADOPTED, SQL_TOTAL_FORGET,
    SQL_STATEMENTS
};
static const char *const sql_text[SQL_STATEMENTS] = {
    [SQL_FIND]         = "SELECT number, expires_ms, doc FROM refuge WHERE id = ?1",
    [SQL_INSERT]       = "INSERT INTO refuge (id, doc, base, expires_ms, version, epoch)"
                         " VALUES (?1, ?2, ?3, ?4, random(), " EPOCH ")",
    [SQL_UPDATE]       = "UPDATE refuge SET doc = ?1, expires_ms = ?2, " CHANGED " WHERE number = ?3",
    [SQL_LIFE]         = "UPDATE refuge SET expires_ms = ?1, " CHANGED " WHERE number = ?2",
    [SQL_BURY]         = "UPDATE refuge SET doc = NULL, version = random(), sent = NULL, sent_version = NULL,"
                         " retry_ms = 0 WHERE number = ?1",
    [SQL_COUNT]        = "SELECT count(*) FROM refuge",
    [SQL_MARK_ONE]     = "UPDATE refuge SET sent_version = version WHERE id = ?1 AND sent_version IS NULL",
    [SQL_MARK_DUE]     = "UPDATE refuge SET sent_version = version WHERE sent_version IS NULL AND number IN"
                         " (SELECT number FROM refuge WHERE retry_ms <= ?1 ORDER BY number LIMIT ?2)",
    [SQL_TAKE_ONE]     = TAKEN " WHERE id = ?1",
    [SQL_TAKE_DUE]     = TAKEN " WHERE retry_ms <= ?1 ORDER BY number LIMIT ?2",
    [SQL_LEAVE]        = "DELETE FROM refuge WHERE number = ?1 AND version = ?2",
    [SQL_REBASE]       = "UPDATE refuge SET base = sent, epoch = " EPOCH ", sent = NULL, sent_version = NULL,"
                         " retry_ms = 0 WHERE number = ?1 AND sent_version = ?2",
    [SQL_FORGET_SENT]  = "UPDATE refuge SET sent = NULL, sent_version = NULL WHERE number = ?1 AND sent_version = ?2",
    [SQL_REFUSE]       = "UPDATE refuge SET retry_ms = ?3 WHERE number = ?1 AND sent_version = ?2",
    [SQL_FACT]         = "SELECT value FROM refuge_facts WHERE name = ?1",
    [SQL_FACT_SET]     = "INSERT OR REPLACE INTO refuge_facts VALUES (?1, ?2)",
    [SQL_ADOPT]        = "INSERT INTO refuge (id, doc, expires_ms, version, epoch)"
                         " SELECT id, doc, expires_ms, random(), " EPOCH
                         " FROM (SELECT id, doc, expires_ms FROM sessions ORDER BY rowid LIMIT ?2)"
                         " WHERE expires_ms > ?1"
                         " ON CONFLICT (id) DO UPDATE SET doc = excluded.doc, expires_ms = excluded.expires_ms, "
                           CHANGED " WHERE refuge.doc IS NOT NULL",
    [SQL_ADOPTED]      = "DELETE FROM sessions WHERE rowid IN (SELECT rowid FROM sessions ORDER BY rowid LIMIT ?1)",
    [SQL_TOTAL_FORGET] = "UPDATE totals SET rows = NULL WHERE rows IS NOT NULL",
};
/* clang-format on */

struct refuge {
    struct refuge_options o;
    sqlite3_stmt *statement[SQL_STATEMENTS];
    struct buf edited; /* what an edit has made of a document */
};

/* ---- Statements ---------------------------------------------------------------------------------------------- */

static void bind(struct refuge *rf, enum sql which, int parameter, int64_t number)
{
    sqlite3_bind_int64(rf->statement[which], parameter, number);
}

static void bind_text(struct refuge *rf, enum sql which, int parameter, const char *text)
{
    sqlite3_bind_text(rf->statement[which], parameter, text, -1, SQLITE_STATIC);
}

static void bind_blob(struct refuge *rf, enum sql which, int parameter, const struct bytes *blob)
{
    if (blob == NULL)
        sqlite3_bind_null(rf->statement[which], parameter);
    else
        sqlite3_bind_blob64(rf->statement[which], parameter, blob->len > 0 ? blob->at : "", blob->len, SQLITE_STATIC);
}

/* Steps a statement; *row says whether there is one. Where there is none it is reset. */
static bool step(struct refuge *rf, enum sql which, bool *row, struct err *e)
{
    int rc = sqlite3_step(rf->statement[which]);
    *row = rc == SQLITE_ROW;
    if (*row) return true;
    bool ok = rc == SQLITE_DONE || store_embedded_failed(rf->o.embedded, sql_text[which], e);
    sqlite3_reset(rf->statement[which]);
    return ok;
}

/* Runs a statement that answers nothing, and tells how many rows it changed. */
static bool run(struct refuge *rf, enum sql which, int64_t *changed, struct err *e)
{
    bool row;
    if (!step(rf, which, &row, e)) return false;
    if (changed != NULL) *changed = sqlite3_changes64(sqlite3_db_handle(rf->statement[which]));
    return true;
}

static struct bytes column_bytes(sqlite3_stmt *s, int column)
{
    const char *at = sqlite3_column_blob(s, column);
    return (struct bytes){ at, (size_t)sqlite3_column_bytes(s, column) };
}

/* ---- Rows ---------------------------------------------------------------------------------------------------- */

#define NO_ROW_YET (-1) /* the number of what only the node's copy knows */

struct row {
    int64_t number; /* 0: there is none */
    bool deleted;
    int64_t expires_at_ms;
    struct bytes doc; /* SQLite's, until find_done() */
};

static bool find(struct refuge *rf, const char *id, struct row *row, struct err *e)
{
    sqlite3_stmt *s = rf->statement[SQL_FIND];
    bool there;
    *row = (struct row){ 0 };
    bind_text(rf, SQL_FIND, 1, id);
    if (!step(rf, SQL_FIND, &there, e)) return false;
    if (!there) return true;
    row->number = sqlite3_column_int64(s, 0);
    row->expires_at_ms = sqlite3_column_int64(s, 1);
    row->deleted = sqlite3_column_type(s, 2) == SQLITE_NULL;
    row->doc = column_bytes(s, 2);
    return true;
}

static void find_done(struct refuge *rf)
{
    sqlite3_reset(rf->statement[SQL_FIND]);
}

static struct refuge_result result_of(const struct row *row, int64_t now_ms)
{
    struct refuge_result res = { .knows = REFUGE_NOTHING };
    if (row->number == 0) return res;
    res.knows = row->deleted ? REFUGE_DELETED : row->expires_at_ms > now_ms ? REFUGE_SESSION : REFUGE_EXPIRED;
    if (res.knows == REFUGE_SESSION) res.expires_at_ms = row->expires_at_ms;
    return res;
}

/* `doc` NULL: a tombstone; `base` NULL: born here. */
static bool insert(struct refuge *rf, const char *id, const struct bytes *doc, const struct bytes *base,
                   int64_t expires_at_ms, struct err *e)
{
    bind_text(rf, SQL_INSERT, 1, id);
    bind_blob(rf, SQL_INSERT, 2, doc);
    bind_blob(rf, SQL_INSERT, 3, base);
    bind(rf, SQL_INSERT, 4, expires_at_ms);
    if (!run(rf, SQL_INSERT, NULL, e)) return false;
    if (rf->o.adding != NULL) rf->o.adding(rf->o.ctx, 1);
    return true;
}

static bool too_large(struct bytes doc, struct err *e)
{
    if (doc.len <= MOST_DOCUMENT_BYTES) return false;
    err_set(e, ERR_INTERNAL, "refuge: a document of %zu bytes", doc.len);
    return true;
}

/* ---- For requests -------------------------------------------------------------------------------------------- */

/* What a request asks for, on its stack. */
struct change {
    struct refuge *rf;
    const char *id;
    struct bytes doc;         /* create */
    struct refuge_copy *copy; /* the others */
    store_edit_fn *edit;      /* update */
    void *edit_ctx;
    const struct store_terms *terms; /* create, update */
    int64_t life_ms;                 /* expire */
    bool only_longer;
    struct refuge_result *res;
};

static bool transact(struct change *c, store_embedded_work_fn *work, int64_t deadline_ms, struct err *e)
{
    *c->res = (struct refuge_result){ .knows = REFUGE_NOTHING };
    if (store_embedded_transact(c->rf->o.embedded, work, c, deadline_ms, e)) return true;
    *c->res = (struct refuge_result){ .knows = REFUGE_NOTHING }; /* it may have been decided and not committed */
    return false;
}

/* Until when what is written now lives, that would have lived until expires_at_ms. */
static int64_t end_by(const struct store_terms *terms, int64_t expires_at_ms, int64_t now_ms)
{
    if (expires_at_ms < now_ms + terms->ttl_ms) expires_at_ms = now_ms + terms->ttl_ms;
    if (terms->most_ms > 0 && expires_at_ms > now_ms + terms->most_ms) expires_at_ms = now_ms + terms->most_ms;
    return expires_at_ms;
}

static bool run_create(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct change *c = ctx;
    struct row row;
    (void)db;
    if (too_large(c->doc, e) || !find(c->rf, c->id, &row, e)) return false;
    *c->res = result_of(&row, now_ms);
    find_done(c->rf);
    if (row.number != 0) return true;
    *c->res = (struct refuge_result){ REFUGE_SESSION, true, end_by(c->terms, 0, now_ms) };
    return insert(c->rf, c->id, &c->doc, NULL, c->res->expires_at_ms, e);
}

/* The row that is there becomes what was edited, or a tombstone. */
static bool rewrite(struct refuge *rf, int64_t number, const struct bytes *doc, int64_t expires_at_ms, struct err *e)
{
    if (doc == NULL) {
        bind(rf, SQL_BURY, 1, number);
        return run(rf, SQL_BURY, NULL, e);
    }
    bind_blob(rf, SQL_UPDATE, 1, doc);
    bind(rf, SQL_UPDATE, 2, expires_at_ms);
    bind(rf, SQL_UPDATE, 3, number);
    return run(rf, SQL_UPDATE, NULL, e);
}

static void look_at_copy(struct change *c)
{
    if (c->copy != NULL && c->copy->look != NULL && !c->copy->look(c->copy)) c->copy = NULL;
}

/* The row, or what the node's copy would be as one. */
static bool find_or_copy(struct change *c, struct row *row, struct err *e)
{
    if (!find(c->rf, c->id, row, e)) return false;
    if (row->number != 0) return true;
    look_at_copy(c);
    if (c->copy != NULL)
        *row = (struct row){ .number = NO_ROW_YET, .expires_at_ms = c->copy->expires_at_ms, .doc = c->copy->doc };
    return true;
}

static bool run_update(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct change *c = ctx;
    struct refuge *rf = c->rf;
    struct row row;
    enum store_verdict verdict = STORE_KEEP;
    (void)db;
    if (!find_or_copy(c, &row, e)) return false;
    *c->res = result_of(&row, now_ms);
    buf_reset(&rf->edited);
    if (c->res->knows == REFUGE_SESSION) verdict = c->edit(c->edit_ctx, row.doc, &rf->edited);
    find_done(rf);
    if (verdict == STORE_KEEP) return true;

    struct bytes doc = buf_bytes(&rf->edited), *written = verdict == STORE_WRITE ? &doc : NULL;
    if (buf_overflowed(&rf->edited))
        return err_set(e, ERR_INTERNAL, "refuge: a document over %d bytes", MOST_DOCUMENT_BYTES);
    row.expires_at_ms = end_by(c->terms, row.expires_at_ms, now_ms);
    c->res->changed = true;
    c->res->knows = written != NULL ? REFUGE_SESSION : REFUGE_DELETED;
    c->res->expires_at_ms = written != NULL ? row.expires_at_ms : 0;
    return row.number > 0 ? rewrite(rf, row.number, written, row.expires_at_ms, e)
                          : insert(rf, c->id, written, &c->copy->doc, row.expires_at_ms, e);
}

static bool run_expire(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct change *c = ctx;
    struct row row;
    int64_t expires_at_ms = now_ms + c->life_ms;
    (void)db;
    if (!find_or_copy(c, &row, e)) return false;
    *c->res = result_of(&row, now_ms);
    find_done(c->rf);
    if (c->res->knows != REFUGE_SESSION || (c->only_longer && row.expires_at_ms >= expires_at_ms)) return true;
    c->res->changed = true;
    c->res->expires_at_ms = expires_at_ms;
    if (row.number == NO_ROW_YET) return insert(c->rf, c->id, &c->copy->doc, &c->copy->doc, expires_at_ms, e);
    bind(c->rf, SQL_LIFE, 1, expires_at_ms);
    bind(c->rf, SQL_LIFE, 2, row.number);
    return run(c->rf, SQL_LIFE, NULL, e);
}

/* A row that has expired here is deleted like any other: the session may live longer elsewhere. */
static bool run_delete(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct change *c = ctx;
    struct row row;
    (void)db;
    if (!find(c->rf, c->id, &row, e)) return false;
    find_done(c->rf);
    if (row.number == 0) look_at_copy(c);
    if (row.number == 0 && c->copy == NULL) return true;
    *c->res = (struct refuge_result){ .knows = REFUGE_DELETED, .changed = !row.deleted };
    if (row.deleted) return true;
    return row.number > 0 ? rewrite(c->rf, row.number, NULL, 0, e)
                          : insert(c->rf, c->id, NULL, &c->copy->doc, now_ms, e);
}

bool refuge_get(struct refuge *rf, const char *id, struct buf *doc, struct refuge_result *res, struct err *e)
{
    struct row row;
    *res = (struct refuge_result){ .knows = REFUGE_NOTHING };
    store_embedded_db(rf->o.embedded);
    if (!find(rf, id, &row, e)) return false;
    *res = result_of(&row, clock_wall_ms());
    if (res->knows == REFUGE_SESSION) buf_add(doc, row.doc);
    find_done(rf);
    return true;
}

bool refuge_create(struct refuge *rf, const char *id, struct bytes doc, const struct store_terms *terms,
                   int64_t deadline_ms, struct refuge_result *res, struct err *e)
{
    struct change c = { .rf = rf, .id = id, .doc = doc, .terms = terms, .res = res };
    return transact(&c, run_create, deadline_ms, e);
}

bool refuge_update(struct refuge *rf, const char *id, struct refuge_copy *copy, store_edit_fn *edit, void *ctx,
                   const struct store_terms *terms, int64_t deadline_ms, struct refuge_result *res, struct err *e)
{
    struct change c = { .rf = rf, .id = id, .copy = copy, .edit = edit, .edit_ctx = ctx, .terms = terms, .res = res };
    bool ok = transact(&c, run_update, deadline_ms, e);
    buf_trim(&rf->edited, KEEP_BYTES);
    return ok;
}

bool refuge_expire(struct refuge *rf, const char *id, struct refuge_copy *copy, int64_t life_ms, bool only_longer,
                   int64_t deadline_ms, struct refuge_result *res, struct err *e)
{
    struct change c = { .rf = rf, .id = id, .copy = copy, .life_ms = life_ms, .only_longer = only_longer, .res = res };
    return transact(&c, run_expire, deadline_ms, e);
}

bool refuge_delete(struct refuge *rf, const char *id, struct refuge_copy *copy, int64_t deadline_ms,
                   struct refuge_result *res, struct err *e)
{
    struct change c = { .rf = rf, .id = id, .copy = copy, .res = res };
    return transact(&c, run_delete, deadline_ms, e);
}

bool refuge_is_dirty(struct refuge *rf, const char *id, bool *dirty, struct err *e)
{
    struct row row;
    *dirty = false;
    store_embedded_db(rf->o.embedded);
    if (!find(rf, id, &row, e)) return false;
    *dirty = row.number != 0;
    find_done(rf);
    return true;
}

struct counting {
    struct refuge *rf;
    void (*inside)(void *ctx);
    void *ctx;
    int64_t rows;
};

static bool run_count(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct counting *c = ctx;
    bool row;
    (void)db, (void)now_ms;
    if (!step(c->rf, SQL_COUNT, &row, e)) return false;
    c->rows = sqlite3_column_int64(c->rf->statement[SQL_COUNT], 0);
    sqlite3_reset(c->rf->statement[SQL_COUNT]);
    if (c->inside != NULL) c->inside(c->ctx);
    return true;
}

bool refuge_count(struct refuge *rf, void (*inside)(void *ctx), void *ctx, int64_t deadline_ms, int64_t *rows,
                  struct err *e)
{
    struct counting c = { .rf = rf, .inside = inside, .ctx = ctx };
    bool ok = store_embedded_transact(rf->o.embedded, run_count, &c, deadline_ms, e);
    *rows = ok ? c.rows : 0;
    return ok;
}

/* ---- For the replay ------------------------------------------------------------------------------------------ */

struct taking {
    struct refuge *rf;
    const char *id; /* NULL: what is due */
    struct refuge_row *rows;
    size_t most, taken;
};

static void copy_text(sqlite3_stmt *s, int column, char out[IDS_TEXT_BYTES])
{
    const unsigned char *text = sqlite3_column_text(s, column);
    snprintf(out, IDS_TEXT_BYTES, "%s", text != NULL ? (const char *)text : "");
}

static void copy_blob(sqlite3_stmt *s, int column, struct buf *out)
{
    *out = (struct buf)BUF_INIT(SIZE_MAX / 4);
    buf_add(out, column_bytes(s, column));
}

static void copy_row(sqlite3_stmt *s, struct refuge_row *row)
{
    *row = (struct refuge_row){ .number = sqlite3_column_int64(s, 0),
                                .expires_at_ms = sqlite3_column_int64(s, 2),
                                .version = sqlite3_column_int64(s, 3),
                                .refused = sqlite3_column_int64(s, 4) != 0,
                                .deleted = sqlite3_column_type(s, 6) == SQLITE_NULL,
                                .born_here = sqlite3_column_type(s, 7) == SQLITE_NULL };
    copy_text(s, 1, row->id);
    copy_text(s, 5, row->epoch);
    copy_blob(s, 6, &row->doc);
    copy_blob(s, 7, &row->base);
}

static void bind_wanted(const struct taking *t, enum sql which, int64_t now_ms)
{
    if (t->id != NULL) {
        bind_text(t->rf, which, 1, t->id);
        return;
    }
    bind(t->rf, which, 1, now_ms);
    bind(t->rf, which, 2, (int64_t)t->most);
}

static bool run_take(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct taking *t = ctx;
    enum sql mark = t->id != NULL ? SQL_MARK_ONE : SQL_MARK_DUE, take = t->id != NULL ? SQL_TAKE_ONE : SQL_TAKE_DUE;
    bool ok, row;
    (void)db;
    bind_wanted(t, mark, now_ms);
    if (!run(t->rf, mark, NULL, e)) return false;
    bind_wanted(t, take, now_ms);
    while ((ok = step(t->rf, take, &row, e)) && row) copy_row(t->rf->statement[take], &t->rows[t->taken++]);
    return ok;
}

bool refuge_take(struct refuge *rf, const char *id, struct refuge_row *rows, size_t most, size_t *taken,
                 int64_t deadline_ms, struct err *e)
{
    struct taking t = { .rf = rf, .id = id, .rows = rows, .most = most };
    bool ok = store_embedded_transact(rf->o.embedded, run_take, &t, deadline_ms, e);
    *taken = ok ? t.taken : 0;
    return ok;
}

void refuge_rows_done(struct refuge_row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        buf_done(&rows[i].doc);
        buf_done(&rows[i].base);
    }
}

struct settling {
    struct refuge *rf;
    struct refuge_row *rows;
    size_t count;
};

/* Runs a statement on the row if it is still at the version that was taken. */
static bool run_on(struct refuge *rf, enum sql which, const struct refuge_row *row, int64_t *changed, struct err *e)
{
    bind(rf, which, 1, row->number);
    bind(rf, which, 2, row->version);
    return run(rf, which, changed, e);
}

static bool settle_row(struct refuge *rf, struct refuge_row *row, int64_t now_ms, struct err *e)
{
    int64_t changed = 0;
    if (row->outcome == REFUGE_UNSETTLED) return true;
    if (row->outcome == REFUGE_REFUSED) {
        bind(rf, SQL_REFUSE, 3, now_ms + REFUSED_PAUSE_MS);
        if (!run_on(rf, SQL_REFUSE, row, &changed, e)) return false;
    } else {
        if (!run_on(rf, SQL_LEAVE, row, &changed, e)) return false;
        enum sql stay = row->outcome == REFUGE_REPLAYED ? SQL_REBASE : SQL_FORGET_SENT;
        row->stays = changed == 0;
        if (row->stays && !run_on(rf, stay, row, &changed, e)) return false;
    }
    row->settled = changed > 0;
    row->stays = row->stays && row->settled;
    return true;
}

static bool run_settle(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct settling *s = ctx;
    (void)db;
    for (size_t i = 0; i < s->count; i++)
        if (!settle_row(s->rf, &s->rows[i], now_ms, e)) return false;
    return true;
}

bool refuge_settle(struct refuge *rf, struct refuge_row *rows, size_t count, int64_t deadline_ms, struct err *e)
{
    struct settling s = { rf, rows, count };
    if (store_embedded_transact(rf->o.embedded, run_settle, &s, deadline_ms, e)) return true;
    for (size_t i = 0; i < count; i++) rows[i].settled = false;
    return false;
}

/* ---- Facts --------------------------------------------------------------------------------------------------- */

bool refuge_fact(struct refuge *rf, const char *name, struct buf *value, struct err *e)
{
    bool row;
    store_embedded_db(rf->o.embedded);
    bind_text(rf, SQL_FACT, 1, name);
    if (!step(rf, SQL_FACT, &row, e)) return false;
    if (row) buf_add(value, column_bytes(rf->statement[SQL_FACT], 0));
    sqlite3_reset(rf->statement[SQL_FACT]);
    return true;
}

struct fact {
    struct refuge *rf;
    const char *name;
    struct bytes value;
};

static bool run_fact_set(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct fact *f = ctx;
    (void)db, (void)now_ms;
    bind_text(f->rf, SQL_FACT_SET, 1, f->name);
    bind_blob(f->rf, SQL_FACT_SET, 2, &f->value);
    return run(f->rf, SQL_FACT_SET, NULL, e);
}

bool refuge_fact_set(struct refuge *rf, const char *name, struct bytes value, int64_t deadline_ms, struct err *e)
{
    struct fact f = { rf, name, value };
    return store_embedded_transact(rf->o.embedded, run_fact_set, &f, deadline_ms, e);
}

/* ---- From the embedded store --------------------------------------------------------------------------------- */

struct adoption {
    struct refuge *rf;
    int most;
    bool more;
};

/* Expired sessions end here. One that has a row too was served by the embedded store since, so it is the later version;
 * but a tombstone stays one. */
static bool run_adopt(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    struct adoption *a = ctx;
    struct refuge *rf = a->rf;
    int64_t adopted, moved;
    (void)db;
    bind(rf, SQL_ADOPT, 1, now_ms);
    bind(rf, SQL_ADOPT, 2, a->most);
    bind(rf, SQL_ADOPTED, 1, a->most);
    if (!run(rf, SQL_ADOPT, &adopted, e) || !run(rf, SQL_ADOPTED, &moved, e)) return false;
    a->more = moved == a->most;
    if (adopted > 0 && rf->o.adding != NULL) rf->o.adding(rf->o.ctx, adopted);
    return moved == 0 || run(rf, SQL_TOTAL_FORGET, NULL, e); /* whoever limits sessions counts again */
}

bool refuge_adopt(struct refuge *rf, int most, int64_t deadline_ms, bool *more, struct err *e)
{
    struct adoption a = { .rf = rf, .most = most };
    bool ok = store_embedded_transact(rf->o.embedded, run_adopt, &a, deadline_ms, e);
    *more = ok && a.more;
    return ok;
}

/* ---- Opening ------------------------------------------------------------------------------------------------- */

struct refuge *refuge_open(const struct refuge_options *o, struct err *e)
{
    struct refuge *rf = mem_alloc(sizeof *rf);
    sqlite3 *db = store_embedded_db(o->embedded);
    rf->o = *o;
    rf->edited = (struct buf)BUF_INIT(MOST_DOCUMENT_BYTES);
    for (int i = 0; i < SQL_STATEMENTS; i++)
        if (sqlite3_prepare_v3(db, sql_text[i], -1, SQLITE_PREPARE_PERSISTENT, &rf->statement[i], NULL) != SQLITE_OK) {
            store_embedded_failed(o->embedded, sql_text[i], e);
            refuge_close(rf);
            return NULL;
        }
    return rf;
}

void refuge_close(struct refuge *rf)
{
    if (rf == NULL) return;
    for (int i = 0; i < SQL_STATEMENTS; i++) sqlite3_finalize(rf->statement[i]);
    buf_done(&rf->edited);
    free(rf);
}
