/* node.c: this node as its RUN_DIR shows it. Nothing is made where nothing runs. */
#include "clock.h"
#include "ctl.h"

#define LOOK_MS 20

bool node_open(struct node *n, const struct config *cfg, struct err *e)
{
    *n = (struct node){ .master = DAEMON_NONE, .coordinator = DAEMON_NONE };
    bool pool = daemon_find(cfg->run_dir, &daemon_master, &n->master, e);
    bool coordinator = daemon_find(cfg->run_dir, &daemon_coordinator, &n->coordinator, e);
    if (!pool && !coordinator) return true;
    if ((n->shared = shared_open(cfg->run_dir, e)) == NULL) return false;
    if ((n->coordination = coordination_open(cfg->run_dir, e)) == NULL) return false;
    bool redis = atomic_load(&shared_check(n->shared, DEPENDENCY_REDIS)->state) != CHECK_UNUSED;
    if (redis && (n->breaker = breaker_open(cfg->run_dir, e)) == NULL) return false;
    if (pool) n->slot = shared_slot_of(n->shared, SLOT_MASTER, n->master.pid);
    return true;
}

void node_close(struct node *n)
{
    breaker_close(n->breaker);
    coordination_close(n->coordination);
    shared_close(n->shared);
    daemon_done(&n->master);
    daemon_done(&n->coordinator);
}

enum ctl_exit node_open_pool(struct ctl *c, struct node *n, bool known)
{
    struct err e;
    bool ok = node_open(n, c->config, &e);
    if (ok && n->master.pid == 0) ok = daemon_find(c->config->run_dir, &daemon_master, &n->master, &e);
    if (!ok) return ctl_failed(c, &e);
    if (known && n->slot == NULL)
        return ctl_fail(CTL_NOT_SO, "the pool that runs is of another build: restart makes it this one");
    return CTL_OK;
}

const char *node_state(const struct slot *s)
{
    static const char *const states[] = { "starting", "serving", "draining", "gone" };
    return states[atomic_load(&s->state) & 3];
}

bool node_until(bool (*holds)(void *ctx), void *ctx, const struct daemon *p, int64_t deadline_ms)
{
    for (;;) {
        int64_t now_ms = clock_mono_ms();
        if (holds(ctx)) return true;
        if (now_ms >= deadline_ms) return false;
        if (daemon_wait(p, now_ms + LOOK_MS < deadline_ms ? now_ms + LOOK_MS : deadline_ms)) return holds(ctx);
    }
}
