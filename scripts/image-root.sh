#!/bin/sh
# image-root.sh BINARY DIR: prepares what deploy/Containerfile puts into the image. DIR/root gets
# the binary, the certificate authorities and a user; DIR/owned gets the data folder, which the
# image's user will own.
#
# A static binary (static-binary.sh) needs nothing else. For any other one, the libraries that it
# names come along: the tests pack the binary that they have.
set -eu
binary=$1
root=$2/root
owned=$2/owned

mkdir -p "$root/bin" "$root/etc/ssl/certs" "$owned/data"
chmod 700 "$owned/data"
cp "$binary" "$root/bin/dormer"
chmod 755 "$root/bin/dormer"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
printf 'dormer:x:65532:65532:dormer:/data:/bin/dormer\n' > "$root/etc/passwd"
printf 'dormer:x:65532:\n' > "$root/etc/group"

# `ldd` fails on a static file. Each line of its output has at most one path.
libraries=$(ldd "$binary" 2> /dev/null | grep -o '/[^ ]*') || exit 0
# The rule that is built into a static binary.
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
for library in $libraries; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
done
