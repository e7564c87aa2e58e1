#include "session_line.h"

#include "test.h"

#include <string.h>

#define AT_MS 1795521600123 /* 2026-11-24T12:00:00.123Z */

static struct buf text = BUF_INIT(1 << 20);
static struct session_line line = { .doc = BUF_INIT(1 << 16) };
static struct json_fault fault;

static bool read_(const char *s)
{
    return session_line_read(bytes_of(s), &line, &fault);
}

static void a_line_reads_as_it_looks(void **state)
{
    (void)state;
    buf_reset(&text);
    session_line_write(BYTES_LITERAL("a-1"), BYTES_LITERAL("{\"a\": 1}"), AT_MS, &text);
    assert_string_equal(
        buf_text(&text),
        "{\"id\":\"a-1\",\"expiresAt\":\"2026-11-24T12:00:00.123Z\",\"document\":\"{\\\"a\\\": 1}\"}\n");
    buf_reset(&text);
    session_line_write(BYTES_LITERAL("a"), BYTES_LITERAL("{}"), 0, &text);
    assert_string_equal(buf_text(&text), "{\"id\":\"a\",\"expiresAt\":null,\"document\":\"{}\"}\n");
}

static void every_byte_of_a_document_comes_back(void **state)
{
    static const char *const docs[] = { "{}", " \r\n\t{ \"a\" : 1 , \"a\" : 2 }\n",
                                        "{\"\\ud800\":\"\\u0000\\/\\\\\\\"\"}",
                                        "{\"\xc3\xa4\xf0\x9f\x98\x80\":\"\x7f\xe2\x80\xa8\"}",
                                        "{\"n\":1E+400,\"i\":123456789012345678901234567890}" };
    (void)state;
    for (size_t i = 0; i < sizeof docs / sizeof docs[0]; i++) {
        buf_reset(&text);
        assert_true(session_line_fits(BYTES_LITERAL("id"), bytes_of(docs[i])));
        session_line_write(BYTES_LITERAL("id"), bytes_of(docs[i]), AT_MS, &text);
        assert_ptr_equal(strchr(buf_text(&text), '\n'), buf_text(&text) + text.len - 1);
        assert_true(session_line_read((struct bytes){ text.data, text.len - 1 }, &line, &fault));
        assert_string_equal(line.id, "id");
        assert_int_equal(line.expires_at_ms, AT_MS);
        assert_true(bytes_equal(buf_bytes(&line.doc), bytes_of(docs[i])));
    }
}

static void what_no_node_would_serve_is_no_session(void **state)
{
    (void)state;
    assert_false(session_line_fits(BYTES_LITERAL("a b"), BYTES_LITERAL("{}")));
    assert_false(session_line_fits(BYTES_LITERAL(" a"), BYTES_LITERAL("{}")));
    assert_false(session_line_fits(BYTES_LITERAL(""), BYTES_LITERAL("{}")));
    assert_false(session_line_fits(BYTES_LITERAL("a"), BYTES_LITERAL("[]")));
    assert_false(session_line_fits(BYTES_LITERAL("a"), BYTES_LITERAL("{\"\xff\":1}")));
}

static void a_fault_says_where(void **state)
{
    static const struct wrong {
        const char *line, *pointer;
    } wrong[] = {
        { "", "" },
        { "[]", "" },
        { "{\"id\":\"a\",\"expiresAt\":null}", "" },
        { "{\"id\":\"a\",\"expiresAt\":null,\"document\":\"{}\",\"x\":1}", "" },
        { "{\"id\":\"a b\",\"expiresAt\":null,\"document\":\"{}\"}", "/id" },
        { "{\"id\":\"\\u0061\",\"expiresAt\":null,\"document\":\"{}\"}", "/id" },
        { "{\"id\":\"a\",\"expiresAt\":\"\",\"document\":\"{}\"}", "/expiresAt" },
        { "{\"id\":\"a\",\"expiresAt\":\"1969-01-01T00:00:00.000Z\",\"document\":\"{}\"}", "/expiresAt" },
        { "{\"id\":\"a\",\"expiresAt\":null,\"document\":null}", "/document" },
        { "{\"id\":\"a\",\"expiresAt\":null,\"document\":\"{} x\"}", "/document" },
        { "{\"id\":\"a\",\"expiresAt\":null,\"document\":\"{\\\"a\\\":\\\"\\udc00\\\"}\"}", "/document" },
    };
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_false(read_(wrong[i].line));
        assert_string_equal(fault.pointer, wrong[i].pointer);
        assert_true(fault.reason[0] != '\0');
    }
    assert_true(read_("{\"document\":\"{}\",\"expiresAt\":null,\"id\":\"a\"}"));
}

static void a_document_may_be_as_long_as_its_buf_and_no_longer(void **state)
{
    (void)state;
    buf_done(&line.doc);
    for (size_t most = 3; most <= 4; most++) {
        line.doc = (struct buf)BUF_INIT(most);
        assert_int_equal(read_("{\"id\":\"a\",\"expiresAt\":null,\"document\":\"{  }\"}"), most == 4);
        buf_done(&line.doc);
    }
    line.doc = (struct buf)BUF_INIT(1 << 16);
}

static int end(void **state)
{
    (void)state;
    buf_done(&text);
    buf_done(&line.doc);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_line_reads_as_it_looks),
        cmocka_unit_test(every_byte_of_a_document_comes_back),
        cmocka_unit_test(what_no_node_would_serve_is_no_session),
        cmocka_unit_test(a_fault_says_where),
        cmocka_unit_test(a_document_may_be_as_long_as_its_buf_and_no_longer),
    };
    return cmocka_run_group_tests(tests, NULL, end);
}
