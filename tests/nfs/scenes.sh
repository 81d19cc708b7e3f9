#!/usr/bin/env bash
# Runs by two hosts over real NFSv4.1, each compared byte for byte with one on a local disk; with --all staging by two hosts,
# too. Skips, and says why, where no hosts can be made (tests/nfs/hosts.sh has what is needed). FOREBAY names the program, by
# default the debug build.
set -Eeuo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"
FOREBAY=${FOREBAY:-${CARGO_TARGET_DIR:-$here/../../target}/debug/forebay}
[[ $# == 0 || $* == --all ]] || { echo "usage: scenes.sh [--all]"; exit 2; }
[[ -x $FOREBAY ]] || { echo "there is no $FOREBAY: build it, or set FOREBAY"; exit 2; }
FOREBAY=$(realpath "$FOREBAY")

# What fails may be redirected.
exec {said}>&1
fail() {
    trap - ERR
    { echo "FAILED: $*"; tail -n 5 "$work"/*.out; } >&"$said" 2>&1
    exit 1
}
where() { # The line of a scene, or of what scenes share, that has failed.
    local frame=1
    while [[ ${BASH_SOURCE[frame]} == */hosts.sh ]]; do frame=$((frame + 1)); done
    echo "line ${BASH_LINENO[frame - 1]} of ${BASH_SOURCE[frame]##*/}"
}
trap '((BASH_SUBSHELL)) || fail "$(where)"' ERR
scene() { echo "== $1 (${SECONDS} s)"; }
number() { grep -o "\"$1\":[0-9]*" "$2" | tail -1 | cut -d : -f 2; }

network || { echo "skipped: no hosts can be made here"; exit 0; }
boot_all 256M one two
credentials="AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b AWS_REGION=us-east-1 AWS_ENDPOINT_URL_S3=http://$NET.254:9000"
. "$here/runs.sh"
[[ $# == 0 ]] || . "$here/staging.sh"
echo "passed in $SECONDS s"
