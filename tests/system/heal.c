/* heal: makes the index of users equal to the sessions, as the hourly cleanup will, in the store that the environment
 * names; prints what it saw. For test_features.py. */
#include "clock.h"
#include "config.h"
#include "store.h"

#include <inttypes.h>
#include <stdio.h>

extern char **environ;

int main(int argc, char *argv[])
{
    struct buf warnings = BUF_INIT(4096);
    struct config_call call;
    struct store_heal heal = { 0 };
    struct store *st = NULL;
    struct err e = { 0 };
    struct config *cfg = config_load(argc, argv, environ, &call, &warnings, &e);
    bool ok = cfg != NULL && (st = store_open(cfg, NULL, &e)) != NULL;
    while (ok && !heal.done) ok = store_heal(st, &heal, clock_mono_ms() + 5000, &e);
    if (ok)
        printf("sessions=%" PRId64 " entered=%" PRId64 " removed=%" PRId64 "\n", heal.sessions, heal.entered,
               heal.removed);
    else
        fprintf(stderr, "heal: %s\n", e.text);
    store_close(st);
    config_free(cfg);
    buf_done(&warnings);
    return ok ? 0 : 1;
}
