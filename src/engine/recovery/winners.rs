//! Choosing, for each key, the record that counts (R1).
//!
//! All records compete, releases and forgets and expired ones included; only when all have been
//! seen are the keys dropped that turn out free. The highest (token, rank) wins; among renewals of
//! one token the latest deadline, among completions the latest end; equal ones are copies. The order in which records are offered
//! does not matter.

use std::collections::HashMap;

use super::exits::Exits;
use super::scan::Records;
use crate::error::OpenError;
use crate::format::index::Entry;
use crate::format::record::Kind;
use crate::format::record_ref::RecordRef;
use crate::table::{Slot, Table};
use crate::types::{FencingToken, KeyHash, Location, NamespaceId, SegmentId, Timestamp};

/// The tables of a store that is being opened, or of some of its shards.
#[derive(Debug)]
pub(super) struct Winners {
    pub(super) tables: Vec<Table>,
    /// The shard of the first table, and how many shards the store has.
    first: usize,
    shards: usize,
    /// Completions that were over when they were read, or about to be, and when that is; most still
    /// are the winner at the end.
    over: Vec<(KeyHash, Location, Timestamp)>,
    /// Completions that lost against a later token, and claims that lost against one which is over
    /// before they are; and when they expire.
    lost: Vec<(KeyHash, Location, Timestamp)>,
    forgets: HashMap<KeyHash, Vec<Location>>,
    /// Of what was offered by an index.
    exits: Exits,
    now: Timestamp,
}

/// What is left in the tables.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Survivors {
    pub(super) completed: usize,
    pub(super) expired: usize,
}

/// What decides between records of one key.
struct Contender {
    namespace: NamespaceId,
    key: Vec<u8>,
    strength: Strength,
    kind: Kind,
    expires: Timestamp,
}

/// The order of records of one key.
type Strength = (FencingToken, u8, [Timestamp; 3]);

fn strength(record: RecordRef<'_>) -> Strength {
    let times = match record.kind() {
        Kind::Renew => [record.until(), record.expires(), record.at()],
        // A window is extended, never shortened.
        Kind::Complete => [record.expires(), Timestamp::default(), Timestamp::default()],
        _ => [Timestamp::default(); 3],
    };
    (record.token(), record.kind().rank(), times)
}

impl Contender {
    fn of(record: RecordRef<'_>) -> Self {
        Self {
            namespace: record.namespace(),
            key: record.key().to_vec(),
            strength: strength(record),
            kind: record.kind(),
            expires: record.expires(),
        }
    }

    /// Whether this one may say something again, against which `self` has won, when `self` is gone. Other
    /// than completions, claims and what ends them go when they are over, in an order that recovery
    /// does not know.
    fn may_leave_behind(&self, weaker: &Self) -> bool {
        let is_claim = weaker.kind.rank() <= Kind::Park.rank();
        let goes_first = self.kind != Kind::Complete && self.expires < weaker.expires;
        let is_other = self.strength.0 != weaker.strength.0;
        is_other && (weaker.kind == Kind::Complete || is_claim && goes_first)
    }
}

impl Winners {
    /// Empty tables of `shards` shards, made for about `entries`. `now` is about the time.
    pub(super) fn new(shards: usize, entries: usize, now: Timestamp) -> Self {
        let tables = (0..shards).map(|_| Table::for_entries(entries / shards)).collect();
        Self::of(tables, 0, shards, now)
    }

    fn of(tables: Vec<Table>, first: usize, shards: usize, now: Timestamp) -> Self {
        let (over, lost, forgets) = (Vec::new(), Vec::new(), HashMap::new());
        Self { tables, first, shards, over, lost, forgets, exits: Exits::default(), now }
    }

    /// Gives the tables away, in at most so many parts of neighbouring shards.
    pub(super) fn split(&mut self, parts: usize) -> Vec<Self> {
        let each = self.shards.div_ceil(parts.max(1)).max(1);
        let mut first = 0;
        let mut split = Vec::new();
        while !self.tables.is_empty() {
            let rest = self.tables.split_off(each.min(self.tables.len()));
            let tables = std::mem::replace(&mut self.tables, rest);
            let count = tables.len();
            split.push(Self::of(tables, first, self.shards, self.now));
            first += count;
        }
        split
    }

    /// Takes back what [`Winners::split`] gave away, part by part in the same order.
    pub(super) fn join(&mut self, part: Self) {
        self.tables.extend(part.tables);
        self.over.extend(part.over);
        self.lost.extend(part.lost);
        for (hash, forgets) in part.forgets {
            self.forgets.entry(hash).or_default().extend(forgets);
        }
        self.exits.join(part.exits);
    }

    fn shard_of(&self, hash: KeyHash) -> usize {
        let bits = self.shards.trailing_zeros();
        hash.0.checked_shr(64 - bits).unwrap_or(0) as usize
    }

    /// The table of a key; `None` when it is not among these.
    fn table_of(&self, hash: KeyHash) -> Option<usize> {
        let table = self.shard_of(hash).checked_sub(self.first)?;
        (table < self.tables.len()).then_some(table)
    }

    /// Lets a record compete. `current` is the segment it lies in, as far as it is loaded.
    pub(super) fn offer(
        &mut self,
        record: RecordRef<'_>,
        location: Location,
        records: &mut Records<'_>,
        current: (SegmentId, &[u8]),
    ) -> Result<(), OpenError> {
        let (hash, kind, expires) = (record.key_hash(), record.kind(), record.expires());
        if self.exits.supersede(kind, record.token()) {
            return Ok(());
        }
        self.compete(hash, kind, expires, location, |slot| {
            let old = records.with(slot.location(), Some(current), |old| {
                let is_same = old.namespace() == record.namespace() && old.key() == record.key();
                is_same.then(|| Contender::of(old))
            })?;
            Ok(old.map(|old| (old, Contender::of(record))))
        })
    }

    /// Leaves those entries of an index that are of these shards, and not of claims that an exit
    /// among them, or of an index before, has ended: they would lose.
    pub(super) fn keep_contenders(&mut self, entries: &mut Vec<Entry>) {
        entries.retain(|entry| self.table_of(entry.key_hash).is_some());
        entries.iter().for_each(|entry| self.exits.note(entry));
        entries.retain(|entry| !self.exits.supersede(entry.kind, entry.token));
    }

    /// Lets the record behind an entry of an index compete. Records are read only of keys that have
    /// an entry with the same hash already.
    pub(super) fn offer_entry(
        &mut self,
        entry: &Entry,
        location: Location,
        records: &mut Records<'_>,
    ) -> Result<(), OpenError> {
        let hash = entry.key_hash;
        self.compete(hash, entry.kind, entry.expires, location, |slot| {
            let old = records.with(slot.location(), None, |old| {
                (old.key_hash() == hash).then(|| Contender::of(old))
            })?;
            let Some(old) = old else { return Ok(None) };
            let new = records.with(location, None, Contender::of)?;
            let is_same = old.namespace == new.namespace && old.key == new.key;
            Ok(is_same.then_some((old, new)))
        })
    }

    /// Asks for the memory that offering a record of this hash will look at.
    #[inline]
    pub(super) fn prefetch(&self, hash: KeyHash) {
        if let Some(table) = self.table_of(hash) {
            self.tables[table].prefetch(hash);
        }
    }

    /// `meet` gives the record of a slot and the one that is offered, if they are of one key.
    fn compete(
        &mut self,
        hash: KeyHash,
        kind: Kind,
        expires: Timestamp,
        location: Location,
        mut meet: impl FnMut(Slot) -> Result<Option<(Contender, Contender)>, OpenError>,
    ) -> Result<(), OpenError> {
        let Some(table) = self.table_of(hash) else { return Ok(()) };
        let (mut is_stronger, mut has_lost) = (true, None);
        let route = self.tables[table].route(hash);
        let found = self.tables[table].find(route, |slot| {
            let Some((old, new)) = meet(slot)? else { return Ok(false) };
            is_stronger = new.strength > old.strength;
            let (stronger, weaker, at) =
                if is_stronger { (&new, &old, slot.location()) } else { (&old, &new, location) };
            has_lost = stronger.may_leave_behind(weaker).then_some((at, weaker.expires));
            Ok::<_, OpenError>(true)
        })?;
        self.lost.extend(has_lost.map(|(at, expires)| (hash, at, expires)));
        if kind == Kind::Forget {
            self.forgets.entry(hash).or_default().push(location);
        }
        let is_done = kind == Kind::Complete;
        match found {
            Some(_) if !is_stronger => return Ok(()),
            Some((position, _)) => self.tables[table].replace(position, location, is_done),
            None => self.tables[table].insert(route, location, is_done),
        }
        // An index rounds up to a second.
        if is_done && expires.ms() < self.now.ms() + 1000 {
            self.over.push((hash, location, expires));
        }
        Ok(())
    }

    /// Completions that lost against a later token, and that no forget accounts for: it was lost
    /// when the power was. What they lost against may go before they do (R5). And claims that
    /// outlive what they lost against, in segments that may go later (R3). With the end of their time.
    pub(super) fn unaccounted(
        &self,
        records: &mut Records<'_>,
        now: Timestamp,
    ) -> Result<Vec<(Location, Timestamp)>, OpenError> {
        let mut unaccounted = Vec::new();
        for (hash, lost, _) in self.lost.iter().filter(|(.., expires)| *expires > now) {
            let key = |record: RecordRef<'_>| (record.namespace(), record.key().to_vec());
            let (lost_key, token, expires) =
                records.with(*lost, None, |it| (key(it), it.token(), it.expires()))?;
            let mut is_accounted = false;
            for forget in self.forgets.get(hash).into_iter().flatten() {
                is_accounted |= records.with(*forget, None, |it| {
                    it.token() >= token && it.expires() >= expires && key(it) == lost_key
                })?;
            }
            if !is_accounted {
                unaccounted.push((*lost, expires));
            }
        }
        Ok(unaccounted)
    }

    /// Drops every key that is free at `now`, once all records were offered. `keep` sees the winner of each
    /// key that is not completed, and says whether it stays.
    pub(super) fn settle(
        &mut self,
        records: &mut Records<'_>,
        now: Timestamp,
        mut keep: impl FnMut(RecordRef<'_>, Location) -> bool,
    ) -> Result<Survivors, OpenError> {
        let mut survivors = Survivors::default();
        for (hash, location, expires) in std::mem::take(&mut self.over) {
            // An index rounds up; and the clock may have been set back since.
            if expires > now && records.with(location, None, |it| it.expires() > now)? {
                continue;
            }
            let shard = self.shard_of(hash);
            let is_it = |slot: Slot| Ok::<_, OpenError>(slot.location() == location);
            if let Some((position, _)) =
                self.tables[shard].find(self.tables[shard].route(hash), is_it)?
            {
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
            table.remove_all(&free);
        }
        Ok(survivors)
    }
}
