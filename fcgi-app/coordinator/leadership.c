#include "leadership.h"

#include "clock.h"
#include "mem.h"

struct leadership {
    struct coordinator *co;
    void (*changed)(struct coordinator *co);
    bool alone, stopped;
    int64_t term, since_ms;
};

struct leadership *leadership_open(struct coordinator *co, void (*changed)(struct coordinator *co))
{
    struct leadership *l = mem_alloc(sizeof *l);
    *l = (struct leadership){ .co = co, .changed = changed, .alone = co->config->redis_url[0] == '\0' };
    return l;
}

void leadership_close(struct leadership *l)
{
    free(l);
}

void leadership_start(struct leadership *l)
{
    if (!l->alone) return;
    l->term = 1;
    l->since_ms = clock_wall_ms();
    l->changed(l->co);
}

void leadership_stop(struct leadership *l)
{
    l->stopped = true;
}

bool leadership_may_act(const struct leadership *l)
{
    return clock_mono_ms() < leadership_acts_until_ms(l);
}

int64_t leadership_acts_until_ms(const struct leadership *l)
{
    return l->alone && !l->stopped ? CLOCK_NEVER : 0;
}

bool leadership_is_leader(const struct leadership *l)
{
    return l->alone;
}

int64_t leadership_term(const struct leadership *l)
{
    return l->term;
}

const char *leadership_leader(const struct leadership *l)
{
    return l->alone ? l->co->pod : "";
}

int64_t leadership_leader_term(const struct leadership *l)
{
    return l->term;
}

int64_t leadership_since_ms(const struct leadership *l)
{
    return l->since_ms;
}

void leadership_lift_term(struct leadership *l, int64_t above)
{
    if (l->alone && l->term <= above) l->term = above + 1;
}

void leadership_look(struct leadership *l)
{
    (void)l;
}
