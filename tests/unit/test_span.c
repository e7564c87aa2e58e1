#include "test.h"

#include "mem.h"
#include "span.h"

/* On the heap without a byte to spare, so that ASan sees a read past the end. */
static struct bytes heap_copy(struct bytes text)
{
    char *copy = mem_alloc(text.len);
    if (text.len > 0) memcpy(copy, text.at, text.len);
    return (struct bytes){ copy, text.len };
}

static enum span_check check(struct bytes text, int max_depth, size_t *at)
{
    struct bytes copy = heap_copy(text);
    enum span_check found = span_check_object(copy, max_depth, at);
    free((char *)copy.at);
    return found;
}

static char *repeat(const char *unit, size_t times)
{
    size_t len = strlen(unit);
    char *text = mem_alloc(len * times + 1);
    for (size_t i = 0; i < times; i++) memcpy(text + i * len, unit, len);
    return text;
}

static const char *const objects[] = {
    "{}",
    " \t\r\n{ \t\r\n} \t\r\n",
    "{\"\":\"\"}",
    "{ \"a\" : [ 1 , { } , [ ] , null , true , false ] }",
    "{\"n\":[0,-0,1,-1,10,0.5,-0.0,1e5,1E+5,1e-5,0e0,1.25E2,123456789012345678901234567890,1e999]}",
    "{\"s\":\"\\\"\\\\\\/\\b\\f\\n\\r\\t\\u0000\\uD83D\\ude00\\ud800\"}",
    "{\"plain\":\"exactly eight\",\"\x7f\":\"\x7f\"}",
    "{\"utf8\":\"\xc2\x80 \xdf\xbf \xe0\xa0\x80 \xed\x9f\xbf \xee\x80\x80 \xf0\x90\x80\x80 \xf4\x8f\xbf\xbf\"}",
    "{\"a\":1,\"a\":2,\"\\u0061\":3}",
    "{\"a\":{\"b\":{\"c\":[[[{\"d\":[]}]]]}}}",
};
#define OBJECTS (sizeof objects / sizeof objects[0])

static void accepts_every_form_that_rfc_8259_allows(void **state)
{
    (void)state;
    size_t at;
    for (size_t i = 0; i < OBJECTS; i++)
        if (check(bytes_of(objects[i]), 0, &at) != SPAN_OK) fail_msg("refused at %zu: %s", at, objects[i]);
}

static void refuses_what_is_not_json_and_says_at_which_byte(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t at;
    } wrong[] = {
        { "", 0 },
        { "  ", 2 },
        { "{", 1 },
        { "}", 0 },
        { "{}}", 2 },
        { "{} x", 3 },
        { "{} {}", 3 },
        { "{]", 1 },
        { "{\"a\":[}", 6 },
        { "{\"a\":[1}", 7 },
        { "{\"a\":1]", 6 },
        { "{,}", 1 },
        { "{\"a\":1,}", 7 },
        { "{\"a\":[1,]}", 8 },
        { "{\"a\":[,1]}", 6 },
        { "{\"a\":[1 2]}", 8 },
        { "{\"a\" 1}", 5 },
        { "{\"a\"}", 4 },
        { "{\"a\":}", 5 },
        { "{a:1}", 1 },
        { "{'a':1}", 1 },
        { "{1:1}", 1 },
        { "{\"a\":1 \"b\":2}", 7 },
        { "{\"a\":01}", 6 },
        { "{\"a\":-}", 6 },
        { "{\"a\":+1}", 5 },
        { "{\"a\":.5}", 5 },
        { "{\"a\":1.}", 7 },
        { "{\"a\":1e}", 7 },
        { "{\"a\":1e+}", 8 },
        { "{\"a\":0x1}", 6 },
        { "{\"a\":NaN}", 5 },
        { "{\"a\":nan}", 5 },
        { "{\"a\":Infinity}", 5 },
        { "{\"a\":-Infinity}", 6 },
        { "{\"a\":nul}", 5 },
        { "{\"a\":nulll}", 9 },
        { "{\"a\":True}", 5 },
        { "{\"a\":undefined}", 5 },
        { "{\"a\":1/**/}", 6 },
        { "{\"a\":\"", 6 },
        { "{\"a\":\"\\", 6 },
        { "{\"a\":\"\\x\"}", 6 },
        { "{\"a\":\"\\u12\"}", 6 },
        { "{\"a\":\"\\u12g4\"}", 6 },
        { "{\"a\":\"\\U0041\"}", 6 },
        { "{\"a\":\"tab\there\"}", 9 },
        { "{\"line\nfeed\":1}", 6 },
        { "{\"a\":\"\x1f\"}", 6 },
        { "{\"a\":\"0123456\x01\"}", 13 },
        { "{\"a\":\"\x80\"}", 6 },
        { "{\"a\":\"\xc0\x80\"}", 6 },
        { "{\"a\":\"\xc1\xbf\"}", 6 },
        { "{\"a\":\"\xe0\x9f\xbf\"}", 6 },
        { "{\"a\":\"\xed\xa0\x80\"}", 6 },
        { "{\"a\":\"\xf0\x8f\xbf\xbf\"}", 6 },
        { "{\"a\":\"\xf4\x90\x80\x80\"}", 6 },
        { "{\"a\":\"\xf5\x80\x80\x80\"}", 6 },
        { "{\"a\":\"\xe2\x82\"}", 6 },
        { "{\"a\xff\":1}", 3 },
        { "\xef\xbb\xbf{}", 0 },
        { "[1,2", 4 },
        { "{\xc2\xa0}", 1 },
        { "{\"a\":\f1}", 5 },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        size_t at = 999;
        if (check(bytes_of(wrong[i].text), 0, &at) != SPAN_MALFORMED) fail_msg("accepted: %s", wrong[i].text);
        if (at != wrong[i].at) fail_msg("at %zu, not %zu: %s", at, wrong[i].at, wrong[i].text);
    }
}

static void refuses_a_nul_byte_wherever_it_stands(void **state)
{
    (void)state;
    const struct bytes whole = BYTES_LITERAL("{ \"name\" : [ 12.5e3 , \"v\\n\\u12abalue\" , true ] } ");
    for (size_t i = 0; i < whole.len; i++) {
        struct bytes copy = heap_copy(whole);
        size_t at = 999;
        ((char *)copy.at)[i] = '\0';
        assert_int_equal(span_check_object(copy, 0, &at), SPAN_MALFORMED);
        assert_true(at <= i);
        free((char *)copy.at);
    }
}

static void tells_json_that_is_no_object_from_what_is_no_json(void **state)
{
    (void)state;
    static const char *const values[] = { "[]", " [{}]", "1", "-0.5e1", "\"text\"", "null", "true ", "\n false" };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        size_t at;
        assert_int_equal(check(bytes_of(values[i]), 0, &at), SPAN_NOT_OBJECT);
        assert_int_equal(at, strspn(values[i], " \n"));
    }
    size_t at;
    assert_int_equal(span_check_object((struct bytes){ NULL, 0 }, 0, &at), SPAN_MALFORMED);
}

static void refuses_every_text_that_is_cut_short(void **state)
{
    (void)state;
    for (size_t i = 0; i < OBJECTS; i++) {
        size_t at, end = strlen(objects[i]);
        while (objects[i][end - 1] != '}') end--;
        for (size_t len = 0; len < end; len++) {
            assert_int_equal(check((struct bytes){ objects[i], len }, 0, &at), SPAN_MALFORMED);
            assert_true(at <= len);
        }
    }
}

static void finds_the_end_of_a_string_at_every_offset_in_a_word(void **state)
{
    (void)state;
    static const char *const stops[] = { "\"}", "\\n\"}", "\xc3\xa4\"}", "\x1f\"}", "\xff\"}" };
    for (size_t stop = 0; stop < 5; stop++)
        for (size_t plain = 0; plain < 40; plain++) {
            struct buf text = BUF_INIT(100);
            size_t at = 0;
            buf_puts(&text, "{\"a\":\"");
            for (size_t i = 0; i < plain; i++) buf_append(&text, &"!#[]~ \x7f"[i % 7], 1);
            buf_puts(&text, stops[stop]);
            assert_int_equal(check(buf_bytes(&text), 0, &at), stop < 3 ? SPAN_OK : SPAN_MALFORMED);
            assert_int_equal(at, stop < 3 ? 0 : plain + 6);
            buf_done(&text);
        }
}

static void limits_the_depth_and_says_which_bracket_is_too_much(void **state)
{
    (void)state;
    size_t at;
    const struct bytes three = BYTES_LITERAL("{\"a\":[0,{\"b\":1}]}");
    assert_int_equal(check(three, 3, &at), SPAN_OK);
    assert_int_equal(check(three, 2, &at), SPAN_TOO_DEEP);
    assert_int_equal(at, 8);
    assert_int_equal(check(three, 1, &at), SPAN_TOO_DEEP);
    assert_int_equal(at, 5);
}

static void knows_at_every_level_which_bracket_must_close(void **state)
{
    (void)state;
    bool object[SPAN_MOST_LEVELS];
    uint32_t random = 1;
    size_t at;
    struct buf text = BUF_INIT(1 << 20);
    for (int level = 0; level < SPAN_MOST_LEVELS; level++) {
        random = random * 1664525 + 1013904223;
        object[level] = level == 0 || random >> 31;
        buf_puts(&text, object[level] ? "{\"a\":" : "[");
    }
    buf_puts(&text, "0");
    for (int level = SPAN_MOST_LEVELS; level-- > 0;) buf_puts(&text, object[level] ? "}" : "]");
    assert_int_equal(span_check_object(buf_bytes(&text), 0, &at), SPAN_OK);
    for (size_t closer = text.len - SPAN_MOST_LEVELS; closer < text.len; closer++) {
        text.data[closer] ^= '}' ^ ']';
        assert_int_equal(span_check_object(buf_bytes(&text), 0, &at), SPAN_MALFORMED);
        assert_int_equal(at, closer);
        text.data[closer] ^= '}' ^ ']';
    }
    buf_done(&text);
}

static void caps_even_unlimited_depth(void **state)
{
    (void)state;
    size_t at;
    char *brackets = repeat("[", 100000);
    assert_int_equal(span_check_object(bytes_of(brackets), 0, &at), SPAN_TOO_DEEP);
    assert_int_equal(at, SPAN_MOST_LEVELS);
    free(brackets);
}

static void assert_bytes(struct bytes is, const char *expected)
{
    if (!bytes_is(is, expected)) fail_msg("\"%.*s\", not \"%s\"", (int)is.len, is.at, expected);
}

static void walks_members_and_shows_all_that_belongs_to_each(void **state)
{
    (void)state;
    static const struct {
        const char *name, *value, *around;
    } expected[] = {
        { "a", "1", " \"a\" : 1 " },
        { "b\\\"}", "{\"x\":[\"]\",{}]}", "\"b\\\"}\":{\"x\":[\"]\",{}]}" },
        { "", "\"\\\\\"", "\n\"\":\"\\\\\" " },
        { "n", "-1.5e3", "\"n\":-1.5e3" },
        { "t", "true", " \"t\":\ttrue" },
    };
    const struct bytes object =
        BYTES_LITERAL(" { \"a\" : 1 ,\"b\\\"}\":{\"x\":[\"]\",{}]},\n\"\":\"\\\\\" ,\"n\":-1.5e3, \"t\":\ttrue} ");
    struct span_walk w = span_walk(object);
    struct span_member m;
    for (size_t i = 0; i < 5; i++) {
        assert_true(span_next(&w, &m));
        assert_bytes(m.name, expected[i].name);
        assert_bytes(m.value, expected[i].value);
        assert_bytes(m.around, expected[i].around);
    }
    assert_false(span_next(&w, &m));
    assert_false(span_next(&w, &m));
}

static void walks_elements_of_an_array(void **state)
{
    (void)state;
    static const char *const expected[] = { "[ ]", "\",\"", "null", "{\"a\":[1,2]}", "7" };
    struct span_walk w = span_walk(BYTES_LITERAL("[ [ ],\",\" , null,{\"a\":[1,2]},7\n]"));
    struct span_member m;
    for (size_t i = 0; i < 5; i++) {
        assert_true(span_next(&w, &m));
        assert_bytes(m.value, expected[i]);
        assert_int_equal(m.name.len, 0);
    }
    assert_false(span_next(&w, &m));
}

static void walks_over_nothing(void **state)
{
    (void)state;
    static const char *const empty[] = { "{}", "{ \n}", "[]", " [ ] ", "" };
    struct span_member m;
    for (size_t i = 0; i < 5; i++) {
        struct span_walk w = span_walk(bytes_of(empty[i]));
        assert_false(span_next(&w, &m));
    }
}

static void never_leaves_a_text_that_was_not_checked(void **state)
{
    (void)state;
    for (size_t i = 0; i < OBJECTS; i++)
        for (size_t len = 0; len <= strlen(objects[i]); len++) {
            struct bytes copy = heap_copy((struct bytes){ objects[i], len }), rest = copy, name;
            struct buf text = BUF_INIT(1000);
            struct span_member m;
            for (struct span_walk w = span_walk(copy); span_next(&w, &m);) span_decode(m.value, &text);
            while (span_next_name(&rest, &name)) span_decode(name, &text);
            span_find(copy, "no such name", &m);
            assert_true(span_count_containers(copy) <= len);
            buf_done(&text);
            free((char *)copy.at);
        }
}

static void finds_a_member_by_its_decoded_name_and_the_last_one_wins(void **state)
{
    (void)state;
    const struct bytes object = BYTES_LITERAL("{\"ab\":1,\"a\":{\"ab\":2},\"\\u0061b\":3,\"abc\":4}");
    struct span_member m;
    assert_true(span_find(object, "ab", &m));
    assert_bytes(m.value, "3");
    assert_bytes(m.name, "\\u0061b");
    assert_true(span_find(object, "a", &m));
    assert_bytes(m.value, "{\"ab\":2}");
    assert_false(span_find(object, "b", &m));
    assert_false(span_find(object, "", &m));
}

static void names_are_the_same_however_they_are_escaped(void **state)
{
    (void)state;
    static const struct {
        const char *a, *b;
        bool same;
    } pairs[] = {
        { "", "", true },
        { "a", "a", true },
        { "a", "\\u0061", true },
        { "\\u0061b", "a\\u0062", true },
        { "/", "\\/", true },
        { "\\n", "\\u000a", true },
        { "\\n", "n", false },
        { "\\t\\b\\f\\r", "\\u0009\\u0008\\u000C\\u000d", true },
        { "\\\\u0061", "a", false },
        { "\\\"", "\\u0022", true },
        { "\xc3\xa4", "\\u00e4", true },
        { "\xe2\x82\xac", "\\u20AC", true },
        { "\xf0\x9f\x98\x80", "\\ud83d\\ude00", true },
        { "\\ud83d", "\\ud83e", false },
        { "\\ud800", "\xef\xbf\xbd", false },
        { "\\ud83d\\ud83d\\ude00", "\\ud83d\xf0\x9f\x98\x80", true },
        { "\\ude00\\ud83d", "\\ud83d\\ude00", false },
        { "a", "ab", false },
        { "\\u0061", "ab", false },
        { "\\u0000", "", false },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct bytes a = bytes_of(pairs[i].a), b = bytes_of(pairs[i].b);
        if (span_same_name(a, b) != pairs[i].same || span_same_name(b, a) != pairs[i].same)
            fail_msg("%s and %s", pairs[i].a, pairs[i].b);
        assert_int_equal(span_compare_names(a, b) == 0, pairs[i].same);
        assert_int_equal(span_compare_names(a, b), -span_compare_names(b, a));
    }
}

static void names_have_one_order(void **state)
{
    (void)state;
    static const char *const ascending[] = { "",        "\\u0000",      "\\n",           "A",
                                             "\\u0061", "aa",           "a\\u0062",      "b",
                                             "\\u00e4", "\xe2\x82\xac", "\\ud83d\\ude00" };
    for (size_t i = 0; i < 11; i++)
        for (size_t j = 0; j < 11; j++)
            assert_int_equal(span_compare_names(bytes_of(ascending[i]), bytes_of(ascending[j])), (i > j) - (i < j));
}

static void lists_members_by_name_and_of_a_repeated_one_the_last(void **state)
{
    static const char *const wanted[][2] = { { "a", "1" }, { "\\u0062", "4" }, { "c", "{\"a\":9}" } };
    struct bytes text = heap_copy(BYTES_LITERAL("{\"b\":2,\"c\":{\"a\":9},\"a\":1,\"\\u0062\":4}"));
    (void)state;
    struct span_members list = span_members_by_name(text);
    assert_int_equal(list.count, 3);
    for (size_t i = 0; i < list.count; i++) {
        assert_true(bytes_is(list.at[i].name, wanted[i][0]));
        assert_true(bytes_is(list.at[i].value, wanted[i][1]));
    }
    free(list.at);
    assert_int_equal(span_members_by_name(BYTES_LITERAL("{}")).count, 0);
    free((char *)text.at);
}

static void decodes_escapes_to_utf8(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        { "", "" },
        { "as it is \xc3\xa4", "as it is \xc3\xa4" },
        { "\\\"\\\\\\/\\b\\f\\n\\r\\t", "\"\\/\b\f\n\r\t" },
        { "\\u0041\\u00e4\\u20ac\\uD83D\\uDE00", "A\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80" },
        { "\xc3\xa4\\u00e4\xf0\x9f\x98\x80", "\xc3\xa4\xc3\xa4\xf0\x9f\x98\x80" },
        { "\\ud83d", "\xef\xbf\xbd" },
        { "\\ude00x", "\xef\xbf\xbdx" },
        { "\\ud83d\\n", "\xef\xbf\xbd\n" },
        { "\\ud83d\\ud83d\\ude00", "\xef\xbf\xbd\xf0\x9f\x98\x80" },
        { "\\udbff\\udfff\\ud800\\udc00", "\xf4\x8f\xbf\xbf\xf0\x90\x80\x80" },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct buf out = BUF_INIT(100);
        span_decode(bytes_of(pairs[i][0]), &out);
        assert_string_equal(buf_text(&out), pairs[i][1]);
        buf_done(&out);
    }
}

static void knows_names_that_no_c_string_can_hold(void **state)
{
    (void)state;
    assert_true(span_is_plain_text(BYTES_LITERAL("")));
    assert_true(span_is_plain_text(BYTES_LITERAL("a\\\\u0000\\n\\u0001\\ud83d\\ude00")));
    assert_false(span_is_plain_text(BYTES_LITERAL("a\\u0000")));
    assert_false(span_is_plain_text(BYTES_LITERAL("\\ud83d")));
    assert_false(span_is_plain_text(BYTES_LITERAL("\\ude00\\ud83d")));
}

static void visits_names_of_all_levels_in_text_order_and_no_values(void **state)
{
    (void)state;
    static const char *const expected[] = { "a", "b\\\"", "", "c" };
    struct bytes rest = BYTES_LITERAL("{\"a\":\"x:\",\"b\\\"\" :[\"v\",{\"\":\"\\\\\"}],\"c\"\n:{}}"), name;
    for (size_t i = 0; i < 4; i++) {
        assert_true(span_next_name(&rest, &name));
        assert_bytes(name, expected[i]);
    }
    assert_false(span_next_name(&rest, &name));
}

static void counts_objects_and_arrays_but_not_brackets_in_strings(void **state)
{
    (void)state;
    assert_int_equal(span_count_containers(BYTES_LITERAL("{\"[{\":[[],{},\"]\\\"[\"]}")), 4);
}

static void tells_types_by_their_first_byte_that_is_not_blank(void **state)
{
    (void)state;
    static const struct {
        const char *value, *name;
    } types[] = {
        { "{}", "an object" },     { "[]", "an array" }, { "\"\"", "a string" }, { "-1", "a number" },
        { " \n{} ", "an object" }, { "", "null" },       { "0", "a number" },    { "false", "a boolean" },
        { "true", "a boolean" },   { "null", "null" },
    };
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        assert_string_equal(span_type_name(span_type(bytes_of(types[i].value))), types[i].name);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(accepts_every_form_that_rfc_8259_allows),
        cmocka_unit_test(refuses_what_is_not_json_and_says_at_which_byte),
        cmocka_unit_test(refuses_a_nul_byte_wherever_it_stands),
        cmocka_unit_test(tells_json_that_is_no_object_from_what_is_no_json),
        cmocka_unit_test(refuses_every_text_that_is_cut_short),
        cmocka_unit_test(finds_the_end_of_a_string_at_every_offset_in_a_word),
        cmocka_unit_test(limits_the_depth_and_says_which_bracket_is_too_much),
        cmocka_unit_test(knows_at_every_level_which_bracket_must_close),
        cmocka_unit_test(caps_even_unlimited_depth),
        cmocka_unit_test(walks_members_and_shows_all_that_belongs_to_each),
        cmocka_unit_test(walks_elements_of_an_array),
        cmocka_unit_test(walks_over_nothing),
        cmocka_unit_test(never_leaves_a_text_that_was_not_checked),
        cmocka_unit_test(finds_a_member_by_its_decoded_name_and_the_last_one_wins),
        cmocka_unit_test(names_are_the_same_however_they_are_escaped),
        cmocka_unit_test(names_have_one_order),
        cmocka_unit_test(lists_members_by_name_and_of_a_repeated_one_the_last),
        cmocka_unit_test(decodes_escapes_to_utf8),
        cmocka_unit_test(knows_names_that_no_c_string_can_hold),
        cmocka_unit_test(visits_names_of_all_levels_in_text_order_and_no_values),
        cmocka_unit_test(counts_objects_and_arrays_but_not_brackets_in_strings),
        cmocka_unit_test(tells_types_by_their_first_byte_that_is_not_blank),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
