#!/bin/sh
# fetch-qemu.sh: a private QEMU 10, in a folder of its own, on any Debian from 12 on.
#
# Why not the distribution's: the worker VM needs SVM emulation that survives hundreds of nested VMs. Debian 12's
# QEMU 7.2 does not, 10.0 does. Why not apt-get install: a QEMU of another suite must not replace the system's
# packages. Why also where the system has a good QEMU: the same folder travels into the worker (Debian 12), where
# QEMU is the peer that boots from our block backend.
#
# What it does: an apt root of its own names the suite below on the mirror that this host already uses, downloads
# QEMU with every library down to libc, unpacks all of it into one relocatable folder, and writes wrappers which
# start each program with the loader and libraries of that folder. Nothing of the system is changed.
#
# Usage: fetch-qemu.sh        installs it (or finds it installed), says its version, prints the folder
#        programs: FOLDER/bin/{qemu-system-x86_64,qemu-storage-daemon,qemu-img}
set -eu

suite=trixie
format=1 # part of the stamp: raise it when the layout of the folder changes
programs="qemu-system-x86_64 qemu-storage-daemon qemu-img"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
cache=${RUNDLET_CACHE:-$HOME/.cache/rundlet}
target=$cache/qemu10

fail() {
    echo "fetch-qemu.sh: $*" >&2
    exit 1
}

report() {
    "$target/bin/qemu-system-x86_64" --version | head -n 1 >&2
    echo "$target"
}

if [ "$(cat "$target/stamp" 2>/dev/null)" = "$suite $format" ]; then
    report
    exit 0
fi

[ -r "$keyring" ] || fail "$keyring is missing: install the package debian-archive-keyring"
mirror=$("$(dirname "$0")/mirror.sh" main)

mkdir -p "$cache"
work=$(mktemp -d "$cache/qemu10.XXXXXX")
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM

mkdir -p "$work/apt/etc/apt.conf.d" "$work/apt/etc/preferences.d" "$work/apt/etc/sources.list.d" \
    "$work/apt/state/lists/partial" "$work/apt/cache/archives/partial" "$work/root/bin"
: >"$work/apt/state/status" # no package is installed in this root, so apt fetches the whole closure
echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/apt/etc/sources.list"

private_apt() {
    apt-get -q -o "Dir::Etc=$work/apt/etc" -o "Dir::State=$work/apt/state" \
        -o "Dir::State::status=$work/apt/state/status" -o "Dir::Cache=$work/apt/cache" \
        -o APT::Architecture=amd64 -o APT::Sandbox::User=root -o Acquire::Languages=none \
        -o Acquire::Retries=3 -o Debug::NoLocking=true "$@"
}

echo "fetch-qemu.sh: QEMU of Debian $suite from $mirror" >&2
private_apt update >"$work/log" 2>&1 || { cat "$work/log" >&2; fail "package lists of $suite not to be had"; }
private_apt install --download-only --yes --no-install-recommends qemu-system-x86 qemu-utils \
    >"$work/log" 2>&1 || { tail -n 20 "$work/log" >&2; fail "download failed"; }

for package in "$work"/apt/cache/archives/*.deb; do
    dpkg-deb -x "$package" "$work/root"
done
# Only the programs' own needs: no manuals, no firmware of other machines.
rm -rf "$work/root/usr/share/doc" "$work/root/usr/share/man" "$work/root/usr/share/locale" \
    "$work/root/usr/share/i18n" "$work/root/usr/share/info" "$work/root/usr/sbin" "$work/root/etc" "$work/root/var"

for program in $programs; do
    [ -x "$work/root/usr/bin/$program" ] || fail "the packages of $suite hold no $program"
    data=
    [ "$program" != qemu-system-x86_64 ] || data='-L "$root/usr/share/qemu" -L "$root/usr/share/seabios"'
    cat >"$work/root/bin/$program" <<WRAPPER
#!/bin/sh
root=\$(dirname "\$(dirname "\$(readlink -f "\$0")")")
libs=\$root/usr/lib/x86_64-linux-gnu
QEMU_MODULE_DIR=\$libs/qemu exec "\$libs/ld-linux-x86-64.so.2" --library-path "\$libs" \\
    "\$root/usr/bin/$program" $data "\$@"
WRAPPER
    chmod 755 "$work/root/bin/$program"
    "$work/root/bin/$program" --version >/dev/null || fail "$program does not start"
done

echo "$suite $format" >"$work/root/stamp"
rm -rf "$target"
# Of two runs at once the second finds the first one's folder in place, which is as good.
mv -T "$work/root" "$target" 2>/dev/null || [ -r "$target/stamp" ] || fail "cannot install to $target"
report
