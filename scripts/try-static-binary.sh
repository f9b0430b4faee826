#!/bin/sh
# try-static-binary.sh BINARY [EMULATOR]: runs a static `dormer` on a root that holds nothing else,
# as in the image: not root, no libraries, no /dev, no shell. It must start, answer, and resolve a
# name. EMULATOR is a static program that runs binaries of another kind of machine (qemu-user).
# Wants root or sudo, for chroot.
set -eu
binary=$1
emulator=${2:-}
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
root=$(mktemp -d)
server=
finish() {
    [ -z "$server" ] || $as_root kill "$server" 2> /dev/null || true
    $as_root rm -rf "$root"
}
trap finish EXIT

mkdir -p "$root/bin" "$root/data" "$root/home" "$root/etc"
install -m 755 "$binary" "$root/bin/dormer"
if [ -n "$emulator" ]; then install -m 755 "$emulator" "$root/bin/emulator"; fi
printf '127.0.0.1 cache.example.test\n' > "$root/etc/hosts"
chmod 755 "$root"
$as_root chown 65532:65532 "$root/data" "$root/home"

# inside ARGUMENT...: the binary on that root, as nobody in particular.
inside() {
    $as_root env -i HOME=/home DORMER_DATA_DIR=/data "$(command -v chroot || echo /usr/sbin/chroot)" \
        --userspec=65532:65532 "$root" ${emulator:+/bin/emulator} /bin/dormer "$@"
}
inside --version
inside serve --listen 127.0.0.1:0 > "$root/log" 2>&1 &
server=$!
tries=0
until grep -q '^listening on ' "$root/log"; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] || { cat "$root/log" && exit 1; }
    sleep 0.2
done
port=$(sed -n 's/^listening on .*://p' "$root/log")
inside login lab "http://cache.example.test:$port" --token-file /data/admin-token
inside cache list
inside doctor --data-dir /data
