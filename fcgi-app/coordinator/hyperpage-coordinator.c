/* hyperpage-coordinator.c: the coordinator's program: reads its options, waits until it is the one that works for this
 * node, and becomes the coordinator. */
#include "coordinator.h"

#include "folder.h"
#include "log.h"
#include "mem.h"
#include "program.h"
#include "redis_url.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

extern char **environ;

static const struct program program = {
    "hyperpage-coordinator",
    "Does what must happen once a node or once a cluster, beside a pool of hyperpage-fcgi: messages between nodes, "
    "election of a leader, and what the leader looks after. Any number may be started: one of a node works, the others "
    "wait to take its place. Signals: TERM and INT hand over and stop, HUP reads the options again, USR2 gives the "
    "leadership back, USR1 opens the log file again.",
};

/* As this program was started, to read the options again. */
static struct {
    int argc;
    char **argv;
    char *run_dir;
} call;

/* Checks what the table of options cannot. */
static bool check_config(const struct config *cfg, bool create, struct err *e)
{
    struct redis_url url;
    if (cfg->redis_url[0] != '\0' && !redis_url_parse(cfg->redis_url, &url, e)) return false;
    if (cfg->database_url[0] != '\0' && !pg_check_url(cfg->database_url, e)) return false;
    if (cfg->leader_election_timeout <= 2 * cfg->leader_heartbeat_interval)
        return err_set(e, ERR_INPUT,
                       "LEADER_ELECTION_TIMEOUT=%lld: allowed is more than two times "
                       "LEADER_HEARTBEAT_INTERVAL (%lld ms)",
                       (long long)cfg->leader_election_timeout, (long long)cfg->leader_heartbeat_interval);
    return pod_name_check(cfg, e) && folder_check("RUN_DIR", cfg->run_dir, 0755, create, e) &&
           folder_check("STATE_DIR", cfg->state_dir, 0700, create, e);
}

static bool open_log(const struct config *cfg, struct err *e)
{
    return log_open("coordinator", (enum log_level)cfg->log_level, (enum log_format)cfg->log_format, cfg->log_file, e);
}

/* Reads the options again; the log goes where they say. NULL: they are wrong, and said to be. */
static struct config *reload(void)
{
    struct config_call ignored;
    struct buf misses = BUF_INIT(64 * 1024);
    struct err e;
    struct config *cfg = config_load(call.argc, call.argv, environ, &ignored, &misses, &e);
    bool ok = cfg != NULL && check_config(cfg, true, &e);
    if (ok && strcmp(cfg->run_dir, call.run_dir) != 0)
        ok =
            err_set(&e, ERR_INPUT, "RUN_DIR=%.100s: a running coordinator stays at %.100s", cfg->run_dir, call.run_dir);
    if (ok && open_log(cfg, &e)) {
        program_log_near_misses(&misses);
    } else {
        log_error("options stay the old ones: error=\"%s\"", e.text);
        config_free(cfg);
        cfg = NULL;
    }
    buf_done(&misses);
    return cfg;
}

/* --- one of a node works --- */

static void leave(int signal_number)
{
    (void)signal_number;
    _exit(0);
}

/* Waits for the lock on RUN_DIR/coordinator.pid, which the kernel takes from a dead one: a spare works at once. It has
 * nothing to lose yet, so a signal that says to stop ends it here. *waited: the options may be others by now. False
 * with `e`. */
static bool take_node(const char *run_dir, bool *waited, struct err *e)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/coordinator.pid", run_dir);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644); /* closed by the end of this process */
    if (fd < 0)
        return err_set(e, ERR_INPUT, "RUN_DIR=%.100s: %.100s cannot be opened: %s", run_dir, path, strerror(errno));
    signal(SIGHUP, SIG_IGN);
    signal(SIGUSR2, SIG_IGN);
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    *waited = flock(fd, LOCK_EX | LOCK_NB) != 0;
    if (*waited) {
        log_info("another coordinator works for this node, this one waits to take its place");
        while (flock(fd, LOCK_EX) != 0)
            if (errno != EINTR) return err_set(e, ERR_INTERNAL, "%.100s cannot be locked: %s", path, strerror(errno));
        log_info("the coordinator of this node is gone, this one takes its place");
    }
    if (ftruncate(fd, 0) != 0 || dprintf(fd, "%d\n", (int)getpid()) < 0)
        log_warn("pid file cannot be written: path=\"%s\" error=\"%s\"", path, strerror(errno));
    return true;
}

/* Works with the options as they are when it begins to, and as they are after each HUP. */
static int work(struct config **cfg, struct err *e)
{
    static const int codes[] = { [COORDINATOR_STOPPED] = 0, [COORDINATOR_FAILED] = 1, [COORDINATOR_REFUSED] = 2 };
    enum coordinator_end end;
    bool waited;
    call.run_dir = mem_strdup((*cfg)->run_dir);
    if (!take_node(call.run_dir, &waited, e)) return 2;
    struct config *next = waited ? reload() : NULL;
    do {
        if (next != NULL) {
            config_free(*cfg);
            *cfg = next;
        }
        end = coordinator_run(*cfg, reload, &next, e);
    } while (end == COORDINATOR_AGAIN);
    return codes[end];
}

int main(int argc, char **argv)
{
    struct config_call asked;
    struct buf misses = BUF_INIT(64 * 1024);
    struct err e = { .kind = ERR_NONE };
    int code = 2;
    call.argc = argc;
    call.argv = argv;
    log_keep_standard();
    struct config *cfg = config_load(argc, argv, environ, &asked, &misses, &e);
    if (program_tells(&program, &asked, &code)) goto out;
    if (cfg == NULL || !check_config(cfg, !asked.check, &e) || !open_log(cfg, &e)) {
        code = program_refuse(&program, &e);
    } else if (asked.check) {
        code = 0;
    } else {
        program_log_near_misses(&misses);
        code = work(&cfg, &e);
        if (code == 2) program_refuse(&program, &e);
    }
out:
    buf_done(&misses);
    config_free(cfg);
    free(call.run_dir);
    return code;
}
