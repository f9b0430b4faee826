#!/usr/bin/env bash
# build-worker.sh: builds the Worker into worker/dist: the module, its JavaScript half, and the
# entrance.
#
# Takes the wasm32 target of this machine's Rust, else the one that get-worker-tools.sh has brought.
set -euo pipefail
cd "$(dirname "$0")/.."
parts=${DORMER_PARTS:-$PWD/target/parts}
target=${CARGO_TARGET_DIR:-$PWD/target}/worker
mkdir -p "$target"
target=$(cd "$target" && pwd)

# The tool is the host's own; the lock file holds it at the version that the module is built with.
CARGO_TARGET_DIR=$target cargo build --quiet --locked --manifest-path worker/Cargo.toml --package dormer-worker-bindgen
(
  if [ ! -d "$(rustc --print target-libdir --target wasm32-unknown-unknown 2>/dev/null)" ]; then
    rust=$parts/worker-rust
    [ -e "$rust/complete" ] || { echo "no Rust for wasm32: rustup target add wasm32-unknown-unknown, or scripts/get-worker-tools.sh $parts" >&2 && exit 1; }
    export RUSTC=$rust/usr/bin/rustc LD_LIBRARY_PATH=$rust/usr/lib/$(uname -m)-linux-gnu
    export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$rust/usr/bin/wasm-ld
  fi
  # Two compilers must not share a folder: each would throw the other's work away.
  CARGO_TARGET_DIR=$target/wasm cargo build --quiet --locked --release --target wasm32-unknown-unknown \
    --manifest-path worker/Cargo.toml --package dormer-worker
)
rm -rf worker/dist.partial
mkdir worker/dist.partial
"$target/debug/dormer-worker-bindgen" "$target/wasm/wasm32-unknown-unknown/release/dormer_worker.wasm" worker/dist.partial
cp worker/src/index.js worker/dist.partial
rm -rf worker/dist
mv worker/dist.partial worker/dist
printf 'worker/dist: module of %s bytes, %s gzipped\n' "$(wc -c <worker/dist/dormer_worker_bg.wasm)" "$(gzip -9c worker/dist/dormer_worker_bg.wasm | wc -c)" >&2
