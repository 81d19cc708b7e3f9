# Scenes of staging, sourced by scenes.sh: 943 objects, by both hosts at once.

stage() { echo "env $credentials HOME=/run '$FOREBAY' --volume /mnt/v/$1 dataset stage s3://bucket/mixed/ --name d --json"; }
id() { grep -o '"snapshot":"[0-9a-f]*"' "$1" | tail -1; }
whole() { # VOLUME: every byte is right, seen from either host, and nothing is left of the work.
    local host
    for host in one two; do
        on "$host" "'$FOREBAY' --volume /mnt/v/$1 dataset verify d --full" >"$work/verify.out" || fail "$1, from $host"
    done
    [[ -z $(on two "ls /mnt/v/$1/datasets/d/staging /mnt/v/$1/trash | grep -v :") ]] || fail "$1 is not cleared up"
}

scene "both stage at once: no object is fetched twice"
on one "$(stage both)" >"$work/one.out" &
on two "$(stage both)" >"$work/two.out" || fail "two's staging"
wait $! || fail "one's staging"
total=$(($(number fetched_objects "$work/one.out") + $(number fetched_objects "$work/two.out")))
[[ $total == $(number objects "$work/two.out") ]] || fail "$total objects were fetched"
[[ $(id "$work/one.out") == $(id "$work/two.out") ]] || fail "two snapshots"
known=$(id "$work/one.out")
whole both

scene "one is killed: the other goes on with what it has left, and does not wait for it"
on one "$(stage killed) & sleep 6; kill -9 \$!" >"$work/one.out" || true
# Longer than who is alive is silent.
sleep 16
on two "$(stage killed)" >"$work/two.out" || fail "two's staging"
[[ $(id "$work/two.out") == "$known" ]] || fail "another snapshot"
whole killed

scene "one is stopped, taken over from, and wakes up"
on one "$(stage stopped) & sleep 5; kill -STOP \$!; sleep 40; kill -CONT \$!; wait \$!" >"$work/one.out" &
on two "$(stage stopped)" >"$work/two.out" || fail "two's staging"
wait $! || fail "one's staging"
[[ $(id "$work/one.out") == "$known" && $(id "$work/two.out") == "$known" ]] || fail "another snapshot"
whole stopped

scene "the link of one is cut, and comes back"
on one "$(stage cut)" >"$work/one.out" &
one=$!
(
    sleep 5
    cut_off one
    sleep 30
    heal one
) &
healing=$!
on two "$(stage cut)" >"$work/two.out" || fail "two's staging"
wait "$healing"
wait "$one" || true
[[ $(id "$work/two.out") == "$known" ]] || fail "another snapshot"
whole cut
