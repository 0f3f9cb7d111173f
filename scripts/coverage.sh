#!/usr/bin/env bash
# Lines that the tests reach: a table by file and, behind it, the lines that nothing reached. Arguments go to `cargo test`; without
# any, all tests run but those that only start processes to kill them, and the soak.
set -euo pipefail
cd "$(dirname "$0")/.."

rustup component add llvm-tools >/dev/null 2>&1 || true
cargo llvm-cov --version >/dev/null 2>&1 || cargo install --locked cargo-llvm-cov
if ! cargo llvm-cov show-env >/dev/null 2>&1; then
    echo "SKIPPED: the toolchain has no llvm-tools, and they cannot be installed" >&2
    exit 3
fi
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}/coverage"
if [ $# -eq 0 ]; then
    set -- --lib
    for file in tests/*.rs; do
        name=$(basename "$file" .rs)
        case $name in kill | soak | tidy) ;; *) set -- "$@" --test "$name" ;; esac
    done
fi
cargo llvm-cov --no-report --release test --all-features "$@"
cargo llvm-cov report --release --ignore-filename-regex 'tests/|sys/(sim|explored)|testing|schedules' \
    --show-missing-lines
