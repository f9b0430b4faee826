#!/bin/sh
# check-same-binary.sh: builds the static binary of a release twice, each time from nothing, and
# compares the two byte by byte. Both builds use the same folder, as builds of the image do: the
# messages of panics name the files of the sources.
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/same-binary
export CARGO_TARGET_DIR
trap 'rm -rf "$out" "$CARGO_TARGET_DIR"' EXIT

for build in first second; do
    rm -rf "$CARGO_TARGET_DIR"
    scripts/static-binary.sh "$out/$build"
done
sha256sum "$out"/*/dormer
cmp "$out/first/dormer" "$out/second/dormer"
