#!/usr/bin/env bash
# Builds the fuzz targets and runs each for SECONDS, two at a time; see README.md.
# Usage: fuzz/run.sh [SECONDS] [TARGET…]      (600, all)
set -euo pipefail
cd "$(dirname "$0")"

all=(blk_request clone_request mmio_registers spec template_state vsock_packet)
seconds=${1:-600}
[[ $seconds =~ ^[1-9][0-9]*$ ]] || { echo "fuzz: '$seconds' is not a number of seconds" >&2; exit 2; }
targets=("${@:2}")
[[ ${#targets[@]} -gt 0 ]] || targets=("${all[@]}")
for target in "${targets[@]}"; do
    [[ " ${all[*]} " == *" $target "* ]] || { echo "fuzz: no target '$target'; there are: ${all[*]}" >&2; exit 2; }
done

if ! command -v cargo-fuzz >/dev/null; then
    echo "fuzz: cargo-fuzz is missing; installing it from crates.io (cargo install --locked cargo-fuzz)"
    cargo install --locked cargo-fuzz
fi

# Sanitizer and coverage flags are unstable: a nightly compiler, else the stable one told to allow them.
nightly=$(rustup toolchain list 2>/dev/null | grep -om1 '^nightly[^ ]*' || true)
if [[ -n $nightly ]]; then
    export RUSTUP_TOOLCHAIN=$nightly
else
    export RUSTC_BOOTSTRAP=1
fi
echo "fuzz: building with $(rustc --version)"
for target in "${targets[@]}"; do
    cargo fuzz build --fuzz-dir . --target x86_64-unknown-linux-gnu "$target"
done

fuzz_one() {
    local target=$1 seconds=$2 log=target/$1.log status=0
    mkdir -p "corpus/$target" "artifacts/$target"
    touch "target/$target.started"
    nice "target/x86_64-unknown-linux-gnu/release/$target" \
        -max_total_time="$seconds" -timeout=60 -rss_limit_mb=2048 \
        -artifact_prefix="artifacts/$target/" \
        "corpus/$target" "seeds/$target" >"$log" 2>&1 || status=$?
    local runs coverage new
    runs=$(grep -oE '^#[0-9]+' "$log" | tail -1 | tr -d '#')
    coverage=$(grep -o 'cov: [0-9]*' "$log" | tail -1 | cut -d' ' -f2)
    new=$(find "artifacts/$target" -type f -newer "target/$target.started" | wc -l)
    printf 'fuzz: %-15s %10s executions  coverage %5s  new crashes %d\n' \
        "$target" "${runs:-0}" "${coverage:-0}" "$new"
    if [[ $status -ne 0 ]]; then
        grep -m1 -A2 -E 'panicked at|ERROR: ' "$log" || tail -5 "$log"
        echo "fuzz: $target failed with status $status; the whole story is in fuzz/$log, the input in fuzz/artifacts/$target/"
        return 1
    fi
}
export -f fuzz_one

# xargs says 123 when any of them failed.
printf '%s\n' "${targets[@]}" | xargs -P 2 -I TARGET bash -c "fuzz_one TARGET $seconds" || exit 1
