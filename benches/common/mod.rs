//! What the benches share: the keys, and the map a user would write instead.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use ahash::RandomState;
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use refrain::{Durability, Lease, Namespace, Options, Store};

pub use keys::{BODY, key};

#[path = "keys.rs"]
mod keys;

/// A key of the benches: made before anything is timed.
pub type Key = [u8; 36];

/// How long it takes to do something with each key.
pub fn timed(keys: &[Key], mut each: impl FnMut(&Key)) -> Duration {
    let start = Instant::now();
    keys.iter().for_each(&mut each);
    start.elapsed()
}

/// Keys of these numbers.
pub fn keys(numbers: impl IntoIterator<Item = u64>) -> Vec<Key> {
    numbers.into_iter().map(key).collect()
}

/// As many keys as are asked for next, which nobody has claimed.
pub fn next_keys(next: &mut u64, count: u64) -> Vec<Key> {
    let first = *next;
    *next += count;
    keys(first..*next)
}

/// As many keys as are asked for, in a scattered order, of `size` from `first` on.
pub fn scattered_keys(count: u64, first: u64, size: u64) -> Vec<Key> {
    keys((0..count).map(|n| first + scattered(n, size)))
}

/// The state of a key in the map.
enum State {
    InProgress { token: u64, deadline: u64 },
    Done { token: u64, body: Box<[u8]> },
}

type Shard = Mutex<HashMap<Key, State, RandomState>>;

/// The store a user would write: 64 maps with a fast hash, each behind a mutex on lines of its own. No
/// expiry, no clock, no WAL.
pub struct ShardedMap {
    hasher: RandomState,
    shards: Vec<CachePadded<Shard>>,
}

impl ShardedMap {
    pub fn new() -> Self {
        let hasher = RandomState::new();
        let shard = || CachePadded::new(Mutex::new(HashMap::with_hasher(hasher.clone())));
        Self { shards: (0..64).map(|_| shard()).collect(), hasher }
    }

    fn shard(&self, key: &Key) -> &Shard {
        &self.shards[(self.hasher.hash_one(key) >> 40) as usize % self.shards.len()]
    }

    /// Whether the key is now the caller's; the body, if it is done.
    pub fn claim(&self, key: &Key, token: u64) -> Result<(), Option<Box<[u8]>>> {
        match self.shard(key).lock().entry(*key) {
            Entry::Vacant(entry) => {
                entry.insert(State::InProgress { token, deadline: token + 30_000 });
                Ok(())
            }
            Entry::Occupied(entry) => match entry.get() {
                State::InProgress { .. } => Err(None),
                State::Done { body, .. } => Err(Some(body.clone())),
            },
        }
    }

    pub fn complete(&self, key: &Key, token: u64, body: &[u8]) {
        let mut shard = self.shard(key).lock();
        match shard.get_mut(key) {
            Some(state @ State::InProgress { .. }) => {
                *state = State::Done { token, body: body.into() };
            }
            _ => panic!("completed without a claim"),
        }
    }

    /// Whether the key is completed.
    pub fn is_done(&self, key: &Key) -> bool {
        matches!(self.shard(key).lock().get(key), Some(State::Done { .. }))
    }

    /// Claims and completes these keys.
    pub fn fill(&self, numbers: std::ops::Range<u64>) {
        for n in numbers {
            assert!(self.claim(&key(n), n).is_ok());
            self.complete(&key(n), n, &BODY);
        }
    }
}

/// A store, and the directory that it lies in.
pub type Opened = (Store, Option<tempfile::TempDir>);

/// What a contestant is called, and how a new one is opened.
pub type Contestant = (&'static str, fn() -> Opened);

/// A store in an empty directory, and one in memory.
pub fn open() -> [Contestant; 2] {
    [("refrain, buffered", open_buffered), ("refrain, in memory", open_in_memory)]
}

fn open_buffered() -> Opened {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = Options::new(directory.path()).durability(Durability::Buffered);
    (options.open().expect("a new store"), Some(directory))
}

fn open_in_memory() -> Opened {
    (Store::in_memory().expect("a store in memory"), None)
}

/// One of each: opened when it is its turn.
pub fn stores() -> impl Iterator<Item = (&'static str, Store, Option<tempfile::TempDir>)> {
    open().into_iter().map(|(name, opened)| {
        let (store, directory) = opened();
        (name, store, directory)
    })
}

pub fn namespace(store: &Store) -> Namespace {
    store.namespace("bench").expect("a namespace")
}

/// How many keys the stores of a bench have, one after the other: `REFRAIN_ENTRIES`, numbers with commas
/// between, or 1 million and 10 million; in a test of the bench a few.
pub fn sizes() -> Vec<u64> {
    if std::env::args().any(|argument| argument == "--test") {
        return vec![1_000];
    }
    let given = std::env::var("REFRAIN_ENTRIES").unwrap_or_default();
    let given: Vec<u64> = given.split(',').filter_map(|text| text.trim().parse().ok()).collect();
    if given.is_empty() { vec![1_000_000, 10_000_000] } else { given }
}

/// A group of one question, with the samples that long measurements allow of.
pub fn group<'a>(
    criterion: &'a mut Criterion,
    name: &str,
    elements: u64,
) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(elements));
    group
}

/// The same for what takes a second or so each time: few samples of as much.
pub fn slow_group<'a>(
    criterion: &'a mut Criterion,
    name: &str,
    elements: u64,
) -> BenchmarkGroup<'a, WallTime> {
    let mut group = group(criterion, name, elements);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(1));
    group
}

/// A scattered order that meets every number below `count`, if that is no multiple of 7,919.
pub fn scattered(n: u64, count: u64) -> u64 {
    n.wrapping_mul(7_919) % count
}

pub fn claim(space: &Namespace, n: u64) -> Lease {
    space.claim(key(n), None).expect("room").acquired().expect("a fresh key")
}

/// Claims and completes these keys.
pub fn fill(space: &Namespace, keys: std::ops::Range<u64>) {
    for n in keys {
        claim(space, n).complete(BODY).expect("a live lease");
    }
}

/// A number from the environment.
pub fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// The one in the middle, of at least one.
pub fn median<T: Copy + PartialOrd>(values: &mut [T]) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).expect("no value is out of order"));
    values[values.len() / 2]
}
