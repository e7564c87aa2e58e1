/* config.h: the options, from one table (config.def): default < file < environment < command line. */
#ifndef HYPERPAGE_CONFIG_H
#define HYPERPAGE_CONFIG_H

#include "buf.h"
#include "err.h"

#include <stdint.h>

#define CONFIG_AUTO (-1) /* a NUMBER whose default is "auto" and that nobody set */

struct config {
#define TEXT(name, def, doc)                      const char *name;
#define NUMBER(name, def, least, most, unit, doc) int64_t name;
#define FLAG(name, def, doc)                      bool name;
#define CHOICE(name, def, allowed, doc)           int name;         /* index into `allowed` */
#define SECRET(name, doc)                         const char *name; /* "" if there is none */
#include "config.def"
};

/* What stood on the command line beside options. */
struct config_call {
    const char *file; /* --config FILE */
    bool check;       /* --check */
    bool help;
    bool version;
    bool reference; /* --reference: conf/reference.md on standard output */
};

/* Reads argv[1..], the file named there, and the environment. On the first thing that is wrong: NULL and `e` with one
 * line naming the option, the value and what is allowed. What stops nothing, environment variables that look like
 * misspelt options, goes to `misses`, for the log once there is one, as lines "NAME NEAR". The result is the
 * caller's: config_free(). */
struct config *config_load(int argc, char *const argv[], char *const environ_[], struct config_call *call,
                           struct buf *misses, struct err *e);
void config_free(struct config *c);

void config_help(const char *program, const char *summary, struct buf *out);
void config_reference(struct buf *out); /* Markdown, as conf/reference.md */

/* Every option in its order, its name in capitals, its value as in a file; of a secret only whether there is one. */
void config_each(const struct config *c, void (*each)(void *ctx, const char *key, const char *value), void *ctx);

/* Appends `text` in lines of at most `width` columns, each behind `indent` blanks: as --help has it. */
void config_wrap(const char *text, int indent, size_t width, struct buf *out);

/* The nth item of a comma-separated value, trimmed, empty ones not counted; false past the last. */
bool config_item(const char *list, size_t n, struct bytes *item);

#endif
