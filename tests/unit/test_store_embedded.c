#include "store_embedded.h"

#include "store_cases.h"
#include "task.h"

#include <fcntl.h>
#include <ftw.h>
#include <glob.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>

static char dir[64];

static void *open_limited(int64_t max_total)
{
    struct err e = { 0 };
    struct store_embedded_options o = { .dir = dir, .max_total = max_total };
    void *se = store_embedded_open(&o, &e);
    if (se == NULL) print_error("%s\n", e.text);
    return se;
}

static void *open_store(void)
{
    return open_limited(0);
}

static int make_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/test_store_embedded.XXXXXX");
    return mkdtemp(dir) == NULL;
}

static int remove_one(const char *path, const struct stat *st, int what, struct FTW *where)
{
    (void)st, (void)what, (void)where;
    return remove(path);
}

static int remove_dir(void **state)
{
    (void)state;
    clock_set(-1, -1);
    umount2(dir, MNT_DETACH); /* where a test died before it could */
    return nftw(dir, remove_one, 8, FTW_DEPTH | FTW_PHYS);
}

static struct store_case shared = { .ops = &store_embedded_ops, .open = open_store };

static int open_shared(void **state)
{
    if (make_dir(state) != 0) return 1;
    shared.self = open_store();
    *state = &shared;
    return shared.self == NULL;
}

static int close_shared(void **state)
{
    store_embedded_close(shared.self);
    return remove_dir(state);
}

/* A store of the test's own, in the folder of the test's own. */
static struct store_case fresh(int64_t max_total)
{
    struct store_case c = { .ops = &store_embedded_ops, .open = open_store, .self = open_limited(max_total) };
    assert_non_null(c.self);
    return c;
}

static void write_at(const char *name, off_t offset, const char *text, size_t bytes)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(pwrite(fd, text, bytes, offset) == (ssize_t)bytes);
    close(fd);
}

static size_t files_like(const char *pattern)
{
    char path[128];
    glob_t found;
    snprintf(path, sizeof path, "%s/%s", dir, pattern);
    size_t n = glob(path, 0, NULL, &found) == 0 ? found.gl_pathc : 0;
    globfree(&found);
    return n;
}

static int64_t file_bytes(const char *name)
{
    char path[128];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return stat(path, &st) < 0 ? -1 : st.st_size;
}

/* ---- Rounds -------------------------------------------------------------------------------------------------- */

/* One request of a round, as a worker's task makes it. */
struct ask {
    struct store_case *c;
    enum { ASK_CREATE, ASK_UPDATE, ASK_DELETE, ASK_READ } what;
    const char *id;
    store_edit_fn *edit;
    void *ctx;
    int64_t deadline_ms;
    bool done, ok;
    struct store_result res;
    struct err err;
};

static void run_ask(void *arg)
{
    struct ask *a = arg;
    const struct store_ops *ops = a->c->ops;
    struct buf doc = BUF_INIT(1 << 20);
    switch (a->what) {
    case ASK_CREATE:
        a->ok = ops->create(a->c->self, a->id, BYTES_LITERAL("{}"), TERMS(LONG_MS), a->deadline_ms, &a->res, &a->err);
        break;
    case ASK_UPDATE:
        a->ok = ops->update(a->c->self, a->id, a->edit, a->ctx, TERMS(LONG_MS), a->deadline_ms, &a->res, &a->err);
        break;
    case ASK_DELETE:
        a->ok = ops->del(a->c->self, a->id, a->deadline_ms, NULL, &a->res, &a->err);
        break;
    case ASK_READ:
        a->ok = ops->get(a->c->self, a->id, 0, a->deadline_ms, &doc, &a->res, &a->err);
        break;
    }
    a->done = true;
    buf_done(&doc);
}

static void one_round(struct store_case *c)
{
    task_run_ready();
    c->ops->flush(c->self);
    task_run_ready();
}

static void a_round_is_committed_as_one(void **state)
{
    (void)state;
    struct store_case c = fresh(0), other = fresh(0);
    struct ask ask[16] = { 0 };
    char id[16][16];
    for (int i = 0; i < 16; i++) {
        snprintf(id[i], sizeof id[i], "id-%d", i % 15); /* the last one takes the first one's id */
        ask[i] = (struct ask){ .c = &c, .what = ASK_CREATE, .id = id[i], .deadline_ms = soon() };
        task_start(run_ask, &ask[i]);
    }
    task_run_ready();
    for (int i = 0; i < 16; i++) assert_false(ask[i].done); /* nothing is acknowledged before the commit */
    assert_int_equal(count_(&other), 0);
    c.ops->flush(c.self);
    assert_int_equal(count_(&other), 15);
    task_run_ready();
    for (int i = 0; i < 16; i++) assert_true(ask[i].done && ask[i].ok && ask[i].res.found == (i == 15));
    store_embedded_close(c.self);
    store_embedded_close(other.self);
}

static enum store_verdict make_too_much(void *ctx, struct bytes doc, struct buf *out)
{
    (void)ctx, (void)doc;
    buf_append(out, "", (size_t)1 << 40); /* refused before a byte is read */
    return STORE_WRITE;
}

static void one_failing_write_does_not_spoil_the_round(void **state)
{
    (void)state;
    struct store_case c = fresh(2);
    create_(&c, "a", BYTES_LITERAL("{}"), LONG_MS);
    struct ask ask[] = {
        { .c = &c, .what = ASK_UPDATE, .id = "a", .edit = make_too_much, .deadline_ms = soon() },
        { .c = &c, .what = ASK_CREATE, .id = "b", .deadline_ms = soon() },
        { .c = &c, .what = ASK_CREATE, .id = "c", .deadline_ms = soon() }, /* over the limit */
        { .c = &c, .what = ASK_DELETE, .id = "b", .deadline_ms = soon() },
        { .c = &c, .what = ASK_CREATE, .id = "d", .deadline_ms = soon() },
    };
    for (int i = 0; i < 5; i++) task_start(run_ask, &ask[i]);
    one_round(&c);
    assert_true(ask[0].done && !ask[0].ok && ask[0].err.kind == ERR_INTERNAL);
    assert_true(ask[1].ok && ask[1].res.changed);
    assert_true(ask[2].done && !ask[2].ok && ask[2].err.kind == ERR_FULL);
    assert_true(ask[3].ok && ask[3].res.found);
    assert_true(ask[4].ok && ask[4].res.changed);
    assert_holds(&c, "a", BYTES_LITERAL("{}"));
    assert_false(is_there(&c, "b"));
    assert_true(is_there(&c, "d"));
    store_embedded_close(c.self);
}

static void a_task_that_gave_up_is_not_in_the_round(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    struct ask gone = { .c = &c, .what = ASK_CREATE, .id = "gone", .deadline_ms = 1050 };
    struct ask stays = { .c = &c, .what = ASK_CREATE, .id = "stays", .deadline_ms = 9000 };
    clock_set(-1, 1000);
    task_start(run_ask, &gone);
    task_start(run_ask, &stays);
    task_run_ready();
    task_expire(1060);
    task_run_ready();
    assert_true(gone.done && !gone.ok && gone.err.kind == ERR_UNAVAILABLE);
    one_round(&c);
    assert_true(stays.done && stays.ok);
    clock_set(-1, -1);
    assert_false(is_there(&c, "gone"));
    assert_true(is_there(&c, "stays"));
    store_embedded_close(c.self);
}

static void a_write_past_its_deadline_is_not_done(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    struct store_result res;
    struct err e = { 0 };
    struct ask late = { .c = &c, .what = ASK_CREATE, .id = "late", .deadline_ms = 1050 };
    clock_set(-1, 1000);
    task_start(run_ask, &late);
    task_run_ready();
    clock_set(-1, 1060);
    one_round(&c);
    assert_true(late.done && !late.ok && late.err.kind == ERR_UNAVAILABLE);
    assert_false(
        c.ops->create(c.self, "late", BYTES_LITERAL("{}"), TERMS(LONG_MS), 1060, &res, &e)); /* and without a task */
    assert_int_equal(e.kind, ERR_UNAVAILABLE);
    clock_set(-1, -1);
    assert_false(is_there(&c, "late"));
    store_embedded_close(c.self);
}

/* Somebody who is not in the queue holds SQLite's lock. */
static void a_round_that_finds_the_file_busy_is_put_off(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    char path[128];
    sqlite3 *other;
    snprintf(path, sizeof path, "%s/sessions.db", dir);
    assert_int_equal(sqlite3_open(path, &other), SQLITE_OK);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    struct ask ask = { .c = &c, .what = ASK_CREATE, .id = "a", .deadline_ms = soon() };
    task_start(run_ask, &ask);
    task_run_ready();
    int64_t begin_ms = clock_mono_ms();
    c.ops->flush(c.self);
    assert_in_range(clock_mono_ms() - begin_ms, 150, 1000); /* bounded: the process has other work */
    assert_true(task_any_ready());                          /* so that the loop does not sleep */
    task_run_ready();
    assert_false(ask.done);
    assert_int_equal(sqlite3_exec(other, "COMMIT", NULL, NULL, NULL), SQLITE_OK);
    one_round(&c);
    assert_true(ask.done && ask.ok);

    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    struct store_result res;
    struct err e = { 0 };
    begin_ms = clock_mono_ms();
    assert_false(c.ops->del(c.self, "a", begin_ms + 300, NULL, &res, &e));
    assert_int_equal(e.kind, ERR_UNAVAILABLE);
    assert_in_range(clock_mono_ms() - begin_ms, 290, 1500);
    sqlite3_close(other);
    assert_true(is_there(&c, "a"));
    store_embedded_close(c.self);
}

static void reads_of_a_round_see_what_was_acknowledged_before(void **state)
{
    (void)state;
    struct store_case c = fresh(0), other = fresh(0);
    struct ask none = { .c = &c, .what = ASK_READ, .id = "a", .deadline_ms = soon() }, some = none;
    task_start(run_ask, &none);
    one_round(&c);
    assert_true(none.ok && !none.res.found);
    create_(&other, "a", BYTES_LITERAL("{}"), LONG_MS);
    task_start(run_ask, &some); /* asked in a later round */
    one_round(&c);
    assert_true(some.ok && some.res.found);

    struct ask write = { .c = &c, .what = ASK_CREATE, .id = "b", .deadline_ms = soon() };
    struct ask read = { .c = &c, .what = ASK_READ, .id = "b", .deadline_ms = soon() }, again = read;
    task_start(run_ask, &read); /* its round's snapshot must not outlive the write */
    task_start(run_ask, &write);
    one_round(&c);
    assert_true(write.ok && !read.res.found);
    task_start(run_ask, &again);
    one_round(&c);
    assert_true(again.res.found);
    store_embedded_close(c.self);
    store_embedded_close(other.self);
}

/* ---- Expiry and limits --------------------------------------------------------------------------------------- */

static void the_limit_counts_live_sessions(void **state)
{
    (void)state;
    struct store_case c = fresh(3);
    struct store_result res;
    struct err e = { 0 };
    clock_set(1000000, -1);
    create_(&c, "a", BYTES_LITERAL("{}"), 1000);
    create_(&c, "b", BYTES_LITERAL("{}"), LONG_MS);
    create_(&c, "c", BYTES_LITERAL("{}"), LONG_MS);
    assert_false(c.ops->create(c.self, "d", BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e));
    assert_int_equal(e.kind, ERR_FULL);
    assert_true(create_(&c, "b", BYTES_LITERAL("{}"), LONG_MS).found); /* a taken id needs no room */
    clock_set(1001001, -1);                                            /* "a" expires and makes way */
    assert_true(create_(&c, "d", BYTES_LITERAL("{}"), LONG_MS).changed);
    assert_false(c.ops->create(c.self, "a", BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e));
    delete_(&c, "b");
    assert_true(create_(&c, "a", BYTES_LITERAL("{}"), LONG_MS).changed);
    store_embedded_close(c.self);
}

static void a_process_without_a_limit_does_not_confuse_the_count(void **state)
{
    (void)state;
    struct store_case limited = fresh(3), unlimited = fresh(0);
    struct store_result res;
    struct err e = { 0 };
    create_(&limited, "a", BYTES_LITERAL("{}"), LONG_MS);
    create_(&unlimited, "b", BYTES_LITERAL("{}"), LONG_MS);
    create_(&unlimited, "c", BYTES_LITERAL("{}"), LONG_MS);
    assert_false(limited.ops->create(limited.self, "d", BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e));
    delete_(&unlimited, "a");
    assert_true(create_(&limited, "d", BYTES_LITERAL("{}"), LONG_MS).changed);
    assert_false(limited.ops->create(limited.self, "e", BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e));
    store_embedded_close(limited.self);
    store_embedded_close(unlimited.self);
}

#define LIMIT 100

static void *open_at_limit(void)
{
    return open_limited(LIMIT);
}

static int create_until_full(struct store_case *c, const char *id, int n)
{
    for (int i = 0; i < LIMIT; i++) {
        char each[80];
        struct store_result res;
        struct err e = { 0 };
        snprintf(each, sizeof each, "%s-%d-%d", id, n, i);
        if (c->ops->create(c->self, each, BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e)) continue;
        return e.kind == ERR_FULL ? 0 : 1;
    }
    return 2;
}

static void the_limit_is_exact_among_processes(void **state)
{
    (void)state;
    struct store_case c = fresh(LIMIT);
    c.open = open_at_limit;
    run_writers(&c, create_until_full, "id");
    assert_int_equal(count_(&c), LIMIT);
    store_embedded_close(c.self);
}

static enum store_verdict same_again(void *ctx, struct bytes doc, struct buf *out)
{
    (void)ctx;
    buf_add(out, doc);
    return STORE_WRITE;
}

static void housekeeping_purges_in_steps(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    int64_t purged;
    bool more;
    struct err e = { 0 };
    clock_set(1000000, -1);
    for (int i = 0; i < 25; i++) {
        char id[16];
        snprintf(id, sizeof id, "id-%d", i);
        create_(&c, id, BYTES_LITERAL("{}"), i < 20 ? 86400000 : 3 * 86400000);
    }
    clock_set(1000000 + 60000, -1);
    update_(&c, "id-0", same_again, NULL, 86400000); /* prolonged within a purge step */
    clock_set(1000000 + 86400000 + 1, -1);
    assert_int_equal(count_(&c), 6); /* exact to the millisecond, whenever the others are purged */
    assert_true(is_there(&c, "id-0"));
    clock_set(1000000 + 2 * 86400000, -1);
    must(store_embedded_housekeep(c.self, 8, &purged, &more, &e), &e);
    assert_true(purged == 8 && more);
    must(store_embedded_housekeep(c.self, 8, &purged, &more, &e), &e);
    assert_true(purged == 8 && more);
    must(store_embedded_housekeep(c.self, 8, &purged, &more, &e), &e);
    assert_true(purged == 4 && !more);
    must(store_embedded_housekeep(c.self, 8, &purged, &more, &e), &e);
    assert_true(purged == 0 && !more);
    assert_int_equal(count_(&c), 5);
    store_embedded_close(c.self);
}

static void a_step_of_purging_grows_while_it_takes_no_time(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    int64_t purged, last = 0, all = 0;
    bool more = true;
    struct err e = { 0 };
    clock_set(1000000, 1000); /* stands still: every step takes 0 ms */
    for (int i = 0; i < 2000; i++) {
        char id[16];
        snprintf(id, sizeof id, "id-%d", i);
        create_(&c, id, BYTES_LITERAL("{}"), 1000);
    }
    clock_set(1000000 + 2000, 1000);
    for (int step = 0; more; step++) {
        must(store_embedded_housekeep(c.self, 200, &purged, &more, &e), &e);
        assert_true(step == 0 ? purged < 100 : purged >= last || !more); /* begins with care */
        assert_in_range(purged, 0, 200);
        assert_int_equal(store_embedded_held_us(c.self), 0);
        last = more ? purged : last;
        all += purged;
    }
    assert_int_equal(all, 2000);
    assert_int_equal(last, 200);
    store_embedded_close(c.self);
}

/* --- flushes while this process has the turn: SQLite's files with a look at xSync --- */

struct queue { /* the file sessions.turns, as test_turns.c knows it */
    char head[128];
    volatile uint32_t serving;
    struct {
        _Alignas(64) volatile uint64_t claim;
    } place[1024];
};

static sqlite3_vfs watched_files;
static sqlite3_io_methods watched_methods[2]; /* of databases, which are locked and mapped; of their WALs */
static int (*real_sync)(sqlite3_file *file, int flags);
static struct queue *queue;
static int own_place = -1;
static int flushes_in_turn;

static bool is_turn_of(int place)
{
    return place >= 0 && queue->place[place].claim == ((uint64_t)2 << 32 | queue->serving);
}

static void (*meanwhile)(void); /* what happens while this process waits for a WAL's flush, and not in its turn */

static int watched_sync(sqlite3_file *file, int flags)
{
    void (*happens)(void) = meanwhile;
    if (happens != NULL && file->pMethods == &watched_methods[1] && !is_turn_of(own_place)) {
        meanwhile = NULL;
        happens();
        meanwhile = happens;
    }
    flushes_in_turn += is_turn_of(own_place);
    return real_sync(file, flags);
}

static int watched_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags)
{
    sqlite3_vfs *real = vfs->pAppData;
    int rc = real->xOpen(real, name, file, flags, out_flags);
    if (rc != SQLITE_OK || file->pMethods == NULL) return rc;
    sqlite3_io_methods *methods = &watched_methods[(flags & SQLITE_OPEN_MAIN_DB) == 0];
    real_sync = file->pMethods->xSync;
    *methods = *file->pMethods;
    methods->xSync = watched_sync;
    file->pMethods = methods;
    return rc;
}

/* In a transaction, so it is our turn. */
static bool find_own_place(void *ctx, sqlite3 *db, int64_t now_ms, struct err *e)
{
    (void)ctx, (void)db, (void)now_ms, (void)e;
    for (int n = 0; n < 1024; n++)
        if (is_turn_of(n)) own_place = n;
    return true;
}

static void watch_flushes(struct store_case *c)
{
    char path[128];
    struct err e = { 0 };
    snprintf(path, sizeof path, "%s/sessions.turns", dir);
    watched_files = *sqlite3_vfs_find(NULL);
    watched_files.pAppData = sqlite3_vfs_find(NULL);
    watched_files.zName = "watched";
    watched_files.xOpen = watched_open;
    sqlite3_vfs_register(&watched_files, 1);
    c->self = open_store();
    int fd = open(path, O_RDONLY);
    queue = mmap(NULL, sizeof *queue, PROT_READ, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(queue, MAP_FAILED);
    close(fd);
    must(store_embedded_transact(c->self, find_own_place, NULL, soon(), &e), &e);
    assert_true(own_place >= 0);
}

static void stop_watching_flushes(struct store_case *c)
{
    store_embedded_close(c->self);
    sqlite3_vfs_unregister(&watched_files);
    munmap(queue, sizeof *queue);
    own_place = -1;
}

/* The WAL's count of its own beginnings: in its header, big-endian. */
static int wal_beginnings(void)
{
    char path[128];
    unsigned char head[16];
    snprintf(path, sizeof path, "%s/sessions.db-wal", dir);
    int fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, head, sizeof head), sizeof head);
    close(fd);
    return head[12] << 24 | head[13] << 16 | head[14] << 8 | head[15];
}

static struct store_case writer;

static void write_meanwhile(void)
{
    update_(&writer, "a", same_again, NULL, LONG_MS);
}

/* However slow the disk is: a writer that comes while it is waited for goes on, and the WAL as it is. */
static void no_turn_of_the_keeper_waits_for_the_disk(void **state)
{
    (void)state;
    size_t bytes = 1 << 20;
    char *doc = mem_alloc(bytes);
    struct script s = { .verdict = STORE_WRITE, .write = { doc, bytes }, .seen = BUF_INIT(bytes) };
    struct store_case keeper = { .ops = &store_embedded_ops, .open = open_store };
    struct store_result res;
    struct err e = { 0 };
    int64_t purged;
    bool more;
    watch_flushes(&keeper);
    writer = fresh(0);
    create_(&writer, "a", BYTES_LITERAL("{}"), LONG_MS);
    create_(&writer, "b", s.write, LONG_MS);
    for (int i = 0; file_bytes("sessions.db-wal") < 66 << 20; i++) {
        memset(doc, i, bytes); /* pages that do not change are not written */
        must(writer.ops->update(writer.self, "b", follow_script, &s, TERMS(LONG_MS), soon(), &res, &e), &e);
    }
    int beginnings = wal_beginnings();
    meanwhile = write_meanwhile;
    must(store_embedded_housekeep(keeper.self, 8, &purged, &more, &e), &e);
    assert_int_equal(flushes_in_turn, 0);
    assert_int_equal(wal_beginnings(), beginnings);
    meanwhile = NULL;
    /* The pause has its end, however long the disk takes; what was not done in it is tried again. */
    for (int64_t until_ms = soon(); wal_beginnings() == beginnings && clock_mono_ms() < until_ms;) {
        must(store_embedded_housekeep(keeper.self, 8, &purged, &more, &e), &e);
        assert_int_equal(flushes_in_turn, 0);
        write_meanwhile();
    }
    assert_int_equal(wal_beginnings(), beginnings + 1);
    buf_done(&s.seen);
    free(doc);
    store_embedded_close(writer.self);
    stop_watching_flushes(&keeper);
}

/* Writers without a pause never leave the WAL wholly copied, so that it would grow for ever by itself. */
static void housekeeping_bounds_the_wal(void **state)
{
    (void)state;
    char doc[60000];
    int64_t purged, largest = 0, housekeeping = 0;
    bool more;
    struct err e = { 0 };
    pid_t pid[2];
    memset(doc, 'x', sizeof doc);
    for (int n = 0; n < 2; n++) {
        pid[n] = fork();
        if (pid[n] != 0) continue;
        struct store_case c = { .ops = &store_embedded_ops, .self = open_store() };
        struct script s = { .verdict = STORE_WRITE, .write = { doc, sizeof doc }, .seen = BUF_INIT(sizeof doc) };
        struct store_result res;
        const char *id = n == 0 ? "a" : "b";
        if (c.self == NULL || !c.ops->create(c.self, id, s.write, TERMS(LONG_MS), soon(), &res, &e)) _exit(1);
        for (int i = 0; i < 2000; i++) {
            memset(doc, i, sizeof doc); /* pages that do not change are not written */
            if (!c.ops->update(c.self, id, follow_script, &s, TERMS(LONG_MS), soon(), &res, &e)) _exit(2);
        }
        store_embedded_close(c.self);
        _exit(0);
    }
    struct store_case c = fresh(0);
    for (int running = 2, status; running > 0; housekeeping++) {
        must(store_embedded_housekeep(c.self, 8, &purged, &more, &e), &e);
        if (file_bytes("sessions.db-wal") > largest) largest = file_bytes("sessions.db-wal");
        usleep(10000); /* as a housekeeper pauses */
        while (running > 0 && waitpid(-1, &status, WNOHANG) > 0) {
            assert_int_equal(status, 0);
            running--;
        }
    }
    print_message("           WAL at most %" PRId64 " MiB of 240 MB written, housekeeping %" PRId64 " times\n",
                  largest >> 20, housekeeping);
    assert_true(largest < 180 << 20); /* left alone it grows to 240 */
    store_embedded_close(c.self);
}

/* Where nobody keeps house a writer begins the WAL again, or it would grow until the disk is full. */
static void a_writer_bounds_the_wal_by_itself(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    size_t bytes = 1 << 20;
    char *doc = mem_alloc(bytes);
    struct script s = { .verdict = STORE_WRITE, .write = { doc, bytes }, .seen = BUF_INIT(bytes) };
    struct store_result res;
    struct err e = { 0 };
    create_(&c, "a", s.write, LONG_MS);
    for (int i = 0; i < 350; i++) {
        memset(doc, i, bytes); /* pages that do not change are not written */
        must(c.ops->update(c.self, "a", follow_script, &s, TERMS(LONG_MS), soon(), &res, &e), &e);
    }
    assert_in_range(file_bytes("sessions.db-wal"), 200 << 20, 280 << 20);
    buf_done(&s.seen);
    free(doc);
    store_embedded_close(c.self);
}

/* ---- Files --------------------------------------------------------------------------------------------------- */

static void all_files_are_private(void **state)
{
    (void)state;
    mode_t before = umask(0);
    struct store_case c = fresh(0);
    umask(before);
    create_(&c, "a", BYTES_LITERAL("{}"), LONG_MS);
    static const char *const names[] = { "sessions.db", "sessions.db-wal", "sessions.db-shm", "sessions.lock",
                                         "sessions.turns" };
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[128];
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, names[i]);
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_mode & 07777, 0600);
    }
    store_embedded_close(c.self);
}

static void a_folder_that_cannot_be_used_is_named(void **state)
{
    (void)state;
    struct err e = { 0 };
    struct store_embedded_options o = { .dir = "/nowhere/at/all" };
    assert_null(store_embedded_open(&o, &e));
    assert_int_equal(e.kind, ERR_INPUT);
    assert_string_equal(e.text, "STATE_DIR=/nowhere/at/all: No such file or directory");
    o.dir = "/dev/null";
    assert_null(store_embedded_open(&o, &e));
    assert_string_equal(e.text, "STATE_DIR=/dev/null: Not a directory");
}

static void a_newer_schema_is_refused_and_left_alone(void **state)
{
    (void)state;
    char path[128];
    sqlite3 *db;
    struct err e = { 0 };
    struct store_embedded_options o = { .dir = dir };
    store_embedded_close(fresh(0).self);
    snprintf(path, sizeof path, "%s/sessions.db", dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "PRAGMA user_version = 99", NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    assert_null(store_embedded_open(&o, &e));
    assert_int_equal(e.kind, ERR_INPUT);
    assert_non_null(strstr(e.text, "newer version"));
    assert_int_equal(files_like("sessions.db.damaged-*"), 0);
}

static int only_open(struct store_case *c, const char *id, int n)
{
    struct store_result res;
    struct err e;
    char each[32];
    snprintf(each, sizeof each, "%s-%d", id, n);
    return c->ops->create(c->self, each, BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e) && !res.found ? 0 : 1;
}

/* The file as the first version made it. */
static void a_file_of_the_first_schema_is_taken_over(void **state)
{
    (void)state;
    char path[128];
    sqlite3 *db;
    snprintf(path, sizeof path, "%s/sessions.db", dir);
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    const char *first = "CREATE TABLE sessions (id TEXT NOT NULL UNIQUE, expires_ms INTEGER NOT NULL,"
                        " purge_ms INTEGER NOT NULL, doc BLOB NOT NULL);"
                        "CREATE INDEX sessions_purge ON sessions (purge_ms);"
                        "CREATE TABLE totals (rows INTEGER); INSERT INTO totals VALUES (NULL);"
                        "INSERT INTO sessions VALUES ('a', 1 << 60, 1 << 60, CAST('{\"userId\":\"anna\"}' AS BLOB)),"
                        " ('b', 1 << 60, 1 << 60, CAST('{\"userId\":5}' AS BLOB)),"
                        " ('c', 1 << 60, 1 << 60, CAST('no json' AS BLOB)), ('d', 1 << 60, 1 << 60, x'ff00'),"
                        " ('e', 1 << 60, 1 << 60, CAST('{\"userId\":\"\"}' AS BLOB));"
                        "PRAGMA user_version = 1";
    assert_int_equal(sqlite3_exec(db, first, NULL, NULL, NULL), SQLITE_OK);
    sqlite3_close(db);
    struct store_case c = fresh(0);
    struct store_heal heal = { 0 };
    struct err e = { 0 };
    assert_int_equal(sessions_of(&c, "anna"), 1);
    must(c.ops->heal(c.self, &heal, soon(), &e), &e); /* finds nothing to repair */
    assert_true(heal.done && heal.sessions == 5 && heal.entered == 0 && heal.removed == 0);
    assert_holds(&c, "c", BYTES_LITERAL("no json"));
    delete_(&c, "a");
    assert_int_equal(sessions_of(&c, "anna"), 0);
    store_embedded_close(c.self);
}

static void gone_marks_are_purged_after_a_day(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    struct store_terms chosen = { .ttl_ms = LONG_MS };
    struct store_result res;
    struct err e = { 0 };
    char id[16];
    int64_t purged;
    bool more;
    clock_set(1000000, -1);
    for (int i = 0; i < 5; i++) {
        snprintf(id, sizeof id, "id-%d", i);
        create_(&c, id, BYTES_LITERAL("{}"), LONG_MS);
        delete_(&c, id);
    }
    clock_set(1000000 + STORE_GONE_MS - 1, -1);
    must(c.ops->create(c.self, "id-0", BYTES_LITERAL("{}"), &chosen, soon(), &res, &e), &e);
    assert_true(res.gone);
    must(store_embedded_housekeep(c.self, 2, &purged, &more, &e), &e);
    assert_false(more);
    clock_set(1000000 + STORE_GONE_MS, -1);
    for (int step = 0; step < 2; step++) {
        must(store_embedded_housekeep(c.self, 2, &purged, &more, &e), &e);
        assert_true(more && purged == 0);
    }
    must(store_embedded_housekeep(c.self, 2, &purged, &more, &e), &e);
    assert_false(more);
    must(c.ops->create(c.self, "id-0", BYTES_LITERAL("{}"), &chosen, soon(), &res, &e), &e);
    assert_true(res.changed);
    clock_set(-1, -1);
    store_embedded_close(c.self);
}

static void a_damaged_file_is_set_aside_once(void **state)
{
    (void)state;
    struct store_case c = fresh(0);
    create_(&c, "before", BYTES_LITERAL("{}"), LONG_MS);
    store_embedded_close(c.self);
    write_at("sessions.db", 0, "this is no database any more", 28);
    write_at("sessions.db-wal", 0, "nor is this a log", 17);

    c = (struct store_case){ .ops = &store_embedded_ops, .open = open_store, .self = NULL };
    run_writers(&c, only_open, "after"); /* start together, begin anew, all in the same file */
    assert_int_equal(files_like("sessions.db.damaged-*Z"), 1);
    assert_int_equal(files_like("sessions.db.damaged-*Z-wal"), 1);
    assert_int_equal(count_(&c), WRITERS);
    assert_false(is_there(&c, "before"));
    store_embedded_close(c.self);
}

/* Fills the store beyond what is looked through at every start, and overwrites pages in its middle. */
static void damage_a_large_file(void)
{
    struct store_case c = fresh(0);
    char *doc = mem_alloc(1 << 20);
    memset(doc, 'x', 1 << 20);
    create_(&c, "small", BYTES_LITERAL("{}"), LONG_MS);
    for (int i = 0; i < 12; i++) {
        char id[16];
        snprintf(id, sizeof id, "big-%d", i);
        create_(&c, id, (struct bytes){ doc, 1 << 20 }, LONG_MS);
    }
    store_embedded_close(c.self);
    assert_in_range(file_bytes("sessions.db"), 12 << 20, 20 << 20);
    memset(doc, 0xee, 1 << 20);
    for (off_t page = 1; page < 5; page++) write_at("sessions.db", page * 4096, doc, 4096); /* the roots */
    free(doc);
}

static void damage_met_while_serving_is_reported_and_set_aside_at_the_next_start(void **state)
{
    (void)state;
    struct store_result res;
    struct err e = { 0 };
    struct buf doc = BUF_INIT(16 << 20);
    struct store_embedded_options o = { .dir = dir };
    damage_a_large_file();
    struct store_case c = fresh(0); /* its first page is in order */
    assert_false(c.ops->get(c.self, "small", 0, soon(), &doc, &res, &e));
    assert_int_equal(e.kind, ERR_UNAVAILABLE); /* nobody is logged out */
    assert_false(c.ops->create(c.self, "new", BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e));
    assert_int_equal(e.kind, ERR_UNAVAILABLE);

    assert_int_equal(file_bytes("sessions.lock"), 1);
    struct store_embedded *another = store_embedded_open(&o, &e); /* not the first: takes the file as it is */
    assert_non_null(another);
    assert_int_equal(files_like("sessions.db.damaged-*"), 0); /* never under the hands of others */
    store_embedded_close(another);
    store_embedded_close(c.self);

    c = fresh(0);
    assert_int_equal(files_like("sessions.db.damaged-*Z"), 1);
    assert_int_equal(file_bytes("sessions.lock"), 0);
    create_(&c, "new", BYTES_LITERAL("{}"), LONG_MS);
    store_embedded_close(c.self);
    buf_done(&doc);
}

static void a_damaged_file_in_use_is_not_set_aside(void **state)
{
    (void)state;
    struct store_embedded_options o = { .dir = dir };
    struct err e = { 0 };
    int said[2];
    char byte, zeros[65536] = { 0 };
    assert_int_equal(pipe(said), 0);
    pid_t user = fork();
    if (user == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* a failed assertion must not leave it behind */
        void *self = open_store();
        if (self == NULL || write(said[1], "!", 1) != 1) _exit(1);
        pause();
    }
    assert_int_equal(read(said[0], &byte, 1), 1);
    write_at("sessions.db", 0, "this is no database any more", 28);
    write_at("sessions.db-wal", 0, zeros, sizeof zeros);
    assert_null(store_embedded_open(&o, &e));
    assert_int_equal(e.kind, ERR_UNAVAILABLE);
    assert_non_null(strstr(e.text, "no other process uses it"));
    assert_int_equal(files_like("sessions.db.damaged-*"), 0);
    kill(user, SIGKILL);
    waitpid(user, NULL, 0);
    store_embedded_close(fresh(0).self);
    assert_int_equal(files_like("sessions.db.damaged-*Z"), 1);
    close(said[0]);
    close(said[1]);
}

/* ---- Kills and a full disk ----------------------------------------------------------------------------------- */

/* Writes until killed and reports each acknowledged write: cell `n`, value `v`. */
struct report {
    int n, v;
};

static enum store_verdict set_cell(void *ctx, struct bytes doc, struct buf *out)
{
    const struct report *r = ctx;
    buf_add(out, doc);
    memcpy(out->data + (size_t)r->n * sizeof r->v, &r->v, sizeof r->v);
    return STORE_WRITE;
}

static void write_until_killed(int fd, int n, int v)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    struct store_case c = { .ops = &store_embedded_ops, .self = open_store() };
    struct store_result res;
    struct err e = { 0 };
    if (c.self == NULL) _exit(1);
    for (;; v++) {
        struct report r = { n, v };
        char id[32];
        if (!c.ops->update(c.self, "cells", set_cell, &r, TERMS(LONG_MS), soon(), &res, &e) || !res.found) _exit(2);
        snprintf(id, sizeof id, "made-%d-%d", n, v);
        if (!c.ops->create(c.self, id, BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e) || res.found) _exit(3);
        if (write(fd, &r, sizeof r) != sizeof r) _exit(4); /* acknowledged: both must be there from now on */
    }
}

static void start_writer(int reports[2], int n, int v, pid_t *pid)
{
    *pid = fork();
    if (*pid != 0) return;
    close(reports[0]);
    write_until_killed(reports[1], n, v);
}

static void nothing_acknowledged_is_lost_by_kills(void **state)
{
    (void)state;
    enum { ALL = 3, KILLS = 60 };
    int reports[2], known[ALL] = { 0 }, status;
    int acknowledged = 0;
    pid_t pid[ALL];
    char cells[ALL * sizeof(int)] = { 0 };
    struct store_case c = fresh(0);
    create_(&c, "cells", (struct bytes){ cells, sizeof cells }, LONG_MS);
    store_embedded_close(c.self);
    assert_int_equal(pipe(reports), 0);
    for (int n = 0; n < ALL; n++) start_writer(reports, n, 1, &pid[n]);
    for (int kills = 0; kills < KILLS; kills++) {
        int victim = kills % ALL;
        int64_t until_us = clock_mono_us() + 5000 + rand() % 10000;
        while (clock_mono_us() < until_us) usleep(200);
        kill(pid[victim], SIGKILL);
        waitpid(pid[victim], &status, 0);
        assert_true(WIFSIGNALED(status)); /* it had not given up by itself */
        struct report r;
        fcntl(reports[0], F_SETFL, O_NONBLOCK);
        while (read(reports[0], &r, sizeof r) == sizeof r) {
            known[r.n] = r.v;
            acknowledged++;
        }
        start_writer(reports, victim, known[victim] + 1000000, &pid[victim]); /* ids that no predecessor has used */
    }
    for (int n = 0; n < ALL; n++) {
        kill(pid[n], SIGKILL);
        waitpid(pid[n], &status, 0);
    }
    struct report r;
    struct buf doc = BUF_INIT(1024);
    struct store_result res;
    struct err e = { 0 };
    c = fresh(0);
    while (read(reports[0], &r, sizeof r) == sizeof r) {
        char id[32];
        known[r.n] = r.v;
        snprintf(id, sizeof id, "made-%d-%d", r.n, r.v);
        assert_true(is_there(&c, id));
        acknowledged++;
    }
    must(c.ops->get(c.self, "cells", 0, soon(), &doc, &res, &e), &e);
    for (int n = 0; n < ALL; n++) {
        int held;
        memcpy(&held, doc.data + (size_t)n * sizeof held, sizeof held);
        assert_in_range(held, known[n], known[n] + 1000000); /* the last one may be committed, not yet reported */
    }
    int64_t made = count_(&c) - 1;
    print_message("           %d kills, %d acknowledged, %" PRId64 " stored\n", KILLS, acknowledged, made);
    assert_in_range(made, acknowledged, acknowledged + KILLS + ALL); /* each victim may have had one on its way */
    assert_true(acknowledged > KILLS);
    store_embedded_close(c.self);
    buf_done(&doc);
    close(reports[0]);
    close(reports[1]);
}

static void a_full_disk_fails_writes_and_nothing_else(void **state)
{
    (void)state;
    if (mount("none", dir, "tmpfs", 0, "size=1m") != 0) {
        print_message("           skipped: cannot mount a small tmpfs\n");
        skip();
    }
    struct store_case c = fresh(0);
    struct store_result res;
    struct err e = { 0 };
    char doc[20000], id[16];
    int held = 0;
    memset(doc, 'x', sizeof doc);
    for (; held < 1000; held++) {
        snprintf(id, sizeof id, "id-%d", held);
        if (!c.ops->create(c.self, id, (struct bytes){ doc, sizeof doc }, TERMS(LONG_MS), soon(), &res, &e)) break;
    }
    print_message("           %d sessions, then: %s\n", held, e.text);
    bool kinds = e.kind == ERR_UNAVAILABLE, reads = true;
    for (int i = 0; i < held; i++) {
        snprintf(id, sizeof id, "id-%d", i);
        reads = reads && is_there(&c, id);
    }
    bool absent = !is_there(&c, "id-x");
    bool ready = true; /* a little may still go where the last write did not */
    for (int i = 0; i < 1000 && ready; i++) ready = store_embedded_ready(c.self, soon(), &e);
    write_at("keep", 0, "", 0);
    store_embedded_close(c.self);
    umount2(dir, MNT_DETACH);
    assert_true(held > 5);
    assert_true(kinds);
    assert_true(reads);
    assert_true(absent);
    assert_false(ready);
}

#define OWN_DIR(test) cmocka_unit_test_setup_teardown(test, make_dir, remove_dir)

int main(void)
{
    const struct CMUnitTest shared_tests[] = { STORE_CASES };
    const struct CMUnitTest tests[] = {
        OWN_DIR(a_round_is_committed_as_one),
        OWN_DIR(one_failing_write_does_not_spoil_the_round),
        OWN_DIR(a_task_that_gave_up_is_not_in_the_round),
        OWN_DIR(a_write_past_its_deadline_is_not_done),
        OWN_DIR(a_round_that_finds_the_file_busy_is_put_off),
        OWN_DIR(reads_of_a_round_see_what_was_acknowledged_before),
        OWN_DIR(the_limit_counts_live_sessions),
        OWN_DIR(a_process_without_a_limit_does_not_confuse_the_count),
        OWN_DIR(the_limit_is_exact_among_processes),
        OWN_DIR(housekeeping_purges_in_steps),
        OWN_DIR(a_step_of_purging_grows_while_it_takes_no_time),
        OWN_DIR(no_turn_of_the_keeper_waits_for_the_disk),
        OWN_DIR(housekeeping_bounds_the_wal),
        OWN_DIR(a_writer_bounds_the_wal_by_itself),
        OWN_DIR(all_files_are_private),
        OWN_DIR(a_folder_that_cannot_be_used_is_named),
        OWN_DIR(a_newer_schema_is_refused_and_left_alone),
        OWN_DIR(a_file_of_the_first_schema_is_taken_over),
        OWN_DIR(gone_marks_are_purged_after_a_day),
        OWN_DIR(a_damaged_file_is_set_aside_once),
        OWN_DIR(damage_met_while_serving_is_reported_and_set_aside_at_the_next_start),
        OWN_DIR(a_damaged_file_in_use_is_not_set_aside),
        OWN_DIR(nothing_acknowledged_is_lost_by_kills),
        OWN_DIR(a_full_disk_fails_writes_and_nothing_else),
    };
    int failed = cmocka_run_group_tests_name("store cases", shared_tests, open_shared, close_shared);
    return failed + cmocka_run_group_tests_name("embedded", tests, NULL, NULL);
}
