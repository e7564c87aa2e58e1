/* redis_links.h: the links of one facade to servers of one kind, by address. */
#ifndef HYPERPAGE_REDIS_LINKS_H
#define HYPERPAGE_REDIS_LINKS_H

#include "redis_link.h"

struct redis_links {
    struct redis_link_options options; /* the same for all */
    struct redis_links_entry *first;
};

/* The link to a server, opened (not connected) if there is none yet. Never NULL; valid until it is retired and nobody
 * calls on it any more, so not across a park before the call. */
struct redis_link *redis_links_to(struct redis_links *ls, const struct redis_address *address);

/* Whoever is not asked for by redis_links_to() from now on is not needed any more: such a link is closed by the first
 * flush that finds it out of use, a second later. */
void redis_links_retire_all(struct redis_links *ls);

void redis_links_flush(struct redis_links *ls);
void redis_links_done(struct redis_links *ls);

#endif
