#!/bin/sh
# check-same-binary.sh: builds the static binary twice, each time from nothing, and compares the two
# byte by byte. Both builds use the same folder, as builds of the image do: the messages of panics
# name the files of the sources.
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
