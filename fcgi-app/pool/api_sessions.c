/* api_sessions.c: /api/sessions: create, read, update, delete. Documents travel as bytes: a read wraps what is stored
 * into its answer, an update splices the client's own bytes in; only what a client sends is parsed. */
#include "api.h"

#include "clock.h"
#include "log.h"
#include "mem.h"
#include "session.h"
#include "span.h"

#include <ctype.h>

/* --- shared by all handlers --- */

bool api_init(struct api *api, const struct config *cfg, struct store *store, struct shared *sh, struct slot *slot,
              struct err *e)
{
    struct bytes item;
    *api = (struct api){ .config = cfg, .store = store, .shared = sh, .slot = slot };
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
    default: response_error(&x->rs, 500, "INTERNAL_ERROR", "An internal error occurred"); return;
    }
}

/* --- what a request names --- */

enum id_given { ID_NONE, ID_GOOD, ID_WRONG };

/* Takes one place where an id may stand into account: the first one counts, and a second one must be the same. */
static enum id_given add_id(enum id_given so_far, struct bytes raw, char id[IDS_TEXT_BYTES])
{
    char read[IDS_TEXT_BYTES];
    size_t i = 0;
    while (i < raw.len && isspace((unsigned char)raw.at[i])) i++;
    if (so_far == ID_WRONG || i == raw.len) return so_far;
    if (!ids_read(raw, read)) return ID_WRONG;
    if (so_far == ID_GOOD) return strcmp(id, read) == 0 ? ID_GOOD : ID_WRONG;
    memcpy(id, read, sizeof read);
    return ID_GOOD;
}

/* The id that a request without a body names: in the path, the query, the header. */
static enum id_given find_id(struct exchange *x, char id[IDS_TEXT_BYTES])
{
    struct buf value = BUF_INIT(8192);
    enum id_given given = add_id(ID_NONE, bytes_of(x->path_tail), id);
    for (size_t n = 0; http_query_value(x->rq.query, "sessionId", n, &value); n++) {
        given = buf_overflowed(&value) ? ID_WRONG : add_id(given, buf_bytes(&value), id);
        buf_reset(&value);
    }
    buf_done(&value);
    return add_id(given, bytes_of(x->rq.session_id), id);
}

static bool refuse_id(struct exchange *x, enum id_given given)
{
    return response_error(&x->rs, 400, "INVALID_SESSION_ID", given == ID_NONE ? "sessionId is required" :
                          "sessionId must be 1 to 128 letters, digits, dots, dashes or underscores, and the same wherever it stands");
}

static bool refuse_missing(struct exchange *x)
{
    return response_error(&x->rs, 401, "SESSION_NOT_FOUND", "Session not found or expired");
}

/* Answers for a document that is not what we accept. `prefix` is where it stands in the body. */
static bool refuse_document(struct exchange *x, const char *prefix, const struct json_fault *fault)
{
    struct json_fault f = *fault;
    snprintf(f.pointer, sizeof f.pointer, "%s%.200s", prefix, fault->pointer);
    if (f.kind == JSON_MALFORMED) return response_fault(&x->rs, 400, "INVALID_JSON", "The request body is not valid JSON", &f);
    if (f.kind == JSON_PROTECTED)
        return response_fault(&x->rs, 403, "SESSION_MEMBER_PROTECTED", "This member can only be changed with a service token", &f);
    return response_fault(&x->rs, 400, "INVALID_SESSION_DATA", "The session data is not valid", &f);
}

static void add_session_headers(struct exchange *x, const char *etag, const char *version, int64_t expires_at_ms)
{
    response_header(&x->rs, "ETag", etag);
    response_header(&x->rs, "X-Session-Version", version);
    if (expires_at_ms == 0) return;
    char when[CLOCK_ISO_BYTES];
    clock_iso(expires_at_ms, when);
    response_header(&x->rs, "X-Session-Expires-At", when);
}

/* --- read --- */

static void answer_document(struct exchange *x, const char *id, const char *message)
{
    struct buf *body = &x->rs.body;
    buf_puts(body, "{\"success\":true,\"sessionId\":");
    buf_json_string(body, bytes_of(id));
    buf_puts(body, ",\"session\":");
    buf_add(body, buf_bytes(&x->doc));
    if (message != NULL) buf_printf(body, ",\"message\":\"%s\"", message);
    buf_puts(body, "}");
}

static void read_session(struct exchange *x, const char *id)
{
    char etag[SESSION_TAG_BYTES], version[SESSION_TAG_BYTES];
    struct store_result res;
    struct err e;
    x->phase = store_name(x->api->store);
    if (!store_get(x->api->store, id, x->deadline_ms, &x->doc, &res, &e)) {
        api_store_failed(x, &e);
        return;
    }
    if (!res.found) {
        refuse_missing(x);
        return;
    }
    if (!session_tags(buf_bytes(&x->doc), etag, version)) {
        char short_id[9];
        ids_short(id, short_id);
        err_set(&e, ERR_CORRUPT, "the stored value is no JSON object: session=%s", short_id);
        api_store_failed(x, &e);
        return;
    }
    add_session_headers(x, etag, version, res.expires_at_ms);
    if (http_tag_listed(x->rq.if_none_match, etag, true)) x->rs.status = 304;
    else answer_document(x, id, NULL);
}

/* --- create --- */

static struct session_edit edit_of(const struct exchange *x, enum session_edit_kind kind, struct bytes change)
{
    const struct config *cfg = x->api->config;
    return (struct session_edit){ .kind = kind, .change = change, .protected = x->api->protected,
                                  .trusted = api_has_token(x, cfg->service_token),
                                  .keep_origin = cfg->session_protected_members[0] != '\0', .now_ms = clock_wall_ms() };
}

/* Makes a session from the defaults and what the client gives; 200 for GET, 201 with Location for POST ?create=1. */
static void create_session(struct exchange *x, struct bytes given, const char *prefix, bool explicit)
{
    const struct config *cfg = x->api->config;
    char id[IDS_TEXT_BYTES], address[64], etag[SESSION_TAG_BYTES], version[SESSION_TAG_BYTES], location[IDS_TEXT_BYTES + 32];
    struct session_origin from = { .ip_address = address, .user_agent = x->rq.user_agent };
    struct session_edit edit = edit_of(x, SESSION_MERGE, given);
    struct json_fault fault;
    struct store_result res;
    struct err e;
    http_client_address(&x->rq, cfg->trusted_proxies, address);
    if (!session_new(&edit, &from, &x->doc, &fault)) {
        refuse_document(x, prefix, &fault);
        return;
    }
    if (x->doc.len > (size_t)cfg->session_max_bytes || buf_overflowed(&x->doc)) {
        response_error(&x->rs, 413, "PAYLOAD_TOO_LARGE", "The session document would be larger than SESSION_MAX_BYTES");
        return;
    }
    ids_new(id);
    x->phase = store_name(x->api->store);
    if (!store_create(x->api->store, id, buf_bytes(&x->doc), cfg->session_default_ttl_seconds * 1000, x->deadline_ms, &res, &e)) {
        api_store_failed(x, &e);
        return;
    }
    if (res.found) { /* 122 random bits do not meet twice: something is very wrong */
        err_set(&e, ERR_INTERNAL, "a new id is taken already");
        api_store_failed(x, &e);
        return;
    }
    session_tags(buf_bytes(&x->doc), etag, version);
    add_session_headers(x, etag, version, res.expires_at_ms);
    if (explicit) {
        x->rs.status = 201;
        snprintf(location, sizeof location, "/api/sessions/%s", id);
        response_header(&x->rs, "Location", location);
    }
    answer_document(x, id, "New session created");
}

/* --- change and delete --- */

/* What a request wants done to a session, and how that went; filled by the store's last call of apply_change(). */
struct change {
    struct exchange *x;
    struct session_edit edit; /* not used for a delete */
    bool delete;
    const char *prefix;       /* where the document stands in the body */
    enum { CHANGE_MADE, CHANGE_REFUSED, CHANGE_PRECONDITION, CHANGE_TOO_LARGE, CHANGE_CORRUPT } outcome;
    struct json_fault fault;
    char etag[SESSION_TAG_BYTES], version[SESSION_TAG_BYTES];
};

static enum store_verdict apply_change(void *ctx, struct bytes doc, struct buf *out)
{
    struct change *c = ctx;
    const struct request *rq = &c->x->rq;
    c->outcome = CHANGE_MADE;
    if (!session_tags(doc, c->etag, c->version)) c->outcome = CHANGE_CORRUPT;
    else if (rq->if_match[0] != '\0' && !http_tag_listed(rq->if_match, c->etag, false) &&
             !http_tag_listed(rq->if_match, c->version, false)) c->outcome = CHANGE_PRECONDITION;
    if (c->outcome != CHANGE_MADE) return STORE_KEEP;
    if (c->delete) return STORE_DELETE;

    size_t most = (size_t)c->x->api->config->session_max_bytes;
    if (!session_apply(&c->edit, doc, out, &c->fault)) c->outcome = CHANGE_REFUSED;
    else if (buf_overflowed(out) || (out->len > most && out->len > doc.len)) c->outcome = CHANGE_TOO_LARGE;
    if (c->outcome != CHANGE_MADE) return STORE_KEEP;
    session_tags(buf_bytes(out), c->etag, c->version);
    return STORE_WRITE;
}

/* Answers for a change that was not made; false if it was. */
static bool refused(struct exchange *x, const struct change *c)
{
    struct err e;
    switch (c->outcome) {
    case CHANGE_MADE: return false;
    case CHANGE_REFUSED: return refuse_document(x, c->prefix, &c->fault);
    case CHANGE_PRECONDITION:
        add_session_headers(x, c->etag, c->version, 0);
        return response_error(&x->rs, 412, "PRECONDITION_FAILED", "The session has changed since");
    case CHANGE_TOO_LARGE:
        return response_error(&x->rs, 413, "PAYLOAD_TOO_LARGE", "The session document would be larger than SESSION_MAX_BYTES");
    case CHANGE_CORRUPT:
        err_set(&e, ERR_CORRUPT, "the stored value is no JSON object");
        api_store_failed(x, &e);
        return true;
    }
    return true;
}

/* Runs a change. True: it was made; everything else is answered. */
static bool change_session(struct exchange *x, const char *id, struct change *c, struct store_result *res)
{
    struct err e;
    x->phase = store_name(x->api->store);
    bool ok = c->delete && x->rq.if_match[0] == '\0' /* nothing to compare with: no need to read it first */
                  ? store_delete(x->api->store, id, x->deadline_ms, res, &e)
                  : store_update(x->api->store, id, apply_change, c, x->api->config->session_default_ttl_seconds * 1000,
                                 x->deadline_ms, res, &e);
    if (!ok) api_store_failed(x, &e);
    else if (!res->found) refuse_missing(x);
    else return !refused(x, c);
    return false;
}

static void answer_done(struct exchange *x, const char *id, const char *message)
{
    buf_puts(&x->rs.body, "{\"success\":true,");
    if (id != NULL) {
        buf_puts(&x->rs.body, "\"sessionId\":");
        buf_json_string(&x->rs.body, bytes_of(id));
        buf_puts(&x->rs.body, ",");
    }
    buf_printf(&x->rs.body, "\"message\":\"%s\"}", message);
}

static void update_session(struct exchange *x, const char *id, enum session_edit_kind kind, struct bytes change,
                           const char *prefix, const char *message)
{
    struct change c = { .x = x, .edit = edit_of(x, kind, change), .prefix = prefix };
    struct store_result res;
    if (!change_session(x, id, &c, &res)) return;
    add_session_headers(x, c.etag, c.version, res.expires_at_ms);
    answer_done(x, id, message);
}

/* SESSION_ALLOW_CLIENT_IDS: a whole document under an id that the client chose; the original's behaviour. */
static void put_session(struct exchange *x, const char *id, struct bytes data)
{
    const struct config *cfg = x->api->config;
    char address[64], etag[SESSION_TAG_BYTES], version[SESSION_TAG_BYTES];
    struct session_origin from = { .ip_address = address, .user_agent = x->rq.user_agent };
    struct session_edit edit = edit_of(x, SESSION_MERGE, data);
    struct json_fault fault;
    struct store_result res = { .found = true };
    struct err e;
    http_client_address(&x->rq, cfg->trusted_proxies, address);
    /* What a new session may not hold can still be right for one that is there and holds the same. */
    bool may_be_new = session_new(&edit, &from, &x->doc, &fault);
    if (may_be_new && x->rq.if_match[0] == '\0' &&
        !store_create(x->api->store, id, buf_bytes(&x->doc), cfg->session_default_ttl_seconds * 1000, x->deadline_ms, &res, &e)) {
        api_store_failed(x, &e);
        return;
    }
    if (res.found) {
        update_session(x, id, SESSION_REPLACE, data, "/sessionData", "Session saved successfully");
        if (x->rs.status == 401 && !may_be_new) refuse_document(x, "/sessionData", &fault);
        return;
    }
    session_tags(buf_bytes(&x->doc), etag, version);
    add_session_headers(x, etag, version, res.expires_at_ms);
    answer_done(x, id, "Session saved successfully");
}

/* --- the handlers --- */

void sessions_get(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    enum id_given given = find_id(x, id);
    struct buf check = BUF_INIT(64);
    bool readiness = given == ID_NONE && http_query_value(x->rq.query, "check", 0, &check) && bytes_is(buf_bytes(&check), "ready");
    buf_done(&check);
    if (readiness) status_ready(x);
    else if (given == ID_WRONG) refuse_id(x, given);
    else if (given == ID_NONE) create_session(x, (struct bytes){ NULL, 0 }, "", false);
    else read_session(x, id);
}

void sessions_head(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    enum id_given given = find_id(x, id);
    if (given != ID_GOOD) refuse_id(x, given);
    else read_session(x, id);
}

/* A member of the POST body that must be an object: *value is left without bytes where it is missing or null. */
static bool read_object(struct exchange *x, struct bytes body, const char *name, struct bytes *value)
{
    struct json_fault fault;
    struct span_member m;
    char pointer[32];
    *value = (struct bytes){ NULL, 0 };
    if (!span_find(body, name, &m) || span_type(m.value) == SPAN_NULL) return true;
    snprintf(pointer, sizeof pointer, "/%s", name);
    if (!session_check_members(m.value, false, &fault)) return !refuse_document(x, pointer, &fault);
    *value = m.value;
    return true;
}

/* The id in the body comes first; the header may stand in for it. */
static bool read_body_id(struct exchange *x, struct bytes body, char id[IDS_TEXT_BYTES])
{
    struct span_member m;
    struct buf text = BUF_INIT(1024);
    enum id_given given = ID_NONE;
    if (span_find(body, "sessionId", &m) && span_type(m.value) != SPAN_NULL) {
        given = ID_WRONG;
        if (span_type(m.value) == SPAN_STRING) {
            span_decode((struct bytes){ m.value.at + 1, m.value.len - 2 }, &text);
            if (!buf_overflowed(&text)) given = add_id(ID_NONE, buf_bytes(&text), id);
        }
    }
    given = add_id(given, bytes_of(x->rq.session_id), id);
    buf_done(&text);
    return given == ID_GOOD || !refuse_id(x, given);
}

static bool wants_create(const struct exchange *x)
{
    struct buf value = BUF_INIT(16);
    bool wanted = http_query_value(x->rq.query, "create", 0, &value) && (bytes_is(buf_bytes(&value), "1") || bytes_is(buf_bytes(&value), "true"));
    buf_done(&value);
    return wanted;
}

void sessions_post(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    struct bytes body = x->rq.body, updates, data;
    struct json_fault fault;
    bool create = wants_create(x);
    if (create && body.len == 0) body = BYTES_LITERAL("{}");
    if (!json_check(body, SESSION_DEPTH + 1, &fault)) { /* the documents are one level down */
        refuse_document(x, "", &fault);
        return;
    }
    if (!create && !read_body_id(x, body, id)) return;
    if (!read_object(x, body, "updates", &updates) || !read_object(x, body, "sessionData", &data)) return;
    if (create) create_session(x, data, "/sessionData", true);
    else if (updates.len > 0) update_session(x, id, SESSION_MERGE, updates, "/updates", "Session saved successfully");
    else if (data.len == 0) response_error(&x->rs, 400, "INVALID_SESSION_REQUEST", "sessionData or updates required");
    else if (x->api->config->session_allow_client_ids) put_session(x, id, data);
    else update_session(x, id, SESSION_REPLACE, data, "/sessionData", "Session saved successfully");
}

void sessions_patch(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    struct json_fault fault;
    const char *type = x->rq.content_type;
    bool merge_patch = http_content_type_is(type, "application/merge-patch+json");
    enum id_given given = find_id(x, id);
    if (type[0] != '\0' && !merge_patch && !http_content_type_is(type, "application/json")) {
        response_header(&x->rs, "Accept-Patch", "application/json, application/merge-patch+json");
        response_error(&x->rs, 415, "UNSUPPORTED_MEDIA_TYPE", "PATCH takes application/json or application/merge-patch+json");
    } else if (given != ID_GOOD) {
        refuse_id(x, given);
    } else if (!json_check(x->rq.body, SESSION_DEPTH, &fault) || !session_check_members(x->rq.body, merge_patch, &fault)) {
        refuse_document(x, "", &fault);
    } else {
        update_session(x, id, merge_patch ? SESSION_MERGE_PATCH : SESSION_MERGE, x->rq.body, "", "Session updated successfully");
    }
}

void sessions_delete(struct exchange *x)
{
    char id[IDS_TEXT_BYTES];
    struct change c = { .x = x, .delete = true, .prefix = "" };
    struct store_result res;
    enum id_given given = find_id(x, id);
    if (given != ID_GOOD) refuse_id(x, given);
    else if (change_session(x, id, &c, &res)) answer_done(x, NULL, "Session deleted successfully");
}
