//! Asking about a key: `lookup`, which takes nothing; and outcomes on their way out.

use super::namespaces::Key;
use super::search::Seen;
use super::state::{self, Standing};
use super::{Engine, Settle, Settling, Way, check_key};
use crate::answer::{Body, EndCause, Gap, Lookup, Outcome, OutcomeRef, StoredBody};
use crate::error::StoreError;
use crate::sys::pin::Pin;
use crate::sys::sync::atomic::Ordering;
use crate::types::{Epoch, Timestamp};

/// What is known of a key, before it is told.
enum Known<'p> {
    /// Nothing that would say anything.
    Absent,
    InDoubt(Box<Gap>),
    /// What its record says at this time.
    Is(Seen<'p>, Standing, Timestamp),
}

impl Engine {
    /// Reads a key's state without claiming it.
    #[inline]
    pub(crate) fn lookup(
        &self,
        key: &Key<'_>,
        settling: &mut Settling,
    ) -> Result<Lookup, StoreError> {
        let Some(way) = self.way_to_known(key)? else { return Ok(Lookup::Absent) };
        loop {
            let pin = Pin::new();
            let (seen, now) = match self.known(key, &way, &pin)? {
                Known::Is(seen, Standing::Done, now) => (seen, now),
                other => return Ok(other.told()),
            };
            let settle = self.gate(&seen);
            if settle.is_none() {
                return Ok(Lookup::Completed(self.outcome(&seen, now)));
            }
            if settling.is_later() {
                settling.settle(self, settle)?;
                return Ok(Lookup::Completed(self.outcome(&seen, now)));
            }
            // Not under the pin; and meanwhile the key may have been forgotten.
            drop(pin);
            settling.settle(self, settle)?;
        }
    }

    /// Reads a key's state, and shows the outcome where it lies: `show` is called once. Waits until what it
    /// is shown may be.
    #[inline]
    pub(crate) fn lookup_with<R>(
        &self,
        key: &Key<'_>,
        show: impl FnOnce(Lookup<OutcomeRef<'_>>) -> R,
    ) -> Result<R, StoreError> {
        let Some(way) = self.way_to_known(key)? else { return Ok(show(Lookup::Absent)) };
        loop {
            let pin = Pin::new();
            let (seen, now) = match self.known(key, &way, &pin)? {
                Known::Is(seen, Standing::Done, now) => (seen, now),
                other => return Ok(show(other.told())),
            };
            let Some(settle) = self.gate(&seen) else {
                return Ok(show(Lookup::Completed(state::outcome_ref(seen.record, now))));
            };
            drop(pin);
            self.settle(settle)?;
        }
    }

    /// The way of a key; `None`: the filter of its chain tells that it is not there. That needs no pin,
    /// because no record is looked at, and the table is there for as long as the engine.
    #[inline(always)]
    fn way_to_known(&self, key: &Key<'_>) -> Result<Option<Way<'_>>, StoreError> {
        self.check_process()?;
        check_key(key)?;
        let way = self.way(key.hash);
        // Both come first: a store that is closed does not change any more, and gaps do not begin.
        if self.is_closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        let is_absent = !self.gaps.exist() && way.shard.buckets().is_absent(&way.route);
        Ok((!is_absent).then_some(way))
    }

    /// What is known of a key now. The body of what is done was checked.
    #[inline(always)]
    fn known<'p>(
        &'p self,
        key: &Key<'_>,
        way: &Way<'_>,
        pin: &'p Pin,
    ) -> Result<Known<'p>, StoreError> {
        loop {
            // Gaps end, and do not begin: what is not there after one was looked for is not in doubt.
            let unknown = self.absent(None);
            let mut seen = None;
            self.find_unlocked(key, way, &mut seen, pin)?;
            let Some(seen) = seen else { return Ok(unknown) };
            let record = seen.record;
            let now = self.timeline.judge(self.timeline.read(), [record.until(), record.expires()]);
            let standing = Standing::of(record, now, self.open_epoch);
            match standing {
                Standing::Held => return Ok(Known::Is(seen, standing, now)),
                Standing::Done => {
                    self.wal.segments.check_body(record, seen.location, seen.pin)?;
                    return Ok(Known::Is(seen, standing, now));
                }
                Standing::Absent
                | Standing::Lapsed(_)
                | Standing::Overdue
                | Standing::Parked(_) => {}
            }
            // What has ended by the clock may have been ended by its owner first: it holds if it
            // still was the current record after the clock was read.
            let free = self.absent(Some(record.token().epoch()));
            let mut again = None;
            self.find_unlocked(key, way, &mut again, pin)?;
            if again.is_none_or(|again| again.location != seen.location) {
                continue;
            }
            return Ok(match (standing, free) {
                (Standing::Absent, free) => free,
                (Standing::Lapsed(_), Known::InDoubt(gap)) => Known::InDoubt(gap),
                _ => Known::Is(seen, standing, now),
            });
        }
    }

    /// The answer about a key that nobody holds, as far as is known: it is free, or in doubt.
    #[inline]
    fn absent<'p>(&self, newest: Option<Epoch>) -> Known<'p> {
        if !self.gaps.exist() {
            return Known::Absent;
        }
        let gap = self.gaps.covering(self.timeline.read().lower, newest, None);
        gap.map_or(Known::Absent, |gap| Known::InDoubt(Box::new(gap)))
    }

    /// What must happen before this completion may be seen: it must be as durable as it was asked to be.
    #[inline]
    pub(super) fn gate(&self, seen: &Seen<'_>) -> Option<Settle> {
        let gated = seen.record.flags().gated() && self.mode != super::Mode::Memory;
        (gated && !self.wal.segments.is_durable(seen.location, seen.pin))
            .then(|| Settle { ticket: self.wal.rounds.ticket(), is_own: false })
    }

    /// The outcome in a completion, to keep: a small body copied, a large one where it lies. The caller has
    /// checked the body.
    #[inline(always)]
    pub(super) fn outcome(&self, seen: &Seen<'_>, now: Timestamp) -> Outcome {
        let body = match state::body(seen.record, now) {
            Body::Bytes(bytes) if bytes.len() >= Outcome::KEPT_BYTES_MIN => self.kept(seen, bytes),
            body => StoredBody::copy_of(body),
        };
        Outcome { body, about: state::about_outcome(seen.record, now) }
    }

    #[cold]
    fn kept(&self, seen: &Seen<'_>, bytes: &[u8]) -> StoredBody {
        let &Seen { record, location, pin } = seen;
        // A store that is closed has none to give.
        let kept = self
            .held
            .upgrade()
            .and_then(|hold| self.wal.segments.keep_body(record, location, pin, hold));
        kept.map_or_else(|| StoredBody::Bytes(bytes.into()), StoredBody::Kept)
    }
}

impl Known<'_> {
    /// What there is to tell of a key that is not done.
    #[inline]
    fn told<O>(self) -> Lookup<O> {
        match self {
            Self::Absent | Self::Is(_, Standing::Absent, _) => Lookup::Absent,
            Self::InDoubt(gap) => Lookup::InDoubt(*gap),
            Self::Is(seen, Standing::Held, now) => {
                Lookup::InProgress(state::in_progress(seen.record, now))
            }
            Self::Is(seen, Standing::Lapsed(cause), _) => {
                Lookup::Lapsed(state::lapsed(seen.record, cause))
            }
            Self::Is(seen, Standing::Overdue, _) => {
                Lookup::Parked(state::parked(seen.record, EndCause::LeaseEnded))
            }
            Self::Is(seen, Standing::Parked(cause), _) => {
                Lookup::Parked(state::parked(seen.record, cause))
            }
            Self::Is(_, Standing::Done, _) => unreachable!("what is done is told with its outcome"),
        }
    }
}
