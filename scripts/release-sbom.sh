#!/bin/sh
# release-sbom.sh FOLDER: writes FOLDER/dormer-VERSION.cdx.json, a list (CycloneDX) of all packages
# that the lock file allows in the binary. Wants Anchore's `syft` on the PATH, which asks nobody.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
# The one file: tests and the Worker have lock files of their own.
SYFT_CHECK_FOR_APP_UPDATE=false syft scan --quiet file:Cargo.lock --source-name dormer \
    --source-version "$version" --output "cyclonedx-json=$folder/dormer-$version.cdx.json"
