#include "config.h"

#include "mem.h"
#include "test.h"

#include <sys/stat.h>
#include <unistd.h>

#define ARGS(...)        ((char *[]){ "hyperpage-fcgi", __VA_ARGS__, NULL })
#define ENVIRONMENT(...) ((char *[]){ __VA_ARGS__, NULL })
#define NOTHING          ((char *[]){ "hyperpage-fcgi", NULL })
#define NO_ENVIRONMENT   ((char *[]){ NULL })

static char dir[] = "/tmp/test_config.XXXXXX";
static char conf[64], secret[64]; /* two files that a test may write */
static struct config_call call;
static struct buf misses = BUF_INIT(4096);
static struct err error;

static int make_dir(void **state)
{
    (void)state;
    if (mkdtemp(dir) == NULL) return 1;
    snprintf(conf, sizeof conf, "%s/conf", dir);
    snprintf(secret, sizeof secret, "%s/secret", dir);
    return 0;
}

static int remove_dir(void **state)
{
    (void)state;
    unlink(conf);
    unlink(secret);
    buf_done(&misses);
    return rmdir(dir);
}

static void write_bytes(const char *path, struct bytes text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fwrite(text.at, 1, text.len, f), text.len);
    fclose(f);
}

static void write_text(const char *path, const char *text)
{
    write_bytes(path, bytes_of(text));
}

static struct config *try_load(char *const environment[], char *const argv[])
{
    int argc = 0;
    while (argv[argc] != NULL) argc++;
    buf_reset(&misses);
    error = (struct err){ .kind = ERR_NONE };
    return config_load(argc, argv, environment, &call, &misses, &error);
}

static struct config *load(char *const environment[], char *const argv[])
{
    struct config *c = try_load(environment, argv);
    if (c == NULL) print_error("%s\n", error.text);
    assert_non_null(c);
    return c;
}

static struct config *load_file(const char *text)
{
    write_text(conf, text);
    return load(NO_ENVIRONMENT, ARGS("--config", conf));
}

static void assert_refused(char *const environment[], char *const argv[], const char *line)
{
    assert_null(try_load(environment, argv));
    assert_int_equal(error.kind, ERR_INPUT);
    assert_string_equal(error.text, line);
}

/* The line names the file as "CONF". */
static void assert_file_refused(const char *text, const char *line)
{
    char expected[sizeof error.text];
    const char *name = strstr(line, "CONF");
    write_text(conf, text);
    if (name != NULL)
        snprintf(expected, sizeof expected, "%.*s%s%s", (int)(name - line), line, conf, name + 4);
    else
        snprintf(expected, sizeof expected, "%s", line);
    assert_refused(NO_ENVIRONMENT, ARGS("--config", conf), expected);
}

static void what_nobody_sets_has_its_default(void **state)
{
    (void)state;
    struct config *c = load(NO_ENVIRONMENT, NOTHING);
    assert_int_equal(c->workers, CONFIG_AUTO);
    assert_int_equal(c->session_default_ttl_seconds, 86400);
    assert_string_equal(c->run_dir, "/run/hyperpage");
    assert_string_equal(c->redis_url, "");
    assert_string_equal(c->service_token, "");
    assert_false(c->session_allow_client_ids);
    assert_int_equal(c->embedded_sync, 0);
    assert_int_equal(c->log_level, 2);
    assert_int_equal(misses.len, 0);
    config_free(c);
}

static void the_command_line_beats_the_environment_beats_the_file(void **state)
{
    (void)state;
    write_text(conf, "WORKERS=1\nREDIS_TIMEOUT_MS=11\nDRAIN_TIMEOUT=21\n");
    char *environment[] = { "WORKERS=2", "REDIS_TIMEOUT_MS=12", NULL };
    struct config *c = load(environment, ARGS("--workers", "3", "--config", conf));
    assert_int_equal(c->workers, 3);
    assert_int_equal(c->redis_timeout_ms, 12);
    assert_int_equal(c->drain_timeout, 21);
    assert_int_equal(c->request_timeout_ms, 5000);
    config_free(c);
}

static void the_last_of_several_lines_or_arguments_counts(void **state)
{
    (void)state;
    write_text(conf, "WORKERS=1\nWORKERS=2\nRUN_DIR=/a\nRUN_DIR=/b\n");
    struct config *c = load(NO_ENVIRONMENT, ARGS("--config", conf, "--drain-timeout", "5", "--drain-timeout=6"));
    assert_int_equal(c->workers, 2);
    assert_string_equal(c->run_dir, "/b");
    assert_int_equal(c->drain_timeout, 6);
    config_free(c);
}

static const struct {
    const char *pair, *line;
} refused[] = {
    { "WORKERS=257", "WORKERS=257: allowed is auto or 0 to 256 (processes)" },
    { "WORKERS=-1", "WORKERS=-1: allowed is auto or 0 to 256 (processes)" },
    { "WORKERS=Auto", "WORKERS=Auto: allowed is auto or 0 to 256 (processes)" },
    { "WORKERS=", "WORKERS=: allowed is auto or 0 to 256 (processes)" },
    { "WORKERS=4x", "WORKERS=4x: allowed is auto or 0 to 256 (processes)" },
    { "WORKERS=0x4", "WORKERS=0x4: allowed is auto or 0 to 256 (processes)" },
    { "WORKERS=4.0", "WORKERS=4.0: allowed is auto or 0 to 256 (processes)" },
    { "MAX_REQUESTS=auto", "MAX_REQUESTS=auto: allowed is 0 to 1000000000 (requests)" },
    { "MAX_REQUESTS= 4", "MAX_REQUESTS= 4: allowed is 0 to 1000000000 (requests)" },
    { "REDIS_TIMEOUT_MS=9", "REDIS_TIMEOUT_MS=9: allowed is 10 to 60000 (ms)" },
    { "REDIS_TIMEOUT_MS=60001", "REDIS_TIMEOUT_MS=60001: allowed is 10 to 60000 (ms)" },
    { "REDIS_TIMEOUT_MS=99999999999999999999999",
      "REDIS_TIMEOUT_MS=99999999999999999999999: allowed is 10 to 60000 (ms)" },
    { "SESSION_ALLOW_CLIENT_IDS=yes", "SESSION_ALLOW_CLIENT_IDS=yes: allowed is true or false" },
    { "SESSION_ALLOW_CLIENT_IDS=", "SESSION_ALLOW_CLIENT_IDS=: allowed is true or false" },
    { "LOG_LEVEL=loud", "LOG_LEVEL=loud: allowed is error|warn|info|debug" },
    { "LOG_LEVEL=inf", "LOG_LEVEL=inf: allowed is error|warn|info|debug" },
    { "LOG_LEVEL=warn|info", "LOG_LEVEL=warn|info: allowed is error|warn|info|debug" },
    { "LOG_LEVEL=", "LOG_LEVEL=: allowed is error|warn|info|debug" },
};

static void a_wrong_value_is_refused_with_key_value_and_what_is_allowed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char argument[128];
        int n = snprintf(argument, sizeof argument, "--%s", refused[i].pair);
        for (char *c = argument; c < argument + n && *c != '='; c++) *c = *c == '_' ? '-' : *c;
        assert_refused(ENVIRONMENT((char *)refused[i].pair), NOTHING, refused[i].line);
        assert_refused(NO_ENVIRONMENT, ARGS(argument), refused[i].line);
        assert_file_refused(refused[i].pair, refused[i].line);
    }
}

static void the_edges_of_a_range_are_allowed(void **state)
{
    (void)state;
    struct config *c = load(NO_ENVIRONMENT, ARGS("--workers=0", "--redis-timeout-ms=10", "--drain-timeout=3600"));
    assert_int_equal(c->workers, 0);
    assert_int_equal(c->redis_timeout_ms, 10);
    assert_int_equal(c->drain_timeout, 3600);
    config_free(c);
    c = load(NO_ENVIRONMENT, ARGS("--workers=256", "--redis-timeout-ms=60000", "--log-level=error"));
    assert_int_equal(c->workers, 256);
    assert_int_equal(c->redis_timeout_ms, 60000);
    assert_int_equal(c->log_level, 0);
    config_free(c);
}

/* Whoever reads the refusal, a log or a person, counts on one line. */
static void a_refusal_is_one_line_whatever_the_value_holds(void **state)
{
    (void)state;
    assert_refused(ENVIRONMENT("WORKERS=1\nready\r\t\x1b[2J"), NOTHING,
                   "WORKERS=1?ready???[2J: allowed is auto or 0 to 256 (processes)");
    char long_value[4000] = "WORKERS=";
    memset(long_value + 8, '7', sizeof long_value - 9);
    assert_null(try_load(ENVIRONMENT(long_value), NOTHING));
    assert_non_null(strstr(error.text, "7: allowed is auto or 0 to 256"));
}

static void what_is_no_option_is_refused_in_the_file_and_on_the_command_line(void **state)
{
    (void)state;
    assert_file_refused("WORKERS=2\n\nWORKER=3\n", "CONF line 3: WORKER is no option (see --help)");
    assert_file_refused("export WORKERS=3\n", "CONF line 1: export WORKERS is no option (see --help)");
    assert_file_refused("LISTEN-MODE=0600\n", "CONF line 1: LISTEN-MODE is no option (see --help)");
    assert_file_refused("WORKERS\n", "CONF line 1: allowed is KEY=value, a # comment or nothing");
    assert_file_refused("=3\n", "CONF line 1:  is no option (see --help)");
    assert_refused(NO_ENVIRONMENT, ARGS("--worker", "3"), "--worker: no such option (see --help)");
    assert_refused(NO_ENVIRONMENT, ARGS("--service-tokn=hidden"), "--service-tokn: no such option (see --help)");
    assert_refused(NO_ENVIRONMENT, ARGS("--workers"), "--workers: a value is missing");
    assert_refused(NO_ENVIRONMENT, ARGS("--check=no"), "--check: no such option (see --help)");
    assert_refused(NO_ENVIRONMENT, ARGS("--config"), "--config: a value is missing");
    assert_refused(NO_ENVIRONMENT, ARGS("-w"), "-w: no such argument (see --help)");
    assert_refused(NO_ENVIRONMENT, ARGS("4"), "4: no such argument (see --help)");
}

static void a_near_miss_in_the_environment_only_warns(void **state)
{
    (void)state;
    char *environment[] = { "REDIS_URI=redis://secret@host", "SESSION_MAX_BITES=1", "SERVICE_TOKN_FILE=/x",
                            "RUN_DIR_FILE=/x", NULL };
    config_free(load(environment, NOTHING));
    assert_string_equal(
        buf_text(&misses),
        "REDIS_URI REDIS_URL\nSESSION_MAX_BITES SESSION_MAX_BYTES\nSERVICE_TOKN_FILE SERVICE_TOKEN_FILE\n");
}

static void the_environment_of_others_is_left_alone(void **state)
{
    (void)state;
    char *environment[] = { "PATH=/bin",           "HOME=/root", "LISTEN_FDS=1",   "LISTEN_PID=2",      "LOGNAME=me",
                            "workers=7",           "Workers=8",  "=C:=x",          "no equals sign",    "LC_ALL=C",
                            "NODE_ENV=production", "HOSTNAME=a", "DATABASE_URL=x", "NEXT_PUBLIC_URL=y", NULL };
    struct config *c = load(environment, NOTHING);
    assert_int_equal(c->workers, CONFIG_AUTO);
    assert_string_equal(buf_text(&misses), "");
    config_free(c);
}

static void a_file_is_read_as_a_shell_would(void **state)
{
    (void)state;
    struct config *c = load_file("# a comment\r\n"
                                 "\r\n"
                                 "  \t\n"
                                 "  # another\n"
                                 "WORKERS=3\r\n"
                                 "RUN_DIR=\"/run/with blank\"  \n"
                                 "STATE_DIR='/var/\"quoted\"'\n"
                                 "\tLOG_FILE=/a=b#c\n"
                                 "LISTEN_GROUP=\"\n"
                                 "redis_url=\"\"\n"
                                 "LOG_LEVEL='debug'");
    assert_int_equal(c->workers, 3);
    assert_string_equal(c->run_dir, "/run/with blank");
    assert_string_equal(c->state_dir, "/var/\"quoted\"");
    assert_string_equal(c->log_file, "/a=b#c");
    assert_string_equal(c->listen_group, "\"");
    assert_string_equal(c->redis_url, "");
    assert_int_equal(c->log_level, 3);
    config_free(c);
}

static void a_file_that_cannot_be_read_is_refused(void **state)
{
    (void)state;
    char line[200];
    snprintf(line, sizeof line, "--config %s/none: cannot be read: No such file or directory", dir);
    char path[80];
    snprintf(path, sizeof path, "--config=%s/none", dir);
    assert_refused(NO_ENVIRONMENT, ARGS(path), line);
    snprintf(line, sizeof line, "--config %s: cannot be read: Is a directory", dir);
    assert_refused(NO_ENVIRONMENT, ARGS("--config", dir), line);
}

static void lines_and_values_have_a_limit(void **state)
{
    (void)state;
    struct buf text = BUF_INIT(8192);
    buf_puts(&text, "WORKERS=1\nLOG_FILE=");
    while (text.len < 19 + 4096) buf_puts(&text, "x");
    struct config *c = load_file(buf_text(&text));
    assert_int_equal(strlen(c->log_file), 4096);
    config_free(c);
    buf_puts(&text, "x");
    assert_file_refused(buf_text(&text), "LOG_FILE: allowed are 4096 bytes");
    assert_refused(ENVIRONMENT((char *)buf_text(&text) + 10), NOTHING, "LOG_FILE: allowed are 4096 bytes");
    while (text.len < 6000) buf_puts(&text, "x");
    assert_file_refused(buf_text(&text), "CONF line 2: allowed are 4096 bytes");
    write_bytes(conf, BYTES_LITERAL("WORKERS=1\0 2\nDRAIN_TIMEOUT=3\n"));
    assert_null(try_load(NO_ENVIRONMENT, ARGS("--config", conf)));
    buf_done(&text);
}

static void a_secret_may_stand_in_a_file(void **state)
{
    (void)state;
    char pair[96];
    write_text(secret, "first,second\r\nnot this\n");
    snprintf(pair, sizeof pair, "SERVICE_TOKEN_FILE=%s", secret);
    struct config *c = load(ENVIRONMENT(pair), NOTHING);
    assert_string_equal(c->service_token, "first,second");
    config_free(c);
    c = load_file(pair);
    assert_string_equal(c->service_token, "first,second");
    config_free(c);
    c = load(NO_ENVIRONMENT, ARGS("--service-token-file", secret));
    assert_string_equal(c->service_token, "first,second");
    config_free(c);
}

static void a_secret_file_that_gives_nothing_is_refused(void **state)
{
    (void)state;
    char pair[96], line[200];
    unlink(secret);
    snprintf(pair, sizeof pair, "SERVICE_TOKEN_FILE=%s", secret);
    snprintf(line, sizeof line, "%s: cannot be read: No such file or directory", pair);
    assert_refused(ENVIRONMENT(pair), NOTHING, line);
    snprintf(line, sizeof line, "%s: the file is empty", pair);
    write_text(secret, "");
    assert_refused(ENVIRONMENT(pair), NOTHING, line);
    write_text(secret, "\nsecond line\n"); /* nobody means "no token" by this */
    assert_refused(ENVIRONMENT(pair), NOTHING, line);
    struct buf text = BUF_INIT(8192);
    while (text.len < 5000) buf_puts(&text, "x");
    write_text(secret, buf_text(&text));
    assert_refused(ENVIRONMENT(pair), NOTHING, "SERVICE_TOKEN: allowed are 4096 bytes");
    assert_refused(NO_ENVIRONMENT, ARGS("--run-dir-file", secret), "--run-dir-file: no such option (see --help)");
    buf_done(&text);
}

static void words_that_are_no_options_are_told_apart(void **state)
{
    (void)state;
    config_free(load(NO_ENVIRONMENT, ARGS("--check", "--help", "--version", "--reference")));
    assert_true(call.check && call.help && call.version && call.reference);
    assert_null(call.file);
    struct config *c =
        load(NO_ENVIRONMENT, ARGS("--run-dir", "--check", "--state-dir", "--config", "--log-file=--help"));
    assert_false(call.check || call.help);
    assert_null(call.file);
    assert_string_equal(c->run_dir, "--check");
    assert_string_equal(c->state_dir, "--config");
    config_free(c);
}

static void a_second_load_leaves_the_first_intact(void **state)
{
    (void)state;
    struct config *first = load_file("RUN_DIR=/one\nWORKERS=1\n");
    struct config *second = load_file("RUN_DIR=/two\nWORKERS=2\n");
    assert_file_refused("RUN_DIR=/three\nWORKERS=x\n", "WORKERS=x: allowed is auto or 0 to 256 (processes)");
    assert_string_equal(first->run_dir, "/one");
    assert_int_equal(first->workers, 1);
    assert_string_equal(second->run_dir, "/two");
    config_free(first);
    assert_string_equal(second->run_dir, "/two");
    config_free(second);
    config_free(NULL);
}

static void an_item_is_what_stands_between_commas(void **state)
{
    (void)state;
    struct bytes item;
    assert_true(config_item(" a ,b\t,, ,c d", 0, &item));
    assert_true(bytes_is(item, "a"));
    assert_true(config_item(" a ,b\t,, ,c d", 1, &item));
    assert_true(bytes_is(item, "b"));
    assert_true(config_item(" a ,b\t,, ,c d", 2, &item)); /* a comma too many must not hide what follows */
    assert_true(bytes_is(item, "c d"));
    assert_false(config_item(" a ,b\t,, ,c d", 3, &item));
    assert_false(config_item("", 0, &item));
    assert_false(config_item(" , ,", 0, &item));
    assert_true(config_item(",x,", 0, &item));
    assert_true(bytes_is(item, "x"));
    assert_false(config_item(",x,", 1, &item));
}

/* Every option's name, from the table itself. */
static const char *const names[] = {
#define TEXT(name, def, doc)                      #name,
#define NUMBER(name, def, least, most, unit, doc) #name,
#define FLAG(name, def, doc)                      #name,
#define CHOICE(name, def, allowed, doc)           #name,
#define SECRET(name, doc)                         #name,
#include "config.def"
};

static void help_and_reference_list_every_option_once(void **state)
{
    (void)state;
    struct buf help = BUF_INIT(1 << 20), reference = BUF_INIT(1 << 20);
    config_help("hyperpage-fcgi", "Serves sessions.", &help);
    config_reference(&reference);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char row[80] = "\n| `", option[80] = "\n  --";
        size_t r = strlen(row), o = strlen(option);
        for (const char *c = names[i]; *c; c++) {
            row[r++] = *c >= 'a' && *c <= 'z' ? (char)(*c - 32) : *c;
            option[o++] = *c == '_' ? '-' : *c;
        }
        memcpy(row + r, "` |", 4);
        memcpy(option + o, " ", 2);
        const char *at = strstr(buf_text(&reference), row);
        assert_non_null(at);
        assert_null(strstr(at + 1, row));
        assert_non_null(strstr(buf_text(&help), option));
    }
    for (const char *c = buf_text(&help); *c != '\0';) { /* a terminal's width, but for the line of an option itself */
        size_t n = strcspn(c, "\n");
        if (strncmp(c, "  --", 4) != 0) assert_in_range(n, 0, 106);
        c += n + (c[n] == '\n');
    }
    assert_non_null(strstr(buf_text(&reference), "| `WORKERS` | auto, 0 to 256 processes | `auto` |"));
    assert_non_null(strstr(buf_text(&reference), "| `LOG_FORMAT` | text\\|json | `text` |"));
    assert_non_null(strstr(buf_text(&reference), "| `SERVICE_TOKEN` | a secret | (empty) |"));
    buf_done(&help);
    buf_done(&reference);
}

static struct buf told = BUF_INIT(64 * 1024);

static void tell(void *ctx, const char *key, const char *value)
{
    (void)ctx;
    buf_printf(&told, "%s=%s\n", key, value);
}

static void all_options_can_be_told_but_no_secret(void **state)
{
    (void)state;
    struct config *c = load(NO_ENVIRONMENT, ARGS("--embedded-sync", "full", "--session-rolling", "1", "--run-dir", "/a",
                                                 "--admin-token", "hush"));
    config_each(c, tell, NULL);
    static const char *const lines[] = { "EMBEDDED_SYNC=full\n", "SESSION_ROLLING=true\n", "RUN_DIR=/a\n",
                                         "WORKERS=auto\n",       "DRAIN_TIMEOUT=30\n",     "ADMIN_TOKEN=(a secret)\n",
                                         "SERVICE_TOKEN=\n" };
    for (size_t i = 0; i < sizeof lines / sizeof lines[0]; i++) assert_non_null(strstr(buf_text(&told), lines[i]));
    assert_null(strstr(buf_text(&told), "hush"));
    buf_done(&told);
    config_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_nobody_sets_has_its_default),
        cmocka_unit_test(the_command_line_beats_the_environment_beats_the_file),
        cmocka_unit_test(the_last_of_several_lines_or_arguments_counts),
        cmocka_unit_test(a_wrong_value_is_refused_with_key_value_and_what_is_allowed),
        cmocka_unit_test(the_edges_of_a_range_are_allowed),
        cmocka_unit_test(a_refusal_is_one_line_whatever_the_value_holds),
        cmocka_unit_test(what_is_no_option_is_refused_in_the_file_and_on_the_command_line),
        cmocka_unit_test(a_near_miss_in_the_environment_only_warns),
        cmocka_unit_test(the_environment_of_others_is_left_alone),
        cmocka_unit_test(a_file_is_read_as_a_shell_would),
        cmocka_unit_test(a_file_that_cannot_be_read_is_refused),
        cmocka_unit_test(lines_and_values_have_a_limit),
        cmocka_unit_test(a_secret_may_stand_in_a_file),
        cmocka_unit_test(a_secret_file_that_gives_nothing_is_refused),
        cmocka_unit_test(words_that_are_no_options_are_told_apart),
        cmocka_unit_test(a_second_load_leaves_the_first_intact),
        cmocka_unit_test(an_item_is_what_stands_between_commas),
        cmocka_unit_test(help_and_reference_list_every_option_once),
        cmocka_unit_test(all_options_can_be_told_but_no_secret),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
