/* coherence.h: keeps this node's session cache coherent with Redis, so that workers may read from it: Redis tells of
 * every change of a session, whoever made it (client tracking, broadcast mode), and a stamp in shared memory says until
 * when all of it is known to have arrived. */
#ifndef HYPERPAGE_COHERENCE_H
#define HYPERPAGE_COHERENCE_H

struct duty;

void coherence_keep(struct duty *d); /* a duty of every node */

#endif
