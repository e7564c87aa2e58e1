#include "user_index.h"

#include "clock.h"
#include "mem.h"
#include "redis_keys.h"
#include "redis_scan.h"
#include "session.h"
#include "task.h"
#include "waiters.h"

#include <string.h>

#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024)
#define MOST_PAGE_BYTES     (16 * 1024 * 1024)
#define LIST_PAGE           256 /* ids asked for at once */
#define SIDE_BY_SIDE        8   /* keys of a page that are put right at once, since most of the time is the network's */

struct user_key {
    char text[sizeof REDIS_USER_PREFIX REDIS_USER_SUFFIX + STORE_USER_BYTES];
};

static struct bytes user_key(struct user_key *k, const char *user)
{
    int n = snprintf(k->text, sizeof k->text, REDIS_USER_PREFIX "%s" REDIS_USER_SUFFIX, user);
    return (struct bytes){ k->text, (size_t)n };
}

bool user_index_put(struct redis *r, const char *user, const char *id, int64_t expires_at_ms, int64_t deadline_ms,
                    struct err *e)
{
    struct user_key k;
    struct number score;
    bool repeated; /* would change nothing */
    struct bytes zadd[] = { BYTES_LITERAL("ZADD"), user_key(&k, user), number(&score, expires_at_ms), bytes_of(id) };
    redisReply *reply = redis_call(r, zadd[1], 4, zadd, deadline_ms, &repeated, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

bool user_index_drop(struct redis *r, const char *user, const char *id, int64_t deadline_ms, struct err *e)
{
    struct user_key k;
    struct bytes zrem[] = { BYTES_LITERAL("ZREM"), user_key(&k, user), bytes_of(id) };
    redisReply *reply = redis_call(r, zrem[1], 3, zrem, deadline_ms, NULL, e); /* may be lost: see above */
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

/* Reads a session with its life; *found is false where there is none, or something that is no session. */
static bool read_session(struct redis *r, const char *id, struct buf *doc, int64_t *expires_at_ms, bool *found,
                         int64_t deadline_ms, struct err *e)
{
    struct session_key k;
    struct bytes get[] = { BYTES_LITERAL("GET"), session_key(&k, id) };
    struct bytes pttl[] = { BYTES_LITERAL("PTTL"), get[1] };
    buf_reset(doc);
    *found = false;
    redisReply *reply = redis_call(r, get[1], 2, get, deadline_ms, NULL, e);
    if (reply == NULL) return e->kind == ERR_CORRUPT;
    *found = reply->type == REDIS_REPLY_STRING;
    if (*found) buf_append(doc, reply->str, (size_t)reply->len);
    freeReplyObject(reply);
    if (!*found) return true;
    reply = redis_call(r, pttl[1], 2, pttl, deadline_ms, NULL, e);
    if (reply == NULL) return false;
    *found = reply->integer != -2; /* it has ended in between */
    *expires_at_ms = reply->integer > 0 ? clock_wall_ms() + reply->integer : 0;
    freeReplyObject(reply);
    return true;
}

/* --- one user's sessions --- */

/* Shows one session of the list to `each`; what is none of the user's leaves the index. */
static bool show(struct redis *r, const char *user, const char *id, struct buf *doc, int64_t deadline_ms,
                 store_each_fn *each, void *ctx, int64_t *dropped, struct err *e)
{
    bool found;
    int64_t expires_at_ms;
    if (!read_session(r, id, doc, &expires_at_ms, &found, deadline_ms, e)) return false;
    if (found && each(ctx, id, buf_bytes(doc), expires_at_ms)) return true;
    ++*dropped;
    return user_index_drop(r, user, id, deadline_ms, e);
}

/* Pages by position: what leaves the index meanwhile moves the rest up. An id that somebody else moves may be shown
 * twice or not at all, which whoever wants all of them meets by asking again. */
bool user_index_each(struct redis *r, const char *user, int64_t deadline_ms, store_each_fn *each, void *ctx,
                     struct err *e)
{
    struct buf doc = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct user_key k;
    struct number from, to;
    char id[IDS_TEXT_BYTES];
    bool ok = true, more = true;
    for (int64_t at = 0; ok && more;) {
        int64_t dropped = 0;
        struct bytes range[] = { BYTES_LITERAL("ZRANGE"), user_key(&k, user), number(&from, at),
                                 number(&to, at + LIST_PAGE - 1) };
        redisReply *page = redis_call(r, range[1], 4, range, deadline_ms, NULL, e);
        if (page == NULL) {
            ok = false;
            break;
        }
        more = page->type == REDIS_REPLY_ARRAY && page->elements > 0;
        for (size_t i = 0; ok && more && i < page->elements; i++) {
            redisReply *member = page->element[i];
            if (ids_read((struct bytes){ member->str, (size_t)member->len }, id))
                ok = show(r, user, id, &doc, deadline_ms, each, ctx, &dropped, e);
        }
        if (more) at += (int64_t)page->elements - dropped;
        freeReplyObject(page);
    }
    buf_done(&doc);
    return ok;
}

/* --- repair --- */

/* Whose session is it? */
static void owner_of(const struct buf *doc, char user[STORE_USER_BYTES])
{
    struct session_facts facts;
    user[0] = '\0';
    if (session_facts(buf_bytes(doc), &facts)) session_user(facts.user_id, user, STORE_USER_BYTES);
}

/* A session without an end: only an original pod's crash between two commands leaves one, or an operator's hand. Other
 * types than strings are no sessions. */
static bool give_life(struct redis *r, struct bytes key, struct store_heal *heal, int64_t *expires_at_ms,
                      int64_t deadline_ms, struct err *e)
{
    struct number life;
    bool repeated; /* would change nothing */
    struct bytes eval[] = { BYTES_LITERAL("EVAL"),
                            BYTES_LITERAL("return redis.call('PTTL', KEYS[1]) == -1 and "
                                          "redis.call('PEXPIRE', KEYS[1], ARGV[1]) or 0"),
                            BYTES_LITERAL("1"), key, number(&life, heal->life_ms) };
    redisReply *reply = redis_call(r, key, 5, eval, deadline_ms, &repeated, e);
    if (reply == NULL) return false;
    heal->given_life += reply->integer;
    *expires_at_ms = clock_wall_ms() + heal->life_ms;
    freeReplyObject(reply);
    return true;
}

/* A session's entry is put right. */
static bool heal_session(struct redis *r, struct bytes key, struct store_heal *heal, struct buf *doc,
                         int64_t deadline_ms, struct err *e)
{
    const size_t prefix = sizeof REDIS_SESSION_PREFIX - 1;
    char id[IDS_TEXT_BYTES], user[STORE_USER_BYTES];
    int64_t expires_at_ms;
    bool found;
    if (!ids_read((struct bytes){ key.at + prefix, key.len - prefix }, id)) return true;
    if (!read_session(r, id, doc, &expires_at_ms, &found, deadline_ms, e)) return false;
    if (!found) return true;
    heal->sessions++;
    if (expires_at_ms == 0 && heal->life_ms > 0 && !give_life(r, key, heal, &expires_at_ms, deadline_ms, e))
        return false;
    owner_of(doc, user);
    if (heal->each != NULL) heal->each(heal->ctx, id, user, expires_at_ms);
    if (user[0] == '\0') return true;
    heal->entered++;
    return user_index_put(r, user, id, expires_at_ms, deadline_ms, e);
}

/* Of a user's entries those that are kept; user_index_each() takes the others out. */
struct healed {
    const char *user;
    int64_t kept;
};

static bool is_theirs(void *ctx, const char *id, struct bytes doc, int64_t expires_at_ms)
{
    struct healed *h = ctx;
    struct session_facts facts;
    char user[STORE_USER_BYTES] = "";
    (void)id, (void)expires_at_ms;
    if (session_facts(doc, &facts)) session_user(facts.user_id, user, sizeof user);
    bool theirs = strcmp(user, h->user) == 0;
    h->kept += theirs;
    return theirs;
}

static bool cardinality(struct redis *r, struct bytes key, int64_t deadline_ms, int64_t *n, struct err *e)
{
    struct bytes zcard[] = { BYTES_LITERAL("ZCARD"), key };
    redisReply *reply = redis_call(r, key, 2, zcard, deadline_ms, NULL, e);
    if (reply == NULL) return false;
    *n = reply->integer;
    freeReplyObject(reply);
    return true;
}

/* A user's entries of no session of theirs are taken out. */
static bool heal_user(struct redis *r, struct bytes key, struct store_heal *heal, struct buf *doc, int64_t deadline_ms,
                      struct err *e)
{
    const size_t prefix = sizeof REDIS_USER_PREFIX - 1, around = prefix + sizeof REDIS_USER_SUFFIX - 1;
    char user[STORE_USER_BYTES];
    struct healed healed = { .user = user };
    int64_t entries;
    (void)doc;
    if (key.len <= around || key.len - around >= sizeof user) return true;
    snprintf(user, sizeof user, "%.*s", (int)(key.len - around), key.at + prefix);
    if (!cardinality(r, key, deadline_ms, &entries, e)) return false;
    if (!user_index_each(r, user, deadline_ms, is_theirs, &healed, e)) return false;
    if (entries > healed.kept) heal->removed += entries - healed.kept;
    return true;
}

/* First every session's entry is there, then every entry has its session. Both passes scan one server after another;
 * what is written meanwhile enters itself, before and after its write. Keys that move to another server of a cluster
 * meanwhile may be missed until the next time. */
static const struct pass {
    const char *pattern;
    bool (*heal)(struct redis *r, struct bytes key, struct store_heal *heal, struct buf *doc, int64_t deadline_ms,
                 struct err *e);
} passes[] = {
    { REDIS_SESSION_PREFIX "*", heal_session },
    { REDIS_USER_PREFIX "*" REDIS_USER_SUFFIX, heal_user },
};
#define PASSES (int)(sizeof passes / sizeof passes[0])

/* A page of a pass, and those who work on it. */
struct page {
    struct redis *redis;
    struct store_heal *heal;
    int64_t deadline_ms;
    struct buf keys; /* one behind the other */
    size_t *ends;    /* where each ends */
    size_t count, next;
    int workers;
    struct waiters waiters; /* for the end of the last worker */
    bool failed;
    struct err error;
};

static bool collect_key(void *ctx, struct bytes key, struct err *e)
{
    struct page *p = ctx;
    buf_add(&p->keys, key);
    p->ends = mem_resize(p->ends, (p->count + 1) * sizeof *p->ends);
    p->ends[p->count++] = p->keys.len;
    return !buf_overflowed(&p->keys) || err_set(e, ERR_INTERNAL, "a page of keys over %d bytes", MOST_PAGE_BYTES);
}

static void heal_keys(void *arg)
{
    struct page *p = arg;
    struct buf doc = BUF_INIT(MOST_DOCUMENT_BYTES);
    struct err e;
    while (!p->failed && p->next < p->count) {
        size_t i = p->next++, from = i > 0 ? p->ends[i - 1] : 0;
        struct bytes key = { p->keys.data + from, p->ends[i] - from };
        if (passes[p->heal->phase].heal(p->redis, key, p->heal, &doc, p->deadline_ms, &e) || p->failed) continue;
        p->failed = true;
        p->error = e;
    }
    buf_done(&doc);
    if (--p->workers == 0) waiters_wake(&p->waiters);
}

static void heal_page(struct page *p)
{
    p->workers = task_current() == NULL ? 1 : SIDE_BY_SIDE;
    if (p->workers == 1) {
        heal_keys(p);
        return;
    }
    for (int i = 0; i < SIDE_BY_SIDE; i++) task_start(heal_keys, p);
    while (p->workers > 0) waiters_wait(&p->waiters, CLOCK_NEVER); /* the page is on our stack */
}

/* A failure leaves the same page to be done again, which does no harm. */
bool user_index_heal(struct redis *r, struct store_heal *heal, int64_t deadline_ms, struct err *e)
{
    struct page p = { .redis = r, .heal = heal, .deadline_ms = deadline_ms, .keys = BUF_INIT(MOST_PAGE_BYTES) };
    struct redis_scan at = { .server = heal->server };
    bool pass_done;
    memcpy(at.cursor, heal->cursor, sizeof at.cursor);
    bool ok = redis_scan_page(r, &at, passes[heal->phase].pattern, deadline_ms, &pass_done, collect_key, &p, e);
    if (ok) heal_page(&p);
    if (ok && p.failed) {
        *e = p.error;
        ok = false;
    }
    if (ok) {
        heal->server = pass_done ? 0 : at.server;
        memcpy(heal->cursor, at.cursor, sizeof heal->cursor);
        if (pass_done) heal->done = ++heal->phase == PASSES;
    }
    free(p.ends);
    buf_done(&p.keys);
    return ok;
}
