#!/usr/bin/env bash
# Changes one place of the engine at a time and asks whether a test notices: a random sample of COUNT
# (200) of the changes that cargo-mutants can make, drawn by REFRAIN_SEED (1). Unit tests are asked first; what they
# miss is put to the tests in `tests`, but for those that take minutes. REFRAIN_PART=2/5 does the second fifth of the
# sample. A test that does not end counts as noticing. Prints each, and in the end how many were caught; the exit code is 1
# if fewer than nine in ten were. What the tests printed lies in target/mutants.
set -euo pipefail
cd "$(dirname "$0")/.."

count=${1:-200}
seed=${REFRAIN_SEED:-1}
part=${REFRAIN_PART:-1/1}
cargo mutants --version >/dev/null 2>&1 || cargo install --locked cargo-mutants
out=$PWD/target/mutants
copy=$out/project
export CARGO_TARGET_DIR=$out/build
# What takes time is to build again and again.
export CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_OPT_LEVEL=1
export CARGO_TERM_COLOR=never
export REFRAIN_SEEDS=${REFRAIN_SEEDS:-300} REFRAIN_CASES=${REFRAIN_CASES:-300}

rm -rf "$copy" "$out/changes"
mkdir -p "$copy" "$out/changes"
git ls-files -z | xargs -0 cp --parents -t "$copy"
[ ! -f Cargo.lock ] || cp Cargo.lock "$copy"

places=()
for place in format wal table wheel engine; do places+=(--file "src/$place/**"); done
# One file for each change: its name in the first line, a diff in those behind it.
cargo mutants --list --diff "${places[@]}" --exclude '**/schedules.rs' |
    awk -v to="$out/changes" '/^src\/[^ ]*:[0-9]+:[0-9]+: / { close(file); file = sprintf("%s/%05d", to, ++n) } { print >file }'
sample=$(find "$out/changes" -type f | sort |
    awk -v seed="$seed" 'BEGIN { srand(seed) } { printf "%.9f\t%s\n", rand(), $0 }' | sort | cut -f2- |
    awk -v count="$count" -v part="$part" \
        'BEGIN { split(part, of, "/") } NR <= count && NR % of[2] == of[1] % of[2]')

tests=()
for file in tests/*.rs; do
    name=$(basename "$file" .rs)
    case $name in
    kill | soak | tidy | concurrency | full | faults | exhaustive | stalls | schedules | dedupe | fork) ;;
    *) tests+=(--test "$name") ;;
    esac
done

# Sets `verdict` to what came of `cargo test` with these arguments.
ask() {
    local code=0
    if ! (cd "$copy" && cargo test --release --no-run "$@") >"$log" 2>&1; then
        verdict="does not compile"
        return
    fi
    (cd "$copy" && timeout -k 10 400 cargo test --release "$@") >>"$log" 2>&1 || code=$?
    case $code in
    0) verdict=MISSED ;;
    124 | 137) verdict="caught: does not end" ;;
    *) verdict="caught: $(grep -m1 -oE '^test .* FAILED|panicked at.*|\(signal: .*' "$log" || echo "exit $code")" ;;
    esac
}

# Nothing is caught by tests that are red anyway.
verdict='' log=$out/without.txt
ask --lib "${tests[@]}"
[ "$verdict" = MISSED ] || { echo "without a change: $verdict" && exit 1; }

asked=0 compiled=0 missed=0
while IFS= read -r change; do
    name=$(head -n 1 "$change") start=$SECONDS log=$change.txt
    source=${name%%:*}
    (cd "$copy" && sed 1d "$change" | patch --quiet --fuzz=0 "$source")
    ask --lib
    [ "$verdict" != MISSED ] || ask "${tests[@]}"
    cp "$source" "$copy/$source"
    touch "$copy/$source"
    asked=$((asked + 1))
    [ "$verdict" = "does not compile" ] || compiled=$((compiled + 1))
    [ "$verdict" != MISSED ] || missed=$((missed + 1))
    echo "$name: $verdict, $((SECONDS - start)) s"
done <<<"$sample"
echo "seed $seed, part $part: $asked changes, $compiled compile, $((compiled - missed)) of these caught"
[ $((missed * 10)) -le "$compiled" ]
