#!/usr/bin/env bash
# Runs every fuzz target for so many seconds each: scripts/fuzz.sh 60
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
if ! cargo +nightly fuzz --version >/dev/null 2>&1; then
    echo "SKIPPED: cargo-fuzz is not installed (scripts/install-tools.sh)" >&2
    exit 3
fi
for target in record segment meta file_set structured api differential; do
    echo "== $target, $seconds s"
    # New inputs go to a scratch corpus; those that are kept are chosen by hand.
    scratch=$(mktemp -d)
    status=0
    cargo +nightly fuzz run "$target" "$scratch" "fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -dict="fuzz/refrain.dict" -max_len=6000 -print_final_stats=1 \
        >"$scratch.txt" 2>&1 || status=$?
    grep -E "^stat::|SUMMARY|panicked|Done" -A3 "$scratch.txt" || true
    [ "$status" -eq 0 ] || tail -40 "$scratch.txt"
    rm -rf "$scratch" "$scratch.txt"
    [ "$status" -eq 0 ] || exit "$status"
done
