#!/usr/bin/env bash
# Runs whose workers are containers that an ECS starts, on a volume that they share, while containers are killed: the output
# is that of `fleet = "local"`, byte for byte, and nothing is left. Coordinators are containers too, of the same image.
# As root; takes about a minute and a half. What it needs, cluster.sh says.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../support/scenes.sh"
[[ -n ${CLOUD:-} ]] || exec "$here/cluster.sh" "$here/containers.sh"

jobs=$CLOUD/jobs
mkdir "$jobs"
show() {
    docker ps
    tasks
    tail -n 20 "$jobs"/*.said "$CLOUD/ministack.log"
}
cloud() { "$FOREBAY_TEST_SERVERS/bin/python" "$here/cloud.py" "$@"; }
tasks() { cloud tasks | awk -v run="$run" '$1 == run'; }
containers() { docker ps -q --no-trunc --filter label=ministack=ecs; }
no_container() {
    local left
    left=$(docker ps -q) && [[ -z $left ]]
}

forebay() { # NAME ARGUMENT…: in a container of this name, which may do no more than one of Fargate's.
    docker run --rm --name "$1" --network "$TASK_NETWORK" --read-only --cap-drop ALL --security-opt no-new-privileges \
        -v "$VOLUME:/mnt/forebay" -v "$jobs:/jobs:ro" -e AWS_ENDPOINT_URL -e AWS_REGION -e AWS_ACCESS_KEY_ID \
        -e AWS_SECRET_ACCESS_KEY forebay:shell "${@:2}"
}
job() { # NAME WORKERS <JOB: NAME.toml, whose workers are tasks of ECS, and NAME-local.toml.
    sed "\$a [workers]\nfleet = \"local\"\ncount = $2\ncpus = 1" >"$jobs/$1-local.toml"
    sed 's/fleet = "local"/fleet = "ecs"/' "$jobs/$1-local.toml" >"$jobs/$1.toml"
    cat >>"$jobs/$1.toml" <<JOB
[ecs]
cluster        = "forebay"
image          = "forebay:shell"
subnets        = ["subnet-0a1b2c3d4e5f60718"]
execution_role = "arn:aws:iam::123456789012:role/forebay-execution"
log_group      = "/forebay"
efs            = { file_system = "$FILE_SYSTEM", access_point = "$ACCESS_POINT" }
JOB
}
begin() { # RUN [JOB=RUN]
    run=$1 marks=$VOLUME/marks/$1
    install -d -o 10001 -g 10001 "$VOLUME/marks" "$marks"
    forebay "$run" run --id "$run" --json "/jobs/${2:-$run}.toml" >"$jobs/$run.json" 2>"$jobs/$run.said" &
    coordinator=$!
}
begun() { (($(find "$marks" -name 'begun.*' | wc -l) >= $1)); }
go() { : >"$marks/go"; }
ends() { # CODE: and who worked for it does not any more.
    local code=0
    wait "$coordinator" || code=$?
    ((code == $1)) || fail "$run ended with $code, and not with $1: $(cat "$jobs/$run.json")"
    tasks >"$jobs/tasks"
    if grep -v ' STOPPED ' "$jobs/tasks"; then fail "tasks of $run are left"; fi
    # This ECS says so before it is so.
    until_ "no container is left" no_container
    echo "   $(grep -oE '"(workers|attempts)":[0-9]+' "$jobs/$run.json" | tr '\n' ' ')tasks of ECS: $(wc -l <"$jobs/tasks")"
}
same() { # AS: the output is that of another run.
    [[ -e $VOLUME/runs/$run/output/_SUCCESS ]] || fail "$run has no output"
    diff -r -x '_*' "$VOLUME/runs/$1/output" "$VOLUME/runs/$run/output" >"$jobs/diff" || fail "the output is another one: $(head -c 2000 "$jobs/diff")"
}

# A map task for each of 12 files, which waits until there is `go`, and says as what it was begun, where, and what it may
# write to: not the root, but /tmp.
cat >"$jobs/map.sh" <<'MAP'
marks=/mnt/forebay/marks/$FOREBAY_RUN_ID host=$(hostname)
root=$(touch /jobs/x 2>&1) || true
tmp=$(touch /tmp/x 2>&1) || true
echo "$host $(id -u):$(id -g), ${root##*: }, ${tmp##*: }" >"$marks/begun.$FOREBAY_TASK_INDEX.$FOREBAY_ATTEMPT"
echo "task $FOREBAY_TASK_INDEX is begun on $host" >&2
until [ -e "$marks/go" ]; do sleep 0.1; done
tr ' ' '\n' | sed 's/$/\t1/'
MAP
job words 4 <<'JOB'
name = "words"
reuse = "off"
[dataset]
source = "s3://acme-words/"
[mapreduce]
map = ["sh", "map.sh"]
reduce = ["sh", "-c", "cut -f1 | uniq -c"]
files = ["map.sh"]
partitions = 3
[split]
by = "file"
[retry]
speculate = false
JOB

echo "== words, by processes of one host"
begin words-local
go
ends 0

echo "== by four tasks"
begin words
until_ "four tasks of the job are begun" begun 4
[[ $(containers | wc -l) == 4 ]] || fail "four containers are wanted"
how='{{.Config.User}} {{.HostConfig.ReadonlyRootfs}} {{.HostConfig.Init}} {{.HostConfig.NetworkMode}}'
[[ $(containers | xargs docker inspect -f "$how" | sort -u) == "10001:10001 true true $TASK_NETWORK" ]] || fail "containers are otherwise"
[[ $(sort -u "$marks"/begun.* | wc -l) == 4 ]] || fail "each is to be begun in a container of its own"
[[ $(cut -d ' ' -f2- "$marks"/begun.* | sort -u) == "10001:10001, Read-only file system, " ]] || fail "they may do more: $(cat "$marks"/begun.*)"
go
ends 0
same words-local
grep -q '"workers":4' "$jobs/words.json" || fail "there are other workers"
[[ $(grep -c ' EssentialContainerExited ' "$jobs/tasks") == 4 ]] || fail "workers are to end by themselves: $(tasks)"
forebay logs runs logs words >"$jobs/logs"
[[ $(grep -c 'is begun on' "$jobs/logs") == 12 ]] || fail "logs are not on the volume: $(cat "$jobs/logs")"

echo "== a container is killed, and one gets SIGTERM, as from Spot, and drains: others come"
begin killed words
until_ "four tasks of the job are begun" begun 4
docker kill "$(containers | head -n 1)" >/dev/null
docker stop -t 120 "$(containers | tail -n 1)" >/dev/null
until_ "others have begun" begun 6
go
ends 0
same words-local
[[ $(grep -c ' STOPPED 137 ' "$jobs/tasks") == 1 && $(grep -c ' STOPPED 0 ' "$jobs/tasks") == 5 ]] || fail "one is to be killed: $(tasks)"

echo "== the coordinator's container is killed: the next one takes over its workers, and starts no others"
begin adopted words
until_ "four tasks of the job are begun" begun 4
docker kill adopted >/dev/null
wait "$coordinator" || true
forebay adopted resume adopted --json >"$jobs/adopted.json" 2>"$jobs/adopted.said" &
coordinator=$!
until_ "it has taken over" test -e "$VOLUME/runs/adopted/epochs/2/link.json"
go
ends 0
same words-local
[[ $(wc -l <"$jobs/tasks") == 4 ]] || fail "others were started: $(tasks)"

echo "== a run is cancelled, one of whose workers does not hear of it"
begin cancelled words
until_ "four tasks of the job are begun" begun 4
docker exec "$(containers | head -n 1)" sh -c 'kill -STOP $(pidof forebay)'
forebay canceller cancel cancelled 2>>"$jobs/cancelled.said"
ends 1
[[ $(grep -c ' UserInitiated ' "$jobs/tasks") == 1 ]] || fail "one task is to be stopped: $(tasks)"

echo "== a gang, whose ranks reach each other"
cat >"$jobs/rank.sh" <<'RANK'
marks=/mnt/forebay/marks/$FOREBAY_RUN_ID
hostname >"$marks/begun.$RANK"
if [ "$RANK" = 0 ]; then
    echo "one of $WORLD_SIZE" >"$FOREBAY_SCRATCH_DIR/greeting"
    httpd -f -p "$MASTER_PORT" -h "$FOREBAY_SCRATCH_DIR" &
    until [ -e "$marks/met.1" ] && [ -e "$marks/met.2" ]; do sleep 0.1; done
else
    until wget -q -O "$FOREBAY_OUTPUT_DIR/greeting" "http://$MASTER_ADDR:$MASTER_PORT/greeting"; do sleep 0.1; done
    : >"$marks/met.$RANK"
fi
RANK
job gang 3 <<'JOB'
name = "gang"
reuse = "off"
[dataset]
source = "s3://acme-words/"
[command]
gang = true
argv = ["sh", "rank.sh"]
files = ["rank.sh"]
[split]
count = 3
JOB
begin gang
ends 0
[[ $(sort -u "$marks"/begun.* | wc -l) == 3 ]] || fail "each rank is to be in a container of its own"
[[ $(cat "$VOLUME"/runs/gang/output/task-0000[12]/greeting) == $'one of 3\none of 3' ]] || fail "ranks have not met"

echo "== a query"
job delays 2 <<'JOB'
name = "delay-by-carrier"
reuse = "off"
[dataset]
source = "s3://acme-flights/2013/"
[sql]
engine = "splits"
query = "SELECT carrier, count(*) AS flights, avg(arr_delay) AS delay FROM flights GROUP BY carrier ORDER BY carrier"
tables = { flights = "flights/*.parquet" }
[output]
format = "csv"
[split]
by = "row-groups"
JOB
begin delays-local
ends 0
begin delays
ends 0
same delays-local

echo "== an image that is not there"
sed 's|^image .*|image = "127.0.0.1:1/nowhere:1"|' "$jobs/words.toml" >"$jobs/nowhere.toml"
begin nowhere
go
ends 4
grep -q 'its image cannot be pulled: CannotPullContainerError' "$jobs/nowhere.json" || fail "it does not say why: $(cat "$jobs/nowhere.json")"
echo "passed"
