#include "routes.h"

#include <stdio.h>
#include <string.h>

static const struct route {
    enum http_method method;
    enum endpoint endpoint;
    api_handler *handler;
} routes[] = {
    { HTTP_GET, ENDPOINT_SESSIONS, sessions_get },
    { HTTP_HEAD, ENDPOINT_SESSIONS, sessions_head },
    { HTTP_POST, ENDPOINT_SESSIONS, sessions_post },
    { HTTP_PATCH, ENDPOINT_SESSIONS, sessions_patch },
    { HTTP_DELETE, ENDPOINT_SESSIONS, sessions_delete },
    { HTTP_GET, ENDPOINT_SESSION, sessions_get },
    { HTTP_HEAD, ENDPOINT_SESSION, sessions_head },
    { HTTP_PATCH, ENDPOINT_SESSION, sessions_patch },
    { HTTP_DELETE, ENDPOINT_SESSION, sessions_delete },
    { HTTP_POST, ENDPOINT_EXTEND, sessions_extend },
    { HTTP_POST, ENDPOINT_ROTATE, sessions_rotate },
    { HTTP_GET, ENDPOINT_ADMIN_SESSIONS, admin_list },
    { HTTP_DELETE, ENDPOINT_ADMIN_SESSIONS, admin_revoke },
    { HTTP_POST, ENDPOINT_ADMIN_MESSAGES, coordination_send },
    { HTTP_GET, ENDPOINT_COORDINATION, coordination_show },
    { HTTP_HEAD, ENDPOINT_COORDINATION, coordination_show },
    { HTTP_GET, ENDPOINT_RATE_LIMIT, rate_limit_show },
    { HTTP_HEAD, ENDPOINT_RATE_LIMIT, rate_limit_show },
    { HTTP_GET, ENDPOINT_HEALTH, status_health },
    { HTTP_HEAD, ENDPOINT_HEALTH, status_health },
    { HTTP_GET, ENDPOINT_LIVE, status_live },
    { HTTP_HEAD, ENDPOINT_LIVE, status_live },
    { HTTP_GET, ENDPOINT_READY, status_ready },
    { HTTP_HEAD, ENDPOINT_READY, status_ready },
    { HTTP_GET, ENDPOINT_METRICS, status_metrics },
    { HTTP_HEAD, ENDPOINT_METRICS, status_metrics },
    { HTTP_GET, ENDPOINT_STATUS, status_overview },
    { HTTP_HEAD, ENDPOINT_STATUS, status_overview },
};
#define ROUTES (int)(sizeof routes / sizeof routes[0])

/* Does `path` fit? Then *tail is what stands for the star. */
static bool path_fits(const char *pattern, const char *path, struct bytes *tail)
{
    const char *star = strchr(pattern, '*');
    size_t fixed = star ? (size_t)(star - pattern) : strlen(pattern);
    if (strncmp(path, pattern, fixed) != 0) return false;
    path += fixed;
    *tail = (struct bytes){ path, star ? strcspn(path, "/") : 0 };
    path += tail->len;
    return star != NULL ? tail->len > 0 && strcmp(path, star + 1) == 0 : path[0] == '\0' || strcmp(path, "/") == 0;
}

static void refuse_method(struct exchange *x)
{
    char allow[64] = "";
    for (int i = 0; i < ROUTES; i++) {
        struct bytes tail;
        if (!path_fits(endpoint_paths[routes[i].endpoint], x->rq.path, &tail)) continue;
        size_t n = strlen(allow);
        snprintf(allow + n, sizeof allow - n, "%s%s", n ? ", " : "", http_methods[routes[i].method]);
    }
    response_header(&x->rs, "Allow", allow);
    response_error(&x->rs, 405, "METHOD_NOT_ALLOWED", "This path does not know this method");
}

/* Without a token that opens them there are no paths for administrators, whatever the method. */
static bool is_hidden(const struct exchange *x)
{
    bool admin = x->endpoint == ENDPOINT_ADMIN_SESSIONS || x->endpoint == ENDPOINT_ADMIN_MESSAGES;
    return admin && x->api->config->admin_token[0] == '\0';
}

void routes_answer(struct exchange *x)
{
    x->route = -1;
    x->endpoint = ENDPOINT_NONE;
    for (int i = 0; i < ROUTES; i++) {
        if (!path_fits(endpoint_paths[routes[i].endpoint], x->rq.path, &x->path_tail)) continue;
        x->endpoint = routes[i].endpoint;
        if (routes[i].method == x->rq.method) {
            x->route = i;
            routes[i].handler(x);
            return;
        }
    }
    if (x->endpoint == ENDPOINT_NONE || is_hidden(x))
        response_error(&x->rs, 404, "NOT_FOUND", "There is nothing at this path");
    else
        refuse_method(x);
}

const char *routes_name(int route)
{
    return route >= 0 && route < ROUTES ? endpoint_paths[routes[route].endpoint] : "-";
}
