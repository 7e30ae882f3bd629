#!/bin/bash
# rootfs.sh: the root filesystems that sandboxes of the tests run, as tar files made from Debian's packages.
#
# Prints the folder that holds them, and makes it first unless it is there (its name is this file's hash):
#   debian.tar   minimal Debian 12 with Python: what most claims and the demo run
#   bench.tar    the same with fio
#
# Usage: rootfs.sh      as root, or with sudo at hand: the owners in the tar files are the real ones
set -euo pipefail
cd "$(dirname "$0")"

readonly suite=bookworm keyring=/usr/share/keyrings/debian-archive-keyring.gpg
readonly cache=${RUNDLET_CACHE:-$HOME/.cache/rundlet}

fail() {
    echo "rootfs.sh: $*" >&2
    exit 1
}

make_tar() { # OUT PACKAGES
    mmdebstrap --quiet --mode=root --variant=minbase --format=tar --include="$2" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        "$suite" "$1" \
        "deb [signed-by=$keyring] $main $suite main" "deb [signed-by=$keyring] $main $suite-updates main" \
        "deb [signed-by=$keyring] $security $suite-security main"
}

target=$cache/rootfs/$(sha256sum rootfs.sh | cut -c1-16)
if [ ! -f "$target/bench.tar" ]; then
    [ "$(id -u)" -eq 0 ] || exec sudo RUNDLET_CACHE="$cache" "$PWD/rootfs.sh"
    command -v mmdebstrap >/dev/null || fail "'mmdebstrap' is missing: run setup.sh"
    echo "rootfs.sh: making the tests' root filesystems, about a minute the first time" >&2
    main=$(./mirror.sh main)
    security=$(./mirror.sh security)
    mkdir -p "$cache/rootfs"
    work=$(mktemp -d "$cache/rootfs/.build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir "$work/out"
    make_tar "$work/out/debian.tar" python3-minimal,libpython3-stdlib >&2
    make_tar "$work/out/bench.tar" fio >&2
    chmod 755 "$work/out"
    mv -T "$work/out" "$target" 2>/dev/null || [ -f "$target/bench.tar" ] || fail "cannot install to $target"
fi
echo "$target"
