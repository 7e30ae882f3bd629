#!/usr/bin/env bash
# Merges config fragments into a kernel's .config and asserts that every line of them survived.
#
#   config.sh SOURCE BUILD FRAGMENT...
#
# SOURCE is a patched kernel tree, BUILD the directory for its output. Options that no fragment
# names are off (allnoconfig). Kconfig drops an option silently when something it depends on is
# off; here that is an error which lists them all. Used by build.sh, and fit for a Nix derivation.
set -euo pipefail

die() {
    echo "config.sh: $*" >&2
    exit 1
}

[[ $# -ge 3 ]] || die "usage: config.sh SOURCE BUILD FRAGMENT..."
source=$(realpath "$1") build=$(realpath -m "$2")
shift 2
[[ -f $source/Kconfig ]] || die "$source is not a kernel source tree: it has no Kconfig file"

mkdir -p "$build"
merged=$build/fragments.config
cat "$@" >"$merged"

# One option, one fragment: the second would win without a word.
twice=$(sed -nE 's/^(# )?(CONFIG_[A-Za-z0-9_]+)(=| is not set).*/\2/p' "$merged" | sort | uniq -d)
[[ -z $twice ]] || die "options set more than once: ${twice//$'\n'/ }"

log=$build/config.log
make -C "$source" O="$build" KCONFIG_ALLCONFIG="$merged" allnoconfig >"$log" 2>&1 ||
    { cat "$log" >&2; die "kconfig failed"; }

# What the fragments say, line by line, against what came out. "is not set" holds as well for
# an option that is not there at all.
lost=$(awk '
    NR == FNR { if ($0 ~ /^CONFIG_/) { split($0, kv, "="); have[kv[1]] = substr($0, length(kv[1]) + 2) } next }
    /^CONFIG_/ {
        name = $0; sub(/=.*/, "", name)
        want = substr($0, length(name) + 2)
        if (!(name in have)) print "  " name ": wanted " want ", is off or unknown"
        else if (have[name] != want) print "  " name ": wanted " want ", is " have[name]
    }
    /^# CONFIG_[A-Za-z0-9_]+ is not set/ && ($2 in have) { print "  " $2 ": wanted off, is " have[$2] }
' "$build/.config" "$merged")
if [[ -n $lost ]]; then
    echo "config.sh: these options of the fragments did not survive (a dependency is missing, or another option selects them):" >&2
    echo "$lost" >&2
    exit 1
fi
