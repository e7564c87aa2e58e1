/* ctl_config.c: the options, as they come out, and as the programs themselves judge them. */
#include "ctl.h"

#include "mem.h"

#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void tell_option(void *ctx, const char *key, const char *value)
{
    struct report *r = ctx;
    if (r->json)
        report_text(r, key, bytes_of(value));
    else
        buf_printf(&r->text, "%s=%s\n", key, value);
}

enum ctl_exit config_show_all(struct ctl *c)
{
    config_each(c->config, tell_option, &c->report);
    return CTL_OK;
}

/* What stands beside us when we are installed and when we are just built. */
static bool path_of(const char *program, struct buf *path)
{
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self);
    while (n > 0 && self[n - 1] != '/') n--;
    if (n > 0) buf_append(path, self, (size_t)n);
    buf_puts(path, program);
    return n > 0 && !buf_overflowed(path);
}

/* Their one line goes where ours do. */
static enum ctl_exit ask(const struct ctl *c, const char *program)
{
    struct buf path = BUF_INIT(4096);
    char **argv = mem_alloc(((size_t)c->argc + 2) * sizeof *argv);
    pid_t pid;
    int status = 0, rc = ENOENT;
    memcpy(argv, c->argv, (size_t)c->argc * sizeof *argv);
    if (path_of(program, &path)) {
        argv[0] = path.data;
        argv[c->argc] = "--check";
        rc = posix_spawn(&pid, path.data, NULL, NULL, argv, environ);
    }
    while (rc == 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR) continue;
    enum ctl_exit code = WIFEXITED(status) && WEXITSTATUS(status) == 0 ? CTL_OK : CTL_USAGE;
    if (rc != 0) code = ctl_fail(CTL_UNREACHABLE, "%s cannot be asked: %s", buf_text(&path), strerror(rc));
    free(argv);
    buf_done(&path);
    return code;
}

enum ctl_exit config_check(struct ctl *c)
{
    enum ctl_exit pool = ask(c, "hyperpage-fcgi"),
                  coordinator = pool == CTL_OK ? ask(c, "hyperpage-coordinator") : pool;
    if (coordinator == CTL_OK) report_string(&c->report, "done", "the options are right");
    return coordinator;
}
