#!/bin/sh
# check-arm64-binary.sh [DIR]: links the static binary for aarch64 on this x86-64 machine, and runs
# it on an empty root (try-static-binary.sh), by emulation. DIR keeps the binary. get-arm64-tools.sh
# brings the tools.
set -eu
cd "$(dirname "$0")/.."
parts=${DORMER_PARTS:-$PWD/target/parts}
out=${1:-$(mktemp -d)}
if [ $# -eq 0 ]; then trap 'rm -rf "$out"' EXIT; fi

scripts/get-arm64-tools.sh "$parts"
CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}/static-arm64
export CARGO_TARGET_DIR
scripts/static-binary.sh "$out" dev aarch64-unknown-linux-gnu
# The two bytes of an ELF file that name the machine: 183 is AArch64.
[ "$(od -An -tu2 -j18 -N2 "$out/dormer" | tr -d ' ')" = 183 ]
scripts/try-static-binary.sh "$out/dormer" "$parts/qemu-user/usr/bin/qemu-aarch64-static"
