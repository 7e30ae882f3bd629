#!/bin/bash
# Builds the guest's user space: rundlet-init as one static binary, in an initramfs of its own.
#
#   guest-userspace/initrd.sh [--init BINARY] OUT        e.g. target/guest/initrd.cpio
#
# --init       a rundlet-init that was built elsewhere (by Nix); cargo is not needed then
#
# OUT is an uncompressed newc archive (the kernel's Documentation/driver-api/early-userspace/
# buffer-format.rst). The same source and toolchain give the same bytes: fixed times, owners, order and
# inode numbers. Needs cargo and glibc's static library, no privileges.
set -euo pipefail

binary=
if [[ ${1:-} == --init ]]; then
    binary=${2:?--init needs a file}
    shift 2
fi
out=${1:?usage: guest-userspace/initrd.sh [--init BINARY] OUT}

# Prints the path of what it built.
build_init() {
    local repository target=x86_64-unknown-linux-gnu flags
    repository=$(cd "$(dirname "$0")/.." && pwd)
    # Not position independent: an address that needs no fixing at start is a page that is not dirtied.
    # Paths of this machine must not be in the bytes.
    flags="-C target-feature=+crt-static -C relocation-model=static"
    flags+=" --remap-path-prefix=$repository=. --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=cargo"
    RUSTFLAGS=$flags cargo build --manifest-path "$repository/Cargo.toml" --quiet --locked \
        --profile guest --package rundlet-init --target "$target"
    echo "${CARGO_TARGET_DIR:-$repository/target}/$target/guest/rundlet-init"
}

[[ -n $binary ]] || binary=$(build_init)

if readelf --program-headers "$binary" | grep -q INTERP; then
    echo "initrd.sh: $binary is not a static executable" >&2
    exit 1
fi

inode=0
# entry NAME MODE SIZE [MAJOR MINOR]: the header and name of one entry; its content follows on stdout.
entry() {
    local name=$1 mode=$2 size=$3 major=${4:-0} minor=${5:-0} field
    inode=$((inode + 1))
    printf 070701
    # inode, mode, uid, gid, links, time, size, device (2), device of a node (2), name's size, check
    for field in $inode "$mode" 0 0 1 0 "$size" 0 0 "$major" "$minor" $((${#name} + 1)) 0; do
        printf %08x "$field"
    done
    printf '%s\0' "$name"
    pad $((110 + ${#name} + 1))
}

# Zeros up to a multiple of four.
pad() {
    head -c $((-$1 & 3)) /dev/zero
}

archive() {
    local directory size
    for directory in dev lower proc root scratch; do
        entry $directory 040755 0
    done
    # PID 1's streams; without a console the C library wants at least /dev/null for them.
    entry dev/console 020600 0 5 1
    entry dev/null 020666 0 1 3
    size=$(stat -c %s "$binary")
    entry init 0100755 "$size"
    cat "$binary"
    pad "$size"
    entry TRAILER!!! 0 0
}

mkdir -p "$(dirname "$out")"
archive >"$out.$$"
mv "$out.$$" "$out"
printf 'rundlet-init %d bytes, %s %d bytes\n' "$(stat -c %s "$binary")" "$out" "$(stat -c %s "$out")"
