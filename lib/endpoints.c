#include "endpoints.h"

const char *const http_methods[] = { "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "OTHER" };

const char *const endpoint_paths[] = { "-",
#define ENDPOINT(name, path) path,
                                       ENDPOINTS(ENDPOINT) };

enum http_method http_method_of(struct bytes name)
{
    enum http_method m = HTTP_GET;
    while (m < HTTP_OTHER && !bytes_is(name, http_methods[m])) m++;
    return m;
}
