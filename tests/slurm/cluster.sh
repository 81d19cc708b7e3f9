#!/usr/bin/env bash
# A whole Slurm on this host, on loopback: munge, a controller and some nodes, that `COMMAND…` uses and that end with it.
#   tests/slurm/cluster.sh [NODES=4] [CPUS=2] COMMAND…
# As root, since it has processes and a network of its own. Needs: apt-get install slurm-wlm munge iproute2 util-linux
. "$(dirname "${BASH_SOURCE[0]}")/../support/scenes.sh"
if [[ ${1:-} != --inside ]]; then
    command -v slurmctld >/dev/null && command -v munged >/dev/null || skip "Slurm and munge are not installed"
    in_namespaces "$0" --inside "$@" || exit
    exit
fi
shift
nodes=4 cpus=2
[[ $1 =~ ^[0-9]+$ ]] && { nodes=$1; shift; }
[[ $1 =~ ^[0-9]+$ ]] && { cpus=$1; shift; }
ip link set lo up
# Names are resolved only where there is an address beside 127.0.0.1.
ip address add 192.0.2.1/32 dev lo
SLURM_ROOT=$(mktemp -d)
export SLURM_ROOT SLURM_CONF=$SLURM_ROOT/slurm.conf
trap 'rm -rf "$SLURM_ROOT"' EXIT
chmod 755 "$SLURM_ROOT"
from=$PWD
cd "$SLURM_ROOT"
mkdir state spool
(umask 077 && head -c 1024 /dev/urandom >munge.key)
me=$(id -un) host=$(hostname -s)
cat >slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$me
SlurmdUser=$me
SlurmctldPort=17000
SlurmdPort=17001
AuthType=auth/munge
AuthInfo=socket=$SLURM_ROOT/munge.sock
StateSaveLocation=$SLURM_ROOT/state
SlurmdSpoolDir=$SLURM_ROOT/spool/%n
SlurmctldPidFile=$SLURM_ROOT/slurmctld.pid
SlurmdPidFile=$SLURM_ROOT/slurmd.%n.pid
SlurmctldLogFile=$SLURM_ROOT/slurmctld.log
SlurmdLogFile=$SLURM_ROOT/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,sched_min_interval=0,bf_interval=2,batch_sched_delay=0
KillWait=5
MinJobAge=60
SlurmdTimeout=8
ReturnToService=2
NodeName=node[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=17001-$((17000 + nodes)) CPUs=$cpus RealMemory=2000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
munged --socket="$SLURM_ROOT/munge.sock" --key-file="$SLURM_ROOT/munge.key" --pid-file="$SLURM_ROOT/munged.pid" --log-file="$SLURM_ROOT/munged.log" \
    --seed-file="$SLURM_ROOT/munge.seed" --force
slurmctld
for n in $(seq "$nodes"); do slurmd -N "node$n"; done
show() { sinfo || tail -n 20 "$SLURM_ROOT"/*.log; }
idle() { [[ $(sinfo -h -o %T 2>/dev/null | sort -u) == idle ]]; }
until_ "all nodes are idle" idle
sinfo -h -o "%D nodes of %c cpus: %T"
cd "$from"
"$@" || exit
