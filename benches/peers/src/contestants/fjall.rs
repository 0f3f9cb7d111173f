//! `fjall`: striped locks, look, then insert; `persist(SyncData)` after each in `power` mode. Block
//! cache of 512 MiB. Completes without a look at the token.

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::locks::Locks;
use super::value::{self, Value};
use crate::keys::{Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, Store};

pub struct Fjall {
    database: Database,
    keys: Keyspace,
    locks: Locks,
    is_synced: bool,
}

impl Fjall {
    fn put(&self, key: &Key, value: &[u8]) -> Result<()> {
        self.keys.insert(key, value)?;
        if self.is_synced {
            self.database.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }
}

impl Store for Fjall {
    type Hand<'a> = FjallHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let database = Database::builder(&setup.directory).cache_size(512 << 20).open()?;
        let keys = database.keyspace("keys", KeyspaceCreateOptions::default)?;
        Ok(Self { database, keys, locks: Locks::new(), is_synced: setup.mode == Mode::Power })
    }

    fn hand(&self) -> Result<FjallHand<'_>> {
        Ok(FjallHand { store: self, value: Value::new(), token: 0 })
    }

    fn settle(&self) -> Result<()> {
        Ok(self.database.persist(PersistMode::SyncAll)?)
    }
}

pub struct FjallHand<'a> {
    store: &'a Fjall,
    value: Value,
    token: u64,
}

impl Hand for FjallHand<'_> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        let _guard = self.store.locks.lock(key);
        if let Some(value) = self.store.keys.get(key)? {
            return value::answer(&value, fingerprint, out);
        }
        self.token += 1;
        self.store.put(key, self.value.held(fingerprint, self.token))?;
        Ok(Answer::Acquired(self.token))
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        self.store.put(key, self.value.done(fingerprint(key), token, body))
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<bool> {
        match self.store.keys.get(key)? {
            Some(value) => value::found(&value, out).map(|_| true),
            None => Ok(false),
        }
    }

    fn load(&mut self, keys: &[Key], body: &Body) -> Result<()> {
        for key in keys {
            self.store.keys.insert(key, self.value.done(fingerprint(key), 0, body))?;
        }
        Ok(())
    }
}
