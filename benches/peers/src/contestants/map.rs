//! What the contestants in memory share: the record they keep for a key, and how a thread uses them.
//!
//! They do no work for expiry (except moka, which has its own) and read no clock: the caller gives
//! the time. A store with timers and a WAL does more than that.

use crate::keys::{BODY, Body, Key};
use crate::store::{Answer, Hand, Result, Setup, State, Store};

/// The time, which stands still, and when every record expires.
const NOW: u64 = 1 << 20;
const EXPIRES: u64 = 1 << 40;

/// The state of a key.
#[derive(Clone)]
pub struct Record {
    pub fingerprint: u128,
    pub expires: u64,
    pub token: u64,
    pub body: Option<Box<[u8]>>,
}

impl Record {
    /// What a claim is answered, or `None` when the record's time is over.
    pub fn answer(&self, fingerprint: u128, out: &mut Body) -> Option<Answer> {
        if self.expires < NOW {
            return None;
        }
        if self.fingerprint != fingerprint {
            return Some(Answer::Mismatch);
        }
        match self.state(out) {
            State::Completed => Some(Answer::Completed),
            _ => Some(Answer::InProgress),
        }
    }

    /// What a lookup learns from it.
    pub fn state(&self, out: &mut Body) -> State {
        match &self.body {
            _ if self.expires < NOW => State::Absent,
            None => State::InProgress,
            Some(body) => {
                let len = body.len().min(BODY);
                out[..len].copy_from_slice(&body[..len]);
                State::Completed
            }
        }
    }

    /// The record with an outcome.
    pub fn completed(&self, body: &[u8]) -> Self {
        Self { body: Some(body.into()), ..*self }
    }
}

/// A map that can be claimed from.
pub trait Map: Sync + Sized {
    fn new(setup: &Setup) -> Self;

    /// Puts the record there if the key has none that counts; otherwise answers from it.
    fn claim(&self, key: &Key, record: Record, out: &mut Body) -> Answer;

    /// Stores the body if the key is held under this token.
    fn complete(&self, key: &Key, token: u64, body: &Body) -> bool;

    fn lookup(&self, key: &Key, out: &mut Body) -> State;

    fn settle(&self) {}
}

/// A map as a contestant.
pub struct MapStore<M>(M);

impl<M: Map> Store for MapStore<M> {
    type Hand<'a>
        = MapHand<'a, M>
    where
        M: 'a;

    fn open(setup: &Setup) -> Result<Self> {
        Ok(Self(M::new(setup)))
    }

    fn hand(&self) -> Result<MapHand<'_, M>> {
        Ok(MapHand { map: &self.0, token: 0 })
    }

    fn settle(&self) -> Result<()> {
        self.0.settle();
        Ok(())
    }
}

pub struct MapHand<'a, M> {
    map: &'a M,
    token: u64,
}

impl<M: Map> Hand for MapHand<'_, M> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        self.token += 1;
        let fingerprint = u128::from_le_bytes(fingerprint);
        let record = Record { fingerprint, expires: EXPIRES, token: self.token, body: None };
        Ok(self.map.claim(key, record, out))
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        match self.map.complete(key, token, body) {
            true => Ok(()),
            false => Err("completed without a claim".into()),
        }
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        Ok(self.map.lookup(key, out))
    }
}
