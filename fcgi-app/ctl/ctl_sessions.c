/* ctl_sessions.c: sessions by user and by id, where the pool keeps them. */
#include "ctl.h"

#include "clock.h"
#include "user_sessions.h"

#include <stdio.h>
#include <string.h>

#define MOST_DOCUMENT_BYTES (64 << 20)

static bool is_user(const char *user)
{
    return user[0] != '\0' && strlen(user) < STORE_USER_BYTES;
}

static void tell_session(void *ctx, const struct user_session *s)
{
    struct report *r = ctx;
    report_open(r, NULL);
    report_string(r, "hash", s->hash);
    report_time(r, "expiresAt", s->expires_at_ms);
    report_json(r, "created", s->facts->created);
    report_json(r, "lastActivity", s->facts->last_activity);
    report_json(r, "ipAddress", s->facts->ip_address);
    report_json(r, "userAgent", s->facts->user_agent);
    report_close(r);
}

enum ctl_exit sessions_list(struct ctl *c)
{
    struct err e;
    enum ctl_exit code = CTL_OK;
    const struct config *cfg = c->config;
    struct life_rules life = { .ttl_ms = cfg->session_default_ttl_seconds * 1000,
                               .absolute_ms = cfg->session_absolute_ttl_seconds * 1000 };
    if (!is_user(c->word[0])) return ctl_fail(CTL_USAGE, "USER: allowed are 1 to %d bytes", STORE_USER_BYTES - 1);
    struct store *st = ctl_open_pools_store(c, &code);
    if (st == NULL) return code;
    report_string(&c->report, "userId", c->word[0]);
    report_open_list(&c->report, "sessions");
    bool all = user_sessions_each(st, &life, c->word[0], c->deadline_ms, tell_session, &c->report, &e);
    report_close_list(&c->report);
    if (!all) {
        code = ctl_failed(c, &e);
        report_forget(&c->report);
    }
    store_close(st);
    return code;
}

enum ctl_exit sessions_revoke(struct ctl *c)
{
    struct err e;
    enum ctl_exit code = CTL_OK;
    int64_t revoked;
    if (!is_user(c->word[0])) return ctl_fail(CTL_USAGE, "USER: allowed are 1 to %d bytes", STORE_USER_BYTES - 1);
    struct store *st = ctl_open_pools_store(c, &code);
    if (st == NULL) return code;
    bool all = user_sessions_revoke(st, c->word[0], c->deadline_ms, &revoked, &e);
    if (!all) code = ctl_failed(c, &e);
    if (all || revoked > 0) report_number(&c->report, "revoked", revoked);
    store_close(st);
    return code;
}

enum ctl_exit ctl_read_id(const char *word, char id[IDS_TEXT_BYTES])
{
    char line[512] = "";
    if (strcmp(word, "-") == 0 && fgets(line, sizeof line, stdin) != NULL) word = line;
    if (ids_read(bytes_of(word), id)) return CTL_OK;
    return ctl_fail(CTL_USAGE, "ID: allowed are 1 to 128 of A-Z a-z 0-9 . _ -");
}

enum ctl_exit sessions_show(struct ctl *c)
{
    struct err e;
    struct store_result res = { 0 };
    struct buf doc = BUF_INIT(MOST_DOCUMENT_BYTES);
    char id[IDS_TEXT_BYTES];
    enum ctl_exit code = ctl_read_id(c->word[0], id);
    if (code != CTL_OK) return code;
    struct store *st = ctl_open_pools_store(c, &code);
    if (st == NULL) return code;
    if (!store_get(st, id, STORE_ASK_LIFE, c->deadline_ms, &doc, &res, &e)) {
        code = ctl_failed(c, &e);
    } else if (!res.found) {
        code = ctl_fail(CTL_NOT_SO, "there is no such session");
    } else {
        report_string(&c->report, "sessionId", id);
        report_time(&c->report, "expiresAt", res.expires_at_ms);
        report_json(&c->report, "session", buf_bytes(&doc));
    }
    buf_done(&doc);
    store_close(st);
    return code;
}

enum ctl_exit sessions_count(struct ctl *c)
{
    struct err e;
    enum ctl_exit code = CTL_OK;
    int64_t sessions = 0;
    struct store *st = ctl_open_pools_store(c, &code);
    if (st == NULL) return code;
    if (store_count(st, c->deadline_ms, &sessions, &e))
        report_number(&c->report, "sessions", sessions);
    else
        code = ctl_failed(c, &e);
    store_close(st);
    return code;
}
