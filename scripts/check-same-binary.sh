#!/bin/sh
# check-same-binary.sh: builds the static binary twice, each time from nothing, and compares the two
# byte by byte. Both builds use the same folder, as builds of the image do: the messages of panics
# name the files of the sources.
#
# A binary of the profile dist must also stay below 40 MB, the limit of the image.
#
# SAME_BINARY_PROFILE is a profile of Cargo: dist by default. `dev` takes less time, and
# proves the same of build scripts, macros and the linker; only the optimiser is not asked.
set -eu
cd "$(dirname "$0")/.."
profile=${SAME_BINARY_PROFILE:-dist}
out=$(mktemp -d)
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/same-binary
export CARGO_TARGET_DIR
trap 'rm -rf "$out" "$CARGO_TARGET_DIR"' EXIT

for build in first second; do
    rm -rf "$CARGO_TARGET_DIR"
    scripts/static-binary.sh "$out/$build" "$profile"
done
sha256sum "$out"/*/dormer
cmp "$out/first/dormer" "$out/second/dormer"
if [ "$profile" = dist ]; then
    size=$(stat --format=%s "$out/first/dormer")
    [ "$size" -lt 40000000 ] || { echo "the binary has $size bytes" >&2 && exit 1; }
fi
