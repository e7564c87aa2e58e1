#!/bin/bash
# web.sh: lighttpd before all replicas of the pool. It looks up which addresses POOLS=NAME:PORT has when it reads its
# configuration, so it is told to read that again when they have changed, which loses no request. While the name has no
# address it keeps those that it had, and answers 503.
#
#   web.sh [CONFIGURATION]
#
# INT, TERM: requests in hand are finished.
set -eu

addresses() { getent ahostsv4 "${POOLS%:*}" | sed -n 's/ .*STREAM.*//p' | sort -u; }

listens() { (exec 3<> "/dev/tcp/127.0.0.1/${PORT:-8080}") 2> /dev/null; }

trap 'exit 0' INT TERM # the first process of a container dies of no signal that it does not handle
until known=$(addresses) && [[ -n $known ]]; do
    sleep 1 &
    wait $!
done
lighttpd -D -f "${1:-/etc/hyperpage/lighttpd.conf}" &
web=$!
leaving=
trap 'leaving=now; kill -INT "$web"' INT TERM
while kill -0 "$web" 2> /dev/null; do
    sleep "${LOOK_S:-2}" &
    wait -n "$web" $! || true
    if [[ $leaving == now ]]; then
        leaving=told
    elif [[ $leaving == told ]]; then
        # A signal that comes while lighttpd reads its configuration is lost: then it still listens. A second one that is
        # heard cuts requests off.
        if listens; then kill -INT "$web" || true; fi
    elif now=$(addresses) && [[ -n $now && $now != "$known" ]]; then
        known=$now
        kill -USR1 "$web" || true
    fi
done
wait "$web"
