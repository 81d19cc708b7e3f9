#!/usr/bin/env bash
# Staging and running by two hosts over real NFSv4.1: two user-mode kernels mount what a third one exports, in a network
# namespace of their own. As root, with the packages below; takes five minutes. FOREBAY names the program, by default the debug build.
# With a command, the first host runs that instead, over the volume at /mnt/v; tiny objects are served then, from ENDPOINT.
# DELAY_MS delays what the hosts send.
#   apt-get install user-mode-linux kmod socat iproute2 nfs-common nfs-kernel-server python3
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
FOREBAY=${FOREBAY:-${CARGO_TARGET_DIR:-$here/../../target}/debug/forebay}
DELAY_MS=${DELAY_MS:-0}
# As the EFS mount helper mounts: https://docs.aws.amazon.com/efs/latest/ug/mounting-fs-nfs-mount-settings.html
MOUNT=nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport
NET=10.78.0
declare -A NUMBER=([server]=1 [one]=11 [two]=12)

if [[ $$ == 1 ]]; then # In a guest, this file is init. $1: who it is, $2: where the modules are, $3: the delay.
    export PATH=/usr/sbin:/usr/bin:/sbin:/bin
    mount -t proc proc /proc
    mount -t sysfs sys /sys
    for dir in /run /mnt /var/lib/nfs; do mount -t tmpfs none "$dir"; done
    mkdir -p /mnt/v /var/lib/nfs/v4recovery /run/rpc_pipefs
    hostname "$1"
    ip link set lo up
    ip address add "$NET.${NUMBER[$1]}/24" dev vec0
    ip link set vec0 up
    if [[ $1 == server ]]; then
        modprobe -d "$2" nfsd
        mount -t ext4 /dev/ubda /mnt/v
        mount -t nfsd nfsd /proc/fs/nfsd
        touch /var/lib/nfs/etab /var/lib/nfs/rmtab
        exportfs -i -o rw,async,insecure,no_root_squash,no_subtree_check,fsid=0 "$NET.0/24:/mnt/v"
        echo 10 >/proc/fs/nfsd/nfsv4gracetime
        rpc.mountd -N 2 -N 3
        rpc.nfsd -N 3 -V 4.1 8
    else
        modprobe -d "$2" nfsv4
        if [[ $3 != 0 ]]; then
            modprobe -d "$2" sch_netem
            tc qdisc add dev vec0 root netem delay "$3ms"
        fi
        until mount -t nfs4 -o "$MOUNT" "$NET.1:/" /mnt/v; do sleep 0.5; done
    fi
    echo "ready: $1"
    exec socat -t 3600 TCP-LISTEN:7000,fork,reuseaddr EXEC:/bin/bash
fi

work=$(mktemp -d) ns=forebay-$$ memory=256M
(($#)) && memory=1G
inside() { ip netns exec "$ns" "$@"; }
clear_up() {
    # Guests and servers are all that runs in the namespace, which this made.
    ip netns pids "$ns" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns delete "$ns" 2>/dev/null || true
    rm -rf "$work"
}
trap clear_up EXIT

boot() {
    inside ip tuntap add "tap-$1" mode tap
    inside ip link set "tap-$1" master bridge up
    TMPDIR=/dev/shm inside setsid linux.uml mem="$memory" rootfstype=hostfs ro con=null con0=null,fd:1 quiet uml_dir="$work" \
        umid="$1" ${2:+ubd0=$2} vec0:transport=tap,ifname="tap-$1",depth=64,gro=1 \
        init="$here/two_hosts.sh" -- "$1" "$work/modules" "$DELAY_MS" </dev/null >"$work/$1.log" 2>&1 &
}
on() { # HOST COMMAND: its output, and its exit status. The line with that ends it, whoever still holds the connection.
    local host=$1
    shift
    inside bash -c '
        until (exec 3<>"/dev/tcp/$1/7000") 2>/dev/null; do sleep 0.2; done
        exec 3<>"/dev/tcp/$1/7000"
        printf "exec 2>&1\n%s\nprintf \"\\\\nended %%s\\\\n\" \$?\nexit\n" "$2" >&3
        while IFS= read -r line <&3; do
            [[ $line =~ ^ended\ ([0-9]+)$ ]] && exit "${BASH_REMATCH[1]}"
            printf "%s\n" "$line"
        done
        exit 255' - "$NET.${NUMBER[$host]}" "$*"
}

ip netns add "$ns"
inside ip link set lo up
inside ip link add bridge type bridge
inside ip address add "$NET.254/24" dev bridge
inside ip link set bridge up
mkdir -p "$work/modules/lib"
ln -s /usr/lib/uml/modules "$work/modules/lib/modules"
truncate -s 2G "$work/disk"
mkfs.ext4 -q "$work/disk"
boot server "$work/disk"
boot one
(($#)) || boot two
inside python3 "$here/objects.py" "$NET.254" ${1:+tiny} >"$work/objects.log" 2>&1 &
guests=(one two)
(($#)) && guests=(one)
for guest in "${guests[@]}"; do
    for _ in $(seq 240); do grep -q "ready: $guest" "$work/$guest.log" && break; sleep 0.25; done
    grep "ready: $guest" "$work/$guest.log"
done
until grep -q ready "$work/objects.log"; do sleep 0.2; done
if (($#)); then
    on one "$(printf '%q ' env "HOME=/run" "ENDPOINT=http://$NET.254:9000" "$@")"
    exit
fi

environment="AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b AWS_REGION=us-east-1 HOME=/run"
environment+=" AWS_ENDPOINT_URL_S3=http://$NET.254:9000"
stage() { echo "env $environment '$FOREBAY' --volume /mnt/v/$1 dataset stage s3://bucket/ --name d --json"; }
number() { grep -o "\"$1\":[0-9]*" "$2" | tail -1 | cut -d: -f2; }
id() { grep -o '"snapshot":"[0-9a-f]*"' "$1" | tail -1; }
fail() {
    echo "FAILED: $*"
    tail -n 5 "$work"/*.out
    exit 1
}
whole() { # VOLUME: every byte is right, seen from either host, and nothing is left of the work.
    for host in one two; do
        on "$host" "'$FOREBAY' --volume /mnt/v/$1 dataset verify d --full" >"$work/verify.out" || fail "$1, from $host"
    done
    [[ -z $(on two "ls /mnt/v/$1/datasets/d/staging /mnt/v/$1/trash | grep -v :") ]] || fail "$1 is not cleared up"
}

echo "== both at once: no object is fetched twice"
on one "$(stage both)" >"$work/one.out" &
on two "$(stage both)" >"$work/two.out" || fail "two's staging"
wait $! || fail "one's staging"
total=$(($(number fetched_objects "$work/one.out") + $(number fetched_objects "$work/two.out")))
[[ $total == $(number objects "$work/two.out") ]] || fail "$total objects were fetched"
[[ $(id "$work/one.out") == $(id "$work/two.out") ]] || fail "two snapshots"
known=$(id "$work/one.out")
whole both

echo "== one is killed: the other goes on with what it has left, and does not wait for it"
on one "$(stage killed) & sleep 6; kill -9 \$!" >"$work/one.out" || true
# Longer than who is alive is silent.
sleep 16
on two "$(stage killed)" >"$work/two.out" || fail "two's staging"
[[ $(id "$work/two.out") == "$known" ]] || fail "another snapshot"
whole killed

echo "== one is stopped, taken over from, and wakes up"
on one "$(stage stopped) & sleep 5; kill -STOP \$!; sleep 40; kill -CONT \$!; wait \$!" >"$work/one.out" &
on two "$(stage stopped)" >"$work/two.out" || fail "two's staging"
wait $! || fail "one's staging"
[[ $(id "$work/one.out") == "$known" && $(id "$work/two.out") == "$known" ]] || fail "another snapshot"
whole stopped

echo "== the link of one is cut, and comes back"
on one "$(stage cut)" >"$work/one.out" &
one=$!
(
    sleep 5
    inside ip link set tap-one nomaster
    sleep 30
    inside ip link set tap-one master bridge
) &
healing=$!
on two "$(stage cut)" >"$work/two.out" || fail "two's staging"
wait "$healing"
wait "$one" || true
[[ $(id "$work/two.out") == "$known" ]] || fail "another snapshot"
whole cut

# A run whose coordinator is on one, with a worker of four slots on two, all of whose four tasks wait for a file.
begin() { # VOLUME
    marks=/mnt/v/$1-marks
    run="'$FOREBAY' --volume /mnt/v/$1 run /mnt/v/$1.toml --id r --json"
    on one "mkdir $marks $marks/src; for n in 0 1 2 3; do echo \$n >$marks/src/\$n; done"
    on one "printf '%s\n' \"name = 'j'\" '[dataset]' \"source = 'file://$marks/src'\" '[command]' \
        'shell = \"\"\": >$marks/begun.\$FOREBAY_TASK_INDEX.\$FOREBAY_ATTEMPT' 'until [ -e $marks/go ]; do sleep 0.2; done' \
        'cat \$(cat \$FOREBAY_INPUTS) >\$FOREBAY_OUTPUT_DIR/x; : >$marks/done.\$FOREBAY_TASK_INDEX.\$FOREBAY_ATTEMPT\"\"\"' \
        '[workers]' \"fleet = 'external'\" >/mnt/v/$1.toml"
    on one "HOME=/run setsid $run --listen $NET.11 >/run/$1.said 2>&1 & echo \$! >/run/$1.pid"
    on two "until [ -e /mnt/v/$1/runs/r/epochs/1/link.json ]; do sleep 0.5; done
        HOME=/run setsid '$FOREBAY' --volume /mnt/v/$1 worker --run r --slots 4 >/run/$1.worker 2>&1 &"
    on two "until [ \$(ls $marks | grep -c begun) = 4 ]; do sleep 0.5; done"
}
take_over() { # VOLUME: two coordinates, and the run ends with what its worker has done, once.
    on two "HOME=/run setsid $run --listen $NET.12 >/run/$1.json 2>/run/$1.said &"
    on two "until [ -e /mnt/v/$1/runs/r/epochs/2/link.json ]; do sleep 0.5; done; touch $marks/go
        until grep -q state /run/$1.json; do sleep 0.5; done; cat /run/$1.json" >"$work/two.out"
    [[ $(number succeeded "$work/two.out") == 4 && $(number attempts "$work/two.out") == 4 ]] || fail "$1"
    [[ $(on two "ls $marks | grep -c -e begun -e done") == 8 ]] || fail "$1: something was done twice"
    [[ $(on two "cat /mnt/v/$1/runs/r/output/task-0000?/x" | tr -d '\n') == 0123 ]] || fail "$1: the output"
}

echo "== the coordinator of a run is killed: two takes over, with the worker and what it holds"
begin adopted >"$work/begin.out"
on one "kill -9 \$(cat /run/adopted.pid)"
take_over adopted

echo "== the coordinator's host is cut off from workers and volume: the same, and it knows when it is back"
begin deposed >"$work/begin.out"
inside ip link set tap-one nomaster
take_over deposed
inside ip link set tap-one master bridge
on one "while kill -0 \$(cat /run/deposed.pid) 2>/dev/null; do sleep 0.5; done; cat /run/deposed.said" >"$work/one.out"
grep -q -e "taken over by another" "$work/one.out" || fail "the deposed coordinator"
echo "passed"
