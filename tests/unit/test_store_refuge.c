#include "refuge_cases.h"
#include "twice.h"

#include <sqlite3.h>

#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

static void round_ends(void)
{
    store_embedded_ops.flush(embedded);
}

static enum refuge_knows knows(const char *id)
{
    struct buf doc = BUF_INIT(1 << 20);
    must(refuge_get(refuge, id, &doc, &res, &err));
    buf_done(&doc);
    return res.knows;
}

static void assert_session(const char *id, const char *expected)
{
    struct buf doc = BUF_INIT(1 << 20);
    must(refuge_get(refuge, id, &doc, &res, &err));
    assert_int_equal(res.knows, REFUGE_SESSION);
    assert_string_equal(buf_text(&doc), expected);
    buf_done(&doc);
}

static struct refuge_row take(const char *id)
{
    struct refuge_row row = { 0 };
    size_t taken;
    must(refuge_take(refuge, id, &row, 1, &taken, soon(), &err));
    assert_int_equal(taken, 1);
    return row;
}

static void settle(struct refuge_row *row, enum refuge_outcome outcome)
{
    row->outcome = outcome;
    must(refuge_settle(refuge, row, 1, soon(), &err));
    refuge_rows_done(row, 1);
}

static void assert_row(const struct refuge_row *row, const char *base, const char *doc)
{
    assert_int_equal(row->born_here, base == NULL);
    assert_int_equal(row->deleted, doc == NULL);
    if (base != NULL) assert_string_equal(buf_text(&row->base), base);
    if (doc != NULL) assert_string_equal(buf_text(&row->doc), doc);
}

/* ---- What a node knows --------------------------------------------------------------------------------------- */

static void nothing_is_known_of_an_id_without_row_or_copy(void)
{
    assert_int_equal(knows("a"), REFUGE_NOTHING);
    update_("a", NULL, "{}");
    assert_int_equal(res.knows, REFUGE_NOTHING);
    assert_false(res.changed);
    delete_("a", NULL);
    assert_int_equal(res.knows, REFUGE_NOTHING);
    assert_false(res.changed);
    assert_int_equal(rows_now(), 0);
    assert_int_equal(rows_added, 0);
}

static void a_session_is_born_and_its_id_is_taken(void)
{
    int64_t now_ms = clock_wall_ms();
    create_("a", "{\"n\":1}");
    assert_true(res.changed && res.knows == REFUGE_SESSION);
    assert_in_range(res.expires_at_ms, now_ms + LONG_MS, now_ms + LONG_MS + 5000);
    create_("a", "{\"n\":2}");
    assert_true(!res.changed && res.knows == REFUGE_SESSION);
    assert_session("a", "{\"n\":1}");
    assert_int_equal(rows_added, 1);
}

static void a_known_session_is_edited_and_its_copy_becomes_the_base(void)
{
    struct refuge_row row = { 0 };
    size_t taken;
    update_("a", "{\"n\":1}", "{\"n\":2}");
    assert_true(res.changed && res.knows == REFUGE_SESSION);
    update_("a", "{\"n\":9}", "{\"n\":3}"); /* the row is newer than any copy */
    assert_session("a", "{\"n\":3}");
    must(refuge_take(refuge, "a", &row, 1, &taken, soon(), &err));
    assert_int_equal(taken, 1);
    assert_true(bytes_is(buf_bytes(&row.base), "{\"n\":1}") && !row.born_here && !row.deleted);
    refuge_rows_done(&row, 1);
    assert_int_equal(rows_added, 1);
}

static enum store_verdict keep(void *ctx, struct bytes doc, struct buf *out)
{
    (void)out;
    assert_true(bytes_is(doc, "{\"n\":1}"));
    ++*(int *)ctx;
    return STORE_KEEP;
}

static enum store_verdict remove_it(void *ctx, struct bytes doc, struct buf *out)
{
    (void)ctx, (void)doc, (void)out;
    return STORE_DELETE;
}

static void an_edit_may_leave_the_session_or_delete_it(void)
{
    struct refuge_copy copy = { BYTES_LITERAL("{\"n\":1}"), clock_wall_ms() + 1000, NULL };
    int calls = 0;
    must(refuge_update(refuge, "a", &copy, keep, &calls, TERMS(LONG_MS), soon(), &res, &err));
    assert_true(calls == 1 && !res.changed && res.knows == REFUGE_SESSION);
    assert_int_equal(res.expires_at_ms, copy.expires_at_ms);
    assert_int_equal(rows_now(), 0);
    must(refuge_update(refuge, "a", &copy, remove_it, NULL, TERMS(LONG_MS), soon(), &res, &err));
    assert_true(res.changed && res.knows == REFUGE_DELETED);
    create_("b", "{}");
    must(refuge_update(refuge, "b", NULL, remove_it, NULL, TERMS(LONG_MS), soon(), &res, &err));
    assert_int_equal(knows("a"), REFUGE_DELETED);
    assert_int_equal(knows("b"), REFUGE_DELETED);
}

static void a_deleted_session_stays_gone(void)
{
    create_("a", "{}");
    delete_("a", NULL);
    assert_true(res.changed && res.knows == REFUGE_DELETED);
    delete_("b", "{}");
    assert_true(res.changed && res.knows == REFUGE_DELETED);
    for (const char *id = "a"; id != NULL; id = *id == 'a' ? "b" : NULL) {
        assert_int_equal(knows(id), REFUGE_DELETED);
        update_(id, "{}", "{\"n\":1}");
        assert_true(!res.changed && res.knows == REFUGE_DELETED);
        create_(id, "{}");
        assert_true(!res.changed && res.knows == REFUGE_DELETED);
        delete_(id, "{}");
        assert_true(!res.changed && res.knows == REFUGE_DELETED);
    }
    assert_int_equal(rows_now(), 2);
}

static void what_has_expired_here_is_unknown_and_kept(void)
{
    create_("a", "{}");
    clock_set(clock_wall_ms() + LONG_MS + 1, -1);
    assert_int_equal(knows("a"), REFUGE_EXPIRED);
    update_("a", "{}", "{\"n\":1}");
    assert_true(!res.changed && res.knows == REFUGE_EXPIRED);
    create_("a", "{}");
    assert_true(!res.changed && res.knows == REFUGE_EXPIRED);
    assert_int_equal(rows_now(), 1);
    struct refuge_copy late = { BYTES_LITERAL("{}"), clock_wall_ms(), NULL };
    must(refuge_update(refuge, "b", &late, remove_it, NULL, TERMS(LONG_MS), soon(), &res, &err));
    assert_true(!res.changed && res.knows == REFUGE_EXPIRED);
    delete_("a", NULL);
    assert_true(res.changed && res.knows == REFUGE_DELETED);
}

static void a_life_is_prolonged_and_never_shortened(void)
{
    int64_t now_ms = clock_wall_ms();
    clock_set(now_ms, -1);
    struct refuge_copy copy = { BYTES_LITERAL("{}"), now_ms + 2 * LONG_MS, NULL };
    must(refuge_update(refuge, "a", &copy, write_text, "{}", TERMS(LONG_MS), soon(), &res, &err));
    assert_int_equal(res.expires_at_ms, now_ms + 2 * LONG_MS);
    must(refuge_update(refuge, "a", NULL, write_text, "{}", TERMS(3 * LONG_MS), soon(), &res, &err));
    assert_int_equal(res.expires_at_ms, now_ms + 3 * LONG_MS);
}

static bool look_later(struct refuge_copy *self)
{
    self->doc = BYTES_LITERAL("{\"n\":2}");
    return self->expires_at_ms > 0;
}

static void a_copy_is_looked_at_when_its_turn_to_be_written_has_come(void)
{
    struct refuge_copy later = { BYTES_LITERAL("{\"n\":1}"), clock_wall_ms() + LONG_MS, look_later };
    struct refuge_copy none = { BYTES_LITERAL("{\"n\":1}"), 0, look_later };
    must(refuge_update(refuge, "a", &later, write_text, "{\"n\":3}", TERMS(LONG_MS), soon(), &res, &err));
    struct refuge_row row = take("a");
    assert_row(&row, "{\"n\":2}", "{\"n\":3}");
    must(refuge_update(refuge, "b", &none, write_text, "{}", TERMS(LONG_MS), soon(), &res, &err));
    assert_int_equal(res.knows, REFUGE_NOTHING);
    must(refuge_delete(refuge, "b", &none, soon(), &res, &err));
    assert_int_equal(res.knows, REFUGE_NOTHING);
    must(refuge_expire(refuge, "b", &none, 1000, false, soon(), &res, &err));
    assert_int_equal(res.knows, REFUGE_NOTHING);
    assert_int_equal(rows_now(), 1);
    refuge_rows_done(&row, 1);
}

static void a_life_ends_where_it_must(void)
{
    int64_t now_ms = clock_wall_ms();
    struct store_terms terms = { .ttl_ms = LONG_MS, .most_ms = 1000 };
    clock_set(now_ms, -1);
    must(refuge_create(refuge, "a", BYTES_LITERAL("{}"), &terms, soon(), &res, &err));
    assert_int_equal(res.expires_at_ms, now_ms + 1000);
    clock_set(now_ms + 900, -1);
    terms.most_ms = 100;
    must(refuge_update(refuge, "a", NULL, write_text, "{}", &terms, soon(), &res, &err));
    assert_int_equal(res.expires_at_ms, now_ms + 1000);
}

static void a_life_is_set_to_what_is_asked_for(void)
{
    int64_t now_ms = clock_wall_ms();
    struct refuge_copy copy = { BYTES_LITERAL("{\"n\":1}"), now_ms + LONG_MS, NULL };
    clock_set(now_ms, -1);
    must(refuge_expire(refuge, "a", NULL, 1000, false, soon(), &res, &err));
    assert_int_equal(res.knows, REFUGE_NOTHING);
    must(refuge_expire(refuge, "a", &copy, 1000, true, soon(), &res, &err));
    assert_true(res.knows == REFUGE_SESSION && !res.changed);
    assert_int_equal(rows_now(), 0);
    must(refuge_expire(refuge, "a", &copy, 1000, false, soon(), &res, &err));
    assert_true(res.changed);
    assert_int_equal(res.expires_at_ms, now_ms + 1000);
    struct refuge_row first = take("a");
    assert_row(&first, "{\"n\":1}", "{\"n\":1}");
    must(refuge_expire(refuge, "a", NULL, 5000, true, soon(), &res, &err));
    assert_int_equal(res.expires_at_ms, now_ms + 5000);
    settle(&first, REFUGE_REPLAYED);
    assert_session("a", "{\"n\":1}"); /* the new life is still to be replayed */
    clock_set(now_ms + 5000, -1);
    assert_int_equal(knows("a"), REFUGE_EXPIRED);
}

static void documents_are_any_bytes_and_bounded(void)
{
    struct bytes doc = { "\0\x01\xff", 3 };
    struct buf read = BUF_INIT(64), large = BUF_INIT(32 << 20);
    must(refuge_create(refuge, "a", doc, TERMS(LONG_MS), soon(), &res, &err));
    must(refuge_get(refuge, "a", &read, &res, &err));
    assert_true(bytes_equal(buf_bytes(&read), doc));
    create_("empty", "");
    assert_int_equal(knows("empty"), REFUGE_SESSION);
    while (large.len <= 16 << 20) buf_puts(&large, "................................................................");
    assert_false(refuge_create(refuge, "b", buf_bytes(&large), TERMS(LONG_MS), soon(), &res, &err));
    assert_false(refuge_update(refuge, "a", NULL, write_text, large.data, TERMS(LONG_MS), soon(), &res, &err));
    assert_true(!res.changed && res.knows == REFUGE_NOTHING);
    assert_int_equal(rows_now(), 2);
    buf_done(&read);
    buf_done(&large);
}

static void rows_outlive_the_process(void **state)
{
    (void)state;
    create_("a", "{\"n\":1}");
    refuge_reopen();
    assert_session("a", "{\"n\":1}");
}

/* ---- Rows on their way --------------------------------------------------------------------------------------- */

static void an_unsettled_version_is_taken_again_and_the_next_one_is_based_on_it(void)
{
    update_("a", "base", "v1");
    struct refuge_row first = take("a");
    assert_row(&first, "base", "v1");
    update_("a", NULL, "v2");
    update_("a", NULL, "v3");
    struct refuge_row again = take("a");
    assert_row(&again, "base", "v1");
    assert_int_equal(again.version, first.version);
    assert_session("a", "v3");

    settle(&first, REFUGE_REPLAYED);
    assert_true(first.settled);
    settle(&again, REFUGE_REPLAYED); /* by another process, too late */
    assert_false(again.settled);
    struct refuge_row next = take("a");
    assert_row(&next, "v1", "v3");
    assert_int_not_equal(next.version, first.version);
    settle(&next, REFUGE_REPLAYED);
    assert_int_equal(rows_now(), 0);
}

static void a_dropped_version_leaves_what_came_after_it_as_it_was(void)
{
    update_("a", "base", "v1");
    struct refuge_row row = take("a");
    update_("a", NULL, "v2");
    settle(&row, REFUGE_DROPPED);
    row = take("a");
    assert_row(&row, "base", "v2");
    settle(&row, REFUGE_DROPPED);
    assert_int_equal(rows_now(), 0);
}

static void a_tombstone_goes_at_once_whatever_is_on_its_way(void)
{
    create_("a", "v1");
    struct refuge_row first = take("a");
    update_("a", NULL, "v2");
    delete_("a", NULL);
    struct refuge_row row = take("a");
    assert_row(&row, NULL, NULL);
    settle(&first, REFUGE_REPLAYED); /* of a version that counts no more */
    assert_false(first.settled);
    settle(&row, REFUGE_REPLAYED);
    assert_int_equal(rows_now(), 0);
}

static void a_version_that_was_settled_is_no_other_row_of_the_same_id(void)
{
    create_("a", "v1");
    struct refuge_row first = take("a");
    struct refuge_row same = take("a");
    settle(&first, REFUGE_REPLAYED);
    create_("a", "v2");
    settle(&same, REFUGE_REPLAYED);
    assert_session("a", "v2");
}

static void refused_rows_wait_and_let_the_others_pass(void)
{
    struct refuge_row rows[3] = { 0 };
    size_t taken;
    create_("a", "{}");
    create_("b", "{}");
    create_("c", "{}");
    must(refuge_take(refuge, NULL, rows, 2, &taken, soon(), &err));
    assert_int_equal(taken, 2);
    assert_string_equal(rows[0].id, "a");
    assert_string_equal(rows[1].id, "b");
    rows[0].outcome = REFUGE_REFUSED;
    must(refuge_settle(refuge, rows, 2, soon(), &err)); /* b is unsettled */
    refuge_rows_done(rows, 2);

    must(refuge_take(refuge, NULL, rows, 3, &taken, soon(), &err));
    assert_int_equal(taken, 2);
    assert_string_equal(rows[0].id, "b");
    assert_string_equal(rows[1].id, "c");
    refuge_rows_done(rows, 3);
    struct refuge_row a = take("a"); /* by its id it is taken all the same */
    assert_true(a.refused);
    refuge_rows_done(&a, 1);
    clock_set(clock_wall_ms() + 60001, -1);
    must(refuge_take(refuge, NULL, rows, 3, &taken, soon(), &err));
    assert_int_equal(taken, 3);
    assert_true(rows[0].refused && !rows[1].refused);
    refuge_rows_done(rows, 3);
}

static int64_t rows_inside;

static void look_inside(void *ctx)
{
    (void)ctx;
    rows_inside = rows_added;
}

static void rows_are_counted_in_a_transaction(void)
{
    int64_t rows;
    bool dirty;
    create_("a", "{}");
    delete_("b", "{}");
    must(refuge_count(refuge, look_inside, NULL, soon(), &rows, &err));
    assert_int_equal(rows, 2);
    assert_int_equal(rows_inside, 2);
    must(refuge_is_dirty(refuge, "b", &dirty, &err));
    assert_true(dirty);
    must(refuge_is_dirty(refuge, "c", &dirty, &err));
    assert_false(dirty);
}

/* ---- Facts ----------------------------------------------------------------------------------------------------- */

static void facts_are_remembered_and_rows_know_the_epoch_they_are_based_on(void)
{
    struct buf value = BUF_INIT(64);
    must(refuge_fact(refuge, "f", &value, &err));
    assert_int_equal(value.len, 0);
    must(refuge_fact_set(refuge, "f", BYTES_LITERAL("1"), soon(), &err));
    must(refuge_fact_set(refuge, "f", BYTES_LITERAL("2"), soon(), &err));
    must(refuge_fact(refuge, "f", &value, &err));
    assert_string_equal(buf_text(&value), "2");
    buf_done(&value);

    update_("a", "base", "v1");
    must(refuge_fact_set(refuge, REFUGE_EPOCH, BYTES_LITERAL("e1"), soon(), &err));
    update_("b", "base", "v1");
    must(refuge_fact_set(refuge, REFUGE_EPOCH, BYTES_LITERAL("e2"), soon(), &err));
    struct refuge_row a = take("a"), b = take("b");
    assert_string_equal(a.epoch, "");
    assert_string_equal(b.epoch, "e1");
    update_("b", NULL, "v2");
    settle(&a, REFUGE_UNSETTLED);
    settle(&b, REFUGE_REPLAYED);
    b = take("b"); /* based on what was written to Redis now */
    assert_string_equal(b.epoch, "e2");
    refuge_rows_done(&b, 1);
}

/* ---- From the embedded store ----------------------------------------------------------------------------------- */

static void keep_embedded(const char *id, const char *doc, int64_t ttl_ms)
{
    struct store_result kept;
    must(store_embedded_ops.create(embedded, id, bytes_of(doc), &(struct store_terms){ .ttl_ms = ttl_ms }, soon(),
                                   &kept, &err));
}

static void sessions_of_the_embedded_store_become_rows_that_were_born_here(void)
{
    bool more;
    int64_t left;
    keep_embedded("a", "{\"a\":1}", LONG_MS);
    keep_embedded("late", "{}", 1);
    keep_embedded("b", "{\"b\":1}", 2 * LONG_MS);
    create_("b", "{\"b\":0}");
    keep_embedded("c", "{}", LONG_MS);
    delete_("c", "{}");
    clock_set(clock_wall_ms() + 2, -1);
    must(refuge_adopt(refuge, 3, soon(), &more, &err));
    assert_true(more);
    must(refuge_adopt(refuge, 3, soon(), &more, &err));
    assert_false(more);
    must(store_embedded_ops.count(embedded, soon(), &left, &err));
    assert_int_equal(left, 0);

    assert_session("a", "{\"a\":1}");
    assert_session("b", "{\"b\":1}");
    assert_in_range(res.expires_at_ms, clock_wall_ms() + 2 * LONG_MS - 5000, clock_wall_ms() + 2 * LONG_MS);
    assert_int_equal(knows("c"), REFUGE_DELETED);
    assert_int_equal(rows_now(), 3);
    assert_true(rows_added >= 3);
    struct refuge_row a = take("a");
    assert_row(&a, NULL, "{\"a\":1}");
    refuge_rows_done(&a, 1);
}

/* ---- Kills ------------------------------------------------------------------------------------------------------ */

/* Writes numbered versions for ever, and says each that was acknowledged. */
static void write_and_say(int to)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    refuge_reopen();
    for (int32_t n = 1;; n++) {
        char text[32];
        snprintf(text, sizeof text, "%d", n);
        update_("a", "base", text);
        if (write(to, &n, sizeof n) != sizeof n) _exit(1);
    }
}

static void what_was_acknowledged_survives_a_kill_at_any_moment(void **state)
{
    (void)state;
    for (int round = 0; round < 10; round++) {
        int ends[2];
        int32_t said = 0, n;
        assert_int_equal(pipe(ends), 0);
        refuge_leave();
        pid_t pid = fork();
        if (pid == 0) write_and_say(ends[1]);
        close(ends[1]);
        while (said < 20 + round * 7 && read(ends[0], &n, sizeof n) == sizeof n) said = n;
        kill(pid, SIGKILL);
        while (read(ends[0], &n, sizeof n) == sizeof n) said = n;
        waitpid(pid, NULL, 0);
        close(ends[0]);
        refuge_reopen();
        struct buf doc = BUF_INIT(64);
        must(refuge_get(refuge, "a", &doc, &res, &err));
        assert_in_range(atoi(buf_text(&doc)), said, said + 1); /* one more may have been committed and not said */
        buf_done(&doc);
    }
}

/* ---- Work of other modules in a round's transaction ---------------------------------------------------------------
 */

static bool fail_(void *ctx, struct sqlite3 *db, int64_t now_ms, struct err *e)
{
    (void)db;
    ++*(int *)ctx;
    return err_set(e, ERR_INTERNAL, "work at %" PRId64, now_ms);
}

static void work_that_fails_hurts_no_other_write_and_says_why(void)
{
    int calls = 0;
    clock_set(1234, -1);
    assert_false(store_embedded_transact(embedded, fail_, &calls, soon(), &err));
    assert_int_equal(calls, 1);
    assert_string_equal(err.text, "work at 1234");
    create_("a", "{}");
    assert_false(store_embedded_transact(embedded, fail_, &calls, clock_mono_ms(), &err));
    assert_int_equal(calls, 1); /* too late: not run at all */
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
}

static bool half_do(void *ctx, struct sqlite3 *db, int64_t now_ms, struct err *e)
{
    (void)ctx, (void)now_ms;
    assert_int_equal(sqlite3_exec(db, "UPDATE sessions SET doc = 'half'", NULL, NULL, NULL), SQLITE_OK);
    return err_set(e, ERR_INTERNAL, "the other half");
}

/* A round of two tasks: what one of them has done before it failed must not be committed with what the other does. */
static bool half_ok, whole_ok;

static void half_do_in_task(void *arg)
{
    struct err e;
    half_ok = store_embedded_transact(arg, half_do, NULL, soon(), &e);
    assert_string_equal(e.text, "the other half");
}

static void create_beside_it(void *arg)
{
    struct store_terms terms = { .ttl_ms = 60000, .minted = true };
    struct store_result made;
    struct err e = { 0 };
    whole_ok = store_embedded_ops.create(arg, "beside", BYTES_LITERAL("{}"), &terms, soon(), &made, &e);
    assert_string_equal(e.text, "the other half");
}

static void work_that_fails_half_done_takes_its_round_with_it(void **state)
{
    (void)state;
    struct store_terms terms = { .ttl_ms = 60000, .minted = true };
    struct buf doc = BUF_INIT(64);
    struct store_result made;
    clock_set(-1, -1);
    must(store_embedded_ops.create(embedded, "there", BYTES_LITERAL("{}"), &terms, soon(), &made, &err));
    half_ok = whole_ok = true;
    task_start(create_beside_it, embedded);
    task_start(half_do_in_task, embedded);
    task_run_ready();
    store_embedded_ops.flush(embedded);
    task_run_ready();
    assert_false(half_ok);
    assert_false(whole_ok);
    must(store_embedded_ops.get(embedded, "there", 0, soon(), &doc, &made, &err));
    assert_string_equal(buf_text(&doc), "{}");
    must(store_embedded_ops.get(embedded, "beside", 0, soon(), &doc, &made, &err));
    assert_false(made.found);
    buf_done(&doc);
    task_free_stacks(0);
}

struct asker {
    const char *id;
    bool done;
};

static void create_in_task(void *arg)
{
    struct asker *a = arg;
    struct refuge_result own;
    struct err e;
    a->done = refuge_create(refuge, a->id, BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &own, &e) && own.changed;
}

static void writes_of_a_round_share_its_transaction(void **state)
{
    (void)state;
    struct asker askers[] = { { .id = "a" }, { .id = "b" }, { .id = "c" } };
    for (int i = 0; i < 3; i++) task_start(create_in_task, &askers[i]);
    task_run_ready();
    assert_int_equal(knows("a"), REFUGE_NOTHING);
    store_embedded_ops.flush(embedded);
    task_run_ready();
    for (int i = 0; i < 3; i++) assert_true(askers[i].done);
    assert_int_equal(rows_now(), 3);
    task_free_stacks(0);
}

int main(void)
{
#define CASE(f) TWICE(f, refuge_begin, refuge_end)
    const struct CMUnitTest tests[] = {
        CASE(nothing_is_known_of_an_id_without_row_or_copy),
        CASE(a_session_is_born_and_its_id_is_taken),
        CASE(a_known_session_is_edited_and_its_copy_becomes_the_base),
        CASE(an_edit_may_leave_the_session_or_delete_it),
        CASE(a_deleted_session_stays_gone),
        CASE(what_has_expired_here_is_unknown_and_kept),
        CASE(a_life_is_prolonged_and_never_shortened),
        CASE(a_copy_is_looked_at_when_its_turn_to_be_written_has_come),
        CASE(a_life_ends_where_it_must),
        CASE(a_life_is_set_to_what_is_asked_for),
        CASE(documents_are_any_bytes_and_bounded),
        cmocka_unit_test_setup_teardown(rows_outlive_the_process, refuge_begin, refuge_end),
        CASE(an_unsettled_version_is_taken_again_and_the_next_one_is_based_on_it),
        CASE(a_dropped_version_leaves_what_came_after_it_as_it_was),
        CASE(a_tombstone_goes_at_once_whatever_is_on_its_way),
        CASE(a_version_that_was_settled_is_no_other_row_of_the_same_id),
        CASE(refused_rows_wait_and_let_the_others_pass),
        CASE(rows_are_counted_in_a_transaction),
        CASE(facts_are_remembered_and_rows_know_the_epoch_they_are_based_on),
        CASE(sessions_of_the_embedded_store_become_rows_that_were_born_here),
        cmocka_unit_test_setup_teardown(what_was_acknowledged_survives_a_kill_at_any_moment, refuge_begin, refuge_end),
        CASE(work_that_fails_hurts_no_other_write_and_says_why),
        cmocka_unit_test_setup_teardown(work_that_fails_half_done_takes_its_round_with_it, refuge_begin, refuge_end),
        cmocka_unit_test_setup_teardown(writes_of_a_round_share_its_transaction, refuge_begin, refuge_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
