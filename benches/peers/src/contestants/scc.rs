//! `scc::HashMap`, with ahash. A claim reads first, under a lock that is shared, so that a
//! duplicate excludes nobody: duplicates are cheaper than by `entry_sync` alone, and fresh claims no
//! dearer.

use scc::HashMap;
use scc::hash_map::Entry;

use super::map::{Map, Record};
use crate::keys::{Body, Key};
use crate::store::{Answer, Setup, State};

pub struct Scc(HashMap<Key, Record, ahash::RandomState>);

impl Map for Scc {
    fn new(setup: &Setup) -> Self {
        let hasher = ahash::RandomState::default();
        Self(HashMap::with_capacity_and_hasher(setup.room(), hasher))
    }

    fn claim(&self, key: &Key, record: Record, out: &mut Body) -> Answer {
        let known = self.0.read_sync(key, |_, it| it.answer(record.fingerprint, out));
        if let Some(answer) = known.flatten() {
            return answer;
        }
        let token = record.token;
        match self.0.entry_sync(*key) {
            Entry::Occupied(mut entry) => match entry.get().answer(record.fingerprint, out) {
                Some(answer) => return answer,
                None => drop(entry.insert(record)),
            },
            Entry::Vacant(entry) => drop(entry.insert_entry(record)),
        }
        Answer::Acquired(token)
    }

    fn complete(&self, key: &Key, token: u64, body: &Body) -> bool {
        let body = Some(body[..].into());
        let updated = self.0.update_sync(key, |_, record| {
            let is_held = record.token == token;
            if is_held {
                record.body = body;
            }
            is_held
        });
        updated.unwrap_or(false)
    }

    fn lookup(&self, key: &Key, out: &mut Body) -> State {
        self.0.read_sync(key, |_, record| record.state(out)).unwrap_or(State::Absent)
    }
}
