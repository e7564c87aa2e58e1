/* postgres_server.h: a real PostgreSQL of the test's own: on a unix socket in a temporary folder, run by an
 * unprivileged user (it refuses root), and gone with the test, however that ends. */
#ifndef HYPERPAGE_POSTGRES_SERVER_H
#define HYPERPAGE_POSTGRES_SERVER_H

#include "test.h"

#include <glob.h>
#include <libpq-fe.h>
#include <pwd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

struct postgres_server {
    char dir[32], url[96];
    pid_t pid;
    PGconn *admin; /* the test's own way in, beside what is tested */
};

/* Runs one of its programs as somebody who may; Debian keeps them out of PATH. Returns the child. */
static pid_t postgres_spawn(const struct postgres_server *s, char *const argv[])
{
    pid_t parent = getpid(), pid = fork();
    if (pid != 0) return pid;
    const struct passwd *user = getuid() == 0 ? getpwnam("nobody") : NULL;
    char path[512];
    glob_t found;
    if (user != NULL && (setgid(user->pw_gid) != 0 || setuid(user->pw_uid) != 0)) _exit(1);
    prctl(PR_SET_PDEATHSIG, SIGQUIT); /* which ends it at once, and its children */
    if (getppid() != parent || chdir(s->dir) != 0 || freopen("log", "a", stdout) == NULL) _exit(1);
    dup2(STDOUT_FILENO, STDERR_FILENO);
    if (glob("/usr/lib/postgresql/*/bin", 0, NULL, &found) == 0) {
        snprintf(path, sizeof path, "%s:%s", found.gl_pathv[found.gl_pathc - 1], getenv("PATH"));
        setenv("PATH", path, 1);
    }
    execvp(argv[0], argv);
    _exit(127);
}

static bool postgres_server_answers(struct postgres_server *s)
{
    PQfinish(s->admin);
    s->admin = PQconnectdb(s->url);
    return PQstatus(s->admin) == CONNECTION_OK;
}

static bool postgres_server_start(struct postgres_server *s)
{
    int status = 0;
    if (s->dir[0] == '\0') {
        snprintf(s->dir, sizeof s->dir, "/tmp/test_postgres.XXXXXX");
        if (mkdtemp(s->dir) == NULL) return false;
        const struct passwd *user = getpwnam("nobody");
        if (getuid() == 0 && chown(s->dir, user->pw_uid, user->pw_gid) != 0) return false;
        snprintf(s->url, sizeof s->url, "postgresql://test@/postgres?host=%s", s->dir);
        pid_t made = postgres_spawn(s, (char *[]){ "initdb", "-N", "-A", "trust", "-U", "test", "-D", "data",
                                                   "--no-instructions", "--locale=C", NULL });
        waitpid(made, &status, 0);
    }
    if (status == 0)
        s->pid = postgres_spawn(s, (char *[]){ "postgres", "-D", "data", "-k", s->dir, "-c", "listen_addresses=", "-c",
                                               "fsync=off", NULL });
    for (int tries = 0; status == 0 && tries < 20000;
         tries++) { /* it has no way to say that it listens: ask until it does */
        if (postgres_server_answers(s)) return true;
        if (waitpid(s->pid, NULL, WNOHANG) != 0) break;
        usleep(1000);
    }
    print_error("postgres does not come up: see %s/log\n", s->dir);
    return false;
}

/* SIGINT: ends sessions and writes everything; SIGQUIT: as in a crash. */
static void postgres_server_stop(struct postgres_server *s, int sig)
{
    PQfinish(s->admin);
    s->admin = NULL;
    if (s->pid <= 0) return;
    kill(s->pid, sig);
    waitpid(s->pid, NULL, 0);
    s->pid = 0;
}

static void postgres_server_done(struct postgres_server *s)
{
    char command[64];
    postgres_server_stop(s, SIGQUIT);
    snprintf(command, sizeof command, "rm -rf '%s'", s->dir);
    if (s->dir[0] != '\0' && system(command) != 0) print_error("%s failed\n", command);
}

/* Runs a statement and gives the first value of its answer as a number, or 0. */
static long long postgres_server_ask(struct postgres_server *s, const char *sql)
{
    PGresult *r = PQexec(s->admin, sql);
    if (PQresultStatus(r) != PGRES_COMMAND_OK && PQresultStatus(r) != PGRES_TUPLES_OK)
        fail_msg("%s: %s", sql, PQresultErrorMessage(r));
    long long n = PQntuples(r) > 0 ? strtoll(PQgetvalue(r, 0, 0), NULL, 10) : 0;
    PQclear(r);
    return n;
}

#endif
