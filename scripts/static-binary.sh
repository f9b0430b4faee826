#!/bin/sh
# static-binary.sh DIR [PROFILE [TARGET]]: builds `dormer` as one file that needs nothing else, not
# even a C library, and puts it into DIR. PROFILE is Cargo's: dist by default. TARGET is Rust's
# name of another kind of machine: this one by default. For aarch64-unknown-linux-gnu, the tools of
# get-arm64-tools.sh link it.
#
# The GNU C library is linked in whole. Since its version 2.34 that includes looking up names over
# DNS and in /etc/hosts, so the file resolves names on an empty root too; older ones would load a
# library at run time, so they are refused. Random bytes come from the kernel by a call: the default
# is to look for the library's function at run time, which finds none in a static file, and then to
# read /dev/urandom, which an empty root does not have.
set -eu
folder=$1
profile=${2:-dist}
host=$(rustc -vV | sed -n 's/^host: //p')
target=${3:-$host}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cd "$(dirname "$0")/.."

version=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
case $version in
2.[0-9] | 2.[12][0-9] | 2.3[0-3])
    echo "GNU C library 2.34 or newer is needed to link statically; this machine has $version" >&2
    exit 1
    ;;
esac

if [ "$target" != "$host" ]; then
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    if [ ! -d "$(rustc --print target-libdir --target "$target" 2> /dev/null)" ]; then
        rust=${DORMER_PARTS:-$PWD/target/parts}/worker-rust
        if [ ! -d "$rust/usr/lib/rustlib/$target" ]; then
            echo "no Rust for $target: rustup target add $target, or scripts/get-arm64-tools.sh" >&2
            exit 1
        fi
        export RUSTC="$rust/usr/bin/rustc" LD_LIBRARY_PATH="$rust/usr/lib/x86_64-linux-gnu"
    fi
fi

# With --target, flags reach what is shipped and not the build scripts and macros, which cannot be
# static.
case $profile in
dev) built=debug ;;
*) built=$profile ;;
esac
RUSTFLAGS="${RUSTFLAGS:-} -C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"" \
    cargo build --locked --package dormer --profile "$profile" --target "$target"
cp "${CARGO_TARGET_DIR:-target}/$target/$built/dormer" "$folder/dormer.new"
mv "$folder/dormer.new" "$folder/dormer"
