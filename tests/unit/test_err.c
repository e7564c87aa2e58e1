#include "err.h"

#include "test.h"

#include <string.h>

static void a_failure_is_false_with_its_kind_and_text(void **state)
{
    (void)state;
    struct err e = { .kind = ERR_NONE };
    assert_false(err_set(&e, ERR_FULL, "%s: %d of %d", "sessions", 7, 7));
    assert_int_equal(e.kind, ERR_FULL);
    assert_string_equal(e.text, "sessions: 7 of 7");
    assert_false(err_set(&e, ERR_INPUT, "again"));
    assert_int_equal(e.kind, ERR_INPUT);
    assert_string_equal(e.text, "again");
}

static void nobody_has_to_listen(void **state)
{
    (void)state;
    assert_false(err_set(NULL, ERR_INTERNAL, "%d", 1));
}

static void a_long_text_is_cut(void **state)
{
    (void)state;
    struct {
        struct err e;
        char behind;
    } x = { .behind = '!' };
    char text[400];
    memset(text, 'a', sizeof text);
    err_set(&x.e, ERR_INPUT, "%.399s", text);
    assert_int_equal(strlen(x.e.text), sizeof x.e.text - 1);
    assert_int_equal(x.behind, '!');
}

static void a_text_is_one_line_without_control_characters(void **state)
{
    (void)state;
    struct err e;
    err_set(&e, ERR_INPUT, "%s", "a\nb\r\x1b[1mc\x7f\x01 \xc3\xa4");
    assert_string_equal(e.text, "a?b??[1mc?? \xc3\xa4");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_failure_is_false_with_its_kind_and_text),
        cmocka_unit_test(nobody_has_to_listen),
        cmocka_unit_test(a_long_text_is_cut),
        cmocka_unit_test(a_text_is_one_line_without_control_characters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
