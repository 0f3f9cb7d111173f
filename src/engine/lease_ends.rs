//! Whoever waits for the end of a lease, and a wheel that wakes them.
//!
//! A lease itself has no timer: whether it is over is judged when somebody asks for its key. Only
//! who waits for its end is in this wheel. A lease may be renewed meanwhile, under the same token
//! and by anybody; who wakes looks again, and waits on.

use std::collections::HashMap;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::Engine;
use super::namespaces::Key;
use super::state::Standing;
use crate::error::StoreError;
use crate::sys::pin::Pin;
use crate::sys::sync::Mutex;
use crate::types::{FencingToken, Timestamp};
use crate::wheel::Wheel;

/// How wide a bucket of the wheel is: who waits is woken so much late at most.
const TICK_MS: u64 = 8;
/// Those who gave up stay in the wheel until they are so many more than those who wait.
const STALE_MAX: usize = 64;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct LeaseEnds {
    waiting: Mutex<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// Numbers of those who wait, and of some who have given up.
    wheel: Wheel<u64>,
    wakers: HashMap<u64, Waker>,
    next_number: u64,
    /// Maintenance looks here again at this tick.
    looks_at: u64,
}

/// A wait for the end of one lease. Give it back with [`LeaseEnds::cancel`].
#[derive(Debug, Default)]
pub(crate) struct LeaseEndWait {
    number: Option<u64>,
}

impl LeaseEnds {
    pub(crate) fn new(now: Timestamp) -> Self {
        let waiting = Waiting {
            wheel: Wheel::new(now.ms() / TICK_MS),
            wakers: HashMap::new(),
            next_number: 0,
            looks_at: u64::MAX,
        };
        Self { waiting: Mutex::new(waiting) }
    }

    /// Wakes whoever waits when `deadline` has come. Whether maintenance would look too late.
    fn wake_at(&self, deadline: Timestamp, wait: &mut LeaseEndWait, waker: Waker) -> bool {
        let tick = deadline.ms().div_ceil(TICK_MS);
        let mut waiting = self.waiting.lock();
        let known = wait.number.and_then(|number| waiting.wakers.get_mut(&number));
        if let Some(known) = known {
            // It is woken at an earlier deadline of the same lease, and looks again.
            let replaced = std::mem::replace(known, waker);
            drop(waiting);
            // Foreign code: the last waker of a task drops the task.
            drop(replaced);
            return false;
        }
        let number = waiting.next_number;
        waiting.next_number += 1;
        waiting.wakers.insert(number, waker);
        waiting.wheel.insert(tick, number);
        wait.number = Some(number);
        let is_earlier = tick < waiting.looks_at;
        waiting.looks_at = waiting.looks_at.min(tick);
        is_earlier
    }

    /// Takes the waker back.
    pub(crate) fn cancel(&self, wait: &mut LeaseEndWait) {
        let Some(number) = wait.number.take() else { return };
        let mut waiting = self.waiting.lock();
        let waker = waiting.wakers.remove(&number);
        let Waiting { wheel, wakers, .. } = &mut *waiting;
        if wheel.len() > 2 * wakers.len() + STALE_MAX {
            wheel.retain(|number| wakers.contains_key(number));
        }
        drop(waiting);
        drop(waker);
    }

    /// Wakes whoever waits for a deadline that has come, and gives the time until the next may.
    pub(super) fn wake(&self, now: Timestamp) -> Option<Duration> {
        let mut due = Vec::new();
        let mut waiting = self.waiting.lock();
        let Waiting { wheel, wakers, looks_at, .. } = &mut *waiting;
        wheel.advance(now.ms() / TICK_MS, |number| due.extend(wakers.remove(&number)));
        let next = wheel.next();
        *looks_at = next.unwrap_or(u64::MAX);
        drop(waiting);
        due.into_iter().for_each(Waker::wake);
        next.map(|tick| Timestamp::from_ms(tick.saturating_mul(TICK_MS)).since(now))
    }

    /// Wakes everybody: the store is closed.
    pub(super) fn wake_all(&self) {
        let wakers = std::mem::take(&mut self.waiting.lock().wakers);
        wakers.into_values().for_each(Waker::wake);
    }
}

impl Engine {
    /// Ready when the lease of `token` is over: its deadline has come, or its claim has ended some
    /// other way, or the store has.
    pub(crate) fn poll_lease_end(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        wait: &mut LeaseEndWait,
        context: &Context<'_>,
    ) -> Poll<()> {
        // Foreign code: called with no lock held.
        let waker = context.waker().clone();
        let Ok(Some(deadline)) = self.deadline(key, token) else {
            return Poll::Ready(());
        };
        if self.lease_ends.wake_at(deadline, wait, waker) {
            self.background.wake();
        }
        // A close in between has woken nobody of us.
        if self.lock_shard(key.hash).is_err() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Until when the lease of `token` lasts; `None`: it is over.
    fn deadline(
        &self,
        key: &Key<'_>,
        token: FencingToken,
    ) -> Result<Option<Timestamp>, StoreError> {
        self.check_process()?;
        let pin = Pin::new();
        let mut seen = None;
        self.find_unlocked(key, &self.way(key.hash), &mut seen, &pin)?;
        let now = self.timeline.read();
        Ok(seen.map(|seen| seen.record).and_then(|record| {
            let now = self.timeline.judge(now, [record.until(), record.expires()]);
            let is_held = Standing::of(record, now, self.open_epoch) == Standing::Held;
            (is_held && record.token() == token).then_some(record.until())
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_gives_up_leaves_nothing_behind() {
        let ends = LeaseEnds::new(Timestamp::from_ms(1_000_000));
        let day = Timestamp::from_ms(87_400_000);
        let mut stays = LeaseEndWait::default();
        assert!(ends.wake_at(day, &mut stays, Waker::noop().clone()), "nobody looks yet");
        for _ in 0..10_000 {
            let mut wait = LeaseEndWait::default();
            assert!(!ends.wake_at(day, &mut wait, Waker::noop().clone()));
            assert!(!ends.wake_at(day, &mut wait, Waker::noop().clone()));
            ends.cancel(&mut wait);
            ends.cancel(&mut wait);
        }
        let waiting = ends.waiting.lock();
        assert_eq!(waiting.wakers.len(), 1);
        assert!(waiting.wheel.len() <= STALE_MAX + 2, "{}", waiting.wheel.len());
    }
}
