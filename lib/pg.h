/* pg.h: transactions on PostgreSQL in code that reads as blocking: a call parks its task while others run. One
 * connection, which tasks use in turn, a transaction each; made when it is needed, and again, after growing pauses,
 * when it was lost. Only for tasks. The only user of libpq; never fork while one is open. */
#ifndef HYPERPAGE_PG_H
#define HYPERPAGE_PG_H

#include "err.h"
#include "pollset.h"

#include <stddef.h>
#include <stdint.h>

struct pg;
struct pg_rows;

struct pg_options {
    const char *url;  /* postgresql://user:password@host:port/database?parameter=value, as libpq takes it */
    const char *name; /* as pg_stat_activity shows it */
    /* A transaction that waits for a lock, or for our next statement, for so long is ended by the server. */
    int64_t lock_timeout_ms, idle_timeout_ms;
    struct pollset *pollset;
};

/* Can the URL be understood? `e` does not repeat it. */
bool pg_check_url(const char *url, struct err *e);

/* Connects at the first transaction, not here. NULL: the URL cannot be understood. */
struct pg *pg_open(const struct pg_options *o, struct err *e);
void pg_close(struct pg *pg);

/* From now on nothing takes longer than until `by_ms`, also what is under way: this process wants to leave. */
void pg_leave(struct pg *pg, int64_t by_ms);

/* Begins a transaction, when it is this task's turn, that must be over at `deadline_ms` (monotonic): what is not
 * answered by then has failed, here and at the server. ERR_UNAVAILABLE: no server, or no turn. */
bool pg_begin(struct pg *pg, int64_t deadline_ms, struct err *e);

/* Ends it. False: it may have been committed or not. Either way the turn is over. */
bool pg_commit(struct pg *pg, struct err *e);

/* The last statements of it, separated by semicolons and without values, and its end, in one message: what they lock is
 * held for no way to us and back. *changed: how many rows they have written, deleted or given. False as above. */
bool pg_finish(struct pg *pg, const char *sql, int64_t *changed, struct err *e);

/* Ends a transaction without a trace; does nothing if this task has none, so that it may stand at the way out. */
void pg_rollback(struct pg *pg);

/* One statement of this task's transaction; $1 and following are the `n` values as text, NULL for SQL's. After a
 * failure only pg_rollback() is left. ERR_UNAVAILABLE: trying again may help (lost connection, timeout, lock,
 * deadlock); ERR_INPUT: a value is not acceptable; ERR_INTERNAL: what we ask for is wrong or not allowed. The result is
 * the caller's. */
struct pg_rows *pg_query(struct pg *pg, const char *sql, size_t n, const char *const *values, struct err *e);
void pg_free(struct pg_rows *rows);

/* The same for a statement without rows; *changed, unless NULL: how many it has written or deleted. */
bool pg_run(struct pg *pg, const char *sql, size_t n, const char *const *values, int64_t *changed, struct err *e);

/* Several statements, separated by semicolons, without values. */
bool pg_script(struct pg *pg, const char *sql, struct err *e);

size_t pg_count(const struct pg_rows *rows);
const char *pg_text(const struct pg_rows *rows, size_t row, int column); /* NULL for SQL's; dies with the rows */
int64_t pg_number(const struct pg_rows *rows, size_t row, int column);   /* 0 for SQL's NULL */

/* Has the last attempt to reach the server failed? */
bool pg_is_away(const struct pg *pg);

#endif
