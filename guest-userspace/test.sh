#!/bin/bash
# Boots that cannot work, each in an emulated machine: PID 1 says on the console, in one line, which step
# failed on which device, and the kernel panics for the host to see. Boots that work are vm-tests' matter.
#
#   guest-userspace/test.sh        ends with `N passed, N failed`
#
# Needs target/guest (make kernel initrd), mkfs.erofs, mkfs.ext4, and QEMU: $QEMU, or the one that
# vm-tests/worker/fetch-qemu.sh puts into ${RUNDLET_CACHE:-~/.cache/rundlet}, or from PATH.
set -uo pipefail

guest=$(cd "$(dirname "$0")/.." && pwd)/target/guest
qemu=${QEMU:-${RUNDLET_CACHE:-$HOME/.cache/rundlet}/qemu10/bin/qemu-system-x86_64}
[[ -x $qemu ]] || qemu=$(command -v qemu-system-x86_64) || {
    echo "guest-userspace/test.sh: no QEMU: run vm-tests/worker/fetch-qemu.sh, or set QEMU" >&2
    exit 2
}
for file in "$guest"/{vmlinux,initrd.cpio}; do
    [[ -f $file ]] || {
        echo "guest-userspace/test.sh: no $file: run make kernel initrd" >&2
        exit 2
    }
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree"
mkfs.erofs "$work/image" "$work/tree" >"$work/log" 2>&1 &&
    truncate -s 16M "$work/scratch" "$work/blank" && mkfs.ext4 -q "$work/scratch" || {
    cat "$work/log" >&2
    exit 2
}

passed=0 failed=0

# boot WORDS DISK...: runs the machine to its end; its console is in $work/console.
boot() {
    local words=$1 disk arguments=() number=0
    shift
    for disk; do
        arguments+=(-drive "if=none,id=d$number,format=raw,file=$work/$disk")
        arguments+=(-device "virtio-blk-device,drive=d$number")
        number=$((number + 1))
    done
    timeout --kill-after=5 120 "$qemu" -nodefaults -no-user-config -display none -no-reboot \
        -M microvm,acpi=off,rtc=off,isa-serial=on -accel tcg -cpu max -m 96M \
        -global virtio-mmio.force-legacy=false -serial "file:$work/console" \
        -device isa-debug-exit,iobase=0x600,iosize=4 \
        -kernel "$guest/vmlinux" -initrd "$guest/initrd.cpio" "${arguments[@]}" \
        -append "console=ttyS0 panic=-1 no_timer_check rundlet.exit=0x600 $words" 2>"$work/log"
}

# claim NAME LINE WORDS DISK...: the boot says LINE and ends in a panic.
claim() {
    local name=$1 line=$2
    shift 2
    boot "$@"
    if [[ $(grep -c 'rundlet-init: ' "$work/console") == 1 ]] &&
        grep -qF "rundlet-init: $line" "$work/console" &&
        grep -q 'Kernel panic - not syncing: Attempted to kill init' "$work/console"; then
        passed=$((passed + 1))
        echo "ok      $name"
    else
        failed=$((failed + 1))
        echo "FAILED  $name: no line \`$line\`; the console:"
        cat "$work/console" "$work/log"
    fi
}

claim no-root-is-said \
    'the kernel command line has no rundlet.root=DEVICE' \
    ''
claim missing-root-is-named \
    'cannot mount /dev/vdc (erofs) at /lower: No such file or directory' \
    'rundlet.root=/dev/vdc' image scratch
claim wrong-root-is-named \
    'cannot mount /dev/vda (erofs) at /lower: Invalid argument' \
    'rundlet.root=/dev/vda' scratch
claim wrong-scratch-is-named \
    'cannot mount /dev/vdb (ext4) at /scratch: Invalid argument' \
    'rundlet.root=/dev/vda rundlet.scratch=/dev/vdb' image blank
claim long-hostname-is-named \
    'cannot set the hostname `xxxxxxxxxx' \
    "rundlet.root=/dev/vda rundlet.hostname=$(printf 'x%.0s' {1..65})" image

echo "guest-userspace/test.sh: $passed passed, $failed failed"
[[ $failed == 0 ]]
