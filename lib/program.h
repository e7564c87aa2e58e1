/* program.h: how a daemon of ours begins: what it answers to --help and its kin, and what it says of its options. */
#ifndef HYPERPAGE_PROGRAM_H
#define HYPERPAGE_PROGRAM_H

#include "config.h"

struct program {
    const char *name, *summary;
};

/* Answers --help, --version and --reference on standard output. False: none of them was asked for. */
bool program_tells(const struct program *p, const struct config_call *call, int *exit_code);

/* One line on standard error for what is wrong; folders that this start has made are removed. The exit code: always 2.
 */
int program_refuse(const struct program *p, const struct err *e);

/* What config_load() has taken for misspelt options, into the log. */
void program_log_near_misses(const struct buf *misses);

#endif
