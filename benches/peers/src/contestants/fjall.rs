//! `fjall`: striped locks, look, then insert; `persist(SyncData)` after each in `power` mode.
//! Block cache of 512 MiB. No compression, as RocksDB has none: the bodies would not become
//! smaller. The hash index in each block that its README names for point lookups, with as many
//! places for a key as RocksDB's. Before reads it waits until nothing is flushed or compacted;
//! what a memtable holds stays there, where it is read fastest. Completes without a look at the
//! token.

use std::time::{Duration, Instant};

use fjall::config::{CompressionPolicy, HashRatioPolicy};
use fjall::{CompressionType, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use super::locks::Locks;
use super::value::{self, Value};
use crate::keys::{Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, State, Store};

/// Places in a block's hash index for a key.
const HASH_RATIO: f32 = 1.33;
/// Between looks at what is done in the background, and how many in a row must see nothing.
const LOOK: Duration = Duration::from_millis(5);
const LOOKS: usize = 10;
/// Longer than it takes, unless a thread of it has died.
const REST_MAX: Duration = Duration::from_secs(300);

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

    fn is_at_rest(&self) -> bool {
        self.database.outstanding_flushes() == 0
            && self.keys.sealed_memtable_count() == 0
            && self.database.active_compactions() == 0
    }
}

impl Store for Fjall {
    type Hand<'a> = FjallHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let database = Database::builder(&setup.directory)
            .cache_size(512 << 20)
            .journal_compression(CompressionType::None)
            .open()?;
        let keys = database.keyspace("keys", || {
            KeyspaceCreateOptions::default()
                .data_block_compression_policy(CompressionPolicy::disabled())
                .data_block_hash_ratio_policy(HashRatioPolicy::all(HASH_RATIO))
        })?;
        Ok(Self { database, keys, locks: Locks::new(), is_synced: setup.mode == Mode::Power })
    }

    fn hand(&self) -> Result<FjallHand<'_>> {
        Ok(FjallHand { store: self, value: Value::new(), token: 0 })
    }

    fn settle(&self) -> Result<()> {
        self.database.persist(PersistMode::SyncAll)?;
        // A compaction begins a moment after the flush that asks for it.
        let (mut looks, start) = (0, Instant::now());
        while looks < LOOKS {
            if start.elapsed() > REST_MAX {
                return Err("it does not come to rest".into());
            }
            looks = if self.is_at_rest() { looks + 1 } else { 0 };
            std::thread::sleep(LOOK);
        }
        Ok(())
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

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        match self.store.keys.get(key)? {
            Some(value) => value::found(&value, out),
            None => Ok(State::Absent),
        }
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        for (key, nth) in keys.iter().zip(first..) {
            self.store.keys.insert(key, self.value.done(fingerprint(key), 0, bodies.nth(nth)))?;
        }
        Ok(())
    }
}
