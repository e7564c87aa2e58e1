/* resp.h: a command as Redis wants it on the wire. */
#ifndef HYPERPAGE_RESP_H
#define HYPERPAGE_RESP_H

#include "buf.h"

void resp_command(struct buf *out, size_t argc, const struct bytes *argv);

#endif
