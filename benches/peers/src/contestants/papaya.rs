//! `papaya::HashMap`, with ahash. Looks first, so that a duplicate allocates nothing. Writers wait
//! for the table to be moved to a larger one: its docs say of `ResizeMode` that this is better for
//! throughput than moving a little of it with each write.

use papaya::{HashMap, ResizeMode};

use super::map::{Map, Record};
use crate::keys::{Body, Key};
use crate::store::{Answer, Setup, State};

pub struct Papaya(HashMap<Key, Record, ahash::RandomState>);

impl Map for Papaya {
    fn new(setup: &Setup) -> Self {
        let builder = HashMap::builder().hasher(ahash::RandomState::default());
        Self(builder.capacity(setup.room()).resize_mode(ResizeMode::Blocking).build())
    }

    fn claim(&self, key: &Key, record: Record, out: &mut Body) -> Answer {
        let map = self.0.pin();
        let (token, fingerprint) = (record.token, record.fingerprint);
        if let Some(answer) = map.get(key).and_then(|it| it.answer(fingerprint, out)) {
            return answer;
        }
        match map.try_insert(*key, record) {
            Ok(_) => Answer::Acquired(token),
            // Nothing expires here, so what is in the way has an answer.
            Err(taken) => taken.current.answer(fingerprint, out).unwrap_or(Answer::InProgress),
        }
    }

    fn complete(&self, key: &Key, token: u64, body: &Body) -> bool {
        let map = self.0.pin();
        let updated = map.update(*key, |record| {
            if record.token == token { record.completed(body) } else { record.clone() }
        });
        updated.is_some_and(|record| record.token == token)
    }

    fn lookup(&self, key: &Key, out: &mut Body) -> State {
        self.0.pin().get(key).map_or(State::Absent, |record| record.state(out))
    }
}
