/* redis_slots.h: which server of a cluster holds which key: the slot of a key and the map of slots. Pure. */
#ifndef HYPERPAGE_REDIS_SLOTS_H
#define HYPERPAGE_REDIS_SLOTS_H

#include "buf.h"
#include "err.h"
#include "redis_url.h"

#include <hiredis/read.h>
#include <hiredis/hiredis.h>
#include <stdint.h>

#define REDIS_SLOTS 16384

/* CRC16 of the key, or of what stands between its first { and the next }, if anything does. */
uint16_t redis_slot_of(struct bytes key);

struct redis_slots {
    struct redis_address *primaries;
    size_t count;
    int16_t owner[REDIS_SLOTS]; /* index into primaries; -1: nobody */
};

/* Reads a reply of CLUSTER SLOTS that `asked` gave: a server without a host is one where `asked` is. False, with
 * nothing to free: it is not one. */
bool redis_slots_read(const redisReply *reply, const struct redis_address *asked, struct redis_slots *map,
                      struct err *e);
void redis_slots_done(struct redis_slots *map);

/* A primary as others know it: by its address, and by its name, whose host is "" if it has none. */
struct redis_node {
    struct redis_address address, name;
};

/* From a reply of CLUSTER NODES, the other primaries that whoever gave it takes for living, also those without a slot.
 * *list is the caller's (free); NULL if there are none. */
size_t redis_slots_others(struct bytes nodes, struct redis_node **list);

/* The server named by "MOVED 3999 127.0.0.1:6381" or "ASK ..."; the host may be missing as above. */
bool redis_slots_redirection(const char *reply_text, const struct redis_address *asked, struct redis_address *to);

/* From now on the slot is this server's. Returns its index. */
size_t redis_slots_move(struct redis_slots *map, uint16_t slot, const struct redis_address *to);

#endif
