/* redis_cluster.h: which of a cluster's primaries serves a key: the map of slots, read from any of them, corrected by
 * redirections, read again when something does not fit. */
#ifndef HYPERPAGE_REDIS_CLUSTER_H
#define HYPERPAGE_REDIS_CLUSTER_H

#include "redis_links.h"

struct redis_cluster;

/* `servers` are the links to all servers. Both outlive it. */
struct redis_cluster *redis_cluster_open(const struct redis_url *url, struct redis_links *servers);
void redis_cluster_close(struct redis_cluster *c);

/* The link to the primary that serves this key (no key: to any). NULL: nobody does, or the cluster cannot be asked. */
struct redis_link *redis_cluster_server(struct redis_cluster *c, struct bytes key, int64_t deadline_ms, struct err *e);

/* The link to the server that a MOVED or ASK reply of `from` names; NULL if it names none. MOVED corrects the map. */
struct redis_link *redis_cluster_moved(struct redis_cluster *c, struct bytes key, const char *reply_text,
                                       const struct redis_link *from);
struct redis_link *redis_cluster_asked(struct redis_cluster *c, const char *reply_text, const struct redis_link *from);

/* Something does not fit: the map is read again beside the requests. */
void redis_cluster_doubt(struct redis_cluster *c);

/* The same, and waits for it, unless it was read just now. */
void redis_cluster_look_again(struct redis_cluster *c, int64_t deadline_ms);

/* The primaries: *list is the caller's (free). 0 with `e`: as above. */
size_t redis_cluster_primaries(struct redis_cluster *c, struct redis_address **list, int64_t deadline_ms,
                               struct err *e);

#endif
