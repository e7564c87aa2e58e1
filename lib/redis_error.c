#include "redis_error.h"

#include "clock.h"
#include "log.h"

#include <string.h>

/* clang-format off */
static const struct redis_error errors[] = {
    /* code                              kind             away   ours   remedy */
    { "LOADING",                         ERR_UNAVAILABLE, true,  false, REDIS_LOOK_AGAIN },
    { "READONLY",                        ERR_UNAVAILABLE, true,  false, REDIS_LOOK_AGAIN },
    { "MASTERDOWN",                      ERR_UNAVAILABLE, true,  false, REDIS_LOOK_AGAIN },
    { "CLUSTERDOWN",                     ERR_UNAVAILABLE, true,  false, REDIS_LOOK_AGAIN },
    { "OOM",                             ERR_UNAVAILABLE, true,  false, REDIS_NOTHING_HELPS },
    { "MISCONF",                         ERR_UNAVAILABLE, true,  false, REDIS_NOTHING_HELPS },
    { "NOREPLICAS",                      ERR_UNAVAILABLE, true,  false, REDIS_NOTHING_HELPS },
    { "BUSY",                            ERR_UNAVAILABLE, true,  false, REDIS_NOTHING_HELPS },
    { "ERR max number of clients",       ERR_UNAVAILABLE, true,  false, REDIS_NOTHING_HELPS },
    { "MOVED",                           ERR_UNAVAILABLE, false, true,  REDIS_GO_THERE },
    { "ASK",                             ERR_UNAVAILABLE, false, true,  REDIS_ASK_THERE },
    { "TRYAGAIN",                        ERR_UNAVAILABLE, false, false, REDIS_WAIT_A_BIT },
    { "NOSCRIPT",                        ERR_UNAVAILABLE, false, true,  REDIS_SEND_SCRIPT },
    { "WRONGTYPE",                       ERR_CORRUPT,     false, false, REDIS_NOTHING_HELPS },
    { "NOAUTH",                          ERR_UNAVAILABLE, false, true,  REDIS_NOTHING_HELPS },
    { "WRONGPASS",                       ERR_UNAVAILABLE, false, true,  REDIS_NOTHING_HELPS },
    { "NOPERM",                          ERR_UNAVAILABLE, false, true,  REDIS_NOTHING_HELPS },
};
/* clang-format on */
static const struct redis_error unknown = { "", ERR_UNAVAILABLE, false, true, REDIS_NOTHING_HELPS };

/* Before 7.0 Redis puts a script's failure behind where it came from, once or twice: "ERR Error running script (call to
 * f_SHA): @user_script:1: WRONGTYPE Operation ..." or "...: @user_script:1: @user_script: 1: -READONLY You ...". */
static const char *unwrapped(const char *reply_text)
{
    static const char wrapper[] = "ERR Error running script", place[] = "user_script:";
    const char *inner = reply_text;
    if (strncmp(reply_text, wrapper, sizeof wrapper - 1) != 0) return reply_text;
    for (const char *at = reply_text; (at = strstr(at, place)) != NULL;) inner = at += sizeof place - 1;
    return inner + strspn(inner, " 0123456789:-");
}

const struct redis_error *redis_error_of(const char *reply_text)
{
    reply_text = unwrapped(reply_text);
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        size_t len = strlen(errors[i].code);
        bool same = strncmp(reply_text, errors[i].code, len) == 0;
        if (same && (reply_text[len] == ' ' || reply_text[len] == '\0')) return &errors[i];
    }
    return &unknown;
}

bool redis_error_set(const struct redis_error *m, const char *reply_text, struct err *e)
{
    static int64_t said_ms = -60000;
    int64_t now_ms = clock_mono_ms();
    if (m->ours && now_ms - said_ms >= 60000) {
        log_error("redis refuses commands: reply=\"%.120s\"", reply_text);
        said_ms = now_ms;
    }
    if (m->away) return err_set_away(e, "redis: %.150s", reply_text);
    return err_set(e, m->kind, "redis: %.150s", reply_text);
}
