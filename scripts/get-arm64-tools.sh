#!/bin/sh
# get-arm64-tools.sh DIR: brings what links the static binary for aarch64 on an x86-64 machine, and
# what runs it there. What is there already is left alone:
#
#   Debian's C compiler and C library for arm64, installed
#   DIR/qemu-user     Debian's emulator of one program
#   DIR/worker-rust   gets Rust's standard library for arm64, only where this machine's Rust has
#                     none (`rustup target add aarch64-unknown-linux-gnu` is the short way to it).
#                     Both halves are packages of Debian, of one version; get-worker-tools.sh brings
#                     the compiler.
#
# Wants Debian 12, and root or sudo for apt.
set -eu
parts=${1:?usage: get-arm64-tools.sh DIR}
mkdir -p "$parts"
parts=$(cd "$parts" && pwd)
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
target=aarch64-unknown-linux-gnu

if [ "$(uname -m)" != x86_64 ]; then
    echo "this machine is $(uname -m); the tools are for x86_64" >&2
    exit 1
fi
if [ ! -e /usr/bin/aarch64-linux-gnu-gcc ] || [ ! -e /usr/aarch64-linux-gnu/lib/libc.a ]; then
    echo "installing a C compiler for arm64" >&2
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 update -qq
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
        --no-install-recommends gcc-aarch64-linux-gnu libc6-dev-arm64-cross > /dev/null
fi

# Only unpacked: installed, it would run every foreign program of this machine.
if [ ! -x "$parts/qemu-user/usr/bin/qemu-aarch64-static" ]; then
    echo "unpacking Debian's qemu-user-static in $parts/qemu-user" >&2
    folder=$(mktemp -d "$parts/unpacking.XXXXXX")
    (cd "$folder" && { apt-get download -qq qemu-user-static ||
        { $as_root apt-get update -qq && apt-get download -qq qemu-user-static; }; })
    dpkg-deb -x "$folder"/*.deb "$folder/tree"
    rm -rf "$parts/qemu-user"
    mv "$folder/tree" "$parts/qemu-user"
    rm -rf "$folder"
fi

[ -d "$(rustc --print target-libdir --target $target 2> /dev/null)" ] && exit
rust=$parts/worker-rust
library=$rust/usr/lib/rustlib/$target
[ -d "$library" ] && exit
if [ ! -e "$rust/complete" ]; then
    echo "no Rust for arm64: rustup target add $target, or scripts/get-worker-tools.sh $parts" >&2
    exit 1
fi
echo "unpacking Rust's standard library for arm64 in $rust" >&2
folder=$(mktemp -d "$parts/unpacking.XXXXXX")
# Lists of its own: those of this machine know one architecture. The release and its updates are two
# places of one mirror.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
updates=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian-Security' | head -n 1)
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mkdir -p "$folder/lists/partial" "$folder/cache/archives/partial"
{
    echo "deb [arch=arm64 signed-by=$keys] ${mirror:-http://deb.debian.org/debian} $suite main"
    echo "deb [arch=arm64 signed-by=$keys] ${updates:-http://deb.debian.org/debian-security} $suite-security main"
} > "$folder/sources.list"
printf '%s\n' "Dir::Etc::SourceList \"$folder/sources.list\";" 'Dir::Etc::SourceParts "/dev/null";' \
    "Dir::State::Lists \"$folder/lists\";" "Dir::Cache \"$folder/cache\";" 'APT::Sandbox::User "";' \
    'APT::Architectures { "amd64"; "arm64"; };' > "$folder/apt.conf"
(
    cd "$folder"
    export APT_CONFIG="$folder/apt.conf"
    apt-get update -qq
    apt-get download -qq libstd-rust-web-dev:arm64
)
# The library must be that of the compiler, to the letter.
has=$(LD_LIBRARY_PATH=$rust/usr/lib/x86_64-linux-gnu "$rust/usr/bin/rustc" --version | cut -d' ' -f2)
brought=$(dpkg-deb --field "$folder"/*.deb Version)
case $brought in
"$has"+*) ;;
*)
    rm -rf "$folder"
    echo "Debian's library is $brought, and the compiler in $rust $has: remove that folder" >&2
    exit 1
    ;;
esac
dpkg-deb -x "$folder"/*.deb "$folder/tree"
mv "$folder/tree/usr/lib/rustlib/$target" "$library"
rm -rf "$folder"
