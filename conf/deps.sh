#!/bin/sh
# deps.sh: installs the Debian packages of conf/packages.txt that are missing. If none is, it says nothing and needs no
# root.
#
#   conf/deps.sh run        what `make run` needs
#   conf/deps.sh demo       what `make demo` needs
#   conf/deps.sh test       what `make test` needs
#   conf/deps.sh browser    what `make browser` needs
#   conf/deps.sh package    what `make deb` needs
#   conf/deps.sh fresh      what `make fresh` needs
#   conf/deps.sh peers      what `make bench-peers` needs
#   conf/deps.sh tools      everything else too, but the browser and the peers
set -eu

case ${1:-} in
    run) groups='build run' ;;
    demo) groups='build run demo' ;;
    test) groups='build run demo test' ;;
    browser) groups='build run demo test browser' ;;
    package) groups='build package' ;;
    fresh) groups='build run demo test package fresh' ;;
    peers) groups='build run demo peers' ;;
    tools) groups='build run demo test package fresh tools' ;;
    *) echo "usage: conf/deps.sh run|demo|test|browser|package|fresh|peers|tools" >&2; exit 2 ;;
esac

wanted=$(awk -v groups=" $groups " '
    /^# [a-z]+:/ { name = $2; sub(":", "", name); wanted = index(groups, " " name " ") }
    /^[^#]/ && wanted' "$(dirname "$0")/packages.txt")
# A nodejs that is not Debian's brings an npm of its own, and does not get on with Debian's.
if command -v npm > /dev/null; then wanted=$(echo "$wanted" | grep -vx npm); fi
# shellcheck disable=SC2086  # package names are words
present=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' $wanted 2>/dev/null | sed -n 's/^installed //p')
missing=$(for package in $wanted; do echo "$present" | grep -qxF "$package" || printf ' %s' "$package"; done)
[ -n "$missing" ] || exit 0

if [ "$(id -u)" -ne 0 ]; then
    echo "deps: these packages are missing:$missing" >&2
    echo "deps: run this as root, or: sudo apt-get install$missing" >&2
    exit 1
fi
echo "deps: installing$missing"

# Debian starts the servers it installs. Not here: the tests and `make run` start their own, and port 80 is not ours.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' INT TERM
    printf '#!/bin/sh\nexit 101\n' > $policy
    chmod 755 $policy
fi

export DEBIAN_FRONTEND=noninteractive
install() {
    # shellcheck disable=SC2086
    apt-get install -y -q --no-install-recommends "$@" $missing
}
install --simulate > /dev/null 2>&1 || apt-get update -q   # no package lists, as in a fresh container
install || { apt-get update -q && install; }               # or old ones, whose packages are no longer there
