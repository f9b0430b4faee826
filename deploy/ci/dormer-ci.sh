#!/bin/sh
# dormer-ci.sh setup|push: a CI job substitutes from a cache of Dormer, and pushes what it built.
#
#   setup   brings `dormer`, lets Nix substitute from the cache, and notes which paths are there
#   push    pushes the paths that came since; run it also after a failure, for what was built
#
# The actions for GitHub and the template for GitLab run this script. Without a token, as in a job
# of a fork, it pushes nothing; a cache that does not answer fails no job unless it is required.
# All that it writes is below one folder, which the job's end removes; the token is written only to
# the netrc file there. It needs what the image nixos/nix has: a shell, coreutils, curl, findutils,
# grep, gzip and tar.
#
# Variables:
#   DORMER_CI_CACHE       name of the cache
#   DORMER_CI_ENDPOINT    address of the server; empty: read from the edge, push nothing
#   DORMER_CI_EDGE        address of the edge; empty: read from the server
#   DORMER_CI_PUBLIC_KEY  the cache's key; empty: ask the server for it
#   DORMER_CI_TOKEN       the token; empty: a public cache, read-only
#   DORMER_CI_VERSION     release to download; empty: `dormer` is on the PATH
#   DORMER_CI_RELEASES    where releases are, as …/v1.2.3/FILE: …/releases/download on GitHub
#   DORMER_CI_SHA256      SHA-256 of the archive; empty: the one that the release states
#   DORMER_CI_REQUIRED    true: a cache that does not answer fails the job
#   DORMER_CI_JOBS        concurrent uploads
#   DORMER_CI_STATE       the folder; default: below RUNNER_TEMP, or TMPDIR
set -eu

state=${DORMER_CI_STATE:-${RUNNER_TEMP:-${TMPDIR:-/tmp}}/dormer-ci}
store=${NIX_STORE_DIR:-/nix/store}
cache=${DORMER_CI_CACHE:?name a cache}
required=${DORMER_CI_REQUIRED:-false}
unreachable=5 # exit code of `dormer`

# say LEVEL WORDS: a notice, a warning or an error; GitHub shows them on the run's page.
say() {
    level=$1
    shift
    if [ "${GITHUB_ACTIONS:-}" = true ]; then
        echo "::$level title=Dormer::$*"
    else
        echo "dormer: $*" >&2
    fi
}
output() { [ -z "${GITHUB_OUTPUT:-}" ] || echo "$1=$2" >> "$GITHUB_OUTPUT"; }

# Names of everything in the store.
store_names() { if [ -d "$store" ]; then ls "$store"; fi; }
# without FILE: the lines that are not in the file.
without() {
    # busybox's grep takes an empty file for one that has every line.
    if [ -s "$1" ]; then grep -vxFf "$1" - || [ $? -eq 1 ]; else cat; fi
}
# Whether something listens there. `dormer` would repeat its request for longer.
answers() {
    curl -s -o /dev/null --connect-timeout 10 --max-time 30 --retry 2 --retry-delay 1 \
        --retry-connrefused "$1"
}

# fetch URL FILE. GitLab's own registry gets the job's token, by standard input: others can read
# command lines.
fetch() {
    header=
    case $1 in
    "${CI_API_V4_URL:-none}"/*) header="header = \"JOB-TOKEN: ${CI_JOB_TOKEN:-}\"" ;;
    esac
    echo "$header" | curl -fsSL --retry 3 --connect-timeout 20 --config - -o "$2" "$1"
}

bring_dormer() {
    if [ -z "${DORMER_CI_VERSION:-}" ]; then
        command -v dormer > /dev/null && return
        say error "no dormer on the PATH: name a version to download"
        exit 1
    fi
    case $(uname -s)-$(uname -m) in
    Linux-x86_64) machine=x86_64-linux ;;
    Linux-aarch64) machine=aarch64-linux ;;
    *)
        say error "there is no release for $(uname -s) on $(uname -m)"
        exit 1
        ;;
    esac
    name=dormer-$DORMER_CI_VERSION-$machine
    from=${DORMER_CI_RELEASES:?name the address of the releases}/v$DORMER_CI_VERSION
    mkdir -p "$state/bin" "$state/download"
    fetch "$from/$name.tar.gz" "$state/download/$name.tar.gz"
    if [ -n "${DORMER_CI_SHA256:-}" ]; then
        echo "$DORMER_CI_SHA256  $name.tar.gz" > "$state/download/sums"
    else
        fetch "$from/SHA256SUMS" "$state/download/all"
        grep "  $name.tar.gz\$" "$state/download/all" > "$state/download/sums"
    fi
    if ! (cd "$state/download" && sha256sum -c sums > /dev/null); then
        say error "$from/$name.tar.gz has another checksum than expected"
        exit 1
    fi
    tar -xzf "$state/download/$name.tar.gz" -C "$state/download"
    mv "$state/download/$name/dormer" "$state/bin/dormer"
    rm -r "$state/download"
    PATH=$state/bin:$PATH
    [ -z "${GITHUB_PATH:-}" ] || echo "$state/bin" >> "$GITHUB_PATH"
}

# The token reaches `dormer` by its environment only, which no other user can read.
with_token() {
    if [ -n "${DORMER_CI_TOKEN:-}" ]; then
        DORMER_TOKEN=$DORMER_CI_TOKEN "$@"
    else
        "$@"
    fi
}

setup() {
    umask 077
    rm -rf "$state"
    mkdir -p "$state/config/nix"
    bring_dormer

    # Nix reads the job's file first and then the user's own, and both files' substituters count.
    NIX_USER_CONF_FILES=$state/config/nix/nix.conf:${NIX_USER_CONF_FILES:-${XDG_CONFIG_HOME:-$HOME/.config}/nix/nix.conf}
    : > "$state/config/nix/nix.conf"
    set -- env "XDG_CONFIG_HOME=$state/config" "NIX_USER_CONF_FILES=$NIX_USER_CONF_FILES" dormer use "$cache"
    [ -z "${DORMER_CI_ENDPOINT:-}" ] || set -- "$@" --endpoint "$DORMER_CI_ENDPOINT"
    [ -z "${DORMER_CI_EDGE:-}" ] || set -- "$@" --edge "$DORMER_CI_EDGE"
    [ -z "${DORMER_CI_PUBLIC_KEY:-}" ] || set -- "$@" --public-key "$DORMER_CI_PUBLIC_KEY"
    code=0
    if answers "${DORMER_CI_EDGE:-${DORMER_CI_ENDPOINT:?name the endpoint or the edge}}"; then
        with_token "$@" || code=$?
    else
        code=$unreachable
    fi
    can_read=true can_push=true
    case $code in
    0) ;;
    4)
        # Forks get no secrets, and their jobs must pass all the same.
        if [ -n "${DORMER_CI_TOKEN:-}" ]; then
            say error "the cache $cache does not accept this token"
            exit 1
        fi
        say notice "the cache $cache is private and there is no token: Nix builds without it"
        can_read=false
        ;;
    "$unreachable")
        if [ "$required" = true ]; then
            say error "the cache $cache does not answer"
            exit 1
        fi
        say warning "the cache $cache does not answer: Nix builds without it"
        can_read=false can_push=false
        ;;
    *) exit 1 ;;
    esac
    if [ -z "${DORMER_CI_TOKEN:-}" ] || [ -z "${DORMER_CI_ENDPOINT:-}" ]; then
        say notice "there is no token or no endpoint: this job reads and pushes nothing"
        can_push=false
    fi
    [ -z "${GITHUB_ENV:-}" ] || echo "NIX_USER_CONF_FILES=$NIX_USER_CONF_FILES" >> "$GITHUB_ENV"
    output can-read "$can_read"
    output can-push "$can_push"
    if [ "$can_push" = true ]; then store_names > "$state/before"; fi
}

push() {
    if [ ! -e "$state/before" ]; then
        say notice "nothing is pushed: this job may not push, or setup did not run"
        output pushed 0
        return
    fi
    [ ! -d "$state/bin" ] || PATH=$state/bin:$PATH
    # Derivations are inputs; locks and the like are no paths. A failed build may leave an output
    # that is not valid.
    store_names | without "$state/before" | grep -E '^[0-9a-z]{32}-' |
        grep -vE '\.(drv|lock|check|chroot|tmp)$' |
        while read -r name; do echo "$store/$name"; done > "$state/new" || true
    : > "$state/invalid"
    if [ -s "$state/new" ]; then
        xargs nix-store --check-validity --print-invalid < "$state/new" > "$state/invalid"
    fi
    without "$state/invalid" < "$state/new" > "$state/paths"
    count=$(wc -l < "$state/paths")
    output pushed "$count"
    if [ "$count" -eq 0 ]; then
        say notice "this job built nothing new"
        return
    fi
    code=0
    with_token dormer push "$cache" --stdin --endpoint "${DORMER_CI_ENDPOINT:?name the endpoint}" \
        --jobs "${DORMER_CI_JOBS:-5}" --no-progress < "$state/paths" || code=$?
    if [ "$code" -eq "$unreachable" ] && [ "$required" != true ]; then
        say warning "the cache $cache does not answer: nothing more is pushed"
        return
    fi
    if [ "$code" -ne 0 ]; then
        say error "the push to $cache failed"
        exit "$code"
    fi
}

case ${1:-} in
setup) setup ;;
push) push ;;
*)
    echo "usage: dormer-ci.sh setup|push" >&2
    exit 2
    ;;
esac
