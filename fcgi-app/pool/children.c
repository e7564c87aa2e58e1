#include "children.h"

#include "clock.h"

#include <string.h>

#define QUICK_MS       1000
#define PAUSE_MS       100 /* doubled with each quick death in a row... */
#define MOST_DOUBLINGS 8   /* ...up to 25.6 s: a worker that dies at once must not fill the machine with forks */

void children_init(struct children *cs, int workers)
{
    memset(cs, 0, sizeof *cs);
    cs->seats = CHILDREN_FIRST_WORKER;
    cs->seat[CHILDREN_KEEPER].wanted = true;
    children_want_workers(cs, workers);
}

void children_want_workers(struct children *cs, int workers)
{
    if (workers < 1) workers = 1;
    if (workers > CHILDREN_SEATS - CHILDREN_FIRST_WORKER) workers = CHILDREN_SEATS - CHILDREN_FIRST_WORKER;
    for (int s = CHILDREN_FIRST_WORKER; s < CHILDREN_SEATS; s++)
        cs->seat[s].wanted = s < CHILDREN_FIRST_WORKER + workers;
    if (cs->seats < CHILDREN_FIRST_WORKER + workers) cs->seats = CHILDREN_FIRST_WORKER + workers;
}

int children_workers_wanted(const struct children *cs)
{
    int n = 0;
    for (int s = CHILDREN_FIRST_WORKER; s < cs->seats; s++) n += cs->seat[s].wanted;
    return n;
}

void children_renew_all(struct children *cs)
{
    for (size_t i = 0; i < CHILDREN_MOST; i++)
        cs->child[i].renew = cs->child[i].pid != 0;                  /* also one that starts just now */
    for (int s = 0; s < cs->seats; s++) cs->seat[s].start_at_ms = 0; /* a new configuration is a new chance */
}

/* Who sits there (not leaving, not one who follows), or who follows. */
static struct child *on_seat(struct children *cs, int seat, bool follows)
{
    for (size_t i = 0; i < CHILDREN_MOST; i++) {
        struct child *c = &cs->child[i];
        if (c->pid != 0 && c->seat == seat && !c->leaving && c->follows == follows) return c;
    }
    return NULL;
}

static bool somebody_follows(struct children *cs)
{
    for (size_t i = 0; i < CHILDREN_MOST; i++)
        if (cs->child[i].pid != 0 && cs->child[i].follows && !cs->child[i].leaving) return true;
    return false;
}

static enum child_action next_for_seat(struct children *cs, int s, int64_t now_ms, struct child **child,
                                       int64_t *due_ms)
{
    struct seat *seat = &cs->seat[s];
    struct child *sits = on_seat(cs, s, false), *follower = on_seat(cs, s, true);
    *child = NULL;
    if (!seat->wanted) {
        *child = sits ? sits : follower;
        return *child ? CHILD_LEAVE : CHILD_NOTHING;
    }
    if (follower != NULL && (follower->ready || sits == NULL)) { /* the seat changes hands */
        follower->follows = false;
        *child = sits;
        return sits ? CHILD_LEAVE : CHILD_NOTHING;
    }
    bool empty = sits == NULL && follower == NULL;
    bool renew = sits != NULL && sits->renew && follower == NULL && !somebody_follows(cs);
    if (!empty && !renew) return CHILD_NOTHING;
    if (now_ms >= seat->start_at_ms) return CHILD_START;
    if (seat->start_at_ms < *due_ms) *due_ms = seat->start_at_ms;
    return CHILD_NOTHING;
}

enum child_action children_next(struct children *cs, int64_t now_ms, struct child **child, int *seat, int64_t *due_ms)
{
    *due_ms = CLOCK_NEVER;
    for (size_t i = 0; i < CHILDREN_MOST; i++) {
        struct child *c = &cs->child[i];
        if (c->pid == 0 || !c->leaving || c->killed) continue;
        if (now_ms >= c->leave_by_ms) {
            c->killed = true;
            *child = c;
            return CHILD_KILL;
        }
        if (c->leave_by_ms < *due_ms) *due_ms = c->leave_by_ms;
    }
    for (int s = 0; s < cs->seats; s++) {
        enum child_action a = next_for_seat(cs, s, now_ms, child, due_ms);
        *seat = s;
        if (a != CHILD_NOTHING) return a;
    }
    return CHILD_NOTHING;
}

struct child *children_started(struct children *cs, int seat, pid_t pid, int report_fd, int64_t now_ms)
{
    bool follows = on_seat(cs, seat, false) != NULL;
    for (size_t i = 0; i < CHILDREN_MOST; i++) {
        struct child *c = &cs->child[i];
        if (c->pid != 0) continue;
        *c = (struct child){ .pid = pid,
                             .role = seat == CHILDREN_KEEPER ? CHILD_KEEPER : CHILD_WORKER,
                             .seat = seat,
                             .follows = follows,
                             .report_fd = report_fd,
                             .started_ms = now_ms };
        return c;
    }
    return NULL;
}

void children_is_leaving(struct child *c, int64_t leave_by_ms)
{
    c->leaving = true;
    c->leave_by_ms = leave_by_ms;
}

void children_is_ready(struct child *c)
{
    c->ready = true;
}

void children_has_served(struct children *cs, struct child *c)
{
    c->served = true;
    cs->seat[c->seat].quick_deaths = 0;
}

void children_is_tired(struct child *c)
{
    c->renew = c->tired = true;
}

bool children_died(struct children *cs, struct child *c, int64_t now_ms)
{
    bool expected = c->leaving;
    struct seat *seat = &cs->seat[c->seat];
    if (!expected) {
        bool quick = now_ms - c->started_ms < QUICK_MS && !c->served;
        seat->quick_deaths = quick ? seat->quick_deaths + 1 : 0;
        int doublings = seat->quick_deaths < MOST_DOUBLINGS ? seat->quick_deaths : MOST_DOUBLINGS;
        seat->start_at_ms = quick ? now_ms + ((int64_t)PAUSE_MS << doublings) : now_ms;
    }
    *c = (struct child){ .pid = 0 };
    return !expected;
}

struct child *children_find(struct children *cs, pid_t pid)
{
    for (size_t i = 0; i < CHILDREN_MOST; i++)
        if (cs->child[i].pid == pid && pid != 0) return &cs->child[i];
    return NULL;
}

bool children_all_ready(const struct children *cs)
{
    for (int s = 0; s < cs->seats; s++) {
        const struct child *sits = on_seat((struct children *)cs, s, false);
        if (cs->seat[s].wanted && (sits == NULL || sits->renew || !sits->ready)) return false;
    }
    return true;
}

size_t children_count(const struct children *cs)
{
    size_t n = 0;
    for (size_t i = 0; i < CHILDREN_MOST; i++) n += cs->child[i].pid != 0;
    return n;
}
