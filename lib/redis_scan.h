/* redis_scan.h: all keys of a kind, page by page, whatever REDIS_URL names. What is there from the first page to the
 * last is seen, maybe twice; keys that move to another server of a cluster meanwhile may be missed. */
#ifndef HYPERPAGE_REDIS_SCAN_H
#define HYPERPAGE_REDIS_SCAN_H

#include "redis.h"

/* How far it has come; all zero to begin. */
struct redis_scan {
    int server;
    char cursor[24]; /* the server's own; "" is its beginning */
};

/* Asks for the next page of keys that fit `pattern` and calls `each` for every one. False if Redis does not answer or
 * `each` does not succeed: the same page comes again. *done: there is none left. */
typedef bool redis_scan_each_fn(void *ctx, struct bytes key, struct err *e);
bool redis_scan_page(struct redis *r, struct redis_scan *at, const char *pattern, int64_t deadline_ms, bool *done,
                     redis_scan_each_fn *each, void *ctx, struct err *e);

#endif
