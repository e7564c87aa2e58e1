/* api.c: what all handlers share: the options made ready, tokens, and what a failed store means for the client. */
#include "api.h"

#include "clock.h"
#include "mem.h"

bool api_init(struct api *api, const struct config *cfg, struct store *store, struct shared *sh, struct slot *slot,
              struct err *e)
{
    struct bytes item;
    *api = (struct api){ .config = cfg,
                         .store = store,
                         .shared = sh,
                         .slot = slot,
                         .listen_fd = -1,
                         .life = { .ttl_ms = cfg->session_default_ttl_seconds * 1000,
                                   .absolute_ms = cfg->session_absolute_ttl_seconds * 1000 } };
    bool only_check = sh == NULL;
    if (cfg->redis_url[0] != '\0' && !only_check) {
        api->breaker = breaker_open(cfg->run_dir, e);
        if (api->breaker == NULL) return false;
    }
    if (cfg->session_create_per_minute > 0 && !only_check) {
        api->creations = limiter_open(cfg->run_dir, "creations-1", cfg->session_create_per_minute, e);
        if (api->creations == NULL) return false;
    }
    char *at = api->protected_names = mem_alloc(strlen(cfg->session_protected_members) + 2);
    for (size_t i = 0; config_item(cfg->session_protected_members, i, &item); i++) {
        if (i == API_MOST_PROTECTED)
            return err_set(e, ERR_INPUT, "SESSION_PROTECTED_MEMBERS: allowed are %d names", API_MOST_PROTECTED);
        memcpy(at, item.at, item.len);
        api->protected[i] = at;
        at += item.len + 1;
    }
    return true;
}

void api_done(struct api *api)
{
    breaker_close(api->breaker);
    api->breaker = NULL;
    limiter_close(api->creations);
    api->creations = NULL;
    free(api->protected_names);
    api->protected_names = NULL;
}

bool api_has_token(const struct exchange *x, const char *accepted)
{
    struct bytes token = http_bearer(x->rq.authorization), item;
    bool same = false;
    for (size_t i = 0; config_item(accepted, i, &item); i++)
        if (ids_same_secret(token, item)) same = true; /* and on: the time must not tell which one */
    return same;
}

void api_store_failed(struct exchange *x, const struct err *e)
{
    x->error = *e;
    x->timed_out = clock_mono_ms() >= x->deadline_ms;
    switch (e->kind) {
    case ERR_CORRUPT:
        response_error(&x->rs, 500, "SESSION_CORRUPT", "What is stored under this id is no session document");
        return;
    case ERR_FULL:
        response_header(&x->rs, "Retry-After", "60");
        response_error(&x->rs, 503, "SESSION_LIMIT_REACHED", "No more sessions can be created now");
        return;
    case ERR_UNAVAILABLE:
        response_header(&x->rs, "Retry-After", "1");
        response_error(&x->rs, 503, "SESSION_STORE_UNAVAILABLE", "The session store cannot answer now");
        return;
    default:
        response_error(&x->rs, 500, "INTERNAL_ERROR", "An internal error occurred");
        return;
    }
}
