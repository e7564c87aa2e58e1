/* api_status.c: is this pool alive and ready, and what has it counted? */
#include "api.h"

#include "clock.h"
#include "metrics.h"

static void say_health(struct exchange *x, int status, const char *word)
{
    char now[CLOCK_ISO_BYTES];
    clock_iso(clock_wall_ms(), now);
    x->rs.status = status;
    buf_printf(&x->rs.body, "{\"status\":\"%s\",\"timestamp\":\"%s\",\"store\":\"%s\"}", word, now, store_name(x->api->store));
    if (status == 503) response_header(&x->rs, "Retry-After", "1");
}

void status_live(struct exchange *x)
{
    say_health(x, 200, "healthy");
}

void status_ready(struct exchange *x)
{
    bool draining = atomic_load(&x->api->slot->state) == SLOT_DRAINING;
    x->phase = store_name(x->api->store);
    bool ready = !draining && store_ready(x->api->store, x->deadline_ms, &x->error);
    say_health(x, ready ? 200 : 503, ready ? "healthy" : "unhealthy");
}

void status_metrics(struct exchange *x)
{
    x->rs.content_type = "text/plain; version=0.0.4; charset=utf-8";
    metrics_text(x->api->shared, &x->rs.body);
}
