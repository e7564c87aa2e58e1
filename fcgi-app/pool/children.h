/* children.h: the master's children: who sits on which seat, who follows whom, and when. Pure: it decides, the master
 * forks and kills. Time is passed in, monotonic. */
#ifndef HYPERPAGE_CHILDREN_H
#define HYPERPAGE_CHILDREN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define CHILDREN_MOST 600 /* WORKERS at its most twice (a reload), and the keeper */

enum child_role { CHILD_WORKER, CHILD_KEEPER };

struct child {
    pid_t pid; /* 0: free */
    enum child_role role;
    int seat;             /* 0 .. seats-1; the keeper has the seat CHILDREN_KEEPER */
    bool ready;           /* has said so */
    bool served;          /* has said so: it has done once what it is there for */
    bool leaving;         /* has been told to */
    bool follows;         /* will take the seat over from the one who has it, once it is ready */
    bool renew;           /* somebody newer should sit here: a reload since its fork, or it is tired */
    bool tired;           /* it has said so */
    bool killed, stalled; /* stalled: killed because its loop stood still */
    int report_fd;
    int64_t started_ms, leave_by_ms;
};

#define CHILDREN_KEEPER       0
#define CHILDREN_FIRST_WORKER 1
#define CHILDREN_SEATS        257

struct seat {
    bool wanted;         /* somebody should sit here */
    int quick_deaths;    /* in a row, each within a second of its start and before it had served */
    int64_t start_at_ms; /* when it may be forked for again */
};

struct children {
    struct child child[CHILDREN_MOST];
    struct seat seat[CHILDREN_SEATS];
    int seats; /* in use: the keeper's, and one for each worker ever wanted */
};

void children_init(struct children *cs, int workers);
void children_want_workers(struct children *cs, int workers); /* more or fewer; whoever is too many has to leave */
int children_workers_wanted(const struct children *cs);
void children_renew_all(struct children *cs);

/* The next thing to do now: a seat to fork for (CHILD_START: *seat, *follows), a child to tell to leave (CHILD_LEAVE)
 * or to kill (CHILD_KILL: its time to leave is over), or nothing until *due_ms. One worker is renewed at a time. */
enum child_action { CHILD_NOTHING, CHILD_START, CHILD_LEAVE, CHILD_KILL };
enum child_action children_next(struct children *cs, int64_t now_ms, struct child **child, int *seat, int64_t *due_ms);

/* The outcomes of those, and what else is heard of children. */
struct child *children_started(struct children *cs, int seat, pid_t pid, int report_fd, int64_t now_ms);
void children_is_leaving(struct child *c, int64_t leave_by_ms);
void children_is_ready(struct child *c);
void children_has_served(struct children *cs, struct child *c);
void children_is_tired(struct child *c);

/* A child is dead. True: nobody had told it to leave. */
bool children_died(struct children *cs, struct child *c, int64_t now_ms);

struct child *children_find(struct children *cs, pid_t pid);
bool children_all_ready(const struct children *cs); /* every wanted seat is taken by one who is ready, none to renew */
size_t children_count(const struct children *cs);

#endif
