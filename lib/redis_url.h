/* redis_url.h: what REDIS_URL names. Pure. */
#ifndef HYPERPAGE_REDIS_URL_H
#define HYPERPAGE_REDIS_URL_H

#include "err.h"

#include <stddef.h>

#define REDIS_URL_MOST_SERVERS 16

struct redis_address {
    char host[256]; /* a name, an IPv4 or IPv6 address, or the path of a unix socket, which begins with / */
    int port;       /* 0 with a path */
};

bool redis_address_equal(const struct redis_address *a, const struct redis_address *b);

enum redis_topology {
    REDIS_ONE_SERVER,
    REDIS_SENTINEL, /* the servers are Sentinels, which know the primary */
    REDIS_CLUSTER   /* the servers are some of the cluster's, which know the others */
};

struct redis_url {
    enum redis_topology topology;
    struct redis_address servers[REDIS_URL_MOST_SERVERS];
    size_t server_count;
    char primary[128];  /* its name among the Sentinels */
    char user[128];     /* for the servers with the data; "" for the default user */
    char password[256]; /* "" for none */
    int db;
};

/*   redis://[user:password@]host[:port][/db]
 *   redis+unix://[user:password@]/path[?db=N]
 *   redis-sentinel://[user:password@]host[:port],host[:port],.../PRIMARY[/db]
 *   redis-cluster://[user:password@]host[:port],host[:port],...
 * User and password may be percent-encoded, an IPv6 host stands in brackets. False sets `e` to a line that names
 * REDIS_URL, never the password. */
bool redis_url_parse(const char *text, struct redis_url *url, struct err *e);

#endif
