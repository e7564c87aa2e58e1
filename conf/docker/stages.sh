#!/bin/sh
# stages.sh: what the stages of the Dockerfile do, on a Debian with nothing on it, as root.
#
#   stages.sh build              in a clone: leaves build/package/hyperpage_VERSION_ARCH.deb
#   stages.sh install PACKAGE    the package with all that the image's roles run
set -eu

export DEBIAN_FRONTEND=noninteractive

# What is named is pinned: which versions an image holds does not depend on the day it is made, and another Debian is an
# error here, not a surprise later. Security updates do come in, as Debian makes them, within a version.
tools='make=4.3-*'
pinned='lighttpd=1.4.69-* libfcgi0ldbl=2.4.2-* libhiredis0.14=0.14.1-* libjson-c5=0.16-* libev4=1:4.33-* libsqlite3-0=3.40.1-*
        libpq5=15.* libuuid1=2.38.1-* libcurl4=7.88.1-*'

case ${1:-} in
    build)
        apt-get update -q
        # shellcheck disable=SC2086  # packages are words
        apt-get install -y -q --no-install-recommends $tools
        make deb BUILD=build/image
        mkdir -p build/package
        mv build/image/hyperpage_*.deb build/package/
        ;;
    install)
        apt-get update -q
        # The same numbers in each image, since volumes remember them.
        groupadd --system --gid 990 hyperpage
        useradd --system --uid 990 --gid hyperpage --home-dir /var/lib/hyperpage --shell /usr/sbin/nologin hyperpage
        # The standalone tools stand in for systemd itself.
        # shellcheck disable=SC2086  # packages are words
        apt-get install -y -q --no-install-recommends systemd-standalone-sysusers systemd-standalone-tmpfiles $pinned "$2"
        # A container's log is its output; lighttpd puts /dev/null in place of its standard output.
        install -d -o hyperpage -g hyperpage /var/log/hyperpage-web
        ln -s /dev/stderr /var/log/hyperpage-web/hyperpage.log
        rm -rf /var/lib/apt/lists/*
        ;;
    *)
        echo "usage: stages.sh build | install PACKAGE" >&2
        exit 2
        ;;
esac
