#!/usr/bin/env bash
# Tests of the guest kernel in QEMU's emulation (no KVM needed).
#
#   test.sh [--kernel FILE] [TEST...]
#
# Needs a built kernel (build.sh; default target/guest/vmlinux) and QEMU, from $QEMU, from
# ${RUNDLET_CACHE:-~/.cache/rundlet}/qemu10 (vm-tests/worker/fetch-qemu.sh) or from PATH.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
kernel=$here/../target/guest/vmlinux
if [[ ${1:-} == --kernel ]]; then
    [[ $# -ge 2 ]] || { echo "guest-kernel/test.sh: --kernel needs a file" >&2; exit 2; }
    kernel=$2
    shift 2
fi
[[ -f $kernel ]] || { echo "guest-kernel/test.sh: no kernel at $kernel: run guest-kernel/build.sh first" >&2; exit 2; }

qemu=${QEMU:-${RUNDLET_CACHE:-$HOME/.cache/rundlet}/qemu10/bin/qemu-system-x86_64}
[[ -x $qemu ]] || qemu=$(command -v qemu-system-x86_64) ||
    { echo "guest-kernel/test.sh: no QEMU: run vm-tests/worker/fetch-qemu.sh, or set QEMU" >&2; exit 2; }

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
gcc -O2 -Wall -Wextra -Werror -static -o "$work/init" "$here"/test/*.c
timeout --kill-after=10 900 python3 "$here/test/run.py" --qemu "$qemu" --kernel "$kernel" --init "$work/init" "$@"
