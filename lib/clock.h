/* clock.h: wall and monotonic milliseconds. Deadlines are monotonic; only documents and logs hold wall time. */
#ifndef HYPERPAGE_CLOCK_H
#define HYPERPAGE_CLOCK_H

#include <stddef.h>
#include <stdint.h>

#define CLOCK_NEVER INT64_MAX /* a deadline that does not come */

int64_t clock_wall_ms(void); /* since 1970, UTC */
int64_t clock_mono_ms(void); /* the same for all processes of the machine, never set back */
int64_t clock_mono_us(void);

/* Names this start of the machine; 0 where the kernel does not tell. Monotonic times that a file has kept from another
 * one mean nothing. */
uint64_t clock_boot(void);

/* From now on both clocks stand still at these values; -1 lets a clock run again. For tests. */
void clock_set(int64_t wall_ms, int64_t mono_ms);

/* "2026-01-31T23:59:59.123Z" */
#define CLOCK_ISO_BYTES 25
void clock_iso(int64_t wall_ms, char out[CLOCK_ISO_BYTES]);

#endif
