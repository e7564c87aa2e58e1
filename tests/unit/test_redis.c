#include "redis.h"

#include "clock.h"
#include "mem.h"
#include "redis_server.h"
#include "task.h"

#include <poll.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/un.h>

static struct redis_server server;
static struct pollset *pollset; /* NULL in plain code */
static struct redis *redis;
static struct redis_options options;
static struct err err;
static bool repeated;

static struct redis_script script_get = { .text = "return redis.call('GET', KEYS[1])" };

/* ---- Plain and in a task: the same cases ---------------------------------------------------------------------------
 */

struct scene {
    void (*play)(void);
};

static void open_redis(void)
{
    err = (struct err){ .kind = ERR_NONE };
    redis = redis_open(&options);
    redis_add_scripts(redis, &script_get, 1);
}

/* For a case that wants another one than the scene began with. */
static void reopen_redis(const struct redis_options *o)
{
    redis_close(redis);
    options = *o;
    open_redis();
}

static void use_server(void)
{
    options = (struct redis_options){ .timeout_ms = 2000, .client_name = "tested", .pollset = pollset };
    snprintf(options.url.servers[0].host, sizeof options.url.servers[0].host, "%s", server.path);
}

static void begin_scene(void)
{
    use_server();
    open_redis();
}

static void play_plain(void **state)
{
    struct scene *s = *state;
    pollset = NULL;
    begin_scene();
    s->play();
    redis_close(redis);
}

static void play_scene(void *arg)
{
    ((struct scene *)arg)->play();
}

/* As a worker's loop does. */
static void run_rounds(void)
{
    while (task_count() > 0) {
        int64_t now_ms = clock_mono_ms(), due_ms = task_expire(now_ms);
        int64_t wait_ms = due_ms - now_ms < 1000 ? due_ms - now_ms : 1000;
        pollset_wait(pollset, task_any_ready() ? 0 : (int)wait_ms);
        task_run_ready();
        redis_flush(redis);
    }
}

static void play_in_task(void **state)
{
    pollset = pollset_new(&err);
    assert_non_null(pollset);
    begin_scene();
    task_start(play_scene, *state);
    run_rounds();
    redis_close(redis);
    pollset_free(pollset);
    task_free_stacks(0);
}

static int64_t in_ms(int64_t ms)
{
    return clock_mono_ms() + ms;
}

#define MOST_WORDS 8

/* Words separated by blanks. */
static redisReply *call_by(int64_t deadline_ms, const char *command)
{
    struct bytes argv[MOST_WORDS];
    size_t argc = 0;
    for (const char *c = command; *c != '\0' && argc < MOST_WORDS; argc++) {
        argv[argc] = (struct bytes){ c, strcspn(c, " ") };
        c += argv[argc].len + strspn(c + argv[argc].len, " ");
    }
    err = (struct err){ .kind = ERR_NONE };
    repeated = false;
    return redis_call(redis, REDIS_NO_KEY, argc, argv, deadline_ms, &repeated, &err);
}

static void must_answer(const char *command, int type, const char *text)
{
    redisReply *reply = call_by(in_ms(5000), command);
    if (reply == NULL) print_error("%s: %s\n", command, err.text);
    assert_non_null(reply);
    assert_int_equal(reply->type, type);
    if (text != NULL) assert_string_equal(reply->str, text);
    freeReplyObject(reply);
}

static void must_fail(const char *command, enum err_kind kind, const char *text)
{
    assert_null(call_by(in_ms(5000), command));
    assert_int_equal(err.kind, kind);
    if (strncmp(err.text, text, strlen(text)) != 0) assert_string_equal(err.text, text);
}

static long long stat_of(const char *command)
{
    redisReply *reply = call_by(in_ms(5000), command);
    assert_non_null(reply);
    assert_int_equal(reply->type, REDIS_REPLY_INTEGER);
    long long n = reply->integer;
    freeReplyObject(reply);
    return n;
}

/* Is `text` in what the server answers to `command`? */
static bool server_says(const char *command, const char *text)
{
    redisReply *reply = redisCommand(server.admin, command);
    assert_true(reply != NULL && reply->str != NULL);
    bool says = strstr(reply->str, text) != NULL;
    freeReplyObject(reply);
    return says;
}

/* ---- The real server ----------------------------------------------------------------------------------------------
 */

static void commands_are_answered(void)
{
    must_answer("PING", REDIS_REPLY_STATUS, "PONG");
    must_answer("SET plain value", REDIS_REPLY_STATUS, "OK");
    must_answer("GET plain", REDIS_REPLY_STRING, "value");
    must_answer("GET nothing", REDIS_REPLY_NIL, NULL);
    assert_int_equal(stat_of("DEL plain"), 1);
    assert_true(server_says("CLIENT LIST", "name=tested"));
}

static void any_bytes_are_carried(void)
{
    char all[256];
    for (int i = 0; i < 256; i++) all[i] = (char)(255 - i);
    struct bytes set[] = { BYTES_LITERAL("SET"), { all, 256 }, { all, 0 } },
                 get[] = { BYTES_LITERAL("ECHO"), { all, 256 } };
    redisReply *reply = redis_call(redis, REDIS_NO_KEY, 3, set, in_ms(5000), NULL, &err);
    assert_non_null(reply);
    freeReplyObject(reply);
    reply = redis_call(redis, REDIS_NO_KEY, 2, get, in_ms(5000), NULL, &err);
    assert_non_null(reply);
    assert_int_equal(reply->len, 256);
    assert_memory_equal(reply->str, all, 256);
    freeReplyObject(reply);
    assert_int_equal(redis_server_ask(&server, "FLUSHALL"), -1);
}

/* Into both directions, more than any socket's buffer holds. */
static void a_command_larger_than_the_socket_buffer_is_carried(void)
{
    const size_t bytes = 12 << 20;
    char *big = mem_alloc(bytes);
    for (size_t i = 0; i < bytes; i++) big[i] = (char)(i * 31 + i / 997);
    redisReply *reply = redis_call(redis, REDIS_NO_KEY, 2, (struct bytes[]){ BYTES_LITERAL("ECHO"), { big, bytes } },
                                   in_ms(20000), NULL, &err);
    if (reply == NULL) print_error("%s\n", err.text);
    assert_non_null(reply);
    assert_int_equal(reply->len, bytes);
    assert_memory_equal(reply->str, big, bytes);
    freeReplyObject(reply);
    free(big);
    must_answer("ECHO after", REDIS_REPLY_STRING, "after");
}

static void more_than_may_wait_is_refused_and_the_next_one_served(void)
{
    const size_t bytes = (64 << 20) + 1;
    char *big = mem_alloc(bytes);
    assert_null(redis_call(redis, REDIS_NO_KEY, 2, (struct bytes[]){ BYTES_LITERAL("ECHO"), { big, bytes } },
                           in_ms(5000), NULL, &err));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    free(big);
    must_answer("ECHO after", REDIS_REPLY_STRING, "after");
}

static void error_replies_are_failures_of_their_kind(void)
{
    must_answer("RPUSH list a", REDIS_REPLY_INTEGER, NULL);
    must_fail("GET list", ERR_CORRUPT, "redis: WRONGTYPE ");
    must_fail("NOSUCHCOMMAND", ERR_UNAVAILABLE, "redis: ERR unknown command");
    assert_false(err.away);
    assert_int_equal(redis_server_ask(&server, "CONFIG SET maxmemory 1"), -1);
    must_fail("SET a b", ERR_UNAVAILABLE, "redis: OOM ");
    assert_int_equal(redis_server_ask(&server, "CONFIG SET maxmemory 0"), -1);
    assert_int_equal(redis_server_ask(&server, "REPLICAOF 127.0.0.1 1"), -1);
    must_fail("SET a b", ERR_UNAVAILABLE, "redis: READONLY ");
    assert_int_equal(redis_server_ask(&server, "REPLICAOF NO ONE"), -1);
    must_answer("DEL list", REDIS_REPLY_INTEGER, NULL);
    assert_false(repeated); /* all of it on the same connection */
}

static void a_connection_that_was_closed_is_repaired_within_the_call(void)
{
    must_answer("SET key before", REDIS_REPLY_STATUS, NULL);
    assert_false(repeated);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(redis_server_ask(&server, "CLIENT KILL TYPE normal SKIPME yes"), 1);
        must_answer("GET key", REDIS_REPLY_STRING, "before");
        must_answer("GET key", REDIS_REPLY_STRING, "before");
        assert_false(repeated);
    }
    must_answer("DEL key", REDIS_REPLY_INTEGER, NULL);
}

/* In a process of its own, since plain code waits: kills the connection that waits in BLPOP, then gives the one that
 * has come in its place what it waits for. */
static pid_t kill_the_waiting_one(void)
{
    pid_t pid = fork();
    if (pid != 0) return pid;
    redisContext *admin = redisConnectUnix(server.path);
    for (int times = 0; times < 2;) {
        redisReply *list = redisCommand(admin, "CLIENT LIST");
        char *waiting = list ? strstr(list->str, "cmd=blpop") : NULL;
        if (waiting != NULL) {
            *waiting = '\0'; /* its line begins with its id */
            char *line = strrchr(list->str, '\n');
            redisReply *reply = times++ == 0 ? redisCommand(admin, "CLIENT KILL ID %s",
                                                            strtok(strstr(line ? line : list->str, "id=") + 3, " "))
                                             : redisCommand(admin, "RPUSH queue given");
            freeReplyObject(reply);
        }
        freeReplyObject(list);
        usleep(1000);
    }
    _exit(0);
}

static void a_connection_that_is_killed_under_a_command_is_repaired(void)
{
    int status;
    must_answer("PING", REDIS_REPLY_STATUS, NULL);
    pid_t pid = kill_the_waiting_one();
    must_answer("BLPOP queue 0", REDIS_REPLY_ARRAY, NULL);
    assert_true(repeated);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

static redisReply *run_script(const char *key)
{
    err = (struct err){ .kind = ERR_NONE };
    repeated = false;
    return redis_eval(redis, &script_get, bytes_of(key), 0, NULL, in_ms(5000), &repeated, &err);
}

static void must_run_script(void)
{
    redisReply *reply = run_script("key");
    if (reply == NULL) print_error("%s\n", err.text);
    assert_non_null(reply);
    assert_string_equal(reply->str, "value");
    freeReplyObject(reply);
}

static void a_script_that_redis_has_lost_is_loaded_again(void)
{
    must_answer("SET key value", REDIS_REPLY_STATUS, NULL);
    must_run_script();
    assert_int_equal(strlen(script_get.sha), 40);
    assert_int_equal(redis_server_ask(&server, "SCRIPT FLUSH"), -1);
    must_run_script();
    assert_false(repeated);
    assert_int_equal(redis_server_ask(&server, "CONFIG RESETSTAT"), -1);
    must_run_script(); /* and it is known again */
    assert_true(server_says("INFO commandstats", "cmdstat_evalsha"));
    assert_false(server_says("INFO commandstats", "cmdstat_eval:"));
    must_answer("DEL key", REDIS_REPLY_INTEGER, NULL);
}

static void an_error_within_a_script_keeps_its_kind(void)
{
    must_answer("RPUSH key a", REDIS_REPLY_INTEGER, NULL);
    assert_null(run_script("key"));
    assert_int_equal(err.kind, ERR_CORRUPT);
    must_answer("DEL key", REDIS_REPLY_INTEGER, NULL);
}

static void the_password_must_be_right(void)
{
    struct redis_options o = options;
    must_answer("SET key value", REDIS_REPLY_STATUS, NULL);
    assert_int_equal(redis_server_ask(&server, "CONFIG SET requirepass secret"), -1);
    assert_int_equal(redis_server_ask(&server, "ACL SETUSER someone on >word ~* +@all"), -1);
    reopen_redis(&o);
    must_fail("DEL key", ERR_UNAVAILABLE, "redis: NOAUTH");
    assert_false(err.away);
    snprintf(o.url.password, sizeof o.url.password, "wrong");
    reopen_redis(&o);
    must_fail("DEL key", ERR_UNAVAILABLE, "redis: WRONGPASS");
    assert_null(strstr(err.text, "wrong user"));
    snprintf(o.url.password, sizeof o.url.password, "secret");
    reopen_redis(&o);
    must_answer("GET key", REDIS_REPLY_STRING, "value");
    snprintf(o.url.user, sizeof o.url.user, "someone");
    reopen_redis(&o);
    must_fail("DEL key", ERR_UNAVAILABLE, "redis: WRONGPASS");
    snprintf(o.url.password, sizeof o.url.password, "word");
    reopen_redis(&o);
    must_answer("ACL WHOAMI", REDIS_REPLY_STRING, "someone");
    assert_int_equal(redis_server_ask(&server, "CLIENT KILL TYPE normal SKIPME yes"), 1);
    must_answer("ACL WHOAMI", REDIS_REPLY_STRING, "someone"); /* each connection says it again */
    assert_int_equal(redis_server_ask(&server, "ACL SETUSER someone nopass"), -1);
    o.url.password[0] = '\0';
    reopen_redis(&o);
    must_answer("ACL WHOAMI", REDIS_REPLY_STRING, "someone"); /* a user without a password is still that user */
    assert_int_equal(redis_server_ask(&server, "CONFIG SET requirepass %s", ""), -1);
    assert_int_equal(redis_server_ask(&server, "ACL DELUSER someone"), 1);
    assert_int_equal(redis_server_ask(&server, "DEL key"), 1);
}

static void a_command_reaches_its_database_or_none(void)
{
    struct redis_options o = options;
    o.url.db = 3;
    reopen_redis(&o);
    must_answer("SET here value", REDIS_REPLY_STATUS, NULL);
    assert_int_equal(redis_server_ask(&server, "CLIENT KILL TYPE normal SKIPME yes"), 1);
    must_answer("GET here", REDIS_REPLY_STRING, "value");
    assert_int_equal(redis_server_ask(&server, "DBSIZE"), 0);
    must_answer("DEL here", REDIS_REPLY_INTEGER, NULL);
    o.url.db = 99;
    reopen_redis(&o);
    for (int64_t until_ms = in_ms(100); clock_mono_ms() < until_ms;)
        must_fail("SET there value", ERR_UNAVAILABLE, "redis: ERR DB index");
    assert_int_equal(redis_server_ask(&server, "DBSIZE"), 0);
}

static void a_server_that_is_away_is_said_at_once_and_found_again(void)
{
    must_answer("PING", REDIS_REPLY_STATUS, NULL);
    redis_server_kill(&server);
    int64_t began_ms = clock_mono_ms();
    for (int i = 0; i < 100; i++) must_fail("PING", ERR_UNAVAILABLE, "redis is away: ");
    assert_in_range(clock_mono_ms() - began_ms, 0, 1000);
    assert_true(redis_server_start(&server));
    began_ms = clock_mono_ms();
    redisReply *reply = NULL;
    while (reply == NULL && clock_mono_ms() - began_ms < 5000) {
        reply = call_by(in_ms(1000), "PING");
        if (reply == NULL && pollset != NULL) task_park(in_ms(5));
    }
    assert_non_null(reply);
    freeReplyObject(reply);
    assert_in_range(clock_mono_ms() - began_ms, 0, 2500); /* the longest pause is half a second */
}

static void a_command_after_its_deadline_is_not_sent(void)
{
    must_answer("DEL counter", REDIS_REPLY_INTEGER, NULL);
    assert_null(call_by(clock_mono_ms(), "INCR counter"));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    must_answer("PING", REDIS_REPLY_STATUS, NULL);
    must_answer("GET counter", REDIS_REPLY_NIL, NULL);
}

static void a_stopped_server_costs_one_timeout_and_is_found_again(void)
{
    struct redis_options o = options;
    o.timeout_ms = 100;
    reopen_redis(&o);
    must_answer("PING", REDIS_REPLY_STATUS, NULL);
    kill(server.pid, SIGSTOP);
    int64_t began_ms = clock_mono_ms();
    must_fail("PING", ERR_UNAVAILABLE, "redis did not answer within 100 ms");
    assert_true(err.away);
    assert_in_range(clock_mono_ms() - began_ms, 100, 300);
    must_fail("PING", ERR_UNAVAILABLE, "redis is away: no answer to the greeting in time");
    must_fail("PING", ERR_UNAVAILABLE, "redis is away: ");
    assert_in_range(clock_mono_ms() - began_ms, 200, 600);
    kill(server.pid, SIGCONT);
    redisReply *reply = NULL;
    for (began_ms = clock_mono_ms(); reply == NULL && clock_mono_ms() - began_ms < 5000;) {
        reply = call_by(in_ms(1000), "ECHO back");
        if (reply == NULL && pollset != NULL) task_park(in_ms(5));
    }
    assert_non_null(reply);
    assert_string_equal(reply->str, "back");
    freeReplyObject(reply);
}

/* ---- Many tasks on one connection -----------------------------------------------------------------------------------
 */

#define MANY 300

struct caller {
    int number, asks;
    int right, wrong, failed;
    int64_t deadline_ms; /* from the start of each call */
};

static void ask_for_own_number(void *arg)
{
    struct caller *c = arg;
    for (int i = 0; i < c->asks; i++) {
        char text[32];
        struct err e = { .kind = ERR_NONE };
        int n = snprintf(text, sizeof text, "%d.%d", c->number, i);
        struct bytes argv[] = { BYTES_LITERAL("ECHO"), { text, (size_t)n } };
        redisReply *reply = redis_call(redis, REDIS_NO_KEY, 2, argv, in_ms(c->deadline_ms), NULL, &e);
        if (reply == NULL)
            c->failed += e.kind == ERR_UNAVAILABLE;
        else if (reply->type == REDIS_REPLY_STRING && strcmp(reply->str, text) == 0)
            c->right++;
        else
            c->wrong++;
        if (reply != NULL) freeReplyObject(reply);
    }
}

static void ask_with_many_tasks(struct caller callers[MANY], int asks, int64_t deadline_ms)
{
    for (int i = 0; i < MANY; i++) {
        callers[i] = (struct caller){ .number = i, .asks = asks, .deadline_ms = deadline_ms };
        task_start(ask_for_own_number, &callers[i]);
    }
}

static int begin_rounds(void **state)
{
    (void)state;
    pollset = pollset_new(&err);
    begin_scene();
    return 0;
}

static int end_rounds(void **state)
{
    (void)state;
    redis_close(redis);
    pollset_free(pollset);
    task_free_stacks(0);
    return task_count() != 0;
}

static void each_task_gets_its_own_reply(void **state)
{
    (void)state;
    static struct caller callers[MANY];
    ask_with_many_tasks(callers, 20, 5000);
    run_rounds();
    for (int i = 0; i < MANY; i++) assert_int_equal(callers[i].right, 20);
    redisReply *list = redisCommand(server.admin, "CLIENT LIST TYPE normal");
    assert_null(strstr(strstr(list->str, "name=tested") + 1, "name=tested")); /* all of it on one connection */
    freeReplyObject(list);
}

static void each_task_gets_its_own_reply_while_connections_are_killed(void **state)
{
    (void)state;
    static struct caller callers[MANY];
    ask_with_many_tasks(callers, 20, 5000);
    for (int i = 0; task_count() > 0; i++) {
        if (i % 7 == 3) redis_server_ask(&server, "CLIENT KILL TYPE normal SKIPME yes");
        task_expire(clock_mono_ms());
        pollset_wait(pollset, task_any_ready() ? 0 : 100);
        task_run_ready();
        redis_flush(redis);
    }
    int right = 0;
    for (int i = 0; i < MANY; i++) {
        assert_int_equal(callers[i].wrong, 0);
        assert_int_equal(callers[i].right + callers[i].failed, 20); /* twice killed under a call is a failure */
        right += callers[i].right;
    }
    assert_true(right > MANY * 20 / 2);
}

static void all_tasks_learn_within_their_time_that_the_server_is_stopped(void **state)
{
    (void)state;
    static struct caller callers[MANY], after[MANY];
    redis_close(redis);
    options.timeout_ms = 100;
    open_redis();
    ask_with_many_tasks(after, 1, 5000); /* connects */
    run_rounds();
    kill(server.pid, SIGSTOP);
    ask_with_many_tasks(callers, 1, 5000);
    int64_t began_ms = clock_mono_ms();
    run_rounds();
    assert_in_range(clock_mono_ms() - began_ms, 100, 500);
    for (int i = 0; i < MANY; i++) assert_int_equal(callers[i].failed, 1);
    kill(server.pid, SIGCONT);
    int right = 0;
    for (began_ms = clock_mono_ms(); right < MANY && clock_mono_ms() - began_ms < 5000;) {
        ask_with_many_tasks(after, 1, 5000);
        run_rounds();
        for (int i = right = 0; i < MANY; i++) {
            assert_int_equal(after[i].wrong, 0);
            right += after[i].right;
        }
    }
    assert_int_equal(right, MANY);
}

/* ---- A server that misbehaves ---------------------------------------------------------------------------------------
 */

/* Answers like Redis, but for these:
 *   HOLD x       the answer x comes late: with that to the next command on the same connection
 *   CONNECTIONS  how many there were
 *   AGAIN n      TRYAGAIN until it was asked n times
 *   WAIT n ms    n replicas have it, or FAKE_REPLICAS; how often it was asked: WAITS
 *   CLOSE, GARBAGE, HALF, EXTRA    instead of an answer; EXTRA sends one more than was asked for */
#define FAKE_CONNECTIONS 64
#define FAKE_REPLICAS    2

struct fake_peer {
    int fd;
    redisReader *reader;
    char held[64];
};

static void fake_answer(struct fake_peer *p, int connections, const redisReply *command)
{
    const char *name = command->element[0]->str, *word = command->elements > 1 ? command->element[1]->str : "";
    static int again, waits;
    struct buf out = BUF_INIT(4096);
    if (strcmp(name, "HOLD") == 0) {
        snprintf(p->held, sizeof p->held, "%s", word);
        return;
    }
    if (p->held[0] != '\0') buf_printf(&out, "$%zu\r\n%s\r\n", strlen(p->held), p->held);
    p->held[0] = '\0';
    if (strcmp(name, "CLIENT") == 0)
        buf_puts(&out, "+OK\r\n");
    else if (strcmp(name, "SCRIPT") == 0)
        buf_puts(&out, "$40\r\n0123456789012345678901234567890123456789\r\n");
    else if (strcmp(name, "CONNECTIONS") == 0)
        buf_printf(&out, ":%d\r\n", connections);
    else if (strcmp(name, "AGAIN") == 0)
        buf_puts(&out, ++again < atoi(word) ? "-TRYAGAIN some keys have moved\r\n" : "+OK\r\n");
    else if (strcmp(name, "WAIT") == 0 && ++waits > 0)
        buf_printf(&out, ":%d\r\n", atoi(word) < FAKE_REPLICAS ? atoi(word) : FAKE_REPLICAS);
    else if (strcmp(name, "WAITS") == 0)
        buf_printf(&out, ":%d\r\n", waits);
    else if (strcmp(name, "GARBAGE") == 0)
        buf_puts(&out, "?what\r\n");
    else if (strcmp(name, "HALF") == 0)
        buf_puts(&out, "$10\r\nabc");
    else if (strcmp(name, "EXTRA") == 0)
        buf_puts(&out, "+OK\r\n+OK\r\n");
    else if (strcmp(name, "CLOSE") == 0)
        shutdown(p->fd, SHUT_RDWR);
    else
        buf_printf(&out, "$%zu\r\n%s\r\n", strlen(word), word);
    if (out.len > 0) (void)!send(p->fd, out.data, out.len, MSG_NOSIGNAL);
    buf_done(&out);
}

static void fake_read(struct fake_peer *p, int connections)
{
    char chunk[4096];
    void *command = NULL;
    ssize_t n = recv(p->fd, chunk, sizeof chunk, 0);
    if (n <= 0) {
        close(p->fd);
        redisReaderFree(p->reader);
        p->fd = -1;
        return;
    }
    redisReaderFeed(p->reader, chunk, (size_t)n);
    while (redisReaderGetReply(p->reader, &command) == REDIS_OK && command != NULL) {
        fake_answer(p, connections, command);
        freeReplyObject(command);
        command = NULL;
    }
}

static void fake_serve(int listener)
{
    struct fake_peer peers[FAKE_CONNECTIONS];
    int connections = 0;
    for (;;) {
        struct pollfd fds[FAKE_CONNECTIONS + 1] = { { .fd = listener, .events = POLLIN } };
        for (int i = 0; i < connections; i++) fds[i + 1] = (struct pollfd){ .fd = peers[i].fd, .events = POLLIN };
        if (poll(fds, (nfds_t)connections + 1, -1) < 0) _exit(1);
        for (int i = 0; i < connections; i++)
            if (peers[i].fd >= 0 && fds[i + 1].revents != 0) fake_read(&peers[i], connections);
        if (fds[0].revents == 0) continue;
        if (connections == FAKE_CONNECTIONS) _exit(1);
        peers[connections++] = (struct fake_peer){ .fd = accept(listener, NULL, NULL), .reader = redisReaderCreate() };
    }
}

static pid_t fake_pid;

/* On TCP, so that this way is gone once, too. */
static void use_fake_server(int64_t timeout_ms)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t len = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(listener, 16), 0);
    getsockname(listener, (struct sockaddr *)&address, &len);
    pid_t parent = getpid();
    fake_pid = fork();
    if (fake_pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1); /* it had died already */
        fake_serve(listener);
    }
    close(listener);
    struct redis_options o = options;
    o.url = (struct redis_url){ .servers = { { "127.0.0.1", ntohs(address.sin_port) } } };
    o.timeout_ms = timeout_ms;
    reopen_redis(&o);
}

static void end_fake_server(void)
{
    kill(fake_pid, SIGKILL);
    waitpid(fake_pid, NULL, 0);
}

static void a_late_reply_never_meets_a_later_call(void)
{
    use_fake_server(50);
    for (int i = 1; i <= 3; i++) {
        must_fail("HOLD late", ERR_UNAVAILABLE, "redis did not answer within 50 ms");
        must_answer("ECHO own", REDIS_REPLY_STRING, "own");
        assert_int_equal(stat_of("CONNECTIONS"), 1 + i);
    }
    end_fake_server();
}

static void a_deadline_before_the_timeout_gives_the_reply_up_and_keeps_the_connection(void)
{
    use_fake_server(5000);
    must_answer("ECHO connected", REDIS_REPLY_STRING, "connected");
    for (int i = 0; i < 3; i++) {
        int64_t began_ms = clock_mono_ms();
        assert_null(call_by(in_ms(20), "HOLD late"));
        assert_int_equal(err.kind, ERR_UNAVAILABLE);
        assert_true(strstr(err.text, "redis: the request's time is over before its answer") != NULL);
        assert_in_range(clock_mono_ms() - began_ms, 20, 500);
        must_answer("ECHO own", REDIS_REPLY_STRING, "own");
        must_answer("ECHO second", REDIS_REPLY_STRING, "second");
    }
    assert_int_equal(stat_of("CONNECTIONS"), 1);
    end_fake_server();
}

static void what_is_no_reply_ends_the_connection(void)
{
    use_fake_server(100);
    must_fail("GARBAGE", ERR_UNAVAILABLE, "redis is away: Protocol error");
    assert_true(repeated);
    must_answer("ECHO own", REDIS_REPLY_STRING, "own");
    must_fail("HALF", ERR_UNAVAILABLE, "redis did not answer within 100 ms");
    must_answer("ECHO own", REDIS_REPLY_STRING, "own");
    must_answer("EXTRA", REDIS_REPLY_STATUS, "OK");
    must_answer("ECHO own", REDIS_REPLY_STRING, "own"); /* not what came unasked */
    must_fail("CLOSE", ERR_UNAVAILABLE, "redis is away: closed by Redis");
    assert_true(repeated);
    must_answer("ECHO own", REDIS_REPLY_STRING, "own");
    end_fake_server();
    must_fail("ECHO own", ERR_UNAVAILABLE, "redis is away: Connection refused");
    assert_true(err.away);
}

static void what_is_to_be_tried_again_is_tried_again_for_a_while(void)
{
    use_fake_server(1000);
    int64_t began_ms = clock_mono_ms();
    must_answer("AGAIN 5", REDIS_REPLY_STATUS, "OK");
    assert_in_range(clock_mono_ms() - began_ms, 40, 1000);
    assert_false(repeated); /* none of them was executed */
    began_ms = clock_mono_ms();
    must_answer("AGAIN 40", REDIS_REPLY_STATUS, "OK"); /* a slot may take its time to move */
    assert_in_range(clock_mono_ms() - began_ms, 300, 3000);
    assert_null(call_by(in_ms(200), "AGAIN 100000"));
    assert_int_equal(err.kind, ERR_UNAVAILABLE);
    /* The time may be over between two attempts, or in one. */
    assert_true(strstr(err.text, "redis: TRYAGAIN") != NULL || strstr(err.text, "time is over") != NULL);
    assert_false(err.away);
    end_fake_server();
}

static void a_write_counts_when_enough_replicas_have_it(void)
{
    use_fake_server(1000);
    for (int replicas = 0; replicas <= FAKE_REPLICAS + 1; replicas++) {
        struct redis_options o = options;
        o.wait_replicas = replicas;
        reopen_redis(&o);
        if (replicas <= FAKE_REPLICAS)
            must_answer("ECHO own", REDIS_REPLY_STRING, "own");
        else
            must_fail("ECHO own", ERR_UNAVAILABLE, "redis: not confirmed by 3 replicas, only by 2");
        struct bytes waits[] = { BYTES_LITERAL("WAITS") };
        redisReply *reply = redis_call(redis, REDIS_NO_KEY, 1, waits, in_ms(5000), NULL, &err); /* only reads */
        assert_int_equal(reply->integer, replicas);
        freeReplyObject(reply);
    }
    end_fake_server();
}

static void write_once(void *arg)
{
    int *written = arg;
    struct bytes argv[] = { BYTES_LITERAL("ECHO"), BYTES_LITERAL("x") };
    struct err e;
    bool again;
    redisReply *reply = redis_call(redis, REDIS_NO_KEY, 2, argv, in_ms(5000), &again, &e);
    *written += reply != NULL;
    freeReplyObject(reply);
}

static void read_waits(void *arg)
{
    *(int *)arg = (int)stat_of("WAITS");
}

static void the_writes_of_a_round_share_one_wait(void **state)
{
    (void)state;
    int written = 0, read = 0;
    use_fake_server(1000);
    struct redis_options o = options;
    o.wait_replicas = 1;
    reopen_redis(&o);
    task_start(write_once, &written); /* connects */
    run_rounds();
    for (int i = 0; i < MANY; i++) task_start(write_once, &written);
    run_rounds();
    assert_int_equal(written, 1 + MANY);
    options.wait_replicas = 0;
    reopen_redis(&options);
    task_start(read_waits, &read);
    run_rounds();
    assert_int_equal(read, 2);
    end_fake_server();
}

/* It may be known later: a name server may start after us. */
static void a_host_that_nobody_knows_is_away(void)
{
    struct redis_options o = options;
    o.url = (struct redis_url){ .servers = { { "no..host", 6379 } } };
    reopen_redis(&o);
    int64_t began_ms = clock_mono_ms();
    for (int i = 0; i < 10; i++) must_fail("PING", ERR_UNAVAILABLE, "redis is away: its host is not known");
    assert_in_range(clock_mono_ms() - began_ms, 0, 1000);
}

static int start_server(void **state)
{
    (void)state;
    return !redis_server_start(&server);
}

static int stop_server(void **state)
{
    (void)state;
    redis_server_done(&server);
    return 0;
}

#define SCENE(how, play_, f)                                                                                           \
    {                                                                                                                  \
        how #f, play_, NULL, NULL, &(struct scene)                                                                     \
        {                                                                                                              \
            f                                                                                                          \
        }                                                                                                              \
    }
#define BOTH(f) SCENE("plain: ", play_plain, f), SCENE("in a task: ", play_in_task, f)

int main(void)
{
    const struct CMUnitTest tests[] = {
        BOTH(commands_are_answered),
        BOTH(any_bytes_are_carried),
        BOTH(a_command_larger_than_the_socket_buffer_is_carried),
        BOTH(more_than_may_wait_is_refused_and_the_next_one_served),
        BOTH(error_replies_are_failures_of_their_kind),
        BOTH(a_connection_that_was_closed_is_repaired_within_the_call),
        BOTH(a_connection_that_is_killed_under_a_command_is_repaired),
        BOTH(a_script_that_redis_has_lost_is_loaded_again),
        BOTH(an_error_within_a_script_keeps_its_kind),
        BOTH(the_password_must_be_right),
        BOTH(a_command_reaches_its_database_or_none),
        BOTH(a_server_that_is_away_is_said_at_once_and_found_again),
        BOTH(a_command_after_its_deadline_is_not_sent),
        BOTH(a_stopped_server_costs_one_timeout_and_is_found_again),
        BOTH(a_late_reply_never_meets_a_later_call),
        BOTH(a_deadline_before_the_timeout_gives_the_reply_up_and_keeps_the_connection),
        BOTH(what_is_no_reply_ends_the_connection),
        BOTH(what_is_to_be_tried_again_is_tried_again_for_a_while),
        BOTH(a_write_counts_when_enough_replicas_have_it),
        BOTH(a_host_that_nobody_knows_is_away),
        cmocka_unit_test_setup_teardown(the_writes_of_a_round_share_one_wait, begin_rounds, end_rounds),
        cmocka_unit_test_setup_teardown(each_task_gets_its_own_reply, begin_rounds, end_rounds),
        cmocka_unit_test_setup_teardown(each_task_gets_its_own_reply_while_connections_are_killed, begin_rounds,
                                        end_rounds),
        cmocka_unit_test_setup_teardown(all_tasks_learn_within_their_time_that_the_server_is_stopped, begin_rounds,
                                        end_rounds),
    };
    return cmocka_run_group_tests(tests, start_server, stop_server);
}
