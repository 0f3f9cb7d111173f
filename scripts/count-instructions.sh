#!/usr/bin/env bash
# Instructions of each primitive, by callgrind, beside the table in docs/COUNTS.md: fails when one
# takes more than TOLERANCE percent (10) beyond what stands there. With `--write` it replaces the table.
# COUNT sets how often each is done (20000).
set -euo pipefail
cd "$(dirname "$0")/.."

if ! valgrind --version >/dev/null 2>&1; then
    echo "SKIPPED: valgrind is not installed (apt-get install valgrind)" >&2
    exit 3
fi
count=${COUNT:-20000}
tolerance=${TOLERANCE:-10}
table=docs/COUNTS.md
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

build() { cargo build --quiet --release --manifest-path benches/counts/Cargo.toml --bin instructions "$@"; }
target=$(cargo metadata --manifest-path benches/counts/Cargo.toml --format-version 1 --no-deps |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

# What needs a feature is counted with it, the rest without.
build --features rate-limit
cp "$target/release/instructions" "$work/with"
build
cp "$target/release/instructions" "$work/without"

# Instructions a call, without the loop around it.
count_of() {
    local total program=without
    case $1 in with_rate_*) program=with ;; esac
    total=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect='*measured*' \
        "$work/$program" "$1" "$2" "$count" 2>&1 | sed -n 's/.*Collected : \([0-9]*\).*/\1/p')
    [ -n "$total" ] && echo $((total / count))
}

base=$(count_of nothing memory)
for primitive in $("$work/with" | grep -v '^nothing$'); do
    directory=$(count_of "$primitive" directory)
    memory=$(count_of "$primitive" memory)
    echo "| $primitive | $((directory - base)) | $((memory - base)) |"
done | tee "$work/counted"

if [ "${1:-}" = --write ]; then
    sed -i -e "/^<!-- instructions -->/,/^<!-- end -->/ { /^| [a-z]*_\?[a-z_]* | [0-9]/d; /^|---/r $work/counted
}" "$table"
    echo "written to $table"
    exit
fi
awk -F ' *[|] *' -v tolerance="$tolerance" '
    NR == FNR { if ($3 ~ /^[0-9]+$/) { directory[$2] = $3; memory[$2] = $4 } next }
    {
        if (!($2 in directory)) { print $2 " is not in the table"; bad = 1; next }
        if ($3 > directory[$2] * (1 + tolerance / 100) || $4 > memory[$2] * (1 + tolerance / 100)) {
            print $2 ": " $3 ", " $4 " instructions; the table has " directory[$2] ", " memory[$2]; bad = 1
        }
        seen++
    }
    END {
        if (!seen) { print "nothing was counted"; bad = 1 }
        if (bad) exit 1
        print seen " primitives within " tolerance " % of the table"
    }' <(sed -n '/^<!-- instructions -->/,/^<!-- end -->/p' "$table") "$work/counted"
