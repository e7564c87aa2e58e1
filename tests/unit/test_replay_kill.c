/* The replay killed before and after each of its steps, and at random, by itself and beside others. */
#include "replay_cases.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>

/* ---- Steps at which a process can be told to die: replay.c calls these in place of what they are named after -------
 */

static void die(void)
{
    kill(getpid(), SIGKILL);
}

static int steps_left = -1; /* until this happens; below 0: it does not */
static void (*happens)(void) = die;

static bool step(bool ok)
{
    if (steps_left == 0) happens();
    steps_left--;
    return ok;
}

static bool stepping_take(struct refuge *rf, const char *id, struct refuge_row *rows, size_t most, size_t *taken,
                          int64_t deadline_ms, struct err *e)
{
    step(true);
    return step(refuge_take(rf, id, rows, most, taken, deadline_ms, e));
}

static bool stepping_settle(struct refuge *rf, struct refuge_row *rows, size_t count, int64_t deadline_ms,
                            struct err *e)
{
    step(true);
    return step(refuge_settle(rf, rows, count, deadline_ms, e));
}

static redisReply *stepping_eval_keys(struct redis *r, struct redis_script *script, size_t keys, size_t argc,
                                      const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e)
{
    step(true);
    redisReply *reply = redis_eval_keys(r, script, keys, argc, argv, deadline_ms, repeated, e);
    step(true);
    return reply;
}

static redisReply *stepping_eval(struct redis *r, struct redis_script *script, struct bytes key, size_t argc,
                                 const struct bytes *argv, int64_t deadline_ms, bool *repeated, struct err *e)
{
    step(true);
    redisReply *reply = redis_eval(r, script, key, argc, argv, deadline_ms, repeated, e);
    step(true);
    return reply;
}

#define refuge_take     stepping_take
#define refuge_settle   stepping_settle
#define redis_eval_keys stepping_eval_keys
#define redis_eval      stepping_eval
#include "replay.c"

/* ---- One kill at each step -----------------------------------------------------------------------------------------
 */

/* An outage's outcome for the id "a", and what another node does once it sees what the replay has applied. */
struct story {
    const char *name;
    const char *redis, *base, *doc,
        *next;           /* base NULL: born here; doc NULL: deleted; next: written when the replay has begun */
    bool lost;           /* Redis has lost its data */
    const char *applied; /* what Redis holds then; NULL: nothing */
    const char *answer;  /* what the other node writes on seeing it */
    const char *end;     /* what stands there in the end */
    int steps;           /* at least so many */
};

static const struct story stories[] = {
    { "unchanged", "{\"n\":1}", "{\"n\":1}", "{\"n\":2}", NULL, false, "{\"n\":2}", "{\"n\":1}", "{\"n\":1}", 8 },
    { "merged", "{\"n\":1,\"m\":2}", "{\"n\":1,\"m\":1}", "{\"n\":2,\"m\":1}", NULL, false, "{\"n\":2,\"m\":2}",
      "{\"n\":1,\"m\":1}", "{\"n\":1,\"m\":1}", 10 },
    { "born here", NULL, NULL, "{\"n\":1}", NULL, false, "{\"n\":1}", "{\"n\":0}", "{\"n\":0}", 8 },
    { "lost", NULL, "{\"n\":1}", "{\"n\":2}", NULL, true, "{\"n\":2}", "{\"n\":1}", "{\"n\":1}", 12 },
    { "ended", NULL, "{\"n\":1}", "{\"n\":2}", NULL, false, NULL, NULL, "", 10 },
    { "deleted", "{\"n\":1}", "{\"n\":0}", NULL, NULL, false, NULL, "{\"new\":1}", "{\"new\":1}", 8 },
    { "changed meanwhile", "{\"n\":1,\"m\":1}", "{\"n\":1,\"m\":1}", "{\"n\":2,\"m\":1}", "{\"n\":1,\"m\":3}", false,
      "{\"n\":2,\"m\":1}", "{\"n\":2,\"m\":1,\"x\":1}", "{\"n\":1,\"m\":3,\"x\":1}", 8 },
};

/* A process that replays "a" and dies after `steps` of them. True if it did die. */
static bool replay_and_die(int steps)
{
    int status;
    leave_files();
    pid_t pid = fork();
    if (pid == 0) {
        refuge_reopen();
        replay_reopen();
        steps_left = steps;
        _exit(replay_one(replay, "a", soon(), &err) ? 0 : 1);
    }
    waitpid(pid, &status, 0);
    assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
    refuge_reopen();
    replay_reopen();
    return WIFSIGNALED(status);
}

static void begin_story(const struct story *s)
{
    bool lost;
    freeReplyObject(redisCommand(server.admin, "FLUSHALL"));
    must(replay_check_epoch(replay, soon(), &lost, &err));
    if (s->redis != NULL) set_redis("a", s->redis);
    if (s->base == NULL)
        create_("a", s->doc);
    else if (s->doc != NULL)
        update_("a", s->base, s->doc);
    else
        delete_("a", s->base);
    if (s->lost) freeReplyObject(redisCommand(server.admin, "FLUSHALL"));
}

/* The other node answers what it sees, and only that. */
static bool answered(const struct story *s)
{
    char now[256];
    get_redis("a", now);
    bool seen = s->applied != NULL ? strcmp(now, s->applied) == 0
                                   : s->answer != NULL && redis_server_ask(&server, "EXISTS " GONE_MARK, "a") == 1;
    if (seen) set_redis("a", s->answer);
    return seen;
}

static bool run_story(const struct story *s, int steps)
{
    char now[256];
    begin_story(s);
    bool died = replay_and_die(steps), early = answered(s), dirty;
    must(refuge_is_dirty(refuge, "a", &dirty, &err));
    if (s->next != NULL && dirty) update_("a", NULL, s->next);
    one("a");
    if (!early) answered(s);
    get_redis("a", now);
    bool next_alone = s->next != NULL && strcmp(now, s->next) == 0; /* nothing of what came before it had got there */
    if (s->next == NULL || (dirty && !next_alone)) assert_string_equal(now, s->end);
    assert_int_equal(rows_now(), 0);
    return died;
}

static void a_kill_at_any_step_changes_no_result(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof stories / sizeof stories[0]; i++) {
        int steps = 0;
        while (run_story(&stories[i], steps)) steps++;
        if (steps < stories[i].steps) print_error("%s: %d steps\n", stories[i].name, steps);
        assert_true(steps >= stories[i].steps);
    }
}

static void end_in_redis(void)
{
    redis_server_ask(&server, "DEL " KEY "a");
}

/* Steps: take, look (something else is there), write. */
static void a_session_that_ends_while_it_is_merged_stays_ended(void **state)
{
    (void)state;
    set_redis("a", "{\"m\":1}");
    create_("a", "{\"n\":1}");
    happens = end_in_redis;
    steps_left = 4;
    one("a");
    happens = die;
    assert_int_equal(redis_server_ask(&server, "EXISTS " KEY "a"), 0);
    assert_int_equal(rows_now(), 0);
}

/* ---- Many kills, many replays ---------------------------------------------------------------------------------------
 */

#define SESSIONS  8
#define REPLAYERS 2
#define RUN_MS    4000

/* What the two nodes have been told is stored, in memory that all processes of the test share. */
struct ledger {
    _Atomic int ours[SESSIONS], theirs[SESSIONS];
    _Atomic bool over;
};
static struct ledger *ledger;

static void id_of(int session, char id[32])
{
    snprintf(id, 32, "s-%d", session);
}

static enum store_verdict put_ours(void *ctx, struct bytes doc, struct buf *out)
{
    char text[256];
    snprintf(text, sizeof text, "%.*s", (int)doc.len, doc.at);
    char *n = strstr(text, "\"n\":") + 4, *rest = n + strspn(n, "0123456789");
    buf_append(out, text, (size_t)(n - text));
    buf_printf(out, "%d%s", *(int *)ctx, rest);
    return STORE_WRITE;
}

/* This node in an outage that comes and goes: it counts `n` up in the refuge. */
static void write_in_refuge(unsigned seed)
{
    for (int i = 0; !ledger->over; i++) {
        char id[32], now[256];
        int session = rand_r(&seed) % SESSIONS, next = ledger->ours[session] + 1;
        struct refuge_copy copy = { .expires_at_ms = clock_wall_ms() + LONG_MS, NULL };
        bool dirty;
        id_of(session, id);
        must(refuge_is_dirty(refuge, id, &dirty, &err));
        if (!dirty) get_redis(id, now); /* what the node's cache would hold */
        if (!dirty) copy.doc = bytes_of(now);
        must(refuge_update(refuge, id, dirty ? NULL : &copy, put_ours, &next, TERMS(LONG_MS), soon(), &res, &err));
        if (res.changed) ledger->ours[session] = next;
    }
}

/* Another node, which reaches Redis all the time: it counts `m` up there. */
static void write_in_redis(unsigned seed)
{
    while (!ledger->over) {
        char id[32];
        int session = rand_r(&seed) % SESSIONS, next = ledger->theirs[session] + 1;
        id_of(session, id);
        redisReply *r =
            redisCommand(server.admin, "EVAL %s 1 " KEY "%s %d",
                         "local d = string.gsub(redis.call('GET', KEYS[1]), '\"m\":%d+', '\"m\":' .. ARGV[1]) "
                         "return redis.call('SET', KEYS[1], d, 'KEEPTTL')",
                         id, next);
        if (r->type == REDIS_REPLY_STATUS) ledger->theirs[session] = next;
        freeReplyObject(r);
    }
}

static void replay_for_ever(unsigned seed)
{
    bool more;
    char id[32];
    for (;;) {
        id_of(rand_r(&seed) % SESSIONS, id);
        if (rand_r(&seed) % 2)
            replay_step(replay, 3, soon(), &more, &err);
        else
            replay_one(replay, id, soon(), &err);
    }
}

static pid_t start(void (*run)(unsigned seed), unsigned seed)
{
    pid_t parent = getpid(), pid = fork();
    if (pid != 0) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(1);
    server.admin = redisConnectUnix(server.path);
    refuge_reopen();
    replay_reopen();
    run(seed);
    _exit(0);
}

static void replays_that_are_killed_at_random_lose_and_repeat_nothing(void **state)
{
    (void)state;
    char id[32], expected[256];
    pid_t replayers[REPLAYERS];
    unsigned seed = 1;
    int kills = 0, updates = 0;
    ledger = mmap(NULL, sizeof *ledger, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < SESSIONS; i++) {
        id_of(i, id);
        set_redis(id, "{\"n\":0,\"m\":0,\"rest\":\"stays\"}");
    }
    leave_files();
    pid_t writers[] = { start(write_in_refuge, 2), start(write_in_redis, 3) };
    for (int i = 0; i < REPLAYERS; i++) replayers[i] = start(replay_for_ever, seed++);
    for (int64_t end_ms = clock_mono_ms() + RUN_MS; clock_mono_ms() < end_ms; kills++) {
        poll(NULL, 0, 5 + (int)(rand_r(&seed) % 40));
        pid_t *victim = &replayers[rand_r(&seed) % REPLAYERS];
        kill(*victim, SIGKILL);
        waitpid(*victim, NULL, 0);
        *victim = start(replay_for_ever, seed++);
    }
    ledger->over = true;
    for (int i = 0; i < 2; i++) {
        int status;
        waitpid(writers[i], &status, 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    for (int i = 0; i < REPLAYERS; i++) {
        kill(replayers[i], SIGKILL);
        waitpid(replayers[i], NULL, 0);
    }
    refuge_reopen();
    replay_reopen();
    all();
    for (int i = 0; i < SESSIONS; i++) {
        id_of(i, id);
        snprintf(expected, sizeof expected, "{\"n\":%d,\"m\":%d,\"rest\":\"stays\"}", ledger->ours[i],
                 ledger->theirs[i]);
        assert_redis(id, expected);
        updates += ledger->ours[i];
    }
    print_message("           %d kills, %d updates in the refuge\n", kills, updates);
    assert_true(kills > 20 && updates > 100);
    munmap(ledger, sizeof *ledger);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_kill_at_any_step_changes_no_result, replay_begin, replay_end),
        cmocka_unit_test_setup_teardown(a_session_that_ends_while_it_is_merged_stays_ended, replay_begin, replay_end),
        cmocka_unit_test_setup_teardown(replays_that_are_killed_at_random_lose_and_repeat_nothing, replay_begin,
                                        replay_end),
    };
    return cmocka_run_group_tests(tests, NULL, replay_done);
}
