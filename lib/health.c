#include "health.h"

#include "buf.h"

#include <limits.h>
#include <unistd.h>

const char *const health_names[] = { "unhealthy", "degraded", "healthy" };
const char *const health_check_names[] = { "unknown", "unused", "up", "down" };

enum check_state health_dependency(struct shared *sh, enum dependency d, bool away, int64_t now_ms)
{
    enum check_state state = shared_check_state(sh, d, now_ms);
    return d == DEPENDENCY_REDIS && state == CHECK_UP && away ? CHECK_DOWN : state;
}

int64_t health_since_ms(struct shared *sh, enum dependency d, int64_t lost_ms)
{
    return d == DEPENDENCY_REDIS && lost_ms != 0 ? lost_ms : atomic_load(&shared_check(sh, d)->since_ms);
}

bool health_in_maintenance(const char *run_dir)
{
    struct buf path = BUF_INIT(PATH_MAX);
    buf_printf(&path, "%s/maintenance", run_dir);
    bool there = access(buf_text(&path), F_OK) == 0;
    buf_done(&path);
    return there;
}

enum health health_of(enum check_state redis, enum check_state embedded, bool refuge)
{
    bool sheltered = redis == CHECK_DOWN && refuge && embedded == CHECK_UP;
    bool home = redis == CHECK_UNUSED ? embedded == CHECK_UP : redis == CHECK_UP;
    if (!home && !sheltered) return HEALTH_UNHEALTHY;
    return sheltered || (redis == CHECK_UP && embedded == CHECK_DOWN) ? HEALTH_DEGRADED : HEALTH_HEALTHY;
}
