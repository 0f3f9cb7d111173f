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
# What waits to be dropped when the process ends is behind tagged integers in a static, where Miri
# cannot follow it: whatever pins is checked for everything but leaks.
leaks_too=(--skip sys::pin --skip store:: --skip engine:: --skip sys::sim)
unchecked="$MIRIFLAGS -Zmiri-ignore-leaks"
if [ $# -gt 0 ]; then
    cargo +nightly miri test --lib -- "${leaks_too[@]}" "$@"
    MIRIFLAGS=$unchecked cargo +nightly miri test --lib -- "$@"
else
    cargo +nightly miri test --lib -- "${leaks_too[@]}"
    MIRIFLAGS=$unchecked cargo +nightly miri test --lib -- sys::pin store:: engine::
    MIRIFLAGS=$unchecked cargo +nightly miri test --test claim
fi
