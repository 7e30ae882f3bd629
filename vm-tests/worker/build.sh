#!/bin/bash
# build.sh: the Debian 12 machine in which claims run, made from packages.
#
# Prints the folder that holds it, and makes it first unless it is there (the name is the hash of everything in
# this folder that shapes it):
#   kernel       Debian's 6.12 for cloud machines, as an ELF file: nothing is left to decompress at boot
#   initrd       busybox, five modules, the script `init`
#   root.erofs   systemd, the tools that claims use, kvm-keeper, the driver's shell, QEMU 10 in /opt/qemu10
#   data.img     an empty XFS, sparse
#
# Usage: build.sh      as root, or with sudo at hand: the owners in the image are the real ones
set -euo pipefail
cd "$(dirname "$0")"

readonly suite=bookworm kernel_package=linux-image-6.12-cloud-amd64 data_size=16G
readonly packages=systemd,systemd-sysv,dbus,kmod,iproute2,procps,psmisc,util-linux,mount,e2fsprogs,erofs-utils,xfsprogs,python3-minimal,libpython3-stdlib,strace,curl,busybox-static
readonly initrd_modules="virtio_blk erofs overlay xfs"
readonly keyring=/usr/share/keyrings/debian-archive-keyring.gpg

fail() {
    echo "build.sh: $*" >&2
    exit 1
}

# The kernel, decompressed: the boot protocol's header says where in the bzImage the packed ELF file lies
# (setup_sects, payload_offset, payload_length; the payload ends with its unpacked size, 4 bytes).
extract_kernel() { # BZIMAGE OUT
    local setup offset length
    setup=$(od -An -tu1 -j $((0x1f1)) -N 1 "$1")
    offset=$(od -An -tu4 -j $((0x248)) -N 4 "$1")
    length=$(od -An -tu4 -j $((0x24c)) -N 4 "$1")
    dd if="$1" iflag=skip_bytes,count_bytes skip=$(((setup + 1) * 512 + offset)) count=$((length - 4)) \
        bs=1M status=none | zstd -dqc >"$2" ||
        fail "this kernel is not packed with zstd"
}

# The modules that the root needs, in the order in which they can be loaded.
module_order() { # MODULES-DIR
    local name
    for name in $initrd_modules; do
        grep "/$name\.ko[^/]*:" "$1/modules.dep" |
            awk '{ sub(/:$/, "", $1); for (i = NF; i > 0; i--) print $i }'
    done | awk '!seen[$0]++'
}

make_initrd() { # ROOT VERSION OUT
    local modules=$1/lib/modules/$2 tree module
    tree=$(mktemp -d "$work/initrd.XXXXXX")
    mkdir -p "$tree/bin" "$tree/modules" "$tree/dev"
    mknod -m 600 "$tree/dev/console" c 5 1
    cp "$1/bin/busybox" "$tree/bin/busybox"
    install -m 755 init "$tree/init"
    for module in $(module_order "$modules"); do
        case $module in
            *.xz) xz -dc "$modules/$module" ;;
            *) cat "$modules/$module" ;;
        esac >"$tree/modules/$(basename "${module%.xz}")"
        basename "${module%.xz}" >>"$tree/modules/order"
    done
    [ -s "$tree/modules/order" ] || fail "the kernel's modules.dep names none of: $initrd_modules"
    (cd "$tree" && find . | LC_ALL=C sort | cpio --quiet -o -H newc) >"$3"
}

# Only what claims need is started: the rest costs seconds in emulation.
trim_units() { # ROOT
    local unit
    for unit in systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
        systemd-udev-trigger.service systemd-udev-settle.service systemd-hwdb-update.service \
        systemd-random-seed.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
        systemd-journal-flush.service systemd-journal-catalog-update.service systemd-machine-id-commit.service \
        systemd-binfmt.service systemd-pcrphase.service systemd-pcrphase-sysinit.service \
        systemd-remount-fs.service systemd-firstboot.service systemd-ask-password-wall.path \
        systemd-ask-password-console.path systemd-user-sessions.service systemd-logind.service getty.target \
        e2scrub_reap.service e2scrub_all.timer fstrim.timer apt-daily.timer apt-daily-upgrade.timer \
        dpkg-db-backup.timer xfs_scrub_all.timer systemd-tmpfiles-clean.timer kmod-static-nodes.service \
        dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
        sys-fs-fuse-connections.mount sys-kernel-config.mount proc-sys-fs-binfmt_misc.automount \
        modprobe@configfs.service modprobe@dm_mod.service modprobe@drm.service modprobe@efi_pstore.service \
        modprobe@fuse.service modprobe@loop.service; do
        ln -sf /dev/null "$1/etc/systemd/system/$unit"
    done
}

make_root() { # ROOT
    # The kernel is unpacked only: installing it would make an initramfs of Debian's, which nobody needs here.
    # Its package comes through the apt settings that mmdebstrap uses, hence the hook.
    cat >"$work/fetch-kernel" <<HOOK
#!/bin/sh
set -eu
export APT_CONFIG="\$MMDEBSTRAP_APT_CONFIG"
cd "$work"
apt-get -q download "\$(apt-cache depends $kernel_package | awk '/Depends: linux-image/ { print \$2; exit }')"
HOOK
    chmod +x "$work/fetch-kernel"
    local main security
    main=$(./mirror.sh main)
    security=$(./mirror.sh security)
    mmdebstrap --quiet --mode=root --variant=essential --format=directory --include="$packages" \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
        --customize-hook="$work/fetch-kernel" "$suite" "$1" \
        "deb [signed-by=$keyring] $main $suite main" "deb [signed-by=$keyring] $main $suite-updates main" \
        "deb [signed-by=$keyring] $security $suite-security main"
    dpkg-deb -x "$work"/linux-image-*.deb "$work/kernel"
}

# What makes a Debian root a worker: our units, the two programs behind them, a name.
dress_root() { # ROOT
    local root=$1
    cp -r root/. "$root/"
    gcc -O2 -Wall -Wextra -Werror -static -o "$root/usr/local/lib/rundlet-worker/kvm-keeper" kvm-keeper.c
    trim_units "$root"
    chroot "$root" systemctl --quiet enable \
        kvm-keeper.service rundlet-test-store.service rundlet-shell.service rundlet-console.service
    ln -sf /lib/systemd/system/multi-user.target "$root/etc/systemd/system/default.target"
    echo worker >"$root/etc/hostname"
    echo '127.0.0.1 localhost worker' >"$root/etc/hosts"
    echo 5265c0de5265c0de5265c0de5265c0de >"$root/etc/machine-id"
    : >"$root/etc/fstab"
    chroot "$root" passwd -q -d root
    cp -r "$qemu" "$root/opt/qemu10"
}

build() { # OUT
    local out=$1 root=$work/root version
    make_root "$root"
    version=$(ls "$work/kernel/lib/modules")
    mkdir -p "$root/lib/modules"
    cp -r "$work/kernel/lib/modules/$version" "$root/lib/modules/"
    chroot "$root" depmod "$version"
    dress_root "$root"

    truncate -s "$data_size" "$root/data.img"
    chroot "$root" mkfs.xfs -q -m reflink=1 /data.img
    mv "$root/data.img" "$out/data.img"
    extract_kernel "$work/kernel/boot/vmlinuz-$version" "$out/kernel"
    make_initrd "$root" "$version" "$out/initrd"
    rm -rf "$root"/var/lib/apt/* "$root"/var/cache/* "$root"/var/log/* "$root"/usr/share/{doc,man,locale,info}
    mkfs.erofs --quiet -x-1 "$out/root.erofs" "$root"
}

cache=${RUNDLET_CACHE:-$HOME/.cache/rundlet}
hash=$(find . -type f ! -name rootfs.sh -print0 | LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -c1-16)
target=$cache/worker/$hash
if [ ! -f "$target/root.erofs" ]; then
    [ "$(id -u)" -eq 0 ] || exec sudo RUNDLET_CACHE="$cache" "$PWD/build.sh"
    for tool in mmdebstrap mkfs.erofs gcc cpio xz zstd; do
        command -v "$tool" >/dev/null || fail "'$tool' is missing: run setup.sh"
    done
    echo "build.sh: making the worker image, a few minutes the first time" >&2
    qemu=$(./fetch-qemu.sh)
    mkdir -p "$cache/worker"
    work=$(mktemp -d "$cache/worker/.build.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    trap 'exit 1' HUP INT TERM
    mkdir "$work/out"
    build "$work/out" >&2
    mv -T "$work/out" "$target" 2>/dev/null || [ -f "$target/root.erofs" ] || fail "cannot install to $target"
fi
echo "$target"
