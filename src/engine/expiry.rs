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

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Engine, Mode};
use crate::error::StoreError;
use crate::format::segment::DATA_START;
use crate::sys::pin::Grace;
use crate::sys::point::{Point, reach};
use crate::types::Timestamp;
use crate::wal::Passage;
use crate::wal::rounds::Ticket;
use crate::wal::segments::Segment;
use crate::wal::stream::SealedSegment;
use crate::wheel::Wheel;

/// How often a segment of claims is looked at again that had too many unfinished ones.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A segment of claims is emptied when no more than one in so many is unfinished.
const CLAIMS_WORTH_KEEPING: u64 = 8;
/// Claims that leave at the same time: the walks and the rounds before the header are shared.
const CLAIMS_AT_ONCE: usize = 8;
/// When there is no room for a copy, or a record cannot be read, it is tried again so much later.
const RETRY: Duration = Duration::from_secs(1);

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Expiry {
    /// Segments of completions, by the second at which they are due.
    wheel: Wheel<SealedSegment>,
    /// Due, and waiting for claims that are older.
    due: Vec<SealedSegment>,
    /// Segments of claims, in the order in which they were filled.
    claims: VecDeque<SealedSegment>,
    leaving: VecDeque<Leaving>,
    /// How many segments of claims were destroyed, durably.
    claims_gone: u64,
    /// When the first segment of claims was last found to be worth keeping, by the monotonic clock.
    looked_at: Option<Duration>,
    /// Nothing is emptied before.
    retry_at: Option<Duration>,
}

#[derive(Debug)]
struct Leaving {
    segment: SealedSegment,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Emptied up to here.
    Walking(u32),
    /// Superseded in memory; when the round has ended, on disk.
    Emptied { round: Ticket, readers: Grace },
    /// When the round has ended, a durable mark says so.
    Superseded { round: Ticket },
    /// Nobody finds it any more. When the last reader is gone, it gets its next header.
    OutOfUse,
    /// When the round has ended, the header is durable.
    Headed { segment: Arc<Segment>, round: Ticket },
}

impl Expiry {
    /// With what recovery found, claims and completions each in the order in which they were filled.
    pub(crate) fn new(now: Timestamp, found: Vec<SealedSegment>) -> Self {
        let mut expiry = Self {
            wheel: Wheel::new(now.ms() / 1000),
            due: Vec::new(),
            claims: VecDeque::new(),
            leaving: VecDeque::new(),
            claims_gone: 0,
            looked_at: None,
            retry_at: None,
        };
        expiry.add(found);
        expiry
    }

    fn add(&mut self, sealed: Vec<SealedSegment>) {
        for segment in sealed {
            if segment.is_claims {
                self.claims.push_back(segment);
            } else {
                // Not before its time has surely come.
                self.wheel.insert(segment.due.ms().div_ceil(1000), segment);
            }
        }
    }

    /// Claims of a number below this are asked for.
    fn claims_wanted(&self) -> u64 {
        self.due.iter().map(|segment| segment.order).max().unwrap_or(0)
    }

    /// Lets completions go whose claims are gone.
    fn release_due(&mut self) {
        let gone = self.claims_gone;
        for segment in self.due.extract_if(.., |segment| segment.order <= gone) {
            self.leaving.push_back(Leaving { segment, stage: Stage::Walking(DATA_START) });
        }
    }

    fn claims_leaving(&self) -> usize {
        self.leaving.iter().filter(|leaving| leaving.segment.is_claims).count()
    }
}

impl Engine {
    /// Seals, empties and recycles what it is time for. Gives the time until there may be more to
    /// do; `None`: not before something is appended.
    pub(super) fn expire(&self, expiry: &mut Expiry) -> Result<Option<Duration>, StoreError> {
        let is_in_memory = self.mode == Mode::Memory;
        loop {
            // Not held across a round: rounds end with wakers, which may do anything.
            let passage = self.wal.pass()?;
            let seal_in = self.wal.seal_aged(self.timeline.monotonic(), expiry.claims_wanted())?;
            if is_in_memory {
                self.wal.skip_rounds();
            }
            expiry.add(self.wal.take_sealed());
            let now = self.timeline.now();
            // While a gap lasts, it counts what the last record of a key is: none goes.
            if !self.gaps.last(now) {
                let Expiry { wheel, due, .. } = expiry;
                wheel.advance(now.ms() / 1000, |segment| due.push(segment));
                expiry.release_due();
                self.release_claims(expiry, now)?;
            }
            let (has_moved, round) = self.move_on(expiry, &passage, is_in_memory)?;
            drop(passage);
            if has_moved {
                continue;
            }
            if let Some(round) = round {
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
                let in_gap = if self.gaps.last(now) { LOOK_AGAIN } else { Duration::ZERO };
                Timestamp::from_ms(tick.saturating_mul(1000)).since(now).max(in_gap)
            });
            let look = (!expiry.claims.is_empty()).then_some(LOOK_AGAIN);
            let retry = (!expiry.leaving.is_empty()).then_some(RETRY);
            return Ok([seal_in, next_due, look, retry].into_iter().flatten().min());
        }
    }

    /// Lets segments of claims go, the oldest first, of which nearly everything is over or which
    /// completions wait for.
    fn release_claims(&self, expiry: &mut Expiry, now: Timestamp) -> Result<(), StoreError> {
        let wanted = expiry.claims_wanted();
        while let Some(first) = expiry.claims.front() {
            if expiry.claims_leaving() >= CLAIMS_AT_ONCE {
                break;
            }
            if first.order >= wanted && first.due > now {
                let monotonic = self.timeline.monotonic();
                let is_early =
                    expiry.looked_at.is_some_and(|at| monotonic.saturating_sub(at) < LOOK_AGAIN);
                if is_early {
                    break;
                }
                let (current, all) = self.count_current(first)?;
                if current * CLAIMS_WORTH_KEEPING > all {
                    expiry.looked_at = Some(monotonic);
                    break;
                }
            }
            let Some(segment) = expiry.claims.pop_front() else { break };
            expiry.leaving.push_back(Leaving { segment, stage: Stage::Walking(DATA_START) });
        }
        Ok(())
    }

    /// Moves each leaving segment on as far as it can go. Whether any moved, and the round that the
    /// others wait for.
    fn move_on(
        &self,
        expiry: &mut Expiry,
        passage: &Passage<'_>,
        is_in_memory: bool,
    ) -> Result<(bool, Option<Ticket>), StoreError> {
        let monotonic = self.timeline.monotonic();
        let is_blocked = expiry.retry_at.is_some_and(|at| monotonic < at);
        let completed = self.wal.rounds.completed();
        let is_over = |round: Ticket| is_in_memory || round.is_over(completed);
        let (mut has_moved, mut wanted) = (false, None::<Ticket>);
        for mut leaving in std::mem::take(&mut expiry.leaving) {
            let is_next = !leaving.segment.is_claims || leaving.segment.order == expiry.claims_gone;
            let next = match leaving.stage {
                Stage::Walking(mut from) if !is_blocked => {
                    match self.purge(&leaving.segment, &mut from) {
                        Ok(true) => {
                            // R9: what ended them must be known to have come, whatever clock the
                            // next open has.
                            self.wal.want_mark();
                            let round = self.wal.rounds.ticket();
                            Some(Stage::Emptied { round, readers: Grace::begin() })
                        }
                        // Whatever it is, it must not keep the others: it is tried again.
                        Ok(false) | Err(StoreError::Corrupt { .. }) => {
                            expiry.retry_at = Some(monotonic + RETRY);
                            leaving.stage = Stage::Walking(from);
                            None
                        }
                        Err(error) => return Err(error),
                    }
                }
                Stage::Emptied { round, ref readers } if is_over(round) && readers.wait() => {
                    Some(Stage::Superseded { round: self.wal.rounds.ticket() })
                }
                Stage::Superseded { round } if is_over(round) => {
                    self.wal.retire(leaving.segment.id);
                    Some(Stage::OutOfUse)
                }
                Stage::OutOfUse if is_next => {
                    // Helps the last reader's grace to its end.
                    Grace::begin().wait();
                    let now = self.timeline.now();
                    let headed = self.wal.write_next_header(passage, &leaving.segment, now)?;
                    headed.map(|segment| Stage::Headed { segment, round: self.wal.rounds.ticket() })
                }
                Stage::Headed { ref segment, round } if is_over(round) => {
                    reach(Point::RecycleBehindSync);
                    self.wal.add_prepared(Arc::clone(segment));
                    self.purge_counts.recycled.fetch_add(1, Ordering::Relaxed);
                    expiry.claims_gone += u64::from(leaving.segment.is_claims);
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
