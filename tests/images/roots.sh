#!/bin/sh
# roots.sh BUSYBOX WEED DIR: the roots of the images that stand for those of PostgreSQL and
# SeaweedFS, of the programs that this machine has. DIR/postgres and DIR/seaweedfs each get a folder
# root, which `COPY root /` puts on an empty image.
set -eu
busybox=$1
weed=$2
folder=$3

# shell ROOT: a shell and its usual commands.
shell() {
    mkdir -p "$1/bin" "$1/tmp" "$1/etc"
    chmod 1777 "$1/tmp"
    cp "$busybox" "$1/bin/busybox"
    for name in sh cat chmod grep mkdir rm seq sleep timeout; do ln -s busybox "$1/bin/$name"; done
}

root=$folder/postgres/root
shell "$root"
programs=$(echo /usr/lib/postgresql/*/bin | tr ' ' '\n' | tail -n 1)
version=$(basename "$(dirname "$programs")")
mkdir -p "$root$programs" "$root/usr/bin" "$root/usr/share/postgresql"
for name in postgres initdb pg_isready psql; do
    cp "$programs/$name" "$root$programs/$name"
    ln -s "$programs/$name" "$root/usr/bin/$name"
    for library in $(ldd "$programs/$name" | grep -o '/[^ ]*'); do
        mkdir -p "$root$(dirname "$library")"
        cp -L "$library" "$root$library"
    done
done
cp -r "/usr/lib/postgresql/$version/lib" "$root/usr/lib/postgresql/$version/lib"
rm -rf "$root/usr/lib/postgresql/$version/lib/bitcode" "$root/usr/lib/postgresql/$version/lib/llvmjit.so"
cp -r "/usr/share/postgresql/$version" "$root/usr/share/postgresql/$version"
cp "$(dirname "$0")/postgres-entry.sh" "$root/bin/entry"
# The one time zone that clients ask for.
mkdir -p "$root/usr/share/zoneinfo"
cp -L /usr/share/zoneinfo/UTC "$root/usr/share/zoneinfo/UTC"
# The number of the official image's user.
echo 'postgres:x:999:999::/:/bin/sh' > "$root/etc/passwd"
echo 'postgres:x:999:' > "$root/etc/group"

root=$folder/seaweedfs/root
shell "$root"
cp "$weed" "$root/bin/weed"
