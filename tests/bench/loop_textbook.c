/* loop_textbook: FastCGI as textbooks show it, a reference for `make bench`: pre-forked processes, each of which blocks
 * in FCGX_Accept_r. Without a Redis socket it only answers; with one it makes one blocking GET per request, of the
 * session that the query names. Ends with SIGTERM.
 *
 *     loop_textbook SOCKET ANSWER_FILE WORKERS [REDIS_SOCKET]
 */
#include "answer.h"

#include <fcgiapp.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define BACKLOG      1024
#define MOST_WORKERS 64

static redisContext *redis_open(const char *path)
{
    redisContext *c = redisConnectUnix(path);
    if (c == NULL || c->err) errx(1, "%s: %s", path, c ? c->errstr : "out of memory");
    return c;
}

/* The headers of the fixed answer, and the stored document in the frame that the session service puts around it. */
static void answer_from_redis(FCGX_Request *r, redisContext *redis, const char *headers)
{
    const char *query = FCGX_GetParam("QUERY_STRING", r->envp);
    const char *id = query ? strstr(query, "sessionId=") : NULL;
    id = id ? id + strlen("sessionId=") : "";

    redisReply *reply = redisCommand(redis, "GET hyperpage:session:%s", id);
    if (reply == NULL) errx(1, "redis: %s", redis->errstr);
    if (reply->type == REDIS_REPLY_STRING) {
        FCGX_PutS(headers, r->out);
        FCGX_PutS("{\"success\":true,\"sessionId\":\"", r->out);
        FCGX_PutS(id, r->out);
        FCGX_PutS("\",\"session\":", r->out);
        FCGX_PutStr(reply->str, (int)reply->len, r->out);
        FCGX_PutS("}", r->out);
    } else {
        FCGX_PutS("Status: 401 Unauthorized\r\n\r\n", r->out);
    }
    freeReplyObject(reply);
}

static void serve(int listen_fd, const struct answer *answer, const char *redis_path)
{
    redisContext *redis = redis_path ? redis_open(redis_path) : NULL;
    const char *body = strstr(answer->text, "\r\n\r\n");
    if (body == NULL) errx(1, "the answer has no empty line after its headers");
    char *headers = strndup(answer->text, (size_t)(body - answer->text) + 4);
    FCGX_Request r;

    FCGX_Init();
    FCGX_InitRequest(&r, listen_fd, 0);
    while (FCGX_Accept_r(&r) >= 0) {
        if (redis)
            answer_from_redis(&r, redis, headers);
        else
            FCGX_PutStr(answer->text, (int)answer->len, r.out);
    }
    free(headers);
    if (redis) redisFree(redis);
}

int main(int argc, char **argv)
{
    static struct answer answer;
    pid_t workers[MOST_WORKERS];
    if (argc < 4 || argc > 5) errx(2, "usage: %s SOCKET ANSWER_FILE WORKERS [REDIS_SOCKET]", argv[0]);
    int count = atoi(argv[3]);
    if (count < 1 || count > MOST_WORKERS) errx(2, "WORKERS: 1 to %d", MOST_WORKERS);
    answer_read(&answer, argv[2]);

    int listen_fd = FCGX_OpenSocket(argv[1], BACKLOG);
    if (listen_fd < 0) err(1, "%s", argv[1]);
    sigset_t end;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigaddset(&end, SIGCHLD); /* no worker ends by itself unless something is wrong */
    sigprocmask(SIG_BLOCK, &end, NULL);
    for (int i = 0; i < count; i++) {
        workers[i] = fork();
        if (workers[i] < 0) err(1, "fork");
        if (workers[i] == 0) {
            serve(listen_fd, &answer, argv[4]);
            return 1;
        }
    }
    int signal = 0;
    sigwait(&end, &signal);
    for (int i = 0; i < count; i++) {
        kill(workers[i], SIGKILL);
        waitpid(workers[i], NULL, 0);
    }
    return signal == SIGTERM ? 0 : 1;
}
