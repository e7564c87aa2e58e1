/* api_rate_limit.c: /api/rate-limit/PLATFORM: how much of another platform's rate limits is used, as far as this node
 * knows it from what others report. */
#include "api.h"

#include "clock.h"
#include "mem.h"
#include "platforms.h"

#include <inttypes.h>

static void add_number(struct buf *body, const char *name, int64_t value)
{
    if (value < 0)
        buf_printf(body, ",\"%s\":null", name);
    else
        buf_printf(body, ",\"%s\":%" PRId64, name, value);
}

static void add_percent(struct buf *body, const char *name, int64_t permille)
{
    if (permille < 0)
        buf_printf(body, ",\"%s\":null", name);
    else
        buf_printf(body, ",\"%s\":%" PRId64 ".%" PRId64, name, permille / 10, permille % 10);
}

static void add_limit(struct buf *body, const struct coordination_limit *l)
{
    bool both = l->limit >= 0 && l->remaining >= 0;
    buf_json_string(body, bytes_of(l->endpoint));
    buf_puts(body, ":{\"limit\":");
    if (l->limit < 0)
        buf_puts(body, "null");
    else
        buf_printf(body, "%" PRId64, l->limit);
    add_number(body, "remaining", l->remaining);
    add_number(body, "used", !both ? -1 : l->remaining < l->limit ? l->limit - l->remaining : 0);
    add_percent(body, "usagePercent", l->usage_permille);
    add_number(body, "resetTime", l->reset_ms);
    add_number(body, "retryAfter", l->retry_after_s > 0 ? l->retry_after_s : -1);
    buf_puts(body, "}");
}

static void add_platform(struct buf *body, const struct coordination_limits *ls, enum platform p, int64_t now_ms)
{
    const char *name = platform_names[p], *between = "";
    struct platform_state state = platform_state_at(ls, p, now_ms);
    buf_printf(body,
               "{\"platform\":\"%s\",\"lastUpdated\":%" PRId64
               ",\"dataFresh\":%s,\"status\":\"%s\",\"limits\":{\"%s\":{",
               name, state.updated_ms, state.fresh ? "true" : "false", platform_statuses[state.status], name);
    for (int64_t i = 0; i < ls->count; i++) {
        if (strcmp(ls->limit[i].platform, name) != 0) continue;
        struct coordination_limit l = platform_limit_at(&ls->limit[i], now_ms);
        buf_puts(body, between);
        add_limit(body, &l);
        between = ",";
    }
    buf_puts(body, "}}}");
}

static void refuse_platform(struct exchange *x, struct bytes name)
{
    struct buf details = BUF_INIT(1024);
    if (!ids_read(name, (char[IDS_TEXT_BYTES]){ 0 })) {
        response_error(&x->rs, 400, "INVALID_PLATFORM", "The path must name a platform");
        return;
    }
    buf_puts(&details, "{\"supported\":[");
    for (int i = 0; i < PLATFORMS; i++) buf_printf(&details, "%s\"%s\"", i > 0 ? "," : "", platform_names[i]);
    buf_puts(&details, "]}");
    response_details(&x->rs, 400, "PLATFORM_NOT_SUPPORTED", "This platform's rate limits are not watched",
                     buf_bytes(&details));
    buf_done(&details);
}

void rate_limit_show(struct exchange *x)
{
    enum platform p;
    char name[IDS_TEXT_BYTES];
    if (!ids_read(x->path_tail, name) || !platform_of(name, &p)) {
        refuse_platform(x, x->path_tail);
        return;
    }
    int64_t now_ms = clock_wall_ms();
    struct coordination_limits *ls = mem_alloc(sizeof *ls); /* too large for a task's stack */
    coordination_read_limits(x->api->coordination, ls);
    if (platform_state_at(ls, p, now_ms).updated_ms > 0) {
        add_platform(&x->rs.body, ls, p, now_ms);
    } else {
        x->planned = true;
        response_error(&x->rs, 502, "RATE_LIMIT_UNAVAILABLE", "Nothing is known of this platform's rate limits");
    }
    free(ls);
}

/* --- as a member of /api/health --- */

/* How the platforms do together: as the worst of those of which something is known. */
static enum platform_status worst_of(const struct platform_state states[PLATFORMS], int64_t *known,
                                     int64_t *mean_permille)
{
    enum platform_status worst = PLATFORM_NORMAL;
    int64_t measured = 0, sum = 0;
    *known = 0;
    for (int p = 0; p < PLATFORMS; p++) {
        *known += states[p].updated_ms > 0;
        if (states[p].status != PLATFORM_UNKNOWN && states[p].status > worst) worst = states[p].status;
        if (states[p].usage_permille < 0) continue;
        sum += states[p].usage_permille;
        measured++;
    }
    *mean_permille = measured > 0 ? sum / measured : -1;
    return worst;
}

void api_rate_limits(struct buf *body, const struct api *api)
{
    struct platform_state states[PLATFORMS];
    int64_t now_ms = clock_wall_ms(), known, mean_permille;
    const char *between = "";
    struct coordination_limits *ls = mem_alloc(sizeof *ls); /* too large for a task's stack */
    coordination_read_limits(api->coordination, ls);
    for (int p = 0; p < PLATFORMS; p++) states[p] = platform_state_at(ls, (enum platform)p, now_ms);
    free(ls);
    enum platform_status worst = worst_of(states, &known, &mean_permille);
    buf_printf(body, "{\"overallHealth\":\"%s\",\"enabledPlatforms\":%" PRId64, platform_statuses[worst], known);
    add_percent(body, "averageUsagePercent", mean_permille);
    buf_puts(body, ",\"platforms\":{");
    for (int p = 0; p < PLATFORMS; p++) {
        if (states[p].updated_ms == 0) continue;
        buf_printf(body, "%s\"%s\":{\"status\":\"%s\"", between, platform_names[p],
                   platform_statuses[states[p].status]);
        add_percent(body, "usagePercent", states[p].usage_permille);
        buf_printf(body, ",\"lastUpdated\":%" PRId64 ",\"dataFresh\":%s}", states[p].updated_ms,
                   states[p].fresh ? "true" : "false");
        between = ",";
    }
    buf_puts(body, "}}");
}
