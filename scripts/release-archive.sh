#!/bin/sh
# release-archive.sh BINARY MACHINE FOLDER: packs what a release has for one kind of machine into
# FOLDER, with checksums of all that is there: dormer-VERSION-MACHINE.tar.gz, dormer-ci.sh and
# SHA256SUMS. MACHINE is x86_64-linux or aarch64-linux, and this machine is of that kind: BINARY
# writes its own completions and manual pages.
#
# The same binary gives the same archive, byte by byte: names are sorted, owners are numbers, and
# every time is that of the commit (SOURCE_DATE_EPOCH).
set -eu
umask 022
binary=$1 machine=$2
mkdir -p "$3"
folder=$(cd "$3" && pwd)
top=$(cd "$(dirname "$0")/.." && pwd)
epoch=${SOURCE_DATE_EPOCH:-$(git -C "$top" log -1 --format=%ct)}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' "$top/Cargo.toml")
name=dormer-$version-$machine

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/$name"
install -m 755 "$binary" "$work/$name/dormer"
install -m 644 "$top/LICENSE" "$top/README.md" "$work/$name/"
program=$work/$name/dormer
mkdir "$work/$name/completions"
for shell in bash zsh fish; do
  "$program" completions "$shell" > "$work/$name/completions/dormer.$shell"
done
"$program" --quiet man --to "$work/$name/man/man1"
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$epoch" --format=gnu \
    -C "$work" -cf - "$name" | gzip -n -9 > "$folder/$name.tar.gz"
install -m 755 "$top/deploy/ci/dormer-ci.sh" "$folder/dormer-ci.sh"
"$top/scripts/release-checksums.sh" "$folder"
