#!/usr/bin/env bash
# An ECS that runs containers, on this host: a Docker daemon with forebay's image, ministack in front of it, an EFS file
# system and a bucket; COMMAND… uses them, and all ends with it.
#   tests/ecs/cluster.sh COMMAND…
# As root, with processes, mounts and a network of its own: nothing outside is touched or listens. COMMAND has DOCKER_HOST,
# what the AWS SDK reads, and CLOUD, FILE_SYSTEM, ACCESS_POINT and VOLUME, which is the access point's directory.
# FOREBAY names the program, by default the debug build; FOREBAY_TEST_SERVERS a venv with ministack and docker.
#   apt-get install docker.io busybox-static binutils iproute2 util-linux
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../support/scenes.sh"
program
: "${FOREBAY_TEST_SERVERS:?names a venv with ministack and docker}"
no_docker() { skip "no Docker daemon can run here: $*"; }
if [[ ${1:-} != --inside ]]; then
    CLOUD=$(mktemp -d "${TMPDIR:-/tmp}/forebay-ecs.XXXXXX")
    export CLOUD
    end() {
        rm -rf "$CLOUD"
        # Of version 1 there is a hierarchy for each controller; the daemon leaves its own group empty.
        find /sys/fs/cgroup -depth -type d -path "*/${CLOUD##*/}*" -exec rmdir {} + 2>/dev/null || true
    }
    trap end EXIT
    in_namespaces "$0" --inside "$@" || exit
    exit
fi
shift

# Whatever Docker keeps outside its own directories.
mount -t tmpfs tmpfs /run
ip link set lo up
export DOCKER_HOST="unix://$CLOUD/docker.sock" DOCKER_CONFIG="$CLOUD/docker"
dockerd -H "$DOCKER_HOST" --data-root "$CLOUD/data" --exec-root "$CLOUD/exec" -p "$CLOUD/dockerd.pid" --cgroup-parent="/${CLOUD##*/}" \
    --bridge=none --iptables=false --ip6tables=false --ip-masq=false >"$CLOUD/dockerd.log" 2>&1 &
dockerd=$!
show() { tail -n 20 "$CLOUD"/*.log; }
docker_answers() {
    docker version >/dev/null 2>&1 && return
    kill -0 "$dockerd" 2>/dev/null || no_docker "$(tail -n 1 "$CLOUD/dockerd.log")"
    return 1
}
until_ "Docker's daemon answers" docker_answers
# Each task has an address of its own, as with awsvpc, and reaches coordinator, ministack and the others.
export TASK_NETWORK=tasks TASK_GATEWAY=192.0.2.1
docker network create --driver bridge --subnet 192.0.2.0/24 --gateway "$TASK_GATEWAY" "$TASK_NETWORK" >"$CLOUD/network" 2>&1 ||
    no_docker "$(cat "$CLOUD/network")"
"$here/../../deploy/image/import.sh" "$FOREBAY"
docker run --rm --network none --entrypoint busybox forebay:shell true >"$CLOUD/tried" 2>&1 || no_docker "$(cat "$CLOUD/tried")"

export GATEWAY_PORT=4566 BIND_HOST=$TASK_GATEWAY MINISTACK_DOCKER_TIMEOUT=60
export AWS_ENDPOINT_URL=http://$TASK_GATEWAY:$GATEWAY_PORT AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1
export AWS_ACCESS_KEY_ID=test AWS_SECRET_ACCESS_KEY=test no_proxy=$TASK_GATEWAY EFS_ROOT=$CLOUD/efs
python=$FOREBAY_TEST_SERVERS/bin/python
TMPDIR=$CLOUD STATE_DIR=$CLOUD/state "$python" "$here/agent.py" >"$CLOUD/ministack.log" 2>&1 &
ministack=$!
ministack_listens() {
    (: <"/dev/tcp/$TASK_GATEWAY/$GATEWAY_PORT") 2>/dev/null && return
    kill -0 "$ministack" 2>/dev/null || fail "ministack has ended"
    return 1
}
until_ "ministack listens" ministack_listens
read -r FILE_SYSTEM ACCESS_POINT path < <("$python" "$here/cloud.py" create)
export FILE_SYSTEM ACCESS_POINT VOLUME=$EFS_ROOT/$FILE_SYSTEM$path
# What EFS does when an access point is used for the first time.
mkdir -p "$VOLUME"
chown 10001:10001 "$VOLUME"
chmod 711 "$CLOUD"
"$@" || exit
