# shellcheck shell=bash
# What scenes in shell share: sourced by them, at their beginning. A scene that cannot be played says `skipped`, which
# .ci/run gathers; a command that fails says in which line.
set -Eeuo pipefail

# What fails may be redirected.
exec {said}>&1
# What a scene adds to the message of what fails: it defines this anew.
show() { :; }
fail() { # WHAT
    trap - ERR
    { echo "FAILED: $*"; show; } >&"$said" 2>&1 || true
    exit 1
}
where() { # The line of a scene, or of what its helpers share, that has failed.
    local frame=1
    while [[ ${BASH_SOURCE[frame]} == */support/scenes.sh || ${BASH_SOURCE[frame]} == */nfs/hosts.sh ]]; do frame=$((frame + 1)); done
    echo "line ${BASH_LINENO[frame - 1]} of ${BASH_SOURCE[frame]##*/}"
}
trap '((BASH_SUBSHELL)) || fail "$(where)"' ERR
skip() { # WHY
    echo "skipped: $*" >&"$said"
    exit 0
}

until_() { # WHAT COMMAND…: waits until the command succeeds, for 90 s.
    local what=$1 end=$((SECONDS + 90))
    shift
    until "$@"; do
        ((SECONDS < end)) || fail "it did not come to this: $what"
        sleep 0.2
    done
}

program() { # The program that is tried: FOREBAY, by default the debug build.
    local root
    root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
    FOREBAY=${FOREBAY:-${CARGO_TARGET_DIR:-$root/target}/debug/forebay}
    [[ -x $FOREBAY ]] || { echo "there is no $FOREBAY: build it, or set FOREBAY"; exit 2; }
    FOREBAY=$(realpath "$FOREBAY")
    export FOREBAY
}

in_namespaces() { # COMMAND…: with processes, mounts and a network of its own, which end with it.
    local own=(unshare --fork --pid --mount-proc --net --kill-child)
    "${own[@]}" true 2>/dev/null || skip "no processes and network of its own can be made here"
    "${own[@]}" "$@"
}

inputs() { # DIRECTORY: twenty files in it, each with a content of its own.
    local n
    mkdir -p "$1"
    for n in $(seq 10 29); do seq "$n" 20 60000 >"$1/$n.txt"; done
}
sums() { # DIRECTORY: the checksum of each file in it, in their order, as tasks print it.
    local file
    for file in "$1"/*; do md5sum <"$file"; done
}
