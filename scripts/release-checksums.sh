#!/bin/sh
# release-checksums.sh FOLDER: writes SHA256SUMS of all files in FOLDER, and nothing else changes.
set -eu
cd "$1"
sums=$(find . -maxdepth 1 -type f ! -name 'SHA256SUMS*' -printf '%f\n' | LC_ALL=C sort | xargs sha256sum)
echo "$sums" > SHA256SUMS
