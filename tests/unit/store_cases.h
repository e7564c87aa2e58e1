/* store_cases.h: what every backend must do, written against store_backend.h alone. A backend's test gives a
 * `struct store_case` as the group's state and runs STORE_CASES among its own tests. */
#ifndef HYPERPAGE_STORE_CASES_H
#define HYPERPAGE_STORE_CASES_H

#include "store_backend.h"

#include "clock.h"
#include "mem.h"
#include "test.h"

#include <inttypes.h>
#include <sys/wait.h>
#include <unistd.h>

struct store_case {
    const struct store_ops *ops;
    void *self;
    void *(*open)(void); /* another one of the same store, for a process of its own; NULL if that fails */
};

#define LONG_MS 3600000

static int64_t soon(void)
{
    return clock_mono_ms() + 5000;
}

/* An id that no other case or run uses. */
static const char *new_id(void)
{
    static char id[64];
    static int n;
    snprintf(id, sizeof id, "case-%d-%" PRId64 "-%d", (int)getpid(), clock_mono_us(), n++);
    return id;
}

static void must(bool ok, const struct err *e)
{
    if (!ok) print_error("store: %s\n", e->text);
    assert_true(ok);
}

/* The usual terms: an id that nobody has had before. */
#define TERMS(life_ms) (&(struct store_terms){ .ttl_ms = (life_ms), .minted = true })

static struct store_result create_(struct store_case *c, const char *id, struct bytes doc, int64_t ttl_ms)
{
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->create(c->self, id, doc, TERMS(ttl_ms), soon(), &res, &e), &e);
    return res;
}

static struct store_result update_(struct store_case *c, const char *id, store_edit_fn *edit, void *ctx, int64_t ttl_ms)
{
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->update(c->self, id, edit, ctx, TERMS(ttl_ms), soon(), &res, &e), &e);
    return res;
}

static struct store_result delete_(struct store_case *c, const char *id)
{
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->del(c->self, id, soon(), NULL, &res, &e), &e);
    return res;
}

static bool is_there(struct store_case *c, const char *id)
{
    struct buf doc = BUF_INIT(16 << 20);
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->get(c->self, id, 0, soon(), &doc, &res, &e), &e);
    buf_done(&doc);
    return res.found;
}

static void assert_holds(struct store_case *c, const char *id, struct bytes expected)
{
    struct buf doc = BUF_INIT(16 << 20);
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->get(c->self, id, 0, soon(), &doc, &res, &e), &e);
    assert_true(res.found);
    assert_int_equal(doc.len, expected.len);
    assert_memory_equal(buf_text(&doc), expected.at, expected.len);
    buf_done(&doc);
}

static void wait_until_gone(struct store_case *c, const char *id)
{
    int64_t give_up_ms = soon();
    while (is_there(c, id)) {
        assert_true(clock_mono_ms() < give_up_ms);
        usleep(1000);
    }
}

/* An edit that does as its context says, and remembers what it was shown. */
struct script {
    enum store_verdict verdict;
    struct bytes write;
    struct buf seen;
    int calls;
};

static enum store_verdict follow_script(void *ctx, struct bytes doc, struct buf *out)
{
    struct script *s = ctx;
    s->calls++;
    buf_reset(&s->seen);
    buf_add(&s->seen, doc);
    if (s->verdict == STORE_WRITE) buf_add(out, s->write);
    return s->verdict;
}

#define SCRIPT(what, text)                                                                                             \
    {                                                                                                                  \
        .verdict = (what), .write = BYTES_LITERAL(text), .seen = BUF_INIT(16 << 20)                                    \
    }

/* ---- One process --------------------------------------------------------------------------------------------- */

static void what_is_created_reads_back(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    assert_false(is_there(c, id));
    int64_t before_ms = clock_wall_ms();
    struct store_result res = create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS);
    assert_false(res.found);
    assert_true(res.changed);
    if (res.expires_at_ms != 0) assert_in_range(res.expires_at_ms - before_ms, LONG_MS, LONG_MS + 5000);
    assert_holds(c, id, BYTES_LITERAL("{\"a\":1}"));
    delete_(c, id);
}

static void any_bytes_are_kept(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    char all[512];
    for (size_t i = 0; i < sizeof all; i++) all[i] = (char)i;
    struct script s = { .verdict = STORE_WRITE, .write = { all, 511 }, .seen = BUF_INIT(1024) };
    create_(c, id, (struct bytes){ all, sizeof all }, LONG_MS);
    assert_holds(c, id, (struct bytes){ all, sizeof all });
    assert_true(update_(c, id, follow_script, &s, LONG_MS).changed);
    assert_int_equal(s.seen.len, sizeof all);
    assert_memory_equal(s.seen.data, all, sizeof all);
    assert_holds(c, id, (struct bytes){ all, 511 });
    delete_(c, id);
    buf_done(&s.seen);
}

static void a_document_of_1_mb_is_kept(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    const size_t bytes = 1 << 20;
    char *big = mem_alloc(bytes);
    for (size_t i = 0; i < bytes; i++) big[i] = (char)(i * 31 + i / 997);
    create_(c, id, (struct bytes){ big, bytes }, LONG_MS);
    assert_holds(c, id, (struct bytes){ big, bytes });
    struct script s = { .verdict = STORE_WRITE, .write = { big + 1, bytes - 1 }, .seen = BUF_INIT(16 << 20) };
    assert_true(update_(c, id, follow_script, &s, LONG_MS).changed);
    assert_holds(c, id, (struct bytes){ big + 1, bytes - 1 });
    delete_(c, id);
    buf_done(&s.seen);
    free(big);
}

static void a_taken_id_is_not_created_again(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    create_(c, id, BYTES_LITERAL("{\"first\":1}"), LONG_MS);
    struct store_result res = create_(c, id, BYTES_LITERAL("{\"second\":2}"), LONG_MS);
    assert_true(res.found);
    assert_false(res.changed);
    assert_holds(c, id, BYTES_LITERAL("{\"first\":1}"));
    delete_(c, id);
}

static void an_update_writes_what_its_edit_made(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{\"b\":22}");
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS);
    struct store_result res = update_(c, id, follow_script, &s, LONG_MS);
    assert_true(res.found && res.changed);
    assert_string_equal(buf_text(&s.seen), "{\"a\":1}");
    assert_holds(c, id, BYTES_LITERAL("{\"b\":22}"));
    delete_(c, id);
    buf_done(&s.seen);
}

static void an_update_may_keep_or_delete(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script keep = SCRIPT(STORE_KEEP, ""), drop = SCRIPT(STORE_DELETE, "");
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS);
    struct store_result res = update_(c, id, follow_script, &keep, LONG_MS);
    assert_true(res.found && !res.changed);
    assert_holds(c, id, BYTES_LITERAL("{\"a\":1}"));
    res = update_(c, id, follow_script, &drop, LONG_MS);
    assert_true(res.found && res.changed);
    assert_false(is_there(c, id));
    buf_done(&keep.seen);
    buf_done(&drop.seen);
}

static void an_update_of_nothing_asks_nobody(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{}");
    struct store_result res = update_(c, id, follow_script, &s, LONG_MS);
    assert_false(res.found || res.changed);
    assert_int_equal(s.calls, 0);
    assert_false(is_there(c, id));
    buf_done(&s.seen);
}

static void a_deleted_session_stays_gone(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{}");
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS);
    assert_true(delete_(c, id).found);
    assert_false(is_there(c, id));
    assert_false(delete_(c, id).found);
    assert_false(update_(c, id, follow_script, &s, LONG_MS).found);
    assert_int_equal(s.calls, 0);
    assert_false(is_there(c, id));
    buf_done(&s.seen);
}

static void an_expired_session_is_gone_and_stays_gone(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{}");
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), 50);
    wait_until_gone(c, id);
    assert_false(update_(c, id, follow_script, &s, LONG_MS).found);
    assert_int_equal(s.calls, 0);
    assert_false(delete_(c, id).found);
    assert_false(is_there(c, id));
    assert_false(create_(c, id, BYTES_LITERAL("{\"new\":1}"), LONG_MS).found); /* the id is free again */
    assert_holds(c, id, BYTES_LITERAL("{\"new\":1}"));
    delete_(c, id);
    buf_done(&s.seen);
}

static void a_write_prolongs_and_never_shortens(void **state)
{
    struct store_case *c = *state;
    char lasting[64], prolonged[64], clock[64];
    struct script s = SCRIPT(STORE_WRITE, "{\"b\":2}");
    snprintf(lasting, sizeof lasting, "%s", new_id());
    snprintf(prolonged, sizeof prolonged, "%s", new_id());
    snprintf(clock, sizeof clock, "%s", new_id());
    create_(c, lasting, BYTES_LITERAL("{}"), LONG_MS);
    create_(c, prolonged, BYTES_LITERAL("{}"), 2000);
    int64_t before_ms = clock_wall_ms();
    struct store_result res = update_(c, prolonged, follow_script, &s, 4000);
    if (res.expires_at_ms != 0) assert_in_range(res.expires_at_ms - before_ms, 4000, 4000 + 5000);
    update_(c, lasting, follow_script, &s, 2000);
    create_(c, clock, BYTES_LITERAL("{}"), 2100);
    wait_until_gone(c, clock); /* now the short times are over */
    assert_holds(c, lasting, BYTES_LITERAL("{\"b\":2}"));
    assert_holds(c, prolonged, BYTES_LITERAL("{\"b\":2}"));
    delete_(c, lasting);
    delete_(c, prolonged);
    buf_done(&s.seen);
}

static int64_t count_(struct store_case *c)
{
    int64_t n;
    struct err e = { 0 };
    must(c->ops->count(c->self, soon(), &n, &e), &e);
    return n;
}

static void live_sessions_are_counted(void **state)
{
    struct store_case *c = *state;
    char id[4][64];
    int64_t before = count_(c);
    for (int i = 0; i < 4; i++) {
        snprintf(id[i], sizeof id[i], "%s", new_id());
        create_(c, id[i], BYTES_LITERAL("{}"), i == 3 ? 50 : LONG_MS);
    }
    wait_until_gone(c, id[3]);
    assert_int_equal(count_(c), before + 3);
    for (int i = 0; i < 3; i++) delete_(c, id[i]);
    assert_int_equal(count_(c), before);
}

struct seen {
    const char *id;
    int times;
    int64_t expires_at_ms;
    bool same;
};

static void note_seen(void *ctx, const struct store_found *f)
{
    struct seen *s = ctx;
    if (!bytes_is(f->id, s->id)) return;
    s->times++;
    s->expires_at_ms = f->expires_at_ms;
    s->same = f->is_text && bytes_equal(f->doc, BYTES_LITERAL("{\"a\" : 1}"));
}

static struct seen scan_for(struct store_case *c, const char *id)
{
    struct seen s = { .id = id };
    struct store_scan scan = { .each = note_seen, .ctx = &s };
    struct err e = { 0 };
    while (!scan.done) must(c->ops->scan(c->self, &scan, soon(), &e), &e);
    return s;
}

static void a_pass_over_all_sees_what_lives_with_its_end(void **state)
{
    struct store_case *c = *state;
    char id[250][64];
    int64_t now_ms = clock_wall_ms();
    for (int i = 0; i < 250; i++) {
        snprintf(id[i], sizeof id[i], "%s", new_id());
        create_(c, id[i], BYTES_LITERAL("{\"a\" : 1}"), i == 3 ? 50 : LONG_MS);
    }
    wait_until_gone(c, id[3]);
    assert_int_equal(scan_for(c, id[3]).times, 0);
    for (int i = 0; i < 250; i += 83) {
        struct seen s = scan_for(c, id[i]);
        assert_true(s.times >= 1 && s.same);
        assert_true(s.expires_at_ms >= now_ms + LONG_MS - 1000 && s.expires_at_ms <= clock_wall_ms() + LONG_MS);
    }
    delete_(c, id[0]);
    assert_int_equal(scan_for(c, id[0]).times, 0);
    for (int i = 1; i < 250; i++) delete_(c, id[i]);
}

static bool is_gone_(struct store_case *c, const char *id)
{
    bool gone = false;
    struct err e = { 0 };
    must(c->ops->is_gone(c->self, id, soon(), &gone, &e), &e);
    return gone;
}

static void only_what_was_deleted_is_gone(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    assert_false(is_gone_(c, id));
    create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    assert_false(is_gone_(c, id));
    delete_(c, id);
    assert_true(is_gone_(c, id));
}

/* ---- Life, other ids, users ---------------------------------------------------------------------------------- */

/* How long it lives, to within the time that a slow machine takes; 0: it is not there. */
static int64_t life_of(struct store_case *c, const char *id)
{
    struct buf doc = BUF_INIT(16 << 20);
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->get(c->self, id, STORE_ASK_LIFE, soon(), &doc, &res, &e), &e);
    buf_done(&doc);
    return res.found ? res.expires_at_ms - clock_wall_ms() : 0;
}

static void assert_lives(struct store_case *c, const char *id, int64_t life_ms)
{
    assert_in_range(life_of(c, id), life_ms - 5000, life_ms);
}

static struct store_result expire_(struct store_case *c, const char *id, int64_t life_ms, bool only_longer)
{
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->expire(c->self, id, life_ms, only_longer, soon(), &res, &e), &e);
    return res;
}

static void a_life_is_set_exactly_or_only_made_longer(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    assert_false(expire_(c, id, LONG_MS, false).found);
    create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    assert_true(expire_(c, id, LONG_MS / 2, false).changed);
    assert_lives(c, id, LONG_MS / 2);
    struct store_result res = expire_(c, id, LONG_MS / 4, true);
    assert_true(res.found && !res.changed);
    assert_lives(c, id, LONG_MS / 2);
    res = expire_(c, id, LONG_MS * 2, true);
    assert_true(res.changed);
    assert_in_range(res.expires_at_ms - clock_wall_ms(), LONG_MS * 2 - 5000, LONG_MS * 2);
    assert_lives(c, id, LONG_MS * 2);
    assert_holds(c, id, BYTES_LITERAL("{}"));
    expire_(c, id, 50, false);
    wait_until_gone(c, id);
    assert_false(expire_(c, id, LONG_MS, false).found);
}

static void a_write_keeps_to_the_most_that_its_terms_allow(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{\"b\":2}");
    struct store_terms terms = { .ttl_ms = LONG_MS, .most_ms = LONG_MS / 2, .minted = true };
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->create(c->self, id, BYTES_LITERAL("{}"), &terms, soon(), &res, &e), &e);
    assert_lives(c, id, LONG_MS / 2);
    expire_(c, id, LONG_MS * 2, false);
    must(c->ops->update(c->self, id, follow_script, &s, &terms, soon(), &res, &e), &e);
    assert_in_range(res.expires_at_ms - clock_wall_ms(), LONG_MS / 2 - 5000, LONG_MS / 2);
    assert_lives(c, id, LONG_MS / 2);
    terms.most_ms = LONG_MS * 4; /* far away: the usual rules */
    must(c->ops->update(c->self, id, follow_script, &s, &terms, soon(), &res, &e), &e);
    assert_lives(c, id, LONG_MS);
    delete_(c, id);
    buf_done(&s.seen);
}

static void a_gone_id_is_made_again_only_by_who_minted_it(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct store_terms chosen = { .ttl_ms = LONG_MS };
    struct script drop = SCRIPT(STORE_DELETE, "");
    struct store_result res;
    struct err e = { 0 };
    must(c->ops->create(c->self, id, BYTES_LITERAL("{}"), &chosen, soon(), &res, &e), &e);
    assert_true(res.changed && !res.gone);
    must(c->ops->create(c->self, id, BYTES_LITERAL("{}"), &chosen, soon(), &res, &e), &e);
    assert_true(res.found && !res.changed && !res.gone);
    for (int how = 0; how < 2; how++) {
        if (how == 0)
            delete_(c, id);
        else
            assert_true(update_(c, id, follow_script, &drop, LONG_MS).deleted);
        must(c->ops->create(c->self, id, BYTES_LITERAL("{}"), &chosen, soon(), &res, &e), &e);
        assert_true(res.gone && !res.found && !res.changed);
        assert_false(is_there(c, id));
        if (how == 0) create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    }
    buf_done(&drop.seen);
}

static void a_delete_shows_what_it_deleted(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct buf was = BUF_INIT(100);
    struct store_result res;
    struct err e = { 0 };
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS);
    must(c->ops->del(c->self, id, soon(), &was, &res, &e), &e);
    assert_true(res.found);
    assert_string_equal(buf_text(&was), "{\"a\":1}");
    must(c->ops->del(c->self, id, soon(), &was, &res, &e), &e);
    assert_true(!res.found && was.len == 7);
    buf_done(&was);
}

/* Rotates to a new id under this name, and gives the id that came out, or "". */
static void rotate_(struct store_case *c, const char *id, struct script *s, const char *hash, char out[IDS_TEXT_BYTES],
                    struct store_result *res, struct buf *doc)
{
    struct store_rotation r = { .repeated = false };
    struct err e = { 0 };
    snprintf(r.key_hash, sizeof r.key_hash, "%s", hash);
    snprintf(r.new_id, sizeof r.new_id, "%s", new_id());
    buf_reset(doc);
    must(c->ops->rotate(c->self, id, follow_script, s, TERMS(LONG_MS), &r, soon(), doc, res, &e), &e);
    assert_int_equal(r.repeated, res->found && !res->changed && s->verdict == STORE_WRITE);
    snprintf(out, IDS_TEXT_BYTES, "%s", res->found ? r.new_id : "");
}

static void a_rotated_session_goes_on_under_one_new_id(void **state)
{
    struct store_case *c = *state;
    char id[64], first[IDS_TEXT_BYTES], again[IDS_TEXT_BYTES];
    struct script s = SCRIPT(STORE_WRITE, "{\"b\":2}");
    struct store_result res;
    struct buf doc = BUF_INIT(100);
    snprintf(id, sizeof id, "%s", new_id());
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS * 2);
    rotate_(c, id, &s, "name", first, &res, &doc);
    assert_true(res.found && res.changed);
    assert_string_equal(buf_text(&s.seen), "{\"a\":1}");
    assert_string_equal(buf_text(&doc), "{\"b\":2}");
    assert_holds(c, first, BYTES_LITERAL("{\"b\":2}"));
    assert_lives(c, first, LONG_MS * 2); /* what it had left */
    assert_false(is_there(c, id));
    rotate_(c, id, &s, "name", again, &res, &doc);
    assert_true(res.found && !res.changed);
    assert_string_equal(again, first);
    assert_string_equal(buf_text(&doc), "{\"b\":2}");
    assert_int_equal(s.calls, 1);
    rotate_(c, id, &s, "other", again, &res, &doc);
    assert_false(res.found);
    rotate_(c, id, &s, "", again, &res, &doc);
    assert_false(res.found);
    delete_(c, first);
    rotate_(c, id, &s, "name", again, &res, &doc);
    assert_false(res.found);
    buf_done(&doc);
    buf_done(&s.seen);
}

static void a_rotation_that_its_edit_refuses_changes_nothing(void **state)
{
    struct store_case *c = *state;
    char id[64], out[IDS_TEXT_BYTES];
    struct script keep = SCRIPT(STORE_KEEP, "");
    struct store_result res;
    struct buf doc = BUF_INIT(100);
    snprintf(id, sizeof id, "%s", new_id());
    int64_t before = 0, after = 0;
    struct err e = { 0 };
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS);
    must(c->ops->count(c->self, soon(), &before, &e), &e);
    rotate_(c, id, &keep, "name", out, &res, &doc);
    must(c->ops->count(c->self, soon(), &after, &e), &e);
    assert_true(res.found && !res.changed);
    assert_int_equal(before, after);
    assert_holds(c, id, BYTES_LITERAL("{\"a\":1}"));
    delete_(c, id);
    buf_done(&doc);
    buf_done(&keep.seen);
}

/* Counts what it is shown, and says of each that it is the user's. */
static bool count_one(void *ctx, const char *id, struct bytes doc, int64_t expires_at_ms)
{
    (void)id;
    *(int *)ctx += doc.len > 0 && expires_at_ms > clock_wall_ms();
    return true;
}

static int sessions_of(struct store_case *c, const char *user)
{
    int n = 0;
    struct err e = { 0 };
    must(c->ops->list(c->self, user, soon(), count_one, &n, &e), &e);
    return n;
}

static void a_session_is_listed_under_its_user(void **state)
{
    struct store_case *c = *state;
    char id[64];
    struct script s = SCRIPT(STORE_WRITE, "{\"userId\":\"case-b\"}");
    struct store_terms terms = { .ttl_ms = LONG_MS, .minted = true, .announce = true, .user = "case-a" };
    struct store_result res;
    struct err e = { 0 };
    snprintf(id, sizeof id, "%s", new_id());
    must(c->ops->create(c->self, id, BYTES_LITERAL("{\"userId\":\"case-a\"}"), &terms, soon(), &res, &e), &e);
    assert_int_equal(sessions_of(c, "case-a"), 1);
    must(c->ops->update(c->self, id, follow_script, &s, TERMS(LONG_MS), soon(), &res, &e), &e); /* not announced */
    assert_int_equal(sessions_of(c, "case-a"), 1);
    strcpy(terms.user, "case-b");
    must(c->ops->update(c->self, id, follow_script, &s, &terms, soon(), &res, &e), &e);
    assert_int_equal(sessions_of(c, "case-b"), 1);
    delete_(c, id);
    assert_int_equal(sessions_of(c, "case-b"), 0);
    buf_done(&s.seen);
}

/* ---- Several processes --------------------------------------------------------------------------------------- */

#define WRITERS 4

/* Runs job(n) in WRITERS processes, each with a store of its own, all beginning at once. A job answers 0 if all was
 * well. The parent's store is closed meanwhile: no connection may be carried across a fork. */
static void run_writers(struct store_case *c, int (*job)(struct store_case *c, const char *id, int n), const char *id)
{
    int go[2], status, bad = 0;
    pid_t pid[WRITERS];
    c->ops->close(c->self);
    assert_int_equal(pipe(go), 0);
    for (int n = 0; n < WRITERS; n++) {
        pid[n] = fork();
        if (pid[n] != 0) continue;
        char byte;
        close(go[1]);
        c->self = c->open();
        if (c->self == NULL || read(go[0], &byte, 1) != 0) _exit(100);
        int rc = job(c, id, n);
        c->ops->close(c->self);
        _exit(rc);
    }
    close(go[0]);
    close(go[1]); /* go */
    for (int n = 0; n < WRITERS; n++) {
        assert_int_equal(waitpid(pid[n], &status, 0), pid[n]);
        if (status != 0) print_error("writer %d ended with status 0x%x\n", n, status);
        bad += status != 0;
    }
    c->self = c->open();
    assert_non_null(c->self);
    assert_int_equal(bad, 0);
}

/* The document is a row of cells, one for each update: an update that is lost leaves its cell empty. */
#define CELLS 50 /* of each writer */

static enum store_verdict mark_cell(void *ctx, struct bytes doc, struct buf *out)
{
    buf_add(out, doc);
    out->data[*(const int *)ctx] = 'x';
    return STORE_WRITE;
}

static int mark_cells(struct store_case *c, const char *id, int n)
{
    for (int i = 0; i < CELLS; i++) {
        int cell = n * CELLS + i;
        struct store_result res;
        struct err e;
        if (!c->ops->update(c->self, id, mark_cell, &cell, TERMS(LONG_MS), clock_mono_ms() + 20000, &res, &e)) return 1;
        if (!res.found || !res.changed) return 2;
    }
    return 0;
}

static void no_update_is_lost_among_processes(void **state)
{
    struct store_case *c = *state;
    char id[64], cells[WRITERS * CELLS];
    snprintf(id, sizeof id, "%s", new_id());
    memset(cells, '.', sizeof cells);
    create_(c, id, (struct bytes){ cells, sizeof cells }, LONG_MS);
    run_writers(c, mark_cells, id);
    memset(cells, 'x', sizeof cells);
    assert_holds(c, id, (struct bytes){ cells, sizeof cells });
    delete_(c, id);
}

/* Everybody tries to create each of these ids; who does signs it. */
#define IDS 30

static int create_and_sign(struct store_case *c, const char *id, int n)
{
    char each[80], name = (char)('A' + n), who = 0;
    for (int i = 0; i < IDS; i++) {
        struct store_result res;
        struct err e;
        struct buf doc = BUF_INIT(16);
        snprintf(each, sizeof each, "%s-%d", id, i);
        if (!c->ops->create(c->self, each, (struct bytes){ &name, 1 }, TERMS(LONG_MS), soon(), &res, &e)) return 1;
        bool won = !res.found;
        if (won != res.changed) return 2;
        if (!c->ops->get(c->self, each, 0, soon(), &doc, &res, &e) || !res.found) return 3;
        who = doc.data[0];
        buf_done(&doc);
        if (won != (who == name)) return 4;
    }
    return 0;
}

static void one_of_many_creates_an_id(void **state)
{
    struct store_case *c = *state;
    char id[64], each[80];
    snprintf(id, sizeof id, "%s", new_id());
    run_writers(c, create_and_sign, id);
    for (int i = 0; i < IDS; i++) {
        snprintf(each, sizeof each, "%s-%d", id, i);
        assert_true(delete_(c, each).found);
    }
}

/* Writer 0 creates and deletes one id again and again, the others update it without a pause. Once a delete is
 * acknowledged nobody may see the session until the next create. */
#define RACES 100

static enum store_verdict grow(void *ctx, struct bytes doc, struct buf *out)
{
    bool *over = ctx;
    *over = bytes_is(doc, "over");
    if (*over) return STORE_KEEP;
    buf_add(out, doc);
    buf_puts(out, "+");
    return STORE_WRITE;
}

static int update_until_over(struct store_case *c, const char *id)
{
    struct store_result res;
    struct err e;
    int64_t give_up_ms = clock_mono_ms() + 30000;
    for (bool over = false; !over;) {
        if (!c->ops->update(c->self, id, grow, &over, TERMS(LONG_MS), soon(), &res, &e)) return 1;
        if (clock_mono_ms() > give_up_ms) return 2;
    }
    return 0;
}

/* Length of what is stored, -1 if nothing is, -2 if the store failed. */
static int64_t stored_bytes(struct store_case *c, const char *id)
{
    struct store_result res;
    struct err e;
    struct buf doc = BUF_INIT(1 << 20);
    bool ok = c->ops->get(c->self, id, 0, soon(), &doc, &res, &e);
    int64_t bytes = !ok ? -2 : !res.found ? -1 : (int64_t)doc.len;
    buf_done(&doc);
    return bytes;
}

static int create_and_delete(struct store_case *c, const char *id)
{
    struct store_result res;
    struct err e;
    for (int round = 0; round < RACES; round++) {
        if (!c->ops->create(c->self, id, BYTES_LITERAL("+"), TERMS(LONG_MS), soon(), &res, &e) || res.found) return 3;
        int64_t give_up_ms = soon();
        while (stored_bytes(c, id) == 1) /* until somebody has updated it: the race is on */
            if (clock_mono_ms() > give_up_ms) return 4;
        if (!c->ops->del(c->self, id, soon(), NULL, &res, &e) || !res.found) return 5;
        for (int look = 0; look < 20; look++)
            if (stored_bytes(c, id) != -1) return 6;
    }
    return c->ops->create(c->self, id, BYTES_LITERAL("over"), TERMS(LONG_MS), soon(), &res, &e) && !res.found ? 0 : 7;
}

static int race(struct store_case *c, const char *id, int n)
{
    return n == 0 ? create_and_delete(c, id) : update_until_over(c, id);
}

static void an_update_never_brings_back_what_is_deleted(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    run_writers(c, race, id);
    assert_true(delete_(c, id).found);
}

/* clang-format off */
#define STORE_CASES                                               \
    cmocka_unit_test(what_is_created_reads_back),                 \
    cmocka_unit_test(any_bytes_are_kept),                         \
    cmocka_unit_test(a_document_of_1_mb_is_kept),                 \
    cmocka_unit_test(a_taken_id_is_not_created_again),            \
    cmocka_unit_test(an_update_writes_what_its_edit_made),        \
    cmocka_unit_test(an_update_may_keep_or_delete),               \
    cmocka_unit_test(an_update_of_nothing_asks_nobody),           \
    cmocka_unit_test(a_deleted_session_stays_gone),               \
    cmocka_unit_test(an_expired_session_is_gone_and_stays_gone),  \
    cmocka_unit_test(a_write_prolongs_and_never_shortens),        \
    cmocka_unit_test(live_sessions_are_counted),                  \
    cmocka_unit_test(a_pass_over_all_sees_what_lives_with_its_end), \
    cmocka_unit_test(only_what_was_deleted_is_gone),              \
    cmocka_unit_test(a_life_is_set_exactly_or_only_made_longer),  \
    cmocka_unit_test(a_write_keeps_to_the_most_that_its_terms_allow), \
    cmocka_unit_test(a_gone_id_is_made_again_only_by_who_minted_it), \
    cmocka_unit_test(a_delete_shows_what_it_deleted),             \
    cmocka_unit_test(a_rotated_session_goes_on_under_one_new_id), \
    cmocka_unit_test(a_rotation_that_its_edit_refuses_changes_nothing), \
    cmocka_unit_test(a_session_is_listed_under_its_user),         \
    cmocka_unit_test(no_update_is_lost_among_processes),          \
    cmocka_unit_test(one_of_many_creates_an_id),                  \
    cmocka_unit_test(an_update_never_brings_back_what_is_deleted)
/* clang-format on */

#endif
