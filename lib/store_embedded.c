#include "store_embedded.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "metrics.h"
#include "session.h"
#include "task.h"
#include "turns.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sqlite3.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define PAGE_BYTES         4096
#define ROUND_WAIT_MS      200          /* most that a flush waits for its turn, and again for SQLite's lock */
#define OPEN_WAIT_MS       5000         /* for SQLite's lock while opening: others may be recovering the WAL */
#define DOCUMENT_MOST      (256u << 20) /* bytes; a guard, the operator's limit is far below */
#define KEEP_BYTES         (64 * 1024)  /* of the edit buffer between rounds */
#define QUICK_CHECK_BYTES  (8 << 20)    /* a larger file is checked at start only after damage was met */
#define PURGE_STEP_MOST_MS 64000        /* how much later than expires_ms purge_ms may be */
#define MAKE_ROOM          256          /* expired sessions that one create at the limit deletes at most */
#define SCAN_STEP          100          /* rows that one step of heal() or scan() looks at */
#define PURGE_TURN_US      1000         /* what a step of purging should keep writers waiting */
#define PURGE_STEP_LEAST   8            /* sessions; the work of SQLite's that does not depend on their number */
#define PURGE_STEP_FIRST   32
#define CHECKPOINT_MS      250       /* a power cut takes no more, as far as it is ours to say */
#define WAL_BOUND_PAGES    16384     /* 64 MiB: beyond this housekeeping makes the WAL begin again */
#define WAL_REST_PAGES     64        /* so little to copy may keep writers waiting: 1 to 2 ms */
#define WAL_COPIES         16        /* most that are tried to come down to that */
#define WAL_SLOW_PAGES     24576     /* beyond this writers pause after each commit ... */
#define WAL_SLOW_PAGES_MS  4096      /* ... 1 ms for each of these ... */
#define WAL_SLOW_MOST_US   5000      /* ... and no more than this */
#define WAL_LIMIT_PAGES    65536     /* 256 MiB: it begins again whoever waits, by a worker if nobody keeps house */
#define WAL_KEEP_BYTES     268435456 /* of its file: cutting it takes a writer's turn 10 ms, growing again a third */
#define RESTART_PAUSE_US   5000      /* what writers wait for the disk before that, and the more the longer it is */
#define READERS_PAUSE_US   200       /* between two looks whether a reader has ended */
#define RESTART_WAIT_MS    2         /* for readers, while writers wait for us */
#define PROVE_MS           10000
#define LITTLE_ROOM_BYTES  67108864
#define DAMAGE_LOG_MS      60000
#define STRING_(x)         #x
#define STRING(x)          STRING_(x)

/* ---- Schema -------------------------------------------------------------------------------------------------------
 * Measured with 50,000 random ids and 700-byte documents, one writer: a table with rowid and a unique index makes
 * 26,000 creates/s and 887 bytes a session, WITHOUT ROWID 18,500 and 1,029 (whole rows in its inner pages). Pages of
 * 1, 2 and 4 KiB write alike, 8 KiB a fifth slower; 4 KiB packs best and is the default.
 *
 * A touch moves expires_ms by milliseconds, and moving an entry of an index costs two more pages a commit: 31 us
 * instead of 11. So the index for purging is on purge_ms, which is expires_ms rounded up to a 1024th of the TTL, and
 * most touches leave it alone.
 *
 * totals.rows counts the rows for a limit on sessions. Keeping it costs a create 8 us of 30, so only processes with a
 * limit do; any other that changes the number sets it to NULL, and the next one with a limit counts again.
 *
 * [n] leads from user_version n to n + 1. */
static const char *const migrations[] = {
    "CREATE TABLE sessions (id TEXT NOT NULL UNIQUE, expires_ms INTEGER NOT NULL, purge_ms INTEGER NOT NULL,"
    "                       doc BLOB NOT NULL);"
    "CREATE INDEX sessions_purge ON sessions (purge_ms);"
    "CREATE TABLE totals (rows INTEGER);"
    "INSERT INTO totals VALUES (NULL);",
    "ALTER TABLE sessions ADD COLUMN user_id TEXT;" /* as in doc; NULL: nobody's */
    "CREATE INDEX sessions_user ON sessions (user_id) WHERE user_id IS NOT NULL;"
    "UPDATE sessions SET user_id = nullif(CASE WHEN json_valid(CAST(doc AS TEXT)) THEN"
    " CASE json_type(CAST(doc AS TEXT), '$.userId') WHEN 'text' THEN json_extract(CAST(doc AS TEXT), '$.userId') END"
    " END, '');"
    /* Ids that were deleted or rotated; of the latter the new id and the name of the request that may be repeated. */
    "CREATE TABLE gone (id TEXT NOT NULL PRIMARY KEY, expires_ms INTEGER NOT NULL, heir TEXT, key_hash TEXT,"
    "                   repeat_until_ms INTEGER) WITHOUT ROWID;"
    "CREATE INDEX gone_expires ON gone (expires_ms);",
    /* store_refuge's, which says what is in them. The large columns stand last. */
    "CREATE TABLE refuge (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, expires_ms INTEGER NOT NULL,"
    "                     version INTEGER NOT NULL, sent_version INTEGER, retry_ms INTEGER NOT NULL DEFAULT 0,"
    "                     epoch TEXT, doc BLOB, base BLOB, sent BLOB);"
    "CREATE TABLE refuge_facts (name TEXT NOT NULL PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;",
};
#define SCHEMA_VERSION ((int64_t)(sizeof migrations / sizeof migrations[0]))

/* clang-format off */
enum sql {
    SQL_BEGIN_READ, SQL_BEGIN_WRITE, SQL_COMMIT, SQL_ROLLBACK,
    SQL_FIND, SQL_INSERT, SQL_UPDATE, SQL_TOUCH, SQL_OWN, SQL_LIFE, SQL_DELETE, SQL_PURGE, SQL_PURGE_LOOK,
    SQL_ANY_EXPIRED,
    SQL_MARK_GONE, SQL_FIND_GONE, SQL_PURGE_GONE, SQL_OF_USER, SQL_OWNERS, SQL_OWNER, SQL_SCAN,
    SQL_COUNT_LIVE, SQL_COUNT_ROWS, SQL_TOTAL, SQL_TOTAL_SET, SQL_TOTAL_ADD, SQL_TOTAL_FORGET, SQL_TOTAL_SAME,
    SQL_DATA_VERSION, SQL_PROVE,
    SQL_STATEMENTS
};
static const char *const sql_text[SQL_STATEMENTS] = {
    [SQL_BEGIN_READ]   = "BEGIN",
    [SQL_BEGIN_WRITE]  = "BEGIN IMMEDIATE",
    [SQL_COMMIT]       = "COMMIT",
    [SQL_ROLLBACK]     = "ROLLBACK",
    [SQL_FIND]         = "SELECT rowid, expires_ms, purge_ms, doc FROM sessions WHERE id = ?1",
    [SQL_INSERT]       = "INSERT INTO sessions (doc, expires_ms, purge_ms, id, user_id) VALUES (?1, ?2, ?3, ?4, ?5)",
    [SQL_UPDATE]       = "UPDATE sessions SET doc = ?1, expires_ms = ?2, purge_ms = ?3 WHERE rowid = ?4",
    [SQL_TOUCH]        = "UPDATE sessions SET doc = ?1, expires_ms = ?2 WHERE rowid = ?4",
    [SQL_OWN]          = "UPDATE sessions SET doc = ?1, expires_ms = ?2, purge_ms = ?3, user_id = ?5 WHERE rowid = ?4",
    [SQL_LIFE]         = "UPDATE sessions SET expires_ms = ?1, purge_ms = ?2 WHERE rowid = ?3",
    [SQL_DELETE]       = "DELETE FROM sessions WHERE rowid = ?1",
    [SQL_PURGE]        = "DELETE FROM sessions WHERE rowid IN"
                         " (SELECT rowid FROM sessions WHERE purge_ms <= ?1 ORDER BY purge_ms LIMIT ?2)",
    [SQL_PURGE_LOOK]   = "SELECT substr(doc, -1), (SELECT rowid FROM sessions AS i WHERE i.id = s.id),"
                         " (SELECT 1 FROM sessions AS u INDEXED BY sessions_user"
                         "  WHERE u.user_id = s.user_id AND u.rowid = s.rowid)"
                         " FROM sessions AS s WHERE purge_ms <= ?1 ORDER BY purge_ms LIMIT ?2",
    [SQL_ANY_EXPIRED]  = "SELECT EXISTS (SELECT 1 FROM sessions WHERE purge_ms <= ?1)"
                         " OR EXISTS (SELECT 1 FROM gone WHERE expires_ms <= ?1)",
    [SQL_MARK_GONE]    = "INSERT OR REPLACE INTO gone VALUES (?1, ?2, ?3, ?4, ?5)",
    [SQL_FIND_GONE]    = "SELECT heir, key_hash, repeat_until_ms FROM gone WHERE id = ?1 AND expires_ms > ?2",
    [SQL_PURGE_GONE]   = "DELETE FROM gone WHERE id IN"
                         " (SELECT id FROM gone WHERE expires_ms <= ?1 ORDER BY expires_ms LIMIT ?2)",
    [SQL_OF_USER]      = "SELECT id, doc, expires_ms FROM sessions WHERE user_id = ?1 AND expires_ms > ?2",
    [SQL_OWNERS]       = "SELECT rowid, doc, user_id FROM sessions WHERE rowid > ?1 ORDER BY rowid LIMIT ?2",
    [SQL_OWNER]        = "UPDATE sessions SET user_id = ?1 WHERE rowid = ?2",
    [SQL_SCAN]         = "SELECT rowid, id, doc, expires_ms FROM sessions WHERE rowid > ?1 ORDER BY rowid LIMIT ?2",
    [SQL_COUNT_LIVE]   = "SELECT (SELECT count(*) FROM sessions WHERE purge_ms > ?1 + " STRING(PURGE_STEP_MOST_MS) ")"
                         "     + (SELECT count(*) FROM sessions WHERE purge_ms > ?1 AND purge_ms <= ?1 + "
                                  STRING(PURGE_STEP_MOST_MS) " AND expires_ms > ?1)",
    [SQL_COUNT_ROWS]   = "SELECT count(*) FROM sessions",
    [SQL_TOTAL]        = "SELECT rows FROM totals",
    [SQL_TOTAL_SET]    = "UPDATE totals SET rows = ?1",
    [SQL_TOTAL_ADD]    = "UPDATE totals SET rows = rows + ?1",
    [SQL_TOTAL_FORGET] = "UPDATE totals SET rows = NULL WHERE rows IS NOT NULL",
    [SQL_TOTAL_SAME]   = "UPDATE totals SET rows = rows",
    [SQL_PROVE]        = "INSERT OR REPLACE INTO refuge_facts VALUES ('written', random())",
    [SQL_DATA_VERSION] = "PRAGMA data_version", /* another once another connection has committed */
};
/* clang-format on */

enum op_kind { OP_CREATE, OP_UPDATE, OP_ROTATE, OP_EXPIRE, OP_DELETE, OP_WORK };

/* A write on its way. It lies on the stack of whoever asked for it and is in the list of its round until it is done
 * or its asker has given up. */
struct op {
    TAILQ_ENTRY(op) link;
    struct task *task; /* who waits for it; NULL: plain code */
    enum op_kind kind;
    const char *id;
    struct bytes doc;    /* create */
    store_edit_fn *edit; /* update, rotate */
    void *edit_ctx;
    const struct store_terms *terms; /* create, update, rotate */
    struct store_rotation *rotation;
    struct buf *read; /* rotate: what stands under the new id; delete: what was deleted, or NULL */
    int64_t life_ms;  /* expire */
    bool only_longer;
    store_embedded_work_fn *work; /* of another module */
    void *work_ctx;
    int64_t deadline_ms;
    bool done, ok; /* ok counts once the transaction is committed */
    struct store_result result;
    struct err err;
};

struct store_embedded {
    sqlite3 *db;
    sqlite3_stmt *statement[SQL_STATEMENTS];
    struct turns *turns;
    TAILQ_HEAD(, op) round;
    struct buf edited;              /* what an edit has made of a document */
    int64_t now_ms;                 /* wall; of the write transaction that is open */
    int64_t rows_added;             /* by it */
    int64_t turn_since_us, held_us; /* of the turn that is ours; of the longest since housekeeping began */
    int wal_pages;                  /* how long the WAL was at our last commit */
    int purge_step;                 /* sessions that we expect to purge in PURGE_TURN_US */
    int64_t prove_at_ms;            /* when it is due that the disk proves to take writes; monotonic */
    int64_t checkpoint_at_ms;       /* the next one, while there is more to purge; monotonic */
    int64_t max_total;
    bool sync_full;
    char *dir, *path;
    int lock_fd;  /* sessions.lock, see lock_byte() */
    bool alone;   /* no other process has the file open: known while opening */
    bool damaged; /* what SQLite said while opening */
    bool serving; /* opened */
    int64_t damage_logged_ms;
};

/* ---- SQLite's answers ---------------------------------------------------------------------------------------- */

/* Failures that leave the store as it is: another process, the disk, or damage, where an operator must help. They are
 * ERR_UNAVAILABLE: nobody is logged out by them. */
static const int may_pass[] = { SQLITE_BUSY,    SQLITE_LOCKED,   SQLITE_PROTOCOL, SQLITE_FULL,
                                SQLITE_IOERR,   SQLITE_READONLY, SQLITE_CANTOPEN, SQLITE_PERM,
                                SQLITE_CORRUPT, SQLITE_NOTADB,   SQLITE_NOMEM };

static enum err_kind kind_of(int rc)
{
    for (size_t i = 0; i < sizeof may_pass / sizeof may_pass[0]; i++)
        if ((rc & 0xff) == may_pass[i]) return ERR_UNAVAILABLE;
    return ERR_INTERNAL;
}

static bool is_damage(int rc)
{
    return (rc & 0xff) == SQLITE_CORRUPT || (rc & 0xff) == SQLITE_NOTADB;
}

/* Leaves a mark, so that the next start looks at the whole file however large it is. */
static void note_damage(struct store_embedded *se)
{
    int64_t now_ms = clock_mono_ms();
    if (se->damage_logged_ms != 0 && now_ms - se->damage_logged_ms < DAMAGE_LOG_MS) return;
    se->damage_logged_ms = now_ms;
    bool marked = pwrite(se->lock_fd, "?", 1, 0) == 1;
    log_error("embedded store damaged, the next start of all processes will check it%s: file=\"%s\" error=\"%s\"",
              marked ? "" : " (but could not be told so)", se->path, sqlite3_errmsg(se->db));
}

/* What the database's last failure means for the caller. Always false. */
static bool failed(struct store_embedded *se, const char *doing, struct err *e)
{
    int rc = sqlite3_errcode(se->db);
    if (is_damage(rc) && se->serving) note_damage(se);
    se->damaged = se->damaged || is_damage(rc);
    return err_set(e, kind_of(rc), "embedded store: %s: %s", doing, sqlite3_errmsg(se->db));
}

/* Runs a statement whose parameters are bound to its end. */
static bool run(struct store_embedded *se, enum sql which, struct err *e)
{
    int rc = sqlite3_step(se->statement[which]);
    if (rc != SQLITE_DONE && rc != SQLITE_ROW) failed(se, sql_text[which], e);
    sqlite3_reset(se->statement[which]);
    return rc == SQLITE_DONE || rc == SQLITE_ROW;
}

/* Runs a statement that answers with one number; NULL reads as -1. */
static bool run_number(struct store_embedded *se, enum sql which, int64_t *number, struct err *e)
{
    sqlite3_stmt *s = se->statement[which];
    bool ok = sqlite3_step(s) == SQLITE_ROW || failed(se, sql_text[which], e);
    if (ok) *number = sqlite3_column_type(s, 0) == SQLITE_NULL ? -1 : sqlite3_column_int64(s, 0);
    sqlite3_reset(s);
    return ok;
}

static void bind(struct store_embedded *se, enum sql which, int parameter, int64_t number)
{
    sqlite3_bind_int64(se->statement[which], parameter, number);
}

/* ---- Rows ---------------------------------------------------------------------------------------------------- */

struct row {
    bool live;     /* there and not expired */
    int64_t rowid; /* 0: no such row, not even an expired one */
    int64_t expires_ms, purge_ms;
    struct bytes doc; /* SQLite's, until find_done() */
};

static bool find(struct store_embedded *se, const char *id, int64_t now_ms, struct row *row, struct err *e)
{
    sqlite3_stmt *s = se->statement[SQL_FIND];
    *row = (struct row){ 0 };
    sqlite3_bind_text(s, 1, id, -1, SQLITE_STATIC);
    int rc = sqlite3_step(s);
    if (rc == SQLITE_DONE) return true;
    if (rc != SQLITE_ROW) return failed(se, sql_text[SQL_FIND], e);
    row->rowid = sqlite3_column_int64(s, 0);
    row->expires_ms = sqlite3_column_int64(s, 1);
    row->purge_ms = sqlite3_column_int64(s, 2);
    row->doc.at = sqlite3_column_blob(s, 3);
    row->doc.len = (size_t)sqlite3_column_bytes(s, 3);
    row->live = row->expires_ms > now_ms;
    return true;
}

static void find_done(struct store_embedded *se)
{
    sqlite3_reset(se->statement[SQL_FIND]);
}

/* When a session that ends at expires_ms may be purged: see "Schema". */
static int64_t purge_time(int64_t expires_ms, int64_t ttl_ms)
{
    int64_t step_ms = ttl_ms / 1024 < PURGE_STEP_MOST_MS ? ttl_ms / 1024 : PURGE_STEP_MOST_MS;
    if (step_ms < 1) step_ms = 1;
    return (expires_ms + step_ms - 1) / step_ms * step_ms;
}

static void bind_text(struct store_embedded *se, enum sql which, int parameter, const char *text)
{
    if (text == NULL || text[0] == '\0')
        sqlite3_bind_null(se->statement[which], parameter);
    else
        sqlite3_bind_text(se->statement[which], parameter, text, -1, SQLITE_STATIC);
}

/* Stores `doc` in `row`, or in a new one if it is none yet, and moves its end on, never back but for the most that the
 * terms allow. */
static bool put(struct store_embedded *se, struct row *row, const char *id, struct bytes doc,
                const struct store_terms *terms, struct err *e)
{
    if (row->expires_ms < se->now_ms + terms->ttl_ms) row->expires_ms = se->now_ms + terms->ttl_ms;
    if (terms->most_ms > 0 && row->expires_ms > se->now_ms + terms->most_ms)
        row->expires_ms = se->now_ms + terms->most_ms;
    int64_t purge_ms = purge_time(row->expires_ms, terms->ttl_ms);
    enum sql how = row->rowid == 0             ? SQL_INSERT
                   : terms->announce           ? SQL_OWN
                   : purge_ms != row->purge_ms ? SQL_UPDATE
                                               : SQL_TOUCH;

    sqlite3_bind_blob64(se->statement[how], 1, doc.len > 0 ? doc.at : "", doc.len, SQLITE_STATIC);
    bind(se, how, 2, row->expires_ms);
    bind(se, how, 3, purge_ms);
    if (how == SQL_INSERT)
        sqlite3_bind_text(se->statement[how], 4, id, -1, SQLITE_STATIC);
    else
        bind(se, how, 4, row->rowid);
    if (how == SQL_INSERT || how == SQL_OWN) bind_text(se, how, 5, terms->user);
    if (!run(se, how, e)) return false;
    se->rows_added += how == SQL_INSERT;
    return true;
}

/* Nothing brings `id` back from here on; `rotation`: where its session has gone. */
static bool mark_gone(struct store_embedded *se, const char *id, const struct store_rotation *rotation, struct err *e)
{
    bool repeatable = rotation != NULL && rotation->key_hash[0] != '\0';
    bind_text(se, SQL_MARK_GONE, 1, id);
    bind(se, SQL_MARK_GONE, 2, se->now_ms + STORE_GONE_MS);
    bind_text(se, SQL_MARK_GONE, 3, repeatable ? rotation->new_id : NULL);
    bind_text(se, SQL_MARK_GONE, 4, repeatable ? rotation->key_hash : NULL);
    bind(se, SQL_MARK_GONE, 5, repeatable ? se->now_ms + STORE_REPEAT_MS : 0);
    return run(se, SQL_MARK_GONE, e);
}

/* Is `id` gone? Then, if the request that rotated it may be repeated by now_ms under this name, *heir is its new id. */
static bool find_gone(struct store_embedded *se, const char *id, int64_t now_ms, const char *key_hash, bool *gone,
                      char heir[IDS_TEXT_BYTES], struct err *e)
{
    sqlite3_stmt *s = se->statement[SQL_FIND_GONE];
    heir[0] = '\0';
    bind_text(se, SQL_FIND_GONE, 1, id);
    bind(se, SQL_FIND_GONE, 2, now_ms);
    int rc = sqlite3_step(s);
    bool ok = rc == SQLITE_ROW || rc == SQLITE_DONE || failed(se, sql_text[SQL_FIND_GONE], e);
    *gone = rc == SQLITE_ROW;
    const char *hash = *gone ? (const char *)sqlite3_column_text(s, 1) : NULL;
    if (hash != NULL && strcmp(hash, key_hash) == 0 && sqlite3_column_int64(s, 2) > now_ms)
        snprintf(heir, IDS_TEXT_BYTES, "%s", (const char *)sqlite3_column_text(s, 0));
    sqlite3_reset(s);
    return ok;
}

static bool erase(struct store_embedded *se, const struct row *row, struct err *e)
{
    bind(se, SQL_DELETE, 1, row->rowid);
    if (!run(se, SQL_DELETE, e)) return false;
    se->rows_added--;
    return true;
}

static bool purge(struct store_embedded *se, int most, int64_t *purged, struct err *e)
{
    bind(se, SQL_PURGE, 1, se->now_ms);
    bind(se, SQL_PURGE, 2, most);
    if (!run(se, SQL_PURGE, e)) return false;
    *purged = sqlite3_changes64(se->db);
    se->rows_added -= *purged;
    return true;
}

static bool purge_gone(struct store_embedded *se, int most, bool *more, struct err *e)
{
    bind(se, SQL_PURGE_GONE, 1, se->now_ms);
    bind(se, SQL_PURGE_GONE, 2, most);
    if (!run(se, SQL_PURGE_GONE, e)) return false;
    *more = sqlite3_changes64(se->db) == most;
    return true;
}

/* Is there room for one more under the operator's limit? Expired sessions make way. */
static bool make_room(struct store_embedded *se, struct err *e)
{
    int64_t total, purged;
    if (se->max_total == 0) return true;
    if (!run_number(se, SQL_TOTAL, &total, e)) return false;
    if (total < 0) { /* nobody kept count: what the table holds, without what end_write() is going to add */
        if (!run_number(se, SQL_COUNT_ROWS, &total, e)) return false;
        total -= se->rows_added;
        bind(se, SQL_TOTAL_SET, 1, total);
        if (!run(se, SQL_TOTAL_SET, e)) return false;
    }
    if (total + se->rows_added < se->max_total) return true;
    if (!purge(se, MAKE_ROOM, &purged, e)) return false;
    if (total + se->rows_added < se->max_total) return true;
    return err_set(e, ERR_FULL, "embedded store: holds its most of %" PRId64 " sessions", se->max_total);
}

/* ---- Transactions -------------------------------------------------------------------------------------------- */

/* Reads of tasks in one round share a transaction, which saves a third of a read's cost. It begins after the round's
 * requests were gathered and ends with the round, so that a read sees all that was acknowledged before it was asked. */
static void begin_shared_read(struct store_embedded *se)
{
    if (task_current() != NULL && sqlite3_get_autocommit(se->db)) run(se, SQL_BEGIN_READ, NULL);
}

static void end_shared_read(struct store_embedded *se)
{
    if (!sqlite3_get_autocommit(se->db)) run(se, SQL_COMMIT, NULL);
}

static bool take_turn(struct store_embedded *se, int64_t until_ms)
{
    bool ok = turns_take(se->turns, until_ms);
    se->turn_since_us = clock_mono_us();
    return ok;
}

static void leave_turn(struct store_embedded *se)
{
    int64_t held_us = clock_mono_us() - se->turn_since_us;
    if (held_us > se->held_us) se->held_us = held_us;
    turns_leave(se->turns);
}

/* Waits for the turn and for SQLite's lock. *busy: others were in the way all the time, and nothing is wrong. */
static bool begin_write(struct store_embedded *se, int64_t until_ms, bool *busy, struct err *e)
{
    end_shared_read(se);
    *busy = !take_turn(se, until_ms);
    if (*busy) return err_set(e, ERR_UNAVAILABLE, "embedded store: other writers left no turn in time");
    if (run(se, SQL_BEGIN_WRITE, e)) {
        se->now_ms = clock_wall_ms();
        se->rows_added = 0;
        return true;
    }
    *busy = (sqlite3_errcode(se->db) & 0xff) == SQLITE_BUSY;
    leave_turn(se);
    return false;
}

/* Commits, or rolls back what cannot be. */
static bool end_write(struct store_embedded *se, struct err *e)
{
    bool ok = !sqlite3_get_autocommit(se->db); /* else SQLite has rolled back by itself, and `e` says why */
    if (ok && se->rows_added != 0) {
        enum sql keep = se->max_total > 0 ? SQL_TOTAL_ADD : SQL_TOTAL_FORGET;
        if (keep == SQL_TOTAL_ADD) bind(se, keep, 1, se->rows_added);
        ok = run(se, keep, e);
    }
    ok = ok && run(se, SQL_COMMIT, e);
    if (ok) metrics_add(METRIC_embedded_commits_total, 1);
    if (!sqlite3_get_autocommit(se->db)) run(se, SQL_ROLLBACK, NULL);
    leave_turn(se);
    return ok;
}

/* ---- Checkpoints --------------------------------------------------------------------------------------------- */

/* Of the file or of the WAL, without any lock.
 *
 * SQLite syncs the file only in a checkpoint that leaves nothing to copy. Beside writers that is the one in our turn,
 * and it would wait for all pages that were copied before, strewn over the file: 50 to 100 ms. If this fails SQLite is
 * not told, but neither is it of pages that the kernel had failed to write by itself. */
static bool sync_file(struct store_embedded *se, int which, struct err *e)
{
    sqlite3_file *file = NULL;
    if (sqlite3_file_control(se->db, "main", which, &file) == SQLITE_OK && file->pMethods != NULL &&
        file->pMethods->xSync(file, SQLITE_SYNC_NORMAL | SQLITE_SYNC_DATAONLY) == SQLITE_OK)
        return true;
    return err_set(e, ERR_UNAVAILABLE, "embedded store: the file does not reach the disk");
}

/* In a turn of our own: copies what is left of the WAL and lets the readers of it end. The next writer then begins it
 * again, and waits for one flush, of its header. Busy: another time. */
static int end_wal(struct store_embedded *se, int wait_ms)
{
    sqlite3_busy_timeout(se->db, wait_ms);
    int rc = sqlite3_wal_checkpoint_v2(se->db, NULL, SQLITE_CHECKPOINT_RESTART, NULL, NULL);
    sqlite3_busy_timeout(se->db, ROUND_WAIT_MS);
    return rc;
}

/* Whoever waits. */
static int restart_wal(struct store_embedded *se)
{
    if (!take_turn(se, clock_mono_ms() + ROUND_WAIT_MS)) return SQLITE_BUSY;
    int rc = end_wal(se, ROUND_WAIT_MS);
    leave_turn(se);
    return rc;
}

/* The number in which a commit of anybody else shows. */
static int64_t data_version(struct store_embedded *se)
{
    int64_t version = -1;
    run_number(se, SQL_DATA_VERSION, &version, NULL);
    return version;
}

/* A reader keeps back what was written since its round began: then once more, when that has ended. */
static int copy_while_paused(struct store_embedded *se, int64_t until_us, int *pages, int *copied)
{
    int rc, times = 0;
    do {
        if (times > 0) usleep(READERS_PAUSE_US);
        rc = sqlite3_wal_checkpoint_v2(se->db, NULL, SQLITE_CHECKPOINT_PASSIVE, pages, copied);
    } while (rc == SQLITE_OK && *copied < *pages && ++times < WAL_COPIES && clock_mono_us() < until_us);
    return rc;
}

/* The end of the WAL is copied while writers pause, and not in a turn: two flushes, of the WAL and of the file, that
 * SQLite makes in this order and that take as long as the disk likes. Writers wait for them as long as they were asked
 * to, and no longer; if one of them has written since, we were too late: another time. If not, there is nothing left to
 * do in a turn but to wait for readers. */
static int restart_wal_in_a_pause(struct store_embedded *se, int pages)
{
    int64_t pause_us = (int64_t)RESTART_PAUSE_US * pages / WAL_BOUND_PAGES;
    int rc = SQLITE_BUSY, copied = 0;
    turns_pause(se->turns, pause_us);
    if (take_turn(se, clock_mono_ms() + ROUND_WAIT_MS)) {
        int64_t version = data_version(se);
        turns_pause(se->turns, pause_us); /* who stood before us in the queue has taken his time */
        leave_turn(se);
        rc = copy_while_paused(se, clock_mono_us() + pause_us, &pages, &copied);
        bool all = rc == SQLITE_OK && copied == pages && pages > WAL_BOUND_PAGES; /* else a writer was faster */
        if (all && take_turn(se, clock_mono_ms() + ROUND_WAIT_MS)) {
            rc = data_version(se) == version ? end_wal(se, RESTART_WAIT_MS) : SQLITE_BUSY;
            leave_turn(se);
        }
    }
    turns_pause(se->turns, 0);
    return rc;
}

/* Copies the WAL into the file while writers go on. They would go on for ever behind its end: so once it is long, copy
 * again until one of them finds all of it copied and begins it again, or at least little is left to do in a turn. */
static bool checkpoint(struct store_embedded *se, struct err *e)
{
    int pages = 0, copied = 0, before, rc, copies = 0;
    bool little;
    do {
        before = copied;
        rc = sqlite3_wal_checkpoint_v2(se->db, NULL, SQLITE_CHECKPOINT_PASSIVE, &pages, &copied);
        little = pages - before <= WAL_REST_PAGES;
        if (rc == SQLITE_OK && pages > WAL_BOUND_PAGES && !sync_file(se, SQLITE_FCNTL_FILE_POINTER, e)) return false;
    } while (rc == SQLITE_OK && pages > WAL_BOUND_PAGES && pages != before && ++copies < WAL_COPIES);

    if (rc == SQLITE_OK && pages > WAL_LIMIT_PAGES)
        rc = restart_wal(se);
    else if (rc == SQLITE_OK && pages > WAL_BOUND_PAGES && little)
        rc = restart_wal_in_a_pause(se, pages);
    return rc == SQLITE_OK || (rc & 0xff) == SQLITE_BUSY || failed(se, "checkpoint", e);
}

/* ---- A round's writes ---------------------------------------------------------------------------------------- */

static bool run_create(struct store_embedded *se, struct op *op)
{
    struct row row;
    bool ok = find(se, op->id, se->now_ms, &row, &op->err);
    find_done(se);
    if (!ok) return false;
    op->result.found = row.live;
    char heir[IDS_TEXT_BYTES];
    if (!row.live && !op->terms->minted && !find_gone(se, op->id, se->now_ms, "", &op->result.gone, heir, &op->err))
        return false;
    if (!row.live && !op->result.gone) {
        if (row.rowid != 0)
            row.expires_ms = 0; /* an expired one makes way, its time counts no more */
        else if (!make_room(se, &op->err))
            return false;
        if (!put(se, &row, op->id, op->doc, op->terms, &op->err)) return false;
        op->result.changed = true;
    }
    op->result.expires_at_ms = row.expires_ms;
    return true;
}

static bool run_update(struct store_embedded *se, struct op *op)
{
    struct row row;
    enum store_verdict verdict = STORE_KEEP;
    buf_reset(&se->edited);
    bool ok = find(se, op->id, se->now_ms, &row, &op->err);
    if (ok && row.live) verdict = op->edit(op->edit_ctx, row.doc, &se->edited);
    find_done(se);
    if (!ok) return false;

    op->result.found = row.live;
    op->result.changed = verdict != STORE_KEEP;
    op->result.deleted = verdict == STORE_DELETE;
    if (verdict == STORE_DELETE) return erase(se, &row, &op->err) && mark_gone(se, op->id, NULL, &op->err);
    if (verdict == STORE_WRITE) {
        if (buf_overflowed(&se->edited))
            return err_set(&op->err, ERR_INTERNAL, "embedded store: document over %u bytes", DOCUMENT_MOST);
        if (!put(se, &row, op->id, buf_bytes(&se->edited), op->terms, &op->err)) return false;
    }
    op->result.expires_at_ms = row.live ? row.expires_ms : 0;
    return true;
}

/* The id is not there. If a request of this name has rotated it a moment ago, its answer is this one's too. */
static bool repeat_rotation(struct store_embedded *se, struct op *op)
{
    struct row row;
    char heir[IDS_TEXT_BYTES];
    bool gone;
    if (op->rotation->key_hash[0] == '\0') return true;
    if (!find_gone(se, op->id, se->now_ms, op->rotation->key_hash, &gone, heir, &op->err)) return false;
    if (heir[0] == '\0') return true;
    bool ok = find(se, heir, se->now_ms, &row, &op->err);
    op->result.found = op->rotation->repeated = ok && row.live;
    if (op->result.found) {
        buf_add(op->read, row.doc);
        op->result.expires_at_ms = row.expires_ms;
        memcpy(op->rotation->new_id, heir, sizeof heir);
    }
    find_done(se);
    return ok;
}

static bool run_rotate(struct store_embedded *se, struct op *op)
{
    struct row row;
    enum store_verdict verdict = STORE_KEEP;
    buf_reset(&se->edited);
    bool ok = find(se, op->id, se->now_ms, &row, &op->err);
    if (ok && row.live) verdict = op->edit(op->edit_ctx, row.doc, &se->edited);
    find_done(se);
    if (!ok) return false;
    if (!row.live) return repeat_rotation(se, op);

    op->result.found = true;
    if (verdict != STORE_WRITE) return true;
    if (buf_overflowed(&se->edited))
        return err_set(&op->err, ERR_INTERNAL, "embedded store: document over %u bytes", DOCUMENT_MOST);
    struct row fresh = { .expires_ms = row.expires_ms };
    if (!erase(se, &row, &op->err) || !mark_gone(se, op->id, op->rotation, &op->err) ||
        !put(se, &fresh, op->rotation->new_id, buf_bytes(&se->edited), op->terms, &op->err))
        return false;
    buf_add(op->read, buf_bytes(&se->edited));
    op->result.changed = true;
    op->result.expires_at_ms = fresh.expires_ms;
    return true;
}

static bool run_expire(struct store_embedded *se, struct op *op)
{
    struct row row;
    bool ok = find(se, op->id, se->now_ms, &row, &op->err);
    find_done(se);
    if (!ok || !row.live) return ok;
    int64_t expires_ms = se->now_ms + op->life_ms;
    if (op->only_longer && row.expires_ms > expires_ms) expires_ms = row.expires_ms;
    op->result =
        (struct store_result){ .found = true, .changed = expires_ms != row.expires_ms, .expires_at_ms = expires_ms };
    if (!op->result.changed) return true;
    bind(se, SQL_LIFE, 1, expires_ms);
    bind(se, SQL_LIFE, 2, purge_time(expires_ms, op->life_ms));
    bind(se, SQL_LIFE, 3, row.rowid);
    return run(se, SQL_LIFE, &op->err);
}

static bool run_delete(struct store_embedded *se, struct op *op)
{
    struct row row;
    bool ok = find(se, op->id, se->now_ms, &row, &op->err);
    if (ok && row.live && op->read != NULL) buf_add(op->read, row.doc);
    find_done(se);
    if (!ok) return false;
    op->result.found = op->result.changed = row.live;
    return !row.live || (erase(se, &row, &op->err) && mark_gone(se, op->id, NULL, &op->err));
}

static bool run_work(struct store_embedded *se, struct op *op)
{
    return op->work(op->work_ctx, se->db, se->now_ms, &op->err);
}

static bool (*const op_run[])(struct store_embedded *se, struct op *op) = {
    [OP_CREATE] = run_create, [OP_UPDATE] = run_update, [OP_ROTATE] = run_rotate,
    [OP_EXPIRE] = run_expire, [OP_DELETE] = run_delete, [OP_WORK] = run_work,
};

static void finish(struct store_embedded *se, struct op *op)
{
    TAILQ_REMOVE(&se->round, op, link);
    op->done = true;
    if (op->task != NULL) task_wake(op->task);
}

/* Is it too late to do what `op` asks? Then its asker is told that it was not done. */
static bool is_late(struct op *op, int64_t now_ms)
{
    if (op->deadline_ms > now_ms) return false;
    err_set(&op->err, ERR_UNAVAILABLE, "embedded store: no turn to write before the deadline");
    op->ok = false;
    return true;
}

/* Answers every write of the round: what it came to, if its transaction was committed, else why that failed. */
static void finish_round(struct store_embedded *se, bool committed, const struct err *failure)
{
    struct op *op;
    while ((op = TAILQ_FIRST(&se->round)) != NULL) {
        if (!committed && (op->ok || op->err.kind == ERR_NONE)) op->err = *failure;
        op->ok = op->ok && committed;
        finish(se, op);
    }
}

/* Has a write that failed changed something all the same? (What make_room() does before it says ERR_FULL is whole.) */
static bool is_half_done(struct store_embedded *se, const struct op *op, int64_t changes_before)
{
    return !op->ok && op->err.kind != ERR_FULL && sqlite3_total_changes64(se->db) != changes_before;
}

/* Runs the round's writes in the transaction that is open. One that fails does not hurt the others, unless SQLite had
 * to roll everything back, or half of what it is made of would be committed: a rotation's old id gone, and no new one.
 */
static void commit_round(struct store_embedded *se)
{
    struct op *op;
    struct err failure = { 0 };
    bool open = true;
    int64_t now_ms = clock_mono_ms();
    TAILQ_FOREACH(op, &se->round, link)
    {
        if (!open || is_late(op, now_ms)) continue;
        int64_t before = sqlite3_total_changes64(se->db);
        op->ok = op_run[op->kind](se, op);
        if (is_half_done(se, op, before)) run(se, SQL_ROLLBACK, NULL);
        open = !sqlite3_get_autocommit(se->db);
        if (!open) failure = op->err;
    }
    bool committed = end_write(se, &failure);
    finish_round(se, committed, &failure);
    buf_trim(&se->edited, KEEP_BYTES);
}

/* The process has other work to do and comes back to this round. Its tasks are woken and park again (see submit()), so
 * that the loop knows not to sleep. */
static void put_off_round(struct store_embedded *se)
{
    struct op *op;
    TAILQ_FOREACH(op, &se->round, link)
    {
        if (op->task != NULL) task_wake(op->task);
    }
}

/* SQLite's word after each commit. */
static int note_wal(void *self, sqlite3 *db, const char *name, int pages)
{
    struct store_embedded *se = self;
    (void)db, (void)name;
    se->wal_pages = pages;
    return SQLITE_OK;
}

/* Writers can fill the WAL faster than any disk takes the pages where they belong, and then the keeper finds no moment
 * at which little is left to copy. So they wait the longer the longer it is; each by itself, so that no kill leaves
 * anybody waiting. */
static void slow_down(struct store_embedded *se)
{
    int64_t pause_us = ((int64_t)se->wal_pages - WAL_SLOW_PAGES) * 1000 / WAL_SLOW_PAGES_MS;
    if (pause_us > 0) usleep((useconds_t)(pause_us < WAL_SLOW_MOST_US ? pause_us : WAL_SLOW_MOST_US));
    if (se->wal_pages > WAL_LIMIT_PAGES) checkpoint(se, NULL); /* if that fails: after the next commit again */
    se->wal_pages = 0;                                         /* a round that changes nothing is told nothing */
}

static void flush(void *self)
{
    struct store_embedded *se = self;
    struct err e = { 0 };
    bool busy;
    end_shared_read(se);
    if (TAILQ_EMPTY(&se->round)) return;

    int64_t now_ms = clock_mono_ms(), until_ms = now_ms + ROUND_WAIT_MS;
    for (struct op *op = TAILQ_FIRST(&se->round), *after; op != NULL; op = after) {
        after = TAILQ_NEXT(op, link);
        if (is_late(op, now_ms))
            finish(se, op);
        else if (op->deadline_ms < until_ms)
            until_ms = op->deadline_ms;
    }
    if (TAILQ_EMPTY(&se->round)) return;
    if (begin_write(se, until_ms, &busy, &e)) {
        commit_round(se);
        slow_down(se);
    } else if (busy) {
        put_off_round(se);
    } else {
        finish_round(se, false, &e);
    }
}

/* Puts a write into the round and waits for its outcome. */
static bool submit(struct store_embedded *se, struct op *op, struct store_result *res, struct err *e)
{
    int64_t began_us = clock_mono_us();
    op->task = task_current();
    TAILQ_INSERT_TAIL(&se->round, op, link);
    if (op->task == NULL)
        while (!op->done) flush(se);
    while (!op->done && task_park(op->deadline_ms)) continue; /* woken, but not done: put off to the next round */
    if (!op->done) {
        TAILQ_REMOVE(&se->round, op, link); /* it lies on this stack */
        is_late(op, op->deadline_ms);
    }
    metrics_phase(PHASE_EMBEDDED, clock_mono_us() - began_us);
    *res = op->ok ? op->result : (struct store_result){ 0 };
    if (!op->ok && e != NULL) *e = op->err;
    return op->ok;
}

/* ---- The operations ------------------------------------------------------------------------------------------ */

static bool get(void *self, const char *id, int64_t roll_ms, int64_t deadline_ms, struct buf *doc,
                struct store_result *res, struct err *e)
{
    struct store_embedded *se = self;
    struct row row;
    (void)roll_ms, (void)deadline_ms; /* a read waits for nobody, and tells the life anyway */
    int64_t began_us = clock_mono_us();
    begin_shared_read(se);
    bool ok = find(se, id, clock_wall_ms(), &row, e);
    if (ok && row.live) buf_add(doc, row.doc);
    find_done(se);
    metrics_phase(PHASE_EMBEDDED, clock_mono_us() - began_us);
    *res = (struct store_result){ .found = ok && row.live, .expires_at_ms = row.live ? row.expires_ms : 0 };
    return ok;
}

static bool create(void *self, const char *id, struct bytes doc, const struct store_terms *terms, int64_t deadline_ms,
                   struct store_result *res, struct err *e)
{
    struct op op = { .kind = OP_CREATE, .id = id, .doc = doc, .terms = terms, .deadline_ms = deadline_ms };
    return submit(self, &op, res, e);
}

static bool update(void *self, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                   int64_t deadline_ms, struct store_result *res, struct err *e)
{
    struct op op = {
        .kind = OP_UPDATE, .id = id, .edit = edit, .edit_ctx = ctx, .terms = terms, .deadline_ms = deadline_ms
    };
    return submit(self, &op, res, e);
}

/* All of it in one transaction. */
static bool rotate(void *self, const char *id, store_edit_fn *edit, void *ctx, const struct store_terms *terms,
                   struct store_rotation *rotation, int64_t deadline_ms, struct buf *doc, struct store_result *res,
                   struct err *e)
{
    struct op op = { .kind = OP_ROTATE,
                     .id = id,
                     .edit = edit,
                     .edit_ctx = ctx,
                     .terms = terms,
                     .rotation = rotation,
                     .read = doc,
                     .deadline_ms = deadline_ms };
    rotation->repeated = false;
    return submit(self, &op, res, e);
}

static bool expire(void *self, const char *id, int64_t life_ms, bool only_longer, int64_t deadline_ms,
                   struct store_result *res, struct err *e)
{
    struct op op = {
        .kind = OP_EXPIRE, .id = id, .life_ms = life_ms, .only_longer = only_longer, .deadline_ms = deadline_ms
    };
    return submit(self, &op, res, e);
}

static bool del(void *self, const char *id, int64_t deadline_ms, struct buf *was, struct store_result *res,
                struct err *e)
{
    struct op op = { .kind = OP_DELETE, .id = id, .read = was, .deadline_ms = deadline_ms };
    return submit(self, &op, res, e);
}

/* What is none of the user's any more is another's in its own row: there is nothing to take out. */
static bool list(void *self, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx, struct err *e)
{
    struct store_embedded *se = self;
    sqlite3_stmt *s = se->statement[SQL_OF_USER];
    int rc;
    (void)deadline_ms;
    bind_text(se, SQL_OF_USER, 1, user);
    bind(se, SQL_OF_USER, 2, clock_wall_ms());
    while ((rc = sqlite3_step(s)) == SQLITE_ROW) {
        struct bytes doc = { sqlite3_column_blob(s, 1), (size_t)sqlite3_column_bytes(s, 1) };
        (void)each(ctx, (const char *)sqlite3_column_text(s, 0), doc, sqlite3_column_int64(s, 2));
    }
    bool ok = rc == SQLITE_DONE || failed(se, sql_text[SQL_OF_USER], e);
    sqlite3_reset(s);
    return ok;
}

static bool count(void *self, int64_t deadline_ms, int64_t *sessions, struct err *e)
{
    struct store_embedded *se = self;
    (void)deadline_ms;
    bind(se, SQL_COUNT_LIVE, 1, clock_wall_ms());
    return run_number(se, SQL_COUNT_LIVE, sessions, e);
}

/* Looks at up to SCAN_STEP rows behind `rowid` and sets user_id to what the document says. */
static bool heal_rows(struct store_embedded *se, int64_t rowid, struct store_heal *h, struct err *e)
{
    sqlite3_stmt *s = se->statement[SQL_OWNERS];
    struct session_facts facts;
    bool ok = true;
    int rc = SQLITE_DONE, rows = 0;
    bind(se, SQL_OWNERS, 1, rowid);
    bind(se, SQL_OWNERS, 2, SCAN_STEP);
    for (; ok && (rc = sqlite3_step(s)) == SQLITE_ROW; rows++) {
        struct bytes doc = { sqlite3_column_blob(s, 1), (size_t)sqlite3_column_bytes(s, 1) };
        const char *entered = (const char *)sqlite3_column_text(s, 2);
        char user[STORE_USER_BYTES] = "";
        rowid = sqlite3_column_int64(s, 0);
        if (session_facts(doc, &facts)) session_user(facts.user_id, user, sizeof user);
        if (strcmp(user, entered ? entered : "") == 0) continue;
        *(user[0] != '\0' ? &h->entered : &h->removed) += 1;
        bind_text(se, SQL_OWNER, 1, user);
        bind(se, SQL_OWNER, 2, rowid);
        ok = run(se, SQL_OWNER, e);
    }
    if (ok && rc != SQLITE_ROW && rc != SQLITE_DONE) ok = failed(se, sql_text[SQL_OWNERS], e);
    sqlite3_reset(s);
    h->sessions += rows;
    h->done = ok && rows < SCAN_STEP;
    snprintf(h->cursor, sizeof h->cursor, "%" PRId64, rowid);
    return ok;
}

/* user_id is written with the document, in one transaction. Rows that do without come from a process of an older
 * version that still had the file open when it was migrated. */
static bool heal(void *self, struct store_heal *h, int64_t deadline_ms, struct err *e)
{
    struct store_embedded *se = self;
    bool busy;
    if (!begin_write(se, deadline_ms, &busy, e)) return false;
    bool ok = heal_rows(se, strtoll(h->cursor, NULL, 10), h, e);
    return end_write(se, e) && ok;
}

static bool scan(void *self, struct store_scan *sc, int64_t deadline_ms, struct err *e)
{
    struct store_embedded *se = self;
    sqlite3_stmt *s = se->statement[SQL_SCAN];
    int64_t rowid = strtoll(sc->cursor, NULL, 10), now_ms = clock_wall_ms();
    int rc, rows = 0;
    (void)deadline_ms;
    bind(se, SQL_SCAN, 1, rowid);
    bind(se, SQL_SCAN, 2, SCAN_STEP);
    for (; (rc = sqlite3_step(s)) == SQLITE_ROW; rows++) {
        struct store_found found = { .id = bytes_of((const char *)sqlite3_column_text(s, 1)), .is_text = true };
        found.doc = (struct bytes){ sqlite3_column_blob(s, 2), (size_t)sqlite3_column_bytes(s, 2) };
        found.expires_at_ms = sqlite3_column_int64(s, 3);
        rowid = sqlite3_column_int64(s, 0);
        if (found.expires_at_ms > now_ms) sc->each(sc->ctx, &found);
    }
    bool ok = rc == SQLITE_DONE || failed(se, sql_text[SQL_SCAN], e);
    sqlite3_reset(s);
    sc->done = ok && rows < SCAN_STEP;
    snprintf(sc->cursor, sizeof sc->cursor, "%" PRId64, rowid);
    return ok;
}

static bool is_gone(void *self, const char *id, int64_t deadline_ms, bool *gone, struct err *e)
{
    struct store_embedded *se = self;
    char heir[IDS_TEXT_BYTES];
    (void)deadline_ms;
    begin_shared_read(se);
    return find_gone(se, id, clock_wall_ms(), "", gone, heir, e);
}

static void close_(void *self)
{
    store_embedded_close(self);
}

const struct store_ops store_embedded_ops = {
    .name = "embedded",
    .get = get,
    .create = create,
    .update = update,
    .rotate = rotate,
    .expire = expire,
    .del = del,
    .list = list,
    .heal = heal,
    .count = count,
    .scan = scan,
    .is_gone = is_gone,
    .flush = flush,
    .close = close_,
};

/* ---- Other tables in the same file ---------------------------------------------------------------------------- */

bool store_embedded_transact(struct store_embedded *se, store_embedded_work_fn *work, void *ctx, int64_t deadline_ms,
                             struct err *e)
{
    struct store_result none;
    struct op op = { .kind = OP_WORK, .work = work, .work_ctx = ctx, .deadline_ms = deadline_ms };
    return submit(se, &op, &none, e);
}

sqlite3 *store_embedded_db(struct store_embedded *se)
{
    begin_shared_read(se);
    return se->db;
}

bool store_embedded_failed(struct store_embedded *se, const char *doing, struct err *e)
{
    return failed(se, doing, e);
}

/* ---- Housekeeping -------------------------------------------------------------------------------------------- */

static bool has_little_room(const struct store_embedded *se)
{
    struct statvfs fs;
    return statvfs(se->dir, &fs) != 0 || (uint64_t)fs.f_bavail * fs.f_frsize < LITTLE_ROOM_BYTES;
}

/* A commit that changes nothing writes nothing: that the disk takes it is found out by one that does, now and then,
 * since each lets an idle store flush twice, and always where the last one failed or there is reason to doubt. */
bool store_embedded_ready(struct store_embedded *se, int64_t deadline_ms, struct err *e)
{
    bool busy;
    int64_t now_ms = clock_mono_ms(), until_ms = now_ms + ROUND_WAIT_MS;
    bool writes = now_ms >= se->prove_at_ms || has_little_room(se);
    if (!begin_write(se, deadline_ms < until_ms ? deadline_ms : until_ms, &busy, e)) return false;
    bool ok = run(se, writes ? SQL_PROVE : SQL_TOTAL_SAME, e);
    ok = end_write(se, e) && ok;
    if (writes) se->prove_at_ms = ok ? now_ms + PROVE_MS : 0;
    return ok;
}

/* A step's time depends on the disk, the memory and how the sessions lie in the file: measured, not known. */
static void choose_step(struct store_embedded *se, int most)
{
    if (se->held_us > PURGE_TURN_US)
        se->purge_step /= 2;
    else if (se->held_us < PURGE_TURN_US / 2 && se->purge_step < most)
        se->purge_step += se->purge_step / 4;
    if (se->purge_step < PURGE_STEP_LEAST) se->purge_step = PURGE_STEP_LEAST;
}

/* Reads what is about to be deleted, with its entries of every index: what must come from the disk comes before the
 * turn, and not in it. */
static bool look_ahead(struct store_embedded *se, int step, struct err *e)
{
    sqlite3_stmt *s = se->statement[SQL_PURGE_LOOK];
    int rc;
    bind(se, SQL_PURGE_LOOK, 1, clock_wall_ms());
    bind(se, SQL_PURGE_LOOK, 2, step);
    do rc = sqlite3_step(s);
    while (rc == SQLITE_ROW);
    bool ok = rc == SQLITE_DONE || failed(se, sql_text[SQL_PURGE_LOOK], e);
    sqlite3_reset(s);
    return ok;
}

static bool purge_step(struct store_embedded *se, int most, int64_t *purged, bool *more, struct err *e)
{
    bool busy;
    int step = se->purge_step < most ? se->purge_step : most;
    if (!look_ahead(se, step, e)) return false;
    if (!begin_write(se, clock_mono_ms() + ROUND_WAIT_MS, &busy, e)) return false;
    bool ok = purge(se, step, purged, e) && purge_gone(se, step, more, e);
    if (!end_write(se, e) || !ok) return false;
    *more = *more || *purged == step;
    if (*more) choose_step(se, most);
    return true;
}

bool store_embedded_housekeep(struct store_embedded *se, int most, int64_t *purged, bool *more, struct err *e)
{
    int64_t expired;
    *purged = 0;
    *more = false;
    se->held_us = 0;
    end_shared_read(se);
    bind(se, SQL_ANY_EXPIRED, 1, clock_wall_ms());
    if (!run_number(se, SQL_ANY_EXPIRED, &expired, e)) return false;
    if (expired && !purge_step(se, most, purged, more, e)) return false;
    /* Whoever writes next after a whole checkpoint waits for the disk, and beside busy writers a checkpoint takes long.
     * So there is one only now and then while there is more to purge. */
    if (*more && clock_mono_ms() < se->checkpoint_at_ms) return true;
    bool sync_only = *more && se->wal_pages <= WAL_BOUND_PAGES;
    bool ok = sync_only ? sync_file(se, SQLITE_FCNTL_JOURNAL_POINTER, e) : checkpoint(se, e);
    se->checkpoint_at_ms = clock_mono_ms() + CHECKPOINT_MS;
    return ok;
}

int64_t store_embedded_held_us(const struct store_embedded *se)
{
    return se->held_us;
}

/* ---- Opening ------------------------------------------------------------------------------------------------- */

/* sessions.lock: byte 0 is locked by whoever opens the store, byte 1 shared by all who have it open. Only a process
 * that has it alone may set a damaged file aside: others would go on writing to it. The locks belong to the open file,
 * so no kill leaves one behind. The file's content is empty, or "?" after somebody met damage. */
enum { LOCK_OPENING, LOCK_USERS };

static bool lock_byte(struct store_embedded *se, int command, short type, off_t byte)
{
    struct flock l = { .l_type = type, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1 };
    int rc;
    do rc = fcntl(se->lock_fd, command, &l);
    while (rc < 0 && errno == EINTR);
    return rc == 0;
}

/* A path below the store's folder; the caller's. */
static char *path_of(const char *dir, const char *name, const char *suffix)
{
    struct buf path = BUF_INIT(64 * 1024);
    buf_printf(&path, "%s/%s%s", dir, name, suffix);
    return path.data;
}

static bool dir_failed(struct store_embedded *se, struct err *e)
{
    return err_set(e, ERR_INPUT, "STATE_DIR=%s: %s", se->dir, strerror(errno));
}

static bool lock_open(struct store_embedded *se, struct err *e)
{
    char *path = path_of(se->dir, "sessions.lock", "");
    se->lock_fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    free(path);
    if (se->lock_fd < 0 || !lock_byte(se, F_OFD_SETLKW, F_WRLCK, LOCK_OPENING)) return dir_failed(se, e);
    se->alone = lock_byte(se, F_OFD_SETLK, F_WRLCK, LOCK_USERS);
    return true;
}

/* SQLite would make the file readable for everybody, and its -wal and -shm like it. Never opens a file that is there:
 * closing it would drop the locks of a connection that this process may have. */
static bool create_file(struct store_embedded *se, struct err *e)
{
    int fd = open(se->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0) return errno == EEXIST || dir_failed(se, e);
    close(fd);
    return true;
}

/* The first value that a statement answers with, as text. */
static bool query(struct store_embedded *se, const char *sql, char *out, size_t cap, struct err *e)
{
    sqlite3_stmt *s = NULL;
    bool ok = sqlite3_prepare_v2(se->db, sql, -1, &s, NULL) == SQLITE_OK && sqlite3_step(s) == SQLITE_ROW;
    if (ok)
        snprintf(out, cap, "%s", (const char *)sqlite3_column_text(s, 0));
    else
        failed(se, sql, e);
    sqlite3_finalize(s);
    return ok;
}

static bool exec(struct store_embedded *se, const char *sql, struct err *e)
{
    return sqlite3_exec(se->db, sql, NULL, NULL, NULL) == SQLITE_OK || failed(se, "setting up", e);
}

/* mmap_size stays 0: mapped reads were 2.5 us faster, but an unreadable disk block would then be a SIGBUS instead of
 * an error. note_wal() takes the place of the automatic checkpoint. */
static bool configure(struct store_embedded *se, struct err *e)
{
    char mode[16];
    if (!exec(se, "PRAGMA page_size = " STRING(PAGE_BYTES), e)) return false;
    if (!query(se, "PRAGMA journal_mode = WAL", mode, sizeof mode, e)) return false;
    if (strcmp(mode, "wal") != 0)
        return err_set(e, ERR_INPUT, "STATE_DIR=%s: SQLite cannot use a WAL there, only mode \"%s\"", se->dir, mode);
    return exec(se,
                "PRAGMA cache_size = -1024;" /* KiB, of every worker */
                "PRAGMA temp_store = MEMORY;"
                "PRAGMA journal_size_limit = " STRING(WAL_KEEP_BYTES) ";",
                e) &&
           exec(se, se->sync_full ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL", e);
}

/* The first to open the file looks through it, if that is quick or somebody met damage. */
static bool check(struct store_embedded *se, struct err *e)
{
    char answer[100];
    struct stat file, mark;
    if (!se->alone || stat(se->path, &file) < 0 || fstat(se->lock_fd, &mark) < 0) return true;
    if (file.st_size > QUICK_CHECK_BYTES && mark.st_size == 0) return true;
    if (!query(se, "PRAGMA quick_check(1)", answer, sizeof answer, e)) return false;
    se->damaged = strcmp(answer, "ok") != 0;
    for (char *c = answer; (c = strchr(c, '\n')) != NULL;) *c = ' ';
    if (se->damaged) return err_set(e, ERR_UNAVAILABLE, "embedded store: quick_check says: %s", answer);
    if (mark.st_size > 0 && ftruncate(se->lock_fd, 0) < 0) return dir_failed(se, e);
    return true;
}

static bool migrate(struct store_embedded *se, struct err *e)
{
    char version[24];
    if (!query(se, "PRAGMA user_version", version, sizeof version, e)) return false;
    int64_t from = strtoll(version, NULL, 10);
    if (from > SCHEMA_VERSION)
        return err_set(e, ERR_INPUT,
                       "STATE_DIR=%s: sessions.db was made by a newer version: its schema is %" PRId64
                       ", this program knows %" PRId64,
                       se->dir, from, SCHEMA_VERSION);
    for (; from < SCHEMA_VERSION; from++) {
        struct buf sql = BUF_INIT(64 * 1024);
        buf_printf(&sql, "BEGIN IMMEDIATE; %s PRAGMA user_version = %" PRId64 "; COMMIT;", migrations[from], from + 1);
        bool ok = exec(se, buf_text(&sql), e);
        buf_done(&sql);
        if (!ok) return false;
    }
    return true;
}

static bool prepare(struct store_embedded *se, struct err *e)
{
    for (int i = 0; i < SQL_STATEMENTS; i++)
        if (sqlite3_prepare_v3(se->db, sql_text[i], -1, SQLITE_PREPARE_PERSISTENT, &se->statement[i], NULL) !=
            SQLITE_OK)
            return failed(se, sql_text[i], e);
    return true;
}

static bool database_open(struct store_embedded *se, struct err *e)
{
    const int flags = SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX;
    se->damaged = false;
    if (!create_file(se, e)) return false;
    if (sqlite3_open_v2(se->path, &se->db, flags, NULL) != SQLITE_OK || sqlite3_db_readonly(se->db, "main") == 1)
        return err_set(e, ERR_INPUT, "STATE_DIR=%s: sessions.db cannot be opened for writing", se->dir);
    sqlite3_busy_timeout(se->db, OPEN_WAIT_MS);
    sqlite3_wal_hook(se->db, note_wal, se);
    bool ok = configure(se, e) && check(se, e) && migrate(se, e) && prepare(se, e);
    sqlite3_busy_timeout(se->db, ROUND_WAIT_MS);
    return ok;
}

static void database_close(struct store_embedded *se)
{
    for (int i = 0; i < SQL_STATEMENTS; i++) {
        sqlite3_finalize(se->statement[i]);
        se->statement[i] = NULL;
    }
    if (se->db != NULL && se->damaged)
        sqlite3_db_config(se->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL); /* touch nothing more */
    sqlite3_close(se->db);
    se->db = NULL;
}

/* Renames the damaged file and what belongs to it. The file itself goes last: a -wal left beside a new file would be
 * played into it. */
static bool set_aside(struct store_embedded *se, const struct err *why, struct err *e)
{
    static const char *const parts[] = { "-wal", "-shm", "" };
    struct buf name = BUF_INIT(128);
    char when[CLOCK_ISO_BYTES];
    bool ok = true;
    clock_iso(clock_wall_ms(), when);
    buf_puts(&name, "sessions.db.damaged-");
    for (const char *c = when; *c != '\0'; c++)
        if (*c != ':') buf_append(&name, c, 1);
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        char *from = path_of(se->dir, "sessions.db", parts[i]), *to = path_of(se->dir, buf_text(&name), parts[i]);
        ok = ok && (rename(from, to) == 0 || errno == ENOENT || dir_failed(se, e));
        free(from);
        free(to);
    }
    if (ok) ok = ftruncate(se->lock_fd, 0) == 0 || dir_failed(se, e);
    if (ok)
        log_error("embedded store damaged, set aside, beginning a new one: file=\"%s/%s\" error=\"%s\"", se->dir,
                  buf_text(&name), why->text);
    buf_done(&name);
    return ok;
}

static bool database_open_or_renew(struct store_embedded *se, struct err *e)
{
    struct err why = { 0 };
    if (database_open(se, &why)) return true;
    bool damaged = se->damaged;
    database_close(se);
    if (damaged && se->alone) return set_aside(se, &why, e) && database_open(se, e);
    return err_set(e, why.kind, "%s%s", why.text, damaged ? "; set aside once no other process uses it" : "");
}

struct store_embedded *store_embedded_open(const struct store_embedded_options *o, struct err *e)
{
    struct store_embedded *se = mem_alloc(sizeof *se);
    se->dir = mem_strdup(o->dir);
    se->path = path_of(o->dir, "sessions.db", "");
    se->sync_full = o->sync_full;
    se->max_total = o->max_total;
    se->purge_step = PURGE_STEP_FIRST;
    se->edited = (struct buf)BUF_INIT(DOCUMENT_MOST);
    se->lock_fd = -1;
    TAILQ_INIT(&se->round);

    char *turns = path_of(o->dir, "sessions.turns", "");
    bool ok = lock_open(se, e) && database_open_or_renew(se, e) && (se->turns = turns_open(turns, e)) != NULL;
    free(turns);
    if (ok) {
        se->serving = true;
        lock_byte(se, F_OFD_SETLK, F_RDLCK, LOCK_USERS);
        lock_byte(se, F_OFD_SETLK, F_UNLCK, LOCK_OPENING);
        return se;
    }
    store_embedded_close(se);
    return NULL;
}

void store_embedded_close(struct store_embedded *se)
{
    if (se == NULL) return;
    assert(TAILQ_EMPTY(&se->round));
    if (se->db != NULL) end_shared_read(se);
    database_close(se);
    turns_close(se->turns);
    if (se->lock_fd >= 0) close(se->lock_fd);
    buf_done(&se->edited);
    free(se->path);
    free(se->dir);
    free(se);
}
