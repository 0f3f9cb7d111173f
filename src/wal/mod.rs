//! The write-ahead log: all segments together. The WAL is the store: there is no second copy.
//!
//! [`Wal`] joins the parts of this folder: data files, segments, the lanes that fill them, the
//! rounds that make them durable, their recycling, the meta and names files beside them, and the
//! poison that ends it all. It knows records as bytes with a length and an expiry; what they mean is the engine's.
//!
//! Locks, in the order in which they may be held together: the gate, growth, then meta or lanes.
//! Rounds is held alone. None but the gate, growth and meta is held across a file operation that
//! can wait for the disk; an append in `Positioned` mode writes to the page cache under the lane's
//! lock.
//!
//! Invariants
//! - W5  Whatever writes to a file, but for an append and a round, passes the gate first and holds it
//!   open to its end. Closing ends appends (the shards refuse), shuts the gate and ends all rounds
//!   before the directory is given up: nothing is written to files that another process may have
//!   opened.

pub(crate) mod class;
pub(crate) mod data_file;
#[cfg(test)]
mod fixtures;
pub(crate) mod growth;
pub(crate) mod lane;
pub(crate) mod lanes;
pub(crate) mod meta;
pub(crate) mod names;
mod plan;
pub(crate) mod poison;
mod pool;
pub(crate) mod recycle;
mod room;
pub(crate) mod rounds;
#[cfg(all(test, any(loom, shuttle)))]
mod schedules;
pub(crate) mod scrub;
mod seal;
pub(crate) mod segments;
pub(crate) mod shrink;
pub(crate) mod stream;

use std::sync::Arc;

use crate::error::{Failure, StoreError};
use crate::format::draft::Draft;
use crate::format::mark::Mark;
use crate::format::meta::Meta;
use crate::format::names::Entry;
#[cfg(any(test, feature = "test-util"))]
use crate::hash::mix;
use crate::sys::ordinal;
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sys::sync::{Mutex, RwLock, RwLockReadGuard};
use crate::sys::{FileSystem, Pages};
use crate::types::{Epoch, Generation, Location, Timestamp};

use class::Class;
use growth::Growth;
use lane::{Append, AppendError, LaneChoice, RoomChange};
use lanes::Lanes;
use meta::MetaFile;
use names::{AppendFailure, NamesFile};
use poison::Poison;
use rounds::Rounds;
use segments::Segments;
use stream::Supply;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Wal {
    fs: Arc<dyn FileSystem>,
    store_id: [u8; 16],
    pub(crate) segments: Segments,
    lanes: Lanes,
    pub(crate) rounds: Rounds,
    pub(crate) poison: Poison,
    pub(crate) meta: MetaFile,
    names: Mutex<NamesFile>,
    /// Of the data files that are made from now on.
    pages: Pages,
    /// See [`FileSystem::stores_cannot_fail`].
    may_store: bool,
    #[cfg(any(test, feature = "test-util"))]
    shared_by_chance: Option<AtomicU64>,
    growth: Mutex<Growth>,
    /// How often the store has grown. Raised under `growth`, after the lanes have its segments.
    growths: AtomicU64,
    /// Calls that found no room.
    room_waits: AtomicU64,
    /// The most bytes that all data files may have.
    disk_bytes_max: u64,
    epoch: AtomicU32,
    /// Numbers the marks of this open. Used by the leader of a round only.
    mark_round: AtomicU64,
    /// W5.
    gate: RwLock<Gate>,
}

/// Whether files may still be written to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Gate {
    Open,
    Shut,
}

/// What room there is, for who is not going to use it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RoomLeft {
    /// In prepared segments, for claims.
    pub(crate) ready_bytes: u64,
    /// What data files may still be made of; `None`: whatever the disk has.
    pub(crate) growth_bytes: Option<u64>,
}

/// Keeps the gate open.
#[derive(Debug)]
pub(crate) struct Passage<'a> {
    _gate: RwLockReadGuard<'a, Gate>,
}

/// What a store starts with, see `engine::recovery`.
#[derive(Debug)]
pub(crate) struct WalParts {
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) store_id: [u8; 16],
    pub(crate) append: Append,
    pub(crate) pages: Pages,
    /// Whether rounds make anything durable.
    pub(crate) has_rounds: bool,
    pub(crate) segments: Segments,
    pub(crate) meta: MetaFile,
    pub(crate) names: NamesFile,
    pub(crate) growth: Growth,
    pub(crate) epoch: Epoch,
    pub(crate) disk_bytes_max: u64,
    pub(crate) headroom_bytes: u64,
    /// Lanes at most, and whether they are used when threads have met.
    pub(crate) lanes: usize,
    pub(crate) lanes_are_lazy: bool,
    /// Where chance begins, see [`Wal::is_shared`].
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) shared_by_chance: Option<u64>,
}

impl Wal {
    pub(crate) fn new(parts: WalParts) -> Self {
        let WalParts { fs, store_id, append, segments, meta, names, growth, .. } = parts;
        let (epoch, disk_bytes_max) = (parts.epoch, parts.disk_bytes_max);
        let may_store = fs.stores_cannot_fail();
        let wal = Self {
            fs,
            store_id,
            lanes: Lanes::new(
                append,
                segments.segment_bytes(),
                parts.headroom_bytes,
                parts.has_rounds,
                parts.lanes,
                parts.lanes_are_lazy,
            ),
            segments,
            rounds: Rounds::default(),
            poison: Poison::default(),
            meta,
            names: Mutex::new(names),
            pages: parts.pages,
            may_store,
            #[cfg(any(test, feature = "test-util"))]
            shared_by_chance: parts.shared_by_chance.map(AtomicU64::new),
            growth: Mutex::new(growth),
            growths: AtomicU64::new(0),
            room_waits: AtomicU64::new(0),
            disk_bytes_max,
            epoch: AtomicU32::new(epoch.0),
            mark_round: AtomicU64::new(1),
            gate: RwLock::new(Gate::Open),
        };
        for file in wal.growth.lock().files() {
            wal.lanes.add_file(Arc::clone(file));
        }
        wal
    }

    /// Poisons the store for `cause`; the call that met it may have had its effect. Threads that
    /// wait for a round wake; futures are woken by maintenance, because wakers are foreign code and
    /// the caller may hold locks.
    pub(crate) fn fail(&self, cause: Arc<Failure>) -> StoreError {
        let cause = self.poison.set(cause);
        self.rounds.wake_threads();
        StoreError::Unknown { cause }
    }

    /// Asks to write to files (W5). Not twice on one thread.
    pub(crate) fn pass(&self) -> Result<Passage<'_>, StoreError> {
        let gate = self.gate.read();
        match *gate {
            Gate::Open => Ok(Passage { _gate: gate }),
            Gate::Shut => Err(StoreError::Closed),
        }
    }

    /// Waits until nobody is past the gate, and lets nobody pass any more.
    pub(crate) fn shut_gate(&self) {
        *self.gate.write() = Gate::Shut;
    }

    /// Appends a record, see [`Lanes::append`], behind one that was appended to lane `after`, if it takes the place of one.
    /// `Ok(None)`: there is no room, the store must grow.
    pub(crate) fn append(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
        after: Option<usize>,
    ) -> Result<Option<Location>, StoreError> {
        self.appended(self.lanes.append(draft, class, change, self.choice(after), self.way()))
    }

    /// Appends a copy of a record that lies in a segment about to be recycled.
    pub(crate) fn append_copy(
        &self,
        draft: &Draft<'_>,
        class: Class,
    ) -> Result<Option<Location>, StoreError> {
        self.appended(self.lanes.append_copy(draft, class, self.choice(None), self.way()))
    }

    /// The lane of a record that takes the place of one in lane `after`.
    #[inline]
    fn choice(&self, after: Option<usize>) -> LaneChoice {
        #[cfg(any(test, feature = "test-util"))]
        if let Some(chance) = &self.shared_by_chance {
            // Relaxed: one thread.
            let any = || LaneChoice::Any(mix(chance.fetch_add(1, Ordering::Relaxed)) as usize);
            return after.map_or_else(any, LaneChoice::Of);
        }
        after.map_or_else(|| LaneChoice::Any(ordinal::own()), LaneChoice::Of)
    }

    /// How a record is written now. One write by the kernel makes the sync that follows it a little cheaper; where many
    /// share a round, the calls of all of them together are dearer (docs/decisions/0005-append.md).
    #[inline]
    fn way(&self) -> Append {
        match self.lanes.append {
            Append::Positioned if self.may_store && self.is_shared() => Append::Mapped,
            append => append,
        }
    }

    /// Whether rounds are for many; in tests of one thread, at random.
    #[inline]
    fn is_shared(&self) -> bool {
        #[cfg(any(test, feature = "test-util"))]
        if let Some(chance) = &self.shared_by_chance {
            // Relaxed: one thread.
            return mix(chance.fetch_add(1, Ordering::Relaxed)).is_multiple_of(2);
        }
        self.rounds.is_shared()
    }

    fn appended(
        &self,
        result: Result<Location, AppendError>,
    ) -> Result<Option<Location>, StoreError> {
        match result {
            Ok(location) => Ok(Some(location)),
            Err(AppendError::NoRoom) => Ok(None),
            Err(AppendError::Failed(cause)) => Err(self.fail(cause)),
        }
    }

    /// Reserves room for claims that recovery found.
    pub(crate) fn hold_room(&self, bytes: u64) {
        self.lanes.hold(bytes);
    }

    /// Gives back room of a claim that nobody can finish any more.
    pub(crate) fn release_room(&self, bytes: u64) {
        self.lanes.release(bytes);
    }

    /// What room there is, and whether the store should grow.
    pub(crate) fn supply(&self) -> Supply {
        let total = u64::from(self.growth.lock().segments());
        self.lanes.supply(total)
    }

    /// Uses more lanes, if that is called for.
    pub(crate) fn widen(&self) {
        let most = self.growth.lock().segments_most(self.disk_bytes_max);
        self.lanes.widen(most);
    }

    /// How many lanes are in use.
    pub(crate) fn lanes(&self) -> usize {
        self.lanes.in_use()
    }

    /// Calls that found no room prepared.
    pub(crate) fn room_waits(&self) -> u64 {
        self.room_waits.load(Ordering::Relaxed)
    }

    /// How often the store has grown: read it before an append, hand it to [`Wal::grow`] after.
    pub(crate) fn growths(&self) -> u64 {
        self.growths.load(Ordering::Acquire)
    }

    /// What the leader of a round does: writes the mark, syncs what is dirty, and notes what is
    /// durable now. Everything appended before the call is.
    pub(crate) fn sync_round(&self, now: impl FnOnce() -> Timestamp) -> Result<(), Arc<Failure>> {
        let Some(plan) = self.lanes.begin_round() else { return Ok(()) };
        let mark = Mark {
            epoch: Epoch(self.epoch.load(Ordering::Relaxed)),
            round: self.mark_round.fetch_add(1, Ordering::Relaxed),
            // R9: read when the round has begun. Whoever asked for this mark may have acted on a time
            // that came after the leader was chosen.
            clock: now(),
            stable: plan.stable,
            entries: plan.entries.clone(),
        };
        reach(Point::BeforeMark);
        if let Some(marked) = &plan.marked {
            marked.write_mark(&self.store_id, &mark)?;
            reach(Point::BeforeRoundSync);
            marked.sync()?;
        }
        for file in &plan.files {
            if plan.marked.as_ref().is_none_or(|marked| !Arc::ptr_eq(marked, file)) {
                file.sync()?;
            }
        }
        reach(Point::BehindRoundSync);
        self.lanes.end_round(&plan);
        Ok(())
    }

    /// Takes the page faults of what is filled next, if each stream takes `bytes` more; and with them
    /// the kernel's brake on whoever dirties pages faster than the disk takes them.
    pub(crate) fn prefault(&self, bytes: u64) {
        self.lanes.stock_indexes();
        for (segment, to) in self.lanes.filled_next(bytes) {
            segment.make_ready(to);
        }
    }

    /// See [`Lanes::is_crowded`].
    pub(crate) fn is_crowded(&self) -> bool {
        self.lanes.is_crowded()
    }

    /// Whether everything appended is durable and a durable mark says so.
    pub(crate) fn is_proven(&self) -> bool {
        self.lanes.is_proven()
    }

    /// Seals the active segments for good.
    pub(crate) fn seal_all(&self) -> Result<(), StoreError> {
        self.lanes.end_all();
        self.lanes.seal_ended().map_err(|cause| self.fail(cause))?;
        Ok(())
    }

    /// The least generation that may still be written to, when no segment is active.
    pub(crate) fn stable_generation(&self) -> Generation {
        let fresh = self.growth.lock().next_generation;
        self.lanes.first_prepared().unwrap_or(fresh)
    }

    /// Appends an entry to the names file, durably, and counts it in the meta file, which `count`
    /// changes along with that. `false`: the file is as long as it may be. The caller has passed the
    /// gate.
    pub(crate) fn append_entry(
        &self,
        entry: &Entry,
        count: impl FnOnce(&mut Meta),
    ) -> Result<bool, StoreError> {
        let mut names = self.names.lock();
        if !names.has_room() {
            return Ok(false);
        }
        let end = names.append(entry).map_err(|failure| match failure {
            AppendFailure::Write(cause) => StoreError::Io(cause),
            AppendFailure::Sync(cause) => self.fail(cause),
        })?;
        reach(Point::BehindNameSync);
        let counted = self.meta.update(|meta| {
            meta.names_bytes = end;
            meta.has_raises |= matches!(entry, Entry::Raise(_));
            meta.has_refreshes |= entry.refreshes();
            meta.has_quotas |= matches!(entry, Entry::Quota(..));
            meta.has_erasures |= matches!(entry, Entry::Erasure(_));
            count(meta);
        });
        counted.map_err(|cause| self.fail(cause))?;
        names.advance(end);
        Ok(true)
    }

    /// Raises the open epoch in place, durably, and gives the new one.
    pub(crate) fn raise_epoch(&self) -> Result<Epoch, StoreError> {
        let _passage = self.pass()?;
        self.poison.check_before()?;
        let mut raised = None;
        let updated = self.meta.update(|meta| {
            raised = meta.epoch.raised_by(1);
            meta.epoch = raised.unwrap_or(meta.epoch);
        });
        updated.map_err(|cause| self.fail(cause))?;
        let epoch = raised.ok_or(StoreError::TokensExhausted)?;
        self.epoch.fetch_max(epoch.0, Ordering::Relaxed);
        Ok(epoch)
    }

    /// What room there is, for who is not going to use it.
    pub(crate) fn room(&self) -> RoomLeft {
        let growth = self.growth.lock();
        let (disk_bytes, total) = (growth.disk_bytes(), u64::from(growth.segments()));
        drop(growth);
        let supply = self.lanes.supply(total);
        let is_bounded = self.disk_bytes_max < u64::MAX;
        RoomLeft {
            ready_bytes: supply.free_bytes,
            growth_bytes: is_bounded.then(|| self.disk_bytes_max.saturating_sub(disk_bytes)),
        }
    }

    /// Bytes of all data files, and of the segments that were ever written to.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        let growth = self.growth.lock();
        let disk = growth.disk_bytes();
        let total = u64::from(growth.segments());
        let used = total - self.lanes.supply(total).prepared;
        (disk, used * u64::from(self.segments.segment_bytes()))
    }
}
