/* redis_url.h: what REDIS_URL names. Pure. */
#ifndef HYPERPAGE_REDIS_URL_H
#define HYPERPAGE_REDIS_URL_H

#include "err.h"

struct redis_url {
    char path[108];     /* of a unix socket; "" for TCP */
    char host[256];
    int port;
    char user[128];     /* "" for the default user */
    char password[256]; /* "" for none */
    int db;
};

/* redis://[user:password@]host[:port][/db] or redis+unix://[user:password@]/path[?db=N]; user and password may be
 * percent-encoded, an IPv6 host stands in brackets. False sets `e` to a line that names REDIS_URL, never the password. */
bool redis_url_parse(const char *text, struct redis_url *url, struct err *e);

#endif
