#!/bin/bash
# rolling-restart.sh: restarts the pools of several nodes one after the other, the next only when the one before serves.
#
#   conf/ops/rolling-restart.sh [--reload] NODE...
#
# The environment gives READY_URL (http://%s:8080/api/health/ready, %s is the node), TIMEOUT_S (60: how long a node may
# take) and RUN (ssh: what runs a command at a node: RUN NODE COMMAND...).
#
# Exit code 0: all serve. 1: a node did not come back, the rest was left alone. 2: wrong arguments. 3: a node did not
# serve before anything was done, so nothing was.
set -u

READY_URL=${READY_URL:-http://%s:8080/api/health/ready} TIMEOUT_S=${TIMEOUT_S:-60} RUN=${RUN:-ssh}

verb=restart
if [[ ${1:-} == --reload ]]; then
    verb=reload
    shift
fi
if [[ $# -eq 0 || $1 == -* ]]; then
    echo "usage: rolling-restart.sh [--reload] NODE..." >&2
    exit 2
fi

ready() { # NODE
    curl --silent --fail --max-time 5 --output /dev/null "${READY_URL/\%s/$1}"
}

await() { # NODE: until it serves, TIMEOUT_S at most
    local end_us=$((${EPOCHREALTIME/[.,]/} + TIMEOUT_S * 1000000)) # SECONDS would take up to one away
    until ready "$1"; do
        ((${EPOCHREALTIME/[.,]/} < end_us)) || return 1
        sleep 0.2
    done
}

for node in "$@"; do
    if ! ready "$node"; then
        echo "rolling-restart: $node does not serve now, nothing was done" >&2
        exit 3
    fi
done
for node in "$@"; do
    echo "rolling-restart: $verb of $node"
    if ! $RUN "$node" systemctl "$verb" hyperpage-fcgi.service < /dev/null || ! await "$node"; then
        echo "rolling-restart: $node did not come back within $TIMEOUT_S s, the rest was left alone" >&2
        exit 1
    fi
done
echo "rolling-restart: all of $# serve"
