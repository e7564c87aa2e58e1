/* ctl.h: what the operator's commands share: the call, how they answer, and this node as its folders show it. */
#ifndef HYPERPAGE_CTL_H
#define HYPERPAGE_CTL_H

#include "breaker.h"
#include "config.h"
#include "coordination.h"
#include "daemon.h"
#include "report.h"
#include "store.h"
#include "shared.h"

/* Stable: scripts go by them. */
enum ctl_exit {
    CTL_OK,
    CTL_NOT_SO,      /* the thing is not so: unhealthy, not there, refused */
    CTL_USAGE,       /* the call or the configuration is wrong */
    CTL_UNREACHABLE, /* pool, coordinator or store cannot be reached */
    CTL_TIMED_OUT
};

/* What may stand on the command line beside the configuration's options. */
enum ctl_flag {
    CTL_JSON,
    CTL_WAIT,
    CTL_TIMEOUT,
    CTL_ROLLING,
    CTL_NOW,
    CTL_STEP_DOWN,
    CTL_PRIORITY,
    CTL_POD,
    CTL_DRY_RUN,
    CTL_OVERWRITE,
    CTL_APPLY,
    CTL_URL,
    CTL_TOKEN_FILE,
    CTL_CACERT,
    CTL_FLAGS
};

#define CTL_MOST_WORDS 4

struct ctl {
    struct config *config;
    int argc; /* the options of the configuration, as they were given: argv[1] and following */
    char **argv;
    const char *word[CTL_MOST_WORDS]; /* what stands behind the command's name; NULL beyond */
    const char *flag[CTL_FLAGS];      /* NULL: not given; "" or its value */
    int64_t deadline_ms;              /* monotonic: --timeout from the start, or CLOCK_NEVER */
    struct report report;             /* printed when the command returns */
};

typedef enum ctl_exit ctl_command(struct ctl *c);

/* One line on standard error; gives `code` back. */
enum ctl_exit ctl_fail(enum ctl_exit code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
enum ctl_exit ctl_failed(const struct ctl *c, const struct err *e); /* the code that this error means */

/* Of a part of the work that takes at most so long: then, or at --timeout if that is sooner. */
int64_t ctl_step_deadline(const struct ctl *c, int64_t step_ms);

/* --- node.c: what runs here --- */

struct node {
    struct daemon master, coordinator; /* pid 0: does not run */
    struct shared *shared;             /* NULL: neither runs */
    struct slot *slot;                 /* the master's; NULL: it does not run, or is of another build */
    struct breaker *breaker;           /* NULL: there is no Redis */
    struct coordination *coordination;
};

bool node_open(struct node *n, const struct config *cfg, struct err *e);
void node_close(struct node *n);

/* The same with a pool that runs; `known`: of this build, so that its workers can be seen. Else it has been said. */
enum ctl_exit node_open_pool(struct ctl *c, struct node *n, bool known);

const char *node_state(const struct slot *s); /* in words */

/* Waits until `holds`, asking some 50 times a second, while `p` lives; false: that, or the deadline. */
bool node_until(bool (*holds)(void *ctx), void *ctx, const struct daemon *p, int64_t deadline_ms);

/* --- ctl_store.c --- */

/* Where our options say that sessions are, which need not be where the pool keeps them: alone, see store.h. `pollset`
 * NULL: for use outside of tasks. NULL: *code says why, as has been said. */
struct store *ctl_open_store(struct ctl *c, struct pollset *pollset, enum ctl_exit *code);

/* The same for commands about the pool's sessions: that it keeps them elsewhere is said, and stops nothing. */
struct store *ctl_open_pools_store(struct ctl *c, enum ctl_exit *code);

/* Where the pool of this RUN_DIR keeps its sessions; unknown where none runs, or none has looked yet. */
enum ctl_home { CTL_HOME_UNKNOWN, CTL_HOME_EMBEDDED, CTL_HOME_REDIS };
enum ctl_home ctl_home_of_pool(const struct ctl *c);

/* --- ctl_sessions.c --- */

/* "-": from standard input, where no list of processes shows it. */
enum ctl_exit ctl_read_id(const char *word, char id[IDS_TEXT_BYTES]);

/* --- the commands, by noun --- */

ctl_command pool_status, pool_health, pool_reload, pool_drain, pool_restart, pool_scale; /* ctl_pool.c */
ctl_command pool_top;                                                                    /* ctl_top.c */
ctl_command cluster_pods, cluster_leader, cluster_send, cluster_cleanup;                 /* ctl_cluster.c */
ctl_command sessions_list, sessions_show, sessions_revoke, sessions_count;               /* ctl_sessions.c */
ctl_command cache_stats, cache_flush, store_look;                                        /* ctl_store.c */
ctl_command store_export, store_import;                                                  /* ctl_move.c */
ctl_command remote_status, remote_health, remote_pods, remote_leader, remote_send,       /* ctl_remote.c */
    remote_sessions, remote_session, remote_revoke;
ctl_command migrate;                       /* ctl_migrate.c */
ctl_command jobs_list;                     /* ctl_jobs.c */
ctl_command config_show_all, config_check; /* ctl_config.c */

#endif
