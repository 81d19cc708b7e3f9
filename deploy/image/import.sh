#!/usr/bin/env bash
# The images `forebay` and `forebay:shell` without a registry: import.sh [BINARY]
# What the Dockerfile's stage `build` leaves is made here, around a binary that is built already; its last stages follow as
# they are written. Needs busybox-static, and a Docker daemon, by DOCKER_HOST.
set -euo pipefail
cd "$(dirname "$0")/../.."

binary=${1:-${CARGO_TARGET_DIR:-target}/debug/forebay}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

strip -o "$work/forebay" "$binary"
mkdir -p "$work/build/shell/bin" "$work/build/volume"
deploy/image/rootfs.sh "$work/forebay" "$work/build/rootfs"
for name in $(/bin/busybox --list); do ln -s busybox "$work/build/shell/bin/$name"; done
cp --remove-destination /bin/busybox "$work/build/shell/bin/"
tar -C "$work/build" -c . | docker import - forebay-build >/dev/null

stages=$(sed '0,/^FROM scratch/{/^FROM scratch/!d}; s/--from=build/--from=forebay-build/' deploy/image/Dockerfile)
for image in forebay:latest forebay:shell; do
    target=${image#*:}
    # The default target has no name of its own to be called by.
    DOCKER_BUILDKIT=0 docker build -q --target "${target/latest/forebay}" -t "$image" - <<<"$stages" >/dev/null 2>"$work/build.log" || {
        cat "$work/build.log" >&2
        exit 1
    }
done
