//! The engine: joins table, WAL and time into the life of a key.
//!
//! It owns every lock, in this order (a lock may be taken while those before it are held, never the
//! other way round; several shards by rising index):
//!
//! 1. `namespaces.changing`, `names`: who defines namespaces. Held across syncs.
//! 2. the gate of the WAL: who writes to files. Held across syncs, never taken under a shard.
//! 3. a shard: the state machine of its keys. Nothing that waits for a sync happens under it; in
//!    `Sync` mode an append writes to the page cache.
//! 4. `wal.growth`: who makes data files and headers. Held across syncs, never taken under a shard.
//! 5. the lane: who appends.
//! 6. `wal.meta`: who changes the meta file. Held across its sync.
//!    Those of one namespace, each by itself: the sums of its scopes, its rates, its counts.
//! 7. rounds, background, what was erased, the hold on the directory, and what a waker's owner does: alone. (A failed append notifies the
//!    threads that wait for rounds under its shard, and wakes maintenance; nobody takes a shard under either.)
//!
//! The parts: `claims` (claim, once), over `origin` (what a grant goes on from), `lookups`, `batch` (several keys at once), `exits` (renew, complete, release, park), `refresh` (windows
//! that duplicates extend), `fences` (of sinks), `operator` (resolve, forget, orphans), `forget_all`,
//! `erasing` (what was forgotten leaves the disk), `gaps` (of a salvaged store), `recovery` (open, verify, salvage),
//! `maintenance` (what happens in between and at the end), `lease_ends` and `waiters` (who waits for them, and for keys),
//! `expiry`, `purge` and `compaction` (segments whose time has come, or that waste room), `events` (what is counted),
//! `quotas` and `scope_quotas` (how much there may be), `rates` (how often there may be more), over
//! `state` (what a record means) and `shard` (one shard's table and tokens).

pub(crate) mod batch;
pub(crate) mod claims;
mod compaction;
mod erasing;
pub(crate) mod events;
pub(crate) mod exits;
pub(crate) mod expiry;
pub(crate) mod fences;
mod forget_all;
pub(crate) mod gaps;
pub(crate) mod lease_ends;
mod lookups;
pub(crate) mod maintenance;
pub(crate) mod namespaces;
pub(crate) mod operator;
mod origin;
pub(crate) mod purge;
pub(crate) mod quotas;
#[cfg(feature = "rate-limit")]
pub(crate) mod rates;
pub(crate) mod recovery;
mod refresh;
#[cfg(all(test, any(loom, shuttle)))]
mod schedules;
mod scope_quotas;
mod search;
pub(crate) mod shard;
mod spans;
pub(crate) mod state;
pub(crate) mod time;
pub(crate) mod told;
pub(crate) mod waiters;

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use crossbeam_utils::CachePadded;

use self::search::{Found, Seen};
use crate::error::{Failure, StoreError};
use crate::format::draft::Draft;
use crate::format::names::ErasureEntry;
use crate::sys::fork::ForkGuard;
use crate::sys::kept::Hold;
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sys::sync::{Mutex, RwLock, yield_now};
use crate::table::Route;
use crate::types::{Epoch, FencingToken, KEY_BYTES_MAX, KeyHash, Location, Timestamp};
use crate::wal::Wal;
use crate::wal::class::Class;
use crate::wal::lane::RoomChange;
use crate::wal::rounds::{Leader, RoundWait, Ticket};

use gaps::Gaps;
use lease_ends::LeaseEnds;
use maintenance::Background;
use namespaces::{Key, Namespaces};
use purge::PurgeCounts;
use shard::{Shard, ShardGuard, ShardState};
use time::Timeline;
use waiters::WaiterLimits;

/// How often whoever finds marks full tries to change that.
const RELIEF_ROUNDS: usize = 10_000;

/// When a change is acknowledged, for the whole store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    /// There is nothing to survive on.
    Memory,
    Buffered,
    Sync,
    Interval(Duration),
}

/// When one call is acknowledged, if it asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CallDurability {
    Buffered,
    Sync,
}

/// An open store.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) wal: Wal,
    pub(crate) timeline: Timeline,
    pub(crate) namespaces: Namespaces,
    pub(crate) gaps: Gaps,
    /// What was erased, in the order in which it was.
    erasures: RwLock<Vec<ErasureEntry>>,
    pub(crate) lease_ends: LeaseEnds,
    /// Those who wait for keys, and how many may.
    waiters: AtomicUsize,
    waiter_limits: WaiterLimits,
    pub(crate) background: Background,
    pub(crate) purge_counts: PurgeCounts,
    /// When the last round ended, in nanoseconds of the monotonic clock; 0: none has. On a line of its own.
    synced_at: CachePadded<AtomicU64>,
    shards: Box<[Shard]>,
    pub(crate) mode: Mode,
    /// The epoch of this open: claims of earlier ones are orphans.
    open_epoch: Epoch,
    /// Whether the meta file says that there are keys with a scope.
    has_scopes: AtomicBool,
    /// For those who read without a lock. Set while all shards are locked.
    is_closed: AtomicBool,
    /// Longest body that is kept.
    body_bytes_max: usize,
    fork: Arc<ForkGuard>,
    /// Given up by `close`, or with the engine.
    hold: Mutex<Option<Arc<Hold>>>,
    /// The same, for outcomes that are kept: as long as it is there.
    held: Weak<Hold>,
}

/// A result, and what must happen before anybody may see it.
#[derive(Debug)]
pub(crate) struct Answered<T, E> {
    pub(crate) result: Result<T, E>,
    pub(crate) settle: Option<Settle>,
}

/// A round to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settle {
    pub(crate) ticket: Ticket,
    /// The round makes the caller's own change durable; otherwise somebody else's, which the
    /// caller is about to be shown (R19).
    pub(crate) is_own: bool,
}

/// What a call does about a round that its answer has to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Settling {
    /// It waits, before it makes the answer.
    Now,
    /// It leaves that to who gets the answer.
    Later(Option<Settle>),
}

impl<T, E: From<StoreError>> From<Result<T, E>> for Answered<T, E> {
    fn from(result: Result<T, E>) -> Self {
        Self { result, settle: None }
    }
}

/// Where a key's slot is, or would be.
#[derive(Clone, Copy, Debug)]
struct Way<'a> {
    shard: &'a Shard,
    route: Route,
}

impl Engine {
    /// Refuses what a forked child may not do. Whether the store is closed is checked under the
    /// shard's lock.
    #[inline]
    pub(crate) fn check_process(&self) -> Result<(), StoreError> {
        if self.fork.is_child() { Err(StoreError::Forked) } else { Ok(()) }
    }

    pub(crate) fn is_child(&self) -> bool {
        self.fork.is_child()
    }

    /// For calls that concern no key.
    pub(crate) fn check_open(&self) -> Result<(), StoreError> {
        self.check_process()?;
        let is_closed = self.shards.iter().any(|shard| shard.lock(&self.wal).is_closed);
        if is_closed { Err(StoreError::Closed) } else { Ok(()) }
    }

    /// For calls that may change something.
    #[inline(always)]
    fn check_change(&self, key: &Key<'_>) -> Result<(), StoreError> {
        self.check_process()?;
        check_key(key)?;
        if key.number.is_scoped() && !self.has_scopes.load(Ordering::Acquire) {
            self.begin_scopes()?;
        }
        self.wal.poison.check_before()
    }

    #[inline]
    fn shard_of(&self, hash: KeyHash) -> usize {
        // The top bits; `shards` is a power of two, and `checked_shr` covers a single shard.
        let bits = self.shards.len().trailing_zeros();
        hash.0.checked_shr(64 - bits).unwrap_or(0) as usize
    }

    /// The way of a hash.
    #[inline(always)]
    fn way(&self, hash: KeyHash) -> Way<'_> {
        let shard = &self.shards[self.shard_of(hash)];
        Way { shard, route: shard.buckets().route(hash) }
    }

    /// The way of a hash whose bucket will be looked at, or changed: its memory is asked for.
    #[inline(always)]
    fn way_to_change(&self, hash: KeyHash) -> Way<'_> {
        let way = self.way(hash);
        way.shard.buckets().prefetch_bucket(&way.route);
        way
    }

    /// Locks the shard of a key, unless the store is closed.
    fn lock_shard(&self, hash: KeyHash) -> Result<ShardGuard<'_>, StoreError> {
        self.lock(&self.shards[self.shard_of(hash)])
    }

    /// Locks a shard, unless the store is closed.
    #[inline]
    fn lock<'a>(&'a self, shard: &'a Shard) -> Result<ShardGuard<'a>, StoreError> {
        let guard = shard.lock(&self.wal);
        if guard.is_closed { Err(StoreError::Closed) } else { Ok(guard) }
    }

    /// The next token of a shard; `None` when its counter has run out and the epoch must be raised.
    fn next_token(&self, shard: &mut ShardState) -> Option<FencingToken> {
        shard.tokens.next(self.shards.len())
    }

    /// Gives the shard of `hash` a fresh epoch to count in.
    fn renew_tokens(&self, hash: KeyHash) -> Result<(), StoreError> {
        let epoch = self.wal.raise_epoch()?;
        let index = self.shard_of(hash);
        self.lock_shard(hash)?.tokens.restart(epoch, index);
        Ok(())
    }

    /// Appends a record that takes the place of what was `seen`, or of nothing, and tells maintenance. `None`: there is
    /// no room.
    fn append(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
        seen: Option<&Seen<'_>>,
    ) -> Result<Option<Location>, StoreError> {
        let after = seen.and_then(|seen| self.wal.segments.lane_of(seen.location, seen.pin));
        self.append_after(draft, class, change, after)
    }

    /// The same, behind what lies in lane `after`.
    #[inline]
    fn append_after(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
        after: Option<usize>,
    ) -> Result<Option<Location>, StoreError> {
        let location = self.wal.append(draft, class, change, after);
        self.background.note();
        if location.is_err() {
            // Those who wait for keys must hear of it.
            self.background.wake();
        }
        location
    }

    /// Ends the entry of a key that is free by the record at `location`. In a salvaged store it is
    /// kept: that the key was ended keeps it out of doubt.
    fn end_entry(
        &self,
        shard: &mut ShardState,
        found: Found<'_, '_>,
        draft: &Draft<'_>,
        location: Location,
        now: Timestamp,
    ) {
        if self.gaps.last(now) {
            self.account(shard, Some(found.record), Some(draft));
            shard.table.replace(found.position, location, false);
        } else {
            self.account(shard, Some(found.record), None);
            shard.table.remove(found.position);
        }
    }

    /// Makes room. `Ok(Some)`: that was not possible, for this reason.
    fn make_room(&self, growths: u64) -> Result<Option<Arc<Failure>>, StoreError> {
        if self.wal.is_crowded() {
            return self.relieve();
        }
        match self.wal.grow_now(growths, self.timeline.now()) {
            Ok(()) => Ok(None),
            Err(StoreError::Io(cause)) => Ok(Some(cause)),
            Err(error) => Err(error),
        }
    }

    /// Seals what is full, and makes it stable, until marks can list more segments: maintenance is late.
    #[cold]
    fn relieve(&self) -> Result<Option<Arc<Failure>>, StoreError> {
        for _ in 0..RELIEF_ROUNDS {
            let passage = self.wal.pass()?;
            self.wal.seal_aged(&passage, self.timeline.monotonic(), 0)?;
            drop(passage);
            // One makes what was sealed durable, and the other one says so.
            for _ in 0..2 {
                self.wal.want_mark();
                let ticket = self.wal.rounds.ticket();
                let ended = self.wal.rounds.wait(ticket, &self.wal.poison, &self.leader());
                ended.map_err(|cause| StoreError::Poisoned { cause })?;
            }
            if !self.wal.is_crowded() {
                return Ok(None);
            }
            // Somebody else is sealing.
            yield_now();
        }
        Ok(Some(no_room()))
    }

    /// Whether an outcome is to be shown to nobody before it is durable.
    fn is_gated(&self, durability: Option<CallDurability>) -> bool {
        match (self.mode, durability) {
            (Mode::Memory, _) | (_, Some(CallDurability::Buffered)) => false,
            (_, Some(CallDurability::Sync)) => true,
            (Mode::Buffered, None) => false,
            (Mode::Sync | Mode::Interval(_), None) => true,
        }
    }

    /// Whether the caller waits for its own change.
    fn waits(&self, durability: Option<CallDurability>) -> bool {
        self.is_gated(durability)
            && !(durability.is_none() && matches!(self.mode, Mode::Interval(_)))
    }

    /// Ends a call that changed something: with a ticket, or at once.
    fn changed<T, E: From<StoreError>>(
        &self,
        value: T,
        durability: Option<CallDurability>,
    ) -> Answered<T, E> {
        reach(Point::BehindInsert);
        if self.waits(durability) {
            let settle = Settle { ticket: self.wal.rounds.ticket(), is_own: true };
            return Answered { result: Ok(value), settle: Some(settle) };
        }
        // I10: after the first failed sync nothing is acknowledged.
        Answered {
            result: self.wal.poison.check_after().map(|()| value).map_err(E::from),
            settle: None,
        }
    }

    /// Ends a call that shows a completion: when it is as durable as it was asked to be.
    fn shown<T, E>(&self, result: Result<T, E>, found: &Seen<'_>) -> Answered<T, E> {
        Answered { result, settle: self.gate(found) }
    }

    /// Waits for a round, leading it if need be.
    pub(crate) fn settle(&self, settle: Settle) -> Result<(), StoreError> {
        self.check_process()?;
        let ended = self.wal.rounds.wait(settle.ticket, &self.wal.poison, &self.leader());
        ended.map_err(|cause| settle.refusal(cause))
    }

    pub(crate) fn poll_settle(
        &self,
        settle: Settle,
        wait: &mut RoundWait,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), StoreError>> {
        self.check_process()?;
        let polled = wait.poll(&self.wal.rounds, &self.wal.poison, &self.leader(), context);
        polled.map_err(|cause| settle.refusal(cause))
    }

    pub(crate) fn leader(&self) -> RoundLeader<'_> {
        RoundLeader { engine: self }
    }

    /// Waits, and gives the result.
    pub(crate) fn answer<T, E: From<StoreError>>(&self, answered: Answered<T, E>) -> Result<T, E> {
        if let Some(settle) = answered.settle {
            self.settle(settle)?;
        }
        answered.result
    }

    /// Whether the store was closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Leases of all shards.
    pub(crate) fn leases(&self) -> usize {
        self.shards.iter().map(Shard::leases).sum()
    }

    /// A lease handle is gone.
    pub(crate) fn lease_dropped(&self, hash: KeyHash) {
        self.shards[self.shard_of(hash)].drop_lease();
    }

    /// Entries, and bytes of the tables.
    pub(crate) fn table_sizes(&self) -> (usize, usize) {
        let sizes = self.shards.iter().map(|shard| {
            let state = shard.lock(&self.wal);
            (state.table.len(), state.table.memory_bytes())
        });
        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }

    /// Calls `during` with every shard locked.
    #[cfg(feature = "test-util")]
    pub(crate) fn with_shards_locked<T>(&self, during: impl FnOnce() -> T) -> T {
        let _shards: Vec<_> = self.shards.iter().map(|shard| shard.lock(&self.wal)).collect();
        during()
    }

    /// Checks every shard's table against the records it points to, and that no key is there twice.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn check_invariants(&self) -> Result<(), StoreError> {
        use std::collections::HashSet;

        use crate::sys::pin::Pin;

        let mut keys = HashSet::new();
        let pin = Pin::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let state = shard.lock(&self.wal);
            state.table.check_invariants(|slot| {
                self.wal.segments.record(slot.location(), &pin).ok().map(|record| record.key_hash())
            });
            state.table.for_each(|_, slot| {
                let record = self.wal.segments.record(slot.location(), &pin)?;
                assert_eq!(self.shard_of(record.key_hash()), index, "the key is in its shard");
                let is_done = record.kind() == crate::format::record::Kind::Complete;
                assert_eq!(slot.is_done(), is_done, "the slot knows a completion");
                assert!(keys.insert((record.namespace(), record.key())), "a key is there twice");
                Ok::<_, StoreError>(())
            })?;
        }
        self.check_meters();
        Ok(())
    }
}

impl Settling {
    /// What a call answers that waits for nothing.
    #[inline]
    pub(crate) fn later<T, E>(call: impl FnOnce(&mut Self) -> Result<T, E>) -> Answered<T, E> {
        let mut settling = Self::Later(None);
        let result = call(&mut settling);
        let settle = match settling {
            Self::Now => None,
            Self::Later(settle) => settle,
        };
        Answered { result, settle }
    }

    #[inline]
    fn is_later(&self) -> bool {
        matches!(self, Self::Later(_))
    }

    #[inline]
    fn settle(&mut self, engine: &Engine, settle: Option<Settle>) -> Result<(), StoreError> {
        match (self, settle) {
            (Self::Later(later), settle) => *later = settle,
            (Self::Now, None) => {}
            (Self::Now, Some(settle)) => engine.settle(settle)?,
        }
        Ok(())
    }
}

impl Settle {
    fn refusal(self, cause: Arc<Failure>) -> StoreError {
        if self.is_own { StoreError::Unknown { cause } } else { StoreError::Poisoned { cause } }
    }
}

/// Leads rounds on behalf of the engine.
#[derive(Debug)]
pub(crate) struct RoundLeader<'a> {
    engine: &'a Engine,
}

impl Leader for RoundLeader<'_> {
    fn sync(&self) -> Result<(), Arc<Failure>> {
        self.engine.wal.sync_round(|| self.engine.timeline.now())?;
        self.engine.note_sync();
        Ok(())
    }

    fn wanted(&self) {
        self.engine.background.wake();
    }
}

#[inline]
fn check_key(key: &Key<'_>) -> Result<(), StoreError> {
    let len = if key.number.is_scoped() { key.given_len() } else { key.bytes.len() };
    if (1..=KEY_BYTES_MAX).contains(&len) { Ok(()) } else { Err(StoreError::KeyLength { len }) }
}

/// The reason in place of one the operating system gave, for what only a full store can meet.
fn no_room() -> Arc<Failure> {
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    Failure::new("append to", PathBuf::from("the WAL"), full)
}
