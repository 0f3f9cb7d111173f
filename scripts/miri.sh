#!/usr/bin/env bash
# Runs unit tests under Miri (tree borrows): undefined behaviour, data races, leaks. Without
# arguments all of them, and the tests of claims in memory; with arguments, those whose names
# contain one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    rustup component add --toolchain nightly miri rust-src >/dev/null 2>&1 || true
fi
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "SKIPPED: Miri is not installed and cannot be" >&2
    exit 3
fi
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows"
if [ $# -gt 0 ]; then
    cargo +nightly miri test --lib -- "$@"
else
    cargo +nightly miri test --lib
    cargo +nightly miri test --test claim
fi
