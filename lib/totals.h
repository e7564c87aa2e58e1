/* totals.h: what all processes of the node have counted, ever: by the living, by the dead, and by builds whose counters
 * lie in another order. No total ever falls. */
#ifndef HYPERPAGE_TOTALS_H
#define HYPERPAGE_TOTALS_H

#include "shared.h"

/* The sum of each counter: over the slots of our file, over what it has taken over, and over the files of other layouts
 * in RUN_DIR, by the counters' names. What this build has no name for is passed over. */
void totals_read(struct shared *sh, uint64_t totals[METRICS_COUNTERS]);

uint64_t totals_requests(const uint64_t *totals); /* answered, of any kind */

/* Takes over what stands in files that nobody has open any more, and removes them. For the one process of the node that
 * keeps house, now and then; a kill at any moment neither loses a number nor adds it twice. */
void totals_fold(struct shared *sh);

#endif
