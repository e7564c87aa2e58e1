/* subscriber.h: a connection of its own that listens to Pub/Sub channels, in a task: made anew whenever it breaks, to
 * the primary that Sentinels name, to any server of a cluster. Pub/Sub delivers at most once, so whoever listens must
 * learn what was missed in another way, each time `subscribed` is called. */
#ifndef HYPERPAGE_SUBSCRIBER_H
#define HYPERPAGE_SUBSCRIBER_H

#include "redis.h"

#define SUBSCRIBER_MOST_CHANNELS 8

struct subscriber;

/* Called in the subscriber's task, which is deaf meanwhile: they do not park. */
struct subscriber_events {
    void (*subscribed)(void *ctx);                                               /* to all channels, anew */
    void (*message)(void *ctx, struct bytes channel, const redisReply *payload); /* mostly a string */
    void (*lost)(void *ctx);
    void *ctx;
};

struct subscriber_options {
    struct redis *redis;                /* knows where to connect */
    const struct redis_url *url;        /* and this, as whom */
    const struct redis_address *server; /* NULL: any that messages reach */
    const char *client_name;
    const char *purpose;   /* what it hears, for the log */
    int64_t ping_every_ms; /* 0: once a second */
    int64_t timeout_ms;    /* longest wait for a connection, and for each answer while it is made */
    const char *channels[SUBSCRIBER_MOST_CHANNELS];
    size_t channel_count;
    struct pollset *pollset;
    struct subscriber_events events;
};

/* What the options point at must outlive it. */
struct subscriber *subscriber_open(const struct subscriber_options *o);
void subscriber_close(struct subscriber *s); /* once it has ended */

void subscriber_start(struct subscriber *s);
void subscriber_stop(struct subscriber *s); /* its task ends soon */
bool subscriber_has_ended(const struct subscriber *s);

/* Redis' number for the present connection, to redirect invalidations to; 0 while there is none. */
int64_t subscriber_client_id(const struct subscriber *s);

/* When the answer came from which one knows that everything sent before its question has arrived: the question's time
 * (monotonic); 0 while not subscribed. */
int64_t subscriber_heard_ms(const struct subscriber *s);

#endif
