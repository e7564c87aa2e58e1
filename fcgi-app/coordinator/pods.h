/* pods.h: a duty of every node: says in Redis that this node lives, and learns who else does. */
#ifndef HYPERPAGE_PODS_H
#define HYPERPAGE_PODS_H

#include "duties.h"

extern const char *const pods_lives_script;

void pods_keep(struct duty *d);

#endif
