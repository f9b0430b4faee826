#!/usr/bin/env bash
# container-host.sh TREE WORK: a machine for containers, made of a Debian tree with podman
# (get-services.sh) and of namespaces of its own for mounts, processes and the network. It sees WORK
# as /host. It prints `ready PID`, with the number that its first process has outside:
#
#   nsenter --target PID --mount --pid --net --root --wdns=/ podman …
#
# The machine lives until its standard input ends, and then nothing of it is left: the kernel ends
# every process of the namespace with its first one, and mounts, images and networks go with the
# namespaces. The tree is never written: what podman stores is in memory, in 3 GB at most.
#
# The root is entered with pivot_root, because runc wants to do the same for each container. Wants
# root.
set -euo pipefail

usage='usage: container-host.sh TREE WORK'
export TREE=${1:?$usage} WORK=${2:?$usage}

exec unshare --mount --pid --net --ipc --uts --fork --kill-child --propagation private bash -euc '
  # This is still the old /proc: it has our number as others see it.
  read -r pid rest </proc/self/stat
  root=$TREE/run
  mount -t tmpfs -o mode=0755,size=3g tmpfs "$root"
  mkdir -p "$root"/{usr,etc/containers,proc,sys,dev,run,tmp,root,var/lib,var/tmp,host,old}
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  mount --bind "$TREE/usr" "$root/usr"
  cp -r "$TREE/etc/containers/." "$root/etc/containers/"
  # There is no systemd, whose journal and groups podman would use. The limits are ones that every
  # machine allows.
  cat >"$root/etc/containers/containers.conf" <<END
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=32768:32768"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
END
  echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
  echo "root:x:0:" >"$root/etc/group"
  echo "127.0.0.1 localhost" >"$root/etc/hosts"
  # Containers ask podman for names; nothing outside is asked.
  : >"$root/etc/resolv.conf"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount --bind "$WORK" "$root/host"
  ip link set lo up
  cd "$root"
  pivot_root . old
  busybox umount -l /old
  echo "ready $pid"
  # Ends the orphans of containers, which a shell would not.
  exec catatonit -- busybox cat >/dev/null
' container-host
