/* hyperpage-fcgi.c: the pool's program: reads its options and becomes a master, or, with WORKERS=0, one worker. */
#include "keeper.h"
#include "listener.h"
#include "log.h"
#include "master.h"
#include "program.h"
#include "worker.h"

extern char **environ;

static const struct program program = {
    "hyperpage-fcgi",
    "A pool of FastCGI workers that serve the session API behind lighttpd or nginx. Signals to the master: TERM drains "
    "and stops, INT stops faster, HUP reads the options again and replaces the workers one by one, USR2 starts a new "
    "binary on the same socket and drains this one, TTIN and TTOU add and remove a worker, USR1 opens the log file "
    "again.",
};

/* A single worker: who started us made the socket and looks after us. */
static int run_single(const struct config *cfg, struct err *e)
{
    struct listener l;
    if (!listener_open(&l, cfg, -1, false, e)) return 2;
    keeper_report_leftovers(cfg);
    struct worker_options o = {
        .config = cfg, .listen_fd = l.fd, .handover = { -1, -1 }, .life_fd = -1, .report_fd = -1
    };
    int code = worker_run(&o);
    l.fd = -1; /* the worker has closed it */
    listener_close(&l);
    return code;
}

int main(int argc, char **argv)
{
    struct config_call call;
    struct buf misses = BUF_INIT(64 * 1024);
    struct err e;
    int code = 2;
    log_keep_standard();
    struct config *cfg = config_load(argc, argv, environ, &call, &misses, &e);
    if (program_tells(&program, &call, &code)) goto out;
    if (cfg == NULL || !master_check_config(cfg, !call.check, &e) ||
        !log_open("master", (enum log_level)cfg->log_level, (enum log_format)cfg->log_format, cfg->log_file, &e)) {
        code = program_refuse(&program, &e);
    } else if (call.check) {
        code = 0;
    } else {
        program_log_near_misses(&misses);
        struct master_options o = { .config = cfg, .argc = argc, .argv = argv };
        code = cfg->workers == 0 ? run_single(cfg, &e) : master_run(&o, &e);
        cfg = o.config;
        if (code == 2) program_refuse(&program, &e);
    }
out:
    buf_done(&misses);
    config_free(cfg);
    return code;
}
