/* ctl_remote.c: the commands that --url knows: what an endpoint answers, told as the command tells it on the node. */
#include "ctl.h"
#include "remote.h"

#include "clock.h"
#include "ids.h"
#include "span.h"

#include <poll.h>
#include <string.h>

#define LOOK_MS 200

/* --- members of an answer --- */

/* The value at a path of names with points between them; none: no bytes. */
static struct bytes value_at(struct bytes object, const char *path)
{
    struct span_member m = { .value = object };
    while (path != NULL && m.value.len > 0) {
        char name[64];
        const char *point = strchr(path, '.');
        size_t n = point != NULL ? (size_t)(point - path) : strlen(path);
        if (n >= sizeof name) return (struct bytes){ NULL, 0 };
        memcpy(name, path, n);
        name[n] = '\0';
        if (span_type(m.value) != SPAN_OBJECT || !span_find(m.value, name, &m)) return (struct bytes){ NULL, 0 };
        path = point != NULL ? point + 1 : NULL;
    }
    return m.value;
}

/* What is told under which name; "" ends a table. */
struct told {
    const char *name, *path;
};

static void tell(struct report *r, struct bytes object, const struct told *members)
{
    for (; members->name != NULL; members++) report_json(r, members->name, value_at(object, members->path));
}

static void tell_object(struct report *r, const char *name, struct bytes object, const struct told *members)
{
    report_open(r, name);
    tell(r, object, members);
    report_close(r);
}

static void tell_list(struct report *r, const char *name, struct bytes list, const struct told *members)
{
    struct span_member m;
    report_open_list(r, name);
    if (list.len > 0 && span_type(list) == SPAN_ARRAY)
        for (struct span_walk w = span_walk(list); span_next(&w, &m);) tell_object(r, NULL, m.value, members);
    report_close_list(r);
}

/* Asks; what is not answered by 200 is said. */
static enum ctl_exit ask(struct ctl *c, const struct remote_request *rq, struct remote_answer *a)
{
    enum ctl_exit code = remote_ask(c, rq, a);
    if (code == CTL_OK && a->status != 200) code = remote_refused(a);
    return code == CTL_OK ? code : ctl_fail(code, "%s", a->why);
}

static enum ctl_exit get(struct ctl *c, const char *path, struct remote_answer *a)
{
    return ask(c, &(struct remote_request){ .method = "GET", .path = path }, a);
}

/* --- looking --- */

static const struct told of_pool[] = {
    { "starting", "starting" },
    { "idle", "idle" },
    { "busy", "busy" },
    { "draining", "draining" },
    { "requests", "requests" },
    { "connections", "connections" },
    { NULL, NULL },
};
static const struct told of_worker[] = {
    { "pid", "pid" },           { "state", "state" }, { "requests", "requests" }, { "connections", "connections" },
    { "startedAt", "started" }, { NULL, NULL },
};
static const struct told of_coordinator[] = {
    { "alive", "coordinator.alive" },  { "podId", "podId" },
    { "leaderId", "leader.leaderId" }, { "term", "leader.term" },
    { "isLeader", "leader.isSelf" },   { NULL, NULL },
};
static const struct told of_dependency[] = {
    { "status", "status" }, { "latencyMs", "latencyMs" }, { "ageMs", "ageMs" }, { "sinceMs", "sinceMs" },
    { NULL, NULL },
};

enum ctl_exit remote_status(struct ctl *c)
{
    static const struct told of_node[] = { { "version", "version" },
                                           { "status", "status" },
                                           { "maintenance", "maintenance" },
                                           { "store", "store.answers" },
                                           { NULL, NULL } };
    struct report *r = &c->report;
    struct remote_answer a = REMOTE_ANSWER;
    enum ctl_exit code = get(c, "/api/status", &a);
    if (code == CTL_OK) {
        struct bytes body = buf_bytes(&a.body);
        tell_object(r, "pool", value_at(body, "pool"), of_pool);
        tell_object(r, "coordinator", value_at(body, "coordination"), of_coordinator);
        tell(r, body, of_node);
        tell_object(r, "redis", value_at(body, "store.redis"), of_dependency);
        tell_object(r, "embedded", value_at(body, "store.embedded"), of_dependency);
        tell_list(r, "workers", value_at(body, "workers"), of_worker);
    }
    buf_done(&a.body);
    return code;
}

/* One look. 503 is an answer, too: the service's own, or its web server's for it. */
static enum ctl_exit look_at_health(struct ctl *c, struct remote_answer *a)
{
    enum ctl_exit code = remote_ask(c, &(struct remote_request){ .method = "GET", .path = "/api/health" }, a);
    if (code != CTL_OK || a->status == 200) return code;
    return a->status == 503 && value_at(buf_bytes(&a->body), "status").len > 0 ? CTL_NOT_SO : remote_refused(a);
}

enum ctl_exit remote_health(struct ctl *c)
{
    static const struct told of_health[] = {
        { "status", "status" }, { "maintenance", "maintenance" }, { "store", "store" }, { NULL, NULL }
    };
    struct report *r = &c->report;
    struct remote_answer a = REMOTE_ANSWER;
    enum ctl_exit code = look_at_health(c, &a);
    while (c->flag[CTL_WAIT] != NULL && (code == CTL_NOT_SO || code == CTL_UNREACHABLE)) {
        int64_t left_ms = c->deadline_ms - clock_mono_ms();
        if (left_ms > 0) poll(NULL, 0, left_ms < LOOK_MS ? (int)left_ms : LOOK_MS);
        if (left_ms <= 0) break;
        code = look_at_health(c, &a);
    }
    if (a.why[0] != '\0') ctl_fail(code, "%s", a.why);
    if (a.why[0] == '\0') {
        tell(r, buf_bytes(&a.body), of_health);
        tell_object(r, "redis", value_at(buf_bytes(&a.body), "redis"), of_dependency);
        tell_object(r, "embedded", value_at(buf_bytes(&a.body), "embedded"), of_dependency);
    }
    if (code != CTL_OK && c->flag[CTL_WAIT] != NULL) code = CTL_TIMED_OUT;
    buf_done(&a.body);
    return code;
}

/* What a node's coordinator knew last is not what is so, when it does not live. */
static enum ctl_exit ask_coordinator(struct ctl *c, struct remote_answer *a)
{
    enum ctl_exit code = get(c, "/api/coordination", a);
    if (code == CTL_OK && !bytes_is(value_at(buf_bytes(&a->body), "coordinator.alive"), "true"))
        code = ctl_fail(CTL_UNREACHABLE, "the coordinator shows no sign of life");
    return code;
}

enum ctl_exit remote_pods(struct ctl *c)
{
    static const struct told of_pod[] = { { "podId", "podId" }, { "activeUntil", "activeUntil" }, { NULL, NULL } };
    struct remote_answer a = REMOTE_ANSWER;
    enum ctl_exit code = ask_coordinator(c, &a);
    if (code == CTL_OK) {
        report_json(&c->report, "podCount", value_at(buf_bytes(&a.body), "podCount"));
        tell_list(&c->report, "pods", value_at(buf_bytes(&a.body), "pods"), of_pod);
    }
    buf_done(&a.body);
    return code;
}

enum ctl_exit remote_leader(struct ctl *c)
{
    static const struct told of_leader[] = {
        { "podId", "podId" },        { "leaderId", "leader.leaderId" },
        { "term", "leader.term" },   { "isLeader", "leader.isSelf" },
        { "since", "leader.since" }, { NULL, NULL },
    };
    struct remote_answer a = REMOTE_ANSWER;
    if (c->flag[CTL_STEP_DOWN] != NULL || c->flag[CTL_WAIT] != NULL)
        return ctl_fail(CTL_USAGE, "--step-down: works over RUN_DIR, on the node itself: not with --url");
    enum ctl_exit code = ask_coordinator(c, &a);
    if (code == CTL_OK) {
        tell(&c->report, buf_bytes(&a.body), of_leader);
        if (span_type(value_at(buf_bytes(&a.body), "leader.leaderId")) == SPAN_NULL) code = CTL_NOT_SO;
    }
    buf_done(&a.body);
    return code;
}

/* --- sessions --- */

enum ctl_exit remote_session(struct ctl *c)
{
    char id[IDS_TEXT_BYTES];
    struct remote_answer a = REMOTE_ANSWER;
    enum ctl_exit code = ctl_read_id(c->word[0], id);
    if (code != CTL_OK) return code;
    code = ask(c, &(struct remote_request){ .method = "GET", .path = "/api/sessions", .session_id = id }, &a);
    if (code == CTL_OK) {
        report_string(&c->report, "sessionId", id);
        report_string(&c->report, "expiresAt", a.expires_at);
        report_json(&c->report, "session", value_at(buf_bytes(&a.body), "session"));
    }
    buf_done(&a.body);
    return code;
}

/* Of a user's sessions, as an administrator. */
static enum ctl_exit ask_of_user(struct ctl *c, const char *method, struct remote_answer *a)
{
    struct buf path = BUF_INIT(4096);
    if (c->word[0][0] == '\0' || strlen(c->word[0]) >= STORE_USER_BYTES)
        return ctl_fail(CTL_USAGE, "USER: allowed are 1 to %d bytes", STORE_USER_BYTES - 1);
    buf_puts(&path, "/api/admin/sessions?userId=");
    remote_add_query(&path, c->word[0]);
    struct remote_request rq = { .method = method, .path = buf_text(&path), .as_admin = true };
    enum ctl_exit code = ask(c, &rq, a);
    buf_done(&path);
    return code;
}

enum ctl_exit remote_sessions(struct ctl *c)
{
    static const struct told of_session[] = {
        { "hash", "hash" },
        { "expiresAt", "expiresAt" },
        { "created", "created" },
        { "lastActivity", "lastActivity" },
        { "ipAddress", "ipAddress" },
        { "userAgent", "userAgent" },
        { NULL, NULL },
    };
    struct remote_answer a = REMOTE_ANSWER;
    enum ctl_exit code = ask_of_user(c, "GET", &a);
    if (code == CTL_OK) {
        report_string(&c->report, "userId", c->word[0]);
        tell_list(&c->report, "sessions", value_at(buf_bytes(&a.body), "sessions"), of_session);
    }
    buf_done(&a.body);
    return code;
}

enum ctl_exit remote_revoke(struct ctl *c)
{
    struct remote_answer a = REMOTE_ANSWER;
    enum ctl_exit code = ask_of_user(c, "DELETE", &a);
    if (code == CTL_OK) report_json(&c->report, "revoked", value_at(buf_bytes(&a.body), "revoked"));
    buf_done(&a.body);
    return code;
}

/* --- messages: the service looks at what is in them --- */

static void add_optional(struct buf *body, const char *name, const char *text)
{
    if (text == NULL) return;
    buf_printf(body, ",\"%s\":", name);
    buf_json_string(body, bytes_of(text));
}

enum ctl_exit remote_send(struct ctl *c)
{
    static const struct told of_message[] = { { "messageId", "messageId" },
                                              { "receivers", "receivers" },
                                              { NULL, NULL } };
    struct remote_answer a = REMOTE_ANSWER;
    struct buf body = BUF_INIT(1 << 20);
    size_t at;
    if (span_check_object(bytes_of(c->word[1]), 0, &at) != SPAN_OK)
        return ctl_fail(CTL_USAGE, "PAYLOAD: must be a JSON object");
    buf_puts(&body, "{\"type\":");
    buf_json_string(&body, bytes_of(c->word[0]));
    buf_printf(&body, ",\"payload\":%s", c->word[1]);
    add_optional(&body, "priority", c->flag[CTL_PRIORITY]);
    add_optional(&body, "podId", c->flag[CTL_POD]);
    buf_puts(&body, "}");
    struct remote_request rq = { .method = "POST", .path = "/api/admin/coordination/messages", .as_admin = true };
    rq.body = buf_bytes(&body);
    enum ctl_exit code = ask(c, &rq, &a);
    if (code == CTL_OK) tell(&c->report, buf_bytes(&a.body), of_message);
    buf_done(&body);
    buf_done(&a.body);
    return code;
}
