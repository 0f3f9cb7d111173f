//! Data files: made whole before they are used, never resized, mapped for the life of the store.
//!
//! A new file is zero-filled, synced, entered in the directory, given its headers, synced again and
//! mapped; then the caller lists it in the meta file; then its segments are used (R16). A crash
//! before the listing leaves a file that the next open removes.

use std::io::{IoSlice, Result as IoResult};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Failure, OpenError};
use crate::format::file::{self, Header};
use crate::format::mark::{self, Mark};
use crate::format::{PAGE_BYTES, segment};
use crate::sys::extent::{Extent, Stretches};
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::sys::{File, FileSystem, Pages, Region};
use crate::types::{FileId, Generation, SegmentId, Timestamp};

/// An open, mapped data file.
#[derive(Debug)]
pub(crate) struct DataFile {
    header: Header,
    file: Arc<dyn File>,
    /// The mapped segments.
    stretches: Arc<Stretches>,
    path: PathBuf,
    /// Whether something was written since the last round took the file. Changed under the
    /// locks of lanes only.
    dirty: AtomicBool,
    /// Where the next mark goes. Changed by the leader of a round only.
    mark_slot: AtomicUsize,
}

/// A data file on its way: filled piece by piece, so that nobody waits for all of it who need not.
#[derive(Debug)]
pub(crate) struct Filling {
    id: FileId,
    segments: u32,
    segment_bytes: u32,
    pages: Pages,
    file: Arc<dyn File>,
    filled: u64,
}

impl Filling {
    /// Creates the empty file. One of that name is left over from a file that was given up: no meta
    /// file lists it.
    pub(crate) fn start(
        fs: &dyn FileSystem,
        id: FileId,
        segments: u32,
        segment_bytes: u32,
        pages: Pages,
    ) -> Result<Self, Arc<Failure>> {
        let name = file::name(id);
        let created = fs.create_new(&name).or_else(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                fs.remove(&name)?;
                fs.create_new(&name)
            }
            _ => Err(error),
        });
        let file = created.map_err(|error| Failure::new("create", fs.describe(&name), error))?;
        Ok(Self { id, segments, segment_bytes, pages, file, filled: 0 })
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn segments(&self) -> u32 {
        self.segments
    }

    /// Bytes that the whole file will have.
    pub(crate) fn bytes(&self) -> u64 {
        self.header(SegmentId(0)).file_bytes()
    }

    fn header(&self, first: SegmentId) -> Header {
        let Self { id, segments, segment_bytes, .. } = *self;
        Header { file: id, first, segments, segment_bytes }
    }

    pub(crate) fn is_filled(&self) -> bool {
        self.filled == self.bytes()
    }

    /// Fills and syncs up to `bytes` more.
    pub(crate) fn step(&mut self, fs: &dyn FileSystem, bytes: u64) -> Result<(), Arc<Failure>> {
        let to = self.bytes().min(self.filled.saturating_add(bytes));
        let failed = |operation| {
            let path = fs.describe(&file::name(self.id));
            move |error| Failure::new(operation, path, error)
        };
        self.file.zero_fill(self.filled, to, self.pages).map_err(failed("zero-fill"))?;
        reach(Point::BehindFileFill);
        self.file.sync_all().map_err(failed("sync"))?;
        self.filled = to;
        Ok(())
    }

    /// Makes the filled file a data file with empty segments, from `first` and `first_generation`
    /// on. The caller lists it.
    pub(crate) fn finish(
        self,
        fs: &dyn FileSystem,
        store_id: &[u8; 16],
        first: SegmentId,
        first_generation: Generation,
        now: Timestamp,
    ) -> Result<DataFile, Arc<Failure>> {
        debug_assert!(self.is_filled());
        let header = self.header(first);
        let path = fs.describe(&file::name(self.id));
        let failed = |operation| {
            let path = path.clone();
            move |error| Failure::new(operation, path, error)
        };
        fs.sync_dir().map_err(failed("sync the directory of"))?;
        let region = self.file.map().map_err(failed("map"))?;
        reach(Point::BeforeHeaders);
        let head = header.encode(store_id);
        self.file.write_at(&[IoSlice::new(&head)], 0).map_err(failed("write"))?;
        for index in 0..header.segments {
            let segment = SegmentId(first.0 + index);
            let generation = Generation(first_generation.0 + u64::from(index));
            let (created, is_recycled) = (now, false);
            let head = segment::Header { segment, generation, created, is_recycled };
            let head = head.encode(store_id);
            let at = segment_offset(&header, segment);
            self.file.write_at(&[IoSlice::new(&head)], at).map_err(failed("write"))?;
        }
        reach(Point::BeforeHeaderSync);
        self.file.sync_data().map_err(failed("sync"))?;
        // Positioned writes must show in the mapping at once: the engine writes one way and reads
        // the other. Local file systems of the page cache do; some network ones do not.
        let front = Extent::new(Arc::clone(&region), 0, PAGE_BYTES as u32, PAGE_BYTES as u32);
        if front.bytes(0, file::HEADER_BYTES as u32) != Some(&head[..]) {
            let text = "the file system does not keep mappings and writes coherent";
            let error = std::io::Error::new(std::io::ErrorKind::Unsupported, text);
            return Err(failed("use")(error));
        }
        Ok(DataFile::new(header, self.file, region, path))
    }
}

/// Removes what is left of a data file that was given up. Should this fail, the next open removes
/// it: no meta file lists it.
pub(crate) fn abandon(fs: &dyn FileSystem, id: FileId) {
    fs.remove(&file::name(id)).unwrap_or_default();
}

impl DataFile {
    /// Opens a file that the meta file lists. Reads its header, nothing else; writes nothing.
    pub(crate) fn open(
        fs: &dyn FileSystem,
        store_id: &[u8; 16],
        id: FileId,
        segment_bytes: u32,
    ) -> Result<Self, OpenError> {
        let name = file::name(id);
        let path = fs.describe(&name);
        let failed = |operation| {
            let path = path.clone();
            move |error| OpenError::io(operation, path, error)
        };
        let file = fs.open(&name).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => OpenError::MissingFile { path: path.clone() },
            _ => OpenError::io("open", path.clone(), error),
        })?;
        let corrupt = |what: String| OpenError::Corrupt { path: path.clone(), offset: 0, what };
        let len = file.len().map_err(failed("measure"))?;
        if len < file::SEGMENTS_START {
            return Err(corrupt(format!("the file has only {len} bytes")));
        }
        let mut head = [0; file::HEADER_BYTES];
        file.read_at(&mut head, 0).map_err(failed("read"))?;
        let header =
            Header::decode(&head, store_id, id).map_err(|flaw| corrupt(flaw.to_string()))?;
        if header.segment_bytes != segment_bytes {
            let stored = header.segment_bytes;
            return Err(corrupt(format!("it has segments of {stored} bytes, not {segment_bytes}")));
        }
        let wanted = header.file_bytes();
        if len != wanted {
            return Err(corrupt(format!("the file has {len} bytes, not {wanted}")));
        }
        let region = file.map().map_err(failed("map"))?;
        Ok(Self::new(header, file, region, path))
    }

    fn new(header: Header, file: Arc<dyn File>, region: Arc<dyn Region>, path: PathBuf) -> Self {
        // The whole file was mapped, so its length fits.
        let start = file::SEGMENTS_START as usize;
        let stretches = Stretches::new(region, start, header.segment_bytes, header.segments);
        let (dirty, mark_slot) = (AtomicBool::new(false), AtomicUsize::new(0));
        Self { header, file, stretches: Arc::new(stretches), path, dirty, mark_slot }
    }

    pub(crate) fn header(&self) -> &Header {
        &self.header
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where a segment of this file starts in it.
    pub(crate) fn segment_offset(&self, segment: SegmentId) -> u64 {
        segment_offset(&self.header, segment)
    }

    /// The memory of a segment, of which the first `filled` bytes are final; `None` while somebody
    /// may still read what the segment was before.
    pub(crate) fn extent(&self, segment: SegmentId, filled: u32) -> Option<Extent> {
        self.stretches.extent(segment.0 - self.header.first.0, filled)
    }

    /// Whether nobody reads or writes what the segment was before.
    pub(crate) fn is_free(&self, segment: SegmentId) -> bool {
        self.stretches.is_free(segment.0 - self.header.first.0)
    }

    pub(crate) fn read_at(&self, buffer: &mut [u8], offset: u64) -> IoResult<()> {
        self.file.read_at(buffer, offset)
    }

    /// Writes by position and remembers that the file needs a sync.
    pub(crate) fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> Result<(), Arc<Failure>> {
        self.set_dirty();
        let failed = |error| Failure::new("write", self.path.clone(), error);
        self.file.write_at(parts, offset).map_err(failed)
    }

    pub(crate) fn set_dirty(&self) {
        if !self.dirty.load(Ordering::Relaxed) {
            self.dirty.store(true, Ordering::Relaxed);
        }
    }

    /// Gives every page of the file a block, see [`File::fill_holes`].
    pub(crate) fn fill_holes(&self) -> Result<(), Arc<Failure>> {
        let failed = |error| Failure::new("fill the holes of", self.path.clone(), error);
        if self.file.fill_holes().map_err(failed)? > 0 {
            self.set_dirty();
        }
        Ok(())
    }

    /// Whether the file was dirty. From now on it is not: what is written from now on is the next
    /// round's (R16).
    pub(crate) fn take_dirty(&self) -> bool {
        self.dirty.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn sync(&self) -> Result<(), Arc<Failure>> {
        self.file.sync_data().map_err(|error| Failure::new("sync", self.path.clone(), error))
    }

    /// Writes a mark into the next slots. The caller syncs the file.
    pub(crate) fn write_mark(&self, store_id: &[u8; 16], mark: &Mark) -> Result<(), Arc<Failure>> {
        let failed = |error| Failure::new("write", self.path.clone(), error);
        // What is appended to is bounded; a mark that left something out would pass damage off as a torn tail.
        let too_many = || std::io::Error::other("a mark of more segments than it can list");
        let parts = mark.parts().ok_or_else(|| failed(too_many()))?;
        for part in parts {
            let slot = self.mark_slot.load(Ordering::Relaxed);
            self.mark_slot.store((slot + 1) % mark::SLOTS, Ordering::Relaxed);
            let bytes = part.encode(store_id, self.header.file, slot);
            self.file.write_at(&[IoSlice::new(&bytes)], file::mark_offset(slot)).map_err(failed)?;
        }
        Ok(())
    }

    /// Reads all whole marks, and goes on writing behind the newest.
    pub(crate) fn read_marks(&self, store_id: &[u8; 16]) -> IoResult<Vec<Mark>> {
        let mut marks = Vec::new();
        let mut rounds = [None; mark::SLOTS];
        for (slot, round) in rounds.iter_mut().enumerate() {
            let mut page = [0; PAGE_BYTES];
            self.file.read_at(&mut page, file::mark_offset(slot))?;
            if let Some(mark) = Mark::decode(&page, store_id, self.header.file, slot) {
                *round = Some((mark.epoch, mark.round));
                marks.push(mark);
            }
        }
        // Behind the last part of the newest one.
        let newest = rounds.iter().max().copied().flatten();
        let next = |slot: usize| (slot + 1) % mark::SLOTS;
        let is_last = |slot: &usize| rounds[*slot] == newest && rounds[next(*slot)] != newest;
        if let Some(slot) = (0..mark::SLOTS).find(is_last).filter(|_| newest.is_some()) {
            self.mark_slot.store(next(slot), Ordering::Relaxed);
        }
        Ok(marks)
    }
}

fn segment_offset(header: &Header, segment: SegmentId) -> u64 {
    let index = segment.0 - header.first.0;
    debug_assert!(index < header.segments);
    file::SEGMENTS_START + u64::from(index) * u64::from(header.segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{STORE, data_file};
    use super::*;
    use crate::format::mark::{ENTRIES_MAX, Entry};
    use crate::sys::heap::HeapFs;

    /// Whatever slots the parts of the newest mark lie in, the next one spares them.
    #[test]
    fn a_mark_goes_behind_the_last_part_of_the_one_before() {
        for first in 0..mark::SLOTS {
            for count in [0, ENTRIES_MAX, ENTRIES_MAX + 1, 3 * ENTRIES_MAX] {
                let file = data_file(&HeapFs::new(), 1);
                let entry = Entry {
                    segment: SegmentId(0),
                    generation: Generation(1),
                    durable: 0,
                    attempted: 4096,
                };
                let mark =
                    |round, count| Mark { round, entries: vec![entry; count], ..Mark::default() };
                for round in 0..first as u64 {
                    file.write_mark(&STORE, &mark(round, 0)).unwrap();
                }
                file.write_mark(&STORE, &mark(100, count)).unwrap();
                let of_newest = |file: &DataFile| {
                    let marks = file.read_marks(&STORE).unwrap();
                    marks
                        .iter()
                        .filter(|mark| mark.round == 100)
                        .map(|it| it.entries.len())
                        .sum::<usize>()
                };
                // As an open finds it.
                file.mark_slot.store(0, Ordering::Relaxed);
                assert_eq!(count, of_newest(&file));
                file.write_mark(&STORE, &mark(101, 3 * ENTRIES_MAX)).unwrap();
                assert_eq!(count, of_newest(&file), "{first}");
            }
        }
    }
}
