#!/bin/bash
# run.sh: the pool and a web server before it, in the foreground, as any user: what `make run` calls after the build.
#
#   conf/run.sh          both, until Ctrl-C; ends with a code that is not 0 when one of them ends by itself
#   conf/run.sh front    the web server alone, before a pool that runs already
#
# The environment gives PORT (8080), FRONT (lighttpd or nginx), BUILD (where the programs are), RUN_DIR (./var/run),
# STATE_DIR (./var/state) and every option of the programs (conf/reference.md).
set -u

fail() {
    echo "run: $*" >&2
    exit 2
}

repo=$(cd "$(dirname "$0")/.." && pwd)
PATH=$PATH:/usr/sbin # where Debian keeps web servers, and users do not look
export PORT=${PORT:-8080} FRONT=${FRONT:-lighttpd} BUILD=${BUILD:-$repo/build}
RUN_DIR=$(realpath -m -- "${RUN_DIR:-var/run}")
STATE_DIR=$(realpath -m -- "${STATE_DIR:-var/state}")
export RUN_DIR STATE_DIR LISTEN=${LISTEN:-unix:$RUN_DIR/fcgi.sock}
case $LISTEN in /*) LISTEN=unix:$LISTEN ;; esac

[[ $PORT =~ ^[1-9][0-9]{0,4}$ && $PORT -le 65535 ]] || fail "PORT=$PORT is not a port: 1 to 65535"
[[ $FRONT == lighttpd || $FRONT == nginx ]] || fail "FRONT=$FRONT is not known: lighttpd or nginx"
for folder in RUN_DIR STATE_DIR; do
    mkdir -p -- "${!folder}" 2> /dev/null || fail "$folder=${!folder} cannot be made"
done

# conf/nginx.conf with this place's values in the lines it marks.
nginx_conf() {
    local conf
    conf=$(< "$repo/conf/nginx.conf")
    conf=${conf//'/run/hyperpage'/"$RUN_DIR"}
    conf=${conf//"unix:$RUN_DIR/fcgi.sock"/"$LISTEN"}
    conf=${conf/'listen 8080;'/"listen $PORT;"}
    # nginx would go from root to "nobody", who may not connect to the socket of a pool that root has started.
    ((EUID != 0)) || conf=${conf/'#user www-data;'/'user root;'}
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

listening "127.0.0.1:$PORT" && fail "port $PORT is in use; another one: make run PORT=..."
[[ ${1:-} == front ]] && exec "${front[@]}"

declare -A name # of each child, by process id

# A child stands outside the terminal's session, so that Ctrl-C comes to this script only and the order of leaving is
# ours; and it is told to end when this script is gone, even by kill -9.
start() { # NAME COMMAND...
    setsid setpriv --pdeathsig TERM -- "${@:2}" &
    name[$!]=$1
}

# Waits for the last child to listen, 10 s at most. False if it has died: then the wait at the end says so.
await() { # ADDRESS
    local i pid=$!
    for ((i = 0; i < 200; i++)); do
        listening "$1" && return
        kill -0 "$pid" 2> /dev/null || return 1
        sleep 0.05
    done
    echo "run: ${name[$pid]} does not listen at $1 after 10 s" >&2
    stop
    exit 1
}

# The last one started leaves first: the web server hands on what it has before the pool goes.
stop() {
    local pid
    trap '' INT TERM HUP
    for pid in $(jobs -pr | tac); do
        kill -TERM "$pid"
        wait "$pid"
    done
}
trap 'stop; exit 0' INT TERM HUP

start pool "$BUILD/hyperpage-fcgi" &&
    await "$LISTEN" &&
    start "$FRONT" "${front[@]}" &&
    await "127.0.0.1:$PORT" &&
    echo "curl -i http://localhost:$PORT/api/sessions"

wait -n -p pid
code=$?
echo "run: ${name[$pid]} ended with code $code" >&2
stop
exit $((code == 0 ? 1 : code))
