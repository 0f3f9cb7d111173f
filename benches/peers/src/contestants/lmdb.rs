//! LMDB by `heed`: a look, then one write transaction a call. Map of 16 GiB. Unless in `power`
//! mode `NO_SYNC`, and `WRITE_MAP`, which `lmdb.h` says uses fewer mallocs and may be faster for
//! what fits in memory: a commit is then in the map, which is the file's pages, and these outlive
//! a killed process. Completes without a look at the token.
#![allow(unsafe_code, reason = "opening an environment is, and turning its syncs off")]

use heed::types::Bytes;
use heed::{Database, Env, EnvFlags, EnvOpenOptions};

use super::value::{self, Value};
use crate::keys::{Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, State, Store};

pub struct Lmdb {
    environment: Env,
    keys: Database<Bytes, Bytes>,
}

impl Lmdb {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        let mut transaction = self.environment.write_txn()?;
        self.keys.put(&mut transaction, key, value)?;
        Ok(transaction.commit()?)
    }
}

impl Store for Lmdb {
    type Hand<'a> = LmdbHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let mut options = EnvOpenOptions::new();
        options.map_size(16 << 30).max_readers(256);
        if setup.mode != Mode::Power {
            // SAFETY: what a loss of power does to this file is not asked, and nothing here writes
            // into the map but LMDB.
            unsafe { options.flags(EnvFlags::NO_SYNC | EnvFlags::WRITE_MAP) };
        }
        // SAFETY: nobody else opens the directory, and no file in it is changed but by LMDB.
        let environment = unsafe { options.open(&setup.directory) }?;
        let mut transaction = environment.write_txn()?;
        let keys = environment.create_database(&mut transaction, None)?;
        transaction.commit()?;
        Ok(Self { environment, keys })
    }

    fn hand(&self) -> Result<LmdbHand<'_>> {
        Ok(LmdbHand { store: self, value: Value::new(), token: 0 })
    }

    fn settle(&self) -> Result<()> {
        Ok(self.environment.force_sync()?)
    }
}

pub struct LmdbHand<'a> {
    store: &'a Lmdb,
    value: Value,
    token: u64,
}

impl Hand for LmdbHand<'_> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        let Lmdb { environment, keys } = self.store;
        let transaction = environment.read_txn()?;
        if let Some(value) = keys.get(&transaction, key)? {
            return value::answer(value, fingerprint, out);
        }
        drop(transaction);
        self.token += 1;
        let value = self.value.held(fingerprint, self.token);
        let mut transaction = environment.write_txn()?;
        if let Some(value) = keys.get_or_put(&mut transaction, key, value)? {
            return value::answer(value, fingerprint, out);
        }
        transaction.commit()?;
        Ok(Answer::Acquired(self.token))
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        self.store.put(key, self.value.done(fingerprint(key), token, body))
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        let transaction = self.store.environment.read_txn()?;
        match self.store.keys.get(&transaction, key)? {
            Some(value) => value::found(value, out),
            None => Ok(State::Absent),
        }
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        let mut transaction = self.store.environment.write_txn()?;
        for (key, nth) in keys.iter().zip(first..) {
            let value = self.value.done(fingerprint(key), 0, bodies.nth(nth));
            self.store.keys.put(&mut transaction, key, value)?;
        }
        Ok(transaction.commit()?)
    }
}
