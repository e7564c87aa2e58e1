#include "test.h"

#include "buf.h"

#include <stdio.h>
#include <string.h>

static void an_empty_buf_is_an_empty_text(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(10);
    assert_string_equal(buf_text(&b), "");
    assert_int_equal(buf_bytes(&b).len, 0);
    buf_append(&b, NULL, 0);
    buf_add(&b, bytes_of(NULL));
    buf_puts(&b, "");
    assert_string_equal(buf_text(&b), "");
    assert_false(buf_overflowed(&b));
    buf_done(&b);
}

static void text_is_built_from_pieces_and_always_ends_in_nul(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(100000);
    for (int i = 0; i < 5000; i++) {
        buf_puts(&b, "ab");
        buf_append(&b, "cd\0ef", 5);
        buf_printf(&b, "%03d", i % 1000);
        assert_int_equal(b.len, (size_t)(i + 1) * 10);
        assert_int_equal(b.data[b.len], '\0');
    }
    assert_memory_equal(b.data + 49990, "abcd\0ef999", 11);
    buf_done(&b);
}

static void a_buf_takes_its_limit_and_not_one_byte_more(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(8);
    buf_puts(&b, "12345678");
    assert_false(buf_overflowed(&b));
    buf_puts(&b, "9");
    assert_true(buf_overflowed(&b));
    assert_string_equal(buf_text(&b), "12345678");
    buf_done(&b);
}

static void an_append_that_does_not_fit_changes_nothing_and_is_remembered(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(8);
    buf_puts(&b, "123");
    buf_printf(&b, "%s", "456789");
    assert_string_equal(buf_text(&b), "123");
    buf_puts(&b, "4"); /* would fit, but then the text would have a hole */
    assert_string_equal(buf_text(&b), "123");
    assert_true(buf_overflowed(&b));
    buf_append(&b, "x", SIZE_MAX);
    assert_string_equal(buf_text(&b), "123");
    buf_reset(&b);
    assert_false(buf_overflowed(&b));
    buf_puts(&b, "4");
    assert_string_equal(buf_text(&b), "4");
    buf_done(&b);
}

static void a_buf_of_no_bytes_overflows_at_the_first(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(0);
    buf_puts(&b, "");
    assert_false(buf_overflowed(&b));
    buf_puts(&b, "x");
    assert_true(buf_overflowed(&b));
    assert_string_equal(buf_text(&b), "");
    buf_done(&b);
}

static void trimming_keeps_small_memory_and_frees_large(void **state)
{
    (void)state;
    struct buf b = BUF_INIT(100000);
    buf_puts(&b, "small");
    const char *memory = b.data;
    buf_trim(&b, 1000);
    assert_ptr_equal(b.data, memory);
    assert_string_equal(buf_text(&b), "");
    for (int i = 0; i < 2000; i++) buf_puts(&b, "x");
    buf_trim(&b, 1000);
    assert_null(b.data);
    buf_puts(&b, "used again");
    assert_string_equal(buf_text(&b), "used again");
    buf_done(&b);
    assert_int_equal(b.limit, 100000);
}

static void bytes_are_compared_with_their_length(void **state)
{
    (void)state;
    assert_true(bytes_equal(BYTES_LITERAL("a\0b"), (struct bytes){ "a\0b", 3 }));
    assert_false(bytes_equal(BYTES_LITERAL("a\0b"), BYTES_LITERAL("a\0c")));
    assert_false(bytes_equal(BYTES_LITERAL("a"), BYTES_LITERAL("ab")));
    assert_true(bytes_equal(bytes_of(NULL), bytes_of("")));
    assert_true(bytes_is(BYTES_LITERAL("ab"), "ab"));
    assert_false(bytes_is(BYTES_LITERAL("a\0b"), "a"));
}

static void a_json_string_escapes_what_json_cannot_hold(void **state)
{
    (void)state;
    static const char *const pairs[][2] = {
        { "", "\"\"" },
        { "plain / \x7f", "\"plain / \x7f\"" },
        { "\"\\", "\"\\\"\\\\\"" },
        { "\n\r\t\b\f\x01\x1f", "\"\\n\\r\\t\\u0008\\u000c\\u0001\\u001f\"" },
        { "\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"" },
        { "a\xff"
          "b\xc3",
          "\"a\xef\xbf\xbd"
          "b\xef\xbf\xbd\"" },
        { "\xed\xa0\x80", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },
        { "\xf0\x9f\x98", "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"" },
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++) {
        struct buf b = BUF_INIT(100);
        buf_json_string(&b, bytes_of(pairs[i][0]));
        assert_string_equal(buf_text(&b), pairs[i][1]);
        buf_done(&b);
    }
    struct buf b = BUF_INIT(100);
    buf_json_string(&b, (struct bytes){ "a\0b", 3 });
    assert_string_equal(buf_text(&b), "\"a\\u0000b\"");
    buf_done(&b);
}

static void utf8_is_exactly_what_the_standard_defines(void **state)
{
    (void)state;
    for (uint32_t c = 0; c < 0x110000; c++) {
        size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
        char s[4];
        uint32_t rest = c;
        for (size_t i = n; i-- > 1; rest >>= 6) s[i] = (char)(0x80 | (rest & 0x3f));
        s[0] = (char)(rest | (n > 1 ? 0xf00u >> n & 0xff : 0)); /* n ones, then a zero */
        bool surrogate = c >= 0xd800 && c < 0xe000;
        if (utf8_sequence(s, n) != (surrogate ? 0 : n)) fail_msg("U+%04X", c);
        for (size_t cut = 1; cut < n; cut++) assert_int_equal(utf8_sequence(s, cut), 0);
        if (n > 1) {
            s[n - 1] ^= 0x40;
            assert_int_equal(utf8_sequence(s, n), 0);
        }
    }
    static const char *const wrong[] = { "\x80",
                                         "\xbf\x80",
                                         "\xc0\x80",
                                         "\xc1\xbf",
                                         "\xe0\x80\x80",
                                         "\xe0\x9f\xbf",
                                         "\xf0\x80\x80\x80",
                                         "\xf0\x8f\xbf\xbf",
                                         "\xf4\x90\x80\x80",
                                         "\xf5\x80\x80\x80",
                                         "\xf8\x88\x80\x80\x80",
                                         "\xfe",
                                         "\xff" };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(utf8_sequence(wrong[i], strlen(wrong[i])), 0);
    assert_int_equal(utf8_sequence("", 0), 0);
}

static void a_number_is_written_in_digits(void **state)
{
    (void)state;
    static const int64_t values[] = { 0, 1, 9, 10, 200, 86400000, -1, -10, INT64_MAX, INT64_MIN };
    for (size_t i = 0; i < sizeof values / sizeof values[0]; i++) {
        struct number n;
        char expected[32];
        snprintf(expected, sizeof expected, "%lld", (long long)values[i]);
        assert_true(bytes_is(number(&n, values[i]), expected));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_buf_is_an_empty_text),
        cmocka_unit_test(text_is_built_from_pieces_and_always_ends_in_nul),
        cmocka_unit_test(a_buf_takes_its_limit_and_not_one_byte_more),
        cmocka_unit_test(an_append_that_does_not_fit_changes_nothing_and_is_remembered),
        cmocka_unit_test(a_buf_of_no_bytes_overflows_at_the_first),
        cmocka_unit_test(trimming_keeps_small_memory_and_frees_large),
        cmocka_unit_test(bytes_are_compared_with_their_length),
        cmocka_unit_test(a_number_is_written_in_digits),
        cmocka_unit_test(a_json_string_escapes_what_json_cannot_hold),
        cmocka_unit_test(utf8_is_exactly_what_the_standard_defines),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
