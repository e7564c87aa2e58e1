/* folder.h: the folders that options name: are they there and ours to write, and if not, may they be made? */
#ifndef HYPERPAGE_FOLDER_H
#define HYPERPAGE_FOLDER_H

#include "err.h"

#include <sys/types.h>

/* Checks the folder `path` of the option `key`. `create`: makes it, with `mode`, if it is missing and its parent is
 * there; else only says whether that could be done. False: one line naming the option, the value and what is wrong.
 * The strings must outlive folder_leave_nothing(). */
bool folder_check(const char *key, const char *path, mode_t mode, bool create, struct err *e);

/* After a start that was refused: removes the folders that it has made. */
void folder_leave_nothing(void);

#endif
