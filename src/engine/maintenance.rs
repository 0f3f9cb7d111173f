//! What happens between calls, and at the end: rounds that nobody waits for, the clock's mark,
//! expiry, growing ahead, closing.
//!
//! One named thread does it, or, with manual maintenance, whoever calls `Store::maintain`. The
//! thread sleeps until something was written or comes due, then looks around every few milliseconds
//! until there is nothing left to do.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::expiry::{Expiry, Pace};
use super::{Engine, Mode};
use crate::error::{CloseError, Failure, StoreError};
use crate::sys::pin::{Grace, drop_soon};
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::{AtomicBool, Ordering};
use crate::sys::sync::{Condvar, Mutex};
use crate::types::{Location, Timestamp};
use crate::wal::Wal;

/// How often the thread looks around while the store is in use.
const TICK: Duration = Duration::from_millis(5);
/// How long segments may be emptied in one look: rounds and futures wait meanwhile.
const EMPTY_MAX: Duration = Duration::from_millis(20);
/// The same while there is room: who works for less than its share of a core is seldom taken off it, with
/// a lock in its hands.
const EMPTY_GENTLY_MAX: Duration = Duration::from_millis(2);
/// Page faults are taken beforehand for so many times what was appended since the last look.
const TICKS_AHEAD: u64 = 64;
/// In `Sync` and `Interval` mode, the idle time after which a round is made, mostly to write a mark (R10).
const IDLE_MARK: Duration = Duration::from_millis(10);
/// In `Sync` mode, the time after which a round is made however busy the store is, where nobody else led one: renewals wait
/// for none, nor does who asks for less than the store's mode, or gives his commit up.
const SYNC_TIME: Duration = Duration::from_millis(100);
/// In `Buffered` mode, the idle time after which a round is made.
const IDLE_SYNC: Duration = Duration::from_secs(1);
/// In `Buffered` mode, the bytes after which a round is made however busy the store is.
const BUFFERED_SYNC_BYTES: u64 = 256 << 20;
/// In `Buffered` mode, the time after which a round is made however busy the store is: what is not
/// durable cannot be recycled.
const BUFFERED_SYNC_TIME: Duration = Duration::from_secs(10);
/// How often the meta file learns the time.
const CLOCK_MARK: Duration = Duration::from_secs(5);
/// Bytes of a new data file that are filled at a time.
const GROW_BYTES: u64 = 4 << 20;
/// So many times that where little room is left.
const GROW_HASTE: u64 = 8;
/// An interval that filling so much at a time would stretch.
const SHORT_INTERVAL: Duration = Duration::from_millis(50);
/// When nothing was appended for so long, headroom that was used is made again.
const QUIET: Duration = Duration::from_millis(200);
/// After a failed attempt to grow ahead, the next one waits.
const GROW_RETRY: Duration = Duration::from_secs(1);

/// What the thread and the callers tell each other, and when what was done last.
#[derive(Debug)]
pub(crate) struct Background {
    /// Set by the first change after a quiet time; cleared when there is nothing left to do.
    is_active: AtomicBool,
    signal: Mutex<Signal>,
    changed: Condvar,
    /// Held by whoever looks around.
    last: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Signal {
    stops: bool,
    /// Futures wait for a round that no thread leads.
    is_wanted: bool,
}

/// When there may be something to look after again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Next {
    /// At the next tick.
    Soon,
    In(Duration),
    /// When something is appended.
    Change,
}

impl Next {
    /// The time until then; `None`: it is not known.
    pub(crate) fn time(self) -> Option<Duration> {
        match self {
            Self::Soon => Some(TICK),
            Self::In(time) => Some(time),
            Self::Change => None,
        }
    }

    /// This, or in so much time, whichever comes first.
    fn or_in(self, time: Option<Duration>) -> Self {
        match (self, time) {
            (Self::Soon, _) | (_, None) => self,
            (Self::Change, Some(time)) => Self::In(time),
            (Self::In(other), Some(time)) => Self::In(other.min(time)),
        }
    }
}

/// Times are the monotonic clock's.
#[derive(Debug)]
struct Last {
    expiry: Expiry,
    appended_bytes: u64,
    /// When something was last seen to have been appended.
    appended_at: Duration,
    round_at: Duration,
    round_bytes: u64,
    clock_at: Duration,
    growth_failed_at: Option<Duration>,
}

impl Background {
    pub(crate) fn new(mode: Mode, now: Duration, expiry: Expiry) -> Self {
        let last = Last {
            expiry,
            appended_bytes: 0,
            appended_at: now,
            round_at: now,
            round_bytes: 0,
            clock_at: now,
            growth_failed_at: None,
        };
        Self {
            // The first look: is there room? In memory there is nothing to look after until the
            // first change.
            is_active: AtomicBool::new(mode != Mode::Memory),
            signal: Mutex::default(),
            changed: Condvar::new(),
            last: Mutex::new(last),
        }
    }

    /// Forgets that recovery found no room for, see [`Expiry::owe`].
    pub(super) fn owe(&self, forgets: Vec<(Location, Timestamp)>) {
        self.last.lock().expiry.owe(forgets);
    }

    /// Something was appended.
    #[inline]
    pub(crate) fn note(&self) {
        if !self.is_active.load(Ordering::Relaxed) && !self.is_active.swap(true, Ordering::AcqRel) {
            let _signal = self.signal.lock();
            self.changed.notify_one();
        }
    }

    /// Futures wait for a round.
    pub(crate) fn wake(&self) {
        self.signal.lock().is_wanted = true;
        self.changed.notify_one();
    }

    /// Whether somebody has called the thread since it looked last.
    #[cfg(test)]
    pub(crate) fn is_wanted(&self) -> bool {
        self.signal.lock().is_wanted
    }

    /// Ends [`Engine::run_background`].
    pub(crate) fn stop(&self) {
        self.signal.lock().stops = true;
        self.changed.notify_one();
    }
}

impl Engine {
    /// What the maintenance thread does until it is stopped.
    pub(crate) fn run_background(self: Arc<Self>) {
        let background = &self.background;
        let mut next = Next::Change;
        loop {
            let mut signal = background.signal.lock();
            let is_idle = !background.is_active.load(Ordering::Acquire);
            if is_idle && !signal.stops && !signal.is_wanted {
                match next {
                    Next::Soon => {}
                    Next::In(time) => drop(background.changed.wait_for(&mut signal, time)),
                    Next::Change => background.changed.wait(&mut signal),
                }
            }
            // The first change after a quiet time is not looked after at once: if it were, each one
            // that comes after the look would wake the thread again. Nor does any wake it meanwhile.
            if !signal.stops && !signal.is_wanted {
                background.is_active.store(true, Ordering::Release);
                background.changed.wait_for(&mut signal, tick(self.mode));
            }
            if signal.stops {
                return;
            }
            signal.is_wanted = false;
            drop(signal);
            // Cleared first: a change that comes later sets it again.
            background.is_active.store(false, Ordering::Release);
            // Whatever it met, its promises would be kept by nobody: rounds that nobody asks for, room, time.
            let looked = catch_unwind(AssertUnwindSafe(|| self.look(None)));
            next = looked.unwrap_or_else(|_| {
                let panicked = std::io::Error::other("the store's thread panicked");
                let cause = Failure::new("maintain", PathBuf::from("the store"), panicked);
                drop(self.wal.fail(cause));
                Next::In(IDLE_MARK)
            });
        }
    }

    /// Looks around once, and does what is due, until it has taken so long.
    ///
    /// Failures poison the store or are tried again later; there is nobody to tell.
    pub(crate) fn maintain(&self, budget: Duration) -> Next {
        self.look(Some(budget))
    }

    /// With a budget as somebody asks for it, or as the thread has it.
    fn look(&self, budget: Option<Duration>) -> Next {
        if self.is_child() {
            return Next::Change;
        }
        let lease_end = self.call_due(self.timeline.now());
        self.look_around(budget).or_in(lease_end)
    }

    fn look_around(&self, budget: Option<Duration>) -> Next {
        // A store that is closed has nothing to look after. The gate is not held here: rounds need
        // none, and end with wakers, which may do anything.
        if self.wal.pass().is_err() {
            return Next::Change;
        }
        if self.wal.poison.cause().is_some() {
            self.wal.rounds.wake_futures();
            self.call_all();
            return Next::Change;
        }
        self.lead_for_futures();
        // Somebody else is looking around, or this is a waker that somebody calls who does.
        let Some(mut last) = self.background.last.try_lock() else { return Next::Soon };
        let now = self.timeline.monotonic();
        let appended_bytes = self.wal.supply().appended_bytes;
        if appended_bytes != last.appended_bytes {
            // No more than will be used soon: what was made ready is written to the disk with the rest.
            self.wal.prefault((appended_bytes - last.appended_bytes).saturating_mul(TICKS_AHEAD));
            self.wal.widen();
            // Tables grow while something is appended.
            self.shards.iter().for_each(|shard| shard.buckets().make_ready());
            (last.appended_bytes, last.appended_at) = (appended_bytes, now);
        }
        let rounds_due = self.make_round(&mut last, now);
        let clock_due = self.mark_clock(&mut last, now, !rounds_due);
        // Before what is over is recycled: whoever claims meanwhile must not have to wait for it.
        let supply = self.wal.supply();
        // Headroom is for bursts: it is made again when they are over, not beside them.
        let quiet_in = QUIET.saturating_sub(now.saturating_sub(last.appended_at));
        let is_wanted = supply.is_low || supply.lacks_headroom && quiet_in.is_zero();
        let growth_due = is_wanted && self.grow_ahead(&mut last, now);
        // Its failures have poisoned the store, or the store is closing.
        let (until, pace) = match budget {
            Some(budget) => (now.saturating_add(budget), Pace::Full),
            // Whatever was waited for up to here was no work.
            None => (self.timeline.monotonic().saturating_add(own_budget(&self.wal)), Pace::Gentle),
        };
        let expiry_due = self.expire(&mut last.expiry, until, pace).unwrap_or_default();
        // Sealing asks for a round, too.
        let is_owed = self.mode != Mode::Memory && !self.wal.is_proven();
        let is_awaited = self.wal.rounds.futures_ticket().is_some();
        if rounds_due || clock_due || growth_due || is_owed || is_awaited {
            return Next::Soon;
        }
        let headroom_due = supply.lacks_headroom.then_some(quiet_in);
        expiry_due.map_or(Next::Change, Next::In).or_in(headroom_due)
    }

    /// Leads a round for those who cannot: one in each look, or whoever comes meanwhile, again and again,
    /// would keep everything else waiting. Its end says so when others wait.
    fn lead_for_futures(&self) {
        if let Some(ticket) = self.wal.rounds.futures_ticket() {
            // Its failure has poisoned the store.
            drop(self.wal.rounds.wait(ticket, &self.wal.poison, &self.leader()));
        }
    }

    /// Makes a round that nobody waits for, when it is time. Whether one will be due later.
    fn make_round(&self, last: &mut Last, now: Duration) -> bool {
        if self.mode == Mode::Memory || self.wal.is_proven() {
            last.round_at = now;
            last.round_bytes = last.appended_bytes;
            return false;
        }
        let idle = now.saturating_sub(last.appended_at.max(last.round_at));
        let is_due = match self.mode {
            Mode::Memory => false,
            Mode::Sync => {
                let synced_at = Duration::from_nanos(self.synced_at.load(Ordering::Relaxed));
                let since = now.saturating_sub(last.round_at.max(synced_at));
                idle >= IDLE_MARK || since >= SYNC_TIME
            }
            Mode::Interval(interval) => {
                now.saturating_sub(last.round_at) >= interval || idle >= IDLE_MARK.max(interval)
            }
            Mode::Buffered => {
                let bytes = last.appended_bytes - last.round_bytes;
                let since = now.saturating_sub(last.round_at);
                // Where no file can be added, what is over has to make room.
                last.growth_failed_at.is_some()
                    || idle >= IDLE_SYNC
                    || bytes >= BUFFERED_SYNC_BYTES
                    || since >= BUFFERED_SYNC_TIME
            }
        };
        if is_due {
            let ticket = self.wal.rounds.ticket();
            // A failure has poisoned the store, and everybody meets it there.
            let ended = self.wal.rounds.wait(ticket, &self.wal.poison, &self.leader());
            last.round_at = self.timeline.monotonic();
            last.round_bytes = last.appended_bytes;
            return ended.is_ok() && !self.wal.is_proven();
        }
        true
    }

    /// Writes the time to the meta file every few seconds of use, and once when it ends: a wall
    /// clock that is set back before the next open must not bring back what has expired.
    fn mark_clock(&self, last: &mut Last, now: Duration, is_idle: bool) -> bool {
        let elapsed = now.saturating_sub(last.clock_at);
        let was_used = last.appended_at >= last.clock_at;
        if self.mode == Mode::Memory || !was_used {
            return false;
        }
        if elapsed < CLOCK_MARK && !(is_idle && elapsed >= IDLE_SYNC) {
            return true;
        }
        let Ok(_passage) = self.wal.pass() else { return false };
        let time = self.timeline.now();
        match self.wal.meta.update(|meta| meta.clock = meta.clock.max(time)) {
            Ok(()) => last.clock_at = now,
            Err(cause) => drop(self.wal.fail(cause)),
        }
        false
    }

    /// Does this with what expires; `None`: somebody looks around.
    pub(super) fn with_expiry<R>(&self, act: impl FnOnce(&mut Expiry) -> R) -> Option<R> {
        self.background.last.try_lock().map(|mut last| act(&mut last.expiry))
    }

    /// Nothing is erased any more.
    pub(super) fn end_erasing(&self) {
        // In a forked child the lock may be held by a thread that is not there.
        if self.is_child() {
            return;
        }
        self.background.last.lock().expiry.erasing = None;
    }

    /// Goes on with the next data file, a piece at a time. Whether more is to be done.
    fn grow_ahead(&self, last: &mut Last, now: Duration) -> bool {
        if last.growth_failed_at.is_some_and(|at| now.saturating_sub(at) < GROW_RETRY) {
            return true;
        }
        let haste = if self.wal.supply().is_scarce { GROW_HASTE } else { 1 };
        match self.wal.grow_ahead(haste * growth_step(self.mode), self.timeline.now()) {
            Ok(()) => {
                last.growth_failed_at = None;
                if self.wal.is_growing() {
                    // No need to sleep before the next piece; whoever waits is led in between.
                    self.background.wake();
                }
            }
            Err(_) => last.growth_failed_at = Some(now),
        }
        true
    }

    /// A round has ended.
    pub(super) fn note_sync(&self) {
        // Less than centuries.
        let now = self.timeline.monotonic().as_nanos() as u64;
        // Relaxed: told for itself.
        self.synced_at.store(now.max(1), Ordering::Relaxed);
    }

    /// How long ago the last round of this open ended; `None`: none has.
    pub(crate) fn sync_age(&self) -> Option<Duration> {
        let at = self.synced_at.load(Ordering::Relaxed);
        (at > 0).then(|| self.timeline.monotonic().saturating_sub(Duration::from_nanos(at)))
    }

    /// Makes everything appended so far durable, and leaves a mark that says so.
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.check_open()?;
        self.wal.poison.check_before()?;
        self.flush_open()
    }

    fn flush_open(&self) -> Result<(), StoreError> {
        if !self.has_rounds() {
            return Ok(());
        }
        // The first round makes it durable, the second says so (R10).
        for _ in 0..2 {
            let ticket = self.wal.rounds.ticket();
            let ended = self.wal.rounds.wait(ticket, &self.wal.poison, &self.leader());
            ended.map_err(|cause| StoreError::Poisoned { cause })?;
        }
        Ok(())
    }

    /// Ends the store: nothing is accepted any more, everything is durable, the meta file says that
    /// the store was closed in order, and the directory is free but for kept outcomes.
    pub(crate) fn close(&self) -> Result<(), CloseError> {
        if self.is_child() {
            return Err(StoreError::Forked.into());
        }
        if self.leases() > 0 {
            return Err(CloseError::LeasesHeld(self.leases()));
        }
        {
            // All shards at once: no lease can come to be between the count and the end.
            let mut shards: Vec<_> =
                self.shards.iter().map(|shard| shard.lock(&self.wal)).collect();
            if self.leases() > 0 {
                return Err(CloseError::LeasesHeld(self.leases()));
            }
            if shards.iter().any(|shard| shard.is_closed) {
                return Err(StoreError::Closed.into());
            }
            shards.iter_mut().for_each(|shard| shard.is_closed = true);
            self.is_closed.store(true, Ordering::Release);
        }
        self.call_everybody();
        // Whoever makes files or namespaces, or looks around, comes to an end first.
        self.wal.shut_gate();
        let ended = self.end();
        // And whoever waits for a round, or leads one: everything is durable, or poisoned.
        self.wal.rounds.end_all();
        // The lock goes whatever happened: nothing is written to the directory from now on (W5). Not before
        // whoever found a record is done with it, because another process may fill its segment again: a
        // thread that stands still under its pin is not waited for for ever, and keeps the lock, as do outcomes
        // that are shown where they lie.
        let hold = self.hold.lock().take();
        let is_over = Grace::begin().wait();
        if is_over {
            drop(hold)
        } else {
            drop_soon(hold)
        }
        ended.map_err(CloseError::Store)
    }

    /// Ends the store without a word to the disk.
    #[cfg(feature = "test-util")]
    pub(crate) fn abandon(&self) {
        for shard in &self.shards {
            shard.lock(&self.wal).is_closed = true;
        }
        self.is_closed.store(true, Ordering::Release);
        self.call_everybody();
        self.wal.shut_gate();
        drop(self.hold.lock().take());
    }

    /// Ends the store silently, when its last handle is dropped.
    pub(crate) fn end_silently(&self) {
        if self.is_child() {
            // The files are the parent's.
            return;
        }
        let is_open = self.shards.iter().all(|shard| !shard.lock(&self.wal).is_closed);
        if is_open {
            // A waker may have dropped it in the midst of a look, which goes on behind this.
            self.wal.shut_gate();
            // Nobody is left to tell; the next open recovers whatever this leaves.
            self.end().unwrap_or_default();
        }
    }

    fn end(&self) -> Result<(), StoreError> {
        self.wal.abandon_growth();
        if let Some(cause) = self.wal.poison.cause() {
            // If the disk still takes it, the next open learns that the cache is not to be trusted.
            self.wal.meta.update(|meta| meta.poisoned = true).unwrap_or_default();
            return Err(StoreError::Poisoned { cause: Arc::clone(cause) });
        }
        self.wal.seal_all()?;
        reach(Point::CloseBehindSeal);
        self.flush_open()?;
        reach(Point::CloseBehindFlush);
        let (stable, time) = (self.wal.stable_generation(), self.timeline.now());
        let closed = self.wal.meta.update(|meta| {
            meta.clean = true;
            meta.stable_generation = stable;
            meta.clock = meta.clock.max(time);
        });
        reach(Point::CloseBehindClean);
        closed.map_err(|cause| self.wal.fail(cause))
    }
}

/// How long the thread may empty segments in one look.
fn own_budget(wal: &Wal) -> Duration {
    if wal.supply().is_ample { EMPTY_GENTLY_MAX } else { EMPTY_MAX }
}

/// How long the thread sleeps between two looks.
fn tick(mode: Mode) -> Duration {
    match mode {
        Mode::Interval(interval) => TICK.min(interval),
        Mode::Memory | Mode::Buffered | Mode::Sync => TICK,
    }
}

/// Bytes of a data file that are filled between two looks: a short interval allows of few.
fn growth_step(mode: Mode) -> u64 {
    match mode {
        Mode::Interval(interval) if interval < SHORT_INTERVAL => GROW_BYTES / 16,
        _ => GROW_BYTES,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_interval_is_not_stretched_by_the_tick_or_by_growth() {
        let interval = |ms| Mode::Interval(Duration::from_millis(ms));
        assert_eq!(tick(interval(1)), Duration::from_millis(1));
        assert_eq!(tick(interval(1000)), tick(Mode::Sync));
        assert!(growth_step(interval(1)) < growth_step(interval(1000)));
    }
}
