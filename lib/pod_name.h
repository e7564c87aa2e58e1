/* pod_name.h: what this node is called among the others. */
#ifndef HYPERPAGE_POD_NAME_H
#define HYPERPAGE_POD_NAME_H

#include "config.h"
#include "ids.h"

#define POD_NAME_BYTES IDS_TEXT_BYTES

/* POD_NAME, or the host's name and a random suffix, which STATE_DIR/pod-suffix keeps: two nodes may share a host name,
 * and a node keeps its own over restarts. False: POD_NAME is no name, or the suffix cannot be kept. */
bool pod_name(const struct config *cfg, char out[POD_NAME_BYTES], struct err *e);

/* The same without making anything: is POD_NAME, if there is one, a name? */
bool pod_name_check(const struct config *cfg, struct err *e);

#endif
