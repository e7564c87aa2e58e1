/* survey.h: what is only known to who looks: does PostgreSQL answer, how many jobs there are, when the last cleanup
 * ended. Shown to the other processes of the node; nothing is decided by it. */
#ifndef HYPERPAGE_SURVEY_H
#define HYPERPAGE_SURVEY_H

#include "duties.h"

/* Every node's duty; jobs are counted by the leader alone. */
void survey_run(struct duty *d);

/* A cleanup has ended well: every node hears of it through Redis. */
void survey_cleaned(struct coordinator *co);

#endif
