//! `redb`: a look, then one write transaction a call, `Durability::None` or `Immediate`; cache of 1 GiB.
//! What was written with `None` is lost by a kill unless a durable transaction came later.
//! Completes without a look at the token.

use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, Table, TableDefinition, WriteTransaction,
};

use super::value::{self, Value};
use crate::keys::{Bodies, Body, Key, fingerprint};
use crate::store::{Answer, Hand, Mode, Result, Setup, State, Store};

const KEYS: TableDefinition<&[u8], &[u8]> = TableDefinition::new("keys");

pub struct Redb {
    database: Database,
    durability: Durability,
}

impl Redb {
    /// Runs `change` in a transaction of its own.
    fn write<T>(
        &self,
        change: impl FnOnce(&mut Table<'_, &'static [u8], &'static [u8]>) -> Result<T>,
    ) -> Result<T> {
        let mut transaction: WriteTransaction = self.database.begin_write()?;
        transaction.set_durability(self.durability)?;
        let result = change(&mut transaction.open_table(KEYS)?)?;
        transaction.commit()?;
        Ok(result)
    }

    /// Runs `read` on the value of a key.
    fn read<T>(&self, key: &Key, read: impl FnOnce(&[u8]) -> Result<T>) -> Result<Option<T>> {
        let table = self.database.begin_read()?.open_table(KEYS)?;
        let value = table.get(&key[..])?;
        value.map(|value| read(value.value())).transpose()
    }
}

impl Store for Redb {
    type Hand<'a> = RedbHand<'a>;

    fn open(setup: &Setup) -> Result<Self> {
        let path = setup.directory.join("keys.redb");
        let database = Database::builder().set_cache_size(1 << 30).create(path)?;
        let is_synced = setup.mode == Mode::Power;
        let durability = if is_synced { Durability::Immediate } else { Durability::None };
        let store = Self { database, durability };
        store.write(|_| Ok(()))?;
        Ok(store)
    }

    fn hand(&self) -> Result<RedbHand<'_>> {
        Ok(RedbHand { store: self, value: Value::new(), token: 0 })
    }

    fn settle(&self) -> Result<()> {
        // An empty transaction with the default durability makes all before it durable.
        Ok(self.database.begin_write()?.commit()?)
    }
}

pub struct RedbHand<'a> {
    store: &'a Redb,
    value: Value,
    token: u64,
}

impl Hand for RedbHand<'_> {
    fn claim(&mut self, key: &Key, fingerprint: [u8; 16], out: &mut Body) -> Result<Answer> {
        // A duplicate does not need the one writer.
        let known = self.store.read(key, |value| value::answer(value, fingerprint, out))?;
        if let Some(answer) = known {
            return Ok(answer);
        }
        self.token += 1;
        let (token, value) = (self.token, &mut self.value);
        self.store.write(|table| {
            let known = match table.get(&key[..])? {
                Some(value) => Some(value::answer(value.value(), fingerprint, out)?),
                None => None,
            };
            if let Some(answer) = known {
                return Ok(answer);
            }
            table.insert(&key[..], value.held(fingerprint, token))?;
            Ok(Answer::Acquired(token))
        })
    }

    fn complete(&mut self, key: &Key, token: u64, body: &Body) -> Result<()> {
        let value = self.value.done(fingerprint(key), token, body);
        self.store.write(|table| {
            table.insert(&key[..], value)?;
            Ok(())
        })
    }

    fn lookup(&mut self, key: &Key, out: &mut Body) -> Result<State> {
        let known = self.store.read(key, |value| value::found(value, out))?;
        Ok(known.unwrap_or(State::Absent))
    }

    fn load(&mut self, keys: &[Key], bodies: &Bodies, first: usize) -> Result<()> {
        let value = &mut self.value;
        self.store.write(|table| {
            for (key, nth) in keys.iter().zip(first..) {
                table.insert(&key[..], value.done(fingerprint(key), 0, bodies.nth(nth)))?;
            }
            Ok(())
        })
    }
}
