# Scenes of runs, sourced by scenes.sh. Two jobs over 800 objects of text, tests/nfs/jobs: `words`, a map-reduce, and
# `lines`, a command. Their tasks wait for marks, so that faults come in the middle.

V=/mnt/v/runs

job() { # JOB LINE…: a job of tests/nfs/jobs, with these lines.
    cat "$here/jobs/$1.toml"
    printf '%s\n' "${@:2}"
}
sums() { # VOLUME RUN: a command that prints checksums of its output. Only the name of the run is its own.
    # The shell does not look again for what it once did not find.
    echo "for dir in ${1%/*} $1 $1/runs $1/runs/$2; do ls \$dir >/dev/null; done; cd $1/runs/$2/output &&
        find . -type f ! -name _SUCCESS | sort | xargs sha256sum && grep -v '\"run\"' _SUCCESS"
}
same() { # RUN JOB [ATTEMPTS]: it succeeded, and its output is that of the undisturbed one, seen from either host.
    local host total
    grep -q '"state":"succeeded"' "$work/$1.out" || fail "$1 did not succeed"
    total=$(number total "$work/$1.out")
    [[ $(number succeeded "$work/$1.out") == "$total" ]] || fail "$1: tasks failed"
    [[ ${3-$total} == any || $(number attempts "$work/$1.out") == "${3-$total}" ]] || fail "$1: tasks were done more than once"
    for host in one two; do
        on "$host" "$(sums $V "$1")" >"$work/$1.$host.sums"
        diff "$work/$2.sums" "$work/$1.$host.sums" >"$work/diff.out" || fail "$1: another output, seen from $host"
    done
}
coordinate() { # HOST RUN COMMAND…: forebay with this.
    local host=$1 run=$2
    shift 2
    on "$host" "mkdir -p /mnt/v/marks/$run; env $credentials HOME=/run setsid '$FOREBAY' --volume $V --listen $NET.${NUMBER[$host]} \
        $* --json >/run/$run.json 2>/run/$run.said & echo \$! >/run/$run.pid"
}
epoch() { # RUN NUMBER HOST: once it has a coordinator of that epoch, which is on this host.
    on "$3" "until [ -e $V/runs/$1/epochs/$2/link.json ]; do sleep 0.5; done"
}
worker() { # HOST RUN NAME
    on "$1" "HOME=/run setsid '$FOREBAY' --volume $V worker --run $2 --name $3 --slots 2 >/run/$2.$3.said 2>&1 &"
}
begun() { # RUN COUNT: once so many of its tasks are begun.
    on one "until [ \$(ls /mnt/v/marks/$1 | grep -c begun) = $2 ]; do sleep 0.5; done"
}
mark() { on "$1" ": >/mnt/v/marks/$2/$3"; } # HOST RUN NAME
ended() { # HOST RUN: once it has, with what its coordinator there made of it.
    on "$1" "while kill -0 \$(cat /run/$2.pid) 2>/dev/null; do sleep 0.5; done; cat /run/$2.json /run/$2.said" >"$work/$2.out"
}

once=('[retry]' "speculate = false")
external=('[workers]' "fleet = 'external'")
letters=("${external[@]}" "link = 'files'")
job words "${external[@]}" "${once[@]}" >"$work/words.toml"
job words "${letters[@]}" "${once[@]}" >"$work/words.letters.toml"
job lines "${external[@]}" "${once[@]}" >"$work/lines.toml"
job lines "${letters[@]}" "${once[@]}" >"$work/lines.letters.toml"
job lines "${external[@]}" >"$work/lines.again.toml"

# What has to come of it all: one worker, on a disk of this host.
undisturbed() { # JOB
    mkdir -p "$work/marks/$1"
    touch "$work/marks/$1/"{go,last}
    job "$1" '[workers]' "count = 1" >"$work/local.toml"
    inside env $credentials "$FOREBAY" --volume "$work/local" run "$work/local.toml" --id "$1" --set "marks=$work/marks" --json \
        >"$work/local.out" 2>&1 || fail "$1 on a local disk"
    bash -c "$(sums "$work/local" "$1")" >"$work/$1.sums"
}
undisturbed words
undisturbed lines

scene "a map-reduce, from S3 to its output: the coordinator and a worker on one, two workers on two"
words() { # RUN JOB
    # From now on two believes that there is no such run, unless it looks again.
    on two "! ls $V/runs/$1/epochs/1/link.json" >"$work/two.out"
    coordinate one "$1" run "$work/$2.toml" --id "$1"
    epoch "$1" 1 one
    worker two "$1" w2
    worker two "$1" w3
    worker one "$1" w1
    begun "$1" 6
    mark one "$1" go
    ended one "$1"
    same "$1" words
}
words tcp words

scene "the same by letters alone"
words letters words.letters
on two "cd $V/runs/letters/epochs/1.sealed; grep '\"addresses\": \[\]' link.json && ! ls link" >"$work/two.out" ||
    fail "letters are left, or none were written"

scene "the hosts come apart in the middle of a run, and reach their server still: the worker on two writes letters"
coordinate one apart run "$work/lines.toml" --id apart
epoch apart 1 one
worker two apart w2
worker one apart w1
begun apart 4
apart on
on two "until grep -q 'letters on the volume' /run/apart.w2.said; do sleep 0.5; done"
mark one apart last
mark one apart go
ended one apart
apart off
same apart lines

scene "two is cut off for longer than its NFS lease, in the middle of a run, and writes late"
coordinate one late run "$work/lines.again.toml" --id late
epoch late 1 one
worker one late w1
begun late 2
worker two late w2
begun late 4
client() { on server "cat \$(grep -l $NET.${NUMBER[two]}: /proc/fs/nfsd/clients/*/info) | grep clientid"; }
known=$(client)
held=$(on one "ls /mnt/v/marks/late | sed -n 's/^begun\.\([0-9]*\)\.1\.two\$/\1/p'")
cut_off two
mark one late go
# All but the first, which keeps the run from its end: those that two holds are begun a second time.
on one "until [ \$(ls /mnt/v/marks/late | grep done | wc -l) = 11 ]; do sleep 0.5; done"
# A server that others want nothing of may keep what a lease held for longer than the lease.
on server "for ctl in \$(grep -l $NET.${NUMBER[two]}: /proc/fs/nfsd/clients/*/info | sed s/info/ctl/); do echo expire >\$ctl; done"
heal two
for n in $held; do on one "until ls /mnt/v/marks/late | grep -q '^done\.$n\.1\.two\$'; do sleep 0.5; done"; done
mark one late last
[[ $(client) != "$known" ]] || fail "two has the lease that it had"
ended one late
same late lines any
twice=$(on one "ls /mnt/v/marks/late | sed -n 's/^begun\.\([0-9]*\)\..*/\1/p' | sort | uniq -d")
[[ -z $(comm -23 <(echo "$twice") <(printf '%s\n' 0 $held | sort)) ]] || fail "done twice: $twice; two held $held"

scene "coordinators are killed, and two resumes: with the workers of both hosts, by either link"
both=(moved moved.letters)
for run in "${both[@]}"; do coordinate one $run run "$work/${run/moved/lines}.toml" --id $run; done
for run in "${both[@]}"; do
    epoch $run 1 one
    worker one $run w1
    worker two $run w2
done
for run in "${both[@]}"; do begun $run 4; done
on one "kill -9 \$(cat /run/moved.pid /run/moved.letters.pid)"
for run in "${both[@]}"; do coordinate two $run resume $run; done
for run in "${both[@]}"; do
    epoch $run 2 two
    mark two $run last
    mark two $run go
done
for run in "${both[@]}"; do
    ended two $run
    same $run lines
done

scene "the coordinator's host is cut off from workers and volume: the same, and it knows when it is back"
coordinate one deposed run "$work/lines.toml" --id deposed
epoch deposed 1 one
worker two deposed w2
begun deposed 2
cut_off one
coordinate two deposed resume deposed
epoch deposed 2 two
mark two deposed last
mark two deposed go
ended two deposed
heal one
same deposed lines
ended one deposed
grep -q "taken over by another" "$work/deposed.out" || fail "the deposed coordinator"
