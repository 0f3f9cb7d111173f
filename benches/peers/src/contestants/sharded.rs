//! 64 maps of the standard library with ahash, each behind a `parking_lot` mutex in cache lines of
//! its own: the store a user would write.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crossbeam_utils::CachePadded;
use parking_lot::Mutex;

use super::map::{Map, Record};
use crate::keys::{Body, Key};
use crate::store::{Answer, Setup, State};

const SHARDS: usize = 64;

type Shard = Mutex<HashMap<Key, Record, ahash::RandomState>>;

pub struct Sharded {
    hasher: ahash::RandomState,
    shards: Vec<CachePadded<Shard>>,
}

impl Sharded {
    fn shard(&self, key: &Key) -> &Shard {
        &self.shards[(self.hasher.hash_one(key) >> 40) as usize % SHARDS]
    }
}

impl Map for Sharded {
    fn new(setup: &Setup) -> Self {
        let (room, hasher) = (setup.room().div_ceil(SHARDS), ahash::RandomState::default);
        let shard = || Mutex::new(HashMap::with_capacity_and_hasher(room, hasher()));
        let shards = (0..SHARDS).map(|_| CachePadded::new(shard())).collect();
        Self { hasher: hasher(), shards }
    }

    fn claim(&self, key: &Key, record: Record, out: &mut Body) -> Answer {
        let token = record.token;
        match self.shard(key).lock().entry(*key) {
            Entry::Occupied(mut entry) => match entry.get().answer(record.fingerprint, out) {
                Some(answer) => return answer,
                None => drop(entry.insert(record)),
            },
            Entry::Vacant(entry) => {
                entry.insert(record);
            }
        }
        Answer::Acquired(token)
    }

    fn complete(&self, key: &Key, token: u64, body: &Body) -> bool {
        let body = Some(body[..].into());
        match self.shard(key).lock().get_mut(key) {
            Some(record) if record.token == token => {
                record.body = body;
                true
            }
            _ => false,
        }
    }

    fn lookup(&self, key: &Key, out: &mut Body) -> State {
        self.shard(key).lock().get(key).map_or(State::Absent, |record| record.state(out))
    }
}
