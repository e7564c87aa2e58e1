/* platforms.h: the platforms whose rate limits Hyperpage watches, and what reports of these mean at a moment. Pure. */
#ifndef HYPERPAGE_PLATFORMS_H
#define HYPERPAGE_PLATFORMS_H

#include "coordination.h"
#include "metrics.h"

#define PLATFORM_FRESH_MS 300000 /* a report is fresh for so long */

enum platform { PLATFORM_GITHUB, PLATFORM_GITLAB, PLATFORM_JIRA, PLATFORMS };
extern const char *const platform_names[PLATFORMS];

/* False: no platform that we know. */
bool platform_of(const char *name, enum platform *p);

/* Does the platform have this endpoint? "global" stands for all of it. */
bool platform_has(enum platform p, const char *endpoint);

/* The counters of reports that nothing remains, or that there is a time to wait. */
enum metric platform_hits(enum platform p);
enum metric platform_retries(enum platform p);

/* Its numbers are those of the metric rate_limit_status. */
enum platform_status { PLATFORM_NORMAL, PLATFORM_WARNING, PLATFORM_CRITICAL, PLATFORM_UNKNOWN };
extern const char *const platform_statuses[];

/* What was reported, as of now: after its reset all of the limit remains; a time to wait gets shorter. */
struct coordination_limit platform_limit_at(const struct coordination_limit *reported, int64_t now_ms);

/* What is known of a platform's endpoints, together. */
struct platform_state {
    enum platform_status status; /* the worst of them */
    int64_t usage_permille;      /* the highest of them; -1: not known */
    int64_t updated_ms;          /* wall: the latest report; 0: there is none */
    bool fresh;
};
struct platform_state platform_state_at(const struct coordination_limits *ls, enum platform p, int64_t now_ms);

#endif
