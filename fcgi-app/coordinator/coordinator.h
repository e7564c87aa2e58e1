/* coordinator.h: the process that does what must happen once a node or once a cluster: one libev loop in which tasks
 * wait for Redis and for time. Everything below reads top to bottom and never blocks the loop. */
#ifndef HYPERPAGE_COORDINATOR_H
#define HYPERPAGE_COORDINATOR_H

#include "config.h"
#include "coordination.h"
#include "messenger.h"
#include "pg.h"
#include "pod_name.h"
#include "pollset.h"
#include "redis.h"
#include "shared.h"

/* Scripts that the coordinator's connections have loaded; their texts stand in coordinator.c. */
enum coordinator_script { SCRIPT_ACQUIRE, SCRIPT_RENEW, SCRIPT_RELEASE, SCRIPT_POD_LIVES, SCRIPTS };

struct coordinator {
    const struct config *config;
    char pod[POD_NAME_BYTES];
    struct pollset *pollset; /* of everything that waits for descriptors; watched by the loop */
    struct redis *redis;     /* NULL: REDIS_URL is empty, or POD_COORDINATION_ENABLED is false */
    struct redis_url url;
    struct redis_script scripts[SCRIPTS];
    struct messenger messenger;  /* POD/coordinator */
    struct pg *pg;               /* NULL: DATABASE_URL is empty */
    bool schema_applied;         /* the database has all tables (fence.h) */
    int64_t fenced_term;         /* with which the transaction of the leader on `pg` has passed (fence.h) */
    struct store_redis *warming; /* while sessions are loaded into the cache (warmup.h); else NULL */
    int warmups;                 /* of these, under way or waiting */
    bool cleanup_asked;          /* of who keeps Redis clean without a database: now, not in an hour */
    struct shared *shared;
    struct slot *slot;                 /* in which we count */
    struct coordination *coordination; /* what other processes of the node see of all this */
    struct leadership *leadership;
    struct inbox *inbox; /* NULL without Redis */
    struct duties *duties;
    bool leaving; /* every task returns as soon as it can */
};

enum coordinator_end {
    COORDINATOR_STOPPED, /* TERM, INT */
    COORDINATOR_AGAIN,   /* HUP: *next holds the options to go on with */
    COORDINATOR_REFUSED, /* it could not start: `e` says why */
    COORDINATOR_FAILED   /* a task did not end in time */
};

/* Runs until told otherwise, by the one that works for this node. `reload` reads the options again; if it gives none,
 * all goes on as it was. */
enum coordinator_end coordinator_run(const struct config *cfg, struct config *(*reload)(void), struct config **next,
                                     struct err *e);

#endif
