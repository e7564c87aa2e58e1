#!/bin/sh
# install.sh: what `make install` and `make uninstall` do, from one table of rows: kind mode source destination.
#
#   conf/install.sh install|uninstall PROGRAM...     programs that are built; each brings its unit and its man page
#
# The environment gives DESTDIR, PREFIX (/usr/local), SYSCONFDIR (/etc) and MAN (the folder of the generated page). In
# texts /usr/local becomes PREFIX, /etc/hyperpage its like in SYSCONFDIR, and what is named by $PWD its installed place.
set -eu

action=${1:-}
[ $# -eq 0 ] || shift
DESTDIR=${DESTDIR:-} PREFIX=${PREFIX:-/usr/local} SYSCONFDIR=${SYSCONFDIR:-/etc}
share=$PREFIX/share systemd=$PREFIX/lib/systemd/system

texts() { # FOLDER FILE...; a pattern that fits nothing is none
    folder=$1
    shift
    for file in "$@"; do
        if [ -e "$file" ]; then echo "text 644 $file $folder/${file##*/}"; fi
    done
}

table() { # PROGRAM...
    for program in "$@"; do
        name=${program##*/}
        echo "program 755 $program $PREFIX/bin/$name"
        texts "$systemd" conf/systemd/"$name".*
        texts "$share/man/man8" docs/man/"$name".8
    done
    cat << TABLE
text 644 $MAN/hyperpage.conf.5 $share/man/man5/hyperpage.conf.5
config 640 conf/hyperpage.conf $SYSCONFDIR/hyperpage/hyperpage.conf
config 644 lighttpd.conf $SYSCONFDIR/hyperpage/lighttpd.conf
config 644 conf/nginx.conf $SYSCONFDIR/hyperpage/nginx.conf
config 644 conf/balancer.conf $SYSCONFDIR/hyperpage/balancer.conf
config 644 conf/logrotate $SYSCONFDIR/logrotate.d/hyperpage
text 644 conf/completion/hyperpagectl.bash $share/bash-completion/completions/hyperpagectl
text 644 conf/systemd/hyperpage-.service.d/hardening.conf $systemd/hyperpage-.service.d/hardening.conf
text 644 conf/systemd/lighttpd-hyperpage.service $systemd/lighttpd-hyperpage.service
text 644 conf/systemd/sysusers.conf $PREFIX/lib/sysusers.d/hyperpage.conf
text 644 conf/systemd/tmpfiles.conf $PREFIX/lib/tmpfiles.d/hyperpage.conf
TABLE
    texts "$share/hyperpage/errors" conf/errors/*.html
    texts "$share/hyperpage/grafana" conf/grafana/*.json
    texts "$share/hyperpage/prometheus" conf/prometheus/*.yml
    texts "$share/hyperpage/status" fcgi-app/status/*
    for script in conf/ops/*.sh; do echo "text 755 $script $share/hyperpage/ops/${script##*/}"; done
    texts "$share/doc/hyperpage" README.md docs/*.md docs/openapi.json conf/reference.md LICENSE
}

put() { # KIND MODE SOURCE TARGET
    case $1 in
        program) install -D -m "$2" -- "$3" "$4" ;;
        *)
            install -D -m "$2" /dev/null "$4.new"
            sed -e "s|/usr/local\>|$PREFIX|g" -e "s|/etc/hyperpage\>|$SYSCONFDIR/hyperpage|g" \
                -e "s|\$PWD/conf/errors|$share/hyperpage/errors|" -e "s|\$PWD/fcgi-app/status|$share/hyperpage/status|" \
                -e "s|\$PWD/conf/nginx|$SYSCONFDIR/hyperpage/nginx|" -- "$3" > "$4.new"
            # A configuration that is another stays, be it changed or of another version; ours lies beside it.
            if [ "$1" = config ] && [ -e "$4" ] && ! cmp -s -- "$4" "$4.new"; then
                echo "install: $4 stays as it is, this version's is $4.new"
            else
                mv -f -- "$4.new" "$4"
            fi
            ;;
    esac
}

take_away() { # KIND MODE SOURCE TARGET
    rm -f -- "$4.new"
    if [ "$1" = config ] && [ -e "$4" ]; then
        put config "$2" "$3" "$4" > /dev/null
        if [ -e "$4.new" ]; then
            rm -f -- "$4.new"
            echo "uninstall: $4 was changed and stays"
            return
        fi
    fi
    rm -f -- "$4"
    # Folders that were made for us alone, once they are empty.
    folder=${4%/*}
    while case ${folder##*/} in hyperpage* | errors | grafana | ops | prometheus | status) ;; *) false ;; esac; do
        rmdir -- "$folder" 2> /dev/null || break
        folder=${folder%/*}
    done
}

case $action in
    install) row=put ;;
    uninstall) row=take_away ;;
    *) echo "usage: conf/install.sh install|uninstall PROGRAM..." >&2; exit 2 ;;
esac
table "$@" | while read -r kind mode source target; do
    $row "$kind" "$mode" "$source" "$DESTDIR$target"
done
