//! What the benches share: the keys, and the map a user would write instead.
#![allow(dead_code, reason = "each bench uses its own part")]

use std::collections::HashMap;
use std::collections::hash_map::{Entry, RandomState};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use refrain::{Durability, Lease, Namespace, Options, Store};

pub use keys::{BODY, key};

#[path = "keys.rs"]
mod keys;

/// Claims that nobody has made yet, and the time they took.
pub fn timed(count: u64, mut each: impl FnMut(u64)) -> Duration {
    let start = Instant::now();
    for n in 0..count {
        each(n);
    }
    start.elapsed()
}

/// The state of a key in the map.
#[derive(Clone)]
pub enum State {
    InProgress { token: u64, deadline: u64 },
    Done { token: u64, body: Box<[u8]> },
}

/// The store a user would write: 64 maps behind mutexes. No expiry work, no clock, no WAL.
pub struct ShardedMap {
    hasher: RandomState,
    shards: Vec<Mutex<HashMap<Box<[u8]>, State>>>,
}

impl ShardedMap {
    pub fn new() -> Self {
        let shards = (0..64).map(|_| Mutex::new(HashMap::new())).collect();
        Self { hasher: RandomState::new(), shards }
    }

    fn shard(&self, key: &[u8]) -> &Mutex<HashMap<Box<[u8]>, State>> {
        &self.shards[self.hasher.hash_one(key) as usize % self.shards.len()]
    }

    /// Whether the key is now the caller's; the body, if it is done.
    pub fn claim(&self, key: &[u8], token: u64) -> Result<(), Option<Box<[u8]>>> {
        match self.shard(key).lock().entry(key.into()) {
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

    pub fn complete(&self, key: &[u8], token: u64, body: &[u8]) {
        let mut shard = self.shard(key).lock();
        match shard.get_mut(key) {
            Some(state @ State::InProgress { .. }) => {
                *state = State::Done { token, body: body.into() };
            }
            _ => panic!("completed without a claim"),
        }
    }
}

/// A store in a directory of its own, and in memory.
pub fn stores() -> [(&'static str, Store, Option<tempfile::TempDir>); 2] {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let options = Options::new(directory.path()).durability(Durability::Buffered);
    let buffered = options.open().expect("a new store");
    let memory = Store::in_memory().expect("a store in memory");
    [("refrain, buffered", buffered, Some(directory)), ("refrain, in memory", memory, None)]
}

pub fn namespace(store: &Store) -> Namespace {
    store.namespace("bench").expect("a namespace")
}

/// How many keys a bench fills its stores with: `REFRAIN_ENTRIES`, or 100,000; in a test of the bench
/// a few.
pub fn entries() -> u64 {
    let is_test = std::env::args().any(|argument| argument == "--test");
    if is_test { 1_000 } else { number("REFRAIN_ENTRIES", 100_000) }
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
