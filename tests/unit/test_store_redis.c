#include "store_redis.h"

#include "metrics.h"
#include "redis_rotation.h"
#include "redis_server.h"
#include "store_cases.h"
#include "task.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct redis_server server;
static struct pollset *pollset;

#define KEY "hyperpage:session:"

static int64_t timeout_ms = 5000;

static void *open_with(struct pollset *ps)
{
    struct store_redis_options o = { .connection = { .timeout_ms = timeout_ms, .client_name = "tested", .pollset = ps },
                                     .most_events = 1000 };
    struct redis_address *at = &o.connection.url.servers[0];
    snprintf(at->host, sizeof at->host, "%s", server.path);
    return store_redis_open(&o);
}

static void *open_store(void)
{
    return open_with(NULL);
}

static struct store_case shared = { .ops = &store_redis_ops, .open = open_store };

static int start_server(void **state)
{
    if (!redis_server_start(&server)) return 1;
    shared.self = open_store();
    *state = &shared;
    return shared.self == NULL;
}

static int stop_server(void **state)
{
    (void)state;
    store_redis_ops.close(shared.self);
    redis_server_done(&server);
    return 0;
}

static long long calls_of(const char *command)
{
    char text[64];
    snprintf(text, sizeof text, "cmdstat_%s:calls=", command);
    redisReply *info = redisCommand(server.admin, "INFO commandstats");
    const char *at = strstr(info->str, text);
    long long calls = at ? atoll(at + strlen(text)) : 0;
    freeReplyObject(info);
    return calls;
}

static void forget_calls(void)
{
    freeReplyObject(redisCommand(server.admin, "CONFIG RESETSTAT"));
}

static void put(const char *id, const char *doc)
{
    redis_server_ask(&server, "SET " KEY "%s %s", id, doc);
}

/* ---- What stands in Redis -------------------------------------------------------------------------------------------
 */

/* Redis stood still for longer than the new id's short life, and now does what it was told before. */
static void a_rotation_whose_turn_comes_too_late_ends_nothing(void **state)
{
    (void)state;
#define GONE_LATE "hyperpage:gone:{" KEY "late}"
#define END_LATE  "EVAL %s 2 " KEY "late " GONE_LATE " {} heir 86400000 60000 %lld"
    long long now_ms = clock_wall_ms();
    put("late", "{}");
    assert_int_equal(redis_server_ask(&server, END_LATE, redis_rotation_script, now_ms - 1000), -1);
    assert_int_equal(redis_server_ask(&server, "EXISTS " KEY "late"), 1);
    assert_int_equal(redis_server_ask(&server, "EXISTS " GONE_LATE), 0);
    redis_server_ask(&server, END_LATE, redis_rotation_script, now_ms + 60000);
    assert_int_equal(redis_server_ask(&server, "EXISTS " KEY "late"), 0);
    assert_int_equal(redis_server_ask(&server, "EXISTS " GONE_LATE), 1);
}

static void a_session_is_a_plain_string_with_a_life(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    freeReplyObject(redisCommand(server.admin, "FLUSHALL"));
    create_(c, id, BYTES_LITERAL("{\"a\":1}"), LONG_MS);
    assert_int_equal(redis_server_ask(&server, "DBSIZE"), 1); /* and nothing beside it */
    redisReply *reply = redisCommand(server.admin, "GET " KEY "%s", id);
    assert_string_equal(reply->str, "{\"a\":1}");
    freeReplyObject(reply);
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "%s", id), LONG_MS - 5000, LONG_MS);
    delete_(c, id);
    assert_int_equal(redis_server_ask(&server, "DBSIZE"), 1); /* the gone-mark */
    assert_in_range(redis_server_ask(&server, "PTTL hyperpage:gone:{" KEY "%s}", id), STORE_GONE_MS - 5000,
                    STORE_GONE_MS);
}

static void a_life_is_prolonged_and_never_shortened(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{}");
    create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    struct store_result res = update_(c, id, follow_script, &s, 1000);
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "%s", id), LONG_MS - 5000, LONG_MS);
    assert_in_range(res.expires_at_ms - clock_wall_ms(), LONG_MS - 5000, LONG_MS + 1000);
    update_(c, id, follow_script, &s, 2 * LONG_MS);
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "%s", id), 2 * LONG_MS - 5000, 2 * LONG_MS);
    delete_(c, id);
    buf_done(&s.seen);
}

static void a_session_without_a_life_gets_one_at_its_next_write(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script keep = SCRIPT(STORE_KEEP, ""), write = SCRIPT(STORE_WRITE, "{}");
    put(id, "{\"old\":1}");
    assert_int_equal(redis_server_ask(&server, "PTTL " KEY "%s", id), -1);
    update_(c, id, follow_script, &keep, LONG_MS);
    assert_int_equal(redis_server_ask(&server, "PTTL " KEY "%s", id), -1);
    update_(c, id, follow_script, &write, LONG_MS);
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "%s", id), LONG_MS - 5000, LONG_MS);
    delete_(c, id);
    buf_done(&keep.seen);
    buf_done(&write.seen);
}

static void a_key_of_another_type_is_reported_and_kept(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{}");
    struct buf doc = BUF_INIT(1024);
    struct store_result res;
    struct err e;
    redis_server_ask(&server, "RPUSH " KEY "%s a b", id);
    assert_false(c->ops->get(c->self, id, 0, soon(), &doc, &res, &e));
    assert_int_equal(e.kind, ERR_CORRUPT);
    assert_false(c->ops->update(c->self, id, follow_script, &s, TERMS(LONG_MS), soon(), &res, &e));
    assert_int_equal(e.kind, ERR_CORRUPT);
    assert_int_equal(s.calls, 0);
    assert_true(c->ops->create(c->self, id, BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e));
    assert_true(res.found && !res.changed);
    assert_false(c->ops->del(c->self, id, soon(), NULL, &res, &e));
    assert_int_equal(e.kind, ERR_CORRUPT);
    assert_int_equal(redis_server_ask(&server, "LLEN " KEY "%s", id), 2);
    redis_server_ask(&server, "DEL " KEY "%s", id);
    buf_done(&s.seen);
}

/* The key turns into a list between the read and the write. */
static enum store_verdict turn_into_list(void *ctx, struct bytes doc, struct buf *out)
{
    (void)doc;
    redis_server_ask(&server, "DEL " KEY "%s", (const char *)ctx);
    redis_server_ask(&server, "RPUSH " KEY "%s a", (const char *)ctx);
    buf_puts(out, "{}");
    return STORE_WRITE;
}

static void a_key_that_changes_its_type_under_an_update_is_kept(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct store_result res;
    struct err e;
    put(id, "{}");
    assert_false(c->ops->update(c->self, id, turn_into_list, (void *)id, TERMS(LONG_MS), soon(), &res, &e));
    assert_int_equal(e.kind, ERR_CORRUPT);
    assert_int_equal(redis_server_ask(&server, "LLEN " KEY "%s", id), 1);
    redis_server_ask(&server, "DEL " KEY "%s", id);
}

/* Somebody else writes between the read and the write, the first `times`. */
struct rival {
    const char *id;
    int times, calls;
};

static enum store_verdict be_overtaken(void *ctx, struct bytes doc, struct buf *out)
{
    struct rival *r = ctx;
    if (r->calls++ < r->times) redis_server_ask(&server, "SET " KEY "%s rival-%d", r->id, r->calls);
    buf_add(out, doc);
    buf_puts(out, "+mine");
    return STORE_WRITE;
}

static void an_overtaken_update_is_made_again_on_what_stands_there(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct rival r = { .id = id, .times = 3 };
    put(id, "first");
    forget_calls();
    assert_true(update_(c, id, be_overtaken, &r, LONG_MS).changed);
    assert_int_equal(r.calls, 4);
    assert_holds(c, id, BYTES_LITERAL("rival-3+mine"));
    assert_int_equal(calls_of("evalsha"), 4); /* a refused write brings what stands there: no read of its own */
    delete_(c, id);
}

static void an_update_that_is_overtaken_for_ever_ends_at_its_deadline(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct rival r = { .id = id, .times = INT32_MAX };
    struct store_result res;
    struct err e = { 0 };
    put(id, "first");
    int64_t began_ms = clock_mono_ms();
    assert_false(c->ops->update(c->self, id, be_overtaken, &r, TERMS(LONG_MS), clock_mono_ms() + 50, &res, &e));
    assert_int_equal(e.kind, ERR_UNAVAILABLE);
    assert_in_range(clock_mono_ms() - began_ms, 50, 1000);
    delete_(c, id);
}

static enum store_verdict delete_under_it(void *ctx, struct bytes doc, struct buf *out)
{
    (void)doc;
    redis_server_ask(&server, "DEL " KEY "%s", (const char *)ctx);
    buf_puts(out, "back from the dead");
    return STORE_WRITE;
}

static void a_session_deleted_under_an_update_stays_gone(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    put(id, "{}");
    struct store_result res = update_(c, id, delete_under_it, (void *)id, LONG_MS);
    assert_false(res.found || res.changed);
    assert_false(is_there(c, id));
}

/* ---- Broken connections ---------------------------------------------------------------------------------------------
 */

/* Stands between the store and Redis. Armed, it lets one more command through and closes both ways in place of the
 * answer: Redis has done it, and the store cannot know. */
static pid_t proxy_pid;
static volatile int *armed;

static void forward(int client, int redis_fd)
{
    char chunk[65536];
    struct pollfd fds[] = { { .fd = client, .events = POLLIN }, { .fd = redis_fd, .events = POLLIN } };
    for (bool open = true; open && poll(fds, 2, -1) > 0;) {
        for (int from = 0; from < 2 && open; from++) {
            if (fds[from].revents == 0) continue;
            ssize_t n = recv(fds[from].fd, chunk, sizeof chunk, 0);
            open = n > 0 && !(from == 1 && *armed) && send(fds[!from].fd, chunk, (size_t)n, MSG_NOSIGNAL) == n;
            if (from == 1) *armed = 0;
        }
    }
}

static struct store_case open_behind_proxy(void)
{
    struct store_redis_options o = { .connection = { .timeout_ms = 5000, .client_name = "tested" },
                                     .most_events = 1000 };
    struct redis_address *at = &o.connection.url.servers[0];
    struct sockaddr_un address = { .sun_family = AF_UNIX }, to = { .sun_family = AF_UNIX };
    snprintf(at->host, sizeof at->host, "%s/proxy", server.dir);
    snprintf(address.sun_path, sizeof address.sun_path, "%s/proxy", server.dir);
    snprintf(to.sun_path, sizeof to.sun_path, "%s", server.path);
    armed = mmap(NULL, sizeof *armed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 8), 0);
    proxy_pid = fork();
    if (proxy_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) { /* one connection at a time, as the store has */
            int client = accept(listener, NULL, NULL), redis_fd = socket(AF_UNIX, SOCK_STREAM, 0);
            if (connect(redis_fd, (struct sockaddr *)&to, sizeof to) != 0) _exit(1);
            forward(client, redis_fd);
            close(client);
            close(redis_fd);
        }
    }
    close(listener);
    struct store_case c = { .ops = &store_redis_ops, .self = store_redis_open(&o) };
    assert_false(is_there(&c, "warm-up")); /* the greeting is through */
    return c;
}

static void close_behind_proxy(struct store_case *c)
{
    char path[64];
    snprintf(path, sizeof path, "%s/proxy", server.dir);
    c->ops->close(c->self);
    kill(proxy_pid, SIGKILL);
    waitpid(proxy_pid, NULL, 0);
    munmap((void *)armed, sizeof *armed);
    unlink(path);
}

/* Arms the proxy once the update has read, so that it is the write whose answer is lost. */
static enum store_verdict write_into_the_dark(void *ctx, struct bytes doc, struct buf *out)
{
    enum store_verdict verdict = *(enum store_verdict *)ctx;
    *armed = 1;
    if (verdict == STORE_WRITE) {
        buf_add(out, doc);
        buf_puts(out, "+once");
    }
    return verdict;
}

static void a_write_whose_answer_is_lost_is_made_once_and_acknowledged(void **state)
{
    (void)state;
    struct store_case c = open_behind_proxy();
    const char *id = new_id();
    enum store_verdict write = STORE_WRITE, drop = STORE_DELETE;
    *armed = 1;
    struct store_result res = create_(&c, id, BYTES_LITERAL("doc"), LONG_MS);
    assert_true(res.changed && !res.found); /* what stands there is ours: the id was not taken */
    res = update_(&c, id, write_into_the_dark, &write, LONG_MS);
    assert_true(res.found && res.changed);
    assert_holds(&c, id, BYTES_LITERAL("doc+once"));
    *armed = 1;
    res = expire_(&c, id, LONG_MS * 2, false);
    assert_true(res.found && res.changed);
    assert_lives(&c, id, LONG_MS * 2);
    res = update_(&c, id, write_into_the_dark, &drop, LONG_MS);
    assert_true(res.found && res.changed);
    assert_false(is_there(&c, id));
    create_(&c, id, BYTES_LITERAL("doc"), LONG_MS);
    *armed = 1;
    assert_true(delete_(&c, id).found);
    assert_false(is_there(&c, id));
    close_behind_proxy(&c);
}

static void an_id_that_was_taken_stays_so_when_the_answer_is_lost(void **state)
{
    struct store_case *direct = *state, c = open_behind_proxy();
    const char *id = new_id();
    create_(direct, id, BYTES_LITERAL("theirs"), LONG_MS);
    *armed = 1;
    struct store_result res = create_(&c, id, BYTES_LITERAL("ours"), LONG_MS);
    assert_true(res.found && !res.changed);
    assert_holds(direct, id, BYTES_LITERAL("theirs"));
    delete_(direct, id);
    close_behind_proxy(&c);
}

static void scripts_survive_a_restart_of_redis(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct script s = SCRIPT(STORE_WRITE, "{\"b\":2}");
    create_(c, id, BYTES_LITERAL("{}"), LONG_MS);
    update_(c, id, follow_script, &s, LONG_MS);
    redis_server_kill(&server);
    assert_true(redis_server_start(&server));
    put(id, "{}");
    assert_true(update_(c, id, follow_script, &s, LONG_MS).changed);
    redis_server_ask(&server, "SCRIPT FLUSH");
    assert_true(update_(c, id, follow_script, &s, LONG_MS).changed);
    assert_holds(c, id, BYTES_LITERAL("{\"b\":2}"));
    delete_(c, id);
    buf_done(&s.seen);
}

static void a_store_without_redis_is_unavailable(void **state)
{
    struct store_case *c = *state;
    struct script s = SCRIPT(STORE_WRITE, "{}");
    struct buf doc = BUF_INIT(64);
    struct store_result res;
    struct err e[9] = { { 0 } };
    struct store_rotation rotation = { .new_id = "new" };
    struct store_heal heal = { 0 };
    int64_t n, began_ms = clock_mono_ms();
    redis_server_kill(&server);
    assert_false(c->ops->get(c->self, "id", 0, soon(), &doc, &res, &e[0]));
    assert_false(c->ops->create(c->self, "id", BYTES_LITERAL("{}"), TERMS(LONG_MS), soon(), &res, &e[1]));
    assert_false(c->ops->update(c->self, "id", follow_script, &s, TERMS(LONG_MS), soon(), &res, &e[2]));
    assert_false(c->ops->del(c->self, "id", soon(), NULL, &res, &e[3]));
    assert_false(c->ops->count(c->self, soon(), &n, &e[4]));
    assert_false(store_redis_ready(c->self, soon(), &e[5]));
    assert_false(c->ops->expire(c->self, "id", LONG_MS, false, soon(), &res, &e[6]));
    assert_false(c->ops->heal(c->self, &heal, soon(), &e[7]));
    assert_false(
        c->ops->rotate(c->self, "id", follow_script, &s, TERMS(LONG_MS), &rotation, soon(), &doc, &res, &e[8]));
    for (int i = 0; i < 9; i++) assert_int_equal(e[i].kind, ERR_UNAVAILABLE);
    assert_in_range(clock_mono_ms() - began_ms, 0, 1000);
    assert_true(redis_server_start(&server));
    int64_t give_up_ms = soon();
    while (!store_redis_ready(c->self, soon(), &e[5]) && clock_mono_ms() < give_up_ms) usleep(1000);
    assert_false(is_there(c, "id"));
}

/* ---- Tasks ----------------------------------------------------------------------------------------------------------
 */

/* One request, as a worker's task makes it: marks a cell of the row that the document is, keeps or deletes it. */
struct ask {
    const char *id;
    enum store_verdict verdict;
    int cell;
    int64_t ttl_ms, deadline_ms;
    bool ok;
    struct store_result res;
    struct err err;
};

static void *in_tasks; /* the store that tasks use */

static enum store_verdict decide(void *ctx, struct bytes doc, struct buf *out)
{
    struct ask *a = ctx;
    if (a->verdict != STORE_WRITE) return a->verdict;
    buf_add(out, doc);
    out->data[a->cell] = 'x';
    return STORE_WRITE;
}

static void run_ask(void *arg)
{
    struct ask *a = arg;
    a->ok = store_redis_ops.update(in_tasks, a->id, decide, a, TERMS(a->ttl_ms), a->deadline_ms, &a->res, &a->err);
}

static void run_rounds(void)
{
    while (task_count() > 0) {
        int64_t now_ms = clock_mono_ms(), due_ms = task_expire(now_ms);
        int64_t wait_ms = due_ms - now_ms < 1000 ? due_ms - now_ms : 1000;
        pollset_wait(pollset, task_any_ready() ? 0 : (int)wait_ms);
        task_run_ready();
        store_redis_ops.flush(in_tasks);
    }
}

static int begin_tasks(void **state)
{
    (void)state;
    struct err e;
    pollset = pollset_new(&e);
    in_tasks = open_with(pollset);
    return in_tasks == NULL;
}

static int end_tasks(void **state)
{
    (void)state;
    store_redis_ops.close(in_tasks);
    pollset_free(pollset);
    task_free_stacks(0);
    return task_count() != 0;
}

#define MANY 200

static void begin_asks(struct ask *asks, int n, const char *id)
{
    for (int i = 0; i < n; i++)
        asks[i] = (struct ask){ .id = id, .verdict = STORE_WRITE, .cell = i, .ttl_ms = LONG_MS, .deadline_ms = soon() };
}

static void start_asks(struct ask *asks, int n)
{
    for (int i = 0; i < n; i++) task_start(run_ask, &asks[i]);
}

static void create_row(struct store_case *c, const char *id, size_t cells)
{
    char row[1024];
    memset(row, '.', sizeof row);
    create_(c, id, (struct bytes){ row, cells }, LONG_MS);
}

static void assert_row_is_full(struct store_case *c, const char *id, size_t cells)
{
    char row[1024];
    memset(row, 'x', sizeof row);
    assert_holds(c, id, (struct bytes){ row, cells });
}

static void tasks_that_update_one_session_share_few_writes(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    static struct ask asks[MANY];
    create_row(c, id, MANY);
    begin_asks(asks, MANY, id);
    start_asks(asks, MANY);
    forget_calls();
    run_rounds();
    for (int i = 0; i < MANY; i++) assert_true(asks[i].ok && asks[i].res.found && asks[i].res.changed);
    assert_row_is_full(c, id, MANY);
    assert_true(calls_of("evalsha") <= 3);     /* the first one's, and that of all who came meanwhile */
    assert_true(calls_of("get") <= 3 + 1 + 3); /* theirs, this check's and the scripts' own */
    delete_(c, id);
}

static void tasks_of_different_sessions_do_not_wait_for_each_other(void **state)
{
    struct store_case *c = *state;
    static struct ask asks[MANY];
    static char ids[MANY][64];
    for (int i = 0; i < MANY; i++) {
        snprintf(ids[i], sizeof ids[i], "%s", new_id());
        create_row(c, ids[i], 1);
        begin_asks(&asks[i], 1, ids[i]);
    }
    start_asks(asks, MANY);
    run_rounds();
    for (int i = 0; i < MANY; i++) {
        assert_true(asks[i].ok && asks[i].res.changed);
        assert_row_is_full(c, ids[i], 1);
        delete_(c, ids[i]);
    }
}

static pid_t mark_from_another_process(struct store_case *c, const char *id, int first, int n)
{
    (void)c;
    pid_t pid = fork();
    if (pid != 0) return pid;
    struct store_case own = { .ops = &store_redis_ops, .self = open_store() };
    for (int i = 0; i < n; i++) {
        int cell = first + i;
        struct store_result res;
        struct err e;
        if (!own.ops->update(own.self, id, mark_cell, &cell, TERMS(LONG_MS), soon(), &res, &e) || !res.changed)
            _exit(1);
    }
    own.ops->close(own.self);
    _exit(0);
}

static void nothing_is_lost_between_tasks_and_another_process(void **state)
{
    struct store_case *c = *state;
    char id[64];
    int status;
    static struct ask asks[MANY];
    snprintf(id, sizeof id, "%s", new_id());
    create_row(c, id, 2 * MANY);
    pid_t pid = mark_from_another_process(c, id, MANY, MANY);
    begin_asks(asks, MANY, id);
    for (int i = 0; i < MANY; i += 10) { /* ten a round, so that there are many writes to get between */
        start_asks(asks + i, 10);
        run_rounds();
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    for (int i = 0; i < MANY; i++) assert_true(asks[i].ok && asks[i].res.changed);
    assert_row_is_full(c, id, 2 * MANY);
    delete_(c, id);
}

/* The first leads alone; the others meet in one batch behind it, in their order. */
static void a_delete_in_a_batch_ends_the_session_for_who_comes_behind(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct ask asks[5];
    create_row(c, id, 5);
    begin_asks(asks, 5, id);
    asks[2].verdict = STORE_DELETE;
    start_asks(asks, 5);
    run_rounds();
    for (int i = 0; i < 5; i++) assert_true(asks[i].ok);
    assert_true(asks[0].res.changed && asks[1].res.changed);
    assert_true(asks[2].res.found && asks[2].res.changed);
    assert_false(asks[3].res.found || asks[3].res.changed || asks[4].res.found || asks[4].res.changed);
    assert_false(is_there(c, id));
}

static void one_who_keeps_gets_no_change_from_the_others_of_its_batch(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct ask asks[4];
    create_row(c, id, 4);
    begin_asks(asks, 4, id);
    asks[1].verdict = asks[2].verdict = STORE_KEEP;
    start_asks(asks, 4);
    run_rounds();
    for (int i = 0; i < 4; i++) assert_true(asks[i].ok && asks[i].res.found);
    assert_true(asks[0].res.changed && !asks[1].res.changed && !asks[2].res.changed && asks[3].res.changed);
    assert_holds(c, id, BYTES_LITERAL("x..x"));
    delete_(c, id);
}

static void the_longest_life_of_a_batch_counts(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct ask asks[4];
    create_(c, id, BYTES_LITERAL("...."), 1000);
    begin_asks(asks, 4, id);
    for (int i = 0; i < 4; i++) asks[i].ttl_ms = i == 2 ? LONG_MS : 2000;
    start_asks(asks, 4);
    run_rounds();
    assert_in_range(redis_server_ask(&server, "PTTL " KEY "%s", id), LONG_MS - 5000, LONG_MS);
    assert_in_range(asks[3].res.expires_at_ms - clock_wall_ms(), LONG_MS - 5000, LONG_MS + 1000);
    delete_(c, id);
}

static void all_of_a_batch_learn_that_the_session_is_gone(void **state)
{
    (void)state;
    const char *id = new_id();
    struct ask asks[10];
    begin_asks(asks, 10, id);
    start_asks(asks, 10);
    run_rounds();
    for (int i = 0; i < 10; i++) assert_true(asks[i].ok && !asks[i].res.found && !asks[i].res.changed);
}

/* One whose time ends while it waits behind a stopped Redis leaves; the others are served when it goes on. */
static void one_whose_time_is_over_leaves_the_queue(void **state)
{
    struct store_case *c = *state;
    const char *id = new_id();
    struct ask asks[4];
    create_row(c, id, 4);
    begin_asks(asks, 4, id);
    asks[2].deadline_ms = clock_mono_ms() + 30;
    kill(server.pid, SIGSTOP);
    start_asks(asks, 4);
    int64_t go_on_ms = clock_mono_ms() + 60;
    while (task_count() == 4 || clock_mono_ms() < go_on_ms) {
        assert_true(clock_mono_ms() < go_on_ms + 5000);
        task_expire(clock_mono_ms());
        pollset_wait(pollset, task_any_ready() ? 0 : 5);
        task_run_ready();
        store_redis_ops.flush(in_tasks);
    }
    kill(server.pid, SIGCONT);
    run_rounds();
    assert_false(asks[2].ok);
    assert_int_equal(asks[2].err.kind, ERR_UNAVAILABLE);
    for (int i = 0; i < 4; i++) assert_true(i == 2 || (asks[i].ok && asks[i].res.changed));
    assert_holds(c, id, BYTES_LITERAL("xx.x"));
    delete_(c, id);
}

/* Whoever comes behind a write that is not answered learns of it, and does not wait as long once more. */
static void who_waits_behind_another_does_not_try_a_silent_redis_again(void **state)
{
    struct store_case *c = *state;
    static _Atomic uint64_t counters[METRICS_COUNTERS];
    const char *id = new_id();
    struct ask asks[3];
    store_redis_ops.close(in_tasks);
    timeout_ms = 200;
    in_tasks = open_with(pollset);
    timeout_ms = 5000;
    create_row(c, id, 3);
    begin_asks(asks, 3, id);
    start_asks(asks, 1);
    run_rounds(); /* so it is connected */
    assert_true(asks[0].ok);
    metrics_use(counters);
    kill(server.pid, SIGSTOP);
    start_asks(&asks[1], 2);
    run_rounds();
    kill(server.pid, SIGCONT);
    metrics_use(NULL);
    for (int i = 1; i < 3; i++) assert_true(!asks[i].ok && asks[i].err.away);
    assert_int_equal(counters[METRIC_redis_timeouts], 1);
    assert_int_equal(counters[METRIC_redis_connect_errors], 0);
    delete_(c, id);
}

static void a_batch_without_redis_fails_and_leaves_nobody_waiting(void **state)
{
    (void)state;
    static struct ask asks[MANY];
    begin_asks(asks, MANY, "id");
    redis_server_kill(&server);
    start_asks(asks, MANY);
    run_rounds();
    for (int i = 0; i < MANY; i++) {
        assert_false(asks[i].ok);
        assert_int_equal(asks[i].err.kind, ERR_UNAVAILABLE);
    }
    assert_true(redis_server_start(&server));
}

#define IN_TASKS(f) cmocka_unit_test_setup_teardown(f, begin_tasks, end_tasks)

int main(void)
{
    const struct CMUnitTest tests[] = {
        STORE_CASES,
        cmocka_unit_test(a_rotation_whose_turn_comes_too_late_ends_nothing),
        cmocka_unit_test(a_session_is_a_plain_string_with_a_life),
        cmocka_unit_test(a_life_is_prolonged_and_never_shortened),
        cmocka_unit_test(a_session_without_a_life_gets_one_at_its_next_write),
        cmocka_unit_test(a_key_of_another_type_is_reported_and_kept),
        cmocka_unit_test(a_key_that_changes_its_type_under_an_update_is_kept),
        cmocka_unit_test(an_overtaken_update_is_made_again_on_what_stands_there),
        cmocka_unit_test(an_update_that_is_overtaken_for_ever_ends_at_its_deadline),
        cmocka_unit_test(a_session_deleted_under_an_update_stays_gone),
        cmocka_unit_test(a_write_whose_answer_is_lost_is_made_once_and_acknowledged),
        cmocka_unit_test(an_id_that_was_taken_stays_so_when_the_answer_is_lost),
        cmocka_unit_test(scripts_survive_a_restart_of_redis),
        cmocka_unit_test(a_store_without_redis_is_unavailable),
        IN_TASKS(tasks_that_update_one_session_share_few_writes),
        IN_TASKS(tasks_of_different_sessions_do_not_wait_for_each_other),
        IN_TASKS(nothing_is_lost_between_tasks_and_another_process),
        IN_TASKS(a_delete_in_a_batch_ends_the_session_for_who_comes_behind),
        IN_TASKS(one_who_keeps_gets_no_change_from_the_others_of_its_batch),
        IN_TASKS(the_longest_life_of_a_batch_counts),
        IN_TASKS(all_of_a_batch_learn_that_the_session_is_gone),
        IN_TASKS(one_whose_time_is_over_leaves_the_queue),
        IN_TASKS(who_waits_behind_another_does_not_try_a_silent_redis_again),
        IN_TASKS(a_batch_without_redis_fails_and_leaves_nobody_waiting),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
