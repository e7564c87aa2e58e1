/* ids.h: session ids, request ids, entity tags, version-5 ids. The only user of libuuid. */
#ifndef HYPERPAGE_IDS_H
#define HYPERPAGE_IDS_H

#include "buf.h"

#include <stdint.h>

#define IDS_MOST_BYTES 128                  /* of a session or request id */
#define IDS_TEXT_BYTES (IDS_MOST_BYTES + 1) /* with its NUL */

/* A random (version 4) UUID: 122 bits from the kernel, no state in this process, so safe after fork. */
void ids_new(char out[IDS_TEXT_BYTES]);

/* The same for names that are no secrets, such as request ids: the kernel is asked once for many. Only after fork. */
void ids_new_public(char out[IDS_TEXT_BYTES]);

/* White space around it is trimmed; then it must be 1 to 128 of [A-Za-z0-9._-]. False leaves `out` empty. */
bool ids_read(struct bytes raw, char out[IDS_TEXT_BYTES]);

/* The version-5 UUID of `name` in the URL namespace; a `name` that is a UUID already is copied in lower case. */
void ids_v5(struct bytes name, char out[IDS_TEXT_BYTES]);

/* For logs: 8 hex digits that tell ids apart and lead nobody back to one. */
void ids_short(const char *id, char out[9]);

/* A 64-bit fingerprint of bytes, the same on every machine; `seed` chains several pieces. Not for secrets. */
uint64_t ids_hash(struct bytes data, uint64_t seed);

/* Equal? Takes the same time wherever they differ. */
bool ids_same_secret(struct bytes a, struct bytes b);

#endif
