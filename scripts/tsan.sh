#!/usr/bin/env bash
# Runs the tests of threads under ThreadSanitizer: data races that the machine's own order of memory would
# hide. With arguments, only tests whose names contain one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! rustup component add --toolchain nightly rust-src >/dev/null 2>&1; then
    echo "SKIPPED: a nightly toolchain with its source is not installed and cannot be" >&2
    exit 3
fi
host=$(rustc +nightly -vV | sed -n 's/^host: //p')
target=$(cargo metadata --format-version 1 --no-deps |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
# The sanitizer knows no fences; crossbeam has something else in their place for it.
export RUSTFLAGS="-Zsanitizer=thread --cfg crossbeam_sanitize_thread"
export CARGO_TARGET_DIR="$target/tsan"
export TSAN_OPTIONS="halt_on_error=1 suppressions=$PWD/scripts/tsan.txt ${TSAN_OPTIONS:-}"
cargo +nightly test -Zbuild-std --target "$host" --lib --test concurrency --test batch \
    --test durability --test thread --test lease_end --test waiting --test panics --test marks \
    --test lost --test erase -- "$@"
