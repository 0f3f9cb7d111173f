#!/usr/bin/env bash
# Installs the cargo tools that the longer suites need, once. Safe to run again.
set -euo pipefail

if ! cargo +nightly --version >/dev/null 2>&1; then
    echo "no nightly toolchain: fuzzing, Miri and the sanitizers cannot run here" >&2
    exit 3
fi
cargo +nightly fuzz --version >/dev/null 2>&1 || cargo +nightly install --locked cargo-fuzz
