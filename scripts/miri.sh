#!/usr/bin/env bash
# Runs unit tests under Miri (tree borrows): undefined behaviour, data races, leaks. Without
# arguments all of them, and the tests of claims in memory; with arguments, those whose paths
# begin with one of them.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! cargo +nightly miri --version >/dev/null 2>&1; then
    rustup component add --toolchain nightly miri rust-src >/dev/null 2>&1 || true
fi
if ! cargo +nightly miri --version >/dev/null 2>&1; then
    echo "SKIPPED: Miri is not installed and cannot be" >&2
    exit 3
fi
# Permissive: locks keep their queues as integers, and a warning each time they do helps nobody.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-tree-borrows -Zmiri-permissive-provenance"
unchecked="$MIRIFLAGS -Zmiri-ignore-leaks"
# What waits to be dropped when the process ends is behind tagged integers in a static, where Miri
# cannot follow it: whatever pins is checked for everything but leaks.
pinning=(sys::pin sys::sim store:: engine::)

# What was asked for, of what pins.
pinning_asked=()
for asked in "$@"; do
    for path in "${pinning[@]}"; do
        case $path in "$asked"*) pinning_asked+=("$path") ;; esac
        case $asked in "$path"?*) pinning_asked+=("$asked") ;; esac
    done
done
if [ $# -eq 0 ]; then
    pinning_asked=("${pinning[@]}")
fi

skipped=()
for path in "${pinning[@]}"; do
    skipped+=(--skip "$path")
done
cargo +nightly miri test --lib -- "${skipped[@]}" "$@"
if [ ${#pinning_asked[@]} -gt 0 ]; then
    MIRIFLAGS=$unchecked cargo +nightly miri test --lib -- "${pinning_asked[@]}"
fi
if [ $# -eq 0 ]; then
    MIRIFLAGS=$unchecked cargo +nightly miri test --test claim
fi
