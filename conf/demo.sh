#!/bin/bash
# demo.sh: three nodes behind a balancer, on one Redis, on this machine and as any user: what `make demo` calls after
# the build. It prints what to try, and runs until Ctrl-C. Its files are in a folder of its own, which goes with it.
#
# The environment gives PORT (8080: the balancer; the three after it are the nodes), BUILD (where the programs are) and
# the options of the programs (conf/reference.md) but those that tell nodes apart.
set -u

fail() {
    echo "demo: $*" >&2
    exit 2
}

repo=$(cd "$(dirname "$0")/.." && pwd)
PATH=$PATH:/usr/sbin # where Debian keeps servers, and users do not look
PORT=${PORT:-8080} BUILD=$(realpath -m -- "${BUILD:-$repo/build}") NODES='1 2 3'
[[ $PORT =~ ^[1-9][0-9]{0,4}$ && $PORT -le 65532 ]] || fail "PORT=$PORT is no port with three more after it: 1 to 65532"
for program in haproxy redis-server lighttpd curl; do
    command -v "$program" > /dev/null || fail "$program is missing: conf/deps.sh demo"
done
for node in 0 $NODES; do
    if (exec 3<> "/dev/tcp/127.0.0.1/$((PORT + node))") 2> /dev/null; then
        fail "port $((PORT + node)) is in use; others: make demo PORT=..."
    fi
done
D=$(mktemp -d "${TMPDIR:-/tmp}/hyperpage-demo.XXXXXX") || exit 2

declare -A name # of each child, by process id

# A child stands outside the terminal's session, so that Ctrl-C comes to this script only; and it is told to end when
# this script is gone, even by kill -9.
start() { # NAME COMMAND...
    setsid setpriv --pdeathsig TERM -- "${@:2}" >> "$D/$1.log" 2>&1 &
    name[$!]=$1
}

of_node() { # NODE NAME COMMAND...
    start "$2$1" env PORT=$((PORT + $1)) BIND=127.0.0.1 FRONT=lighttpd LISTEN= LOG_FILE= LOG_DIR= POD_NAME="node$1" \
        RUN_DIR="$D/node$1/run" STATE_DIR="$D/node$1/state" REDIS_URL="redis+unix://$D/redis.sock" \
        WORKERS="${WORKERS:-2}" LEADER_ELECTION_TIMEOUT=3000 LEADER_HEARTBEAT_INTERVAL=1000 "${@:3}"
}

run() { # NAME: so that whoever was killed can be started again
    local node=${1: -1}
    case $1 in
        redis)
            start redis redis-server --port 0 --unixsocket "$D/redis.sock" --pidfile "$D/redis.pid" --dir "$D" \
                --appendonly yes
            ;;
        pool*) of_node "$node" pool "$BUILD/hyperpage-fcgi" ;;
        coordinator*) of_node "$node" coordinator "$BUILD/hyperpage-coordinator" ;;
        web*) of_node "$node" web "$repo/conf/run.sh" front ;;
        balancer)
            start balancer env LISTEN="127.0.0.1:$PORT" NODE1="127.0.0.1:$((PORT + 1))" \
                NODE2="127.0.0.1:$((PORT + 2))" NODE3="127.0.0.1:$((PORT + 3))" haproxy -db -f "$repo/conf/balancer.conf"
            ;;
    esac
}

# A pool that has taken over from ours (hyperpagectl restart) is no child of ours.
stop_heir() { # NODE
    local master
    while { read -r master < "$D/node$1/run/pool.pid"; } 2> /dev/null && kill -TERM "$master" 2> /dev/null; do
        sleep 0.05
    done
}

# The last one started leaves first.
stop() {
    local pid node
    trap '' INT TERM HUP
    for pid in $(jobs -pr | tac); do
        kill -CONT "$pid"
        kill -TERM "$pid"
        wait "$pid"
    done
    for node in $NODES; do stop_heir "$node"; done
    rm -rf -- "$D"
}
trap 'stop; exit 0' INT TERM HUP

await() { # COMMAND that is true once what was started serves; if somebody ends instead, or after 10 s, all is over
    local i
    for ((i = 0; i < 200 && $(jobs -pr | wc -l) == ${#name[@]}; i++)); do
        "$@" && return
        sleep 0.05
    done
    echo "demo: not all serve; their last words:" >&2
    tail -qn 3 "$D"/*.log >&2
    stop
    exit 1
}
serves() { curl --silent --fail --max-time 1 --output /dev/null "http://127.0.0.1:$1/api/health/ready"; }

mkdir "$D"/node{1,2,3} && mkdir "$D"/node{1,2,3}/{run,state} || exit 2
run redis
await test -S "$D/redis.sock"
for node in $NODES; do
    for what in pool coordinator web; do run "$what$node"; done
done
for node in $NODES; do await serves $((PORT + node)); done
run balancer
await serves "$PORT"

cat << END
Three nodes behind a balancer, on one Redis. Ctrl-C ends it.

  http://localhost:$((PORT + 1))/status/    node1
  http://localhost:$((PORT + 2))/status/    node2
  http://localhost:$((PORT + 3))/status/    node3

In another terminal, from top to bottom:

    D=$D

A session is made; the balancer asks for it at the node that made it, and any other knows it too:

    ID=\$(curl -s localhost:$PORT/api/sessions | sed 's/.*"sessionId":"\([^"]*\).*/\1/')
    curl -i localhost:$PORT/api/sessions/\$ID
    curl -i localhost:$((PORT + 3))/api/sessions/\$ID

It is changed:

    curl -i -X PATCH localhost:$PORT/api/sessions/\$ID -H 'Content-Type: application/json' -d '{"note":"kept"}'

A worker of node1 dies, and the pool has another one:

    kill -9 \$(pgrep -x -P \$(cat \$D/node1/run/pool.pid) fcgi-worker | head -n 1)
    curl -i localhost:$((PORT + 1))/api/sessions/\$ID

The coordinator of node1 dies: who leads is settled within three seconds, and no session minds:

    kill -9 \$(cat \$D/node1/run/coordinator.pid)
    curl -i localhost:$PORT/api/sessions/\$ID
    curl -s localhost:$((PORT + 2))/api/coordination

The pool of node2 is replaced by a new one, as in an upgrade:

    RUN_DIR=\$D/node2/run STATE_DIR=\$D/node2/state $BUILD/hyperpagectl restart --wait

The balancer leaves node3, which serves on, and comes back to it:

    touch \$D/node3/run/maintenance
    curl -i localhost:$((PORT + 3))/api/health/ready
    rm \$D/node3/run/maintenance

Redis stands still. The session's node knows it (X-Session-Store: refuge) and takes a change. A moment after Redis goes
on, it has that too:

    kill -STOP \$(cat \$D/redis.pid)
    curl -i localhost:$PORT/api/sessions/\$ID
    curl -i -X PATCH localhost:$PORT/api/sessions/\$ID -H 'Content-Type: application/json' -d '{"note":"changed without Redis"}'
    kill -CONT \$(cat \$D/redis.pid)
    curl -i localhost:$PORT/api/sessions/\$ID
END

# Whoever was killed is started again, as systemd would; a pool that has ended well has an heir, and one that was drained (3)
# is to stay down.
while { wait -n -p pid; code=$?; } 2> /dev/null; ((code > 128)) || [[ ${name[$pid]} == pool* && ($code == 0 || $code == 3) ]]; do
    ((code == 0 || code == 3)) || run "${name[$pid]}"
done
echo "demo: ${name[$pid]} ended with code $code; its last words were:" >&2
tail -n 3 "$D/${name[$pid]}.log" >&2
stop
exit 1
