//! `dashmap`, with ahash.

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use super::map::{Map, Record};
use crate::keys::{Body, Key};
use crate::store::Answer;

pub struct Dash(DashMap<Key, Record, ahash::RandomState>);

impl Map for Dash {
    fn new(_: usize) -> Self {
        Self(DashMap::default())
    }

    fn claim(&self, key: &Key, record: Record, out: &mut Body) -> Answer {
        let token = record.token;
        match self.0.entry(*key) {
            Entry::Occupied(mut entry) => match entry.get().answer(record.fingerprint, out) {
                Some(answer) => return answer,
                None => drop(entry.insert(record)),
            },
            Entry::Vacant(entry) => drop(entry.insert(record)),
        }
        Answer::Acquired(token)
    }

    fn complete(&self, key: &Key, token: u64, body: &Body) -> bool {
        let body = Some(body[..].into());
        match self.0.get_mut(key) {
            Some(mut record) if record.token == token => {
                record.body = body;
                true
            }
            _ => false,
        }
    }

    fn lookup(&self, key: &Key, out: &mut Body) -> bool {
        self.0.get(key).is_some_and(|record| record.is_found(out))
    }
}
