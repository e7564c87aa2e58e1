#!/bin/bash
# health.sh: does what runs in this container work? Exit code 0 or 1, for HEALTHCHECK.
#
#   health.sh pool|web|coordinator
set -u

run_dir=${RUN_DIR:-/run/hyperpage}
case ${1:-} in
    pool) # as the web server asks it
        REQUEST_METHOD=GET REQUEST_URI=/api/health/ready REMOTE_ADDR=127.0.0.1 SERVER_PROTOCOL=HTTP/1.1 \
            cgi-fcgi -bind -connect "$run_dir/fcgi.sock" < /dev/null | grep -q '"success":true\|^Status: 200'
        ;;
    web)
        exec 3<> "/dev/tcp/127.0.0.1/${PORT:-8080}" &&
            printf 'GET /api/health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3 &&
            read -r _ status _ <&3 && [[ $status == 200 ]]
        ;;
    coordinator)
        read -r pid < "$run_dir/coordinator.pid" && kill -0 "$pid"
        ;;
    *)
        echo "usage: health.sh pool|web|coordinator" >&2
        exit 2
        ;;
esac
