#include "test.h"

#include "buf.h"
#include "clock.h"
#include "json.h"
#include "log.h"
#include "mem.h"

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#define NOW    "2026-01-31T23:59:59.123Z"
#define NOW_MS INT64_C(1769903999123)

static char dir[] = "/tmp/test_log.XXXXXX", path[64], rotated[64];

static int make_dir(void **state)
{
    (void)state;
    if (mkdtemp(dir) == NULL) return -1;
    snprintf(path, sizeof path, "%s/log", dir);
    snprintf(rotated, sizeof rotated, "%s/log.1", dir);
    clock_set(NOW_MS, -1);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(path);
    unlink(rotated);
    return rmdir(dir);
}

static int remove_files(void **state)
{
    (void)state;
    unlink(path);
    unlink(rotated);
    return 0;
}

static void open_log(enum log_level level, enum log_format format)
{
    struct err e;
    if (!log_open("tester", level, format, path, &e)) fail_msg("%s", e.text);
}

static struct buf read_file(const char *name)
{
    struct buf text = BUF_INIT(1 << 22);
    char part[4096];
    int fd = open(name, O_RDONLY);
    assert_true(fd >= 0);
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0;) buf_append(&text, part, (size_t)n);
    close(fd);
    return text;
}

/* `expected` has %d where the process id stands. */
static void assert_file(const char *name, const char *expected)
{
    struct buf text = read_file(name), wanted = BUF_INIT(10000);
    const char *pid = strstr(expected, "%d");
    buf_append(&wanted, expected, (size_t)(pid - expected));
    buf_printf(&wanted, "%d%s", (int)getpid(), pid + 2);
    assert_string_equal(buf_text(&text), buf_text(&wanted));
    buf_done(&text);
    buf_done(&wanted);
}

static void a_line_says_when_how_grave_who_and_what(void **state)
{
    (void)state;
    open_log(LOG_INFO, LOG_TEXT);
    log_warn("redis lost: host=%s retry_ms=%d", "127.0.0.1", 250);
    assert_file(path, NOW " warn  tester[%d] redis lost: host=127.0.0.1 retry_ms=250\n");
}

static void in_json_words_are_the_message_and_pairs_are_members(void **state)
{
    (void)state;
    open_log(LOG_INFO, LOG_JSON);
    log_error("redis lost, embedded store in use: host=%s error=\"%s\" retry_ms=%d share=0.5 zip=007 neg=-1 last=",
              "a:1", "it said \"no\" twice, a=b", 250);
    assert_file(path, "{\"time\":\"" NOW "\",\"level\":\"error\",\"role\":\"tester\",\"pid\":%d,"
                      "\"message\":\"redis lost, embedded store in use\",\"host\":\"a:1\","
                      "\"error\":\"it said \\\"no\\\" twice, a=b\",\"retry_ms\":250,\"share\":\"0.5\",\"zip\":\"007\","
                      "\"neg\":-1,\"last\":\"\"}\n");
}

/* An id of digits alone is a string like any other. */
static void in_json_a_member_s_type_does_not_change_with_its_value(void **state)
{
    (void)state;
    open_log(LOG_INFO, LOG_JSON);
    log_info("typed: request=%s pod=\"%s\" count=%d size=%zu policy=%.*s", "12345", "7", 3, (size_t)4, 2, "99");
    assert_file(path, "{\"time\":\"" NOW "\",\"level\":\"info\",\"role\":\"tester\",\"pid\":%d,\"message\":\"typed\","
                      "\"request\":\"12345\",\"pod\":\"7\",\"count\":3,\"size\":4,\"policy\":\"99\"}\n");
}

static void in_json_a_value_forges_no_member(void **state)
{
    (void)state;
    open_log(LOG_INFO, LOG_JSON);
    log_info("heard: sender=\"%s\" number=%d", "x\" level=\"error: a=", 1);
    assert_file(path, "{\"time\":\"" NOW "\",\"level\":\"info\",\"role\":\"tester\",\"pid\":%d,\"message\":\"heard\","
                      "\"sender\":\"x\\\" level=\\\"error: a=\",\"number\":1}\n");
    remove_files(NULL);
    open_log(LOG_INFO, LOG_JSON);
    log_info("heard: sender=\"%s\" number=%d",
             "x\1"
             "2",
             1);
    assert_file(path, "{\"time\":\"" NOW "\",\"level\":\"info\",\"role\":\"tester\",\"pid\":%d,"
                      "\"message\":\"heard\\u0001x\\u00012\\u00011\"}\n");
}

static void in_json_colons_within_the_words_lose_nothing(void **state)
{
    (void)state;
    open_log(LOG_INFO, LOG_JSON);
    log_info("cannot bind: Address already in use: port=%d", 80);
    assert_file(path, "{\"time\":\"" NOW "\",\"level\":\"info\",\"role\":\"tester\",\"pid\":%d,"
                      "\"message\":\"cannot bind: Address already in use\",\"port\":80}\n");
    remove_files(NULL);
    open_log(LOG_INFO, LOG_JSON);
    log_info("no pairs: nothing follows");
    assert_file(path, "{\"time\":\"" NOW "\",\"level\":\"info\",\"role\":\"tester\",\"pid\":%d,"
                      "\"message\":\"no pairs: nothing follows\"}\n");
}

static void only_what_is_grave_enough_is_written(void **state)
{
    (void)state;
    open_log(LOG_WARN, LOG_TEXT);
    assert_true(log_enabled(LOG_ERROR));
    assert_true(log_enabled(LOG_WARN));
    assert_false(log_enabled(LOG_INFO));
    log_info("too quiet");
    log_debug("%s", "quieter still");
    log_warn("heard");
    assert_file(path, NOW " warn  tester[%d] heard\n");
}

static void bytes_from_outside_cannot_forge_a_line(void **state)
{
    (void)state;
    open_log(LOG_INFO, LOG_TEXT);
    log_info("bad name: name=\"%s\"", "a\nb\r\t\x1b[1m\x7f\xff\xc3\xa4");
    assert_file(path, NOW " info  tester[%d] bad name: name=\"a\\x0ab\\x0d\\x09\\x1b[1m\\x7f\\xff\xc3\xa4\"\n");
    remove_files(NULL);
    open_log(LOG_INFO, LOG_JSON);
    log_info("bad name: name=\"%s\"", "a\nb\x1b\xff\xc3\xa4\\");
    assert_file(path, "{\"time\":\"" NOW "\",\"level\":\"info\",\"role\":\"tester\",\"pid\":%d,"
                      "\"message\":\"bad name\",\"name\":\"a\\nb\\u001b\xef\xbf\xbd\xc3\xa4\\\\\"}\n");
}

static void a_line_of_any_length_and_content_is_one_line_of_valid_json(void **state)
{
    (void)state;
    static const char *const units[] = { "x", "\n", "\"", "\xc3\xa4", "\xff", "a=\"", "\" k=", ": ", "=", " " };
    for (size_t i = 0; i < sizeof units / sizeof units[0]; i++)
        for (size_t times = 0; times < 700; times = times * 3 + 1) {
            struct buf text = BUF_INIT(10000);
            for (size_t n = 0; n < times; n++) buf_puts(&text, units[i]);
            remove_files(NULL);
            open_log(LOG_INFO, LOG_JSON);
            log_info("odd: value=\"%s\"", buf_text(&text));
            struct buf line = read_file(path);
            struct json_fault f;
            if (!json_check(buf_bytes(&line), 1, &f)) fail_msg("%s: %s", f.reason, buf_text(&line));
            assert_ptr_equal(strchr(line.data, '\n'), line.data + line.len - 1);
            buf_done(&text);
            buf_done(&line);
        }
}

static void a_rotated_file_is_left_at_reopen(void **state)
{
    (void)state;
    struct err e;
    open_log(LOG_INFO, LOG_TEXT);
    log_info("one");
    assert_int_equal(rename(path, rotated), 0);
    log_info("two");
    assert_true(log_reopen(&e));
    log_info("three");
    struct buf old = read_file(rotated);
    assert_non_null(strstr(buf_text(&old), "one\n"));
    assert_non_null(strstr(buf_text(&old), "two\n"));
    buf_done(&old);
    assert_file(path, NOW " info  tester[%d] three\n");
}

static void an_existing_file_is_continued(void **state)
{
    (void)state;
    open_log(LOG_INFO, LOG_TEXT);
    log_info("one");
    open_log(LOG_INFO, LOG_TEXT);
    log_role("other");
    log_info("two");
    struct buf text = read_file(path);
    assert_non_null(strstr(buf_text(&text), "] one\n"));
    assert_non_null(strstr(buf_text(&text), "info  other["));
    buf_done(&text);
}

static void a_file_that_cannot_be_opened_is_said_and_the_old_one_stays(void **state)
{
    (void)state;
    struct err e = { .kind = ERR_NONE };
    open_log(LOG_INFO, LOG_TEXT);
    assert_false(log_open("tester", LOG_INFO, LOG_TEXT, "/nonexistent/log", &e));
    assert_int_equal(e.kind, ERR_INPUT);
    assert_string_equal(e.text, "LOG_FILE=/nonexistent/log: cannot be opened for writing: No such file or directory");
    log_info("still here");
    assert_file(path, NOW " info  tester[%d] still here\n");
}

static void without_a_path_lines_go_to_standard_error(void **state)
{
    (void)state;
    struct err e;
    int saved = dup(STDERR_FILENO), fd = open(path, O_WRONLY | O_CREAT, 0600);
    assert_true(log_open("tester", LOG_INFO, LOG_TEXT, "", &e));
    dup2(fd, STDERR_FILENO);
    log_info("seen");
    bool reopened = log_reopen(&e);
    dup2(saved, STDERR_FILENO);
    close(saved);
    close(fd);
    assert_true(reopened);
    assert_file(path, NOW " info  tester[%d] seen\n");
}

static void lines_of_several_processes_do_not_mix(void **state)
{
    (void)state;
    enum { PROCESSES = 4, LINES = 500 };
    open_log(LOG_INFO, LOG_TEXT);
    for (int p = 0; p < PROCESSES; p++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child > 0) continue;
        for (int i = 0; i < LINES; i++) log_info("process %d line %03d ends here", p, i);
        _exit(0);
    }
    for (int p = 0; p < PROCESSES; p++) {
        int status;
        assert_true(wait(&status) > 0);
        assert_int_equal(status, 0);
    }
    struct buf text = read_file(path);
    int lines = 0;
    for (char *line = strtok(text.data, "\n"); line != NULL; line = strtok(NULL, "\n"), lines++) {
        int p, i, end = 0;
        sscanf(line, NOW " info  tester[%*d] process %d line %d ends here%n", &p, &i, &end);
        assert_int_equal(end, strlen(line));
    }
    assert_int_equal(lines, PROCESSES * LINES);
    buf_done(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_line_says_when_how_grave_who_and_what, remove_files),
        cmocka_unit_test_teardown(in_json_words_are_the_message_and_pairs_are_members, remove_files),
        cmocka_unit_test_teardown(in_json_a_member_s_type_does_not_change_with_its_value, remove_files),
        cmocka_unit_test_teardown(in_json_a_value_forges_no_member, remove_files),
        cmocka_unit_test_teardown(in_json_colons_within_the_words_lose_nothing, remove_files),
        cmocka_unit_test_teardown(only_what_is_grave_enough_is_written, remove_files),
        cmocka_unit_test_teardown(bytes_from_outside_cannot_forge_a_line, remove_files),
        cmocka_unit_test_teardown(a_line_of_any_length_and_content_is_one_line_of_valid_json, remove_files),
        cmocka_unit_test_teardown(a_rotated_file_is_left_at_reopen, remove_files),
        cmocka_unit_test_teardown(an_existing_file_is_continued, remove_files),
        cmocka_unit_test_teardown(a_file_that_cannot_be_opened_is_said_and_the_old_one_stays, remove_files),
        cmocka_unit_test_teardown(without_a_path_lines_go_to_standard_error, remove_files),
        cmocka_unit_test_teardown(lines_of_several_processes_do_not_mix, remove_files),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
