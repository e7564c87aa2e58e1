#include "platforms.h"

#include <string.h>

#define WARNING_PERMILLE  750
#define CRITICAL_PERMILLE 900
#define MOST_ENDPOINTS    4

static const struct {
    const char *endpoints[MOST_ENDPOINTS];
    enum metric hits, retries;
} platforms[PLATFORMS] = {
    [PLATFORM_GITHUB] = { { "core", "search", "graphql", "global" },
                          METRIC_limit_hits_github,
                          METRIC_limit_retries_github },
    [PLATFORM_GITLAB] = { { "global" }, METRIC_limit_hits_gitlab, METRIC_limit_retries_gitlab },
    [PLATFORM_JIRA] = { { "global" }, METRIC_limit_hits_jira, METRIC_limit_retries_jira },
};

const char *const platform_names[] = { "github", "gitlab", "jira" };
const char *const platform_statuses[] = { "normal", "warning", "critical", "unknown" };

bool platform_of(const char *name, enum platform *p)
{
    for (int i = 0; i < PLATFORMS; i++)
        if (strcmp(platform_names[i], name) == 0) return *p = (enum platform)i, true;
    return false;
}

bool platform_has(enum platform p, const char *endpoint)
{
    for (int i = 0; i < MOST_ENDPOINTS && platforms[p].endpoints[i] != NULL; i++)
        if (strcmp(platforms[p].endpoints[i], endpoint) == 0) return true;
    return false;
}

enum metric platform_hits(enum platform p)
{
    return platforms[p].hits;
}

enum metric platform_retries(enum platform p)
{
    return platforms[p].retries;
}

struct coordination_limit platform_limit_at(const struct coordination_limit *reported, int64_t now_ms)
{
    struct coordination_limit l = *reported;
    int64_t waited_s = (now_ms - l.updated_ms) / 1000;
    if (l.reset_ms > l.updated_ms && l.reset_ms <= now_ms) {
        l.remaining = l.limit;
        l.usage_permille = 0;
        l.retry_after_s = 0;
    }
    if (waited_s > 0) l.retry_after_s = l.retry_after_s > waited_s ? l.retry_after_s - waited_s : 0;
    return l;
}

static enum platform_status judge(const struct coordination_limit *l)
{
    if (l->remaining == 0 || l->retry_after_s > 0 || l->usage_permille >= CRITICAL_PERMILLE) return PLATFORM_CRITICAL;
    if (l->usage_permille < 0) return PLATFORM_UNKNOWN;
    return l->usage_permille >= WARNING_PERMILLE ? PLATFORM_WARNING : PLATFORM_NORMAL;
}

struct platform_state platform_state_at(const struct coordination_limits *ls, enum platform p, int64_t now_ms)
{
    struct platform_state all = { .status = PLATFORM_UNKNOWN, .usage_permille = -1 };
    for (int64_t i = 0; i < ls->count; i++) {
        if (strcmp(ls->limit[i].platform, platform_names[p]) != 0) continue;
        struct coordination_limit l = platform_limit_at(&ls->limit[i], now_ms);
        enum platform_status status = judge(&l);
        if (all.status == PLATFORM_UNKNOWN || (status != PLATFORM_UNKNOWN && status > all.status)) all.status = status;
        if (l.usage_permille > all.usage_permille) all.usage_permille = l.usage_permille;
        if (l.updated_ms > all.updated_ms) all.updated_ms = l.updated_ms;
    }
    all.fresh = all.updated_ms > 0 && now_ms - all.updated_ms < PLATFORM_FRESH_MS;
    return all;
}
