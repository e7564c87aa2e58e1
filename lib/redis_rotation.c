#include "redis_rotation.h"

#include "clock.h"
#include "fault.h"
#include "redis_keys.h"
#include "user_index.h"

#include <inttypes.h>
#include <string.h>

#define MOST_DOCUMENT_BYTES (16 * 1024 * 1024)

/* A rotated session's gone-mark is "ID HASH LIFE": its new id, the name of the request (or REDIS_GONE_PLAIN), and the
 * life in ms that the old id had left. It is believed for STORE_REPEAT_MS, which Redis itself measures: by the life
 * that the mark has lost. */

/* Ends the id of KEYS[1], whose session has a new one: where ARGV[1] stands it goes, with the mark ARGV[2] for ARGV[3]
 * ms in KEYS[2], and the answer is the life that it had left. Else a list of what stands there now and Redis' time in
 * ms; or, of an id that was rotated in the last ARGV[4] ms, a list with its mark; or nil. With '' as ARGV[1] this only
 * reads.
 *
 * Nothing ends after the time ARGV[5]: a Redis that stood still, or a network, may bring the script to its turn when
 * the new id has long died with its short life. */
const char *const redis_rotation_script =
    "local now = redis.call('GET', KEYS[1])\n"
    "if not now then\n"
    "  local mark = redis.call('GET', KEYS[2])\n"
    "  if not mark or redis.call('PTTL', KEYS[2]) < ARGV[3] - ARGV[4] then return nil end\n"
    "  return {mark}\n"
    "end\n"
    "local clock = redis.call('TIME')\n"
    "local time = clock[1] * 1000 + math.floor(clock[2] / 1000)\n"
    "if now ~= ARGV[1] or now == '' or time > tonumber(ARGV[5]) then return {now, time} end\n"
    "local left = redis.call('PTTL', KEYS[1])\n"
    "redis.call('SET', KEYS[2], ARGV[2] .. ' ' .. left, 'PX', ARGV[3])\n"
    "redis.call('DEL', KEYS[1])\n"
    "return left";

/* What became of the old id. */
enum old {
    OLD_ENDED,  /* now, for the new one */
    OLD_LIVES,  /* `base` is what stands there */
    OLD_GONE,   /* before; mark_text says why, if it was rotated */
    OLD_UNKNOWN /* Redis did not answer */
};

/* Ends the old id if `base` stands there. */
static enum old succeed(struct redis_rotation *ro, struct bytes base, struct err *e)
{
    struct session_key k;
    struct gone_key g;
    struct number gone_ms, repeat_ms, not_after_ms;
    bool repeated;
    char mark[IDS_TEXT_BYTES + STORE_KEY_HASH_BYTES + 2];
    int n = snprintf(mark, sizeof mark, "%s %s", ro->rotation->new_id,
                     ro->rotation->key_hash[0] != '\0' ? ro->rotation->key_hash : REDIS_GONE_PLAIN);
    struct bytes argv[] = { session_key(&k, ro->id),
                            gone_key(&g, ro->id),
                            base,
                            { mark, (size_t)n },
                            number(&gone_ms, STORE_GONE_MS),
                            number(&repeat_ms, STORE_REPEAT_MS),
                            number(&not_after_ms, ro->not_after_ms) };
    redisReply *reply =
        redis_eval_keys(ro->redis, ro->script, 2, 7, argv, ro->deadline_ms, base.len > 0 ? &repeated : NULL, e);
    if (reply == NULL) return OLD_UNKNOWN;
    enum old old = OLD_GONE;
    if (reply->type == REDIS_REPLY_INTEGER) {
        ro->left_ms = reply->integer;
        old = OLD_ENDED;
    } else if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
               reply->element[0]->type == REDIS_REPLY_STRING && reply->element[1]->type == REDIS_REPLY_INTEGER) {
        buf_reset(&ro->base);
        buf_append(&ro->base, reply->element[0]->str, (size_t)reply->element[0]->len);
        /* The new id is made later than that, and lives as long. */
        ro->not_after_ms = reply->element[1]->integer + STORE_REPEAT_MS;
        old = OLD_LIVES;
    } else if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 1 &&
               reply->element[0]->type == REDIS_REPLY_STRING) {
        snprintf(ro->mark_text, sizeof ro->mark_text, "%s", reply->element[0]->str);
    }
    freeReplyObject(reply);
    return old;
}

/* Stores the document under the new id, for as long as its request may be repeated and then answered. */
static bool store_briefly(struct redis_rotation *ro, struct err *e)
{
    struct session_key k;
    struct number life;
    bool repeated; /* would change nothing */
    int64_t life_ms = STORE_REPEAT_MS + (ro->deadline_ms - clock_mono_ms());
    if (ro->terms->most_ms > 0 && ro->terms->most_ms < life_ms) life_ms = ro->terms->most_ms;
    struct bytes set[] = { BYTES_LITERAL("SET"), session_key(&k, ro->rotation->new_id), buf_bytes(ro->doc),
                           BYTES_LITERAL("PX"), number(&life, life_ms) };
    redisReply *reply = redis_call(ro->redis, set[1], 5, set, ro->deadline_ms, &repeated, e);
    if (reply != NULL) freeReplyObject(reply);
    return reply != NULL;
}

/* Takes back a new id that nobody has heard of; if that fails, its life is short. */
static void forget_new_id(struct redis_rotation *ro)
{
    struct session_key k;
    struct err e;
    struct bytes del[] = { BYTES_LITERAL("DEL"), session_key(&k, ro->rotation->new_id) };
    redisReply *reply = redis_call(ro->redis, del[1], 2, del, ro->deadline_ms, NULL, &e);
    if (reply != NULL) freeReplyObject(reply);
    if (ro->terms->user[0] != '\0')
        user_index_drop(ro->redis, ro->terms->user, ro->rotation->new_id, ro->deadline_ms, &e);
}

/* The new id gets its full life: the usual one or what the old id had left, if that was more. */
static bool live_on(struct redis_rotation *ro, struct store_result *res, struct err *e)
{
    int64_t life_ms = ro->left_ms > ro->terms->ttl_ms ? ro->left_ms : ro->terms->ttl_ms;
    if (ro->terms->most_ms > 0 && life_ms > ro->terms->most_ms) life_ms = ro->terms->most_ms;
    return ro->ops->expire(ro->store, ro->rotation->new_id, life_ms, true, ro->deadline_ms, res, e);
}

/* What an earlier request of our name did is the answer; and in case it was killed before its end, the new id gets its
 * life. */
static bool repeat(struct redis_rotation *ro, const char *new_id, struct store_result *res, struct err *e)
{
    struct store_result read;
    if (!ro->ops->get(ro->store, new_id, 0, ro->deadline_ms, ro->doc, &read, e)) return false;
    if (!read.found) return true; /* ended, or rotated on, since */
    fault_point("rotate-repeated");
    snprintf(ro->rotation->new_id, sizeof ro->rotation->new_id, "%s", new_id);
    bool ok = live_on(ro, res, e);
    res->changed = false; /* by us */
    ro->rotation->repeated = ok && res->found;
    return ok;
}

/* Prepares the new id: edit, index, document. False where there is nothing to go on with: `failed` tells why. */
static bool prepare(struct redis_rotation *ro, bool *failed, struct err *e)
{
    buf_reset(ro->doc);
    *failed = false;
    if (ro->edit(ro->ctx, buf_bytes(&ro->base), ro->doc) != STORE_WRITE) return false;
    *failed = true;
    const char *user = ro->terms->user;
    if (user[0] != '\0' &&
        !user_index_put(ro->redis, user, ro->rotation->new_id, clock_wall_ms() + ro->terms->ttl_ms, ro->deadline_ms, e))
        return false;
    fault_point("rotate-indexed");
    if (!store_briefly(ro, e)) return false;
    fault_point("rotate-prepared");
    *failed = false;
    return true;
}

/* The old id has ended for the new one, which gets its full life. */
static bool finish(struct redis_rotation *ro, struct store_result *res, struct err *e)
{
    fault_point("rotate-succeeded");
    bool ok = live_on(ro, res, e);
    fault_point("rotate-done");
    res->changed = ok && res->found;
    return ok;
}

/* What the mark of a session that was rotated says; false: it says nothing of that kind. */
static bool read_mark(struct redis_rotation *ro, char new_id[IDS_TEXT_BYTES], char hash[STORE_KEY_HASH_BYTES])
{
    return sscanf(ro->mark_text, "%128s %39s %" SCNd64, new_id, hash, &ro->left_ms) == 3;
}

/* The id was gone when its turn came: by our own script, sent twice over a broken connection; by a request of our name,
 * whose answer is ours too; or for good. */
static bool find_heir(struct redis_rotation *ro, bool prepared, struct store_result *res, struct err *e)
{
    char new_id[IDS_TEXT_BYTES], hash[STORE_KEY_HASH_BYTES];
    bool rotated = read_mark(ro, new_id, hash);
    if (rotated && strcmp(new_id, ro->rotation->new_id) == 0) return finish(ro, res, e);
    if (prepared) forget_new_id(ro);
    buf_reset(ro->doc);
    if (!rotated || ro->rotation->key_hash[0] == '\0' || strcmp(hash, ro->rotation->key_hash) != 0) return true;
    return repeat(ro, new_id, res, e);
}

static bool rotate(struct redis_rotation *ro, struct store_result *res, struct err *e)
{
    bool failed, prepared = false;
    enum old old = succeed(ro, BYTES_LITERAL(""), e); /* only reads */
    while (old == OLD_LIVES) {
        fault_point("rotate-read");
        res->found = true;
        if (!prepare(ro, &failed, e)) {
            if (prepared || failed) forget_new_id(ro);
            return !failed;
        }
        prepared = true;
        old = succeed(ro, buf_bytes(&ro->base), e);
    }
    res->found = false;
    /* Unknown: Redis may have done it or not. If not, the new id ends soon by itself; if so, a repetition gets it. */
    if (old == OLD_UNKNOWN) return false;
    return old == OLD_ENDED ? finish(ro, res, e) : find_heir(ro, prepared, res, e);
}

bool redis_rotation_run(struct redis_rotation *ro, struct store_result *res, struct err *e)
{
    *res = (struct store_result){ 0 };
    ro->base = (struct buf)BUF_INIT(MOST_DOCUMENT_BYTES);
    ro->rotation->repeated = false;
    bool ok = rotate(ro, res, e);
    buf_done(&ro->base);
    return ok;
}
