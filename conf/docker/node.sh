#!/bin/bash
# node.sh: a node of the service in one container: a pool and its coordinator, which know each other by RUN_DIR and process
# ids. Any number of these containers may run: each takes the first folder below STATES that no other has, with what is
# left in it of its last owner (what was written in an outage goes back to Redis), and its number into its name.
#
# TERM: requests in hand are finished; HUP: the options are read again. It ends when the pool has.
set -eu

states=${STATES:-/var/lib/hyperpage}
for ((n = 1; ; n++)); do
    mkdir -p "$states/$n"
    exec {lock}> "$states/$n/node.lock"
    flock --nonblock "$lock" && break # held as long as any process of this node lives
    exec {lock}>&-
done
export STATE_DIR=$states/$n POD_NAME=${POD_NAME:-node}-$n

leaving=
hyperpage-fcgi &
pool=$!
hyperpage-coordinator &
coordinator=$!
trap 'leaving=yes; kill -TERM "$pool" "$coordinator" || true' TERM INT
trap 'kill -HUP "$pool" "$coordinator" || true' HUP
while :; do
    code=0 ended=
    wait -n -p ended "$pool" "$coordinator" || code=$?
    [[ $ended == "$pool" ]] && break
    if [[ $ended == "$coordinator" && -z $leaving ]]; then # the pool serves without it meanwhile
        echo "node.sh: the coordinator ended with code $code, another one follows" >&2
        sleep 1
        hyperpage-coordinator &
        coordinator=$!
    elif [[ $ended == "$coordinator" ]]; then
        coordinator=$pool # nothing else to wait for
    fi
done
kill -TERM "$coordinator" 2> /dev/null || true
wait
exit "$code"
