#!/bin/sh
# build.sh: the Debian package, from what `make install` installs: `make deb` calls it.
#
#   VERSION=... MAN=... conf/debian/build.sh BUILD PROGRAM...     leaves BUILD/hyperpage_VERSION_ARCH.deb
set -eu
umask 022

build=$1
shift
here=$(dirname "$0")
arch=$(dpkg --print-architecture)
root=$build/deb/root
out=${build}/hyperpage_${VERSION}_${arch}.deb
epoch=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2> /dev/null || date +%s)}
export SOURCE_DATE_EPOCH="$epoch"

rm -rf "$build/deb"
DESTDIR=$root PREFIX=/usr SYSCONFDIR=/etc conf/install.sh install "$@"
strip --strip-unneeded "$root"/usr/bin/*
find "$root/usr/share/man" -type f -exec gzip -9n {} +
mv "$root/usr/share/doc/hyperpage/LICENSE" "$root/usr/share/doc/hyperpage/copyright"
{
    printf 'hyperpage (%s) unstable; urgency=medium\n\n  * The history is that of the repository.\n\n' "$VERSION"
    printf ' -- Hyperpage maintainers <maintainers@hyperpage.example>  %s\n' "$(date -u -R -d "@$epoch")"
} | gzip -9n > "$root/usr/share/doc/hyperpage/changelog.gz"

# The programs' units, sockets first: a start in this order never finds a pool without its socket. The pool takes over
# from itself at an upgrade, what else runs is restarted.
units='' restarted=''
for program in "$@"; do
    name=${program##*/}
    for unit in "$name.socket" "$name.service"; do
        [ -e "conf/systemd/$unit" ] || continue
        units="$units $unit"
        [ "$name" = hyperpage-fcgi ] || restarted="$restarted $unit"
    done
done

# Debian's tool knows which packages hold the libraries, and asks for a source package around it.
mkdir -p "$build/deb/debian" "$root/DEBIAN"
printf 'Source: hyperpage\n\nPackage: hyperpage\nArchitecture: any\n' > "$build/deb/debian/control"
libraries=$(cd "$build/deb" && dpkg-shlibdeps -O root/usr/bin/* | sed 's/^shlibs:Depends=//')

fill() { # FILE: its @NAMES@
    sed -e "s/@VERSION@/$VERSION/" -e "s/@ARCH@/$arch/" -e "s/@LIBRARIES@/$libraries/" \
        -e "s/@SIZE@/$(du -k -s --apparent-size "$root" | cut -f 1)/" \
        -e "s/@UNITS@/${units# }/" -e "s/@RESTARTED@/${restarted# }/" "$here/$1" > "$root/DEBIAN/$1"
}
fill control
for script in postinst prerm postrm; do
    fill $script
    chmod 755 "$root/DEBIAN/$script"
done
(cd "$root" && find etc -type f -printf '/%p\n' | sort) > "$root/DEBIAN/conffiles"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum) > "$root/DEBIAN/md5sums"

dpkg-deb --root-owner-group --build "$root" "$out" > /dev/null
echo "$out"
