//! When sealed segments have had their time, and what becomes of them then.
//!
//! ```text
//! completions: waiting in the wheel -> due -> (claims older than it are gone) --+
//! claims:      in the order in which they were filled -> nearly all over -------+-> leaving
//!
//! leaving: emptied -> round A -> round B -> out of use -> next header -> round C -> prepared
//! ```
//!
//! Round A makes durable what supersedes the records, and the time that ended them; round B puts it
//! below a durable mark; round C makes the header durable before a record of its generation is
//! written (R2). Headers of claims are written one a round, in the order in which the segments were
//! filled (R3): of a claim and its release the claim goes first. A segment of completions leaves
//! after all claims that were there when it was sealed (R4).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Engine;
use super::erasing::Erasing;
use super::purge::{Purged, Walk};
use crate::error::StoreError;
use crate::sys::pin::Grace;
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::Ordering;
use crate::types::{Location, Timestamp};
use crate::wal::Passage;
use crate::wal::data_file::DataFile;
use crate::wal::rounds::Ticket;
use crate::wal::segments::Segment;
use crate::wal::stream::SealedSegment;
use crate::wheel::Wheel;

/// How often a segment of claims is looked at again that had too many unfinished ones.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A segment of claims is emptied when no more than one in so many is unfinished.
const CLAIMS_WORTH_KEEPING: usize = 8;
/// One that holds little is emptied when so many wait, itself among them; any when so many do.
const CLAIMS_BEHIND_FEW: usize = 4;
const CLAIMS_BEHIND_MANY: usize = 16;
/// Claims that leave at the same time: the walks and the rounds before the header are shared.
const CLAIMS_AT_ONCE: usize = 8;
/// So many segments of completions are emptied before the rounds that the first of them waits for: with
/// more, haste would empty all there are before it could see that there is room again.
const AWAITED_MAX: usize = 32;
/// When there is no room for a copy, or a record cannot be read, it is tried again so much later.
const RETRY: Duration = Duration::from_secs(1);

/// Where there is room, rounds are made so often for what is leaving: who claims shares the disk, and its
/// interrupts.
const ROUND_EVERY: Duration = Duration::from_millis(200);

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// Segments of completions that have time, by number.
    pub(super) kept: BTreeMap<u64, SealedSegment>,
    next_number: u64,
    /// Their numbers, by the second at which they are due. Those of segments that went before their
    /// time are still there.
    wheel: Wheel<u64>,
    /// Due, and waiting for claims that are older.
    pub(super) due: Vec<SealedSegment>,
    /// Segments of claims, in the order in which they became active.
    pub(super) claims: VecDeque<SealedSegment>,
    /// Bytes that may be spent on claims which are copied though most of their segment is current:
    /// what was filled since, up to what there is. A copy costs twice: it comes back.
    copy_credit: u64,
    pub(super) leaving: VecDeque<Leaving>,
    /// Records whose forget was lost, or that outlive what they lost against, and for which none could be
    /// written for want of room, with the end of their time. Until it is, nothing goes: it may be what
    /// they lost against (R3, R5).
    pub(super) owed: Vec<(Location, Timestamp)>,
    /// How many segments of claims were destroyed, durably.
    claims_gone: u64,
    /// When segments were last looked at that may be worth compacting, and the next one's number.
    compacted_at: Option<Duration>,
    compact_next: u64,
    /// When the first segment of claims was last found to be worth keeping, by the monotonic clock.
    looked_at: Option<Duration>,
    /// Nothing is emptied before: it was enough for a while. By the monotonic clock.
    rests_until: Option<Duration>,
    /// When a round was last made for what is leaving.
    round_at: Option<Duration>,
    /// Since when a data file could be spared, by the monotonic clock.
    pub(super) spared_since: Option<Duration>,
    /// A data file that is about to be given up, when the round has ended.
    pub(super) surplus: Option<(Arc<DataFile>, Ticket)>,
    /// What somebody has erased.
    pub(super) erasing: Option<Erasing>,
}

/// How much of a core emptying segments may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Pace {
    /// As much as there is.
    Full,
    /// An eighth of it, while there is room: who claims shares caches and memory with it.
    Gentle,
}

impl Pace {
    /// How long nothing is emptied after it was done for so long.
    fn pause(self, worked: Duration) -> Duration {
        match self {
            Self::Full => Duration::ZERO,
            Self::Gentle => worked * 7,
        }
    }
}

#[derive(Debug)]
pub(super) struct Leaving {
    pub(super) segment: SealedSegment,
    stage: Stage,
    /// It is not emptied before: something failed. By the monotonic clock.
    retry_at: Option<Duration>,
    /// That something is a record or an index that could not be read.
    is_unreadable: bool,
}

impl Leaving {
    /// Whether its records can still be found.
    pub(super) fn is_found(&self) -> bool {
        !matches!(self.stage, Stage::OutOfUse | Stage::Headed { .. })
    }

    fn new(segment: SealedSegment) -> Self {
        let stage = Stage::Walking(Walking::default());
        Self { segment, stage, retry_at: None, is_unreadable: false }
    }
}

#[derive(Debug)]
enum Stage {
    /// To be emptied.
    Walking(Walking),
    /// Superseded in memory; when the round has ended, on disk.
    Emptied { round: Ticket, readers: Grace },
    /// When the round has ended, a durable mark says so.
    Superseded { round: Ticket },
    /// Nobody finds it any more. When the last reader is gone, it gets its next header.
    OutOfUse,
    /// When the round has ended, the header is durable.
    Headed { segment: Arc<Segment>, round: Ticket },
}

/// How far a segment is emptied.
#[derive(Debug, Default)]
struct Walking {
    /// Its index, if that is under way.
    walk: Option<Walk>,
    /// How many of its entries were done when it was put aside.
    done: usize,
}

impl Expiry {
    /// With what recovery found, claims and completions each in the order in which they were filled.
    pub(crate) fn new(now: Timestamp, found: Vec<SealedSegment>) -> Self {
        let mut expiry = Self {
            kept: BTreeMap::new(),
            next_number: 0,
            wheel: Wheel::new(now.ms() / 1000),
            due: Vec::new(),
            claims: VecDeque::new(),
            copy_credit: 0,
            leaving: VecDeque::new(),
            owed: Vec::new(),
            claims_gone: 0,
            compacted_at: None,
            compact_next: 0,
            looked_at: None,
            rests_until: None,
            round_at: None,
            spared_since: None,
            surplus: None,
            erasing: None,
        };
        expiry.add(found);
        expiry
    }

    /// Forgets that are to be written when there is room, and before anything goes.
    pub(super) fn owe(&mut self, forgets: Vec<(Location, Timestamp)>) {
        self.owed.extend(forgets);
    }

    pub(super) fn add(&mut self, sealed: Vec<SealedSegment>) {
        if sealed.is_empty() {
            return;
        }
        for segment in sealed {
            if segment.is_claims {
                self.copy_credit += segment.bytes();
                // Lanes seal theirs each when they are full.
                let at = self.claims.binary_search_by_key(&segment.order, |it| it.order);
                self.claims.insert(at.unwrap_or_else(|at| at), segment);
            } else {
                // Not before its time has surely come.
                self.wheel.insert(segment.due.ms().div_ceil(1000), self.next_number);
                self.kept.insert(self.next_number, segment);
                self.next_number += 1;
            }
        }
        let claims: u64 = self.claims.iter().map(SealedSegment::bytes).sum();
        self.copy_credit = self.copy_credit.min(claims);
    }

    /// Claims of a number below this are asked for: completions wait for them, or many that come later do.
    fn claims_wanted(&self) -> u64 {
        let by_completions = self.due.iter().map(|segment| segment.order).max().unwrap_or(0);
        let many = self.claims.get(CLAIMS_BEHIND_FEW - 1).map_or(0, |segment| segment.order);
        let by_erasing = self.erasing.as_ref().map_or(0, Erasing::claims_before);
        by_completions.max(by_erasing).max(if self.next_claims().is_none() { many } else { 0 })
    }

    /// The segment of claims that leaves next, if it is sealed.
    fn next_claims(&self) -> Option<&SealedSegment> {
        let next = self.claims_gone + self.claims_leaving() as u64;
        self.claims.front().filter(|first| first.order == next)
    }

    /// Lets completions go whose claims are gone.
    fn release_due(&mut self) {
        let gone = self.claims_gone;
        for segment in self.due.extract_if(.., |segment| segment.order <= gone) {
            self.leaving.push_back(Leaving::new(segment));
        }
    }

    /// Whether it is time to look for segments to compact, and none is leaving early already.
    pub(super) fn may_compact(&mut self, now: Duration, every: Duration) -> bool {
        let is_time = self.compacted_at.is_none_or(|at| now.saturating_sub(at) >= every);
        // What cannot be read may be there for long, and what somebody keeps an outcome in.
        let is_quiet = self.leaving.iter().all(|it| {
            it.segment.is_claims || it.is_unreadable || matches!(it.stage, Stage::OutOfUse)
        });
        if is_time && is_quiet {
            self.compacted_at = Some(now);
        }
        is_time && is_quiet
    }

    /// Whether all claims are gone that a segment of completions outlives.
    pub(super) fn may_go(&self, segment: &SealedSegment) -> bool {
        segment.order <= self.claims_gone
    }

    /// Segments of completions that have time, with their numbers.
    pub(super) fn kept(&self) -> impl Iterator<Item = (u64, &SealedSegment)> {
        self.kept.iter().map(|(number, segment)| (*number, segment))
    }

    /// The same, from where the last look ended, once around.
    pub(super) fn kept_in_turn(&self) -> impl Iterator<Item = (u64, &SealedSegment)> {
        let (next, all) = (self.compact_next, &self.kept);
        let turned = all.range(next..).chain(all.range(..next));
        turned.map(|(number, segment)| (*number, segment))
    }

    pub(super) fn kept_by(&self, number: u64) -> Option<&SealedSegment> {
        self.kept.get(&number)
    }

    /// The next look begins behind this number.
    pub(super) fn go_on_behind(&mut self, number: u64) {
        self.compact_next = number + 1;
    }

    /// Lets these go before they are due.
    pub(super) fn release_early(&mut self, numbers: &[u64]) {
        for segment in numbers.iter().filter_map(|number| self.kept.remove(number)) {
            self.leaving.push_back(Leaving::new(segment));
        }
    }

    /// When what is leaving is looked at again: when emptying goes on, or else after a while. What is
    /// over already says nothing: something else is waited for.
    fn retry_in(&self, now: Duration) -> Duration {
        let left = self.rests_until.map_or(Duration::ZERO, |at| at.saturating_sub(now));
        if left.is_zero() { RETRY } else { left.min(RETRY) }
    }

    /// How long no round should be made for what is leaving, if there is room.
    fn rest_from_rounds(&self, now: Duration) -> Duration {
        self.round_at
            .map_or(Duration::ZERO, |at| ROUND_EVERY.saturating_sub(now.saturating_sub(at)))
    }

    /// Segments of completions that were emptied and wait for rounds.
    fn completions_awaited(&self) -> usize {
        // One that is out of use waits for whoever keeps an outcome in it, and nobody for it.
        let is_awaited = |it: &&Leaving| {
            let is_free = !matches!(it.stage, Stage::Walking(_) | Stage::OutOfUse);
            is_free && !it.segment.is_claims
        };
        self.leaving.iter().filter(is_awaited).count()
    }

    fn claims_leaving(&self) -> usize {
        self.leaving.iter().filter(|leaving| leaving.segment.is_claims).count()
    }
}

impl Engine {
    /// Seals, empties and recycles what it is time for, and begins nothing more from `until` on, by
    /// the monotonic clock. Gives the time until there may be more to do; `None`: not before
    /// something is appended.
    pub(super) fn expire(
        &self,
        expiry: &mut Expiry,
        until: Duration,
        pace: Pace,
    ) -> Result<Option<Duration>, StoreError> {
        let begun = self.timeline.monotonic();
        let is_in_memory = !self.has_rounds();
        loop {
            // Not held across a round: rounds end with wakers, which may do anything.
            let passage = self.wal.pass()?;
            let seal_in =
                self.wal.seal_aged(&passage, self.timeline.monotonic(), expiry.claims_wanted())?;
            if is_in_memory {
                self.wal.skip_rounds();
            }
            expiry.add(self.wal.take_sealed());
            let now = self.timeline.now();
            self.write_owed(expiry, now)?;
            // While a gap lasts, it counts what the last record of a key is: none goes.
            let is_looking = expiry.erasing.as_ref().is_some_and(Erasing::is_looking);
            let is_halted = is_looking || !expiry.owed.is_empty() || self.gaps.last(now);
            if !is_halted {
                let Expiry { wheel, kept, due, .. } = expiry;
                wheel.advance(now.ms() / 1000, |number| due.extend(kept.remove(&number)));
                expiry.release_due();
                self.release_claims(expiry, now, until);
                self.release_wasteful(expiry, now);
            }
            let (has_moved, round) = if is_looking {
                (false, None)
            } else {
                self.move_on(expiry, &passage, is_in_memory, until, pace)?
            };
            drop(passage);
            let now = self.timeline.monotonic();
            if now >= until {
                // Waiting for rounds is no work.
                let pause = pace.pause(until.saturating_sub(begun));
                let has_rested = expiry.rests_until.is_none_or(|at| at <= begun);
                if has_rested && !pause.is_zero() && self.wal.supply().is_ample {
                    expiry.rests_until = Some(now.saturating_add(pause));
                }
                return Ok(Some(self.rest_from_emptying(expiry, now)));
            }
            if has_moved {
                continue;
            }
            let shrinking = self.give_up_surplus(expiry, is_in_memory)?;
            let round = round.max(shrinking);
            let rests = round.is_some() && pace == Pace::Gentle && self.wal.supply().is_ample;
            let rest = rests.then(|| expiry.rest_from_rounds(now)).filter(|rest| !rest.is_zero());
            if let Some(round) = round.filter(|_| rest.is_none()) {
                expiry.round_at = Some(now);
                let ended = self.wal.rounds.wait(round, &self.wal.poison, &self.leader());
                ended.map_err(|cause| StoreError::Poisoned { cause })?;
                if !round.is_over(self.wal.rounds.completed()) {
                    // None begins any more.
                    return Err(StoreError::Closed);
                }
                continue;
            }
            let now = self.timeline.now();
            let next_due = expiry.wheel.next().map(|tick| {
                let halted = if is_halted { LOOK_AGAIN } else { Duration::ZERO };
                Timestamp::from_ms(tick.saturating_mul(1000)).since(now).max(halted)
            });
            let look = (!expiry.claims.is_empty()).then_some(LOOK_AGAIN);
            let monotonic = self.timeline.monotonic();
            let waits = !expiry.leaving.is_empty() || !expiry.owed.is_empty();
            let retry = waits.then(|| expiry.retry_in(monotonic));
            let spared = expiry.spared_since.map(|at| {
                super::compaction::SPARED_FOR.saturating_sub(monotonic.saturating_sub(at))
            });
            return Ok([seal_in, next_due, look, retry, spared, rest].into_iter().flatten().min());
        }
    }

    /// How long nothing is to be emptied yet, if there still is room.
    fn rest_from_emptying(&self, expiry: &Expiry, now: Duration) -> Duration {
        let left = expiry.rests_until.map_or(Duration::ZERO, |at| at.saturating_sub(now));
        if left.is_zero() || !self.wal.supply().is_ample { Duration::ZERO } else { left }
    }

    /// Writes the forgets that are owed, as far as there is room; those of completions that have had
    /// their time are needless.
    fn write_owed(&self, expiry: &mut Expiry, now: Timestamp) -> Result<(), StoreError> {
        while let Some((location, expires)) = expiry.owed.last() {
            match if *expires <= now { Ok(true) } else { self.forget_again(*location) } {
                Ok(true) => drop(expiry.owed.pop()),
                Ok(false) | Err(StoreError::Corrupt { .. } | StoreError::Io(_)) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Lets segments of claims go, the oldest first, of which nearly everything is over or which
    /// completions wait for.
    fn release_claims(&self, expiry: &mut Expiry, now: Timestamp, until: Duration) {
        let wanted = expiry.claims_wanted();
        let segment_bytes = self.wal.segments.segment_bytes();
        let mut has_counted = false;
        while let Some(first) = expiry.next_claims() {
            if expiry.claims_leaving() >= CLAIMS_AT_ONCE {
                break;
            }
            if first.order >= wanted && first.due > now {
                let monotonic = self.timeline.monotonic();
                let is_early =
                    expiry.looked_at.is_some_and(|at| monotonic.saturating_sub(at) < LOOK_AGAIN);
                if is_early || has_counted && monotonic >= until {
                    break;
                }
                has_counted = true;
                // What cannot be read is looked at again, too.
                let counted = self.walk(first).map(|mut walk| self.count_current(first, &mut walk));
                let waiting = expiry.claims.len();
                let price = counted.ok().and_then(|(current, all)| {
                    let bytes = first.bytes() * current as u64 / all.max(1) as u64;
                    let is_little = bytes * CLAIMS_WORTH_KEEPING as u64 <= u64::from(segment_bytes);
                    let is_cheap = current * CLAIMS_WORTH_KEEPING <= all
                        || (is_little && waiting >= CLAIMS_BEHIND_FEW);
                    let price = if is_cheap { 0 } else { 2 * bytes };
                    let is_wanted = is_cheap || waiting >= CLAIMS_BEHIND_MANY;
                    (is_wanted && price <= expiry.copy_credit).then_some(price)
                });
                if let Some(price) = price {
                    expiry.copy_credit -= price;
                    expiry.looked_at = None;
                } else {
                    expiry.looked_at = Some(monotonic);
                    break;
                }
            }
            let Some(segment) = expiry.claims.pop_front() else { break };
            expiry.leaving.push_back(Leaving::new(segment));
        }
    }

    /// Empties a segment, from where it was left.
    fn empty(
        &self,
        segment: &SealedSegment,
        walking: &mut Walking,
        until: Duration,
        pace: Pace,
        erasing: Option<&Erasing>,
    ) -> Result<Purged, StoreError> {
        let Walking { walk, done } = walking;
        let walk = match walk {
            Some(walk) => walk,
            None => walk.insert(self.walk(segment)?.from(*done)),
        };
        let purged = self.purge(segment, walk, until, pace, erasing);
        *done = walk.done();
        purged
    }

    /// Moves each leaving segment on as far as it can go. Whether any moved, and the round that the
    /// others wait for.
    fn move_on(
        &self,
        expiry: &mut Expiry,
        passage: &Passage<'_>,
        is_in_memory: bool,
        until: Duration,
        pace: Pace,
    ) -> Result<(bool, Option<Ticket>), StoreError> {
        let monotonic = self.timeline.monotonic();
        let is_resting =
            expiry.erasing.is_none() && !self.rest_from_emptying(expiry, monotonic).is_zero();
        let completed = self.wal.rounds.completed();
        let is_over = |round: Ticket| is_in_memory || round.is_over(completed);
        let (mut has_moved, mut has_walked, mut wanted) = (false, false, None::<Ticket>);
        let (mut awaited, mut has_helped) = (expiry.completions_awaited(), false);
        for mut leaving in std::mem::take(&mut expiry.leaving) {
            let is_next = !leaving.segment.is_claims || leaving.segment.order == expiry.claims_gone;
            let next = match leaving.stage {
                Stage::Walking(_) if leaving.retry_at.is_some_and(|at| monotonic < at) => None,
                Stage::Walking(_) if !leaving.segment.is_claims && awaited >= AWAITED_MAX => None,
                // One at least, and no more when it is time for something else.
                Stage::Walking(ref mut walking)
                    if !is_resting && (!has_walked || self.timeline.monotonic() < until) =>
                {
                    has_walked = true;
                    let erasing = expiry.erasing.as_ref();
                    let emptied = self.empty(&leaving.segment, walking, until, pace, erasing);
                    leaving.is_unreadable = emptied.is_err();
                    match emptied {
                        Ok(Purged::Whole) => {
                            // R9: what ended them must be known to have come, whatever clock the
                            // next open has.
                            self.wal.want_mark();
                            awaited += usize::from(!leaving.segment.is_claims);
                            let round = self.wal.rounds.ticket();
                            Some(Stage::Emptied { round, readers: Grace::begin() })
                        }
                        // It is time for something else, so no other is begun before: what each has read
                        // of its index is in memory.
                        Ok(Purged::Partly) => None,
                        // Whatever it is, it must not keep the others: it is tried again.
                        Ok(Purged::NoRoom)
                        | Err(StoreError::Corrupt { .. } | StoreError::Io(_)) => {
                            walking.walk = None;
                            leaving.retry_at = Some(monotonic + RETRY);
                            None
                        }
                        Err(error) => return Err(error),
                    }
                }
                // One wait a look: somebody may read for long, and others wait for this thread.
                Stage::Emptied { round, ref readers }
                    if is_over(round)
                        && (readers.is_over()
                            || !std::mem::replace(&mut has_helped, true) && readers.wait()) =>
                {
                    Some(Stage::Superseded { round: self.wal.rounds.ticket() })
                }
                Stage::Superseded { round } if is_over(round) => {
                    self.wal.retire(leaving.segment.id);
                    Some(Stage::OutOfUse)
                }
                Stage::OutOfUse if is_next => {
                    // Helps the last reader's grace to its end: once, however many are kept by somebody.
                    if !std::mem::replace(&mut has_helped, true) {
                        Grace::begin().wait();
                    }
                    let now = self.timeline.now();
                    let headed = self.wal.write_next_header(passage, &leaving.segment, now)?;
                    headed.map(|segment| Stage::Headed { segment, round: self.wal.rounds.ticket() })
                }
                Stage::Headed { ref segment, round } if is_over(round) => {
                    reach(Point::RecycleBehindSync);
                    self.wal.add_prepared(Arc::clone(segment));
                    self.purge_counts.recycled.fetch_add(1, Ordering::Relaxed);
                    expiry.claims_gone += u64::from(leaving.segment.is_claims);
                    if let Some(erasing) = &mut expiry.erasing {
                        erasing.note_gone(leaving.segment.id);
                    }
                    has_moved = true;
                    continue;
                }
                Stage::Emptied { round, .. }
                | Stage::Superseded { round }
                | Stage::Headed { round, .. } => {
                    wanted = wanted.max((!is_over(round)).then_some(round));
                    None
                }
                Stage::Walking(_) | Stage::OutOfUse => None,
            };
            if let Some(stage) = next {
                has_moved = true;
                leaving.stage = stage;
            }
            expiry.leaving.push_back(leaving);
        }
        Ok((has_moved, wanted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_something_else_is_not_looked_at_without_a_pause() {
        let mut expiry = Expiry::new(Timestamp::from_ms(0), Vec::new());
        let now = Duration::from_secs(10);
        assert_eq!(expiry.retry_in(now), RETRY);
        expiry.rests_until = Some(now + RETRY / 4);
        assert_eq!(expiry.retry_in(now), RETRY / 4);
        expiry.rests_until = Some(now - RETRY / 4);
        assert_eq!(expiry.retry_in(now), RETRY);
    }
}
