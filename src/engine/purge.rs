//! Emptying a segment whose time has come: entries that are over are removed, what is still wanted
//! is copied into an active segment.
//!
//! The walk goes over the records of the segment, not over keys: each is asked for by its location,
//! so what was superseded costs one look at a bucket, and nothing is searched. A shard's lock is
//! held for at most [`HOLD_SLOTS_MAX`] slots at a time; what reads or writes records is prepared
//! outside of it.
//!
//! Whether a record is still the current one of its key is decided under the lock of its shard, and
//! its copy takes its place in the same hold (R6). A copy made twice, because a walk was cut short,
//! is the same record twice.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use super::state::{Standing, held_bytes};
use super::{Engine, shard::ShardGuard};
use crate::error::StoreError;
use crate::format::flags::BodyState;
use crate::format::record::{Draft, Kind, Record};
use crate::hash::digest_128;
use crate::sys::pin::Pin;
use crate::sys::point::{Point, reach};
use crate::table::{Position, Slot};
use crate::types::{Location, Timestamp};
use crate::wal::class::Class;
use crate::wal::stream::SealedSegment;

/// Slots that are looked at while a shard's lock is held.
const HOLD_SLOTS_MAX: usize = 64;
/// Records that are read before the shards are asked about them.
const BATCH: usize = 1024;

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

/// A record of the segment, and what becomes of it if it is the current one of its key.
struct Candidate<'p> {
    record: Record<'p>,
    location: Location,
    shard: usize,
    fate: Fate,
}

#[derive(Clone, Copy)]
enum Fate {
    /// It says nothing any more; so much room was reserved for it.
    Over { held: u64 },
    /// It is copied as it is.
    Kept(Class),
    /// It is copied without its body, whose time is over.
    Bodyless(Class),
    /// It is copied, though no entry points to it: what it forgot may still be on disk (R5).
    Forgets(Class),
}

impl Engine {
    /// Empties a sealed segment, from the record at `from` on, which moves along. `Ok(false)`: there
    /// was no room for a copy; go on when there is.
    pub(super) fn purge(
        &self,
        segment: &SealedSegment,
        from: &mut u32,
    ) -> Result<bool, StoreError> {
        while *from < segment.end {
            let pin = Pin::new();
            let now = self.timeline.now();
            let (mut batch, end) = self.candidates(segment, *from..segment.end, now, &pin)?;
            // Each shard is locked once for many.
            batch.sort_by_key(|candidate| candidate.shard);
            for run in batch.chunk_by(|a, b| a.shard == b.shard) {
                for few in run.chunks(HOLD_SLOTS_MAX) {
                    let wanted = self.remove_over(few)?;
                    for candidate in wanted {
                        if !self.copy(candidate)? {
                            return Ok(false);
                        }
                    }
                }
            }
            *from = end;
        }
        reach(Point::PurgeBehindWalk);
        Ok(true)
    }

    /// How many records of the segment are the current ones of their keys, and how many there are.
    pub(super) fn count_current(&self, segment: &SealedSegment) -> Result<(u64, u64), StoreError> {
        let (mut current, mut all, mut from) = (0, 0, crate::format::segment::DATA_START);
        while from < segment.end {
            let pin = Pin::new();
            let now = self.timeline.now();
            let (mut batch, end) = self.candidates(segment, from..segment.end, now, &pin)?;
            batch.sort_by_key(|candidate| candidate.shard);
            all += batch.len() as u64;
            for run in batch.chunk_by(|a, b| a.shard == b.shard) {
                for few in run.chunks(HOLD_SLOTS_MAX) {
                    let (shard, hold) = self.hold(few);
                    for candidate in few {
                        let is_over = matches!(candidate.fate, Fate::Over { .. });
                        current += u64::from(!is_over && candidate.find(&shard).is_some());
                    }
                    drop(shard);
                    hold.end(self);
                }
            }
            from = end;
        }
        Ok((current, all))
    }

    /// Reads records, and judges what becomes of each; and where the next one starts.
    fn candidates<'p>(
        &'p self,
        segment: &SealedSegment,
        range: Range<u32>,
        now: Timestamp,
        pin: &'p Pin,
    ) -> Result<(Vec<Candidate<'p>>, u32), StoreError> {
        let mut batch = Vec::with_capacity(BATCH);
        let mut at = range.start;
        let Some(known) = self.wal.segments.get(segment.id, pin) else {
            debug_assert!(false, "a segment is purged before it is recycled");
            return Ok((batch, range.end));
        };
        let segment_bytes = self.wal.segments.segment_bytes();
        while at < range.end && batch.len() < BATCH {
            let (record, next) = known.step(at)?;
            if let Some(record) = record {
                let location = Location::new(segment.id, at, segment_bytes);
                let shard = self.shard_of(record.key_hash);
                let fate = self.fate(&record, now);
                batch.push(Candidate { record, location, shard, fate });
            }
            at = next;
        }
        Ok((batch, at))
    }

    fn fate(&self, record: &Record<'_>, now: Timestamp) -> Fate {
        let left = || Class::geometric(record.expires.since(now));
        match record.kind {
            Kind::Claim | Kind::Renew | Kind::Park => {
                match Standing::of(record, now, self.open_epoch) {
                    Standing::Absent => Fate::Over { held: held_bytes(record) },
                    _ => Fate::Kept(Class::Claims),
                }
            }
            Kind::Release => Fate::Over { held: 0 },
            Kind::Complete if record.expires <= now => Fate::Over { held: 0 },
            Kind::Complete if record.due() <= now => Fate::Bodyless(left()),
            Kind::Complete => Fate::Kept(Class::geometric(record.due().since(now))),
            // What a forgotten claim left behind goes before this does, whatever is done (R3); and
            // no completion is kept for ever.
            Kind::Forget if now < record.expires && record.expires < Timestamp::MAX => {
                Fate::Forgets(left())
            }
            Kind::Forget => Fate::Over { held: 0 },
        }
    }

    /// Removes the entries of records that are over; gives those that are to be copied.
    fn remove_over<'c, 'p>(
        &self,
        few: &'c [Candidate<'p>],
    ) -> Result<Vec<&'c Candidate<'p>>, StoreError> {
        let (mut wanted, mut freed, mut purged) = (Vec::new(), 0, 0);
        let (mut shard, hold) = self.hold(few);
        for candidate in few {
            match (candidate.fate, candidate.find(&shard)) {
                (Fate::Over { held }, Some(position)) => {
                    shard.table.remove(position);
                    freed += held;
                    purged += 1;
                }
                (Fate::Kept(_) | Fate::Bodyless(_), Some(_)) | (Fate::Forgets(_), None) => {
                    wanted.push(candidate);
                }
                // Superseded; or a forget that an entry points to, which a gap once asked for.
                (Fate::Over { .. } | Fate::Kept(_) | Fate::Bodyless(_), None) => {}
                (Fate::Forgets(_), Some(position)) => {
                    shard.table.remove(position);
                    wanted.push(candidate);
                }
            }
        }
        drop(shard);
        hold.end(self);
        self.wal.release_room(freed);
        self.purge_counts.purged.fetch_add(purged, Ordering::Relaxed);
        Ok(wanted)
    }

    /// Copies a record, if it is still wanted. `false`: there is no room.
    fn copy(&self, candidate: &Candidate<'_>) -> Result<bool, StoreError> {
        let old = &candidate.record;
        let (class, record) = match candidate.fate {
            Fate::Over { .. } => return Ok(true),
            Fate::Kept(class) if old.kind == Kind::Complete => {
                // The original is durable: nobody has to wait for the copy to be.
                (class, Record { flags: old.flags.with_gate(false), ..*old })
            }
            Fate::Kept(class) | Fate::Forgets(class) => (class, *old),
            Fate::Bodyless(class) => (class, bodyless(old)),
        };
        let draft = Draft::new(&record);
        if matches!(candidate.fate, Fate::Forgets(_)) {
            return Ok(self.wal.append_copy(&draft, class)?.is_some());
        }
        let (mut shard, hold) = self.hold(std::slice::from_ref(candidate));
        let is_copied = match candidate.find(&shard) {
            None => true,
            Some(position) => match self.wal.append_copy(&draft, class)? {
                None => false,
                Some(location) => {
                    shard.table.replace(position, location, old.kind == Kind::Complete);
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

    /// Locks the shard of these candidates, which share it. A store that is closed meanwhile is
    /// not harmed: what was copied is found there twice.
    fn hold(&self, few: &[Candidate<'_>]) -> (ShardGuard<'_>, Hold) {
        let index = few.first().map_or(0, |candidate| candidate.shard);
        let guard = self.shards[index].lock(&self.wal);
        (guard, Hold { slots: few.len() as u64, since: self.timeline.monotonic() })
    }
}

impl Candidate<'_> {
    /// Where the table points to this very record, if it does.
    fn find(&self, shard: &ShardGuard<'_>) -> Option<Position> {
        let is_it =
            |slot: Slot| Ok::<_, std::convert::Infallible>(slot.location() == self.location);
        let Ok(found) = shard.table.find(self.record.key_hash, is_it);
        found.map(|(position, _)| position)
    }
}

/// How long a shard's lock was held for, and for how many slots.
struct Hold {
    slots: u64,
    since: std::time::Duration,
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
fn bodyless<'p>(old: &Record<'p>) -> Record<'p> {
    // A body that is damaged is nobody's any more.
    let body_digest = old.check_body().is_ok().then(|| digest_128(old.body));
    Record {
        flags: old.flags.with_body(BodyState::ReplayOver).with_gate(false),
        body_crc: 0,
        ext: crate::format::ext::Ext { body_digest, ..old.ext },
        body: &[],
        ..*old
    }
}
