//! RocksDB: striped locks, look, then put; `sync` on each write in `power` mode. No compression, a
//! bloom filter of ten bits a key, block cache of 512 MiB. Completes without a look at the token.

use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, Options, WriteBatch, WriteOptions};

use super::locks::Locks;
use super::value::{self, Value};
use crate::keys::{Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, Store};

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
        let mut blocks = BlockBasedOptions::default();
        blocks.set_bloom_filter(10.0, false);
        blocks.set_block_cache(&Cache::new_lru_cache(512 << 20));
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(64 << 20);
        options.set_block_based_table_factory(&blocks);
        let database = DB::open(&options, &setup.directory)?;
        Ok(Self { database, locks: Locks::new(), is_synced: setup.mode == Mode::Power })
    }

    fn hand(&self) -> Result<RocksHand<'_>> {
        let options = self.write_options();
        Ok(RocksHand { store: self, options, value: Value::new(), token: 0 })
    }

    fn settle(&self) -> Result<()> {
        Ok(self.database.flush_wal(true)?)
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

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<bool> {
        match self.store.database.get_pinned(key)? {
            Some(value) => value::found(&value, out).map(|_| true),
            None => Ok(false),
        }
    }

    fn load(&mut self, keys: &[Key], body: &Body) -> Result<()> {
        for part in keys.chunks(10_000) {
            let mut batch = WriteBatch::default();
            for key in part {
                batch.put(key, self.value.done(fingerprint(key), 0, body));
            }
            self.store.database.write(batch)?;
        }
        Ok(())
    }
}
