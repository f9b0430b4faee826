#!/bin/sh
# get-services.sh DIR: brings the services that the tests run against, from Debian's and PyPI's packages, and stops there:
# the tests start them on free ports (crates/testkit, `services`). What is there already is left alone.
#
# Wants Debian 12, and root or sudo for apt.
set -eu
parts=$1
mkdir -p "$parts"
as_root=$([ "$(id -u)" = 0 ] || echo sudo)

packages=
# need PACKAGE FILE: Debian's package and a file that shows it is there.
need() {
    [ -e "$2" ] || packages="$packages $1"
}
if [ -n "$packages" ]; then
    echo "installing$packages" >&2
    # A packaged service must not start by itself: it would take ports and memory.
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 update -qq
    # shellcheck disable=SC2086 # one word a package
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
        --no-install-recommends $packages > /dev/null
fi
