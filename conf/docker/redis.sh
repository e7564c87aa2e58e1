#!/bin/sh
# redis.sh: Redis as the session service wants it. Its password is the one that stands in the secret REDIS_URL, so there
# is one place to change it, and comes through standard input, so it stands in no command line.
set -eu

password=$(sed -n 's|^redis://[^:]*:\([^@]*\)@.*|\1|p' "${REDIS_URL_FILE:-/run/secrets/redis-url}")
if [ -z "$password" ]; then
    echo "redis.sh: the secret must read redis://:PASSWORD@redis:6379/0" >&2
    exit 2
fi
# Sessions are not a cache: nothing may be thrown away because memory is short, and what was acknowledged is on disk a
# second later.
exec redis-server - << CONF
port ${REDIS_PORT:-6379}
dir ${REDIS_DIR:-/data}
requirepass "$password"
maxmemory ${REDIS_MAXMEMORY:-384mb}
maxmemory-policy noeviction
appendonly yes
appendfsync everysec
save ""
tcp-backlog 1024
CONF
