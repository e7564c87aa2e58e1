/* log.h: one line per event, to standard error or to a file: words first, then key=value pairs, as text or as JSON.
 * Changes of state and failures, not each request. Never a session's content, a secret or a whole id. */
#ifndef HYPERPAGE_LOG_H
#define HYPERPAGE_LOG_H

#include "err.h"

#include <stdbool.h>

enum log_level { LOG_ERROR, LOG_WARN, LOG_INFO, LOG_DEBUG };
enum log_format { LOG_TEXT, LOG_JSON };

/* For the first line of main(): of the descriptors 0 to 2 those that are closed are opened, on /dev/null. Else whatever
 * is opened first would be standard error, and lines would go into it. */
void log_keep_standard(void);

/* `role` names the process in each line ("master", "worker"); `path` "" writes to standard error. The strings are
 * borrowed and must outlive the log. */
bool log_open(const char *role, enum log_level level, enum log_format format, const char *path, struct err *e);
void log_role(const char *role);
bool log_reopen(struct err *e); /* after a rotation; keeps the old file if the new one cannot be opened */
bool log_enabled(enum log_level level);

/* One call is one line and one write. The text is `words: key=value key="value with blanks"`; bytes below 0x20 and
 * bytes that are not UTF-8 are escaped. In JSON form the words are "message" and each pair of the format a member: a
 * number only if it is unquoted and no %s, so that a member's type does not change with its value. */
void log_write(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_write(LOG_ERROR, __VA_ARGS__)
#define log_warn(...)  log_write(LOG_WARN, __VA_ARGS__)
#define log_info(...)  log_write(LOG_INFO, __VA_ARGS__)
#define log_debug(...)                                                                                                 \
    do {                                                                                                               \
        if (log_enabled(LOG_DEBUG)) log_write(LOG_DEBUG, __VA_ARGS__);                                                 \
    } while (0)

#endif
