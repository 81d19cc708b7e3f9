#!/usr/bin/env bash
# A real API server of Kubernetes on loopback, over an etcd of its own, that `COMMAND…` uses and that ends with it:
#   tests/kubernetes/real.sh KUBE-APISERVER cargo test --workspace --lib -- --ignored real_api_server
# An optional command: no package of Debian's has an API server, and the one that it has the source of (1.20, of bookworm) knows no
# Indexed Jobs. As root, since it has processes and a network of its own. Needs: apt-get install etcd-server openssl curl
. "$(dirname "${BASH_SOURCE[0]}")/../support/scenes.sh"
if [[ ${1:-} != --inside ]]; then
    command -v etcd >/dev/null || skip "etcd is not installed"
    [[ -x ${1:-} ]] || { echo "usage: real.sh KUBE-APISERVER COMMAND…"; exit 2; }
    in_namespaces "$0" --inside "$@" || exit
    exit
fi
apiserver=$(realpath "$2")
shift 2
ip link set lo up
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
show() { tail -n 20 "$root"/*.log; }

openssl genrsa -out "$root/accounts.key" 2048 2>/dev/null
printf '%s\n' admin-token,admin,admin,system:masters nobody-token,nobody,nobody, >"$root/tokens"
etcd --data-dir "$root/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 >"$root/etcd.log" 2>&1 &
"$apiserver" --etcd-servers=http://127.0.0.1:2379 --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port=6443 \
    --cert-dir="$root/certs" --token-auth-file="$root/tokens" --authorization-mode=RBAC --endpoint-reconciler-type=none \
    --service-account-key-file="$root/accounts.key" --service-account-signing-key-file="$root/accounts.key" \
    --service-account-issuer=https://test --disable-admission-plugins=ServiceAccount >"$root/apiserver.log" 2>&1 &
context() { # NAME TOKEN
    echo "- {name: $1, user: {token: $2}}" >>"$root/users"
    echo "- {name: $1, context: {cluster: test, user: $1}}" >>"$root/contexts"
}
context admin admin-token
context nobody nobody-token
context stranger another-token
{
    echo "apiVersion: v1"
    echo "kind: Config"
    echo "clusters: [{name: test, cluster: {server: \"https://127.0.0.1:6443\", certificate-authority: certs/apiserver.crt}}]"
    echo "users:"
    cat "$root/users"
    echo "contexts:"
    cat "$root/contexts"
    echo "current-context: admin"
} >"$root/config"
ready() { curl -fs --cacert "$root/certs/apiserver.crt" -H "Authorization: Bearer admin-token" https://127.0.0.1:6443/readyz >/dev/null; }
until_ "the API server is ready" ready
FOREBAY_TEST_KUBECONFIG="$root/config" "$@" || exit
