#!/bin/sh
# check-static-binary.sh: builds the static binary and runs it on an empty root
# (try-static-binary.sh).
set -eu
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/static
export CARGO_TARGET_DIR
scripts/static-binary.sh "$out" dev
scripts/try-static-binary.sh "$out/dormer"
