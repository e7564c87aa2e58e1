#include "redis_links.h"

#include "clock.h"
#include "mem.h"

#define KEPT_MS 1000 /* a retired link, for who comes back to it now and then */

struct redis_links_entry {
    struct redis_link *link;
    int64_t retired_ms; /* 0: it is not */
    struct redis_links_entry *next;
};

struct redis_link *redis_links_to(struct redis_links *ls, const struct redis_address *address)
{
    struct redis_links_entry **at = &ls->first;
    while (*at != NULL && !redis_address_equal(redis_link_address((*at)->link), address)) at = &(*at)->next;
    if (*at == NULL) {
        *at = mem_alloc(sizeof **at);
        (*at)->link = redis_link_open(address, &ls->options);
    }
    (*at)->retired_ms = 0;
    return (*at)->link;
}

void redis_links_retire_all(struct redis_links *ls)
{
    for (struct redis_links_entry *at = ls->first; at != NULL; at = at->next) at->retired_ms = clock_mono_ms();
}

void redis_links_flush(struct redis_links *ls)
{
    for (struct redis_links_entry **at = &ls->first, *entry; (entry = *at) != NULL;) {
        bool retired = entry->retired_ms != 0 && clock_mono_ms() - entry->retired_ms >= KEPT_MS;
        if (retired && !redis_link_in_use(entry->link)) {
            *at = entry->next;
            redis_link_close(entry->link);
            free(entry);
        } else {
            redis_link_flush(entry->link);
            at = &entry->next;
        }
    }
}

void redis_links_done(struct redis_links *ls)
{
    for (struct redis_links_entry *at = ls->first, *next; at != NULL; at = next) {
        next = at->next;
        redis_link_close(at->link);
        free(at);
    }
    ls->first = NULL;
}
