//! How long does a store take to open, beside filling a map with its keys?
//!
//! N completed keys of 36 bytes, with bodies of 128, in a store that was closed in order, first with
//! the claims of these keys still on disk, then without them; its files are in the page cache. The same keys, with a value of 8 bytes, go into a `DashMap`: as a program
//! would write it, and with a fast hash, on all cores and with room made beforehand.
//! They alternate, because the machine drifts; the ratios are what counts. Opening works on all cores,
//! so what it takes of them is told as well. N is `REFRAIN_ENTRIES`.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use dashmap::DashMap;
use refrain::{Body, Durability, Lookup, Options, Store};
use rustix::time::{ClockId, clock_gettime};

use common::{BODY, Key, key, median, namespace, number};

const ROUNDS: usize = 5;
const EMPTY_OPENS: usize = 20;

fn open(directory: &Path, is_left_alone: bool) -> Store {
    let options = Options::new(directory).durability(Durability::Buffered);
    options.manual_maintenance(is_left_alone).open().expect("a store that was closed")
}

fn main() {
    let count = number("REFRAIN_ENTRIES", 1_000_000);
    let keys: Vec<Key> = (0..count).map(key).collect();
    let directory = tempfile::tempdir().expect("a temporary directory");
    fill(directory.path(), &keys);
    // The claims are still there, beside their completions: nobody looks after the store.
    compare("claims still there", directory.path(), &keys, true);
    settle(directory.path());
    compare("claims gone", directory.path(), &keys, false);
    let [empty, _] = medians(&mut open_empty());
    println!("{:<30} {:>8.2} ms, median of {EMPTY_OPENS}", "open an empty store", empty * 1e3);
}

fn compare(what: &str, directory: &Path, keys: &[Key], is_left_alone: bool) {
    let names = ["open the store", "DashMap, one thread", "DashMap, room made, all cores"];
    let mut times = [const { Vec::new() }; 3];
    for round in 0..ROUNDS {
        times[0].push(recover(directory, keys, is_left_alone, round == 0));
        times[1].push(insert(keys));
        times[2].push(insert_on_all_cores(keys));
    }
    println!("\n{} keys, {what}; medians of {ROUNDS} rounds, alternating", keys.len());
    let [recovery, recovery_cores] = medians(&mut times[0]);
    for (name, times) in names.iter().zip(&mut times) {
        let [time, cores] = medians(times);
        println!(
            "{name:<30} {:>8.1} ms, {:>5.2} x the open; {:>8.1} ms of cores, {:>5.2} x; {:>6.2} \
             million keys a second",
            time * 1e3,
            time / recovery,
            cores * 1e3,
            cores / recovery_cores,
            keys.len() as f64 / time / 1e6
        );
    }
}

/// Makes a store of these keys.
fn fill(directory: &Path, keys: &[Key]) {
    let start = Instant::now();
    let store = open(directory, false);
    let space = namespace(&store);
    for key in keys {
        let lease = space.claim(key, None).expect("room").acquired().expect("a fresh key");
        lease.complete(BODY).expect("a live lease");
    }
    println!("filled in {:.1} s", start.elapsed().as_secs_f64());
    store.close().expect("nothing is held");
}

/// Waits until the claims are recycled that were completed last.
fn settle(directory: &Path) {
    let store = open(directory, false);
    let mut recycled = u64::MAX;
    while recycled != store.stats().recycled {
        recycled = store.stats().recycled;
        std::thread::sleep(Duration::from_millis(1500));
    }
    store.close().expect("nothing is held");
}

/// In seconds: how long something took, and what it took of all cores together.
type Cost = [f64; 2];

fn cost<T>(work: impl FnOnce() -> T) -> (Cost, T) {
    let cores = || clock_gettime(ClockId::ProcessCPUTime);
    let (start, before) = (Instant::now(), cores());
    let done = work();
    let (time, used) = (start.elapsed(), cores() - before);
    ([time.as_secs_f64(), used.tv_sec as f64 + used.tv_nsec as f64 / 1e9], done)
}

fn medians(costs: &mut [Cost]) -> Cost {
    [0, 1].map(|of| median(&mut costs.iter().map(|cost| cost[of]).collect::<Vec<_>>()))
}

/// Opens and closes the store; what opening takes.
fn recover(directory: &Path, keys: &[Key], is_left_alone: bool, is_told: bool) -> Cost {
    let (cost, store) = cost(|| open(directory, is_left_alone));
    let (report, stats) = (store.report(), store.stats());
    assert!(report.clean && report.completed == keys.len(), "{report:?}");
    if is_told {
        println!(
            "opened in {:.1} ms ({:.1} ms of cores): {} records, {} of them by index; {:.0} MiB of \
             records, {:.1} bytes of table a key",
            cost[0] * 1e3,
            cost[1] * 1e3,
            report.records,
            report.records_indexed,
            report.bytes as f64 / f64::from(1 << 20),
            stats.table_bytes as f64 / stats.entries as f64
        );
    }
    let space = namespace(&store);
    for key in keys.iter().step_by(keys.len() / 100 + 1) {
        let Ok(Lookup::Completed(outcome)) = space.lookup(key) else { panic!("a key is lost") };
        assert_eq!(outcome.body(), Body::Bytes(&BODY));
    }
    store.close().expect("nothing is held");
    cost
}

fn insert(keys: &[Key]) -> Cost {
    let (cost, map) = cost(|| {
        let map = DashMap::new();
        for (value, key) in keys.iter().enumerate() {
            map.insert(*key, value as u64);
        }
        map
    });
    assert_eq!(black_box(map).len(), keys.len());
    cost
}

fn insert_on_all_cores(keys: &[Key]) -> Cost {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (cost, map) = cost(|| {
        let map = DashMap::with_capacity_and_hasher(keys.len(), ahash::RandomState::new());
        std::thread::scope(|scope| {
            for part in keys.chunks(keys.len().div_ceil(threads)) {
                let map = &map;
                scope.spawn(move || {
                    for (value, key) in part.iter().enumerate() {
                        map.insert(*key, value as u64);
                    }
                });
            }
        });
        map
    });
    assert_eq!(black_box(map).len(), keys.len());
    cost
}

/// What it takes to open a store that was closed and has never had a key.
fn open_empty() -> Vec<Cost> {
    let directory = tempfile::tempdir().expect("a temporary directory");
    open(directory.path(), false).close().expect("nothing is held");
    let each = |_| {
        let (cost, store) = cost(|| open(directory.path(), false));
        store.close().expect("nothing is held");
        cost
    };
    (0..EMPTY_OPENS).map(each).collect()
}
