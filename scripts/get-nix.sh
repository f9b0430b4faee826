#!/usr/bin/env bash
# get-nix.sh DIR: bring three Nix versions for the end-to-end tests, each in a Debian tree of its
# own:
#
#   DIR/bookworm  Nix 2.8, the oldest that we promise
#   DIR/trixie    Nix 2.26
#   DIR/forky     Debian's newest; it moves, so tests print its version and never assert it
#
# A tree holds nix and a static busybox (the builder of the test closures) and is only unpacked: no
# maintainer script runs and nothing of the system changes, except that `mmdebstrap` gets installed.
# Trees that exist are kept; `rm -r DIR` fetches them anew.
set -euo pipefail

dir=${1:?usage: get-nix.sh DIR}
as_root=()
if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi

missing() {
  for suite in bookworm trixie forky; do
    [ -x "$dir/$suite/usr/bin/nix" ] || echo "$suite"
  done
}
[ -n "$(missing)" ] || exit 0

if ! command -v mmdebstrap >/dev/null; then
  echo "get-nix: installing mmdebstrap" >&2
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=600 install -y -qq \
    --no-install-recommends mmdebstrap >/dev/null
fi

# The mirror that this machine already uses; other repositories may have a suite of the same name,
# hence the label.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}

mkdir -p "$dir"
for suite in $(missing); do
  echo "get-nix: unpacking nix of $suite into $dir/$suite" >&2
  "${as_root[@]}" rm -rf "$dir/$suite.partial"
  "${as_root[@]}" mmdebstrap --quiet --variant=extract --include=nix-bin,busybox-static,base-files \
    --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
    "$suite" "$dir/$suite.partial" "$mirror"
  # A rename at the end: a tree of this name is whole.
  "${as_root[@]}" mv "$dir/$suite.partial" "$dir/$suite"
done
