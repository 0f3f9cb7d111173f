//! Whoever waits for the end of a lease, or for a time, and a wheel that calls them.
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
use crate::sys::wakers::wake_all;
use crate::types::{FencingToken, KeyHash, Timestamp};
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
    calls: HashMap<u64, Call>,
    next_number: u64,
    /// Maintenance looks here again at this tick.
    looks_at: u64,
}

/// Who is called when a time has come.
#[derive(Debug)]
pub(super) enum Call {
    Waker(Waker),
    /// Those who wait for keys of this hash.
    Key(KeyHash),
}

/// A wait for the end of one lease, or for another time. Give it back with [`LeaseEnds::cancel`].
#[derive(Debug, Default)]
pub(crate) struct LeaseEndWait {
    number: Option<u64>,
}

impl LeaseEnds {
    pub(crate) fn new(now: Timestamp) -> Self {
        let waiting = Waiting {
            wheel: Wheel::new(now.ms() / TICK_MS),
            calls: HashMap::new(),
            next_number: 0,
            looks_at: u64::MAX,
        };
        Self { waiting: Mutex::new(waiting) }
    }

    /// Calls when `deadline` has come. Whether maintenance would look too late.
    pub(super) fn call_at(&self, deadline: Timestamp, wait: &mut LeaseEndWait, call: Call) -> bool {
        let tick = deadline.ms().div_ceil(TICK_MS);
        let mut waiting = self.waiting.lock();
        let known = wait.number.and_then(|number| waiting.calls.get_mut(&number));
        if let Some(known) = known {
            // It is woken at an earlier deadline of the same lease, and looks again.
            let replaced = std::mem::replace(known, call);
            drop(waiting);
            // Foreign code: the last waker of a task drops the task.
            drop(replaced);
            return false;
        }
        let number = waiting.next_number;
        waiting.next_number += 1;
        waiting.calls.insert(number, call);
        waiting.wheel.insert(tick, number);
        wait.number = Some(number);
        let is_earlier = tick < waiting.looks_at;
        waiting.looks_at = waiting.looks_at.min(tick);
        is_earlier
    }

    /// Takes the call back.
    pub(crate) fn cancel(&self, wait: &mut LeaseEndWait) {
        let Some(number) = wait.number.take() else { return };
        let mut waiting = self.waiting.lock();
        let call = waiting.calls.remove(&number);
        let Waiting { wheel, calls, .. } = &mut *waiting;
        if wheel.len() > 2 * calls.len() + STALE_MAX {
            wheel.retain(|number| calls.contains_key(number));
        }
        drop(waiting);
        drop(call);
    }

    /// Calls whose time has come.
    fn take_due(&self, now: Timestamp) -> Vec<Call> {
        let mut due = Vec::new();
        let mut waiting = self.waiting.lock();
        let Waiting { wheel, calls, .. } = &mut *waiting;
        wheel.advance(now.ms() / TICK_MS, |number| due.extend(calls.remove(&number)));
        due
    }

    /// The time until somebody may have to be called.
    fn next(&self, now: Timestamp) -> Option<Duration> {
        let mut waiting = self.waiting.lock();
        let next = waiting.wheel.next();
        waiting.looks_at = next.unwrap_or(u64::MAX);
        next.map(|tick| Timestamp::from_ms(tick.saturating_mul(TICK_MS)).since(now))
    }

    /// Wakes everybody: the store is closed.
    fn wake_all(&self) {
        let calls = std::mem::take(&mut self.waiting.lock().calls);
        wake_all(calls.into_values().filter_map(|call| match call {
            Call::Waker(waker) => Some(waker),
            Call::Key(_) => None,
        }));
    }
}

impl LeaseEndWait {
    pub(super) fn is_set(&self) -> bool {
        self.number.is_some()
    }
}

impl Engine {
    /// Calls whoever waits for a time that has come, and gives the time until the next may have to be.
    pub(super) fn call_due(&self, now: Timestamp) -> Option<Duration> {
        for call in self.lease_ends.take_due(now) {
            match call {
                Call::Waker(waker) => wake_all([waker]),
                Call::Key(hash) => self.end_held(hash),
            }
        }
        self.lease_ends.next(now)
    }

    /// Wakes everybody who waits for a lease or for a key: the store is closed.
    pub(super) fn call_everybody(&self) {
        self.lease_ends.wake_all();
        self.call_all();
    }

    /// Wakes a task when `time` has come, or earlier.
    pub(crate) fn wake_at(&self, time: Timestamp, wait: &mut LeaseEndWait, context: &Context<'_>) {
        // Foreign code: called with no lock held.
        let waker = context.waker().clone();
        if self.lease_ends.call_at(time, wait, Call::Waker(waker)) {
            self.background.wake();
        }
    }

    /// Ready when the lease of `token` is over: its deadline has come, or its claim has ended some
    /// other way, or the store has.
    pub(crate) fn poll_lease_end(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        wait: &mut LeaseEndWait,
        context: &Context<'_>,
    ) -> Poll<()> {
        let Ok(Some(deadline)) = self.deadline(key, token) else {
            return Poll::Ready(());
        };
        self.wake_at(deadline, wait, context);
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
        let call = || Call::Waker(Waker::noop().clone());
        let mut stays = LeaseEndWait::default();
        assert!(ends.call_at(day, &mut stays, call()), "nobody looks yet");
        for _ in 0..10_000 {
            let mut wait = LeaseEndWait::default();
            assert!(!ends.call_at(day, &mut wait, call()));
            assert!(!ends.call_at(day, &mut wait, call()));
            ends.cancel(&mut wait);
            ends.cancel(&mut wait);
        }
        let waiting = ends.waiting.lock();
        assert_eq!(waiting.calls.len(), 1);
        assert!(waiting.wheel.len() <= STALE_MAX + 2, "{}", waiting.wheel.len());
    }
}
