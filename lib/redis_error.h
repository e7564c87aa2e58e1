/* redis_error.h: what an error reply of Redis means. Pure; one table. */
#ifndef HYPERPAGE_REDIS_ERROR_H
#define HYPERPAGE_REDIS_ERROR_H

#include "err.h"

/* What may help. None of the commands that were answered so has been executed. */
enum redis_remedy {
    REDIS_NOTHING_HELPS,
    REDIS_LOOK_AGAIN,  /* this server does not serve writes (any more): see who does */
    REDIS_GO_THERE,    /* MOVED: the slot belongs to the server named in the reply */
    REDIS_ASK_THERE,   /* ASK: this once the server named in the reply, with ASKING before the command */
    REDIS_WAIT_A_BIT,  /* TRYAGAIN: some of the keys have moved, others have not */
    REDIS_SEND_SCRIPT, /* NOSCRIPT */
};

struct redis_error {
    const char *code; /* the reply's first word or words */
    enum err_kind kind;
    bool away; /* this server cannot serve anybody's writes now; it may by itself later */
    bool ours; /* a mistake in our commands or in the configuration: an operator must act, waiting does not help */
    enum redis_remedy remedy;
};

/* Never NULL: what is not known is ours. */
const struct redis_error *redis_error_of(const char *reply_text);

/* The error as a value. What is ours goes to the log as an error too, once a minute. */
bool redis_error_set(const struct redis_error *m, const char *reply_text, struct err *e);

#endif
