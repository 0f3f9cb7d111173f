//! `moka::sync::Cache`, with a time to live of a day and ahash.

use std::sync::Arc;
use std::time::Duration;

use moka::sync::Cache;

use super::map::{Map, Record};
use crate::keys::{Body, Key};
use crate::store::{Answer, Setup, State};

const DAY: Duration = Duration::from_secs(24 * 3600);

pub struct Moka(Cache<Key, Arc<Record>, ahash::RandomState>);

impl Map for Moka {
    fn new(_: &Setup) -> Self {
        Self(Cache::builder().time_to_live(DAY).build_with_hasher(ahash::RandomState::default()))
    }

    fn claim(&self, key: &Key, record: Record, out: &mut Body) -> Answer {
        let (token, fingerprint) = (record.token, record.fingerprint);
        let entry = self.0.entry_by_ref(key).or_insert_with(|| Arc::new(record));
        match entry.is_fresh() {
            true => Answer::Acquired(token),
            false => entry.into_value().answer(fingerprint, out).unwrap_or(Answer::InProgress),
        }
    }

    fn complete(&self, key: &Key, token: u64, body: &Body) -> bool {
        match self.0.get(key) {
            Some(record) if record.token == token => {
                self.0.insert(*key, Arc::new(record.completed(body)));
                true
            }
            _ => false,
        }
    }

    fn lookup(&self, key: &Key, out: &mut Body) -> State {
        self.0.get(key).map_or(State::Absent, |record| record.state(out))
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }
}
