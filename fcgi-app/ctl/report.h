/* report.h: what a command tells, said once and printed either as one JSON object or as lines for people:
 *     name: value                       a list's rows have their members in one line:
 *     object:                           - name=value name=value
 *       name: value
 * Names are the same in both. Text is shown without control characters, since a session's content may hold any. */
#ifndef HYPERPAGE_REPORT_H
#define HYPERPAGE_REPORT_H

#include "buf.h"

#include <stdio.h>

struct report {
    struct buf text;
    FILE *to; /* standard output, unless a command has another use for that */
    bool json;
    int level;   /* of objects and lists that are open */
    bool in_row; /* members stand in one line */
    bool first;  /* nothing stands before the next member */
};

void report_init(struct report *r, bool json);
void report_forget(struct report *r); /* what was told so far was not all, so it is nothing */
bool report_print(struct report *r); /* ends it; false: it cannot be written */
void report_done(struct report *r);

/* Of a row's object, in a list, the name is NULL. */
void report_open(struct report *r, const char *name);
void report_close(struct report *r);
void report_open_list(struct report *r, const char *name);
void report_close_list(struct report *r);

void report_text(struct report *r, const char *name, struct bytes value);
void report_string(struct report *r, const char *name, const char *value); /* "" is null */
void report_number(struct report *r, const char *name, int64_t value);
void report_flag(struct report *r, const char *name, bool value);
void report_time(struct report *r, const char *name, int64_t wall_ms);  /* 0 is null */
void report_ms(struct report *r, const char *name, int64_t us);         /* as milliseconds, with fractions */
void report_json(struct report *r, const char *name, struct bytes raw); /* a JSON value; no bytes are null */

/* Appends text from outside as it may stand on a terminal, which obeys control characters, C1 too: each is a "?". */
void report_add_shown(struct buf *out, struct bytes value);

#endif
