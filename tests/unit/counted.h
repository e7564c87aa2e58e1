/* counted.h: one total, and the shared state's file, for tests. */
#ifndef HYPERPAGE_TEST_COUNTED_H
#define HYPERPAGE_TEST_COUNTED_H

#include "totals.h"

#include <glob.h>
#include <stdio.h>
#include <unistd.h>

static inline uint64_t counted_in(struct shared *sh, size_t counter)
{
    uint64_t totals[METRICS_COUNTERS];
    totals_read(sh, totals);
    return totals[counter];
}

/* The path of the one file in `dir`, "" if there is none. */
static inline const char *state_path_in(const char *dir)
{
    static char path[256];
    glob_t found;
    snprintf(path, sizeof path, "%s/" SHARED_FILE "*", dir);
    bool one = glob(path, 0, NULL, &found) == 0;
    snprintf(path, sizeof path, "%s", one ? found.gl_pathv[0] : "");
    globfree(&found);
    return path;
}

#endif
