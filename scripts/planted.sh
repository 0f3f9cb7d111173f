#!/usr/bin/env bash
# Plants each bug of tests/planted in a copy of the project and requires that the test it names goes
# red: by a failure, not by a time limit. With arguments, only those bugs. The tests are run once
# without a bug first, and must be green then; REFRAIN_CONTROL=no passes over that. The copy and
# what is built of it lie in target/planted; REFRAIN_LIMIT is the time that a test may take, in
# seconds, building not counted.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=target/planted/project
limit=${REFRAIN_LIMIT:-300}
export CARGO_TARGET_DIR="$PWD/target/planted/build"
# What takes time is to build the library again and again.
export CARGO_INCREMENTAL=1 CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_OPT_LEVEL=1
export CARGO_TERM_COLOR=never
export REFRAIN_SEEDS=${REFRAIN_SEEDS:-3000} REFRAIN_SEED=${REFRAIN_SEED:-1}
mkdir -p target/planted

fresh_copy() {
    rm -rf "$copy"
    mkdir -p "$copy"
    git ls-files -z | xargs -0 cp --parents -t "$copy"
    [ ! -f Cargo.lock ] || cp Cargo.lock "$copy"
}

# Sets `verdict` to what came of `cargo test` with these arguments; what it printed goes to a file.
run() {
    local log=$1 code=0
    shift
    if ! (cd "$copy" && cargo test --release --no-run "$@") >"$log" 2>&1; then
        verdict="DOES NOT BUILD"
        return
    fi
    (cd "$copy" && timeout -k 10 "$limit" cargo test --release "$@") >>"$log" 2>&1 || code=$?
    if [ "$code" -eq 0 ]; then
        verdict="MISSED"
    elif [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
        verdict="TIMED OUT"
    elif grep -qE '^test .* FAILED|panicked at|\(signal: ' "$log"; then
        verdict="found"
    else
        verdict="EXIT $code WITHOUT A FAILURE"
    fi
}

command_of() { sed -n 's/^test: //p' "tests/planted/$1.patch"; }

names=("$@")
[ $# -gt 0 ] || for patch in tests/planted/*.patch; do names+=("$(basename "$patch" .patch)"); done

control() {
    local line red=0
    fresh_copy
    find "$copy/src" -name '*.rs' -exec touch {} +
    while read -r line; do
        read -ra command <<<"$line"
        run target/planted/without.txt "${command[@]}"
        # What misses a bug is green.
        [ "$verdict" = MISSED ] || { red=1 && echo "without a bug: $verdict: $line"; }
    done < <(for name in "${names[@]}"; do command_of "$name"; done | sort -u)
    [ "$red" -eq 0 ] || exit 1
    echo "without a bug all of them are green"
}
[ "${REFRAIN_CONTROL:-yes}" = no ] || control

found=0
others=()
for name in "${names[@]}"; do
    start=$SECONDS
    fresh_copy
    read -ra command <<<"$(command_of "$name")"
    log=target/planted/$name.txt
    if (cd "$copy" && patch --quiet --fuzz=0 -p1) <"tests/planted/$name.patch" >"$log" 2>&1; then
        # Files are newer than what was built of the copy before.
        find "$copy/src" -name '*.rs' -exec touch {} +
        run "$log" "${command[@]}"
    else
        verdict="DOES NOT APPLY"
    fi
    why=""
    if [ "$verdict" = found ]; then
        found=$((found + 1))
        why=$(grep -m1 -E '^test .* FAILED|panicked at|\(signal: ' "$log")
    else
        others+=("$name")
    fi
    echo "$name: $verdict by ${command[*]}${why:+ ($why)}, $((SECONDS - start)) s"
done
echo "$found of ${#names[@]} planted bugs found"
[ ${#others[@]} -eq 0 ] || { echo "not found: ${others[*]}" && exit 1; }
