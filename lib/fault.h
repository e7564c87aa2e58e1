/* fault.h: places at which a test may end the process, in builds with -DHYPERPAGE_FAULTS and nowhere else. A place is
 * armed by a file of its name in the folder that HYPERPAGE_FAULTS names; the file goes with the first process that gets
 * there, so that its successor lives. */
#ifndef HYPERPAGE_FAULT_H
#define HYPERPAGE_FAULT_H

#ifdef HYPERPAGE_FAULTS
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void fault_point(const char *name)
{
    char path[512];
    const char *folder = getenv("HYPERPAGE_FAULTS");
    if (folder == NULL) return;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (unlink(path) == 0) kill(getpid(), SIGKILL);
}
#else
static inline void fault_point(const char *name)
{
    (void)name;
}
#endif

#endif
