/* endpoints.h: what can be asked for: methods, and paths of the API, each with a number. Routes match them, metrics
 * count by them. */
#ifndef HYPERPAGE_ENDPOINTS_H
#define HYPERPAGE_ENDPOINTS_H

#include "buf.h"

enum http_method { HTTP_GET, HTTP_HEAD, HTTP_POST, HTTP_PUT, HTTP_PATCH, HTTP_DELETE, HTTP_OPTIONS, HTTP_OTHER };
#define HTTP_METHODS (HTTP_OTHER + 1)
extern const char *const http_methods[]; /* names, by enum http_method */

enum http_method http_method_of(struct bytes name);

/* One line adds a path; * stands for one segment of it. */
#define ENDPOINTS(ENDPOINT)                                                                                            \
    ENDPOINT(SESSIONS, "/api/sessions")                                                                                \
    ENDPOINT(SESSION, "/api/sessions/*")                                                                               \
    ENDPOINT(EXTEND, "/api/sessions/*/extend")                                                                         \
    ENDPOINT(ROTATE, "/api/sessions/*/rotate")                                                                         \
    ENDPOINT(ADMIN_SESSIONS, "/api/admin/sessions")                                                                    \
    ENDPOINT(ADMIN_MESSAGES, "/api/admin/coordination/messages")                                                       \
    ENDPOINT(COORDINATION, "/api/coordination")                                                                        \
    ENDPOINT(RATE_LIMIT, "/api/rate-limit/*")                                                                          \
    ENDPOINT(HEALTH, "/api/health")                                                                                    \
    ENDPOINT(LIVE, "/api/health/live")                                                                                 \
    ENDPOINT(READY, "/api/health/ready")                                                                               \
    ENDPOINT(METRICS, "/api/metrics")                                                                                  \
    ENDPOINT(STATUS, "/api/status")

enum endpoint {
    ENDPOINT_NONE, /* there is nothing at that path */
#define ENDPOINT(name, path) ENDPOINT_##name,
    ENDPOINTS(ENDPOINT)
#undef ENDPOINT
        ENDPOINT_COUNT
};
extern const char *const endpoint_paths[]; /* by enum endpoint; "-" for none */

#endif
