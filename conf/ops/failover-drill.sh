#!/bin/bash
# failover-drill.sh: has the Sentinels replace Redis' primary while a session is written all the time, and says what
# that cost. It changes which server is the primary, and makes and deletes one session.
#
#   conf/ops/failover-drill.sh URL SENTINEL_HOST SENTINEL_PORT PRIMARY
#
# URL is the service's (http://localhost:8080), PRIMARY the name that the Sentinels know. REDISCLI_AUTH in the
# environment is the Sentinels' password, SETTLE_S (10) how long it goes on writing after the change. Ctrl-C ends it, too;
# the session is deleted in any case.
#
# Exit code 0: what was acknowledged last is there. 1: it is not, or writes did not succeed again. 2: wrong arguments.
# 3: the drill could not begin.
set -u

if [[ $# -ne 4 ]]; then
    echo "usage: failover-drill.sh URL SENTINEL_HOST SENTINEL_PORT PRIMARY" >&2
    exit 2
fi
url=$1 SETTLE_S=${SETTLE_S:-10}
sentinel() { redis-cli -h "$host" -p "$port" SENTINEL "$1" "$primary"; }
host=$2 port=$3 primary=$4

fail() { # CODE TEXT
    echo "failover-drill: $2" >&2
    exit "$1"
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

write() { # N: true if it was acknowledged
    [[ $(curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' --request PATCH \
        --header 'Content-Type: application/json' --data "{\"drill\":$1}" "$url/api/sessions/$id") == 200 ]]
}

field() { # NAME: a number that stands in the answer
    sed -n "s/.*\"$1\":\\([0-9]*\\).*/\\1/p"
}

before=$(sentinel GET-MASTER-ADDR-BY-NAME | tr '\n' ' ')
[[ -n $before && $before != *[Ee]rr* ]] || fail 3 "the Sentinel does not know $primary"
id=$(curl --silent --max-time 10 "$url/api/sessions" | sed -n 's/.*"sessionId":"\([^"]*\)".*/\1/p')
[[ -n $id ]] || fail 3 "$url makes no session"
trap 'curl --silent --max-time 10 --retry 5 --output /dev/null --request DELETE "$url/api/sessions/$id"' EXIT
trap 'exit 1' INT TERM HUP
write 0 || fail 3 "$url takes no write"

[[ $(sentinel FAILOVER) == OK ]] || fail 3 "the Sentinel refuses: is there a replica in step?"
start=$(now_ms) n=0 acknowledged=0 refused=0 worst=0 last=$start changed=''
until [[ -n $changed ]] && (($(now_ms) > changed + SETTLE_S * 1000)); do
    n=$((n + 1))
    if write $n; then
        acknowledged=$n
        gap=$(($(now_ms) - last)) last=$(now_ms)
        ((gap <= worst)) || worst=$gap
    else
        refused=$((refused + 1))
    fi
    if [[ -z $changed && $(sentinel GET-MASTER-ADDR-BY-NAME | tr '\n' ' ') != "$before" ]]; then changed=$(now_ms); fi
    (($(now_ms) < start + 120000)) || fail 1 "no other primary after 120 s"
done
kept=$(curl --silent --max-time 10 "$url/api/sessions/$id" | field drill)

echo "failover-drill: primary ${before}-> $(sentinel GET-MASTER-ADDR-BY-NAME | tr '\n' ' ')after $((changed - start)) ms;" \
    "$n writes, $refused refused, $worst ms between two that were acknowledged"
[[ $acknowledged == "$n" ]] || fail 1 "the last write was refused"
# What was refused may have been written all the same, so more than the last acknowledged one is no loss.
((${kept:-0} >= acknowledged)) || fail 1 "acknowledged was $acknowledged, kept is ${kept:-nothing}"
