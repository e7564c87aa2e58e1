#include "life.h"

#include "ids.h"

int64_t life_left_ms(const struct life_rules *rules, const struct session_facts *facts, int64_t now_ms)
{
    int64_t created_ms;
    if (rules->absolute_ms == 0 || !json_iso_time(facts->created, &created_ms)) return INT64_MAX;
    if (created_ms > now_ms) created_ms = now_ms; /* another node's clock */
    return created_ms + rules->absolute_ms - now_ms;
}

int64_t life_ttl_ms(const struct life_rules *rules, int64_t left_ms)
{
    return left_ms < rules->ttl_ms ? left_ms : rules->ttl_ms;
}

bool life_roll_due(int64_t ttl_ms, int64_t life_ms)
{
    return life_ms < ttl_ms - ttl_ms / 10;
}

bool life_announce_due(const struct life_rules *rules, const char *id, const struct session_facts *was, int64_t now_ms)
{
    int64_t was_ms, tenth_ms = rules->ttl_ms / 10;
    if (tenth_ms < 1 || !json_iso_time(was->updated, &was_ms)) return true;
    int64_t offset_ms = (int64_t)(ids_hash(bytes_of(id), 0) % (uint64_t)tenth_ms);
    return (was_ms + offset_ms) / tenth_ms != (now_ms + offset_ms) / tenth_ms;
}
