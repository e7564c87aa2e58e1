/* coordination.h: what the coordinator knows of the cluster, for all processes of the node: the file
 * RUN_DIR/coordination-3, mapped by all. One writer, the coordinator; readers never wait, whatever becomes of it. */
#ifndef HYPERPAGE_COORDINATION_H
#define HYPERPAGE_COORDINATION_H

#include "err.h"

#include <stddef.h>
#include <stdint.h>

#define COORDINATION_NAME_BYTES  136 /* of pods, as far as they fit */
#define COORDINATION_MOST_PODS   128
#define COORDINATION_MOST_LIMITS 64
#define COORDINATION_MOST_TYPES  8
#define COORDINATION_ALIVE_MS    2000 /* who has shown nothing for so long is dead */

struct coordination;

/* Whoever comes first makes the file. NULL with `e` on failure. */
struct coordination *coordination_open(const char *run_dir, struct err *e);
void coordination_close(struct coordination *c);

/* From now on this process is the writer. What its predecessor wrote last stands until it is written anew. */
void coordination_begin(struct coordination *c);

/* --- the leader, and who we are --- */

struct coordination_leader {
    char pod[COORDINATION_NAME_BYTES];    /* this node */
    char leader[COORDINATION_NAME_BYTES]; /* "" nobody, as far as this node knows */
    int64_t term;                         /* the leader's; 0: not known */
    int64_t since_ms;                     /* wall: since when this node has seen that leader with that term */
    int64_t is_leader;                    /* this node: it may act */
    int64_t subscribed;                   /* messages of others reach it */
    int64_t seen_term; /* the highest that this node knows of, also from before it was started anew */
};
void coordination_read_leader(const struct coordination *c, struct coordination_leader *out);
void coordination_write_leader(struct coordination *c, const struct coordination_leader *in);

/* --- the nodes that have shown that they live --- */

struct coordination_pods {
    int64_t count;   /* of those that are here */
    int64_t all;     /* beyond what has room here, too */
    int64_t seen_ms; /* wall: when the list was made */
    struct coordination_pod {
        char name[COORDINATION_NAME_BYTES];
        int64_t until_ms; /* wall: when it will have been silent for too long */
    } pod[COORDINATION_MOST_PODS];
};
void coordination_read_pods(const struct coordination *c, struct coordination_pods *out);
void coordination_write_pods(struct coordination *c, const struct coordination_pods *in);

/* --- messages received, by type; the last index stands for types that nobody here knows --- */

struct coordination_messages {
    struct coordination_message {
        int64_t count;   /* since the file was made */
        int64_t last_ms; /* wall */
        char source[COORDINATION_NAME_BYTES];
    } type[COORDINATION_MOST_TYPES];
};
void coordination_read_messages(const struct coordination *c, struct coordination_messages *out);
void coordination_write_messages(struct coordination *c, const struct coordination_messages *in);

/* --- rate limits of other platforms, as the nodes report them --- */

struct coordination_limits {
    int64_t count;
    struct coordination_limit {
        char platform[64], endpoint[64];
        int64_t limit, remaining; /* -1: not known */
        int64_t reset_ms;         /* wall; -1: not known */
        int64_t usage_permille;   /* -1: not known */
        int64_t retry_after_s;    /* 0: may be asked */
        int64_t updated_ms;       /* wall */
    } limit[COORDINATION_MOST_LIMITS];
};
void coordination_read_limits(const struct coordination *c, struct coordination_limits *out);
void coordination_write_limits(struct coordination *c, const struct coordination_limits *in);

/* The row of this platform and endpoint; a new one, or the one that nobody has reported for longest, if there is none.
 */
struct coordination_limit *coordination_limit_row(struct coordination_limits *ls, const char *platform,
                                                  const char *endpoint);

/* --- what somebody counts now and then --- */

#define COORDINATION_JOB_STATUSES 6
extern const char *const coordination_job_statuses[COORDINATION_JOB_STATUSES]; /* as the table jobs names them */

struct coordination_survey {
    int64_t cleaned_ms;  /* wall: when the cluster's last cleanup ended; 0: not known */
    int64_t sessions_ms; /* wall: when it was known last how many sessions Redis holds; 0: never, or no more */
    int64_t sessions;    /* of all nodes */
    int64_t jobs_ms;     /* wall: when this node, as the leader, counted jobs last; 0: never */
    int64_t jobs[COORDINATION_JOB_STATUSES]; /* by status */
};
void coordination_read_survey(const struct coordination *c, struct coordination_survey *out);
void coordination_write_survey(struct coordination *c, const struct coordination_survey *in);

/* Is what was counted at `counted_ms` (wall) still to be told? Whoever counted may have died, or lead no more. */
#define COORDINATION_COUNTED_MS 60000
static inline bool coordination_is_fresh(int64_t counted_ms, int64_t now_ms)
{
    return counted_ms > 0 && now_ms - counted_ms <= COORDINATION_COUNTED_MS;
}

/* --- single numbers --- */

/* The coordinator lives: at least every COORDINATION_ALIVE_MS / 4. `lag_ms`: how late its loop was, or how long one of
 * its rounds took, whichever is more. */
void coordination_beat(struct coordination *c, int64_t now_ms, int64_t lag_ms);
bool coordination_alive(const struct coordination *c, int64_t now_ms);
int64_t
coordination_beat_ms(const struct coordination *c); /* monotonic: the last one; 0: none since the machine started */
int64_t coordination_lag_ms(const struct coordination *c); /* the worst of the last ten to twenty seconds */

/* Messages that have come and wait to be worked off. */
void coordination_show_waiting(struct coordination *c, int64_t messages);
int64_t coordination_waiting(const struct coordination *c);

/* Coherence of the session cache: what changed in Redis before the stamp (monotonic) is known here, so a proven copy
 * may be believed while the stamp is not older than COORDINATION_COHERENT_MS. A new generation takes the stamp away. */
#define COORDINATION_COHERENT_MS 500
void coordination_new_generation(struct coordination *c);
void coordination_stamp(struct coordination *c, int64_t stamp_ms);
uint64_t coordination_generation(const struct coordination *c);
int64_t coordination_stamped_ms(const struct coordination *c); /* 0: none since the machine started */
bool coordination_is_coherent(const struct coordination *c, int64_t now_ms);

#endif
