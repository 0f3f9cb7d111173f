//! `sled`: a look, then compare-and-swap against nothing; `flush` after each in `power` mode,
//! otherwise it flushes every 500 ms. Its flush is `sync_file_range` on Linux, which does not
//! reach what a disk caches. Cache of 1 GiB, and `Mode::HighThroughput`, which its docs give to
//! those that want throughput rather than space (0.34 does not look at it yet). Completes without
//! a look at the token.

use sled::{Config, Db, Mode as Aim};

use super::value::{self, Value};
use crate::keys::{Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, State, Store};

pub struct Sled {
    database: Db,
    is_synced: bool,
}

impl Sled {
    fn sync(&self) -> Result<()> {
        if self.is_synced {
            self.database.flush()?;
        }
        Ok(())
    }
}

impl Store for Sled {
    type Hand<'a> = SledHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let config = Config::new().path(&setup.directory).cache_capacity(1 << 30);
        let database = config.mode(Aim::HighThroughput).open()?;
        Ok(Self { database, is_synced: setup.mode == Mode::Power })
    }

    fn hand(&self) -> Result<SledHand<'_>> {
        Ok(SledHand { store: self, value: Value::new(), token: 0 })
    }

    fn settle(&self) -> Result<()> {
        self.database.flush()?;
        Ok(())
    }
}

pub struct SledHand<'a> {
    store: &'a Sled,
    value: Value,
    token: u64,
}

impl Hand for SledHand<'_> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        if let Some(value) = self.store.database.get(key)? {
            return value::answer(&value, fingerprint, out);
        }
        self.token += 1;
        let value = self.value.held(fingerprint, self.token);
        match self.store.database.compare_and_swap(key, None as Option<&[u8]>, Some(value))? {
            Ok(()) => {
                self.store.sync()?;
                Ok(Answer::Acquired(self.token))
            }
            Err(taken) => {
                let value = taken.current.ok_or("a swap failed against nothing")?;
                value::answer(&value, fingerprint, out)
            }
        }
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        self.store.database.insert(key, self.value.done(fingerprint(key), token, body))?;
        self.store.sync()
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        match self.store.database.get(key)? {
            Some(value) => value::found(&value, out),
            None => Ok(State::Absent),
        }
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        for (key, nth) in keys.iter().zip(first..) {
            self.store
                .database
                .insert(key, self.value.done(fingerprint(key), 0, bodies.nth(nth)))?;
        }
        Ok(())
    }
}
