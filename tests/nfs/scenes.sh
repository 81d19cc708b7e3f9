#!/usr/bin/env bash
# Runs by two hosts over real NFSv4.1, each compared byte for byte with one on a local disk; with --all staging by two hosts,
# too. Skips, and says why, where no hosts can be made (tests/nfs/hosts.sh has what is needed). FOREBAY names the program, by
# default the debug build.
. "$(dirname "${BASH_SOURCE[0]}")/hosts.sh"
[[ $# == 0 || $* == --all ]] || { echo "usage: scenes.sh [--all]"; exit 2; }
program
show() { tail -n 5 "$work"/*.log "$work"/*.out; }
scene() { echo "== $1 (${SECONDS} s)"; }
number() { grep -o "\"$1\":[0-9]*" "$2" | tail -1 | cut -d : -f 2; }

network
boot_all 256M one two
credentials="AWS_ACCESS_KEY_ID=a AWS_SECRET_ACCESS_KEY=b AWS_REGION=us-east-1 AWS_ENDPOINT_URL_S3=http://$NET.254:9000"
. "$here/runs.sh"
[[ $# == 0 ]] || . "$here/staging.sh"
echo "passed in $SECONDS s"
