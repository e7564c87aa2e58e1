/* exchange.h: the requests that a worker is answering, from the moment when one is whole to its answer and its line in
 * the log. Their memory is used again. */
#ifndef HYPERPAGE_EXCHANGE_H
#define HYPERPAGE_EXCHANGE_H

#include "api.h"

/* A worker's; all zero to begin. */
struct exchanges {
    struct exchange *first, *last; /* being answered, oldest first */
    struct exchange *spare;
    size_t count, spares;
    uint64_t answered;
};

/* `whole_us`: since when the request is whole (monotonic); its deadline counts from there. */
struct exchange *exchange_begin(struct exchanges *xs, struct api *api, int64_t whole_us);
void exchange_end(struct exchanges *xs, struct exchange *x);

/* Gives spare memory back, all but that of `keep`. */
void exchanges_free(struct exchanges *xs, size_t keep);

/* The line of a request that was slow or has failed, with the id that its client knows; of others with LOG_REQUESTS. */
void exchange_log(const struct exchange *x, int64_t took_us);

#endif
