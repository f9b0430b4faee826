#!/usr/bin/bash
# Runs inside kubernetes-host.sh, as /local/bin/node:
#
#   node start NAME=ADDRESS...   starts etcd, containerd and Kubernetes; these names are those that
#                                pods can resolve
#   node cut                     ends every process at once, as a loss of power does, and forgets
#                                what a real machine has in memory; the next start is that of a boot
#   node images FILE...          loads archives of images
#
# Debian has no server of names for Kubernetes, so dnsmasq answers with fixed addresses of Services.
# Volumes are folders of the node. Nothing enforces network policies.
set -euo pipefail
export PATH=/local/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin
keys=/var/lib/kubernetes
mkdir -p /var/log/node $keys

# daemon NAME COMMAND...: in the background; its output goes to /var/log/node/NAME.log.
daemon() {
  local name=$1
  shift
  setsid "$@" >>"/var/log/node/$name.log" 2>&1 </dev/null &
}

# await WHAT COMMAND...: until the command succeeds, for a minute.
await() {
  local what=$1 try
  shift
  for try in $(seq 300); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  echo "$what does not answer" >&2
  tail -n 30 /var/log/node/*.log >&2
  exit 1
}

containers() { ctr --timeout 60s --connect-timeout 2s --address /run/containerd/containerd.sock --namespace k8s.io "$@"; }

first_start() {
  openssl genrsa -out $keys/accounts.key 2048 2>/dev/null
  openssl rsa -in $keys/accounts.key -pubout -out $keys/accounts.pub 2>/dev/null
  local token
  token=$(openssl rand -hex 16)
  echo "$token,admin,admin,\"system:masters\"" >$keys/tokens.csv
  cat >/host/kubeconfig <<END
apiVersion: v1
kind: Config
clusters: [{name: node, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: "$token"}}]
contexts: [{name: node, context: {cluster: node, user: admin}}]
current-context: node
END
  mkdir -p /etc/containerd /etc/cni/net.d
  cat >/etc/containerd/config.toml <<END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
END
  cat >/etc/cni/net.d/10-pods.conflist <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-addresses",
     "ranges": [[{"subnet": "10.244.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "loopback"}]}
END
}

start_storage() {
  [ -e /host/kubeconfig ] || first_start
  daemon etcd etcd --data-dir /var/lib/etcd --unsafe-no-fsync \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster default=http://127.0.0.1:2380
  daemon containerd containerd --config /etc/containerd/config.toml
  await containerd containers version
}

start_kubernetes() {
  local names=("$@") name
  daemon api kube-apiserver --etcd-servers=http://127.0.0.1:2379 --secure-port=6443 --insecure-port=0 \
    --bind-address=0.0.0.0 --advertise-address=10.123.0.1 --cert-dir=$keys/api \
    --service-cluster-ip-range=10.96.0.0/24 --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file=$keys/accounts.pub --service-account-signing-key-file=$keys/accounts.key \
    --token-auth-file=$keys/tokens.csv --authorization-mode=Node,RBAC --allow-privileged=true \
    --kubelet-preferred-address-types=InternalIP
  local token
  token=$(cut -d, -f1 $keys/tokens.csv)
  await "the API" curl -sk -f --max-time 2 -H "Authorization: Bearer $token" https://127.0.0.1:6443/readyz
  local access=(--kubeconfig=/host/kubeconfig)
  local checked=("${access[@]}" --authentication-kubeconfig=/host/kubeconfig
    --authorization-kubeconfig=/host/kubeconfig --bind-address=127.0.0.1 --port=0 --leader-elect=false)
  daemon controllers kube-controller-manager "${checked[@]}" --secure-port=10257 \
    --cert-dir=$keys/controllers --service-account-private-key-file=$keys/accounts.key
  daemon scheduler kube-scheduler "${checked[@]}" --secure-port=10259 --cert-dir=$keys/scheduler
  # Settings of the kernel that only the whole machine has stay as they are.
  daemon proxy kube-proxy "${access[@]}" --proxy-mode=iptables --hostname-override=node1 \
    --bind-address=10.123.0.1 --masquerade-all=true --conntrack-max-per-core=0 \
    --conntrack-tcp-timeout-established=0 --conntrack-tcp-timeout-close-wait=0 \
    --healthz-bind-address=127.0.0.1:10256 --metrics-bind-address=127.0.0.1:10249
  local answers=()
  for name in "${names[@]}"; do answers+=("--host-record=${name/=/,}"); done
  daemon names dnsmasq --keep-in-foreground --user=root --no-resolv --no-hosts --local=/cluster.local/ \
    --listen-address=10.123.0.1 --bind-interfaces --pid-file= "${answers[@]}"
  mkdir -p /var/lib/kubelet/plugins /var/lib/volumes/{small,large}
  daemon kubelet kubelet "${access[@]}" --container-runtime=remote \
    --container-runtime-endpoint=unix:///run/containerd/containerd.sock --root-dir=/var/lib/kubelet \
    --cert-dir=$keys/kubelet --address=0.0.0.0 --port=10250 --read-only-port=0 \
    --healthz-bind-address=127.0.0.1 --hostname-override=node1 --node-ip=10.123.0.1 \
    --protect-kernel-defaults=true --max-open-files=20000 --oom-score-adj=0 --fail-swap-on=false \
    --cgroup-driver=cgroupfs --authorization-mode=AlwaysAllow --anonymous-auth=true \
    --cluster-dns=10.123.0.1 --cluster-domain=cluster.local --resolv-conf=/etc/resolv.conf \
    --volume-plugin-dir=/var/lib/kubelet/plugins --register-node=true \
    --eviction-hard='memory.available<100Mi,nodefs.available<1%,imagefs.available<1%'
  await "the kubelet" curl -s -f --max-time 2 http://127.0.0.1:10248/healthz
}

# Every process but the first one, the one that keeps the machine, and ours.
others() {
  local folder id kept
  kept=$(cat /keep)
  for folder in /proc/[0-9]*; do
    id=${folder#/proc/}
    case $id in 1 | "$kept" | "$$" | "$BASHPID") continue ;; esac
    # What has ended and waits for its parent has no program.
    if [ -e "$folder/exe" ]; then echo "$id"; fi
  done
}

cut_power() {
  local tries=0 left mounted
  while left=$(others) && [ -n "$left" ]; do
    # shellcheck disable=SC2086 # one word a process
    kill -KILL $left 2>/dev/null || true
    tries=$((tries + 1))
    [ "$tries" -lt 100 ] || { echo "these do not end: $left" >&2 && exit 1; }
    sleep 0.05
  done
  # What was mounted last is taken away first.
  while read -r _ mounted _; do
    case $mounted in /run/* | /var/lib/kubelet/* | /var/lib/containerd/*) echo "$mounted" ;; esac
  done </proc/mounts | tac | while read -r mounted; do umount -l "$mounted" || true; done
  find /run -mindepth 1 -delete
  ip link delete cni0 2>/dev/null || true
  for table in nat filter mangle; do
    iptables -t $table -F
    iptables -t $table -X
  done
  find /sys/fs/cgroup -depth -type d -path '*/kubepods*' -exec rmdir {} + 2>/dev/null || true
}

case ${1:-} in
  start)
    shift
    start_storage
    start_kubernetes "$@"
    ;;
  images)
    shift
    for file in "$@"; do containers images import "$file"; done
    ;;
  cut) cut_power ;;
  *) echo "usage: node start NAME=ADDRESS... | images FILE... | cut" >&2 && exit 2 ;;
esac
