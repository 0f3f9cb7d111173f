//! RocksDB: striped locks, look, then put; `sync` on each write in `power` mode. No compression:
//! the bodies would not become smaller. `OptimizeForPointLookup` of its `options.h`, for those
//! that only put and get: a bloom filter of ten bits a key, for the memtable too, a hash index in
//! each block, a block cache of 512 MiB. As many background threads as processors, which the docs
//! of `IncreaseParallelism` say one almost definitely wants. Before reads it flushes, and waits
//! until nothing is compacted. Completes without a look at the token.

use rocksdb::{DB, DBCompressionType, Options, WaitForCompactOptions, WriteBatch, WriteOptions};

use super::locks::Locks;
use super::value::{self, Value};
use crate::keys::{Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, State, Store};

const CACHE_MIB: u64 = 512;

pub struct Rocks {
    database: DB,
    locks: Locks,
    is_synced: bool,
}

impl Rocks {
    fn write_options(&self) -> WriteOptions {
        let mut options = WriteOptions::default();
        options.set_sync(self.is_synced);
        options
    }
}

impl Store for Rocks {
    type Hand<'a> = RocksHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let processors = std::thread::available_parallelism()?;
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(64 << 20);
        options.optimize_for_point_lookup(CACHE_MIB);
        options.increase_parallelism(processors.get() as i32);
        let database = DB::open(&options, &setup.directory)?;
        Ok(Self { database, locks: Locks::new(), is_synced: setup.mode == Mode::Power })
    }

    fn hand(&self) -> Result<RocksHand<'_>> {
        let options = self.write_options();
        Ok(RocksHand { store: self, options, value: Value::new(), token: 0 })
    }

    fn settle(&self) -> Result<()> {
        self.database.flush_wal(true)?;
        let mut options = WaitForCompactOptions::default();
        options.set_flush(true);
        Ok(self.database.wait_for_compact(&options)?)
    }
}

pub struct RocksHand<'a> {
    store: &'a Rocks,
    options: WriteOptions,
    value: Value,
    token: u64,
}

impl Hand for RocksHand<'_> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        let _guard = self.store.locks.lock(key);
        if let Some(value) = self.store.database.get_pinned(key)? {
            return value::answer(&value, fingerprint, out);
        }
        self.token += 1;
        let value = self.value.held(fingerprint, self.token);
        self.store.database.put_opt(key, value, &self.options)?;
        Ok(Answer::Acquired(self.token))
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        let value = self.value.done(fingerprint(key), token, body);
        Ok(self.store.database.put_opt(key, value, &self.options)?)
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        match self.store.database.get_pinned(key)? {
            Some(value) => value::found(&value, out),
            None => Ok(State::Absent),
        }
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        for (part, first) in keys.chunks(10_000).zip((first..).step_by(10_000)) {
            let mut batch = WriteBatch::default();
            for (key, nth) in part.iter().zip(first..) {
                batch.put(key, self.value.done(fingerprint(key), 0, bodies.nth(nth)));
            }
            self.store.database.write(batch)?;
        }
        Ok(())
    }
}
