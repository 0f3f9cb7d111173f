//! Growth: data files are made whole, at once when a call finds no room, and ahead of need, a piece
//! at a time, by maintenance.

use std::io::ErrorKind;
use std::sync::Arc;

use super::Wal;
use super::data_file::{self, DataFile, Filling};
use crate::error::{Failure, StoreError};
use crate::format::META_NAME;
use crate::format::file::{self, FILES_MAX, SEGMENTS_FIRST, SEGMENTS_MAX, SEGMENTS_START};
use crate::format::segment::DATA_START;
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::Ordering;
use crate::types::{FileId, Generation, Location, SegmentId, Timestamp};

/// Generations are reserved in the meta file this many at a time, beyond those needed at once.
pub(super) const GENERATION_STEP: u64 = 1024;

/// A file that is made in time is one part in so many of the store. A store that doubled would wait for
/// a file that takes as long to fill as all there is took, with an eighth of it prepared.
const GROWTH_PART: u32 = 8;

/// The data files there are, and what is needed to make the next one.
#[derive(Debug)]
pub(crate) struct Growth {
    files: Vec<Arc<DataFile>>,
    /// The first generation that no header bears.
    pub(super) next_generation: Generation,
    /// A file that maintenance is making ahead of need.
    filling: Option<Filling>,
    /// After a failure the next try is for one segment.
    last_try_failed: bool,
    /// Files that were given up and are in the directory still.
    pub(super) left_over: Vec<FileId>,
}

impl Growth {
    pub(crate) fn new(files: Vec<Arc<DataFile>>, next_generation: Generation) -> Self {
        let left_over = Vec::new();
        Self { files, next_generation, filling: None, last_try_failed: false, left_over }
    }

    pub(super) fn files(&self) -> &[Arc<DataFile>] {
        &self.files
    }

    pub(super) fn segments(&self) -> u32 {
        self.files.iter().map(|file| file.header().segments).sum()
    }

    /// Segments that there can be, if the data files may have so many bytes; where the last try to make one failed, those
    /// there are.
    pub(super) fn segments_most(&self, disk_bytes_max: u64) -> u64 {
        let segment_bytes = self.files.first().map_or(1, |file| file.header().segment_bytes);
        match self.last_try_failed {
            true => u64::from(self.segments()),
            false => disk_bytes_max / u64::from(segment_bytes),
        }
    }

    /// Bytes of all data files, and of the one that is being made.
    pub(super) fn disk_bytes(&self) -> u64 {
        let files: u64 = self.files.iter().map(|file| file.header().file_bytes()).sum();
        files + self.filling.as_ref().map_or(0, Filling::bytes)
    }

    /// The lowest number from which on so many segments have no file.
    fn next_segment(&self, count: u32) -> SegmentId {
        let mut taken: Vec<_> =
            self.files.iter().map(|file| (file.header().first.0, file.header().end().0)).collect();
        taken.sort_unstable();
        let mut next = 0;
        for (first, end) in taken {
            if next + count <= first {
                break;
            }
            next = next.max(end);
        }
        SegmentId(next)
    }

    /// Whether a file has this number, or is being made under it.
    pub(super) fn has(&self, id: FileId) -> bool {
        let is_made = self.filling.as_ref().is_some_and(|filling| filling.id() == id);
        is_made || self.files.iter().any(|file| file.header().file == id)
    }

    /// Takes a file off the list.
    pub(super) fn remove(&mut self, file: &Arc<DataFile>) {
        self.files.retain(|it| !Arc::ptr_eq(it, file));
    }

    /// Segments of the next file, made in time: a part of those there are, so that it is there before
    /// what is prepared beside it has been filled.
    fn next_size(&self) -> u32 {
        let part = self.segments() / GROWTH_PART;
        if self.last_try_failed { 1 } else { part.clamp(SEGMENTS_FIRST, SEGMENTS_MAX) }
    }
}

impl Wal {
    /// Makes a small data file at once, unless the store has grown since `seen` was read. For
    /// callers who found no room; called with no lock held. On an error nothing has changed.
    pub(crate) fn grow_now(&self, seen: u64, now: Timestamp) -> Result<(), StoreError> {
        self.room_waits.fetch_add(1, Ordering::Relaxed);
        let _passage = self.pass()?;
        let mut growth = self.growth.lock();
        if self.growths() != seen {
            return Ok(());
        }
        self.poison.check_before()?;
        let count = if growth.last_try_failed { 1 } else { SEGMENTS_FIRST };
        let mut count = match self.allowed(&growth, count) {
            Ok(count) => count,
            Err(cause) => return self.growth_failed(&mut growth, cause),
        };
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

    /// How many of `count` segments may be added.
    fn allowed(&self, growth: &Growth, count: u32) -> Result<u32, Arc<Failure>> {
        let left = self.disk_bytes_max.saturating_sub(growth.disk_bytes() + SEGMENTS_START);
        let allowed = left / u64::from(self.segments.segment_bytes());
        match u32::try_from(allowed).unwrap_or(u32::MAX).min(count) {
            0 => {
                let text = format!("the store may take {} bytes", self.disk_bytes_max);
                let limit = std::io::Error::new(ErrorKind::QuotaExceeded, text);
                Err(Failure::new("grow", self.fs.describe(META_NAME), limit))
            }
            count => Ok(count),
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
            None => match self
                .allowed(&growth, growth.next_size())
                .and_then(|count| self.start_filling(&growth, count))
            {
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
        let end = growth.next_segment(count).0 + 2 * SEGMENTS_MAX;
        let Some(id) = id.filter(|_| (u64::from(end) * u64::from(units)) >> Location::BITS == 0)
        else {
            let path = self.fs.describe(&file::name(FileId(FILES_MAX)));
            let limit = std::io::Error::new(ErrorKind::StorageFull, "the store has its full size");
            return Err(Failure::new("create", path, limit));
        };
        Filling::start(&*self.fs, id, count, self.segments.segment_bytes(), self.pages)
    }

    /// Gives a filled file its headers, lists it, and hands its segments to the lanes. The inner
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
        let first = growth.next_segment(filling.segments());
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
        self.growths.fetch_add(1, Ordering::Release);
        Ok(Ok(()))
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
