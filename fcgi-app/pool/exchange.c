#include "exchange.h"

#include "log.h"
#include "mem.h"
#include "metrics.h"

#include <inttypes.h>

#define MOST_LINES 10 /* a second, of slow requests; of failed ones */

static void exchange_free(struct exchange *x)
{
    response_done(&x->rs);
    buf_done(&x->body);
    buf_done(&x->doc);
    free(x);
}

void exchanges_free(struct exchanges *xs, size_t keep)
{
    struct exchange **at = &xs->spare;
    while (*at != NULL && keep-- > 0) at = &(*at)->next;
    while (*at != NULL) {
        struct exchange *x = *at;
        *at = x->next;
        xs->spares--;
        exchange_free(x);
    }
}

struct exchange *exchange_begin(struct exchanges *xs, struct api *api, int64_t whole_us)
{
    struct exchange *x = xs->spare;
    if (x != NULL) {
        xs->spare = x->next;
        xs->spares--;
    } else {
        x = mem_alloc(sizeof *x);
        response_init(&x->rs, 16 * 1024 * 1024);
        x->body = (struct buf)BUF_INIT((size_t)api->config->session_max_bytes);
        x->doc = (struct buf)BUF_INIT(16 * 1024 * 1024);
    }
    x->api = api;
    x->route = -1;
    x->endpoint = ENDPOINT_NONE;
    x->phase = "read";
    x->path_tail = (struct bytes){ NULL, 0 };
    x->timed_out = x->planned = false;
    x->started_ms = whole_us / 1000;
    x->deadline_ms = x->started_ms + api->config->request_timeout_ms;
    x->next = NULL;
    x->prev = xs->last;
    *(xs->last ? &xs->last->next : &xs->first) = x;
    xs->last = x;
    xs->count++;
    return x;
}

void exchange_end(struct exchanges *xs, struct exchange *x)
{
    *(x->prev ? &x->prev->next : &xs->first) = x->next;
    *(x->next ? &x->next->prev : &xs->last) = x->prev;
    xs->count--;
    xs->answered++;
    response_reset(&x->rs);
    buf_trim(&x->body, 4096);
    buf_trim(&x->doc, 4096);
    x->next = xs->spare;
    xs->spare = x;
    xs->spares++;
}

/* --- the log --- */

/* Lines of one kind: at most ten a second, since an outage must not fill the disk. */
struct lines {
    const char *more; /* what the others are called together */
    int64_t second;
    int said, unsaid;
};

static bool may_say(struct lines *l, int64_t now_ms)
{
    if (now_ms / 1000 != l->second) {
        if (l->unsaid > 0) log_warn("%s: count=%d", l->more, l->unsaid);
        l->second = now_ms / 1000;
        l->said = l->unsaid = 0;
    }
    bool may = l->said < MOST_LINES;
    (*(may ? &l->said : &l->unsaid))++;
    return may;
}

void exchange_log(const struct exchange *x, int64_t took_us)
{
    static struct lines slow = { .more = "more requests were slow" }, failed = { .more = "more requests failed" };
    const struct config *cfg = x->api->config;
    int64_t took_ms = took_us / 1000, now_ms = x->started_ms + took_ms;
    const char *method = http_methods[x->rq.method], *route = endpoint_paths[x->endpoint];
    if (cfg->log_requests)
        log_info("request: method=%s route=%s status=%d duration_us=%" PRId64 " bytes=%zu store=%s request=%s", method,
                 route, x->rs.status, took_us, x->rs.body.len, store_name(x->api->store), x->request_id);
    bool timed_out = x->timed_out || took_ms >= cfg->request_timeout_ms;
    if (timed_out) metrics_add(METRIC_requests_timed_out_total, 1);
    bool is_slow = timed_out || took_ms >= cfg->log_slow_ms, has_failed = x->rs.status >= 500 && !x->planned;
    if (is_slow && may_say(&slow, now_ms)) {
        if (has_failed)
            log_warn("slow request: method=%s route=%s phase=%s duration_ms=%" PRId64
                     " status=%d error=\"%s\" request=%s",
                     method, route, x->phase, took_ms, x->rs.status, x->error.text, x->request_id);
        else
            log_warn("slow request: method=%s route=%s phase=%s duration_ms=%" PRId64 " status=%d request=%s", method,
                     route, x->phase, took_ms, x->rs.status, x->request_id);
    }
    if (!is_slow && has_failed && may_say(&failed, now_ms))
        log_warn("request failed: method=%s route=%s status=%d error=\"%s\" request=%s", method, route, x->rs.status,
                 x->error.text, x->request_id);
}
