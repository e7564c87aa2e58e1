/* jobs.h: the table `jobs`, worked off by the leader, one job at a time: claimed, run, and finished in the table, each
 * step a fenced transaction. What a dead leader has begun is begun again, so a job's steps must bear being repeated. */
#ifndef HYPERPAGE_JOBS_H
#define HYPERPAGE_JOBS_H

#include "duties.h"

struct job {
    struct duty *duty;   /* the one that runs it */
    int64_t id, attempt; /* the first attempt is 1 */
    const char *payload; /* JSON */
    int64_t deadline_ms; /* monotonic */
    struct buf report;   /* members of a JSON object, without braces, for job_history: what was done */
};

/* The leader's duty: works off what is due of the types we know, and puts the hourly cleanup among it. */
void jobs_run(struct duty *d);

/* Shall the job go on? Before every step: false when leadership is lost or the job's time is over. */
bool job_goes_on(const struct job *job);
struct coordinator *job_coordinator(const struct job *job);

/* A message asks for a job of this type: if we lead, it is added, unless one is waiting already. */
void jobs_ask(struct coordinator *co, const char *type);

#endif
