/* redis_sentinel.h: which server is the primary: asked of the Sentinels, who may name another at any time. Their word
 * is believed only when the server's own ROLE agrees. */
#ifndef HYPERPAGE_REDIS_SENTINEL_H
#define HYPERPAGE_REDIS_SENTINEL_H

#include "redis_links.h"

struct redis_sentinel;

/* `servers` are the links to servers with data; `password` ("" for none) is the Sentinels' own. All outlive it. */
struct redis_sentinel *redis_sentinel_open(const struct redis_url *url, const char *password,
                                           struct redis_links *servers);
void redis_sentinel_close(struct redis_sentinel *s);

/* The link to the primary, up and confirmed as such on this very connection. Asks at once where that is in doubt, and
 * now and then beside the requests, since a primary that was cut off and replaced does not know it. NULL: no Sentinel
 * names a server that says the same. */
struct redis_link *redis_sentinel_primary(struct redis_sentinel *s, int64_t deadline_ms, struct err *e);

/* This link's server answers as no primary does: if it still counts as one, ask before the next command. */
void redis_sentinel_doubt(struct redis_sentinel *s, const struct redis_link *link);

void redis_sentinel_flush(struct redis_sentinel *s);

#endif
