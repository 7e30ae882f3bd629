#!/usr/bin/env bash
# Builds the guest kernel: an uncompressed ELF vmlinux from a kernel source, our patches and our config.
#
#   build.sh [--source TARBALL|TREE] [--output FILE] [--jobs N] [--config-only]
#
# --source       default: the newest /usr/src/linux-source-6.12*.tar.xz (package linux-source-6.12)
# --output       where to put vmlinux; default: target/guest/vmlinux of this repository
# --jobs         parallel compilers; default: the number of CPUs
# --config-only  stop after the config check and print the path of the .config
#
# Everything is kept under ${RUNDLET_CACHE:-~/.cache/rundlet}/kernel, named by what went in:
#   source-<hash>/  unpacked and patched source
#   <hash>/         vmlinux (stripped), vmlinux.debug (with symbols), System.map, config
# An equal build is a copy. The names change with source, patches, config, these scripts or compiler.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
cache=${RUNDLET_CACHE:-$HOME/.cache/rundlet}/kernel
output=$here/../target/guest/vmlinux
source='' jobs=$(nproc) config_only=false

die() {
    echo "guest-kernel/build.sh: $*" >&2
    exit 1
}

say() { echo "guest-kernel: $*" >&2; }

parse() {
    while [[ $# -gt 0 ]]; do
        case $1 in
        --source | --output | --jobs)
            [[ $# -ge 2 && -n $2 ]] || die "$1 needs a value"
            case $1 in
            --source) source=$2 ;;
            --output) output=$2 ;;
            --jobs) jobs=$2 ;;
            esac
            shift 2
            ;;
        --config-only) config_only=true; shift ;;
        -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        *) die "unknown argument '$1'; see --help" ;;
        esac
    done
    [[ $jobs =~ ^[1-9][0-9]*$ ]] || die "--jobs: '$jobs' is not a positive number"
    if [[ -z $source ]]; then
        source=$(ls -v /usr/src/linux-source-6.12*.tar.* 2>/dev/null | tail -n 1)
        [[ -n $source ]] || die "no kernel source: install the package linux-source-6.12, or name one with --source"
    fi
    [[ -e $source ]] || die "--source: '$source' does not exist"
    source=$(realpath "$source")
}

need_tools() {
    local tool missing=()
    for tool in gcc ld make flex bison bc perl patch strip sha256sum; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    [[ ${#missing[@]} -eq 0 ]] ||
        die "missing tools: ${missing[*]} (Debian: apt install build-essential flex bison bc libelf-dev xz-utils)"
    echo '#include <gelf.h>' | gcc -E - >/dev/null 2>&1 ||
        die "missing header gelf.h, which the kernel's objtool needs (Debian: apt install libelf-dev)"
}

# One line that stands for the source: its bytes for a tarball; its path and newest change for a tree.
source_identity() {
    if [[ -f $source ]]; then
        sha256sum <"$source"
    else
        [[ -f $source/Kconfig && -f $source/Makefile ]] ||
            die "--source: '$source' is neither a tarball nor a kernel source tree"
        head -n 5 "$source/Makefile"
        (cd "$source" && find . -type f -printf '%p %s %T@\n' | sort | sha256sum)
    fi
}

hash_of() { sha256sum | cut -c 1-16; }

# Unpacked and patched source. Made beside its final name, so that an interrupted run leaves no half tree.
prepare_source() {
    local part patch
    [[ ! -d $tree ]] || return 0
    say "unpacking $source"
    part=$(mktemp -d "$cache/part.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    if [[ -f $source ]]; then
        # Kconfig files of everything are read; the code of other machines and of graphics never is.
        tar -x -f "$source" -C "$part" --strip-components=1 \
            --wildcards --exclude='*/drivers/gpu/drm/*/*.[chS]' --exclude='*/arch/arm*/*.[chS]' --exclude='*/arch/*.dts*' \
            --exclude='*/Documentation/*.rst' --exclude='*/sound/*.[ch]' --exclude='*/tools/testing/*' ||
            die "--source: cannot unpack '$source'"
    else
        cp -a --reflink=auto "$source/." "$part"
    fi
    [[ -f $part/Kconfig ]] || die "--source: '$source' does not hold a kernel source tree"
    for patch in "$here"/patches/*.patch; do
        patch -d "$part" -p1 --forward --silent --fuzz=0 --no-backup-if-mismatch <"$patch" ||
            die "$(basename "$patch") does not apply to $source; it is made for 6.12"
    done
    chmod 755 "$part"
    # A tree takes 1.5 GB: only the newest is worth keeping.
    rm -rf "$cache"/source-*
    mv -T "$part" "$tree"
    trap - EXIT
}

compile() {
    local log=$1/make.log
    # LOCALVERSION: no "+" for a tree inside somebody's git repository. The rest: equal input, equal bytes.
    if ! make -C "$tree" O="$1" -j "$jobs" LOCALVERSION= KBUILD_BUILD_USER=rundlet KBUILD_BUILD_HOST=rundlet \
        KBUILD_BUILD_VERSION=1 KBUILD_BUILD_TIMESTAMP='1970-01-01 00:00:00 UTC' vmlinux >"$log" 2>&1; then
        grep -m 20 -E 'error:|Error |undefined reference' "$log" >&2 || tail -n 20 "$log" >&2
        die "the kernel did not compile; the whole log is in $log"
    fi
}

build() {
    local work=$cache/work-$result part started=$SECONDS
    # What an interrupted or failed build of something else left.
    find "$cache" -maxdepth 1 -name 'work-*' ! -name "work-$result" -exec rm -rf {} +
    mkdir -p "$work"
    "$here/config.sh" "$tree" "$work" "$here"/config/*.config
    if $config_only; then
        echo "$work/.config"
        exit 0
    fi
    say "compiling with $jobs jobs (log: $work/make.log)"
    compile "$work"
    part=$(mktemp -d "$cache/part.XXXXXX")
    cp "$work/vmlinux" "$part/vmlinux.debug"
    strip --strip-all --remove-section=.comment -o "$part/vmlinux" "$work/vmlinux"
    cp "$work/System.map" "$part/System.map"
    cp "$work/.config" "$part/config"
    chmod 755 "$part"
    mv -T "$part" "$cache/$result" 2>/dev/null || rm -rf "$part" # somebody else was faster
    rm -rf "$work"
    say "built in $((SECONDS - started)) s"
}

parse "$@"
need_tools
mkdir -p "$cache" "$(dirname "$output")"

identity=$(source_identity)
patched=$({ echo "$identity"; cat "$here"/patches/*.patch "$here/build.sh"; } | hash_of)
tree=$cache/source-$patched
result=$({ echo "$patched"; cat "$here"/config/*.config "$here/config.sh"; gcc --version | head -n 1; ld --version | head -n 1; } | hash_of)

if $config_only || [[ ! -f $cache/$result/vmlinux ]]; then
    # One build at a time; the second finds the result of the first.
    exec 9>"$cache/lock"
    flock -n 9 || { say "waiting for another build"; flock 9; }
    if $config_only || [[ ! -f $cache/$result/vmlinux ]]; then
        prepare_source
        build
    fi
fi

install -m 644 "$cache/$result/vmlinux" "$output.part"
mv "$output.part" "$output"
say "$output ($(stat -c %s "$output") bytes, from $cache/$result)"
