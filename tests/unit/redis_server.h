/* redis_server.h: a real redis-server of the test's own: on a unix socket in a temporary folder, writing nothing to
 * disk, and gone with the test, however that ends. */
#ifndef HYPERPAGE_REDIS_SERVER_H
#define HYPERPAGE_REDIS_SERVER_H

#include "test.h"

#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct redis_server {
    char dir[32], path[48]; /* made by the first start; a restart listens at the same path */
    pid_t pid;
    redisContext *admin; /* the test's own way in, beside what is tested */
};

static bool redis_server_answers(struct redis_server *s)
{
    s->admin = redisConnectUnix(s->path);
    redisReply *pong = s->admin != NULL && s->admin->err == 0 ? redisCommand(s->admin, "PING") : NULL;
    if (pong != NULL) {
        freeReplyObject(pong);
        return true;
    }
    redisFree(s->admin);
    s->admin = NULL;
    return false;
}

/* False (and said so) if it does not come up. */
static bool redis_server_start(struct redis_server *s)
{
    if (s->dir[0] == '\0') {
        snprintf(s->dir, sizeof s->dir, "/tmp/test_redis.XXXXXX");
        if (mkdtemp(s->dir) == NULL) return false;
        snprintf(s->path, sizeof s->path, "%s/redis.sock", s->dir);
    }
    pid_t parent = getpid();
    s->pid = fork();
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", s->path, "--save", "", "--appendonly",
               "no", "--loglevel", "warning", "--logfile", "/dev/null", "--dir", s->dir, (char *)NULL);
        perror("redis-server");
        _exit(1);
    }
    for (int tries = 0; tries < 10000; tries++) { /* it has no way to say that it listens: ask until it does */
        if (redis_server_answers(s)) return true;
        if (waitpid(s->pid, NULL, WNOHANG) != 0) break;
        usleep(1000);
    }
    print_error("redis-server does not come up\n");
    s->pid = 0;
    return false;
}

static void redis_server_kill(struct redis_server *s)
{
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
    }
    s->pid = 0;
    redisFree(s->admin);
    s->admin = NULL;
}

static void redis_server_done(struct redis_server *s)
{
    redis_server_kill(s);
    unlink(s->path);
    rmdir(s->dir);
}

/* Asks the server and gives the integer it answers, or -1 for anything else. */
static long long redis_server_ask(struct redis_server *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static long long redis_server_ask(struct redis_server *s, const char *format, ...)
{
    va_list ap;
    va_start(ap, format);
    redisReply *reply = redisvCommand(s->admin, format, ap);
    va_end(ap);
    assert_non_null(reply);
    long long n = reply->type == REDIS_REPLY_INTEGER ? reply->integer : -1;
    if (reply->type == REDIS_REPLY_ERROR) print_error("redis-server: %s\n", reply->str);
    freeReplyObject(reply);
    return n;
}

#endif
