//! Emptying a segment whose time has come: entries that are over are removed, what is still wanted
//! is copied into an active segment.
//!
//! The walk goes over the index of the segment, not over keys: each record is asked for by its
//! location, so what was superseded costs one look at a bucket, and nothing is searched. Records are
//! read of those entries only that may have to be copied. A shard's lock is held for at most
//! [`HOLD_SLOTS_MAX`] slots at a time; what reads or writes records is prepared outside of it, and the
//! memory of the buckets is asked for before. Whoever loses its core while it holds a lock keeps it from
//! others for milliseconds: so where there is room emptying gives its core up between two holds, if anybody
//! wants it.
//!
//! Whether a record is still the current one of its key is decided under the lock of its shard, and
//! its copy takes its place in the same hold (R6). A copy made twice, because a walk was cut short,
//! is the same record twice.

use std::time::Duration;

use super::erasing::Erasing;
use super::events::Event;
use super::expiry::Pace;
use super::shard::ShardGuard;
use super::state::{Standing, held_bytes};
use super::{Engine, Mode, Way};
use crate::checksum::crc32;
use crate::error::StoreError;
use crate::format::draft::Draft;
use crate::format::ext::Ext;
use crate::format::flags::BodyState;
use crate::format::index::Entry;
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::hash::{digest_128, mix};
use crate::sys::pin::Pin;
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::sys::sync::yield_now;
use crate::table::{Position, Slot};
use crate::types::{Location, NamespaceId, Timestamp};
use crate::wal::class::Class;
use crate::wal::stream::SealedSegment;

/// Slots that are looked at while a shard's lock is held.
const HOLD_SLOTS_MAX: usize = 16;

/// Entries that are done before the time is asked for, by whoever calls for maintenance.
const ENTRIES_AT_LEAST: usize = 1024;

/// What purging has done since the store was opened.
#[derive(Debug, Default)]
pub(crate) struct PurgeCounts {
    pub(crate) purged: AtomicU64,
    pub(crate) copied: AtomicU64,
    pub(crate) recycled: AtomicU64,
    /// The most slots that were looked at, and the longest time in nanoseconds that was spent, while
    /// a shard's lock was held.
    pub(crate) hold_slots_max: AtomicU64,
    pub(crate) hold_ns_max: AtomicU64,
}

/// The entries of a segment that is being emptied, those of a shard together.
#[derive(Debug)]
pub(super) struct Walk {
    entries: Vec<Entry>,
    /// How many are done.
    done: usize,
}

impl Walk {
    /// The same, so many entries further on.
    pub(super) fn from(self, done: usize) -> Self {
        Self { done: done.min(self.entries.len()), ..self }
    }

    pub(super) fn done(&self) -> usize {
        self.done
    }
}

/// How far a segment was emptied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purged {
    Whole,
    /// It is time for something else.
    Partly,
    /// There is no room for a copy.
    NoRoom,
}

/// What becomes of the current record of a key.
#[derive(Clone, Copy)]
enum Fate {
    /// It says nothing any more; so much room was reserved for it.
    Over { held: u64 },
    /// It is copied as it is.
    Kept(Class),
    /// It is copied without its body, whose time is over.
    Bodyless(Class),
}

impl Engine {
    /// Reads the index of a sealed segment, or what it should be.
    pub(super) fn walk(&self, segment: &SealedSegment) -> Result<Walk, StoreError> {
        let mut entries = self.wal.read_entries(segment)?;
        entries.sort_by_key(|entry| self.shard_of(entry.key_hash));
        Ok(Walk { entries, done: 0 })
    }

    /// As [`Engine::walk`], over some neighbouring entries from anywhere in the index.
    pub(super) fn sample(&self, segment: &SealedSegment, count: u32) -> Result<Walk, StoreError> {
        let places = u64::from(segment.entries.saturating_sub(count)) + 1;
        // Any will do, and another one each time.
        let from = mix(self.timeline.monotonic().as_nanos() as u64 ^ segment.order) % places;
        // Below the number of entries.
        let mut entries = self.wal.read_some_entries(segment, from as u32, count)?;
        entries.sort_by_key(|entry| self.shard_of(entry.key_hash));
        Ok(Walk { entries, done: 0 })
    }

    /// Empties a sealed segment, until it is this time by the monotonic clock, but some of it in any case.
    pub(super) fn purge(
        &self,
        segment: &SealedSegment,
        walk: &mut Walk,
        until: Duration,
        pace: Pace,
        erasing: Option<&Erasing>,
    ) -> Result<Purged, StoreError> {
        let yields = pace == Pace::Gentle && self.wal.supply().is_ample;
        let least = if pace == Pace::Gentle { 1 } else { ENTRIES_AT_LEAST };
        let begun = walk.done;
        while let Some(few) = self.next_few(walk) {
            let begun_few = walk.done;
            self.prefetch_entries(few);
            if yields {
                yield_now();
            }
            let (wanted, count) = (self.remove_over(segment, few), few.len());
            for (at, entry) in wanted {
                // What is done is not done again: some of it was copied.
                walk.done = begun_few + at;
                if !self.settle_one(segment, &entry, erasing)? {
                    return Ok(Purged::NoRoom);
                }
            }
            walk.done = begun_few + count;
            let may_stop = walk.done - begun >= least && walk.done < walk.entries.len();
            if may_stop && self.timeline.monotonic() >= until {
                return Ok(Purged::Partly);
            }
        }
        reach(Point::PurgeBehindWalk);
        Ok(Purged::Whole)
    }

    /// Asks for the memory that looking for these entries will look at.
    fn prefetch_entries(&self, few: &[Entry]) {
        for entry in few {
            let Way { shard, route } = self.way_to_change(entry.key_hash);
            shard.buckets().prefetch_filter(&route);
        }
    }

    /// How many records of the segment would be copied if it were emptied, about, of how many.
    pub(super) fn count_current(&self, segment: &SealedSegment, walk: &mut Walk) -> (usize, usize) {
        let now = self.timeline.now();
        let mut current = 0;
        while let Some(few) = self.next_few(walk) {
            self.prefetch_entries(few);
            let (shard, hold) = self.hold(few);
            let is_wanted = |entry: &&Entry| {
                let stands = now < entry.expires && entry.expires < Timestamp::MAX;
                // Out of a segment of claims it is copied once.
                (entry.kind == Kind::Forget && stands && !segment.is_claims)
                    || self.current(segment, entry, &shard).is_some()
            };
            current += few.iter().filter(is_wanted).count();
            drop(shard);
            hold.end(self);
            walk.done += few.len();
        }
        (current, walk.entries.len())
    }

    /// The next entries that share a shard.
    fn next_few<'w>(&self, walk: &'w Walk) -> Option<&'w [Entry]> {
        let rest = &walk.entries[walk.done..];
        let shard = self.shard_of(rest.first()?.key_hash);
        let few = rest.iter().take(HOLD_SLOTS_MAX);
        let count = few.take_while(|entry| self.shard_of(entry.key_hash) == shard).count();
        Some(&rest[..count])
    }

    /// Removes completions that are over; gives the entries of which the records have to be read, and
    /// which of these few each is.
    fn remove_over(&self, segment: &SealedSegment, few: &[Entry]) -> Vec<(usize, Entry)> {
        let now = self.timeline.now();
        let mut wanted = Vec::new();
        // Neighbours are mostly of one namespace.
        let mut purged: Vec<(NamespaceId, u64)> = Vec::new();
        let (mut shard, hold) = self.hold(few);
        for (at, entry) in few.iter().enumerate() {
            let current = self.current(segment, entry, &shard);
            match (entry.kind, current) {
                // A completion among claims, which exits without room of their own leave there: its
                // claim may be in a segment that goes later.
                (Kind::Complete, _) if segment.is_claims && segment.is_found => {
                    wanted.push((at, *entry));
                }
                // An index rounds up.
                (Kind::Complete, Some(position)) if entry.expires <= now => {
                    self.account_gone(&shard, entry, self.location(segment, entry));
                    shard.table.remove(position);
                    match purged.last_mut() {
                        Some((namespace, count)) if *namespace == entry.namespace => *count += 1,
                        _ => purged.push((entry.namespace, 1)),
                    }
                }
                (_, Some(_)) => wanted.push((at, *entry)),
                (Kind::Forget, None) if entry.expires > now => wanted.push((at, *entry)),
                (Kind::Release, None) if segment.is_found && entry.expires > now => {
                    wanted.push((at, *entry));
                }
                (_, None) => {}
            }
        }
        drop(shard);
        hold.end(self);
        for (namespace, count) in purged {
            self.purge_counts.purged.fetch_add(count, Ordering::Relaxed);
            self.count_of(namespace, Event::Expired, count);
        }
        wanted
    }

    /// Removes or copies what one entry stands for. `false`: there is no room.
    fn settle_one(
        &self,
        segment: &SealedSegment,
        entry: &Entry,
        erasing: Option<&Erasing>,
    ) -> Result<bool, StoreError> {
        let pin = Pin::new();
        let now = self.timeline.now();
        let location = self.location(segment, entry);
        let old = match self.wal.segments.record(location, &pin) {
            // Whatever it was: a claim that the clock has forgotten need not be read.
            Err(StoreError::Corrupt { .. })
                if entry.expires <= now && entry.kind != Kind::Complete =>
            {
                self.remove_one(segment, entry, 0);
                return Ok(true);
            }
            old => old?,
        };
        if let Some(class) = outlives(old, segment, now)
            && !self.drops_forget(old, erasing)
            && self.wal.append_copy(&Draft::new(&old.read()), class)?.is_none()
        {
            return Ok(false);
        }
        let (class, record) = match self.fate(old, now) {
            Fate::Over { held } => {
                self.remove_one(segment, entry, held);
                return Ok(true);
            }
            Fate::Kept(class) if old.kind() == Kind::Complete => {
                // The original is durable: nobody has to wait for the copy to be.
                (class, Record { flags: old.flags().with_gate(false), ..old.read() })
            }
            Fate::Kept(class) => (class, old.read()),
            Fate::Bodyless(class) => (class, bodyless(old)),
        };
        let draft = Draft::new(&record);
        let (mut shard, hold) = self.hold(std::slice::from_ref(entry));
        let is_copied = match self.current(segment, entry, &shard) {
            None => true,
            Some(position) => match self.wal.append_copy(&draft, class)? {
                None => false,
                Some(location) => {
                    self.account(&shard, Some(old), Some(&draft));
                    shard.table.replace(position, location, old.kind() == Kind::Complete);
                    self.purge_counts.copied.fetch_add(1, Ordering::Relaxed);
                    reach(Point::CopyBehindInsert);
                    true
                }
            },
        };
        drop(shard);
        hold.end(self);
        Ok(is_copied)
    }

    /// Writes a forget for a record that was superseded, under its own token: what said so is lost, or
    /// goes before it does. It lasts as long as the record would (R5). `Ok(false)`: there is no room.
    pub(super) fn forget_again(&self, location: Location) -> Result<bool, StoreError> {
        let pin = Pin::new();
        let old = self.wal.segments.record(location, &pin)?;
        // No actor, and the reason.
        let body = b"\0its forget was lost";
        let record = Record {
            kind: Kind::Forget,
            flags: old.flags().rules_only(),
            body_len: body.len() as u32,
            body_crc: crc32(body),
            ext: Ext { first_token: Some(old.first_token()), ..Ext::default() },
            more: &[],
            body,
            ..old.read()
        };
        // Among claims it goes after all that were found (R3), and is not kept for ever.
        let class = match old.expires() {
            Timestamp::MAX => Class::Claims,
            expires => Class::geometric(expires.since(self.timeline.now())),
        };
        Ok(self.wal.append_copy(&Draft::new(&record), class)?.is_some())
    }

    /// Removes an entry, if it still points to the record.
    fn remove_one(&self, segment: &SealedSegment, entry: &Entry, held: u64) {
        let (mut shard, hold) = self.hold(std::slice::from_ref(entry));
        let position = self.current(segment, entry, &shard);
        if let Some(position) = position {
            self.account_gone(&shard, entry, self.location(segment, entry));
            shard.table.remove(position);
        }
        drop(shard);
        hold.end(self);
        if position.is_some() {
            self.wal.release_room(held);
            self.purge_counts.purged.fetch_add(1, Ordering::Relaxed);
            let event = match entry.kind {
                Kind::Claim | Kind::Renew => Event::ExpiredUnfinished,
                Kind::Complete => Event::Expired,
                // It was ended before, and stayed for a gap.
                Kind::Park | Kind::Release | Kind::Forget => return,
            };
            self.count_of(entry.namespace, event, 1);
        }
    }

    fn fate(&self, record: RecordRef<'_>, now: Timestamp) -> Fate {
        match record.kind() {
            Kind::Claim | Kind::Renew | Kind::Park => {
                match Standing::of(record, now, self.open_epoch) {
                    Standing::Absent => Fate::Over { held: held_bytes(record) },
                    _ => Fate::Kept(Class::Claims),
                }
            }
            Kind::Complete if now < record.read().due() => {
                Fate::Kept(Class::geometric(record.read().due().since(now)))
            }
            Kind::Complete if now < record.expires() => {
                Fate::Bodyless(Class::geometric(record.expires().since(now)))
            }
            Kind::Complete | Kind::Release | Kind::Forget => Fate::Over { held: 0 },
        }
    }

    /// Where the record of an entry lies.
    pub(super) fn location(&self, segment: &SealedSegment, entry: &Entry) -> Location {
        Location::new(segment.id, entry.offset, self.wal.segments.segment_bytes())
    }

    /// Where the table points to the very record of this entry, if it does.
    pub(super) fn current(
        &self,
        segment: &SealedSegment,
        entry: &Entry,
        shard: &ShardGuard<'_>,
    ) -> Option<Position> {
        let location = self.location(segment, entry);
        let is_it = |slot: Slot| Ok::<_, std::convert::Infallible>(slot.location() == location);
        let Ok(found) = shard.table.find(shard.table.route(entry.key_hash), is_it);
        found.map(|(position, _)| position)
    }

    /// Locks the shard of these entries, which share it. A store that is closed meanwhile is not
    /// harmed: what was copied is found there twice.
    fn hold(&self, few: &[Entry]) -> (ShardGuard<'_>, Hold) {
        let index = few.first().map_or(0, |entry| self.shard_of(entry.key_hash));
        let guard = self.shards[index].lock(&self.wal);
        (guard, Hold { slots: few.len() as u64, since: self.timeline.monotonic() })
    }

    /// Whether rounds make anything durable here.
    pub(crate) fn has_rounds(&self) -> bool {
        self.mode != Mode::Memory
    }
}

/// Where a record belongs that no entry points to, and that something weaker may stand against which
/// is still on disk when this one is gone.
fn outlives(old: RecordRef<'_>, segment: &SealedSegment, now: Timestamp) -> Option<Class> {
    match old.kind() {
        // Among completions it goes when all claims of its time are gone (R4).
        Kind::Complete if segment.is_claims && segment.is_found => {
            Some(Class::geometric(old.expires().since(now)))
        }
        _ if old.expires() <= now => None,
        // What it forgot goes by then at the latest (R5).
        Kind::Forget if old.expires() < Timestamp::MAX => {
            Some(Class::geometric(old.expires().since(now)))
        }
        // Claims go in order (R3), but for those that recovery found: until all of them are gone,
        // what ended them stays in the stream behind them.
        Kind::Forget | Kind::Release if segment.is_found => Some(Class::Claims),
        _ => None,
    }
}

/// How long a shard's lock was held for, and for how many slots.
struct Hold {
    slots: u64,
    since: Duration,
}

impl Hold {
    fn end(self, engine: &Engine) {
        let held = engine.timeline.monotonic().saturating_sub(self.since);
        let counts = &engine.purge_counts;
        counts.hold_slots_max.fetch_max(self.slots, Ordering::Relaxed);
        // Less than centuries.
        counts.hold_ns_max.fetch_max(held.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// A completion without the body, whose replay window is over.
pub(super) fn bodyless<'p>(old: RecordRef<'p>) -> Record<'p> {
    // A body that is damaged is nobody's any more.
    let body_digest = old.check_body().is_ok().then(|| digest_128(old.body()));
    Record {
        flags: old.flags().with_body(BodyState::ReplayOver).with_gate(false),
        body_crc: 0,
        ext: Ext { body_digest, ..old.ext() },
        body: &[],
        ..old.read()
    }
}
