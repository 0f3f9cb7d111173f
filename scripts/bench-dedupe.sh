#!/usr/bin/env bash
# `refrain dedupe` in memory beside `awk '!seen[$0]++'` and `sort -u`, in turns, over FILE, by
# default the shipped ledger cut. Prints the median of each and the ratios; ROUNDS sets how often.
set -euo pipefail
cd "$(dirname "$0")/.."

rounds=${ROUNDS:-7}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cargo build --quiet --release --features cli --bin refrain
refrain=$(cargo metadata --format-version 1 --no-deps | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release/refrain
input=${1:-$work/ledger.csv}
[ -n "${1:-}" ] || gzip -dc examples/data/online-retail-72k.csv.gz >"$input"

# Seconds that "$@" takes, to the file $work/NAME.
time_of() {
    local name=$1 start end
    shift
    start=$(date +%s%N)
    "$@" >"$work/$name.out"
    end=$(date +%s%N)
    echo $(((end - start) / 1000)) >>"$work/$name.us"
}

for _ in $(seq "$rounds"); do
    time_of refrain "$refrain" dedupe --summary none "$input"
    time_of awk awk '!seen[$0]++' "$input"
    time_of sort env LC_ALL=C sort -u "$input"
done
cmp "$work/refrain.out" "$work/awk.out"

median() { sort -n "$work/$1.us" | sed -n "$(((rounds + 1) / 2))p"; }
base=$(median awk)
printf '%-10s %12s %10s   (%s lines, median of %s rounds; same output as awk)\n' \
    contestant ms 'x awk' "$(wc -l <"$input")" "$rounds"
for name in refrain awk sort; do
    awk -v name="$name" -v us="$(median "$name")" -v base="$base" \
        'BEGIN { printf "%-10s %12.1f %10.2f\n", name, us / 1000, us / base }'
done
