//! Whoever waits for a key that somebody else holds.
//!
//! One list for threads and futures: each is a waker. A shard has a list for each key that is waited for,
//! under its lock. An heir waits to take the key over, anybody else only for the claim to have ended.
//!
//! Invariants
//! - A1  Whoever is in a list was told under the shard's lock that the key is held, and whatever ends a
//!   claim looks at the list under the same lock: no end is missed.
//! - A2  An end that leaves the key free calls one heir; one that decides it calls them all. Who is no heir is called
//!   by either.
//! - A3  An heir that was called and leaves without the key passes the call on.
//! - A4  While somebody waits there is an alarm, at the end of the lease or earlier. It calls again as long as
//!   the key is free and nobody has taken it.

use std::collections::HashMap;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::lease_ends::{Call, LeaseEndWait, LeaseEnds};
use super::namespaces::{Key, NamespaceState, OwnKey};
use super::shard::{ShardGuard, ShardState};
use super::state::Standing;
use super::{Engine, check_key};
use crate::error::WaitError;
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::limits::{TooManyWaiters, WaiterScope};
use crate::sys::pin::Pin;
use crate::sys::sync::atomic::{AtomicUsize, Ordering};
use crate::sys::wakers::wake_all;
use crate::types::{FencingToken, KeyHash, NamespaceId, Timestamp};

/// A free key whose heir does not come is offered to the next one after this time.
const PATIENCE: Duration = Duration::from_millis(250);

/// How many may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaiterLimits {
    pub(crate) key: usize,
    pub(crate) namespace: usize,
    pub(crate) store: usize,
}

/// Those who wait for keys of one shard.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    lines: HashMap<KeyHash, Vec<Line>>,
    next_number: u64,
}

/// Those who wait for one key, in the order in which they came.
#[derive(Debug)]
struct Line {
    namespace: Arc<NamespaceState>,
    key: OwnKey,
    waiting: Vec<Waiter>,
    alarm: LeaseEndWait,
    alarm_at: Timestamp,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    is_heir: bool,
    is_counted: bool,
    /// `None`: it was called, and has not looked since.
    waker: Option<Waker>,
}

/// A place in a key's list. Give it back with [`Engine::stop_waiting`].
#[derive(Debug, Default)]
pub(crate) struct KeyWait {
    number: Option<u64>,
    /// It is the holder's own: no bound is for him.
    is_holders: bool,
}

impl KeyWait {
    /// Of who holds the key, and is to be told when he does not any more.
    pub(crate) fn of_holder() -> Self {
        Self { number: None, is_holders: true }
    }
}

/// What the end of a claim means for who waits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// The next claim is granted.
    Free,
    /// All get the same answer.
    Decided,
}

/// Those who are to be woken, with no lock held: it is foreign code.
#[derive(Debug, Default)]
#[must_use = "whoever was called is to be woken"]
pub(crate) struct Called {
    wakers: Vec<Waker>,
    /// Maintenance would look too late.
    is_late: bool,
}

impl Line {
    fn is_of(&self, number: NamespaceId, key: &[u8]) -> bool {
        let own = self.key.named(&self.namespace);
        own.number == number && own.bytes == key
    }

    /// Calls whom an end concerns (A2).
    fn call(&mut self, end: End, called: &mut Called) {
        let mut heirs = if end == End::Free { 1 } else { usize::MAX };
        for waiter in &mut self.waiting {
            if waiter.is_heir && heirs == 0 {
                continue;
            }
            if let Some(waker) = waiter.waker.take() {
                called.wakers.push(waker);
                heirs -= usize::from(waiter.is_heir);
            }
        }
    }

    /// Calls those who are no heirs: the claim that they wait for was taken over.
    fn call_others(&mut self, called: &mut Called) {
        let others = self.waiting.iter_mut().filter(|waiter| !waiter.is_heir);
        called.wakers.extend(others.filter_map(|waiter| waiter.waker.take()));
    }

    /// Sees to it that there is an alarm at `at` or earlier. Whether maintenance would look too late.
    fn alarm_by(&mut self, at: Timestamp, hash: KeyHash, ends: &LeaseEnds) -> bool {
        if self.alarm.is_set() && self.alarm_at <= at {
            return false;
        }
        ends.cancel(&mut self.alarm);
        self.alarm_at = at;
        ends.call_at(at, &mut self.alarm, Call::Key(hash))
    }
}

impl Waiters {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    fn line(&mut self, hash: KeyHash, namespace: NamespaceId, key: &[u8]) -> Option<&mut Line> {
        self.lines.get_mut(&hash)?.iter_mut().find(|line| line.is_of(namespace, key))
    }

    /// The claim that `record` is of has ended.
    fn ended(
        &mut self,
        record: RecordRef<'_>,
        end: End,
        look_at: Timestamp,
        ends: &LeaseEnds,
    ) -> Called {
        let mut called = Called::default();
        let hash = record.key_hash();
        let line = self.line(hash, record.namespace(), record.key());
        if let Some(line) = line {
            line.call(end, &mut called);
            if end == End::Free {
                // A4: who was called may not come.
                called.is_late = line.alarm_by(look_at, hash, ends);
            }
        }
        called
    }

    /// Takes a waiter out, and tells who is called in its place (A3).
    fn leave(
        &mut self,
        key: &Key<'_>,
        number: u64,
        has_key: bool,
        ends: &LeaseEnds,
    ) -> Option<(Waiter, Called)> {
        let lines = self.lines.get_mut(&key.hash)?;
        let at = lines.iter().position(|it| it.is_of(key.number, key.bytes))?;
        let line = &mut lines[at];
        let place = line.waiting.iter().position(|waiter| waiter.number == number)?;
        let waiter = line.waiting.remove(place);
        let mut called = Called::default();
        if waiter.is_heir && waiter.waker.is_none() && !has_key {
            line.call(End::Free, &mut called);
        }
        if line.waiting.is_empty() {
            let mut line = lines.swap_remove(at);
            ends.cancel(&mut line.alarm);
            if lines.is_empty() {
                self.lines.remove(&key.hash);
            }
        }
        Some((waiter, called))
    }
}

impl Engine {
    /// The claim that `record` is of has ended. Whoever is called is to be woken when the shard is not locked
    /// any more.
    #[inline]
    pub(super) fn ended(&self, shard: &mut ShardState, record: RecordRef<'_>, end: End) -> Called {
        if shard.waiters.is_empty() {
            return Called::default();
        }
        let look_at = self.timeline.now().after(PATIENCE);
        shard.waiters.ended(record, end, look_at, &self.lease_ends)
    }

    /// Wakes whoever was called, with no lock held.
    #[inline]
    pub(super) fn wake(&self, called: Called) {
        if called.is_late {
            self.background.wake();
        }
        wake_all(called.wakers);
    }

    /// Waits for the claim of `held` to have ended. Ready when it has, as far as is known: look again.
    pub(crate) fn poll_held(
        &self,
        key: &Key<'_>,
        namespace: &Arc<NamespaceState>,
        held: FencingToken,
        is_heir: bool,
        wait: &mut KeyWait,
        context: &Context<'_>,
    ) -> Poll<Result<(), WaitError>> {
        self.check_process()?;
        check_key(key)?;
        // Foreign code: called with no lock held.
        let mut waker = Some(context.waker().clone());
        let way = self.way(key.hash);
        let pin = Pin::new();
        let mut seen = None;
        self.find_unlocked(key, &way, &mut seen, &pin)?;
        let mut shard = self.lock(way.shard)?;
        // Under the lock: whoever is called because of it is in a list by now, or sees it.
        self.wal.poison.check_before()?;
        let now = self.timeline.read();
        let found = self.find(&shard, key, way.route, &mut seen, &pin)?;
        let until = found.and_then(|found| {
            let record = found.record;
            let now = self.timeline.judge(now, [record.until(), record.expires()]);
            let is_held = Standing::of(record, now, self.open_epoch) == Standing::Held;
            (is_held && record.token() == held).then(|| record.until())
        });
        let Some(until) = until else {
            return Poll::Ready(Ok(()));
        };
        let waiters = &mut shard.waiters;
        let number = *wait.number.get_or_insert_with(|| {
            waiters.next_number += 1;
            waiters.next_number
        });
        let lines = waiters.lines.entry(key.hash).or_default();
        let at = lines.iter().position(|it| it.is_of(key.number, key.bytes));
        let at = at.unwrap_or_else(|| {
            lines.push(Line {
                namespace: Arc::clone(namespace),
                key: OwnKey::of(key),
                waiting: Vec::new(),
                alarm: LeaseEndWait::default(),
                alarm_at: until,
            });
            lines.len() - 1
        });
        let line = &mut lines[at];
        let known = line.waiting.iter_mut().find(|waiter| waiter.number == number);
        if let Some(known) = known {
            std::mem::swap(&mut known.waker, &mut waker);
        } else {
            let is_counted = !wait.is_holders;
            let counted = line.waiting.iter().filter(|waiter| waiter.is_counted).count();
            let admitted = if is_counted { self.admit(key, counted) } else { Ok(()) };
            if let Err(refusal) = admitted {
                wait.number = None;
                if line.waiting.is_empty() {
                    lines.swap_remove(at);
                    if lines.is_empty() {
                        waiters.lines.remove(&key.hash);
                    }
                }
                return Poll::Ready(Err(refusal.into()));
            }
            line.waiting.push(Waiter { number, is_heir, is_counted, waker: waker.take() });
        }
        let is_late = line.alarm_by(until, key.hash, &self.lease_ends);
        drop(shard);
        // Foreign code: the last waker of a task drops the task.
        drop(waker);
        if is_late {
            self.background.wake();
        }
        Poll::Pending
    }

    /// Somebody has taken a key that others may wait for: for a lease, or for good.
    #[cold]
    pub(super) fn taken(&self, mut shard: ShardGuard<'_>, key: &Key<'_>, record: &Record<'_>) {
        let Some(line) = shard.waiters.line(key.hash, key.number, key.bytes) else {
            return;
        };
        let mut called = Called::default();
        if record.kind == Kind::Complete {
            line.call(End::Decided, &mut called);
        } else {
            line.call_others(&mut called);
            called.is_late = line.alarm_by(record.until, key.hash, &self.lease_ends);
        }
        drop(shard);
        self.wake(called);
    }

    /// Counts one who waits, if there may be one more.
    fn admit(&self, key: &Key<'_>, of_key: usize) -> Result<(), TooManyWaiters> {
        let (namespace, limits) = (key.namespace, self.waiter_limits);
        if of_key >= limits.key {
            return Err(TooManyWaiters { scope: WaiterScope::Key, limit: limits.key });
        }
        let (is_scoped, scopes) = (key.number.is_scoped(), &namespace.scope_meters);
        if is_scoped && let Err(limit) = scopes.enter(key.prefix()) {
            return Err(TooManyWaiters { scope: WaiterScope::Scope, limit });
        }
        let leave_scope = || {
            if is_scoped {
                scopes.leave(key.prefix());
            }
        };
        let limit = limits.namespace.min(namespace.meter.waiters_max());
        if !count(&namespace.waiters, limit) {
            leave_scope();
            return Err(TooManyWaiters { scope: WaiterScope::Namespace, limit });
        }
        if !count(&self.waiters, limits.store) {
            namespace.waiters.fetch_sub(1, Ordering::Relaxed);
            leave_scope();
            return Err(TooManyWaiters { scope: WaiterScope::Store, limit: limits.store });
        }
        Ok(())
    }

    /// Those who wait for keys of the store.
    pub(crate) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }

    /// Leaves the list of a key, with the key or without it.
    pub(crate) fn stop_waiting(&self, key: &Key<'_>, wait: &mut KeyWait, has_key: bool) {
        let Some(number) = wait.number.take() else { return };
        // Also when the store is closed.
        let mut shard = self.shards[self.shard_of(key.hash)].lock(&self.wal);
        let left = shard.waiters.leave(key, number, has_key, &self.lease_ends);
        drop(shard);
        let Some((waiter, called)) = left else { return };
        if waiter.is_counted {
            key.namespace.waiters.fetch_sub(1, Ordering::Relaxed);
            self.waiters.fetch_sub(1, Ordering::Relaxed);
            if key.number.is_scoped() {
                key.namespace.scope_meters.leave(key.prefix());
            }
        }
        // Foreign code, both.
        drop(waiter);
        self.wake(called);
    }

    /// Looks at the keys of a hash that somebody waits for: their lease may be over.
    pub(super) fn end_held(&self, hash: KeyHash) {
        let mut called = Called::default();
        let way = self.way(hash);
        let pin = Pin::new();
        let Ok(mut shard) = self.lock(way.shard) else { return };
        let Some(mut lines) = shard.waiters.lines.remove(&hash) else { return };
        for line in &mut lines {
            let key = line.key.named(&line.namespace);
            let now = self.timeline.read();
            let mut seen = None;
            // A key that cannot be read is one for who claims it to stumble over.
            let standing = self.find(&shard, &key, way.route, &mut seen, &pin).map(|found| {
                found.map_or((Standing::Absent, now.lower), |found| {
                    let record = found.record;
                    let now = self.timeline.judge(now, [record.until(), record.expires()]);
                    (Standing::of(record, now, self.open_epoch), record.until())
                })
            });
            let patience = now.lower.after(PATIENCE);
            let alarm_at = match standing {
                Ok((Standing::Held, until)) => until,
                Ok((Standing::Lapsed(_) | Standing::Absent, _)) => {
                    line.call(End::Free, &mut called);
                    patience
                }
                _ => {
                    line.call(End::Decided, &mut called);
                    patience
                }
            };
            // It has rung.
            self.lease_ends.cancel(&mut line.alarm);
            line.alarm_by(alarm_at, hash, &self.lease_ends);
        }
        shard.waiters.lines.insert(hash, lines);
        drop((shard, pin));
        self.wake(called);
    }

    /// Calls everybody: the store is closed, or poisoned.
    pub(super) fn call_all(&self) {
        let mut called = Called::default();
        for shard in &self.shards {
            let mut shard = shard.lock(&self.wal);
            let lines = shard.waiters.lines.values_mut().flatten();
            lines.for_each(|line| line.call(End::Decided, &mut called));
        }
        self.wake(called);
    }
}

/// Counts one more, up to a limit.
fn count(counter: &AtomicUsize, limit: usize) -> bool {
    let more = |count: usize| (count < limit).then_some(count + 1);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
}
