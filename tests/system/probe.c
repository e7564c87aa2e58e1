/* probe.c: shows the system tests what no program of ours does, outside of tasks:
 *   probe slot KEY...    the slot of each key in a cluster
 *   probe count          how many sessions REDIS_URL's servers hold */
#include "config.h"
#include "mem.h"
#include "redis_slots.h"
#include "store_redis.h"

#include <inttypes.h>
#include <limits.h>

extern char **environ;

static bool count(struct err *e)
{
    struct config_call call;
    struct buf warnings = BUF_INIT(4096);
    char *no_arguments[] = { "probe", NULL };
    struct config *cfg = config_load(1, no_arguments, environ, &call, &warnings, e);
    if (cfg == NULL) return false;
    struct store_redis_options o = { .connection = { .client_name = "probe",
                                                     .timeout_ms = cfg->redis_timeout_ms,
                                                     .sentinel_password = cfg->redis_sentinel_password } };
    struct store_redis *sr = NULL;
    int64_t sessions;
    bool ok = redis_url_parse(cfg->redis_url, &o.connection.url, e) && (sr = store_redis_open(&o)) != NULL &&
              store_redis_ops.count(sr, INT64_MAX, &sessions, e);
    if (ok) printf("%" PRId64 "\n", sessions);
    store_redis_ops.close(sr);
    buf_done(&warnings);
    config_free(cfg);
    return ok;
}

int main(int argc, char **argv)
{
    struct err e = { .text = "slot or count?" };
    bool ok = argc > 1;
    if (ok && strcmp(argv[1], "slot") == 0)
        for (int i = 2; i < argc; i++) printf("%u\n", redis_slot_of(bytes_of(argv[i])));
    else
        ok = ok && strcmp(argv[1], "count") == 0 && count(&e);
    if (!ok) fprintf(stderr, "%s\n", e.text);
    return ok ? 0 : 1;
}
