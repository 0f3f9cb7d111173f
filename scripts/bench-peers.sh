#!/usr/bin/env bash
# refrain beside its peers, interleaved in one run: builds benches/peers and runs it; the results, a
# report and pictures go to docs/benchmarks, named by date and commit. See docs/BENCHMARKS.md.
#
#   scripts/bench-peers.sh [--heavy] [--quick] [--repeats N] [--first-repeat N] [--sections a,b,..] \
#       [--arrivals N] [--only PEER,..]
#
# --heavy adds RocksDB, SQLite, LMDB and Redis: installs what they need, and compiles RocksDB, which
# takes half an hour on two cores. --quick ends in minutes and its figures are good for nothing but to
# see that it runs; they go to a temporary directory. --arrivals is how many the latency run has, --only
# names the peers that take part in the sections memory and large. --first-repeat goes on where an earlier
# run of the same day and commit stopped: so many repeats are there. A repeat that is there is refused,
# unless a child failed in it.
set -euo pipefail
cd "$(dirname "$0")/.."

heavy=() quick='' arguments=()
while [ $# -gt 0 ]; do
    case $1 in
    --heavy) heavy=(--features heavy) ;;
    --quick) quick=1 arguments+=(--quick) ;;
    --sections | --repeats | --first-repeat | --arrivals | --only) arguments+=("$1" "$2") && shift ;;
    *) sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2 && exit 2 ;;
    esac
    shift
done

if [ ${#heavy[@]} -gt 0 ]; then
    missing=()
    # bindgen needs the library, and finds it by this name or by its versions.
    ldconfig -p | grep -q libclang || missing+=(libclang-dev)
    command -v redis-server >/dev/null || missing+=(redis-server)
    command -v c++ >/dev/null || missing+=(g++)
    if [ ${#missing[@]} -gt 0 ]; then
        echo "installing ${missing[*]}" >&2
        as_root=$([ "$(id -u)" -eq 0 ] || echo sudo)
        $as_root apt-get update -qq
        $as_root apt-get install -qq -y "${missing[@]}"
    fi
fi

manifest=benches/peers/Cargo.toml
cargo build --release --manifest-path $manifest "${heavy[@]}"
target=$(cargo metadata --format-version 1 --no-deps --manifest-path $manifest |
    sed 's/.*"target_directory":"\([^"]*\)".*/\1/')

commit=$(git rev-parse --short HEAD)
# What is not committed, new files too, of the library or of the harness.
[ -z "$(git status --porcelain -- src Cargo.toml benches/peers)" ] || commit=$commit-changed
name=$(date -u +%F)-$commit
directory=docs/benchmarks
[ -z "$quick" ] || directory=$(mktemp -d)
mkdir -p "$directory"
about="$(date -u +%F), commit $commit, $(rustc --version | cut -d' ' -f1-2)"
"$target"/release/peers run "${arguments[@]}" --about "$about" "$directory/$name.csv"
echo "written: $directory/$name.csv and .md, and $directory/$name-*.svg" >&2
