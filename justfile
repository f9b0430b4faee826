# What developers run. `just` lists it.

default:
    @just --list

# What is run before each commit: formatting, lints, docs, layers, and every test that needs no Nix.
check:
    scripts/check-prose.sh
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --features dormer-tests/kubernetes -- --deny warnings
    RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps
    cargo test --workspace --exclude dormer-tests
    cargo test --package dormer-tests layers::
    cargo test --package dormer-tests dependencies::

# Everything, as CI does it.
test *arguments:
    ./test {{arguments}}

# One file of stories against real Nix: `just story round_trip`.
story name:
    ./test -- --package dormer-tests {{name}}::

# The pictures of the docs, from pages in a real Chromium.
pictures:
    DORMER_PAGES_PICTURES={{justfile_directory()}}/target/pictures ./test -- --package dormer-tests \
        --test stories a_browser_finds_its_way_through_the_pages
    cp target/pictures/pages-*.png docs/images/

# A server on a data folder of its own, built for debugging.
dev:
    cargo run -- serve --data-dir target/dev

# The figures of docs/PERFORMANCE.md.
bench *parts:
    bench/run {{parts}}

# Licences, sources, bans and double versions of dependencies, by cargo-deny; the first three are in
# the tests too.
deny:
    cargo deny check bans licenses sources

# Known faults of dependencies, by cargo-deny (`cargo install cargo-deny`). It fetches RustSec's
# database, so it is no part of the tests: a new advisory must not break an old commit. The Worker
# has a lock file of its own, and is built for another platform.
audit:
    cargo deny check --config deny.toml advisories
    cargo deny --manifest-path worker/Cargo.toml --target wasm32-unknown-unknown check --config {{justfile_directory()}}/deny.toml advisories
