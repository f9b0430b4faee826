#!/bin/sh
# release-version.sh TAG: prints `version=1.2.3` if every file that names the version of a release
# agrees with the tag v1.2.3, and fails otherwise.
set -eu
cd "$(dirname "$0")/.."
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"$/\1/p' Cargo.toml)
if [ "$1" != "v$version" ]; then
    echo "the tag is $1, but Cargo.toml has version $version" >&2
    exit 1
fi
bad=0
# stated FILE TEXT: the file holds this text.
stated() {
    grep -qF "$2" "$1" || { echo "$1 does not say: $2" >&2 && bad=1; }
}
stated deploy/Containerfile "ARG VERSION=$version"
stated deploy/ci/gitlab.yml "DORMER_CI_VERSION: \"$version\""
stated deploy/ci/examples/image.yml "push@v$version"
stated deploy/helm/dormer/Chart.yaml "version: $version"
stated deploy/helm/dormer/Chart.yaml "appVersion: \"$version\""
[ "$bad" -eq 0 ]
echo "version=$version"
