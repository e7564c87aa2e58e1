#include "redis_slots.h"

#include "mem.h"

#define MOST_PRIMARIES 4096

/* CRC-16/XMODEM: polynomial x^16 + x^12 + x^5 + 1, a byte at a time without a table. */
static uint16_t crc16(struct bytes s)
{
    uint16_t crc = 0;
    for (size_t i = 0; i < s.len; i++) {
        uint16_t x = (uint16_t)((crc >> 8) ^ (unsigned char)s.at[i]);
        x ^= x >> 4;
        crc = (uint16_t)((crc << 8) ^ (x << 12) ^ (x << 5) ^ x);
    }
    return crc;
}

uint16_t redis_slot_of(struct bytes key)
{
    const char *open = key.len > 0 ? memchr(key.at, '{', key.len) : NULL;
    if (open != NULL) {
        const char *tag = open + 1, *end = key.at + key.len;
        const char *close = memchr(tag, '}', (size_t)(end - tag));
        if (close != NULL && close > tag) key = (struct bytes){ tag, (size_t)(close - tag) };
    }
    return crc16(key) % REDIS_SLOTS;
}

static size_t index_of(struct redis_slots *map, const struct redis_address *address)
{
    size_t i = 0;
    while (i < map->count && !redis_address_equal(&map->primaries[i], address)) i++;
    if (i == map->count) {
        map->primaries = mem_resize(map->primaries, (map->count + 1) * sizeof *map->primaries);
        map->primaries[map->count++] = *address;
    }
    return i;
}

size_t redis_slots_move(struct redis_slots *map, uint16_t slot, const struct redis_address *to)
{
    size_t i = index_of(map, to);
    map->owner[slot] = (int16_t)i;
    return i;
}

/* A server does not always know what others call it: then its host is empty, nil or "?". */
static bool set_address(const char *host, size_t len, long long port, const struct redis_address *asked,
                        struct redis_address *to)
{
    bool unknown = len == 0 || (len == 1 && host[0] == '?');
    if (port < 1 || port > 65535 || len >= sizeof to->host) return false;
    if (unknown)
        memcpy(to->host, asked->host, sizeof to->host);
    else
        snprintf(to->host, sizeof to->host, "%.*s", (int)len, host);
    to->port = (int)port;
    return true;
}

/* [first slot, last slot, [host, port, ...] of the primary, replicas...] */
static bool read_range(const redisReply *range, const struct redis_address *asked, struct redis_slots *map)
{
    if (range->type != REDIS_REPLY_ARRAY || range->elements < 3) return false;
    const redisReply *first = range->element[0], *last = range->element[1], *server = range->element[2];
    if (first->type != REDIS_REPLY_INTEGER || last->type != REDIS_REPLY_INTEGER || first->integer < 0 ||
        last->integer >= REDIS_SLOTS || server->type != REDIS_REPLY_ARRAY || server->elements < 2)
        return false;
    const redisReply *host = server->element[0], *port = server->element[1];
    struct redis_address address;
    bool named = host->type == REDIS_REPLY_STRING;
    if ((!named && host->type != REDIS_REPLY_NIL) || port->type != REDIS_REPLY_INTEGER ||
        !set_address(named ? host->str : "", named ? (size_t)host->len : 0, port->integer, asked, &address) ||
        map->count >= MOST_PRIMARIES)
        return false;
    int16_t owner = (int16_t)index_of(map, &address);
    for (long long slot = first->integer; slot <= last->integer; slot++) map->owner[slot] = owner;
    return true;
}

bool redis_slots_read(const redisReply *reply, const struct redis_address *asked, struct redis_slots *map,
                      struct err *e)
{
    *map = (struct redis_slots){ .count = 0 };
    memset(map->owner, 0xff, sizeof map->owner);
    bool ok = reply->type == REDIS_REPLY_ARRAY && reply->elements > 0;
    for (size_t i = 0; ok && i < reply->elements; i++) ok = read_range(reply->element[i], asked, map);
    if (ok) return true;
    redis_slots_done(map);
    return err_set_away(e, "redis: the cluster's map of slots is empty or cannot be read");
}

void redis_slots_done(struct redis_slots *map)
{
    free(map->primaries);
    map->primaries = NULL;
    map->count = 0;
}

/* --- CLUSTER NODES: lines of ID ADDRESS:PORT@PORT,NAME,... FLAG,FLAG... and more --- */

/* What stands before the next `end`, which is taken away with it. */
static struct bytes cut(struct bytes *rest, char end)
{
    const char *at = rest->len > 0 ? memchr(rest->at, end, rest->len) : NULL;
    struct bytes head = { rest->at, at != NULL ? (size_t)(at - rest->at) : rest->len };
    size_t taken = head.len + (at != NULL);
    *rest = (struct bytes){ rest->at + taken, rest->len - taken };
    return head;
}

static bool is_other_primary(struct bytes flags)
{
    bool primary = false;
    while (flags.len > 0) {
        struct bytes flag = cut(&flags, ',');
        if (bytes_is(flag, "myself") || bytes_is(flag, "fail") || bytes_is(flag, "handshake") ||
            bytes_is(flag, "noaddr"))
            return false;
        primary |= bytes_is(flag, "master");
    }
    return primary;
}

static bool read_node(struct bytes place, struct redis_node *node)
{
    struct bytes address = cut(&place, ','), name = cut(&place, ','), host = cut(&address, '@');
    size_t digits = 0;
    long long port = 0, factor = 1;
    for (; digits < host.len && digits < 6; digits++, factor *= 10) {
        char c = host.at[host.len - 1 - digits];
        if (c < '0' || c > '9') break;
        port += (c - '0') * factor;
    }
    if (digits + 2 > host.len || host.at[host.len - 1 - digits] != ':') return false;
    host.len -= digits + 1;
    *node = (struct redis_node){ .name.port = (int)port };
    if (name.len < sizeof node->name.host) memcpy(node->name.host, name.at, name.len);
    return set_address(host.at, host.len, port, &node->name, &node->address);
}

size_t redis_slots_others(struct bytes nodes, struct redis_node **list)
{
    struct redis_node node;
    size_t count = 0;
    *list = NULL;
    while (nodes.len > 0) {
        struct bytes line = cut(&nodes, '\n');
        cut(&line, ' ');
        struct bytes place = cut(&line, ' '), flags = cut(&line, ' ');
        if (!is_other_primary(flags) || !read_node(place, &node)) continue;
        *list = mem_resize(*list, (count + 1) * sizeof **list);
        (*list)[count++] = node;
    }
    return count;
}

bool redis_slots_redirection(const char *reply_text, const struct redis_address *asked, struct redis_address *to)
{
    const char *host = strrchr(reply_text, ' ');
    const char *colon = host ? strrchr(host, ':') : NULL; /* the last: an IPv6 host has its own */
    if (colon == NULL || colon[1] < '0' || colon[1] > '9') return false;
    return set_address(host + 1, (size_t)(colon - host - 1), atoll(colon + 1), asked, to);
}
