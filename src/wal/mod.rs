//! The write-ahead log: all segments together. The WAL is the store: there is no second copy.
//!
//! [`Wal`] joins the parts of this folder: data files, segments, the lane that fills them, the
//! rounds that make them durable, their recycling, the meta and names files beside them, and the
//! poison that ends it all. It knows records as bytes with a length and an expiry; what they mean is the engine's.
//!
//! Locks, in the order in which they may be held together: the gate, growth, then meta or lane.
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
pub(crate) mod lane;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod poison;
pub(crate) mod recycle;
pub(crate) mod rounds;
pub(crate) mod segments;
pub(crate) mod stream;

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::{Failure, StoreError};
use crate::format::file::{self, FILES_MAX, SEGMENTS_FIRST, SEGMENTS_MAX};
use crate::format::mark::Mark;
use crate::format::meta::Meta;
use crate::format::names::Entry;
use crate::format::record::Draft;
use crate::format::segment::DATA_START;
use crate::sys::FileSystem;
use crate::sys::point::{Point, reach};
use crate::sys::sync::{Mutex, RwLock, RwLockReadGuard};
use crate::types::{Epoch, FileId, Generation, Location, SegmentId, Timestamp};

use class::Class;
use data_file::{DataFile, Filling};
use lane::{Append, AppendError, Lane, RoomChange, Supply};
use meta::MetaFile;
use names::{AppendFailure, NamesFile};
use poison::Poison;
use rounds::Rounds;
use segments::Segments;

/// Generations are reserved in the meta file this many at a time, beyond those needed at once.
const GENERATION_STEP: u64 = 1024;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Wal {
    fs: Arc<dyn FileSystem>,
    store_id: [u8; 16],
    pub(crate) segments: Segments,
    lane: Lane,
    pub(crate) rounds: Rounds,
    pub(crate) poison: Poison,
    pub(crate) meta: MetaFile,
    names: Mutex<NamesFile>,
    growth: Mutex<Growth>,
    /// How often the store has grown. Raised under `growth`, after the lane has its segments.
    growths: AtomicU64,
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

/// Keeps the gate open.
#[derive(Debug)]
pub(crate) struct Passage<'a> {
    _gate: RwLockReadGuard<'a, Gate>,
}

/// The data files there are, and what is needed to make the next one.
#[derive(Debug)]
pub(crate) struct Growth {
    pub(crate) files: Vec<Arc<DataFile>>,
    /// The first generation that no header bears.
    pub(crate) next_generation: Generation,
    /// A file that maintenance is making ahead of need.
    filling: Option<Filling>,
    /// After a failure the next try is for one segment.
    last_try_failed: bool,
}

impl Growth {
    pub(crate) fn new(files: Vec<Arc<DataFile>>, next_generation: Generation) -> Self {
        Self { files, next_generation, filling: None, last_try_failed: false }
    }

    fn segments(&self) -> u32 {
        self.files.iter().map(|file| file.header().segments).sum()
    }

    fn next_segment(&self) -> SegmentId {
        self.files.iter().map(|file| file.header().end()).max().unwrap_or(SegmentId(0))
    }

    /// Segments of the next file, made in time: as many as there are, so that the store doubles.
    fn next_size(&self) -> u32 {
        if self.last_try_failed { 1 } else { self.segments().clamp(SEGMENTS_FIRST, SEGMENTS_MAX) }
    }
}

/// What a store starts with, see `engine::recovery`.
#[derive(Debug)]
pub(crate) struct WalParts {
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) store_id: [u8; 16],
    pub(crate) append: Append,
    pub(crate) segments: Segments,
    pub(crate) meta: MetaFile,
    pub(crate) names: NamesFile,
    pub(crate) growth: Growth,
    pub(crate) epoch: Epoch,
}

impl Wal {
    pub(crate) fn new(parts: WalParts) -> Self {
        let WalParts { fs, store_id, append, segments, meta, names, growth, epoch } = parts;
        let wal = Self {
            fs,
            store_id,
            lane: Lane::new(append, segments.segment_bytes()),
            segments,
            rounds: Rounds::default(),
            poison: Poison::default(),
            meta,
            names: Mutex::new(names),
            growth: Mutex::new(growth),
            growths: AtomicU64::new(0),
            epoch: AtomicU32::new(epoch.0),
            mark_round: AtomicU64::new(1),
            gate: RwLock::new(Gate::Open),
        };
        for file in &wal.growth.lock().files {
            wal.lane.add_file(Arc::clone(file));
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

    /// Appends a record, see [`Lane::append`]. `Ok(None)`: there is no room, the store must grow.
    pub(crate) fn append(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
    ) -> Result<Option<Location>, StoreError> {
        self.appended(self.lane.append(draft, class, change))
    }

    /// Appends a copy of a record that lies in a segment about to be recycled.
    pub(crate) fn append_copy(
        &self,
        draft: &Draft<'_>,
        class: Class,
    ) -> Result<Option<Location>, StoreError> {
        self.appended(self.lane.append_copy(draft, class))
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
        self.lane.hold(bytes);
    }

    /// Gives back room of a claim that nobody can finish any more.
    pub(crate) fn release_room(&self, bytes: u64) {
        self.lane.release(bytes);
    }

    /// What room there is, and whether the store should grow.
    pub(crate) fn supply(&self) -> Supply {
        let total = u64::from(self.growth.lock().segments());
        self.lane.supply(total)
    }

    /// How often the store has grown: read it before an append, hand it to [`Wal::grow`] after.
    pub(crate) fn growths(&self) -> u64 {
        self.growths.load(Ordering::Acquire)
    }

    /// Makes a small data file at once, unless the store has grown since `seen` was read. For
    /// callers who found no room; called with no lock held. On an error nothing has changed.
    pub(crate) fn grow_now(&self, seen: u64, now: Timestamp) -> Result<(), StoreError> {
        let _passage = self.pass()?;
        let mut growth = self.growth.lock();
        if self.growths() != seen {
            return Ok(());
        }
        self.poison.check_before()?;
        let mut count = if growth.last_try_failed { 1 } else { SEGMENTS_FIRST };
        loop {
            match self.make_file(&growth, count) {
                Ok(filled) => match self.take_into_use(&mut growth, filled, now)? {
                    Ok(()) => return Ok(()),
                    Err(cause) => return self.growth_failed(&mut growth, cause),
                },
                Err(cause) if count > 1 && is_about_room(&cause) => count /= 2,
                Err(cause) => return self.growth_failed(&mut growth, cause),
            }
        }
    }

    fn growth_failed(&self, growth: &mut Growth, cause: Arc<Failure>) -> Result<(), StoreError> {
        growth.last_try_failed = true;
        Err(StoreError::Io(cause))
    }

    /// Makes a file of `count` segments from start to end.
    fn make_file(&self, growth: &Growth, count: u32) -> Result<Filling, Arc<Failure>> {
        let mut filling = self.start_filling(growth, count)?;
        match filling.step(&*self.fs, u64::MAX) {
            Ok(()) => Ok(filling),
            Err(cause) => {
                data_file::abandon(&*self.fs, filling.id());
                Err(cause)
            }
        }
    }

    /// Goes on with the file that is being made ahead of need, for about `bytes`; starts one if
    /// need be. For maintenance.
    pub(crate) fn grow_ahead(&self, bytes: u64, now: Timestamp) -> Result<(), StoreError> {
        let _passage = self.pass()?;
        let mut growth = self.growth.lock();
        self.poison.check_before()?;
        let mut filling = match growth.filling.take() {
            Some(filling) => filling,
            None => match self.start_filling(&growth, growth.next_size()) {
                Ok(filling) => filling,
                Err(cause) => return self.growth_failed(&mut growth, cause),
            },
        };
        if let Err(cause) = filling.step(&*self.fs, bytes) {
            data_file::abandon(&*self.fs, filling.id());
            return self.growth_failed(&mut growth, cause);
        }
        if !filling.is_filled() {
            growth.filling = Some(filling);
            return Ok(());
        }
        match self.take_into_use(&mut growth, filling, now)? {
            Ok(()) => Ok(()),
            Err(cause) => self.growth_failed(&mut growth, cause),
        }
    }

    /// Whether a file is being made ahead of need.
    pub(crate) fn is_growing(&self) -> bool {
        self.growth.lock().filling.is_some()
    }

    /// Gives up the file that is being made ahead of need.
    pub(crate) fn abandon_growth(&self) {
        if let Some(filling) = self.growth.lock().filling.take() {
            data_file::abandon(&*self.fs, filling.id());
        }
    }

    fn start_filling(&self, growth: &Growth, count: u32) -> Result<Filling, Arc<Failure>> {
        let taken = growth.filling.as_ref().map(Filling::id);
        let id = self.meta.read(|meta| meta.files.first_free(taken));
        let units = self.segments.segment_bytes() / Location::UNIT_BYTES as u32;
        let end = growth.next_segment().0 + 2 * SEGMENTS_MAX;
        let Some(id) = id.filter(|_| (u64::from(end) * u64::from(units)) >> Location::BITS == 0)
        else {
            let path = self.fs.describe(&file::name(FileId(FILES_MAX)));
            let limit = std::io::Error::new(ErrorKind::StorageFull, "the store has its full size");
            return Err(Failure::new("create", path, limit));
        };
        Filling::start(&*self.fs, id, count, self.segments.segment_bytes())
    }

    /// Gives a filled file its headers, lists it, and hands its segments to the lane. The inner
    /// error leaves the store as it was.
    fn take_into_use(
        &self,
        growth: &mut Growth,
        filling: Filling,
        now: Timestamp,
    ) -> Result<Result<(), Arc<Failure>>, StoreError> {
        let id = filling.id();
        let first_generation = growth.next_generation;
        // R8: no header bears a generation at or above the ceiling on disk, and none that any other
        // header ever bore, be this file given up or not.
        growth.next_generation.0 += u64::from(SEGMENTS_MAX);
        let end = growth.next_generation.0;
        if self.meta.read(|meta| meta.generation_ceiling.0) < end {
            let ceiling = Generation(end + GENERATION_STEP);
            let raised = self.meta.update(|meta| meta.generation_ceiling = ceiling);
            raised.map_err(|cause| self.fail(cause))?;
        }
        let first = growth.next_segment();
        let made = filling.finish(&*self.fs, &self.store_id, first, first_generation, now);
        let file = match made {
            Ok(file) => Arc::new(file),
            Err(cause) => {
                data_file::abandon(&*self.fs, id);
                return Ok(Err(cause));
            }
        };
        reach(Point::BeforeListing);
        let listed = self.meta.update(|meta| meta.files.insert(id));
        listed.map_err(|cause| self.fail(cause))?;
        reach(Point::BehindListing);
        growth.last_try_failed = false;
        growth.files.push(Arc::clone(&file));
        for (id, generation) in file.header().ids().zip(first_generation.0..) {
            self.enter(&file, id, Generation(generation), DATA_START);
        }
        self.lane.add_file(file);
        self.growths.fetch_add(1, Ordering::Release);
        Ok(Ok(()))
    }

    /// What the leader of a round does: writes the mark, syncs what is dirty, and notes what is
    /// durable now. Everything appended before the call is.
    pub(crate) fn sync_round(&self, now: Timestamp) -> Result<(), Arc<Failure>> {
        let Some(plan) = self.lane.begin_round() else { return Ok(()) };
        let mark = Mark {
            epoch: Epoch(self.epoch.load(Ordering::Relaxed)),
            round: self.mark_round.fetch_add(1, Ordering::Relaxed),
            clock: now,
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
        self.lane.end_round(&plan);
        Ok(())
    }

    /// Whether everything appended is durable and a durable mark says so.
    pub(crate) fn is_proven(&self) -> bool {
        self.lane.is_proven()
    }

    /// Seals the active segments for good.
    pub(crate) fn seal_all(&self) -> Result<(), StoreError> {
        self.lane.seal_all().map_err(|cause| self.fail(cause))
    }

    /// The least generation that may still be written to, when no segment is active.
    pub(crate) fn stable_generation(&self) -> Generation {
        let fresh = self.growth.lock().next_generation;
        self.lane.first_prepared().unwrap_or(fresh)
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

    /// Bytes of all data files, and of the segments that were ever written to.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        let growth = self.growth.lock();
        let disk = growth.files.iter().map(|file| file.header().file_bytes()).sum();
        let total = u64::from(growth.segments());
        let used = total - self.lane.supply(total).prepared;
        (disk, used * u64::from(self.segments.segment_bytes()))
    }
}

/// Whether a smaller file might have been possible.
fn is_about_room(cause: &Failure) -> bool {
    matches!(
        cause.io().kind(),
        ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::OutOfMemory
    )
}
