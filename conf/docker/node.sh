#!/bin/bash
# node.sh: a node of the service in one container: a pool and its coordinator, which know each other by RUN_DIR and process
# ids. Any number of these containers may run: each takes the first folder below STATES that no other has, with what is
# left in it of its last owner (what was written in an outage goes back to Redis), and its number into its name. STATE_DIR
# is a link to that folder, so that whoever is called into the container (docker exec) finds it without its number.
#
# TERM: requests in hand are finished; HUP: the options are read again. It ends when the pool has; one that has taken over
# from it (hyperpagectl restart) counts.
set -eu

RUN_DIR=${RUN_DIR:-/run/hyperpage} states=${STATES:-/var/lib/hyperpage}
for ((n = 1; ; n++)); do
    mkdir -p "$states/$n"
    exec {lock}> "$states/$n/node.lock"
    flock --nonblock "$lock" && break # held as long as any process of this node lives
    exec {lock}>&-
done
export RUN_DIR STATE_DIR=${STATE_DIR:-$RUN_DIR/state} POD_NAME=${POD_NAME:-node}-$n
ln -sfnT "$states/$n" "$STATE_DIR"

leaving=
hyperpage-fcgi &
pool=$! master=$! # whose end is waited for, and who is told
hyperpage-coordinator &
coordinator=$!
trap 'leaving=yes; kill -TERM "$master" ${coordinator:+"$coordinator"} || true' TERM INT
trap 'kill -HUP "$master" ${coordinator:+"$coordinator"} || true' HUP

# A master that has taken over is no child of ours: one that looks for its end is.
follow_heir() {
    local heir
    { read -r heir < "$RUN_DIR/pool.pid"; } 2> /dev/null || return 1
    [[ $heir != "$master" ]] && kill -0 "$heir" 2> /dev/null || return 1
    master=$heir
    (while kill -0 "$heir" 2> /dev/null; do sleep 0.2; done) &
    pool=$!
}

while :; do
    code=0
    wait -n -p ended "$pool" ${coordinator:+"$coordinator"} || code=$?
    ended=${ended:-} # unset, where a signal has ended the wait
    if [[ $ended == "$pool" ]]; then
        follow_heir || break
        if [[ -n $leaving ]]; then kill -TERM "$master" || true; fi # it came up just when the other one was told
    elif [[ $ended == "$coordinator" && -z $leaving ]]; then # the pool serves without it meanwhile
        echo "node.sh: the coordinator ended with code $code, another one follows" >&2
        sleep 1
        hyperpage-coordinator &
        coordinator=$!
    elif [[ $ended == "$coordinator" ]]; then
        coordinator=
    fi
done
if [[ -n $coordinator ]]; then kill -TERM "$coordinator" 2> /dev/null || true; fi
wait
exit "$code"
