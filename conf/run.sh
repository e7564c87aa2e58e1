#!/bin/bash
# run.sh: the pool, its coordinator and a web server before it, in the foreground, as any user: what `make run` calls
# after the build.
#
#   conf/run.sh          all of them, until Ctrl-C; ends with a code that is not 0 when one of them ends by itself
#   conf/run.sh front    the web server alone, before a pool that runs already
#
# The environment gives PORT (8080), BIND (127.0.0.1; 0.0.0.0 lets others in), FRONT (lighttpd or nginx), BUILD (where
# the programs are), RUN_DIR (./var/run), STATE_DIR (./var/state) and every option of the programs (conf/reference.md).
set -u

fail() {
    echo "run: $*" >&2
    exit 2
}

repo=$(cd "$(dirname "$0")/.." && pwd)
PATH=$PATH:/usr/sbin # where Debian keeps web servers, and users do not look
export PORT=${PORT:-8080} BIND=${BIND:-127.0.0.1} FRONT=${FRONT:-lighttpd} BUILD=${BUILD:-$repo/build}
RUN_DIR=$(realpath -m -- "${RUN_DIR:-var/run}")
STATE_DIR=$(realpath -m -- "${STATE_DIR:-var/state}")
export RUN_DIR STATE_DIR LOG_DIR=${LOG_DIR:-$RUN_DIR} LISTEN=${LISTEN:-unix:$RUN_DIR/fcgi.sock}
case $LISTEN in /*) LISTEN=unix:$LISTEN ;; esac

[[ $PORT =~ ^[1-9][0-9]{0,4}$ && $PORT -le 65535 ]] || fail "PORT=$PORT is not a port: 1 to 65535"
getent ahosts "$BIND" > /dev/null || fail "BIND=$BIND is no address of this machine"
[[ $FRONT == lighttpd || $FRONT == nginx ]] || fail "FRONT=$FRONT is not known: lighttpd or nginx"
for folder in RUN_DIR STATE_DIR; do
    mkdir -p -- "${!folder}" 2> /dev/null || fail "$folder=${!folder} cannot be made"
done

# conf/nginx.conf with this place's values in the lines it marks.
nginx_conf() {
    local conf
    conf=$(< "$repo/conf/nginx.conf")
    conf=${conf//'/run/hyperpage'/"$RUN_DIR"}
    conf=${conf//'/var/log/nginx'/"$LOG_DIR"}
    conf=${conf/'/usr/local/share/hyperpage/status'/"$repo/fcgi-app/status"}
    conf=${conf//"unix:$RUN_DIR/fcgi.sock"/"$LISTEN"}
    conf=${conf/'listen 8080;'/"listen $BIND:$PORT;"}
    # The pool runs as whoever started it, and lets nobody else connect.
    if ((EUID == 0)); then conf=${conf/'user www-data;'/'user root;'}; else conf=${conf/'user www-data;'/}; fi
    printf '%s\n' "$conf"
}

case $FRONT in
    lighttpd) front=(lighttpd -D -f "$repo/lighttpd.conf") ;;
    nginx)
        nginx_conf > "$RUN_DIR/nginx.conf" || exit 2
        front=(nginx -e stderr -p "$RUN_DIR" -c "$RUN_DIR/nginx.conf")
        ;;
esac

# Does somebody accept connections there? The kernel's list answers for unix sockets, connecting for TCP.
listening() { # unix:PATH | HOST:PORT
    local flags path
    case $1 in
        unix:*)
            while read -r _ _ _ flags _ _ _ path; do
                [[ $flags == 00010000 && $path == "${1#unix:}" ]] && return
            done < /proc/net/unix
            return 1
            ;;
        *) (exec 3<> "/dev/tcp/${1%:*}/${1##*:}") 2> /dev/null ;;
    esac
}

# Sets `master` to the one that serves at RUN_DIR, if one does: also one that took over from ours (USR2). What a power cut has
# left in the file is anybody's process by now. Builtins only: bash can lose a Ctrl-C that comes while it waits for a command.
find_master() {
    local comm
    { read -r master < "$RUN_DIR/pool.pid" && read -r comm < "/proc/$master/comm"; } 2> /dev/null && [[ $comm == hyperpage-fcgi ]]
}

here=$BIND
[[ $BIND == 0.0.0.0 ]] && here=127.0.0.1
listening "$here:$PORT" && fail "port $PORT is in use; another one: make run PORT=..."
[[ ${1:-} == front ]] && exec "${front[@]}"
find_master && fail "a pool serves at RUN_DIR=$RUN_DIR already: its master is process $master"

declare -A name # of each child, by process id

# A child stands outside the terminal's session, so that Ctrl-C comes to this script only and the order of leaving is
# ours; and it is told to end when this script is gone, even by kill -9.
start() { # NAME COMMAND...
    setsid setpriv --pdeathsig TERM -- "${@:2}" &
    name[$!]=$1
}

# Waits until the last child serves, 10 s at most. False if it has died: then the wait at the end says so.
await() { # COMMAND that is true once it does
    local i pid=$!
    for ((i = 0; i < 200; i++)); do
        "$@" && return
        kill -0 "$pid" 2> /dev/null || return 1
        sleep 0.05
    done
    echo "run: ${name[$pid]} does not serve after 10 s" >&2
    stop
    exit 1
}
pool_serves() { find_master && [[ $master == "$!" ]]; }
coordinator_works() {
    local pid
    { read -r pid < "$RUN_DIR/coordinator.pid"; } 2> /dev/null && [[ $pid == "$!" ]]
}

# The last one started leaves first: the web server hands on what it has before the pool goes.
stop() {
    local pid
    trap '' INT TERM HUP
    for pid in $(jobs -pr | tac); do
        kill -TERM "$pid"
        wait "$pid"
    done
    while [[ -n ${serves:-} ]] && find_master; do # one that took over is no child of ours: no wait for it
        kill -TERM "$master"
        while [[ -e /proc/$master/exe ]]; do sleep 0.05; done # its pid file goes before it does
    done
}
trap 'stop; exit 0' INT TERM HUP

start pool "$BUILD/hyperpage-fcgi" &&
    await pool_serves && serves=yes &&
    start coordinator "$BUILD/hyperpage-coordinator" &&
    await coordinator_works &&
    start "$FRONT" "${front[@]}" &&
    await listening "$here:$PORT" &&
    printf '%s\n' "http://localhost:$PORT/status/" "RUN_DIR=${RUN_DIR@Q} STATE_DIR=${STATE_DIR@Q} ${BUILD@Q}/hyperpagectl status" \
        "curl -i http://localhost:$PORT/api/sessions"

while wait -n -p pid; code=$?; [[ ${name[$pid]} == pool && $code == 0 ]] && find_master; do
    # A new binary has taken over: a child of ours ends when it does.
    # shellcheck disable=SC2016  # it is for that bash
    start pool bash -c 'while kill -0 "$1" 2> /dev/null; do sleep 0.1; done' follow "$master"
done
echo "run: ${name[$pid]} ended with code $code" >&2
stop
exit $((code == 0 ? 1 : code))
