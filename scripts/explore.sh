#!/usr/bin/env bash
# Explores schedules of threads: loom every one of a few threads over single parts, up to
# LOOM_MAX_PREEMPTIONS (3) preemptions; shuttle REFRAIN_SCHEDULES of those parts (10000 each) and of the
# whole engine in memory (300 each).
#
#   scripts/explore.sh [loom|shuttle [TESTS..]]
set -euo pipefail
cd "$(dirname "$0")/.."

which=${1:-both}
case $which in
loom | shuttle) shift ;;
both) ;;
*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
esac
target=$(cargo metadata --format-version 1 --no-deps |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

explore() {
    local name=$1
    shift
    # Flags of its own, so a folder of its own: nothing else is built again for it.
    RUSTFLAGS="--cfg $name" CARGO_TARGET_DIR="$target/$name" cargo test --release "$@"
}

if [ "$which" != shuttle ]; then
    LOOM_MAX_PREEMPTIONS=${LOOM_MAX_PREEMPTIONS:-3} explore loom --lib -- schedules:: "$@"
fi
if [ "$which" != loom ]; then
    explore shuttle --lib -- schedules:: "$@"
    # One at a time: tests of one process share its epochs, and a task that stands still holds a pin.
    explore shuttle --test schedules -- --test-threads=1 "$@"
fi
