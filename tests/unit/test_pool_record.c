#include "record.h"

#include "mem.h"
#include "test.h"

enum {
    BEGIN = 1,
    ABORT = 2,
    END = 3,
    PARAMS = 4,
    STDIN = 5,
    STDOUT = 6,
    DATA = 8,
    GET_VALUES = 9,
    GET_VALUES_RESULT = 10,
    UNKNOWN = 11
};

static struct buf text = BUF_INIT(1 << 20); /* what a front server sends */
static struct buf scratch = BUF_INIT(RECORD_MOST_PARAMS_BYTES);
static struct buf answer = BUF_INIT(1 << 20);
static struct record_request rq;

#define MOST_BODY 1000

static int fresh(void **state)
{
    (void)state;
    buf_reset(&text);
    buf_reset(&answer);
    return 0;
}

static int done(void **state)
{
    (void)state;
    buf_done(&text);
    buf_done(&scratch);
    buf_done(&answer);
    return 0;
}

static void add_padded(int type, int id, struct bytes content, uint8_t padding)
{
    static const char zeros[255];
    unsigned char h[8] = {
        1, (uint8_t)type, (uint8_t)(id >> 8), (uint8_t)id, (uint8_t)(content.len >> 8), (uint8_t)content.len, padding, 0
    };
    buf_append(&text, h, sizeof h);
    buf_add(&text, content);
    buf_append(&text, zeros, padding);
}

static void add(int type, int id, struct bytes content)
{
    add_padded(type, id, content, 0);
}

#define NOTHING   BYTES_LITERAL("")
#define RESPONDER BYTES_LITERAL("\0\1\1\0\0\0\0\0")
#define PAIRS                                                                                                          \
    BYTES_LITERAL("\4\3NAMEabc"                                                                                        \
                  "\1\0A"                                                                                              \
                  "\1\200\0\0\5Bhello")

static void add_params(struct bytes params)
{
    add(BEGIN, 1, RESPONDER);
    add(PARAMS, 1, params);
    add(PARAMS, 1, NOTHING);
    add(STDIN, 1, NOTHING);
}

/* The bytes are copied to where the sanitizer sees a step beyond them. */
static enum record_verdict scan_first(size_t bytes)
{
    char *exact = mem_alloc(bytes);
    if (bytes > 0) memcpy(exact, text.data, bytes);
    enum record_verdict verdict = record_scan((struct bytes){ exact, bytes }, MOST_BODY, &scratch, &rq);
    free(exact);
    return verdict;
}

static enum record_verdict scan(void)
{
    return scan_first(text.len);
}

static void a_request_is_whole_at_its_last_byte_and_no_other(void **state)
{
    (void)state;
    add(BEGIN, 0x1234, RESPONDER);
    add_padded(PARAMS, 0x1234, PAIRS, 255);
    add(PARAMS, 0x1234, NOTHING);
    add_padded(STDIN, 0x1234, BYTES_LITERAL("{\"a\":1}"), 1);
    add(STDIN, 0x1234, NOTHING);
    for (size_t bytes = 0; bytes < text.len; bytes++) assert_int_equal(scan_first(bytes), RECORD_MORE);
    assert_int_equal(scan(), RECORD_WHOLE);
    assert_int_equal(rq.id, 0x1234);
    assert_int_equal(rq.bytes, text.len);
    buf_append(&text, "\1", 1); /* the next request must wait for our answer */
    assert_int_equal(scan(), RECORD_BROKEN);
}

static void the_smallest_request_is_whole(void **state)
{
    (void)state;
    add(BEGIN, 1, RESPONDER);
    add(PARAMS, 1, NOTHING);
    add(STDIN, 1, NOTHING);
    assert_int_equal(scan(), RECORD_WHOLE);
}

/* libfcgi reads params as a stream, across records. */
static void params_may_be_split_anywhere(void **state)
{
    (void)state;
    struct bytes pairs = PAIRS;
    for (size_t first = 1; first < pairs.len; first++)
        for (size_t second = first; second < pairs.len; second++) {
            buf_reset(&text);
            add(BEGIN, 1, RESPONDER);
            add(PARAMS, 1, (struct bytes){ pairs.at, first });
            if (second > first) add(PARAMS, 1, (struct bytes){ pairs.at + first, second - first });
            add(PARAMS, 1, (struct bytes){ pairs.at + second, pairs.len - second });
            add(PARAMS, 1, NOTHING);
            add(STDIN, 1, NOTHING);
            assert_int_equal(scan(), RECORD_WHOLE);
        }
}

static void lengths_that_are_not_true_are_broken(void **state)
{
    (void)state;
    static const struct bytes hostile[] = {
        BYTES_LITERAL("\1"),                                 /* no length of the value */
        BYTES_LITERAL("\1\1A"),                              /* the value is missing */
        BYTES_LITERAL("\2\0A"),                              /* the name is cut */
        BYTES_LITERAL("\200\0\0"),                           /* a length is cut */
        BYTES_LITERAL("\1\200\0\0"),                         /* that of the value */
        BYTES_LITERAL("\377\377\377\377\377\377\377\377AB"), /* CVE-2025-23016: the sum overflows 32 bits */
        BYTES_LITERAL("\377\377\377\377\1AB"),
        BYTES_LITERAL("\1\377\377\377\377AB"),
        BYTES_LITERAL("\200\0\0\1\377\377\377\376AB"),
        BYTES_LITERAL("\1\1AB\1"), /* a good pair, then a cut one */
        BYTES_LITERAL("\1\1AB\0\1"),
    };
    for (size_t i = 0; i < sizeof hostile / sizeof hostile[0]; i++) {
        fresh(NULL);
        add_params(hostile[i]);
        assert_int_equal(scan(), RECORD_BROKEN);
        for (size_t cut = 1; cut < hostile[i].len; cut++) { /* the same in two pieces */
            fresh(NULL);
            add(BEGIN, 1, RESPONDER);
            add(PARAMS, 1, (struct bytes){ hostile[i].at, cut });
            add(PARAMS, 1, (struct bytes){ hostile[i].at + cut, hostile[i].len - cut });
            add(PARAMS, 1, NOTHING);
            assert_int_equal(scan(), RECORD_BROKEN);
        }
    }
}

static void empty_names_and_values_are_true(void **state)
{
    (void)state;
    add_params(BYTES_LITERAL("\0\0\0\1x\1\0y\200\0\0\0\200\0\0\0"));
    assert_int_equal(scan(), RECORD_WHOLE);
}

static void a_body_has_a_limit_that_is_seen_before_it_has_come(void **state)
{
    (void)state;
    char body[MOST_BODY + 1] = "";
    for (int over = 0; over < 2; over++) {
        fresh(NULL);
        add(BEGIN, 7, RESPONDER);
        add(PARAMS, 7, NOTHING);
        add(STDIN, 7, (struct bytes){ body, 600 });
        size_t seen = text.len + RECORD_HEADER_BYTES;
        add(STDIN, 7, (struct bytes){ body, (size_t)(MOST_BODY - 600 + over) });
        add(STDIN, 7, NOTHING);
        assert_int_equal(scan(), over ? RECORD_BODY_TOO_LONG : RECORD_WHOLE);
        assert_int_equal(scan_first(seen - 1), RECORD_MORE);
        assert_int_equal(scan_first(seen), over ? RECORD_BODY_TOO_LONG : RECORD_MORE);
        assert_int_equal(rq.id, 7); /* the refusal is addressed */
    }
}

static void params_have_a_limit_that_is_seen_before_they_have_come(void **state)
{
    (void)state;
    static char params[RECORD_MOST_PARAMS_BYTES + 1];
    memcpy(params, "\1\200\0\377\371A", 6); /* one pair; its value of 65,529 bytes ends before the last byte */
    for (int over = 0; over < 2; over++) {
        fresh(NULL);
        add(BEGIN, 7, RESPONDER);
        add(PARAMS, 7, (struct bytes){ params, 40000 });
        size_t seen = text.len + RECORD_HEADER_BYTES;
        add(PARAMS, 7, (struct bytes){ params + 40000, (size_t)(RECORD_MOST_PARAMS_BYTES - 40000 + over) });
        assert_int_equal(scan_first(seen), over ? RECORD_PARAMS_TOO_LONG : RECORD_MORE);
        assert_int_equal(rq.id, 7);
    }
    fresh(NULL);
    params[4] = (char)0xfa; /* now with it: 1 + 4 + 1 + 65,530 */
    add(BEGIN, 7, RESPONDER);
    add(PARAMS, 7, (struct bytes){ params, 40000 });
    add(PARAMS, 7, (struct bytes){ params + 40000, RECORD_MOST_PARAMS_BYTES - 40000 });
    add(PARAMS, 7, NOTHING);
    add(STDIN, 7, NOTHING);
    assert_int_equal(scan(), RECORD_WHOLE);
}

static void an_abort_is_seen_wherever_it_comes(void **state)
{
    (void)state;
    for (int after = 0; after < 4; after++) {
        fresh(NULL);
        add(BEGIN, 1, RESPONDER);
        if (after > 0) add(PARAMS, 1, PAIRS);
        if (after > 1) add(PARAMS, 1, NOTHING);
        if (after > 2) add(STDIN, 1, BYTES_LITERAL("{"));
        add(ABORT, 1, NOTHING);
        assert_int_equal(scan(), RECORD_ABORTED);
    }
}

static void what_no_front_server_sends_is_broken(void **state)
{
    (void)state;
    static const struct {
        int type, id;
        struct bytes content;
    } wrong[][4] = {
        { { PARAMS, 1, NOTHING } }, /* no BEGIN */
        { { STDIN, 1, NOTHING } },
        { { ABORT, 1, NOTHING } },
        { { BEGIN, 1, BYTES_LITERAL("\0\1\1\0\0\0\0") } }, /* too short, too long */
        { { BEGIN, 1, BYTES_LITERAL("\0\1\1\0\0\0\0\0\0") } },
        { { BEGIN, 1, BYTES_LITERAL("\0\2\1\0\0\0\0\0") } }, /* an authorizer */
        { { BEGIN, 1, BYTES_LITERAL("\0\3\1\0\0\0\0\0") } }, /* a filter */
        { { BEGIN, 1, BYTES_LITERAL("\1\1\1\0\0\0\0\0") } },
        { { BEGIN, 1, RESPONDER }, { BEGIN, 1, RESPONDER } }, /* two at once */
        { { BEGIN, 1, RESPONDER }, { BEGIN, 2, RESPONDER } },
        { { BEGIN, 1, RESPONDER }, { PARAMS, 2, NOTHING } },
        { { BEGIN, 1, RESPONDER }, { PARAMS, 1, NOTHING }, { STDIN, 2, NOTHING } },
        { { BEGIN, 1, RESPONDER }, { GET_VALUES, 0, NOTHING } }, /* management inside */
        { { BEGIN, 1, RESPONDER }, { STDIN, 1, NOTHING } },      /* out of order */
        { { BEGIN, 1, RESPONDER }, { PARAMS, 1, NOTHING }, { PARAMS, 1, NOTHING } },
        { { BEGIN, 1, RESPONDER }, { PARAMS, 1, NOTHING }, { DATA, 1, NOTHING } },
        { { BEGIN, 1, RESPONDER }, { PARAMS, 1, NOTHING }, { STDOUT, 1, NOTHING } },
        { { BEGIN, 1, RESPONDER }, { PARAMS, 1, NOTHING }, { 0, 1, NOTHING } },
        { { BEGIN, 1, RESPONDER }, { PARAMS, 1, NOTHING }, { 255, 1, NOTHING } },
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        fresh(NULL);
        for (size_t r = 0; r < 4 && wrong[i][r].id + wrong[i][r].type > 0; r++)
            add(wrong[i][r].type, wrong[i][r].id, wrong[i][r].content);
        if (scan() != RECORD_BROKEN) fail_msg("row %zu", i);
    }
}

/* libfcgi would take that padding for the next record (seen by tests/fuzz/fuzz_record.c). */
static void padding_behind_no_stream_is_broken(void **state)
{
    (void)state;
    static const int types[] = { BEGIN, PARAMS, STDIN };
    for (size_t i = 0; i < 3; i++) {
        int type = types[i];
        fresh(NULL);
        add_padded(BEGIN, 1, RESPONDER, type == BEGIN);
        add_padded(PARAMS, 1, NOTHING, type == PARAMS);
        add_padded(STDIN, 1, NOTHING, type == STDIN);
        assert_int_equal(scan(), RECORD_BROKEN);
    }
}

static void another_protocol_is_broken(void **state)
{
    (void)state;
    buf_puts(&text, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_int_equal(scan(), RECORD_BROKEN);
    assert_int_equal(scan_first(7), RECORD_MORE);
    for (int version = 0; version < 256; version++) {
        if (version == 1) continue;
        fresh(NULL);
        add_params(PAIRS);
        text.data[0] = (char)version;
        assert_int_equal(scan(), RECORD_BROKEN);
    }
}

/* ---- Answers --------------------------------------------------------------------------------------------------------
 */

static void assert_answer(struct bytes expected)
{
    assert_int_equal(answer.len, expected.len);
    assert_memory_equal(answer.data, expected.at, expected.len);
}

static void an_answer_is_its_text_and_its_end(void **state)
{
    (void)state;
    record_answer(0x0102, BYTES_LITERAL("Status: 413\r\n\r\n"), &answer);
    assert_answer(BYTES_LITERAL("\1\6\1\2\0\17\0\0Status: 413\r\n\r\n"
                                "\1\6\1\2\0\0\0\0"
                                "\1\3\1\2\0\10\0\0"
                                "\0\0\0\0\0\0\0\0"));
}

static void a_front_server_may_ask_for_values_first(void **state)
{
    (void)state;
    add_padded(GET_VALUES, 0, BYTES_LITERAL("\16\0FCGI_MAX_CONNS\17\0FCGI_MPXS_CONNS\1\0X"), 5);
    size_t bytes = text.len;
    add_params(PAIRS);
    for (size_t some = 8; some < bytes; some++) assert_int_equal(scan_first(some), RECORD_MORE);
    assert_int_equal(scan(), RECORD_MANAGEMENT);
    assert_int_equal(rq.bytes, bytes); /* what follows is looked at next */
    record_answer_management(buf_bytes(&text), &rq, &answer);
    assert_answer(BYTES_LITERAL("\1\12\0\0\0\46\0\0"
                                "\16\4FCGI_MAX_CONNS1024"
                                "\17\1FCGI_MPXS_CONNS0"));
}

static void a_value_that_is_asked_for_often_is_said_once(void **state)
{
    (void)state;
    struct buf asked = BUF_INIT(65535);
    while (asked.len + 15 <= 65535) buf_append(&asked, "\15\0FCGI_MAX_REQS", 15);
    add(GET_VALUES, 0, buf_bytes(&asked));
    assert_int_equal(scan(), RECORD_MANAGEMENT);
    record_answer_management(buf_bytes(&text), &rq, &answer);
    assert_answer(BYTES_LITERAL("\1\12\0\0\0\23\0\0"
                                "\15\4FCGI_MAX_REQS1024"));
    buf_done(&asked);
}

static void values_with_untrue_lengths_are_answered_as_far_as_they_are_true(void **state)
{
    (void)state;
    add(GET_VALUES, 0, BYTES_LITERAL("\15\0FCGI_MAX_REQS\377\377\377\377\1X"));
    assert_int_equal(scan(), RECORD_MANAGEMENT);
    record_answer_management(buf_bytes(&text), &rq, &answer);
    assert_answer(BYTES_LITERAL("\1\12\0\0\0\23\0\0"
                                "\15\4FCGI_MAX_REQS1024"));
}

static void an_unknown_management_record_is_said_to_be_unknown(void **state)
{
    (void)state;
    add(77, 0, BYTES_LITERAL("whatever"));
    assert_int_equal(scan(), RECORD_MANAGEMENT);
    record_answer_management(buf_bytes(&text), &rq, &answer);
    assert_answer(BYTES_LITERAL("\1\13\0\0\0\10\0\0"
                                "\115\0\0\0\0\0\0\0"));
}

#define FRESH(f) cmocka_unit_test_setup(f, fresh)

int main(void)
{
    const struct CMUnitTest tests[] = {
        FRESH(a_request_is_whole_at_its_last_byte_and_no_other),
        FRESH(the_smallest_request_is_whole),
        FRESH(params_may_be_split_anywhere),
        FRESH(lengths_that_are_not_true_are_broken),
        FRESH(empty_names_and_values_are_true),
        FRESH(a_body_has_a_limit_that_is_seen_before_it_has_come),
        FRESH(params_have_a_limit_that_is_seen_before_they_have_come),
        FRESH(an_abort_is_seen_wherever_it_comes),
        FRESH(what_no_front_server_sends_is_broken),
        FRESH(padding_behind_no_stream_is_broken),
        FRESH(another_protocol_is_broken),
        FRESH(an_answer_is_its_text_and_its_end),
        FRESH(a_front_server_may_ask_for_values_first),
        FRESH(a_value_that_is_asked_for_often_is_said_once),
        FRESH(values_with_untrue_lengths_are_answered_as_far_as_they_are_true),
        FRESH(an_unknown_management_record_is_said_to_be_unknown),
    };
    return cmocka_run_group_tests(tests, NULL, done);
}
