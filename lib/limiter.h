/* limiter.h: how often somebody may do something: so many times a minute for each client address, counted for all
 * processes of the node in a small mapped table without locks. */
#ifndef HYPERPAGE_LIMITER_H
#define HYPERPAGE_LIMITER_H

#include "err.h"

#include <stdbool.h>
#include <stdint.h>

struct limiter;

/* The table is RUN_DIR/NAME. NULL with `e` on failure. */
struct limiter *limiter_open(const char *run_dir, const char *name, int64_t per_minute, struct err *e);
void limiter_close(struct limiter *l);

/* May this address ("192.0.2.1", "2001:db8::1"; anything else is one address) do it once more? It may do it per_minute
 * times at once, and then as evenly as the minute goes by. False: *wait_ms from now it may again. `now_us` is
 * monotonic. An address that the table has no room for any more may do it again too early, never too late. */
bool limiter_take(struct limiter *l, const char *address, int64_t now_us, int64_t *wait_ms);

#endif
