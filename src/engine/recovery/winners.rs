//! Choosing, for each key, the record that counts (R1).
//!
//! All records compete, releases and forgets and expired ones included; only when all have been
//! seen are the keys dropped that turn out free. The highest (token, rank) wins; among renewals of
//! one token the latest deadline; equal ones are copies.

use super::scan::Records;
use crate::error::OpenError;
use crate::format::record::{Kind, Record};
use crate::table::{Slot, Table};
use crate::types::{FencingToken, KeyHash, Location, SegmentId, Timestamp};

/// The tables of a store that is being opened.
#[derive(Debug)]
pub(super) struct Winners {
    pub(super) tables: Vec<Table>,
    /// Completions that were over when they were read; most still are the winner at the end.
    over: Vec<(KeyHash, Location)>,
    now: Timestamp,
}

/// What is left in the tables.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Survivors {
    pub(super) completed: usize,
    pub(super) expired: usize,
}

/// The order of records of one key.
fn strength(record: &Record<'_>) -> (FencingToken, u8, [Timestamp; 3]) {
    let times = match record.kind {
        Kind::Renew => [record.until, record.expires, record.at],
        _ => [Timestamp::default(); 3],
    };
    (record.token, record.kind.rank(), times)
}

impl Winners {
    /// Empty tables of `shards` shards, made for about `entries`. `now` is a time that has come.
    pub(super) fn new(shards: usize, entries: usize, now: Timestamp) -> Self {
        let tables = (0..shards).map(|_| Table::for_entries(entries / shards)).collect();
        Self { tables, over: Vec::new(), now }
    }

    fn shard_of(&self, hash: KeyHash) -> usize {
        let bits = self.tables.len().trailing_zeros();
        hash.0.checked_shr(64 - bits).unwrap_or(0) as usize
    }

    /// Lets a record compete. `current` is the segment it lies in, as far as it is loaded.
    pub(super) fn offer(
        &mut self,
        record: &Record<'_>,
        location: Location,
        records: &mut Records<'_>,
        current: (SegmentId, &[u8]),
    ) -> Result<(), OpenError> {
        let (hash, shard) = (record.key_hash, self.shard_of(record.key_hash));
        let mut is_stronger = true;
        let is_same_key = |slot: Slot| {
            records.with(slot.location(), Some(current), |old| {
                let is_same = old.namespace == record.namespace && old.key == record.key;
                if is_same {
                    is_stronger = strength(record) > strength(old);
                }
                is_same
            })
        };
        let found = self.tables[shard].find(hash, is_same_key)?;
        let is_done = record.kind == Kind::Complete;
        match found {
            Some(_) if !is_stronger => return Ok(()),
            Some((position, _)) => self.tables[shard].replace(position, location, is_done),
            None => self.tables[shard].insert(hash, location, is_done),
        }
        if is_done && record.expires <= self.now {
            self.over.push((hash, location));
        }
        Ok(())
    }

    /// Drops every key that is free, once all records were offered. `keep` sees the winner of each
    /// key that is not completed, and says whether it stays.
    pub(super) fn settle(
        &mut self,
        records: &mut Records<'_>,
        mut keep: impl FnMut(&Record<'_>, Location) -> bool,
    ) -> Result<Survivors, OpenError> {
        let mut survivors = Survivors::default();
        for (hash, location) in std::mem::take(&mut self.over) {
            let shard = self.shard_of(hash);
            let is_it = |slot: Slot| Ok::<_, OpenError>(slot.location() == location);
            if let Some((position, _)) = self.tables[shard].find(hash, is_it)? {
                self.tables[shard].remove(position);
                survivors.expired += 1;
            }
        }
        for table in &mut self.tables {
            let mut free = Vec::new();
            table.for_each(|position, slot| {
                if slot.is_done() {
                    survivors.completed += 1;
                } else if !records.with(slot.location(), None, |it| keep(it, slot.location()))? {
                    free.push(position);
                }
                Ok::<_, OpenError>(())
            })?;
            for position in free {
                table.remove(position);
            }
        }
        Ok(survivors)
    }
}
