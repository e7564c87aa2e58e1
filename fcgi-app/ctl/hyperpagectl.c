/* hyperpagectl.c: the operator's tool: finds the command in a table, reads the options that the programs have too, and
 * runs it. */
#include "ctl.h"

#include "clock.h"
#include "log.h"
#include "mem.h"

#include <errno.h>
#include <grp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TIMEOUT_S    60
#define MACHINE_FILE "/etc/hyperpage/hyperpage.conf" /* that the units name */

extern char **environ;

#define MAY(flag)  (1u << CTL_##flag)
#define ALWAYS_MAY (MAY(JSON) | MAY(TIMEOUT) | MAY(URL) | MAY(TOKEN_FILE) | MAY(CACERT))

#define TAKES_TIME (1u << CTL_FLAGS) /* what it needs, unless --timeout is given */

static const struct command {
    const char *name, *words;      /* as in --help */
    size_t least, most;            /* words */
    unsigned flags;                /* beside those that any may have */
    ctl_command *run, *run_remote; /* the latter with --url; NULL: it works over RUN_DIR */
    const char *help;
} commands[] = {
    { "status", "", 0, 0, 0, pool_status, remote_status, "What runs on this node, and how it is. 3: no pool runs." },
    { "health", "", 0, 0, MAY(WAIT), pool_health, remote_health,
      "0: the pool takes reads and writes; 1: it does not; 3: it does not run. --wait: until it does." },
    { "top", "", 0, 0, 0, pool_top, NULL, "The pool at work, until q or Ctrl-C; without a terminal one second of it." },
    { "reload", "", 0, 0, MAY(WAIT), pool_reload, NULL,
      "The options are read again and the workers replaced one by one. --wait: until the new ones serve; 1: refused." },
    { "drain", "", 0, 0, MAY(WAIT), pool_drain, NULL,
      "Requests in hand are finished, then the pool ends; systemd leaves it down until it is told otherwise. --wait: "
      "until "
      "it has ended." },
    { "restart", "", 0, 0, MAY(WAIT) | MAY(ROLLING), pool_restart, NULL,
      "The binary is started anew on the same socket and takes over. --rolling: its workers are replaced one by one, "
      "the master stays (as reload). --wait: until the new ones serve; 1: they cannot, the old ones go on." },
    { "scale", "N", 1, 1, MAY(WAIT), pool_scale, NULL,
      "N workers, until the next reload with WORKERS or restart. --wait: until they serve." },
    { "pods", "", 0, 0, 0, cluster_pods, remote_pods, "The nodes that live, as this one knows them." },
    { "leader", "", 0, 0, MAY(WAIT) | MAY(STEP_DOWN), cluster_leader, remote_leader,
      "Who leads. 1: nobody. --step-down: this node gives the leadership back and stands again after one lease; "
      "--wait: until another leads; 1: there is no other node, and this one leads on." },
    { "send", "TYPE PAYLOAD", 2, 2, MAY(PRIORITY) | MAY(POD), cluster_send, remote_send,
      "A message to all nodes, or to --pod NAME; --priority low|normal|high. TYPE: cache_invalidate, rate_limit_sync, "
      "job_coordination, broadcast; PAYLOAD: a JSON object." },
    { "cleanup", "", 0, 0, MAY(WAIT) | MAY(NOW), cluster_cleanup, NULL,
      "The hourly cleanup --now; on the node that leads. --wait: until it is done." },
    { "jobs", "[STATUS]", 0, 1, 0, jobs_list, NULL, "The 50 newest jobs in PostgreSQL, of all or of one status." },
    { "sessions list", "USER", 1, 1, 0, sessions_list, remote_sessions,
      "The sessions of a user; ids only as short hashes, as in the log." },
    { "sessions show", "ID", 1, 1, 0, sessions_show, remote_session,
      "A session's document. ID - is read from standard input. 1: no such." },
    { "sessions revoke", "USER", 1, 1, 0, sessions_revoke, remote_revoke, "Ends all sessions of a user." },
    { "sessions count", "", 0, 0, 0, sessions_count, NULL,
      "How many sessions there are. In Redis a SCAN over all keys." },
    { "cache stats", "", 0, 0, 0, cache_stats, NULL, "This node's copies of sessions in Redis." },
    { "cache flush", "", 0, 0, 0, cache_flush, NULL, "No copy is believed until Redis has been asked again." },
    { "store check", "", 0, 0, 0, store_look, NULL,
      "Do the places that sessions are kept in take writes now? 3: one does not." },
    { "store export", "FILE", 1, 1, TAKES_TIME, store_export, NULL,
      "All sessions of the place in use as lines of JSON, each with id, end and the document's bytes. FILE - is "
      "standard "
      "output. 1: keys that are no sessions were left out." },
    { "store import", "FILE", 1, 1, TAKES_TIME | MAY(DRY_RUN) | MAY(OVERWRITE), store_import, NULL,
      "Such lines into the place in use; again and again does no harm. What is there stays, unless the line's document "
      "is newer, or with --overwrite; what was deleted stays gone. --dry-run only counts. 1: lines were refused." },
    { "migrate", "", 0, 0, TAKES_TIME | MAY(APPLY), migrate, NULL,
      "Looks at the Redis and the PostgreSQL of an original portal that runs, and tells what would change when nodes "
      "of "
      "this service join it, and what stands in the way. --apply: changes it now. 1: something stands in the way." },
    { "config show", "", 0, 0, 0, config_show_all, NULL, "The options as they come out, without secrets." },
    { "config check", "", 0, 0, 0, config_check, NULL,
      "As --check of hyperpage-fcgi and hyperpage-coordinator. 2: wrong." },
};
#define COMMANDS (sizeof commands / sizeof commands[0])

static const struct flag {
    const char *name, *value; /* NULL: it has none */
} flags[CTL_FLAGS] = {
    [CTL_JSON] = { "--json", NULL },
    [CTL_WAIT] = { "--wait", NULL },
    [CTL_TIMEOUT] = { "--timeout", "S" },
    [CTL_ROLLING] = { "--rolling", NULL },
    [CTL_NOW] = { "--now", NULL },
    [CTL_STEP_DOWN] = { "--step-down", NULL },
    [CTL_PRIORITY] = { "--priority", "LEVEL" },
    [CTL_POD] = { "--pod", "NAME" },
    [CTL_DRY_RUN] = { "--dry-run", NULL },
    [CTL_OVERWRITE] = { "--overwrite", NULL },
    [CTL_APPLY] = { "--apply", NULL },
    [CTL_URL] = { "--url", "URL" },
    [CTL_TOKEN_FILE] = { "--token-file", "FILE" },
    [CTL_CACERT] = { "--cacert", "FILE" },
};

/* --- errors --- */

enum ctl_exit ctl_fail(enum ctl_exit code, const char *fmt, ...)
{
    va_list ap;
    fputs("hyperpagectl: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputs("\n", stderr);
    return code;
}

enum ctl_exit ctl_failed(const struct ctl *c, const struct err *e)
{
    enum ctl_exit code = e->kind == ERR_INPUT ? CTL_USAGE : e->kind == ERR_UNAVAILABLE ? CTL_UNREACHABLE : CTL_NOT_SO;
    if (code == CTL_UNREACHABLE && clock_mono_ms() >= c->deadline_ms) code = CTL_TIMED_OUT;
    return ctl_fail(code, "%s", e->text);
}

int64_t ctl_step_deadline(const struct ctl *c, int64_t step_ms)
{
    int64_t until_ms = clock_mono_ms() + step_ms;
    return until_ms < c->deadline_ms ? until_ms : c->deadline_ms;
}

/* --- the call --- */

static void add_flags(unsigned allowed, struct buf *out)
{
    for (int f = 0; f < CTL_FLAGS; f++)
        if (allowed & 1u << f)
            buf_printf(out, " [%s%s%s]", flags[f].name, flags[f].value ? " " : "",
                       flags[f].value ? flags[f].value : "");
}

static const char usage[] =
    "usage: hyperpagectl COMMAND [--json] [--timeout S] [--config FILE] [--OPTION VALUE ...]\n"
    "       hyperpagectl COMMAND --url URL [--token-file FILE] [--cacert FILE] [--json] [--timeout S]\n"
    "       hyperpagectl --help | --version\n";

static int help(void)
{
    struct buf out = BUF_INIT(64 * 1024);
    buf_puts(&out, usage);
    buf_puts(
        &out,
        "\nLooks at and steers the session service of this node, over RUN_DIR, STATE_DIR and its stores. It takes\n"
        "the options that hyperpage-fcgi has, from the same places: give it the same file or environment. Where it is\n"
        "given neither --config nor RUN_DIR, it takes " MACHINE_FILE ", if there is one.\n"
        "--json prints one JSON object. --timeout is 60 seconds unless given; store export, store import and\n"
        "migrate then take the time they need. As root it acts as the owner of RUN_DIR.\n\n"
        "With --url it asks a node over HTTP: its web server's http://HOST[:PORT]/ or https://HOST[:PORT]/, whose\n"
        "certificate the machine's authorities, or those of --cacert, must vouch for. The token of administrators\n"
        "stands in --token-file, ADMIN_TOKEN_FILE or ADMIN_TOKEN. Commands marked with * know this.\n\n"
        "Commands:\n");
    for (size_t i = 0; i < COMMANDS; i++) {
        buf_printf(&out, "  %s%s%s", commands[i].name, commands[i].words[0] ? " " : "", commands[i].words);
        add_flags(commands[i].flags, &out);
        if (commands[i].run_remote != NULL) buf_puts(&out, " *");
        buf_puts(&out, "\n");
        config_wrap(commands[i].help, 6, 100, &out);
    }
    buf_puts(&out,
             "\nExit codes: 0 done, it is so; 1 it is not so, refused; 2 the call or the configuration is wrong;\n"
             "3 pool, coordinator or store cannot be reached; 4 it took longer than --timeout.\n");
    bool ok = fputs(buf_text(&out), stdout) >= 0 && fflush(stdout) == 0;
    buf_done(&out);
    return ok ? CTL_OK : CTL_NOT_SO;
}

/* Is this one of ours? With its value, if it has one, which may stand behind a = or be the next word. False: it is an
 * option of the configuration. */
static bool take_flag(struct ctl *c, char **argv, int *at, bool *good)
{
    for (int f = 0; f < CTL_FLAGS; f++) {
        size_t n = strlen(flags[f].name);
        const char *rest = argv[*at] + n;
        if (strncmp(argv[*at], flags[f].name, n) != 0 || (*rest != '\0' && *rest != '=')) continue;
        *good = flags[f].value != NULL || *rest == '\0';
        c->flag[f] = *rest == '=' ? rest + 1 : flags[f].value == NULL ? "" : argv[*at + 1];
        if (*rest == '\0' && flags[f].value != NULL && (*good = c->flag[f] != NULL)) ++*at;
        return true;
    }
    return false;
}

/* Sorts the arguments into words, our flags, and options of the configuration, each of which has a value. */
static bool read_call(struct ctl *c, int argc, char **argv, const char *words[], size_t *count)
{
    bool good = true, only_words = false;
    c->argv = mem_alloc(((size_t)argc + 5) * sizeof *c->argv);
    c->argv[c->argc++] = argv[0];
    for (int i = 1; i < argc; i++) {
        if (!only_words && strcmp(argv[i], "--") == 0) {
            only_words = true;
        } else if (only_words || strncmp(argv[i], "--", 2) != 0) {
            if (*count == CTL_MOST_WORDS) return ctl_fail(CTL_USAGE, "too many words (see --help)") == CTL_OK;
            words[(*count)++] = argv[i];
        } else if (take_flag(c, argv, &i, &good)) {
            if (!good) return ctl_fail(CTL_USAGE, "%s: no such form of it (see --help)", argv[i]) == CTL_OK;
        } else {
            c->argv[c->argc++] = argv[i];
            if (strchr(argv[i], '=') == NULL && argv[i + 1] != NULL) c->argv[c->argc++] = argv[++i];
        }
    }
    if (c->flag[CTL_TOKEN_FILE] != NULL) { /* as if this option had been given */
        c->argv[c->argc++] = "--admin-token-file";
        c->argv[c->argc++] = (char *)c->flag[CTL_TOKEN_FILE];
    }
    return true;
}

static bool has_option(const struct ctl *c, const char *name)
{
    size_t n = strlen(name);
    for (int i = 1; i < c->argc; i++)
        if (strncmp(c->argv[i], name, n) == 0 && (c->argv[i][n] == '\0' || c->argv[i][n] == '=')) return true;
    return false;
}

/* Who names neither a file nor a RUN_DIR means the node that this machine has. Not with --url: what that one's
 * administrators have as a token is not for others to see. */
static void add_machine_file(struct ctl *c)
{
    if (c->flag[CTL_URL] != NULL || getenv("RUN_DIR") != NULL || has_option(c, "--config") ||
        has_option(c, "--run-dir") || access(MACHINE_FILE, F_OK) != 0)
        return;
    c->argv[c->argc++] = "--config";
    c->argv[c->argc++] = MACHINE_FILE;
}

/* A command's name is one word or two. */
static const struct command *find_command(struct ctl *c, const char *words[], size_t count)
{
    for (size_t i = 0; i < COMMANDS && count > 0; i++) {
        const char *blank = strchr(commands[i].name, ' ');
        size_t first = blank ? (size_t)(blank - commands[i].name) : strlen(commands[i].name), taken = blank ? 2 : 1;
        if (strlen(words[0]) != first || memcmp(words[0], commands[i].name, first) != 0) continue;
        if (blank != NULL && (count < 2 || strcmp(words[1], blank + 1) != 0)) continue;
        if (count - taken < commands[i].least || count - taken > commands[i].most) {
            ctl_fail(CTL_USAGE, "usage: hyperpagectl %s%s%s (see --help)", commands[i].name,
                     commands[i].words[0] != '\0' ? " " : "", commands[i].words);
            return NULL;
        }
        for (size_t w = taken; w < count; w++) c->word[w - taken] = words[w];
        return &commands[i];
    }
    if (count == 0)
        fputs(usage, stderr);
    else
        ctl_fail(CTL_USAGE, "%s%s%s: no such command (see --help)", words[0], count > 1 ? " " : "",
                 count > 1 ? words[1] : "");
    return NULL;
}

static bool check_flags(struct ctl *c, const struct command *cmd)
{
    char *end = "";
    long long s = TIMEOUT_S;
    for (int f = 0; f < CTL_FLAGS; f++)
        if (c->flag[f] != NULL && !((cmd->flags | ALWAYS_MAY) & 1u << f))
            return ctl_fail(CTL_USAGE, "%s: not with %s (see --help)", flags[f].name, cmd->name) == CTL_OK;
    if (c->flag[CTL_URL] == NULL && (c->flag[CTL_TOKEN_FILE] != NULL || c->flag[CTL_CACERT] != NULL))
        return ctl_fail(CTL_USAGE, "--token-file, --cacert: only with --url") == CTL_OK;
    if (c->flag[CTL_URL] != NULL && cmd->run_remote == NULL)
        return ctl_fail(CTL_USAGE, "%s: works over RUN_DIR, on the node itself: not with --url", cmd->name) == CTL_OK;
    if (c->flag[CTL_TIMEOUT] != NULL) s = strtoll(c->flag[CTL_TIMEOUT], &end, 10);
    if (*end != '\0' || s < 1 || s > 86400)
        return ctl_fail(CTL_USAGE, "--timeout %s: allowed is 1 to 86400 (s)", c->flag[CTL_TIMEOUT]) == CTL_OK;
    bool ends = c->flag[CTL_TIMEOUT] != NULL || !(cmd->flags & TAKES_TIME);
    c->deadline_ms = ends ? clock_mono_ms() + s * 1000 : CLOCK_NEVER;
    return true;
}

/* What root would make in these folders, the pool could not open. */
static bool become_owner(const char *run_dir)
{
    struct stat st;
    if (geteuid() != 0 || stat(run_dir, &st) != 0 || st.st_uid == 0) return true;
    if (setgroups(1, &st.st_gid) == 0 && setresgid(st.st_gid, st.st_gid, st.st_gid) == 0 &&
        setresuid(st.st_uid, st.st_uid, st.st_uid) == 0)
        return true;
    return ctl_fail(CTL_UNREACHABLE, "RUN_DIR=%s: cannot act as its owner: %s", run_dir, strerror(errno)) == CTL_OK;
}

static enum ctl_exit run(struct ctl *c, const struct command *cmd)
{
    struct config_call call;
    struct buf misses = BUF_INIT(64 * 1024);
    struct err e;
    enum ctl_exit code;
    c->config = config_load(c->argc, c->argv, environ, &call, &misses, &e);
    buf_done(&misses);
    if (c->config == NULL) return ctl_failed(c, &e);
    /* What the library warns of, a command says itself where it fails for it. */
    if (!log_open("ctl", LOG_ERROR, LOG_TEXT, "", &e)) return ctl_failed(c, &e);
    if (c->flag[CTL_URL] == NULL && !become_owner(c->config->run_dir)) return CTL_UNREACHABLE;
    report_init(&c->report, c->flag[CTL_JSON] != NULL);
    code = c->flag[CTL_URL] != NULL ? cmd->run_remote(c) : cmd->run(c);
    bool told = c->report.text.len > (c->report.json ? 1 : 0);
    if (told && !report_print(&c->report)) code = ctl_fail(CTL_NOT_SO, "the answer cannot be written");
    report_done(&c->report);
    return code;
}

int main(int argc, char **argv)
{
    struct ctl c = { 0 };
    const char *words[CTL_MOST_WORDS] = { NULL };
    size_t count = 0;
    const struct command *cmd = NULL;
    enum ctl_exit code = CTL_USAGE;
    log_keep_standard();
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) return help();
        if (strcmp(argv[i], "--version") == 0) return puts("hyperpagectl " HYPERPAGE_VERSION) < 0;
    }
    if (read_call(&c, argc, argv, words, &count)) cmd = find_command(&c, words, count);
    if (cmd != NULL && check_flags(&c, cmd)) {
        add_machine_file(&c);
        code = run(&c, cmd);
    }
    config_free(c.config);
    free(c.argv);
    return (int)code;
}
