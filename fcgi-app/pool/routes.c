#include "routes.h"

#include <stdio.h>
#include <string.h>

static const struct route {
    enum http_method method;
    const char *path; /* * stands for one segment */
    api_handler *handler;
} routes[] = {
    { HTTP_GET,    "/api/sessions",           sessions_get },
    { HTTP_HEAD,   "/api/sessions",           sessions_head },
    { HTTP_POST,   "/api/sessions",           sessions_post },
    { HTTP_PATCH,  "/api/sessions",           sessions_patch },
    { HTTP_DELETE, "/api/sessions",           sessions_delete },
    { HTTP_GET,    "/api/sessions/*",         sessions_get },
    { HTTP_HEAD,   "/api/sessions/*",         sessions_head },
    { HTTP_PATCH,  "/api/sessions/*",         sessions_patch },
    { HTTP_DELETE, "/api/sessions/*",         sessions_delete },
    { HTTP_POST,   "/api/sessions/*/extend",  sessions_extend },
    { HTTP_POST,   "/api/sessions/*/rotate",  sessions_rotate },
    { HTTP_GET,    "/api/admin/sessions",     admin_list },
    { HTTP_DELETE, "/api/admin/sessions",     admin_revoke },
    { HTTP_POST,   "/api/admin/coordination/messages", coordination_send },
    { HTTP_GET,    "/api/coordination",       coordination_show },
    { HTTP_HEAD,   "/api/coordination",       coordination_show },
    { HTTP_GET,    "/api/health/live",        status_live },
    { HTTP_HEAD,   "/api/health/live",        status_live },
    { HTTP_GET,    "/api/health/ready",       status_ready },
    { HTTP_HEAD,   "/api/health/ready",       status_ready },
    { HTTP_GET,    "/api/metrics",            status_metrics },
    { HTTP_HEAD,   "/api/metrics",            status_metrics },
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

void routes_answer(struct exchange *x)
{
    char allow[64] = "";
    x->route = -1;
    for (int i = 0; i < ROUTES; i++) {
        if (!path_fits(routes[i].path, x->rq.path, &x->path_tail)) continue;
        if (routes[i].method == x->rq.method) {
            x->route = i;
            routes[i].handler(x);
            return;
        }
        size_t n = strlen(allow);
        snprintf(allow + n, sizeof allow - n, "%s%s", n ? ", " : "", http_methods[routes[i].method]);
    }
    if (allow[0] == '\0') {
        response_error(&x->rs, 404, "NOT_FOUND", "There is nothing at this path");
        return;
    }
    response_header(&x->rs, "Allow", allow);
    response_error(&x->rs, 405, "METHOD_NOT_ALLOWED", "This path does not know this method");
}

const char *routes_name(int route)
{
    return route >= 0 && route < ROUTES ? routes[route].path : "-";
}
