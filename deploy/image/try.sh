#!/usr/bin/env bash
# The image without a registry: try.sh [BINARY]
# Puts it together around a binary that is built already, by import.sh, and runs jobs in it as Fargate and Kubernetes would:
# read-only root, no capabilities, not root, no network. Then it stops containers whose process 1 is forebay. Needs root,
# and Debian's docker.io and busybox-static; starts a Docker daemon of its own, and leaves nothing.
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=${1:-${CARGO_TARGET_DIR:-target}/debug/forebay}
work=$(mktemp -d "${TMPDIR:-/tmp}/forebay-image.XXXXXX")
export DOCKER_HOST="unix://$work/docker.sock" DOCKER_CONFIG="$work/config"
daemon=
end() {
    if [[ -n $daemon ]]; then
        docker ps -qa | xargs -r docker rm -f >/dev/null || true
        kill "$daemon"
        wait "$daemon" || true
    fi
    rm -rf "$work"
}
trap end EXIT

until_it() {
    for _ in $(seq 600); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "after a minute this still fails: $*"
}
fail() {
    echo "try.sh: $*" >&2
    tail -n 5 "$work/dockerd.log" >&2
    exit 1
}
expect() { [[ "$2" == "$3" ]] || fail "$1: expected $3, and it is $2"; }

dockerd -H "$DOCKER_HOST" --data-root "$work/data" --exec-root "$work/exec" -p "$work/dockerd.pid" --bridge=none \
    --iptables=false --ip-forward=false --ip-masq=false >"$work/dockerd.log" 2>&1 &
daemon=$!
until_it docker version

echo "-- the image, around $binary"
deploy/image/import.sh "$binary"
docker image inspect -f '{{.Size}} bytes, user {{.Config.User}}, stopped by {{.Config.StopSignal}}' forebay forebay:shell

mkdir "$work/volume" "$work/jobs"
chown 10001:10001 "$work/volume"
confined=(--read-only --cap-drop ALL --security-opt no-new-privileges --network none
    -v "$work/volume:/mnt/forebay" -v "$work/jobs:/jobs:ro" -v "$PWD/examples/nycflights13:/data:ro")

echo "-- without a shell: a query, and a program"
cat >"$work/jobs/query.toml" <<'TOML'
name = "query"
[dataset]
source = "file:///data"
name   = "flights"
[sql]
query  = "SELECT carrier, count(*) AS flights FROM flights GROUP BY carrier ORDER BY carrier"
tables = { flights = "flights/*.parquet" }
[output]
format = "csv"
TOML
cat >"$work/jobs/program.toml" <<'TOML'
name = "program"
[dataset]
source = "file:///data"
name   = "flights"
[command]
argv = ["forebay", "dataset", "verify", "flights", "--full"]
env  = { HOME = "/tmp" }
[workers]
count = 2
TOML
docker run --rm "${confined[@]}" forebay run --id query /jobs/query.toml
expect "the first row" "$(sed -n 2p "$work/volume/runs/query/output/"*.csv)" "9E,1573"
docker run --rm "${confined[@]}" forebay run --id program /jobs/program.toml
expect "whose the output is" "$(stat -c %u:%g "$work/volume/runs/query/output")" "10001:10001"
docker run --rm --read-only --network none -v named:/mnt/forebay forebay --quiet volume check
docker run --rm --entrypoint sh "${confined[@]}" forebay -c true 2>/dev/null && fail "there is a shell"

echo "-- with a shell: the demo"
docker run --rm "${confined[@]}" forebay:shell demo

echo "-- workers and a coordinator in containers of their own, each process 1"
cat >"$work/jobs/apart.toml" <<'TOML'
name = "apart"
reuse = "off"
[dataset]
source = "file:///data"
name   = "flights"
[command]
shell = "(setsid sleep 0.1 &); echo begun >> $FOREBAY_OUTPUT_DIR/begun; sleep 1"
[workers]
fleet = "external"
slots = 1
TOML
state() { docker inspect -f '{{.State.Status}} {{.State.ExitCode}}' "$1"; }
is() { [[ "$(state "$1")" == "$2" ]]; }
docker run -d --name coordinator "${confined[@]}" forebay:shell run --id apart --listen 127.0.0.1 /jobs/apart.toml >/dev/null 2>&1
until_it ls "$work/volume/runs/apart/epochs/1/link.json"
worker=("${confined[@]/none/container:coordinator}")
docker run -d --name worker "${worker[@]}" forebay:shell worker --run apart >/dev/null 2>&1
until_it is coordinator "exited 0"
until_it is worker "exited 0"
docker logs coordinator 2>&1 | tail -n 2

echo "-- SIGTERM to process 1"
sed 's/sleep 1"/sleep 600"/' "$work/jobs/apart.toml" >"$work/jobs/long.toml"
docker run -d --name stopped "${confined[@]}" forebay:shell run --id stopped --listen 127.0.0.1 /jobs/long.toml >/dev/null 2>&1
until_it ls "$work/volume/runs/stopped/epochs/1/link.json"
docker run -d --name drained "${confined[@]/none/container:stopped}" forebay:shell worker --run stopped >/dev/null 2>&1
begun() { find "$work/volume/runs/stopped/attempts" -name begun | grep -q .; }
until_it begun
for one in drained stopped; do
    docker stop -t 60 "$one" >/dev/null
    echo "$one: $(state "$one")"
done
is drained "exited 0" || fail "the worker did not end in order"
is stopped "exited 130" || fail "the coordinator did not end in order"
docker run --rm "${confined[@]}" forebay:shell runs list
echo "-- all of it works"
