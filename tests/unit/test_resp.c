#include "resp.h"

#include "test.h"

#include <string.h>

static struct bytes bytes(const struct buf *b)
{
    return buf_bytes(b);
}

static void a_command_is_a_list_of_strings(void **state)
{
    (void)state;
    struct buf out = BUF_INIT(1024);
    resp_command(&out, 3, (struct bytes[]){ BYTES_LITERAL("SET"), BYTES_LITERAL("a\0b"), BYTES_LITERAL("") });
    assert_true(bytes_equal(bytes(&out), BYTES_LITERAL("*3\r\n$3\r\nSET\r\n$3\r\na\0b\r\n$0\r\n\r\n")));
    buf_done(&out);
}

/* What passes where strings have at most 8 bytes, if `in` comes in pieces of `piece` bytes. */
static void assert_passes(struct bytes in, struct bytes expected)
{
    struct buf out = BUF_INIT(1024);
    for (size_t piece = 1; piece <= in.len; piece++) {
        struct resp_sieve s = { .most_bytes = 8 };
        buf_reset(&out);
        for (size_t at = 0; at < in.len; at += piece) {
            size_t before = out.len, n = in.len - at < piece ? in.len - at : piece;
            resp_sieve(&s, (struct bytes){ in.at + at, n }, &out);
            assert_true(out.len - before <= n + RESP_SIEVE_KEEPS);
        }
        if (!bytes_equal(bytes(&out), expected)) fail_msg("in pieces of %zu bytes: %s", piece, buf_text(&out));
    }
    buf_done(&out);
}

static void what_is_not_too_long_passes_as_it_is(void **state)
{
    (void)state;
    static const struct bytes whole[] = {
        BYTES_LITERAL("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$8\r\n12345678\r\n"),
        BYTES_LITERAL("*3\r\n$8\r\n\r\n$900\r\n\r\n$0\r\n\r\n$-1\r\n:12\r\n"), /* a string may hold anything */
        BYTES_LITERAL(
            "+OK\r\n-ERR a line that is much longer than any length of a string could ever be $12\r\n*-1\r\n"),
        BYTES_LITERAL("*2\r\n*2\r\n$1\r\n\0\r\n*0\r\n:-5\r\n"),
        BYTES_LITERAL("-$99 is no length, and neither is what stands behind 32 bytes of it: $99\r\n$1\r\na\r\n"),
    };
    for (size_t i = 0; i < sizeof whole / sizeof whole[0]; i++) assert_passes(whole[i], whole[i]);
}

static void what_is_too_long_becomes_an_empty_string(void **state)
{
    (void)state;
    assert_passes(BYTES_LITERAL("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$9\r\n$1\r\na\r\n$1\r\n*1\r\n$1\r\nb\r\n"),
                  BYTES_LITERAL("*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$0\r\n\r\n*1\r\n$1\r\nb\r\n"));
    assert_passes(BYTES_LITERAL("$536870912\r\nand so on, for half a gigabyte"), BYTES_LITERAL("$0\r\n\r\n"));
    assert_passes(BYTES_LITERAL("$99999999999999999999999\r\nand so on"), BYTES_LITERAL("$0\r\n\r\n"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_command_is_a_list_of_strings),
        cmocka_unit_test(what_is_not_too_long_passes_as_it_is),
        cmocka_unit_test(what_is_too_long_becomes_an_empty_string),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
