#include "session_merge.h"

#include "json.h"
#include "test.h"

#include <string.h>

static struct buf merged;
static int conflicts;

/* The documents are written with ' for ", as a reader likes them. */
static struct bytes quoted(const char *text, char *out)
{
    size_t n = strlen(text);
    for (size_t i = 0; i <= n; i++) out[i] = text[i] == '\'' ? '"' : text[i];
    return (struct bytes){ out, n };
}

static void merge(const char *base, const char *ours, const char *theirs)
{
    static char b[4096], o[4096], t[4096];
    buf_done(&merged);
    merged = (struct buf)BUF_INIT(1 << 16);
    conflicts = -1;
    assert_true(session_merge(quoted(base, b), quoted(ours, o), quoted(theirs, t), &merged, &conflicts));
}

static void assert_merged(const char *expected)
{
    static char text[4096];
    quoted(expected, text);
    assert_string_equal(buf_text(&merged), text);
}

static void changes_of_both_sides_to_different_members_both_survive(void **state)
{
    (void)state;
    merge("{'a':1,'b':1,'c':1}", "{'a':2,'b':1,'c':1}", "{'a':1,'b':1,'c':2}");
    assert_merged("{'a':2,'b':1,'c':2}");
    merge("{}", "{'a':1}", "{'b':2}");
    assert_merged("{'b':2,'a':1}");
    merge("{'a':1,'b':1}", "{'b':1}", "{'a':1}");
    assert_merged("{}");
    assert_int_equal(conflicts, 0);
}

static void a_member_that_one_side_removed_and_the_other_left_alone_is_gone(void **state)
{
    (void)state;
    merge("{'a':1,'b':1}", "{'b':1}", "{'a':1,'b':2}");
    assert_merged("{'b':2}");
    merge("{'a':1,'b':1}", "{'a':1,'b':2}", "{'b':1}");
    assert_merged("{'b':2}");
    assert_int_equal(conflicts, 0);
}

static void null_is_not_absent(void **state)
{
    (void)state;
    merge("{'a':1}", "{'a':null}", "{'a':1}");
    assert_merged("{'a':null}");
    merge("{'a':null}", "{}", "{'a':null}");
    assert_merged("{}");
    merge("{}", "{'a':null}", "{}");
    assert_merged("{'a':null}");
    assert_int_equal(conflicts, 0);
    merge("{'a':1}", "{'a':null}", "{}");
    assert_int_equal(conflicts, 1);
}

static void of_a_conflict_the_document_that_was_used_later_wins(void **state)
{
    (void)state;
#define EARLY "'lastActivity':'2026-01-31T10:00:00.000Z'"
#define LATE  "'lastActivity':'2026-01-31T10:00:00.001Z'"
    merge("{'a':1}", "{'a':2," LATE "}", "{'a':3," EARLY "}");
    assert_merged("{'a':2," LATE "}");
    assert_int_equal(conflicts, 1);
    merge("{'a':1}", "{'a':2," EARLY "}", "{'a':3," LATE "}");
    assert_merged("{'a':3," LATE "}");
    merge("{'a':1}", "{'a':2," LATE "}", "{'a':3," LATE "}");
    assert_merged("{'a':3," LATE "}");
    merge("{'a':1}", "{'a':2," EARLY "}", "{'a':3}");
    assert_merged("{'a':2," EARLY "}");
    assert_int_equal(conflicts, 1);
    merge("{'a':1}", "{" LATE "}", "{'a':3," EARLY "}");
    assert_merged("{" LATE "}");
    merge("{'a':1}", "{'a':2," LATE "}", "{" EARLY "}");
    assert_merged("{" LATE ",'a':2}");
    assert_int_equal(conflicts, 1);
}

static void equal_changes_are_no_conflict_however_they_are_written(void **state)
{
    (void)state;
    merge("{'a':1,'b':{'x':1,'y':2}}", "{'a':2.50,'b':{ 'y':2, 'x':1 }}", "{'a':2.5,'b':{'x':1,'y':2}}");
    assert_merged("{'a':2.5,'b':{'x':1,'y':2}}");
    assert_int_equal(conflicts, 0);
}

static void a_member_that_was_only_written_anew_has_not_changed(void **state)
{
    (void)state;
    merge("{'a':'\\u0041','b':1.0}", "{'a':'B','b':1.0}", "{ 'a' : 'A' , 'b' : 1.00 }");
    assert_merged("{ 'a' : 'B' , 'b' : 1.00 }");
    assert_int_equal(conflicts, 0);
}

static void objects_are_merged_at_every_level(void **state)
{
    (void)state;
    merge("{'toolConfigs':{'x':{'enabled':true,'settings':{'p':1,'q':1}}}}",
          "{'toolConfigs':{'x':{'enabled':true,'settings':{'p':2,'q':1}},'y':{}}}",
          "{'toolConfigs':{'x':{'enabled':false,'settings':{'p':1}}}}");
    assert_merged("{'toolConfigs':{'x':{'enabled':false,'settings':{'p':2}},'y':{}}}");
    merge("{}", "{'p':{'a':1}}", "{'p':{'b':2}}");
    assert_merged("{'p':{'b':2,'a':1}}");
    merge("{'p':{'a':1}}", "{'p':{}}", "{'p':{'a':1,'b':2}}");
    assert_merged("{'p':{'b':2}}");
    assert_int_equal(conflicts, 0);
    merge("{'p':{'a':1}}", "{'p':{'a':2}}", "{'p':[1]}");
    assert_merged("{'p':[1]}");
    assert_int_equal(conflicts, 1);
    merge("{'l':[1]}", "{'l':[1,2]}", "{'l':[1,3]}");
    assert_merged("{'l':[1,3]}");
    assert_int_equal(conflicts, 1);
}

static void who_somebody_is_is_never_mixed(void **state)
{
    (void)state;
    merge("{'user':{'id':'a','email':'a@'}}", "{'user':{'id':'b','email':'b@'}," LATE "}",
          "{'user':{'id':'a','email':'a@','username':'anna'}," EARLY "}");
    assert_merged("{'user':{'id':'b','email':'b@'}," LATE "}");
    assert_int_equal(conflicts, 1);
    merge("{'x':{'user':{'a':1}}}", "{'x':{'user':{'a':1,'b':2}}}", "{'x':{'user':{'a':1,'c':3}}}");
    assert_merged("{'x':{'user':{'a':1,'c':3,'b':2}}}"); /* only the session's own is one value */
}

static void of_two_times_of_use_the_later_counts_and_it_is_no_conflict(void **state)
{
    (void)state;
    merge("{'lastActivity':'2026-01-01T00:00:00Z','metadata':{'updated':'2026-01-01T00:00:00Z'}}",
          "{'lastActivity':'2026-01-03T00:00:00Z','metadata':{'updated':'2026-01-02T00:00:00Z'}}",
          "{'lastActivity':'2026-01-02T00:00:00Z','metadata':{'updated':'2026-01-03T00:00:00Z'}}");
    assert_merged("{'lastActivity':'2026-01-03T00:00:00Z','metadata':{'updated':'2026-01-03T00:00:00Z'}}");
    assert_int_equal(conflicts, 0);
    merge("{'preferences':{'updated':'2026-01-01T00:00:00Z'}}", "{'preferences':{'updated':'2026-01-03T00:00:00Z'}}",
          "{'preferences':{'updated':'2026-01-02T00:00:00Z'}}");
    assert_int_equal(conflicts, 1); /* elsewhere it is a member like others */
}

static void of_a_repeated_member_the_last_counts(void **state)
{
    (void)state;
    merge("{'a':1,'a':2}", "{'a':2,'b':1,'b':3}", "{'a':7,'a':2,'c':1}");
    assert_merged("{'a':2,'c':1,'b':3}");
    merge("{'a':1}", "{}", "{'a':5,'a':1}");
    assert_merged("{}");
}

static void members_keep_their_bytes(void **state)
{
    (void)state;
    merge("{'n':12345678901234567890,'e':'\\u00e9'}", "{'n':12345678901234567890,'e':'\\u00e9','x': 1.10}",
          " {'n' : 12345678901234567890 ,'e':'\\u00e9', 'y':'\\/' } ");
    assert_merged("{'n' : 12345678901234567890 ,'e':'\\u00e9', 'y':'\\/' ,'x': 1.10}");
}

static void what_is_no_object_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = { "", "[]", "{", "{'a':}", "1", "{} x" };
    struct buf out = BUF_INIT(1024);
    char text[16];
    struct bytes good = BYTES_LITERAL("{}");
    int n;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        struct bytes bad = quoted(wrong[i], text);
        assert_false(session_merge(bad, good, good, &out, &n));
        assert_false(session_merge(good, bad, good, &out, &n));
        assert_false(session_merge(good, good, bad, &out, &n));
    }
    assert_int_equal(out.len, 0);
    buf_done(&out);
}

/* The second object of each pair is at the other end of a chain of `levels` objects. */
static void chain(struct buf *out, int levels, const char *inner)
{
    for (int i = 1; i < levels; i++) buf_puts(out, "{\"a\":");
    buf_puts(out, inner);
    for (int i = 1; i < levels; i++) buf_puts(out, "}");
}

static void documents_as_deep_as_checked_ones_are_merged_and_deeper_ones_refused(void **state)
{
    (void)state;
    for (int levels = JSON_MOST_LEVELS; levels <= JSON_MOST_LEVELS + 1; levels++) {
        struct buf base = BUF_INIT(4096), ours = BUF_INIT(4096), theirs = BUF_INIT(4096), out = BUF_INIT(4096);
        int n = 0;
        chain(&base, levels, "{}");
        chain(&ours, levels, "{\"x\":1}");
        chain(&theirs, levels, "{\"y\":1}");
        assert_int_equal(session_merge(buf_bytes(&base), buf_bytes(&ours), buf_bytes(&theirs), &out, &n),
                         levels == JSON_MOST_LEVELS);
        buf_done(&base);
        buf_done(&ours);
        buf_done(&theirs);
        buf_done(&out);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_of_both_sides_to_different_members_both_survive),
        cmocka_unit_test(a_member_that_one_side_removed_and_the_other_left_alone_is_gone),
        cmocka_unit_test(null_is_not_absent),
        cmocka_unit_test(of_a_conflict_the_document_that_was_used_later_wins),
        cmocka_unit_test(equal_changes_are_no_conflict_however_they_are_written),
        cmocka_unit_test(a_member_that_was_only_written_anew_has_not_changed),
        cmocka_unit_test(objects_are_merged_at_every_level),
        cmocka_unit_test(who_somebody_is_is_never_mixed),
        cmocka_unit_test(of_two_times_of_use_the_later_counts_and_it_is_no_conflict),
        cmocka_unit_test(of_a_repeated_member_the_last_counts),
        cmocka_unit_test(members_keep_their_bytes),
        cmocka_unit_test(what_is_no_object_is_refused),
        cmocka_unit_test(documents_as_deep_as_checked_ones_are_merged_and_deeper_ones_refused),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    buf_done(&merged);
    return failed;
}
