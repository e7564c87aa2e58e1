/* routes.h: which handler answers which request. */
#ifndef HYPERPAGE_ROUTES_H
#define HYPERPAGE_ROUTES_H

#include "api.h"

/* Answers the exchange: runs its handler, or 404, or 405 with Allow. */
void routes_answer(struct exchange *x);

const char *routes_name(int route); /* its path, "-" for none */

#endif
