//! `papaya::HashMap`, with ahash. Looks first, so that a duplicate allocates nothing.

use papaya::HashMap;

use super::map::{Map, Record};
use crate::keys::{Body, Key};
use crate::store::Answer;

pub struct Papaya(HashMap<Key, Record, ahash::RandomState>);

impl Map for Papaya {
    fn new(_: usize) -> Self {
        Self(HashMap::default())
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

    fn lookup(&self, key: &Key, out: &mut Body) -> bool {
        self.0.pin().get(key).is_some_and(|record| record.is_found(out))
    }
}
