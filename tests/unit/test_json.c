#include "test.h"

#include "json.h"
#include "mem.h"

static bool check(const char *text, struct json_fault *f)
{
    *f = (struct json_fault){ .kind = JSON_FINE };
    return json_check(bytes_of(text), 32, f);
}

static void assert_fault(const char *text, enum json_fault_kind kind, const char *pointer, const char *reason)
{
    struct json_fault f;
    if (check(text, &f)) fail_msg("accepted: %s", text);
    if (f.kind != kind) fail_msg("kind %d, not %d: %s", (int)f.kind, (int)kind, text);
    if (strcmp(f.pointer, pointer) != 0) fail_msg("at %s, not %s: %s", f.pointer, pointer, text);
    assert_string_equal(f.reason, reason);
}

/* `head`, then as many `unit` as fit into 64 KiB, then `tail`. The caller frees data. */
static struct buf fill_64k(const char *head, const char *unit, const char *tail)
{
    struct buf text = BUF_INIT(65536);
    buf_puts(&text, head);
    while (text.len + strlen(unit) + strlen(tail) <= text.limit) buf_puts(&text, unit);
    buf_puts(&text, tail);
    return text;
}

static void accepts_documents_with_odd_but_valid_content(void **state)
{
    (void)state;
    static const char *const fine[] = {
        "{}",
        " \r\n\t{ \"a\" : [ 1 , null ] }\n ",
        "{\"big\":123456789012345678901234567890,\"neg\":-99999999999999999999,\"max\":18446744073709551615}",
        "{\"n\":[-0,0.0,-0.0e0,1E+400,1e-400,9007199254740993,0.1000000000000000055511151231257827]}",
        "{\"value\":\"\\u0000 \\ud800 \\/ \\u002f\",\"\\n\\/\\\"\":1}",
        "{\"\":1,\" \":2,\"a\":{\"a\":{\"a\":1}},\"b\":[{\"a\":1},{\"a\":1}]}",
        "{\"\xc3\xa4\":1,\"a\\u0308\":2,\"\\ud83d\\ude00\":\"\xf0\x9f\x98\x80\"}",
        "{\"a\\\\u0062\":1,\"a\\u0062\":2}",
        "{\"A\":1,\"a\":2}",
    };
    for (size_t i = 0; i < sizeof fine / sizeof fine[0]; i++) {
        struct json_fault f;
        if (!check(fine[i], &f)) fail_msg("%s at \"%s\": %s", f.reason, f.pointer, fine[i]);
    }
}

static void says_where_text_stops_being_json(void **state)
{
    (void)state;
    assert_fault("", JSON_MALFORMED, "", "not valid JSON at byte 0, where it ends");
    assert_fault("{\"a\":1", JSON_MALFORMED, "", "not valid JSON at byte 6, where it ends");
    assert_fault("{\"a\":NaN}", JSON_MALFORMED, "", "not valid JSON at byte 5");
    assert_fault("{\"a\":\"\xff\"}", JSON_MALFORMED, "", "not valid JSON at byte 6");
    assert_fault("{\"a\":1} true", JSON_MALFORMED, "", "not valid JSON at byte 8");
}

static void wants_an_object(void **state)
{
    (void)state;
    static const char *const others[] = { "[]", "[{\"a\":1}]", "null", "\"{}\"", "12" };
    for (size_t i = 0; i < 5; i++) assert_fault(others[i], JSON_NOT_OBJECT, "", "must be an object");
}

static void points_at_what_is_nested_too_deep(void **state)
{
    (void)state;
    struct json_fault f;
    assert_true(json_check(BYTES_LITERAL("{\"a\":[{\"b\":1}]}"), 3, &f));
    assert_false(json_check(BYTES_LITERAL("{\"a\":[0,{\"b~/\":{\"c\":1}}]}"), 3, &f));
    assert_int_equal(f.kind, JSON_TOO_DEEP);
    assert_string_equal(f.pointer, "/a/1/b~0~1");
    assert_string_equal(f.reason, "nested deeper than 3 levels");
}

static void takes_exactly_as_many_levels_as_allowed(void **state)
{
    (void)state;
    for (int allowed = 1; allowed <= JSON_MOST_LEVELS; allowed++)
        for (int levels = 1; levels <= allowed + 1; levels++) {
            struct buf text = BUF_INIT(10000);
            struct json_fault f;
            for (int i = 0; i < levels; i++) buf_puts(&text, "{\"a\":");
            buf_puts(&text, "1");
            for (int i = 0; i < levels; i++) buf_puts(&text, "}");
            assert_int_equal(json_check(buf_bytes(&text), allowed, &f), levels <= allowed);
            buf_done(&text);
        }
}

static void points_at_the_member_that_stands_twice(void **state)
{
    (void)state;
    static const char *const repeats[][2] = {
        { "{\"a\":1,\"a\":2}", "/a" },
        { "{\"a\":1,\"\\u0061\":2}", "/a" },
        { "{\"\\u0061\":1,\"b\":0,\"a\":2}", "/a" },
        { "{\"\":1,\"\":1}", "/" },
        { "{\"/~\":1,\"\\/\\u007e\":1}", "/~1~0" },
        { "{\"\\u00e4\":1,\"\xc3\xa4\":1}", "/\xc3\xa4" },
        { "{\"\\ud83d\\ude00\":1,\"\xf0\x9f\x98\x80\":1}", "/\xf0\x9f\x98\x80" },
        { "{\"a\":{\"x\":1},\"b\":2,\"a\":{\"y\":1}}", "/a" },
        { "{\"a\":{\"x\":1,\"x\":2},\"b\":{\"x\":1}}", "/a/x" },
        { "{\"a\":[{\"x\":1},[{\"x\":1,\"y\":{},\"y\":[]}]]}", "/a/1/0/y" },
        { "{\"a\":{\"b\":null,\"b\":null}}", "/a/b" },
        { "{\"a\":{\"a\":1,\"b\":{\"a\":1,\"a\":1}}}", "/a/b/a" },
    };
    for (size_t i = 0; i < sizeof repeats / sizeof repeats[0]; i++)
        assert_fault(repeats[i][0], JSON_MALFORMED, repeats[i][1], "the member stands twice in its object");
}

static void refuses_names_that_other_programs_would_read_differently(void **state)
{
    (void)state;
    const char *reason = "the member's name holds U+0000 or half a surrogate pair";
    assert_fault("{\"b\":{\"a\\u0000b\":1}}", JSON_MALFORMED,
                 "/b/a\xef\xbf\xbd"
                 "b",
                 reason);
    assert_fault("{\"a\\u0000\":1,\"a\":2}", JSON_MALFORMED, "/a\xef\xbf\xbd", reason);
    assert_fault("{\"b\":[0,{\"\\ud800\":1}]}", JSON_MALFORMED, "/b/1/\xef\xbf\xbd", reason);
    assert_fault("{\"\\udc00\\ud800\":1}", JSON_MALFORMED, "/\xef\xbf\xbd\xef\xbf\xbd", reason);
}

static void cuts_a_long_pointer_at_a_whole_segment(void **state)
{
    (void)state;
    struct json_fault f;
    struct buf text = BUF_INIT(10000);
    buf_puts(&text, "{\"first\":{\"");
    for (int i = 0; i < 300; i++) buf_puts(&text, "x");
    buf_puts(&text, "\":{\"short\":{\"a\":1,\"a\":2}}}}");
    assert_false(json_check(buf_bytes(&text), 32, &f));
    assert_string_equal(f.pointer, "/first");
    buf_done(&text);
}

static void fills_a_pointer_to_its_last_byte(void **state)
{
    (void)state;
    struct json_fault f;
    for (size_t name = 253; name <= 255; name++) {
        struct buf text = BUF_INIT(1000);
        buf_puts(&text, "{\"");
        for (size_t i = 0; i < name; i++) buf_puts(&text, "x");
        buf_puts(&text, "\":{\"a\":1,\"a\":2}}");
        assert_false(json_check(buf_bytes(&text), 32, &f));
        assert_int_equal(strlen(f.pointer), name < 255 ? name + 1 : 0);
        buf_done(&text);
    }
}

static void refuses_hostile_depth_and_width_of_any_size(void **state)
{
    (void)state;
    static const struct {
        const char *head, *unit, *tail;
        enum json_fault_kind kind;
    } hostile[] = {
        { "", "[", "", JSON_TOO_DEEP },
        { "", "{\"\":", "", JSON_TOO_DEEP },
        { "{\"a\":[", "[],", "0]}", JSON_TOO_DEEP },
        { "{\"a\":[", "{\"b\":[]},", "0]}", JSON_TOO_DEEP },
        { "{", "\"a\":0,", "\"b\":0}", JSON_MALFORMED },
        { "{", "\"\\u0061\":0,", "\"b\":0}", JSON_MALFORMED },
        { "{\"a\":[", "1,", "1]}", JSON_FINE },
        { "{\"a\":\"", "[{", "\"}", JSON_FINE },
        { "{\"a\":\"", "\\u0000", "\"}", JSON_FINE },
    };
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        struct buf text = fill_64k(hostile[i].head, hostile[i].unit, hostile[i].tail);
        struct json_fault f = { .kind = JSON_FINE };
        assert_int_equal(json_check(buf_bytes(&text), 32, &f), hostile[i].kind == JSON_FINE);
        assert_int_equal(f.kind, hostile[i].kind);
        buf_done(&text);
    }
}

static void counts_objects_and_arrays_up_to_the_limit(void **state)
{
    (void)state;
    for (int count = JSON_MOST_CONTAINERS; count <= JSON_MOST_CONTAINERS + 1; count++) {
        struct buf text = BUF_INIT(1 << 20);
        struct json_fault f;
        buf_puts(&text, "{\"a\":[{}");
        for (int i = 3; i < count; i++) buf_puts(&text, ",{}");
        buf_puts(&text, "]}");
        assert_int_equal(json_check(buf_bytes(&text), 32, &f), count <= JSON_MOST_CONTAINERS);
        buf_done(&text);
    }
}

static void finds_one_repeat_among_ten_thousand_members(void **state)
{
    (void)state;
    struct json_fault f;
    struct buf text = BUF_INIT(1 << 20);
    buf_puts(&text, "{");
    for (int i = 0; i < 10000; i++) buf_printf(&text, "\"m%d\":%d,", i, i);
    size_t unique = text.len;
    buf_puts(&text, "\"m10000\":0}");
    assert_true(json_check(buf_bytes(&text), 32, &f));
    memcpy(text.data + unique, "\"m09999\":0}", 11);
    assert_true(json_check(buf_bytes(&text), 32, &f));
    memcpy(text.data + unique, "\"m9999\":00}", 11);
    text.data[unique + 9] = ' ';
    assert_false(json_check(buf_bytes(&text), 32, &f));
    assert_string_equal(f.pointer, "/m9999");
    buf_done(&text);
}

static void values_are_equal_by_what_they_mean(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        bool equal;
    } pairs[] = {
        { "null", "null", true },
        { "true", "false", false },
        { "null", "false", false },
        { "1", "1", true },
        { "1", "\"1\"", false },
        { "1", "1.0", true },
        { "100", "1e2", true },
        { "0.5", "5E-1", true },
        { "1", "2", false },
        { "1.5", "1.25", false },
        { "9007199254740993", "9007199254740992", false },
        { "123456789012345678901234567890", "123456789012345678901234567891", false },
        { "123456789012345678901234567890", "123456789012345678901234567890", true },
        { "\"a\\/b\"", "\"a/b\"", true },
        { "\"\\u00e4\"", "\"\xc3\xa4\"", true },
        { "\"\\ud800\"", "\"\\ud801\"", false },
        { "\"a\"", "\"b\"", false },
        { "[]", "[ ]", true },
        { "[]", "{}", false },
        { "[1,2]", "[ 1 , 2 ]", true },
        { "[1,2]", "[2,1]", false },
        { "[1]", "[1,1]", false },
        { "[1,1]", "[1]", false },
        { "{}", "{ }", true },
        { "{\"a\":1,\"b\":[{}]}", "{ \"b\":[ { } ], \"\\u0061\":1 }", true },
        { "{\"a\":1}", "{\"a\":2}", false },
        { "{\"a\":1}", "{\"b\":1}", false },
        { "{\"a\":null}", "{}", false },
        { "{}", "{\"a\":null}", false },
        { "{\"a\":1,\"b\":2}", "{\"a\":1}", false },
        { "{\"a\":1,\"a\":2}", "{\"a\":2}", true },
        { "{\"a\":1,\"a\":2}", "{\"a\":1}", false },
        { "{\"a\":1,\"b\":3,\"a\":2}", "{\"a\":7,\"\\u0061\":2,\"b\":3}", true },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct bytes a = bytes_of(pairs[i].a), b = bytes_of(pairs[i].b);
        if (json_equal(a, b) != pairs[i].equal || json_equal(b, a) != pairs[i].equal)
            fail_msg("%s and %s", pairs[i].a, pairs[i].b);
    }
}

static void large_objects_are_equal_in_any_order(void **state)
{
    (void)state;
    struct buf up = BUF_INIT(1 << 20), down = BUF_INIT(1 << 20);
    for (int i = 0; i < 5000; i++) {
        buf_printf(&up, "%s\"m%d\":%d", i ? "," : "{", i, i);
        buf_printf(&down, "%s\"m%d\":%d", i ? "," : "{", 4999 - i, 4999 - i);
    }
    buf_puts(&up, "}");
    buf_puts(&down, "}");
    assert_true(json_equal(buf_bytes(&up), buf_bytes(&down)));
    up.data[up.len - 2] = '0';
    assert_false(json_equal(buf_bytes(&up), buf_bytes(&down)));
    buf_done(&up);
    buf_done(&down);
}

static void reads_iso_times(void **state)
{
    (void)state;
    static const struct {
        const char *raw;
        int64_t ms;
    } times[] = {
        { "\"2026-01-31T23:59:59.123Z\"", 1769903999123 },
        { "\"2026-01-31T23:59:59Z\"", 1769903999000 },
        { "\"2026-01-31T23:59:59.1Z\"", 1769903999100 },
        { "\"2026-01-31T23:59:59.123999999Z\"", 1769903999123 },
        { "\"2026-02-01T01:29:59.123+01:30\"", 1769903999123 },
        { "\"2026-01-31T15:59:59.123-08:00\"", 1769903999123 },
        { "\"2024-02-29T12:00:00Z\"", 1709208000000 },
        { "\"1970-01-01T00:00:00.000Z\"", 0 },
        { "\"1969-12-31T23:59:59.999Z\"", -1 },
        { "\"2026\\u002d01-31T23:59:59.123Z\"", 1769903999123 },
    };
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        int64_t ms = 42;
        if (!json_iso_time(bytes_of(times[i].raw), &ms)) fail_msg("refused: %s", times[i].raw);
        assert_int_equal(ms, times[i].ms);
        assert_true(json_iso_time(bytes_of(times[i].raw), NULL));
    }
}

static void refuses_what_is_no_complete_iso_time(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "\"\"",
        "1769903999123",
        "null",
        "2026-01-31T23:59:59.123Z",
        "\"2026-01-31\"",
        "\"2026-01-31T23:59:59\"",
        "\"2026-01-31T23:59Z\"",
        "\"2026-01-31 23:59:59Z\"",
        "\"2026-01-31T23:59:59.Z\"",
        "\"2026-01-31T23:59:59,5Z\"",
        "\"2026-01-31T23:59:59z\"",
        "\"2026-01-31T23:59:59ZZ\"",
        "\"2026-01-31T23:59:59Z \"",
        "\" 2026-01-31T23:59:59Z\"",
        "\"2026-01-31T23:59:59Z\\u0000\"",
        "\"2026-01-31T23:59:59+0100\"",
        "\"2026-01-31T23:59:59+01\"",
        "\"2026-01-31T23:59:59+24:00\"",
        "\"2026-01-31T23:59:59+01:60\"",
        "\"2026-13-01T00:00:00Z\"",
        "\"2026-00-01T00:00:00Z\"",
        "\"2026-01-00T00:00:00Z\"",
        "\"2026-01-32T00:00:00Z\"",
        "\"2026-04-31T00:00:00Z\"",
        "\"2026-02-29T00:00:00Z\"",
        "\"2026-01-31T24:00:00Z\"",
        "\"2026-01-31T23:60:00Z\"",
        "\"2026-01-31T23:59:60Z\"",
        "\"26-01-31T23:59:59Z\"",
        "\"+002026-01-31T23:59:59Z\"",
        "\"Sat Jan 31 2026\"",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int64_t ms = 42;
        if (json_iso_time(bytes_of(wrong[i]), &ms)) fail_msg("accepted: %s", wrong[i]);
        assert_int_equal(ms, 42);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_documents_with_odd_but_valid_content),
        cmocka_unit_test(says_where_text_stops_being_json),
        cmocka_unit_test(wants_an_object),
        cmocka_unit_test(points_at_what_is_nested_too_deep),
        cmocka_unit_test(takes_exactly_as_many_levels_as_allowed),
        cmocka_unit_test(points_at_the_member_that_stands_twice),
        cmocka_unit_test(refuses_names_that_other_programs_would_read_differently),
        cmocka_unit_test(cuts_a_long_pointer_at_a_whole_segment),
        cmocka_unit_test(fills_a_pointer_to_its_last_byte),
        cmocka_unit_test(refuses_hostile_depth_and_width_of_any_size),
        cmocka_unit_test(counts_objects_and_arrays_up_to_the_limit),
        cmocka_unit_test(finds_one_repeat_among_ten_thousand_members),
        cmocka_unit_test(values_are_equal_by_what_they_mean),
        cmocka_unit_test(large_objects_are_equal_in_any_order),
        cmocka_unit_test(reads_iso_times),
        cmocka_unit_test(refuses_what_is_no_complete_iso_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
