#!/bin/sh
# get-kubernetes.sh DIR: brings a Kubernetes of one node into DIR/kubernetes: a tree of Debian's
# packages (etcd, containerd, runc, the network's plugins), and the programs of Kubernetes itself,
# which are built here from Debian's source package with Debian's Go. What is there already is left
# alone. scripts/kubernetes-host.sh runs it.
#
# The build takes about seven minutes of one core. If it is interrupted, the next run goes on
# from there. Only ./test --long wants it.
#
# Wants Debian 12, a C compiler, mmdebstrap, and root or sudo for the tree.
set -eu
parts=${1:?usage: get-kubernetes.sh DIR}
mkdir -p "$parts"
parts=$(cd "$parts" && pwd)
as_root=$([ "$(id -u)" = 0 ] || echo sudo)
tree=$parts/kubernetes
[ -x "$tree/usr/local/bin/kubelet" ] && exit

# What is built, and what it must be.
version=1.20.2
suite=bookworm
source_name=kubernetes_1.20.5+really1.20.2.orig.tar.gz
source_sha256=b83c0780efb182d928dc63d46488a847f161f04e40a94b96bf5247dd671ecdfc

# The mirror that this machine already uses.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Label: Debian' | head -n 1)
mirror=${mirror:-http://deb.debian.org/debian}
work=$parts/kubernetes-build
mkdir -p "$work"
cd "$work"

# fetch COMMAND...: apt-get with lists of its own, in the folder ./packages. The machine's lists may
# lack the sources.
fetch() {
    mkdir -p lists/partial packages
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    for kind in deb deb-src; do echo "$kind [signed-by=$keys] $mirror $suite main"; done > sources.list
    printf '%s\n' "Dir::Etc::SourceList \"$work/sources.list\";" 'Dir::Etc::SourceParts "/dev/null";' \
        "Dir::State::Lists \"$work/lists\";" "Dir::Cache \"$work/cache\";" \
        'APT::Sandbox::User "";' 'Acquire::Retries "3";' > apt.conf
    mkdir -p cache/archives/partial
    [ -e lists/complete ] || { APT_CONFIG=$work/apt.conf apt-get update -qq && touch lists/complete; }
    (cd packages && APT_CONFIG=$work/apt.conf apt-get -qq "$@")
}

if [ ! -d go ]; then
    echo "fetching Go and the sources of Kubernetes $version" >&2
    fetch download golang-1.19-go golang-1.19-src
    rm -rf go.partial
    for package in packages/golang-*.deb; do dpkg-deb -x "$package" go.partial; done
    mv go.partial go
fi
if [ ! -d gopath ]; then
    fetch --download-only source kubernetes
    echo "$source_sha256  packages/$source_name" | sha256sum --check --quiet
    rm -rf gopath.partial
    mkdir -p gopath.partial/src/k8s.io
    tar -xzf "packages/$source_name" -C gopath.partial/src/k8s.io
    mv "gopath.partial/src/k8s.io/kubernetes-$version" gopath.partial/src/k8s.io/kubernetes
    mv gopath.partial gopath
fi

if [ ! -d tree ]; then
    echo "unpacking etcd and containerd into $work/tree" >&2
    $as_root rm -rf tree.partial
    packages=etcd-server,containerd,runc,containernetworking-plugins,iptables,conntrack,iproute2
    packages=$packages,dnsmasq-base,openssl,curl,mount,util-linux,bash,coreutils,findutils,sed
    packages=$packages,busybox-static,catatonit,base-files
    $as_root mmdebstrap --quiet --variant=extract --include=$packages \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Retries "3"' \
        $suite tree.partial "$mirror"
    # As an installed system has it: these packages still bring both.
    for name in bin sbin lib lib64; do
        [ -L "tree.partial/$name" ] && continue
        $as_root mkdir -p "tree.partial/usr/$name"
        $as_root cp -a "tree.partial/$name/." "tree.partial/usr/$name/"
        $as_root rm -rf "tree.partial/$name"
        $as_root ln -s "usr/$name" "tree.partial/$name"
    done
    $as_root mv tree.partial tree
fi

echo "building Kubernetes $version; it takes a while" >&2
# cgo for all of them: with and without it would be two builds of nearly everything, and the kubelet
# counts what containers use only with it. Module mode wants newer go.mod files.
export GOROOT="$work/go/usr/lib/go-1.19" GOPATH="$work/gopath" GOCACHE="$work/cache-go" GOFLAGS=
export GO111MODULE=off GOPROXY=off CGO_ENABLED=1
go=$GOROOT/bin/go
cd gopath/src/k8s.io/kubernetes
vendor=k8s.io/kubernetes/vendor/k8s.io
described=pkg/generated/openapi/zz_generated.openapi.go
# The source package lacks what is generated.
if [ ! -e "$described" ]; then
    "$go" build -o "$work/openapi-gen" $vendor/kube-openapi/cmd/openapi-gen
    types=$(grep -rl --include='*.go' '+k8s:openapi-gen=' pkg cmd staging/src/k8s.io/ |
        grep -vE 'code-generator|sample-apiserver|_test.go|kube-openapi' | xargs -n1 dirname | sort -u |
        sed -e "s#^staging/src/k8s.io#$vendor#" -e 's#^\(pkg\|cmd\)/#k8s.io/kubernetes/\1/#' | paste -sd,)
    "$work/openapi-gen" --logtostderr -i "$types" -p k8s.io/kubernetes/pkg/generated/openapi \
        -O zz_generated.openapi -h hack/boilerplate/boilerplate.generatego.txt -r /dev/null
fi
stated=
for package in component-base client-go/pkg; do
    for pair in gitVersion=v$version gitMajor=1 gitMinor=20; do
        stated="$stated -X $vendor/$package/version.$pair"
    done
done
mkdir -p "$work/bin"
# Without the clouds' own code and without Docker: two fifths of the code.
"$go" build -tags 'providerless dockerless' -ldflags "-s -w $stated" -o "$work/bin/" k8s.io/kubernetes/cmd/kube-apiserver \
    k8s.io/kubernetes/cmd/kube-controller-manager k8s.io/kubernetes/cmd/kube-scheduler \
    k8s.io/kubernetes/cmd/kube-proxy k8s.io/kubernetes/cmd/kubelet
"$work/bin/kubelet" --version >&2
# The kubelet comes last: where it is, all of them are.
cd "$work"
for program in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet; do
    $as_root install -D -m 755 "bin/$program" "tree/usr/local/bin/$program"
done
# A rename at the end: a tree of this name is whole.
$as_root mv tree "$tree"
cd "$parts"
chmod -R u+w "$work"
rm -rf "$work"
