/* schema.h: the tables in PostgreSQL, from the files of conf/schema, which are part of the program. */
#ifndef HYPERPAGE_SCHEMA_H
#define HYPERPAGE_SCHEMA_H

#include "pg.h"

/* Brings the database up to the newest file: those that its table hyperpage_schema does not name yet are applied, all
 * or none. Any number of nodes may try at once, on a database that the original portal has filled, and again at any
 * time. For tasks. */
bool schema_apply(struct pg *pg, struct err *e);

/* Of the task's transaction: the newest file that the database has; 0: none. */
bool schema_version(struct pg *pg, int64_t *version, struct err *e);
int64_t schema_newest(void); /* that there is */

#endif
