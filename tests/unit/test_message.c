#include "message.h"

#include "test.h"

#include <stdlib.h>
#include <string.h>

#define ORIGINAL                                                                                                       \
    "{\"id\":\"msg-1700000000000-abc\",\"type\":\"cache_invalidate\",\"payload\":{\"keys\":[\"a\",\"b*\"]},"           \
    "\"timestamp\":1700000000000,\"sourcePod\":\"pod-1\",\"priority\":\"high\"}"

static struct message m;
static struct err e;

static bool read_text(const char *text)
{
    return message_read(bytes_of(text), &m, &e);
}

static void a_message_of_the_original_is_read(void **state)
{
    (void)state;
    assert_true(read_text(ORIGINAL));
    assert_int_equal(m.type, MESSAGE_CACHE_INVALIDATE);
    assert_int_equal(m.priority, MESSAGE_HIGH);
    assert_true(m.timestamp_ms == 1700000000000);
    assert_string_equal(m.source, "pod-1");
    assert_true(bytes_is(m.payload, "{\"keys\":[\"a\",\"b*\"]}"));
    assert_true(m.boot == 0);
}

static void what_is_no_message_is_refused(void **state)
{
    (void)state;
    static const char *const wrong[] = {
        "",
        "null",
        "[]",
        "{",
        "42",
        "\"x\"",
        "{}",
        "{\"type\":\"broadcast\"}",
        "{\"type\":\"broadcast\",\"sourcePod\":\"p\"}",
        "{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":null}",
        "{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":[]}",
        "{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":\"{}\"}",
        "{\"type\":\"broadcast\",\"sourcePod\":\"\",\"payload\":{}}",
        "{\"type\":\"broadcast\",\"sourcePod\":7,\"payload\":{}}",
        "{\"type\":\"broadcast\",\"sourcePod\":\"a\\u0000b\",\"payload\":{}}",
        "{\"type\":7,\"sourcePod\":\"p\",\"payload\":{}}",
        "{\"type\":\"cache_invalidate\",\"sourcePod\":\"p\",\"payload\":{}}",
        "{\"type\":\"cache_invalidate\",\"sourcePod\":\"p\",\"payload\":{\"keys\":{}}}",
        "{\"type\":\"cache_invalidate\",\"sourcePod\":\"p\",\"payload\":{\"keys\":\"a\"}}",
        "{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":{}} ,",
        "{\"type\":\"broadcast\",\"sourcePod\":\"\xff\",\"payload\":{}}",
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        e.text[0] = '\0';
        if (read_text(wrong[i])) fail_msg("%s", wrong[i]);
        assert_int_equal(e.kind, ERR_INPUT);
        assert_true(e.text[0] != '\0');
    }
}

static void what_is_missing_beside_that_does_not_matter(void **state)
{
    (void)state;
    assert_true(read_text("{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":{}}"));
    assert_int_equal(m.priority, MESSAGE_NORMAL);
    assert_true(m.timestamp_ms == 0);
    assert_true(read_text("{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":{},\"priority\":\"urgent\","
                          "\"timestamp\":\"now\",\"seq\":\"1\",\"boot\":3,\"new\":[1]}"));
    assert_int_equal(m.priority, MESSAGE_NORMAL);
    assert_true(m.boot == 0);
    assert_true(read_text("{\"type\":\"moon_phase\",\"sourcePod\":\"p\",\"payload\":{}}"));
    assert_int_equal(m.type, MESSAGE_UNKNOWN);
}

static void a_message_that_is_too_long_or_too_deep_is_refused(void **state)
{
    (void)state;
    struct buf text = BUF_INIT(1 << 20);
    buf_puts(&text, "{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":{\"x\":\"");
    while (text.len < MESSAGE_MOST_BYTES - 3) buf_puts(&text, "y");
    buf_puts(&text, "\"}}");
    assert_true(text.len == MESSAGE_MOST_BYTES);
    assert_true(message_read(buf_bytes(&text), &m, &e));
    buf_puts(&text, " ");
    assert_false(message_read(buf_bytes(&text), &m, &e));
    buf_reset(&text);
    buf_puts(&text, "{\"type\":\"broadcast\",\"sourcePod\":\"p\",\"payload\":{\"x\":");
    for (int i = 0; i < 40; i++) buf_puts(&text, "[");
    for (int i = 0; i < 40; i++) buf_puts(&text, "]");
    buf_puts(&text, "}}");
    assert_false(message_read(buf_bytes(&text), &m, &e));
    buf_done(&text);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    struct buf text = BUF_INIT(4096);
    struct message sent = { .type = MESSAGE_RATE_LIMIT_SYNC,
                            .priority = MESSAGE_LOW,
                            .timestamp_ms = 12,
                            .source = "pod \"1\"/worker",
                            .payload = BYTES_LITERAL("{\"platform\":\"github\",\"usage\":1}"),
                            .boot = 99,
                            .seq = 7 };
    message_write(&sent, "1-2", &text);
    assert_true(message_read(buf_bytes(&text), &m, &e));
    assert_int_equal(m.type, sent.type);
    assert_int_equal(m.priority, sent.priority);
    assert_true(m.timestamp_ms == 12 && m.seq == 7);
    assert_string_equal(m.source, sent.source);
    assert_true(bytes_is(message_pod(m.source), "pod \"1\""));
    assert_true(bytes_equal(m.payload, sent.payload));
    uint64_t boot = m.boot;
    assert_true(boot != 0);
    buf_reset(&text);
    sent.boot = 100; /* another start of the same sender */
    message_write(&sent, "1-2", &text);
    assert_true(message_read(buf_bytes(&text), &m, &e) && m.boot != boot);
    buf_reset(&text);
    sent.seq = 0;
    message_write(&sent, "1-2", &text);
    assert_null(strstr(buf_text(&text), "seq"));
    buf_done(&text);
}

static void a_rate_limit_is_read_in_each_of_its_forms(void **state)
{
    (void)state;
    struct message_limit l;
    assert_false(message_limit_read(bytes_of("{\"usage\":1}"), &l));
    assert_false(message_limit_read(bytes_of("{\"platform\":7}"), &l));
    assert_true(message_limit_read(bytes_of("{\"platform\":\"github\",\"usage\":87.5}"), &l));
    assert_string_equal(l.platform, "github");
    assert_string_equal(l.endpoint, "global");
    assert_true(l.usage_permille == 875 && l.limit == -1 && l.remaining == -1 && l.reset_ms == -1);
    assert_true(message_limit_read(bytes_of("{\"platform\":\"github\",\"usage\":{\"limit\":5000,\"remaining\":1250,"
                                            "\"endpoint\":\"core\",\"resetTime\":1700000000000,\"retryAfter\":30}}"),
                                   &l));
    assert_string_equal(l.endpoint, "core");
    assert_true(l.limit == 5000 && l.remaining == 1250 && l.usage_permille == 750 && l.retry_after_s == 30);
    assert_true(l.reset_ms == 1700000000000);
    assert_true(
        message_limit_read(bytes_of("{\"platform\":\"jira\",\"endpoint\":\"global\",\"limit\":10,\"remaining\":0,"
                                    "\"usage\":{\"remaining\":5}}"),
                           &l));
    assert_true(l.remaining == 0 && l.usage_permille == 1000);
    assert_true(message_limit_read(
        bytes_of("{\"platform\":\"x\",\"limit\":-1,\"remaining\":1e300,\"usage\":-4,\"retryAfter\":1}"), &l));
    assert_true(l.limit == -1 && l.remaining == -1 && l.usage_permille == -1 && l.retry_after_s == 1);
}

static void a_report_without_a_number_is_none(void **state)
{
    static const char *const payloads[] = {
        "{\"platform\":\"x\"}",
        "{\"platform\":\"x\",\"nonsense\":1}",
        "{\"platform\":\"x\",\"endpoint\":\"core\",\"usage\":\"x\"}",
        "{\"platform\":\"x\",\"usage\":{\"endpoint\":\"core\",\"limit\":null}}",
        "{\"platform\":\"x\",\"limit\":-1,\"remaining\":1e300,\"usage\":-4,\"retryAfter\":0}",
    };
    struct message_limit l;
    (void)state;
    for (size_t i = 0; i < sizeof payloads / sizeof payloads[0]; i++) {
        assert_false(message_limit_read(bytes_of(payloads[i]), &l));
        assert_false(message_payload_check(MESSAGE_RATE_LIMIT_SYNC, bytes_of(payloads[i]), &e));
        assert_int_equal(e.kind, ERR_INPUT);
        assert_true(message_payload_check(MESSAGE_BROADCAST, bytes_of(payloads[i]), &e));
    }
}

static void a_number_that_is_none_is_none(void **state)
{
    (void)state;
    int64_t n = 5;
    assert_true(message_number(bytes_of("{\"n\":-12.9}"), "n", &n) && n == -12);
    assert_true(message_number(bytes_of("{\"n\":9e15}"), "n", &n));
    assert_false(message_number(bytes_of("{\"n\":1e16}"), "n", &n));
    assert_false(message_number(bytes_of("{\"n\":1e999}"), "n", &n));
    assert_false(message_number(bytes_of("{\"n\":\"1\"}"), "n", &n));
    assert_false(message_number(bytes_of("{\"m\":1}"), "n", &n));
    assert_false(message_number(bytes_of("{\"n\":1.00000000000000000000000000000000000000000000}"), "n", &n));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_message_of_the_original_is_read),
        cmocka_unit_test(what_is_no_message_is_refused),
        cmocka_unit_test(what_is_missing_beside_that_does_not_matter),
        cmocka_unit_test(a_message_that_is_too_long_or_too_deep_is_refused),
        cmocka_unit_test(what_is_written_is_read),
        cmocka_unit_test(a_rate_limit_is_read_in_each_of_its_forms),
        cmocka_unit_test(a_report_without_a_number_is_none),
        cmocka_unit_test(a_number_that_is_none_is_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
