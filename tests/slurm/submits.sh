#!/usr/bin/env bash
# Runs that are submitted to Slurm from where the volume is not, nor anything of theirs is on the nodes. As root; takes about a
# minute. FOREBAY names the program, by default the debug build.
#   apt-get install slurm-wlm munge iproute2 util-linux
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../support/scenes.sh"
program
[[ -n ${SLURM_ROOT:-} ]] || exec "$here/cluster.sh" 3 2 "$here/submits.sh"

work=$SLURM_ROOT/work
mkdir -p "$work"/{v,desk,own,state}
inputs "$work/src"
export XDG_STATE_HOME=$work/state FOREBAY_VOLUME=$work/v
show() {
    squeue -a -t all
    tail -n 20 "$work"/said* "$work"/own/*.log
}
# A host with Slurm's commands and the job's folder, and without the volume; nodes have the volume, and not the folder.
elsewhere() { unshare --mount sh -euc 'mount -t tmpfs none "$FOREBAY_VOLUME"; mount --bind "$0/own" "$0/desk"; cd "$0/desk"; exec "$@"' "$work" "$@"; }
forebay() { elsewhere "$FOREBAY" "$@"; }
jobs_in() { squeue -h -t "$1" -o '%j' | grep -c "^$2" || true; }
coordinates() { [[ $(jobs_in R "$1.coordinator-") == 1 ]]; }
begun() { (($(find "$work" -maxdepth 1 -name 'begun.*' | wc -l) >= $1)); }
nobody() { [[ -z $(squeue -h -t PD,R,CG,S,CF) ]]; }

# A program that is larger than what ECS or a command line would take.
{ echo '#!/bin/sh' && head -c 300000 /dev/urandom | base64 | sed 's/^/# /' && cat <<'TOOL'
: >"$1/begun.$FOREBAY_TASK_INDEX.$FOREBAY_ATTEMPT"
until [ -e "$1/go" ]; do sleep 0.1; done
echo "task $FOREBAY_TASK_INDEX"
md5sum <"$(cat "$FOREBAY_INPUTS")" >"$FOREBAY_OUTPUT_DIR/sum"
TOOL
} >"$work/own/tool.sh"
chmod +x "$work/own/tool.sh"
cat >"$work/own/job.toml" <<JOB
name = "j"
reuse = "off"
[dataset]
source = "file://$work/src"
[command]
argv = ["./tool.sh", "$work"]
files = ["tool.sh"]
[workers]
fleet = "slurm"
count = 2
cpus = 2
slots = 1
[coordinator]
options = ["--output=$work/said.%x", "--chdir=/"]
JOB

echo "== it is submitted, twice under one name, and is one run"
[[ $(forebay submit job.toml --id r 2>"$work/said.submit") == r ]] || fail "it says another run"
until_ "it is coordinated" coordinates r
forebay submit job.toml --id r 2>&1 | grep -q "coordinates it already" || fail "it is submitted twice"
until_ "two tasks have begun" begun 2
(($(jobs_in all r.coordinator-) == 1)) || fail "there are two coordinators"

echo "== it is looked at from where the volume is not"
forebay runs show r --json | grep -q '"state":"running"' || fail "it is not shown"
forebay runs list | grep -q '^r ' || fail "it is not listed"
code=0
forebay wait r --timeout 2s 2>/dev/null || code=$?
((code == 124)) || fail "wait ended with $code"

echo "== its coordinator is requeued: it goes on with its run"
scontrol requeue "$(squeue -h -t R -n "$(squeue -h -o %j | grep coordinator)" -o %i)"
until_ "it waits" eval '[[ $(jobs_in PD r.coordinator-) == 1 ]]'
forebay wait r --json >"$work/r.json" 2>"$work/said.wait" &
waiting=$!
until_ "who waits is told" grep -q "PENDING" "$work/said.wait"
scontrol update jobid="$(squeue -h -t PD -o %i)" StartTime=now
until_ "it coordinates again" test -e "$work/v/runs/r/epochs/2/link.json"
touch "$work/go"
wait "$waiting" || fail "the run ended with $?"
grep -q '"state":"succeeded"' "$work/r.json" || fail "it did not succeed"
cat "$work/v/runs/r/output"/task-*/sum | cmp - <(sums "$work/src") || fail "the output is another one"
(($(forebay runs logs r 2>/dev/null | grep -c '^.*task [0-9]*$') == 20)) || fail "its logs are not printed"
until_ "nothing is left" nobody

echo "== it has ended: submitted again it ends at once, and is the same"
forebay submit job.toml --id r -q >/dev/null
forebay wait r --json | grep -q '"state":"succeeded"' || fail "it is another run"
sed 's/reuse = "off"/[retry]\nattempts = 2/' "$work/own/job.toml" >"$work/own/other.toml"
forebay submit other.toml --id r -q >/dev/null
until_ "it ended" nobody
grep -q "its job differs" "$work"/said.r.coordinator-* || fail "another job took its name"

echo "== it is cancelled from there"
rm "$work/go"
find "$work" -maxdepth 1 -name 'begun.*' -delete
id=$(forebay submit job.toml -q)
until_ "two tasks have begun" begun 2
forebay cancel "$id" 2>/dev/null
code=0
forebay wait "$id" --json >"$work/c.json" || code=$?
((code == 1)) && grep -q '"state":"cancelled"' "$work/c.json" || fail "it is not cancelled: $code"
until_ "nothing is left" nobody

echo "== what cannot be submitted is told"
code=0
forebay submit job.toml --set no=1 2>"$work/said.set" || code=$?
((code == 2)) || fail "a parameter that is not there"
sed 's/fleet = "slurm"/fleet = "local"/; /coordinator/,$d' "$work/own/job.toml" >"$work/own/local.toml"
code=0
forebay submit local.toml 2>"$work/said.local" || code=$?
((code == 2)) && grep -q "starts no coordinator" "$work/said.local" || fail "local"
sed '$a partition = "nowhere"' "$work/own/job.toml" >"$work/own/nowhere.toml"
code=0
forebay submit nowhere.toml 2>"$work/said.nowhere" || code=$?
((code == 4)) && grep -q "sinfo -s" "$work/said.nowhere" || fail "a partition that is not there: $code"
forebay wait nobody 2>"$work/said.nobody" && fail "nobody"
grep -q "no volume" "$work/said.nobody" || fail "a run that is not there"
echo "passed"
