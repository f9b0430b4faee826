#!/bin/sh
# build-book.sh: builds the book of docs/ into target/book, with a pinned mdBook that it compiles
# from source where it is not there yet. A link that mdBook does not find is an error.
set -eu
cd "$(dirname "$0")/.."
version=0.5.4
sha256=5f68ffebcd0b9a4eb72aaacc4342bc94e1d63c01893b7c921437f6ef02443699
tools=${DORMER_PARTS:-$PWD/target/parts}/mdbook

if [ "$("$tools/bin/mdbook" --version 2> /dev/null)" != "mdbook v$version" ]; then
    echo "compiling mdBook $version into $tools" >&2
    # Asking for a description downloads the sources. Their checksum is that of this file, and not
    # only the registry's; their lock file pins the rest.
    cargo info --quiet "mdbook@$version" > /dev/null
    for archive in "${CARGO_HOME:-$HOME/.cargo}"/registry/cache/*/"mdbook-$version.crate"; do
        echo "$sha256  $archive" | sha256sum --check --quiet
    done
    # Without the server and the watcher.
    cargo install --quiet --locked --root "$tools" --no-default-features --features search "mdbook@$version"
fi
# mdBook only logs what it finds wrong.
said=$(mktemp)
trap 'rm -f "$said"' EXIT
"$tools/bin/mdbook" build docs 2> "$said" || { cat "$said" >&2 && exit 1; }
cat "$said" >&2
if grep -qE '(WARN|ERROR)' "$said"; then exit 1; fi
test -s target/book/index.html
