#!/usr/bin/env bash
# in-nix.sh TREE NIX WORK PROGRAM ARGUMENTS…: run a program with the /usr of a Debian tree (see
# get-nix.sh) and the folder NIX as its /nix, so that one folder is one machine with the canonical
# store directory.
#
# The root is a fresh tmpfs in a mount namespace of its own: trees are shared by all machines and
# never written, and every mount is gone with the program. WORK keeps its path. Network and
# processes are the host's. As root this needs nothing; as another user it takes a user namespace in
# which that user is root.
set -euo pipefail

usage='usage: in-nix.sh TREE NIX WORK PROGRAM ARGUMENTS…'
export TREE=${1:?$usage} NIX_FOLDER=${2:?$usage} WORK=${3:?$usage}
shift 3
mkdir -p "$NIX_FOLDER" "$WORK"
user=()
if [ "$(id -u)" -ne 0 ]; then user=(--map-root-user); fi

exec unshare "${user[@]}" --mount --propagation private bash -euc '
  root=$TREE/run
  mount -t tmpfs -o mode=0755 tmpfs "$root"
  for name in bin sbin lib lib32 lib64 libx32 usr; do
    if [ -L "$TREE/$name" ]; then
      cp -P "$TREE/$name" "$root/$name"
    elif [ -d "$TREE/$name" ]; then
      mkdir "$root/$name"
      mount --bind "$TREE/$name" "$root/$name"
    fi
  done
  # Every system has /bin/sh. The trees are only unpacked, and some have none. Links to the programs
  # of the tree, and one more, stand in front of its folder.
  if [ ! -e "$root/bin/sh" ]; then
    bin=$root/usr/bin
    if [ ! -L "$root/bin" ]; then bin=$root/bin; fi
    mkdir "$root/.tree-bin" "$root/.bin"
    mount --bind "$bin" "$root/.tree-bin"
    (cd "$root/.tree-bin" && set -- * && ln -s -t ../.bin "${@/#//.tree-bin/}")
    ln -s /.tree-bin/busybox "$root/.bin/sh"
    mount --bind "$root/.bin" "$bin"
  fi
  mkdir -p "$root"/{proc,dev,tmp,nix,etc,root} "$root$WORK"
  echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
  echo "root:x:0:" >"$root/etc/group"
  echo "127.0.0.1 localhost" >"$root/etc/hosts"
  mount --rbind /proc "$root/proc"
  mount --rbind /dev "$root/dev"
  mount --bind "$NIX_FOLDER" "$root/nix"
  mount --bind "$WORK" "$root$WORK"
  unset TREE NIX_FOLDER
  # The root becomes the root of the namespace as well: Nix enters its namespace anew before it runs
  # a hook, which would leave a mere chroot.
  cd "$root"
  mount --move . /
  exec unshare --root=. --wd="$WORK" "$@"
' in-nix "$@"
