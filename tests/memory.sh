#!/usr/bin/env bash
# A program that takes more memory than its slot has, where control groups are: in a kernel of its own, since cgroup v2 has
# the memory controller there whatever this host does with it. As root, with what tests/nfs/hosts.sh needs:
#   tests/nfs/hosts.sh bash "$PWD/tests/memory.sh" PATH-OF-FOREBAY
. "$(dirname "$0")/support/scenes.sh"
forebay=$1
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/m/src
echo x >/run/m/src/x
take() { # MIB: what a job comes to whose program takes so much of 200 MiB.
    printf '%s\n' "name = 'j'" '[dataset]' "source = 'file:///run/m/src'" '[command]' \
        "argv = ['python3', '-c', 'import os; x = os.urandom(1 << 20) * $1; print(len(x))']" \
        '[workers]' "memory = '200MiB'" 'slots = 1' '[retry]' 'attempts = 1' >/run/m/job.toml
    HOME=/run/m "$forebay" --volume /run/m/v run /run/m/job.toml --id "m$1" 2>&1
}
take 100
if told=$(take 300); then fail "it got 300 MiB of 200"; fi
grep -q "used more than its 200 MiB of memory, and was ended" <<<"$told" || fail "$told"
# Those of attempts; the worker's own may wait for the kernel.
no_group() { [[ -z $(find /sys/fs/cgroup -maxdepth 2 -name '0-*') ]]; }
until_ "its groups are gone" no_group
echo passed
