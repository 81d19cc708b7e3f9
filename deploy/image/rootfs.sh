#!/usr/bin/env bash
# Puts together the whole root file system of forebay's image: rootfs.sh BINARY DIRECTORY
# The Dockerfile makes its last stage of it; try.sh imports it as it is. Needs ldd and the host's CA certificates.
set -euo pipefail

binary=$1 root=$2
mkdir -p "$root"/{usr/local/bin,etc/ssl/certs,tmp,jobs}
cp "$binary" "$root/usr/local/bin/forebay"

# What it is linked with, the loader too, by the paths at which it looks for them.
libraries=$(ldd "$binary")
if grep 'not found' <<<"$libraries" >&2; then
    echo "rootfs.sh: these libraries of $binary are not on this host: install them" >&2
    exit 1
fi
grep -o '/[^ ]*' <<<"$libraries" | while read -r library; do
    mkdir -p "$root${library%/*}"
    cp -L "$library" "$root$library"
done

cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
# glibc has `files` and `dns` built in.
echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
echo 'forebay:x:10001:10001::/tmp:/sbin/nologin' >"$root/etc/passwd"
echo 'forebay:x:10001:' >"$root/etc/group"
chmod 1777 "$root/tmp"
