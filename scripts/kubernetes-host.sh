#!/usr/bin/env bash
# kubernetes-host.sh TREE WORK: a machine that is a Kubernetes of one node, made of the tree that
# get-kubernetes.sh brings and of namespaces of its own for mounts, processes and the network. It
# sees WORK as /host. It prints `ready PID`, with the number that its first process has outside, and
# starts nothing: scripts/kubernetes-node.sh does that, inside, as often as the node restarts.
#
# The machine lives until its standard input ends, and then nothing of it is left but empty groups
# of the kubelet: the kernel ends every process of the namespace with its first one, and mounts,
# images and networks go with the namespaces. The tree is never written: all that the node stores is
# in memory, in 6 GB at most. Wants root, on a machine that is no node of a Kubernetes itself.
set -euo pipefail

usage='usage: kubernetes-host.sh TREE WORK'
export TREE=${1:?$usage} WORK=${2:?$usage}
SCRIPTS=$(cd "$(dirname "$0")" && pwd)
export SCRIPTS

# What an earlier run left is empty. What is not empty belongs to somebody.
find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
if [ -n "$(find /sys/fs/cgroup -maxdepth 2 -type d -name kubepods)" ]; then
  echo "this machine runs pods already" >&2
  exit 1
fi

exec unshare --mount --pid --net --ipc --uts --fork --kill-child --propagation private bash -euc '
  # This is still the old /proc: it has our number as others see it.
  read -r pid rest </proc/self/stat
  root=$TREE/run
  mount -t tmpfs -o mode=0755,size=6g tmpfs "$root"
  mkdir -p "$root"/{usr,proc,sys,dev,run,tmp,root,var/lib,var/log,var/tmp,host,old,local/bin,fake}
  chmod 1777 "$root/tmp" "$root/var/tmp"
  for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
  ln -s ../run "$root/var/run"
  mount --bind "$TREE/usr" "$root/usr"
  cp -r "$TREE/etc" "$root/etc"
  # What the packages would set up if they were installed.
  for name in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s "/usr/sbin/${name/tables/tables-nft}" "$root/local/bin/$name"
  done
  install -m 755 "$SCRIPTS/kubernetes-node.sh" "$root/local/bin/node"
  echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
  echo "root:x:0:" >"$root/etc/group"
  echo "127.0.0.1 localhost" >"$root/etc/hosts"
  : >"$root/etc/resolv.conf"
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  mount --rbind /dev "$root/dev"
  mount --bind "$WORK" "$root/host"
  # The kubelet wants these settings of the kernel, which are those of the whole machine. It sees
  # what it wants, and the machine keeps its own.
  fake() {
    echo "$2" >"$root/fake/${1//\//_}"
    mount --bind "$root/fake/${1//\//_}" "$root/proc/sys/$1"
  }
  fake vm/overcommit_memory 1
  fake vm/panic_on_oom 0
  fake kernel/panic 10
  fake kernel/panic_on_oops 1
  fake kernel/keys/root_maxkeys 1000000
  fake kernel/keys/root_maxbytes 25000000
  # The address of the node.
  ip link set lo up
  ip link add node0 type bridge
  ip address add 10.123.0.1/24 dev node0
  ip link set node0 up
  ip route add default via 10.123.0.254 dev node0
  echo 1 >/proc/sys/net/ipv4/ip_forward
  cd "$root"
  pivot_root . old
  /usr/bin/busybox umount -l /old
  echo "ready $pid"
  # Ends the orphans of containers, which a shell would not. The number of what keeps the machine
  # is in /keep: a restart of the node spares it.
  exec /usr/bin/catatonit -- /usr/bin/bash -c "echo \$\$ >/keep; exec busybox cat >/dev/null"
' kubernetes-host
