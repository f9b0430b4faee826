#!/usr/bin/env bash
# get-worker-tools.sh DIR: brings what the Worker is built and tested with, and leaves alone what is
# there:
#
#   DIR/node          Node, from npm's package, only where this machine has none or one before 20
#   DIR/worker-node   npm's packages of worker/package-lock.json: workerd, miniflare, wrangler
#   DIR/kubernetes-models   npm's packages of tests/kubernetes-models: schemas of custom resources
#   DIR/browser-node   npm's packages of tests/browser: what drives a browser through the pages
#   DIR/worker-rust   Debian's Rust with std for wasm32, only where this machine's Rust has none
#                     (`rustup target add wasm32-unknown-unknown` is the short way to it)
#
# From nothing about two minutes on two cores, nearly all of it the standard library. Wants Debian
# 12 for the last part, and root or sudo for apt where npm is missing.
set -euo pipefail
parts=${1:?usage: get-worker-tools.sh DIR}
mkdir -p "$parts"
parts=$(cd "$parts" && pwd)
root=$(cd "$(dirname "$0")/.." && pwd)
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi

# To run the tools in DIR/worker-node, put DIR/node/node_modules/.bin before the PATH, as here.
PATH=$parts/node/node_modules/.bin:$PATH

node_is_new() {
  command -v node >/dev/null && node -e 'process.exit(parseInt(process.versions.node) >= 20 ? 0 : 1)'
}

node_runtime() {
  local architecture
  if ! command -v npm >/dev/null; then
    echo "installing npm" >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 update -qq
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
      --no-install-recommends npm >/dev/null
  fi
  node_is_new && return
  case $(uname -m) in
    x86_64) architecture=x64 ;;
    aarch64) architecture=arm64 ;;
    *) echo "no Node for $(uname -m): install Node 20 or newer, https://nodejs.org" >&2 && exit 1 ;;
  esac
  echo "installing Node in $parts/node" >&2
  npm install --prefix "$parts/node" --ignore-scripts --no-fund --no-audit --loglevel=error \
    "node-linux-$architecture@22.23.3" >/dev/null
  hash -r
  node_is_new || { echo "Node did not come: install Node 20 or newer, https://nodejs.org" >&2 && exit 1; }
}

# npm_packages FOLDER SOURCE: the packages of SOURCE/package-lock.json in FOLDER.
npm_packages() {
  local folder=$1 source=$2 want
  want=$(cat "$source/package.json" "$source/package-lock.json" | sha256sum)
  [ "$(cat "$folder/packages" 2>/dev/null)" = "$want" ] && return
  echo "installing npm's packages of $source in $folder" >&2
  rm -rf "$folder"
  mkdir -p "$folder"
  cp "$source"/package.json "$source"/package-lock.json "$source"/.npmrc "$folder"
  # No script of a package runs: workerd comes as a package of its own for each platform.
  (cd "$folder" && npm ci --ignore-scripts --no-fund --no-audit --loglevel=error >/dev/null)
  echo "$want" >"$folder/packages"
}

# Debian's Rust for its own browser: newer than its default one, and with the sources of the
# standard library.
debian_rust() {
  local folder=$parts/worker-rust partial=$parts/worker-rust.partial lld rustc std
  [ -d "$(rustc --print target-libdir --target wasm32-unknown-unknown 2>/dev/null)" ] && return
  [ -e "$folder/complete" ] && return
  echo "unpacking Debian's Rust in $folder" >&2
  rm -rf "$folder" "$partial"
  mkdir -p "$partial/packages"
  apt-cache show rustc-web >/dev/null 2>&1 || "${as_root[@]}" apt-get update -qq
  std=$(apt-cache depends rustc-web libstd-rust-web-dev | grep -oE 'libstd-rust-web-[0-9.]+' | head -n 1)
  # Whatever LLVM that Rust is made with, there is a linker of the same.
  llvm=$(apt-cache depends "$std" | grep -oE 'libllvm[0-9]+' | head -n 1)
  lld=lld-${llvm#libllvm}
  (
    cd "$partial/packages"
    apt-get download -qq rustc-web libstd-rust-web-dev "$std" rust-web-src "$llvm" "$lld" libz3-4 libedit2 libxml2 libbsd0 libmd0 libicu72
    for package in *.deb; do
      case $package in
        # Of the compiler's own sources only the standard library is wanted.
        rust-web-src_*) dpkg-deb --fsys-tarfile "$package" | tar -x -C .. --wildcards './usr/src/*/library' ;;
        *) dpkg-deb -x "$package" .. ;;
      esac
    done
  ) 2>&1 | grep -v '^W: Download is performed unsandboxed' >&2 || true
  rm -rf "$partial/packages"
  rustc=$partial/usr/bin/rustc
  [ -x "$rustc" ] || { echo "Debian's Rust did not come: is bookworm-security among the sources?" >&2 && exit 1; }
  mkdir -p "$partial/usr/lib/rustlib/src"
  ln -sfn "$(cd "$partial"/usr/src/rustc-* && pwd)" "$partial/usr/lib/rustlib/src/rust"

  echo "building the standard library for wasm32" >&2
  mkdir -p "$partial/empty/src"
  printf '[package]\nname = "empty"\nedition = "2024"\n[workspace]\n' >"$partial/empty/Cargo.toml"
  touch "$partial/empty/src/lib.rs"
  (
    cd "$partial/empty"
    export RUSTC=$rustc LD_LIBRARY_PATH=$partial/usr/lib/$(uname -m)-linux-gnu RUSTC_BOOTSTRAP=1
    unset CARGO_TARGET_DIR RUSTFLAGS
    cargo build --quiet --release --target wasm32-unknown-unknown -Z build-std=std,panic_abort
  )
  mkdir -p "$partial/usr/lib/rustlib/wasm32-unknown-unknown/lib"
  rm "$partial"/empty/target/wasm32-unknown-unknown/release/deps/libempty-*
  cp "$partial"/empty/target/wasm32-unknown-unknown/release/deps/*.rlib "$partial/usr/lib/rustlib/wasm32-unknown-unknown/lib/"
  rm -rf "$partial/empty" "$partial/usr/src" "$partial/usr/lib/rustlib/src"
  ln -s "../lib/llvm-${llvm#libllvm}/bin/wasm-ld" "$partial/usr/bin/wasm-ld"
  touch "$partial/complete"
  mv "$partial" "$folder"
}

node_runtime
{
  npm_packages "$parts/worker-node" "$root/worker"
  npm_packages "$parts/kubernetes-models" "$root/tests/kubernetes-models"
  npm_packages "$parts/browser-node" "$root/tests/browser"
} &
npm=$!
debian_rust
wait "$npm"
