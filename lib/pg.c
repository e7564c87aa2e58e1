#include "pg.h"

#include "clock.h"
#include "log.h"
#include "lookup.h"
#include "mem.h"
#include "metrics.h"
#include "task.h"

#include <assert.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <stdlib.h>
#include <string.h>

#define CONNECT_MS       3000 /* longest attempt to connect to one address */
#define FIRST_PAUSE_MS   100
#define LONGEST_PAUSE_MS 5000
#define LOOKUP_STEP_MS   5
#define MOST_HOSTS       8

/* One place that the URL names. */
struct host {
    char *name; /* NULL: libpq's default, a unix socket */
    int port;
    struct lookup lookup;
};

/* A task that waits for the connection to be its own, on that task's stack. */
struct turn {
    struct task *task;
    struct turn *next;
};

struct pg {
    struct watch watch; /* first: a watch is cast back to its pg */
    struct pg_options o;
    struct host hosts[MOST_HOSTS];
    size_t host_count, host_at;
    struct addresses addresses; /* of the host whose turn it is; none: not looked up */
    size_t address_at;
    PGconn *conn;
    bool watched, wants_write;
    bool came;          /* what a connection attempt waits for */
    struct task *owner; /* the task whose transaction it is */
    struct turn *first, **last;
    int64_t deadline_ms; /* of the transaction */
    int64_t leave_by_ms; /* of all */
    int64_t retry_at_ms, pause_ms, down_since_ms;
    struct err down; /* why the last attempt failed */
};

static int64_t earlier(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

/* --- failures --- */

/* An error in the words of libpq or of the server: the first line of several, and no quotes, which stand around it in
 * the log. */
static bool set_error(struct err *e, enum err_kind kind, const char *text, const char *code)
{
    err_set(e, kind, "postgres: %.*s%s%s", (int)strcspn(text, "\n"), text, code[0] != '\0' ? " " : "", code);
    for (char *c = e->text; *c != '\0'; c++)
        if (*c == '"') *c = '\'';
    return false;
}

static bool set_lost(struct err *e, const char *text)
{
    set_error(e, ERR_UNAVAILABLE, text, "");
    e->away = true;
    return false;
}

/* What the server's code for an error means for whoever asked. The first prefix that fits counts. */
static const struct refusal {
    const char *sqlstate;
    enum err_kind kind;
} refusals[] = {
    { "08", ERR_UNAVAILABLE },    /* connection */
    { "25006", ERR_UNAVAILABLE }, /* read only: a standby */
    { "25P03", ERR_UNAVAILABLE }, /* idle in transaction for too long */
    { "40", ERR_UNAVAILABLE },    /* rolled back: deadlock, serialisation */
    { "53", ERR_UNAVAILABLE },    /* out of connections, memory, disk */
    { "55P03", ERR_UNAVAILABLE }, /* lock timeout */
    { "57", ERR_UNAVAILABLE },    /* statement timeout, shutting down, starting up */
    { "58", ERR_UNAVAILABLE },    /* I/O error */
    { "22", ERR_INPUT },          /* a value that cannot be stored */
    { "23", ERR_INPUT },          /* a constraint */
    { "", ERR_INTERNAL },
};

static bool refused(const PGresult *result, struct err *e)
{
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *text = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    const struct refusal *r = refusals;
    if (code == NULL) return set_lost(e, PQresultErrorMessage(result)); /* libpq's own words */
    while (strncmp(code, r->sqlstate, strlen(r->sqlstate)) != 0) r++;
    return set_error(e, r->kind, text, code);
}

/* Nothing of a connection survives a failure: a late answer must never meet a later statement. */
static void drop(struct pg *pg)
{
    if (pg->watched) pollset_remove(pg->o.pollset, &pg->watch);
    pg->watched = false;
    PQfinish(pg->conn);
    pg->conn = NULL;
}

static bool lost(struct pg *pg, struct err *e)
{
    set_lost(e, PQerrorMessage(pg->conn));
    drop(pg);
    return false;
}

/* --- the connection --- */

static void watch_for(struct pg *pg, bool write)
{
    if (write == pg->wants_write) return;
    pollset_change(pg->o.pollset, &pg->watch, write ? EPOLLIN | EPOLLOUT : EPOLLIN);
    pg->wants_write = write;
}

/* While connecting the task goes on by itself. Later all that comes is taken in at once, also what nobody asked for:
 * the word of a server that shuts down, and the end of a connection. */
static void pg_ready(struct watch *w, uint32_t events)
{
    struct pg *pg = (struct pg *)w;
    (void)events;
    pg->came = true;
    if (pg->owner != NULL) task_wake(pg->owner);
    if (PQstatus(pg->conn) != CONNECTION_OK) return;
    bool alive = PQconsumeInput(pg->conn);
    int unsent = alive ? PQflush(pg->conn) : -1;
    if (unsent >= 0) {
        watch_for(pg, unsent > 0);
    } else if (pg->owner == NULL) {
        drop(pg);
    } else { /* its task finds out why; until then nothing more is to be heard of it */
        pollset_remove(pg->o.pollset, &pg->watch);
        pg->watched = false;
    }
}

static bool watch(struct pg *pg, bool write, struct err *e)
{
    pg->watch = (struct watch){ .fd = PQsocket(pg->conn), .ready = pg_ready };
    pg->wants_write = write;
    pg->came = false;
    pg->watched = pollset_add(pg->o.pollset, &pg->watch, write ? EPOLLIN | EPOLLOUT : EPOLLIN, e);
    return pg->watched;
}

/* libpq would look names up itself, and block. */
static bool look_up(struct pg *pg, int64_t until_ms, struct err *e)
{
    struct host *host = &pg->hosts[pg->host_at];
    const char *why = "no answer in time";
    enum lookup_state state = LOOKUP_RUNNING;
    if (host->name == NULL || pg->addresses.count > 0) return true;
    if (lookup_literal(host->name, host->port, &pg->addresses)) return true;
    lookup_start(&host->lookup, host->name, host->port);
    while ((state = lookup_poll(&host->lookup, &pg->addresses, &why)) == LOOKUP_RUNNING && clock_mono_ms() < until_ms)
        task_park(earlier(until_ms, clock_mono_ms() + LOOKUP_STEP_MS));
    return state == LOOKUP_FOUND || err_set_away(e, "postgres: host not known: %s", why);
}

/* libpq would print it on standard error. */
static void pass_over_notice(void *unused, const char *text)
{
    (void)unused, (void)text;
}

/* Begins one attempt, at one address: so that one that is silent does not keep us from the next. Parameters that stand
 * before the URL are defaults, those behind it have the last word. */
static bool start_connection(struct pg *pg, struct err *e)
{
    const struct host *host = &pg->hosts[pg->host_at];
    char address[NI_MAXHOST], port[16];
    /* Without GSS, since a KDC is asked blocking. Times in ms and s: a dead network is noticed. */
    const char *names[16] = { "fallback_application_name", "gssencmode",      "client_encoding",
                              "tcp_user_timeout",          "keepalives_idle", "dbname" };
    const char *values[16] = { pg->o.name, "disable", "UTF8", "10000", "30", pg->o.url };
    size_t n = 6;
    if (host->name != NULL) {
        snprintf(port, sizeof port, "%d", host->port);
        names[n] = "host", values[n++] = host->name; /* certificates and passwords are looked up by it */
        names[n] = "port", values[n++] = port;
    }
    if (host->name != NULL && host->name[0] != '/') {
        getnameinfo((struct sockaddr *)&pg->addresses.at[pg->address_at], pg->addresses.len[pg->address_at], address,
                    sizeof address, NULL, 0, NI_NUMERICHOST);
        names[n] = "hostaddr", values[n++] = address;
    }
    pg->conn = mem_or_die(PQconnectStartParams(names, values, 1));
    PQsetNoticeProcessor(pg->conn, pass_over_notice, NULL);
    if (PQstatus(pg->conn) == CONNECTION_BAD) return lost(pg, e);
    return watch(pg, true, e);
}

/* libpq may close its socket and go on with another one, of the same number even: it is watched anew at each step. */
static bool finish_connection(struct pg *pg, int64_t until_ms, struct err *e)
{
    for (;;) {
        while (!pg->came && clock_mono_ms() < until_ms) task_park(until_ms);
        if (!pg->came) return err_set_away(e, "postgres: no connection in time");
        pollset_remove(pg->o.pollset, &pg->watch);
        pg->watched = false;
        PostgresPollingStatusType step = PQconnectPoll(pg->conn);
        if (step == PGRES_POLLING_FAILED) return lost(pg, e);
        if (!watch(pg, step == PGRES_POLLING_WRITING, e)) return false;
        if (step == PGRES_POLLING_OK) return PQsetnonblocking(pg->conn, 1) == 0 || lost(pg, e);
    }
}

/* Which address is next, and when: those not tried yet at once, then all again after a growing pause. */
static void plan_next_attempt(struct pg *pg, const struct err *why)
{
    int64_t now_ms = clock_mono_ms();
    if (pg->down_since_ms == 0) {
        pg->down_since_ms = now_ms;
        log_warn("postgres cannot be reached: error=\"%s\"", why->text);
    }
    pg->down = *why;
    pg->retry_at_ms = now_ms;
    if (++pg->address_at < pg->addresses.count) return;
    pg->addresses.count = pg->address_at = 0;
    if (++pg->host_at < pg->host_count) return;
    pg->host_at = 0;
    pg->pause_ms = pg->pause_ms == 0 ? FIRST_PAUSE_MS : earlier(pg->pause_ms * 2, LONGEST_PAUSE_MS);
    pg->retry_at_ms = now_ms + pg->pause_ms / 2 + random() % (pg->pause_ms / 2 + 1);
}

static void is_up(struct pg *pg)
{
    if (pg->down_since_ms > 0) log_info("postgres back: away_ms=%" PRId64, clock_mono_ms() - pg->down_since_ms);
    pg->down_since_ms = pg->pause_ms = 0;
}

static bool connect_once(struct pg *pg, struct err *e)
{
    int64_t until_ms = earlier(pg->deadline_ms, clock_mono_ms() + CONNECT_MS);
    if (look_up(pg, until_ms, e) && start_connection(pg, e) && finish_connection(pg, until_ms, e)) {
        is_up(pg);
        return true;
    }
    drop(pg);
    plan_next_attempt(pg, e);
    return false;
}

/* Whoever comes during the pause is told at once why, and goes on with other things. */
static bool be_connected(struct pg *pg, struct err *e)
{
    while (pg->conn == NULL) {
        if (pg->down_since_ms > 0 && clock_mono_ms() < pg->retry_at_ms) {
            *e = pg->down;
            return false;
        }
        if (clock_mono_ms() >= pg->deadline_ms) return err_set(e, ERR_UNAVAILABLE, "postgres: no time left");
        connect_once(pg, e);
    }
    return true;
}

/* --- one statement --- */

static bool sent(struct pg *pg, int ok, struct err *e)
{
    int unsent = ok ? PQflush(pg->conn) : -1;
    if (unsent < 0) return lost(pg, e);
    watch_for(pg, unsent > 0);
    return true;
}

/* Parks until libpq has a whole result, or the end of them. */
static bool wait_for_result(struct pg *pg, struct err *e)
{
    while (PQisBusy(pg->conn)) {
        if (!pg->watched) return lost(pg, e);
        if (clock_mono_ms() >= pg->deadline_ms) {
            drop(pg);
            return err_set_away(e, "postgres: no answer in time");
        }
        task_park(pg->deadline_ms);
    }
    return true;
}

/* All results of what was sent; the last one is the caller's, *rows is how many rows all of them are about. NULL: `e`
 * says why. A refusal by which the server also ends the connection says more than that end does. */
static PGresult *take_results(struct pg *pg, int64_t *rows, struct err *e)
{
    PGresult *kept = NULL, *next;
    struct err end;
    bool ok = true;
    *rows = 0;
    while (wait_for_result(pg, ok ? e : &end) && (next = PQgetResult(pg->conn)) != NULL) {
        ExecStatusType status = PQresultStatus(next);
        if (ok && status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK) ok = refused(next, e);
        *rows += strtoll(PQcmdTuples(next), NULL, 10);
        PQclear(kept);
        kept = next;
    }
    if (ok && pg->conn != NULL && kept != NULL) return kept;
    PQclear(kept);
    if (pg->conn != NULL && PQstatus(pg->conn) != CONNECTION_OK) drop(pg);
    if (pg->conn == NULL && e->kind == ERR_UNAVAILABLE) e->away = true;
    metrics_add(METRIC_postgres_errors_total, 1);
    return NULL;
}

static bool is_ours(struct pg *pg, struct err *e)
{
    assert(pg->owner == task_current() && pg->owner != NULL);
    return pg->conn != NULL || err_set_away(e, "postgres: the transaction's connection was lost");
}

struct pg_rows *pg_query(struct pg *pg, const char *sql, size_t n, const char *const *values, struct err *e)
{
    int64_t about;
    if (!is_ours(pg, e)) return NULL;
    if (!sent(pg, PQsendQueryParams(pg->conn, sql, (int)n, NULL, values, NULL, NULL, 0), e)) return NULL;
    return (struct pg_rows *)take_results(pg, &about, e);
}

bool pg_run(struct pg *pg, const char *sql, size_t n, const char *const *values, int64_t *changed, struct err *e)
{
    PGresult *result = (PGresult *)pg_query(pg, sql, n, values, e);
    if (result != NULL && changed != NULL) *changed = strtoll(PQcmdTuples(result), NULL, 10);
    PQclear(result);
    return result != NULL;
}

static bool run_script(struct pg *pg, const char *sql, int64_t *rows, struct err *e)
{
    if (!is_ours(pg, e) || !sent(pg, PQsendQuery(pg->conn, sql), e)) return false;
    PGresult *result = take_results(pg, rows, e);
    PQclear(result);
    return result != NULL;
}

bool pg_script(struct pg *pg, const char *sql, struct err *e)
{
    int64_t about;
    return run_script(pg, sql, &about, e);
}

void pg_free(struct pg_rows *rows)
{
    PQclear((PGresult *)rows);
}

size_t pg_count(const struct pg_rows *rows)
{
    return (size_t)PQntuples((const PGresult *)rows);
}

const char *pg_text(const struct pg_rows *rows, size_t row, int column)
{
    const PGresult *result = (const PGresult *)rows;
    return PQgetisnull(result, (int)row, column) ? NULL : PQgetvalue(result, (int)row, column);
}

int64_t pg_number(const struct pg_rows *rows, size_t row, int column)
{
    return strtoll(PQgetvalue((const PGresult *)rows, (int)row, column), NULL, 10);
}

/* --- transactions, in turn --- */

/* First come, first served: a task that ends a transaction and begins the next at once must not shut others out. */
static bool take_turn(struct pg *pg, int64_t deadline_ms, struct err *e)
{
    struct turn turn = { .task = task_current() };
    assert(turn.task != NULL && pg->owner != turn.task);
    if (pg->owner == NULL) {
        pg->owner = turn.task;
        return true;
    }
    *pg->last = &turn;
    pg->last = &turn.next;
    while (pg->owner != turn.task && clock_mono_ms() < deadline_ms) task_park(deadline_ms);
    if (pg->owner == turn.task) return true;
    struct turn **at = &pg->first;
    while (*at != &turn) at = &(*at)->next;
    *at = turn.next;
    if (turn.next == NULL) pg->last = at;
    return err_set(e, ERR_UNAVAILABLE, "postgres: other transactions took too long");
}

static void end_turn(struct pg *pg)
{
    struct turn *next = pg->first;
    pg->owner = NULL;
    if (next == NULL) return;
    pg->first = next->next;
    if (pg->first == NULL) pg->last = &pg->first;
    pg->owner = next->task;
    task_wake(next->task);
}

/* The limits are this transaction's own (SET LOCAL), not the connection's: so they hold behind pgbouncer too, and leave
 * the URL's `options` to the operator. */
static bool begin(struct pg *pg, struct err *e)
{
    char sql[256];
    int64_t left_ms = pg->deadline_ms - clock_mono_ms();
    if (left_ms <= 0) return err_set(e, ERR_UNAVAILABLE, "postgres: no time left");
    snprintf(sql, sizeof sql,
             "BEGIN; SET LOCAL statement_timeout = %" PRId64 "; SET LOCAL lock_timeout = %" PRId64
             "; SET LOCAL idle_in_transaction_session_timeout = %" PRId64,
             left_ms, pg->o.lock_timeout_ms, pg->o.idle_timeout_ms);
    return pg_script(pg, sql, e);
}

bool pg_begin(struct pg *pg, int64_t deadline_ms, struct err *e)
{
    if (!take_turn(pg, deadline_ms, e)) return false;
    pg->deadline_ms = earlier(deadline_ms, pg->leave_by_ms);
    bool was_idle = pg->conn != NULL;
    bool ok = be_connected(pg, e) && begin(pg, e);
    /* A connection that broke while it was idle is no outage: nothing was done on it, so it is made anew. */
    if (!ok && was_idle && pg->conn == NULL && e->away) ok = be_connected(pg, e) && begin(pg, e);
    if (!ok) pg_rollback(pg);
    return ok;
}

bool pg_commit(struct pg *pg, struct err *e)
{
    bool ok = is_ours(pg, e);
    if (ok && PQtransactionStatus(pg->conn) != PQTRANS_INTRANS) /* COMMIT would roll it back, and say so nowhere */
        ok = err_set(e, ERR_INTERNAL, "postgres: the transaction had failed before it was committed");
    ok = ok && pg_script(pg, "COMMIT", e);
    metrics_add(METRIC_postgres_transactions_total, ok);
    pg_rollback(pg);
    return ok;
}

/* After a refused statement the server passes over the others, COMMIT too. */
bool pg_finish(struct pg *pg, const char *sql, int64_t *changed, struct err *e)
{
    static const char end[] = "; COMMIT";
    size_t len = strlen(sql);
    char *text = mem_alloc(len + sizeof end);
    memcpy(text, sql, len);
    memcpy(text + len, end, sizeof end);
    bool ok = run_script(pg, text, changed, e);
    metrics_add(METRIC_postgres_transactions_total, ok);
    free(text);
    pg_rollback(pg);
    return ok;
}

void pg_rollback(struct pg *pg)
{
    struct err e;
    if (pg->owner == NULL || pg->owner != task_current()) return;
    if (pg->conn != NULL && PQtransactionStatus(pg->conn) != PQTRANS_IDLE && !pg_script(pg, "ROLLBACK", &e)) drop(pg);
    end_turn(pg);
}

void pg_leave(struct pg *pg, int64_t by_ms)
{
    pg->leave_by_ms = by_ms;
    pg->deadline_ms = earlier(pg->deadline_ms, by_ms);
    if (pg->owner != NULL) task_wake(pg->owner);
}

bool pg_is_away(const struct pg *pg)
{
    return pg->down_since_ms > 0;
}

/* --- one pg --- */

/* The nth of a comma-separated list as libpq has them, or of a list of one the only one; NULL or empty: none. */
static char *nth(const char *list, size_t n)
{
    if (list == NULL) return NULL;
    bool one = strchr(list, ',') == NULL;
    for (; n > 0 && !one; n--) {
        list += strcspn(list, ",");
        if (*list++ == '\0') return NULL;
    }
    size_t len = strcspn(list, ",");
    return len > 0 ? mem_or_die(strndup(list, len)) : NULL;
}

static size_t items(const char *list)
{
    size_t n = 1;
    for (; *list != '\0'; list++) n += *list == ',';
    return n;
}

/* The places that the URL names. Where it gives addresses besides names, libpq is left to itself. */
static void read_hosts(struct pg *pg, const PQconninfoOption *options)
{
    const char *host = NULL, *port = NULL, *address = NULL;
    for (; options->keyword != NULL; options++) {
        if (strcmp(options->keyword, "host") == 0) host = options->val;
        if (strcmp(options->keyword, "port") == 0) port = options->val;
        if (strcmp(options->keyword, "hostaddr") == 0) address = options->val;
    }
    pg->host_count = 1;
    if (host == NULL || address != NULL) return;
    pg->host_count = items(host) < MOST_HOSTS ? items(host) : MOST_HOSTS;
    for (size_t i = 0; i < pg->host_count; i++) {
        char *number = nth(port, i);
        pg->hosts[i] = (struct host){ .name = nth(host, i), .port = number != NULL ? atoi(number) : 5432 };
        free(number);
    }
}

/* libpq's own message may hold a part of a password. */
static PQconninfoOption *parse(const char *url, struct err *e)
{
    PQconninfoOption *parsed = PQconninfoParse(url, NULL);
    if (parsed == NULL)
        err_set(e, ERR_INPUT,
                "DATABASE_URL: allowed is postgresql://[user[:password]@]host[:port]/database"
                "[?parameter=value], with parameters that libpq knows");
    return parsed;
}

bool pg_check_url(const char *url, struct err *e)
{
    PQconninfoOption *parsed = parse(url, e);
    PQconninfoFree(parsed);
    return parsed != NULL;
}

struct pg *pg_open(const struct pg_options *o, struct err *e)
{
    PQconninfoOption *parsed = parse(o->url, e);
    if (parsed == NULL) return NULL;
    struct pg *pg = mem_alloc(sizeof *pg);
    pg->o = *o;
    pg->last = &pg->first;
    pg->leave_by_ms = CLOCK_NEVER;
    read_hosts(pg, parsed);
    PQconninfoFree(parsed);
    return pg;
}

void pg_close(struct pg *pg)
{
    if (pg == NULL) return;
    drop(pg);
    for (size_t i = 0; i < pg->host_count; i++) {
        lookup_done(&pg->hosts[i].lookup);
        free(pg->hosts[i].name);
    }
    free(pg);
}
