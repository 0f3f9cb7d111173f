#!/usr/bin/env bash
# Plants each bug of tests/planted in a copy of the project and requires that the test it names goes
# red. With arguments, only those bugs. The copy and what is built of it lie in target/planted.
set -euo pipefail
cd "$(dirname "$0")/.."

copy=target/planted/project
export CARGO_TARGET_DIR="$PWD/target/planted/build"
export REFRAIN_SEEDS=${REFRAIN_SEEDS:-3000} REFRAIN_SEED=${REFRAIN_SEED:-1} CARGO_TERM_COLOR=never
mkdir -p target/planted
missed=()
found=0
names=("$@")
[ $# -gt 0 ] || for patch in tests/planted/*.patch; do names+=("$(basename "$patch" .patch)"); done
for name in "${names[@]}"; do
    patch=tests/planted/$name.patch
    rm -rf "$copy"
    mkdir -p "$copy"
    git ls-files -z | xargs -0 cp --parents -t "$copy" 2>/dev/null
    [ ! -f Cargo.lock ] || cp Cargo.lock "$copy"
    (cd "$copy" && patch --quiet -p1) <"$patch"
    # Files are newer than what was built of the copy before.
    find "$copy/src" -name '*.rs' -exec touch {} +
    read -ra command <<<"$(sed -n 's/^test: //p' "$patch")"
    log=target/planted/$name.txt
    code=0
    (cd "$copy" && timeout 150 cargo test --release "${command[@]}") >"$log" 2>&1 || code=$?
    if grep -q "^error\(\[E\|: could not compile\)" "$log"; then
        echo "$name: does not build" && grep -A5 "^error" "$log" && exit 1
    elif [ "$code" -ne 0 ]; then
        found=$((found + 1))
        echo "$name: found by ${command[*]} ($(grep -m1 -E '^test .* FAILED|panicked at' "$log" || echo "exit $code"))"
    else
        missed+=("$name")
        echo "$name: MISSED by ${command[*]}"
    fi
done
echo "$found of ${#names[@]} planted bugs found"
[ ${#missed[@]} -eq 0 ] || { echo "missed: ${missed[*]}" && exit 1; }
