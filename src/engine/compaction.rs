//! Compaction: segments of completions that waste room leave before they are due.
//!
//! Of two kinds: those of which most was forgotten or taken over, and thin ones, sealed for their age
//! before they were full. They go the way of all segments that leave (`expiry`); what is wanted of
//! them is copied on the way.
//!
//! And data files that hold nothing and are not needed: they are given up.
//!
//! Nothing is counted when an entry changes: a few entries of the index, anywhere in it, are looked
//! up. That is done once a second, for one segment, or some when room is scarce.

use std::time::Duration;

use super::Engine;
use super::expiry::Expiry;
use crate::error::StoreError;
use crate::types::Timestamp;
use crate::wal::rounds::Ticket;
use crate::wal::stream::SealedSegment;

const EVERY: Duration = Duration::from_secs(1);
/// A segment that is due so soon is left alone.
const LIFE_MIN: Duration = Duration::from_secs(60);
/// Entries that are looked up of a segment.
const SAMPLE: u32 = 256;
/// Of a hundred entries, how many are current in a segment that is worth keeping.
const WORTH_KEEPING_PERCENT: usize = 30;
/// Segments that are looked at when room is scarce.
const SEGMENTS_WHEN_LOW: usize = 16;
/// A thin segment holds no more than one part in so many of what it could.
const THIN: u64 = 4;
/// So many thin segments are merged whose times left differ by no more than this factor.
const MERGE_MIN: usize = 4;
const MERGE_MAX: usize = 16;
const MERGE_SPREAD: u32 = 4;

/// A data file is given up when it could have been spared for so long: what expires at once may be
/// filled again soon.
pub(super) const SPARED_FOR: Duration = Duration::from_secs(60);

impl Engine {
    /// Lets segments go that are not worth keeping, when it is time to look.
    pub(super) fn release_wasteful(&self, expiry: &mut Expiry, now: Timestamp) {
        let monotonic = self.timeline.monotonic();
        if !expiry.may_compact(monotonic, EVERY) {
            return;
        }
        let is_candidate =
            |segment: &SealedSegment| segment.due.since(now) > LIFE_MIN && expiry.may_go(segment);
        let segment_bytes = u64::from(self.wal.segments.segment_bytes());
        let thin =
            expiry.kept().filter(|(_, it)| is_candidate(it) && it.bytes() * THIN <= segment_bytes);
        let mut thin: Vec<_> = thin.map(|(number, it)| (it.due.since(now), number)).collect();
        thin.sort_unstable();
        // Of those that are due at about the same time, the most.
        let groups = (0..thin.len()).map(|first| {
            let far = thin[first].0.saturating_mul(MERGE_SPREAD);
            let count =
                thin[first..].iter().take(MERGE_MAX).take_while(|(left, _)| *left <= far).count();
            &thin[first..first + count]
        });
        if let Some(group) = groups.filter(|it| it.len() >= MERGE_MIN).max_by_key(|it| it.len()) {
            let group: Vec<u64> = group.iter().map(|(_, number)| *number).collect();
            expiry.release_early(&group);
            return;
        }
        let count = if self.wal.supply().is_low { SEGMENTS_WHEN_LOW } else { 1 };
        let looked_at: Vec<u64> = expiry
            .kept_in_turn()
            .filter(|(_, segment)| is_candidate(segment))
            .map(|(number, _)| number)
            .take(count)
            .collect();
        let wasteful = looked_at.iter().copied().find(|number| {
            expiry.kept_by(*number).is_some_and(|segment| self.is_wasteful(segment))
        });
        if let Some(last) = wasteful.or(looked_at.last().copied()) {
            expiry.go_on_behind(last);
        }
        expiry.release_early(wasteful.as_slice());
    }

    /// Whether most of a segment's records are nobody's any more, by a sample of them.
    fn is_wasteful(&self, segment: &SealedSegment) -> bool {
        // What cannot be read is kept.
        let Ok(mut walk) = self.sample(segment, SAMPLE) else { return false };
        let (current, all) = self.count_current(segment, &mut walk);
        current * 100 < all * WORTH_KEEPING_PERCENT
    }

    /// Gives up a data file that nobody needs. Gives the round that this waits for.
    pub(super) fn give_up_surplus(
        &self,
        expiry: &mut Expiry,
        is_in_memory: bool,
    ) -> Result<Option<Ticket>, StoreError> {
        if let Some((file, round)) = &expiry.surplus {
            if !is_in_memory && !round.is_over(self.wal.rounds.completed()) {
                return Ok(Some(*round));
            }
            self.wal.remove_file(file)?;
            expiry.surplus = None;
        }
        let now = self.timeline.monotonic();
        if !self.wal.has_free_file() {
            expiry.spared_since = None;
            return Ok(None);
        }
        if now.saturating_sub(*expiry.spared_since.get_or_insert(now)) < SPARED_FOR {
            return Ok(None);
        }
        let taken = self.wal.take_free_file();
        expiry.surplus = taken.map(|file| (file, self.wal.rounds.ticket()));
        Ok(expiry.surplus.as_ref().map(|(_, round)| *round).filter(|_| !is_in_memory))
    }
}
