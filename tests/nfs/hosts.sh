#!/usr/bin/env bash
# Hosts that mount over real NFSv4.1 what a third one exports: user-mode kernels, in a network namespace of their own. As root,
# with the packages below. With a command, host one runs it over the volume at /mnt/v; tiny objects are served then, from
# ENDPOINT. Sourced, it has what tests/nfs/scenes.sh is made of. DELAY_MS delays what the hosts send.
#   apt-get install user-mode-linux kmod socat iproute2 nfs-common nfs-kernel-server e2fsprogs python3
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
DELAY_MS=${DELAY_MS:-0}
# As the EFS mount helper mounts: https://docs.aws.amazon.com/efs/latest/ug/mounting-fs-nfs-mount-settings.html
MOUNT=nfsvers=4.1,rsize=1048576,wsize=1048576,hard,timeo=600,retrans=2,noresvport
NET=10.78.0
declare -A NUMBER=([server]=1 [one]=11 [two]=12)
# Seconds; nfsd takes no fewer.
NFS_LEASE=10

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
        echo "$NFS_LEASE" >/proc/fs/nfsd/nfsv4leasetime
        echo "$NFS_LEASE" >/proc/fs/nfsd/nfsv4gracetime
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

. "$here/../support/scenes.sh"
work=$(mktemp -d) ns=forebay-$$
inside() { ip netns exec "$ns" "$@"; }
clear_up() {
    # Guests and servers are all that runs in the namespace, which this made.
    ip netns pids "$ns" 2>/dev/null | xargs -r kill -9 2>/dev/null || true
    ip netns delete "$ns" 2>/dev/null || true
    rm -rf "$work"
}
trap clear_up EXIT
show() { tail -n 20 "$work"/*.log; }

# Where that cannot be, skips.
network() {
    local why
    why=$(make_network 2>&1) || skip "no hosts can be made here: ${why##*$'\n'}"
}
make_network() { # Where that fails, says why.
    [[ $EUID == 0 ]] || { echo "not root"; return 1; }
    [[ -c /dev/net/tun ]] || { echo "there is no /dev/net/tun"; return 1; }
    command -v linux.uml >/dev/null || { echo "user-mode-linux is not installed"; return 1; }
    ip netns add "$ns" || { echo "no network namespace can be made here"; return 1; }
    { inside ip link set lo up && inside ip link add bridge type bridge; } || { echo "the kernel has no bridges"; return 1; }
    inside ip address add "$NET.254/24" dev bridge
    inside ip link set bridge up
}
boot() { # HOST MEMORY [DISK]
    inside ip tuntap add "tap-$1" mode tap
    inside ip link set "tap-$1" master bridge up
    TMPDIR=$memory_dir inside setsid linux.uml mem="$2" rootfstype=hostfs ro con=null con0=null,fd:1 quiet uml_dir="$work" \
        umid="$1" ${3:+ubd0=$3} vec0:transport=tap,ifname="tap-$1",depth=64,gro=1 \
        init="$here/hosts.sh" -- "$1" "$work/modules" "$DELAY_MS" </dev/null >"$work/$1.log" 2>&1 &
}
boot_all() { # MEMORY HOST…: these, their server, and one of objects; waits until all are there.
    local memory=$1 host objects=()
    shift
    mkdir -p "$work/modules/lib"
    ln -s /usr/lib/uml/modules "$work/modules/lib/modules"
    # The kernels' memory is files that can be executed.
    memory_dir=/dev/shm
    { ! grep -q ' /dev/shm .*noexec' /proc/mounts && (($(df --output=avail -k /dev/shm | tail -1) > 2 << 20)); } || memory_dir=$work
    truncate -s 2G "$work/disk"
    mkfs.ext4 -q "$work/disk"
    boot server "$memory" "$work/disk"
    for host; do boot "$host" "$memory"; done
    (($# > 1)) || objects=(tiny)
    inside python3 "$here/objects.py" "$NET.254" "${objects[@]}" >"$work/objects.log" 2>&1 &
    for host in objects "$@"; do
        until_ "$host is there" grep -qs ready "$work/$host.log"
    done
}
on() { # HOST COMMAND: its output without empty lines, and its exit status, within three minutes. The line with that ends it, whoever still holds the connection.
    local host=$1
    shift
    inside timeout 180 bash -c '
        until (exec 3<>"/dev/tcp/$1/7000") 2>/dev/null; do sleep 0.2; done
        exec 3<>"/dev/tcp/$1/7000"
        printf "exec 2>&1\n%s\nprintf \"\\\\nended %%s\\\\n\" \$?\nexit\n" "$2" >&3
        while IFS= read -r line <&3; do
            [[ $line =~ ^ended\ ([0-9]+)$ ]] && exit "${BASH_REMATCH[1]}"
            [[ -z $line ]] || printf "%s\n" "$line"
        done
        exit 255' - "$NET.${NUMBER[$host]}" "$*"
}
cut_off() { inside ip link set "tap-$1" nomaster; }
heal() { inside ip link set "tap-$1" master bridge; }
# The hosts reach their server and not each other, or each other again: on, off.
apart() { for host in one two; do inside ip link set "tap-$host" type bridge_slave isolated "$1"; done; }

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    (($#)) || { sed -n 's/^# //p' "$0" | head -4; exit 2; }
    network
    boot_all 1G one
    on one "$(printf '%q ' env "HOME=/run" "ENDPOINT=http://$NET.254:9000" "$@")" || exit
fi
