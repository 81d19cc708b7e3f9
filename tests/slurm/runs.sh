#!/usr/bin/env bash
# Runs whose workers Slurm starts, on a Slurm of four nodes, while nodes and workers are taken away: the output is the same
# each time, and no worker is left. As root; takes about three minutes. FOREBAY names the program, by default the debug build.
#   apt-get install slurm-wlm munge iproute2 util-linux
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../support/scenes.sh"
program
[[ -n ${SLURM_ROOT:-} ]] || exec "$here/cluster.sh" 4 2 "$here/runs.sh"

work=$SLURM_ROOT/work
inputs "$work/src"
sums "$work/src" >"$work/sums"
show() {
    squeue -a -t all
    tail -n 20 "$work"/*.said "$SLURM_ROOT/slurmctld.log"
}
begin() { # NAME [KEYS [WORK]]: a run of 20 tasks, each of which waits for `go` and then does WORK; until four have begun.
    run=$1 marks=$work/$1.marks
    mkdir "$marks"
    cat >"$work/$run.toml" <<JOB
name = "j"
reuse = "off"
[dataset]
source = "file://$work/src"
[command]
shell = """: >$marks/\$FOREBAY_TASK_INDEX.\$FOREBAY_ATTEMPT; until [ -e $marks/go ]; do sleep 0.1; done
${3:-sleep 0.5}; md5sum <\$(cat \$FOREBAY_INPUTS) >\$FOREBAY_OUTPUT_DIR/sum"""
[workers]
fleet = "slurm"
count = 4
cpus = 2
slots = 1
${2:-}
JOB
    "$FOREBAY" --volume "$work/v" --listen 127.0.0.1 run "$work/$run.toml" --id "$run" --json >"$work/$run.json" 2>"$work/$run.said" &
    coordinator=$!
    until_ "four tasks have begun" begun 4
}
begun() { (($(find "$marks" -name '*.*' | wc -l) >= $1)); }
jobs_in() { squeue -h -r -t "$1" -o '%F_%K'; }
jobs_of_run() { squeue -h -r -t all -o '%F_%K %j' | grep " $run\." | sort; }
are() { (($(jobs_in "$1" | wc -l) == $2)); }
workers() { pgrep -f "worker --volume $work/v --run" || true; }
go() { touch "$marks/go"; }
nobody() { [[ -z $(workers) && -z $(jobs_in PD,R,CG,S,CF) ]]; }
ends() { # STATE: and nobody is left.
    wait "$coordinator" || true
    grep -q "\"state\":\"$1\"" "$work/$run.json" || fail "$run is to be $1"
    if [[ $1 == succeeded ]]; then
        cat "$work/v/runs/$run/output"/task-*/sum | cmp - "$work/sums" || fail "$run: the output is another one"
    fi
    # Those that Slurm does not know any more end by themselves.
    until_ "no worker is left" nobody
    echo "   $(grep -o '"workers":[0-9]*' "$work/$run.json"), $(grep -o '"attempts":[0-9]*' "$work/$run.json" | tail -1)"
}
heard() { # Of the workers of all tasks that have begun.
    local mark
    for mark in "$marks"/*.*; do
        "$FOREBAY" --volume "$work/v" explain "$run" "$(basename "${mark%.*}")" >"$work/explained"
        grep -q 'begun at' "$work/explained" && ! grep -q 'nothing is heard' "$work/explained" || return
    done
}
pid_of() { cat "$SLURM_ROOT/slurmd.$1.pid"; }

echo "== a run as it should be"
begin plain
are R 4 || fail "four workers are wanted"
go
ends succeeded

echo "== a node is drained: its worker goes on"
begin drained
scontrol update nodename=node2 state=drain reason=test
go
ends succeeded
scontrol update nodename=node2 state=resume

echo "== a worker is scancelled: another one comes"
begin scancelled
scancel "$(jobs_in R | head -1)"
until_ "another one has begun" begun 5
go
ends succeeded

echo "== a worker is killed"
begin killed
kill -9 "$(workers | head -1)"
until_ "another one has begun" begun 5
go
ends succeeded

echo "== a worker's job is requeued: its tasks go on elsewhere"
begin requeued
scontrol requeue "$(jobs_in R | head -1)"
until_ "it waits" are PD 1
go
ends succeeded

echo "== a slurmd is killed: its job is begun anew while its old worker still works"
begin lost
kill -9 "$(pid_of node3)"
until_ "a job waits" are PD 1
(($(workers | wc -l) == 4)) || fail "the old worker is to go on"
scontrol update jobid="$(jobs_in PD)" StartTime=now
slurmd -N node3
until_ "there are five workers" begun 5
go
ends succeeded

echo "== the time of workers is shorter than the run"
begin brief "time = '60s'" "sleep 22"
go
ends succeeded

echo "== the coordinator is killed: the next one takes its workers over, and starts no others"
begin adopted
before=$(jobs_of_run)
kill -9 "$coordinator"
wait "$coordinator" 2>/dev/null || true
"$FOREBAY" --volume "$work/v" --listen 127.0.0.1 resume "$run" --json >"$work/$run.json" 2>"$work/$run.said" &
coordinator=$!
until_ "it has taken over" test -e "$work/v/runs/$run/epochs/2/link.json"
until_ "it hears of all workers" heard
go
ends succeeded
[[ $(jobs_of_run) == "$before" ]] || fail "others were started"

echo "== a run is cancelled"
begin cancelled
"$FOREBAY" --volume "$work/v" cancel "$run" >>"$work/$run.said" 2>&1
ends cancelled

echo "== a partition that is not there"
sed -e "s/^count = 4/count = 1/" -e "\$a [slurm]\npartition = \"nowhere\"" "$work/plain.toml" >"$work/wrong.toml"
if "$FOREBAY" --volume "$work/v" --listen 127.0.0.1 run "$work/wrong.toml" --id wrong 2>"$work/wrong.said"; then fail "it ran"; fi
grep -q "sinfo -s" "$work/wrong.said" || fail "it does not say what is wrong"

echo "== a program that nodes do not have"
sed -e "s/^count = 4/count = 8/" -e "\$a [slurm]\nprogram = \"/nowhere/forebay\"" "$work/plain.toml" >"$work/gone.toml"
if "$FOREBAY" --volume "$work/v" --listen 127.0.0.1 run "$work/gone.toml" --id gone 2>"$work/gone.said"; then fail "it ran"; fi
grep -q "ExitCode=12[67]" "$work/gone.said" && grep -q /nowhere/forebay "$work/gone.said" || fail "it does not say what is wrong"
nobody || fail "workers are left"
echo "passed"
