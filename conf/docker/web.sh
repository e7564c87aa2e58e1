#!/bin/bash
# web.sh: lighttpd before all replicas of the pool. It looks up which addresses POOLS=NAME:PORT has when it reads its
# configuration, so it is told to read that again when they have changed, which loses no request.
#
#   web.sh [CONFIGURATION]
#
# INT, TERM: requests in hand are finished.
set -eu

addresses() { getent ahostsv4 "${POOLS%:*}" | sed -n 's/ .*STREAM.*//p' | sort -u; }

known=$(addresses)
lighttpd -D -f "${1:-/etc/hyperpage/lighttpd.conf}" &
web=$!
trap 'kill -INT "$web"' INT TERM
while kill -0 "$web" 2> /dev/null; do
    sleep "${LOOK_S:-2}" &
    wait -n "$web" $! || true
    now=$(addresses) || continue
    if [[ $now != "$known" ]]; then
        known=$now
        kill -USR1 "$web" || true
    fi
done
wait "$web"
