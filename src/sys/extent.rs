//! Extents: a stretch of a region that one writer fills front to back, and that any number of
//! readers read behind it.
//!
//! ```text
//! | filled: immutable, borrowed by readers | unfilled: the writer's alone | end
//!                                          ^ `filled`, only ever moves right
//! ```
//!
//! Invariants
//! - E1  Bytes below `filled` are not written while the extent exists. A stretch that is to be
//!   filled again gets a new extent, once the old one is gone ([`Stretches`]).
//! - E2  Bytes at or above `filled` are touched by the one [`ExtentWriter`] only (or by the kernel,
//!   on its behalf).
//! - E3  `filled` is raised by the writer, with Release, after the bytes below it were written; a
//!   reader that saw it with Acquire sees them.
//!
//! Does not know what a record is; that is `wal`.
#![allow(unsafe_code, reason = "the one place that reads and writes mapped memory")]

use std::fmt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::Region;
use super::prefetch::prefetch;

/// A stretch of a region, see the file's header.
pub(crate) struct Extent {
    /// First byte of the stretch; valid for `len` bytes while `region` lives.
    base: NonNull<u8>,
    len: u32,
    /// E3: published with Release by the writer, read with Acquire.
    filled: AtomicU32,
    /// Set while an [`ExtentWriter`] exists.
    has_writer: AtomicBool,
    region: Arc<dyn Region>,
    /// Which of these stretches it is, to be given back at the end.
    of: Option<(Arc<Stretches>, u32)>,
    /// Where in the region it starts.
    start: usize,
}

/// The part of a region from `start` on, cut into stretches of equal length, each of which is one
/// extent at a time.
#[derive(Debug)]
pub(crate) struct Stretches {
    region: Arc<dyn Region>,
    start: usize,
    len: u32,
    is_taken: Box<[AtomicBool]>,
}

impl Stretches {
    pub(crate) fn new(region: Arc<dyn Region>, start: usize, len: u32, count: u32) -> Self {
        let is_taken = (0..count).map(|_| AtomicBool::new(false)).collect();
        Self { region, start, len, is_taken }
    }

    /// Stretch `index` as an extent, of which the first `filled` bytes are final; `None` while
    /// there is one.
    pub(crate) fn extent(self: &Arc<Self>, index: u32, filled: u32) -> Option<Extent> {
        let is_taken = self.is_taken.get(index as usize)?;
        // Acquire pairs with the Release at the end of the extent before: whoever read or wrote
        // through it is done.
        if is_taken.swap(true, Ordering::AcqRel) {
            return None;
        }
        let start = self.start + index as usize * self.len as usize;
        let mut extent = Extent::new(Arc::clone(&self.region), start, self.len, filled);
        extent.of = Some((Arc::clone(self), index));
        Some(extent)
    }
}

impl Stretches {
    /// Whether there is no extent of the stretch of this number.
    pub(crate) fn is_free(&self, index: u32) -> bool {
        self.is_taken.get(index as usize).is_some_and(|is_taken| !is_taken.load(Ordering::Relaxed))
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        if let Some((stretches, index)) = &self.of {
            stretches.is_taken[*index as usize].store(false, Ordering::Release);
        }
    }
}

// SAFETY: `base` points into `region`, which the extent keeps alive and which is itself `Send` and
// `Sync`; E1-E3 keep readers and the writer on disjoint bytes.
unsafe impl Send for Extent {}
// SAFETY: as above.
unsafe impl Sync for Extent {}

impl Extent {
    /// The `len` bytes of `region` from `start` on, of which the first `filled` are already final.
    /// The caller makes no two that overlap, unless nobody writes to either.
    pub(crate) fn new(region: Arc<dyn Region>, start: usize, len: u32, filled: u32) -> Self {
        let end = start.checked_add(len as usize);
        assert!(end.is_some_and(|end| end <= region.len()), "an extent lies within its region");
        assert!(filled <= len && start.is_multiple_of(64));
        // SAFETY: the assert keeps `start` within the region.
        let base = unsafe { region.base().add(start) };
        let (filled, has_writer) = (AtomicU32::new(filled), AtomicBool::new(false));
        Self { base, len, filled, has_writer, region, of: None, start }
    }

    /// How many bytes are final.
    #[inline]
    pub(crate) fn filled(&self) -> u32 {
        self.filled.load(Ordering::Acquire)
    }

    /// All final bytes from `from` on, or `None` when there are none.
    #[inline]
    pub(crate) fn bytes_from(&self, from: u32) -> Option<&[u8]> {
        self.bytes(from, self.filled())
    }

    /// The bytes `from..to`, or `None` when not all of them are final.
    #[inline]
    pub(crate) fn bytes(&self, from: u32, to: u32) -> Option<&[u8]> {
        if from > to || to > self.filled() {
            return None;
        }
        // SAFETY: `from <= filled <= len`, so the address lies within the region.
        let start = unsafe { self.base.add(from as usize) };
        // SAFETY: the bytes lie below `filled`: they were written before it was raised (E3, the
        // Acquire above) and are not written again while `self` exists (E1), which the borrow
        // outlasts in no case.
        Some(unsafe { slice::from_raw_parts(start.as_ptr(), (to - from) as usize) })
    }

    /// Asks for the memory of a record's front at `from`, as [`prefetch`] does: header, extensions, key and a body of
    /// some length.
    #[inline]
    pub(crate) fn prefetch(&self, from: u32) {
        const LINE_BYTES: usize = 64;
        const FRONT_LINES: usize = 4;
        for line in 0..FRONT_LINES {
            prefetch(self.base.as_ptr().wrapping_add(from as usize + line * LINE_BYTES));
        }
    }

    /// Where bytes lie that were borrowed from this extent.
    pub(crate) fn range_of(&self, bytes: &[u8]) -> Option<(u32, u32)> {
        let from = bytes.as_ptr().addr().checked_sub(self.base.addr().get())?;
        let to = from.checked_add(bytes.len())?;
        // Below the length, which has 32 bits.
        (to <= self.len as usize).then_some((from as u32, to as u32))
    }

    /// Takes the page faults of filling what is not yet filled of `from..to`, see
    /// [`Region::prefault`].
    pub(crate) fn prefault(&self, from: u32, to: u32) {
        let from = from.max(self.filled());
        let len = to.min(self.len).saturating_sub(from) as usize;
        // A fault that could not be taken now is taken when the page is stored to.
        self.region.prefault(self.start + from as usize, len).unwrap_or_default();
    }

    /// Says that it will not be stored to any more, see [`Region::settle`].
    pub(crate) fn settle(&self) {
        // Whatever could not be done makes writing back slower, and nothing else.
        self.region.settle(self.start, self.len as usize).unwrap_or_default();
    }

    /// The writer; `None` while there is one already.
    pub(crate) fn writer(self: &Arc<Self>) -> Option<ExtentWriter> {
        // AcqRel pairs with the Release in the drop of the writer before: its writes come first.
        let taken = self.has_writer.swap(true, Ordering::AcqRel);
        (!taken).then(|| ExtentWriter { extent: Arc::clone(self) })
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extent")
            .field("len", &self.len)
            .field("filled", &self.filled())
            .field("region", &self.region)
            .finish_non_exhaustive()
    }
}

/// The exclusive right to fill an extent.
#[derive(Debug)]
pub(crate) struct ExtentWriter {
    extent: Arc<Extent>,
}

impl ExtentWriter {
    /// Where the next byte goes: everything before is final.
    #[inline]
    pub(crate) fn filled(&self) -> u32 {
        // Relaxed: only this writer changes it.
        self.extent.filled.load(Ordering::Relaxed)
    }

    /// Copies `bytes` to `offset`, which must not lie below what is final.
    #[inline]
    pub(crate) fn put(&mut self, offset: u32, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: `check` keeps the offset within the extent.
        let to = unsafe { self.extent.base.add(offset as usize) };
        // SAFETY: the range is unfilled (`check`), so no reader has it (E2) and `&mut self` is the
        // only writer; `bytes` is a borrow, hence not of unfilled memory.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) }
        self.stored(offset, bytes.len());
    }

    /// Stores eight bytes at once, after everything that was put before: a process killed in
    /// between leaves either none of them or, with all that came earlier, all.
    #[inline]
    pub(crate) fn put_word_last(&mut self, offset: u32, word: [u8; 8]) {
        self.check(offset, 8);
        assert!(offset.is_multiple_of(8));
        // SAFETY: `check` keeps the offset within the extent.
        let to = unsafe { self.extent.base.add(offset as usize) };
        // SAFETY: `to` is valid for eight bytes and aligned (the extent starts on a multiple of 64);
        // the range is unfilled, so nobody else touches it (E2).
        let word_at = unsafe { AtomicU64::from_ptr(to.as_ptr().cast()) };
        // `to_le` makes the bytes in memory those of `word` on any machine.
        word_at.store(u64::from_le_bytes(word).to_le(), Ordering::Release);
        self.stored(offset, 8);
    }

    /// Tells the region, where that can matter.
    #[cfg(any(test, feature = "test-util"))]
    fn stored(&self, offset: u32, len: usize) {
        self.extent.region.stored(self.extent.start + offset as usize, len);
    }

    #[cfg(not(any(test, feature = "test-util")))]
    #[inline]
    fn stored(&self, _offset: u32, _len: usize) {}

    /// Declares everything below `filled` final, whether it was put here or written by the kernel.
    #[inline]
    pub(crate) fn advance(&mut self, filled: u32) {
        assert!(filled >= self.filled() && filled <= self.extent.len);
        self.extent.filled.store(filled, Ordering::Release);
    }

    /// Asks for the memory that comes next, as [`prefetch`] does: what is stored there waits for it otherwise, and so
    /// does whoever lets go of a lock behind that.
    #[inline]
    pub(crate) fn prefetch_next(&self) {
        self.extent.prefetch(self.filled());
    }

    #[inline]
    fn check(&self, offset: u32, len: usize) {
        let end = (offset as usize).checked_add(len);
        assert!(
            offset >= self.filled() && end.is_some_and(|end| end <= self.extent.len as usize),
            "a write of {len} bytes at {offset} leaves the unfilled part"
        );
    }
}

impl Drop for ExtentWriter {
    fn drop(&mut self) {
        self.extent.has_writer.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::region::HeapRegion;
    use super::*;

    fn extent(len: u32, filled: u32) -> Arc<Extent> {
        let region = Arc::new(HeapRegion::new(4096).unwrap());
        Arc::new(Extent::new(region, 64, len, filled))
    }

    #[test]
    fn bytes_can_be_read_once_they_are_final() {
        let extent = extent(256, 0);
        let mut writer = extent.writer().unwrap();
        writer.put(8, b"record!!");
        writer.put_word_last(0, *b"lencrc..");
        assert!(extent.bytes(0, 16).is_none());
        writer.advance(16);
        assert_eq!(extent.bytes(0, 16).unwrap(), b"lencrc..record!!");
        assert!(extent.bytes(0, 17).is_none());
        assert!(extent.bytes(9, 8).is_none());
        let record = extent.bytes(8, 14).unwrap();
        assert_eq!(extent.range_of(record), Some((8, 14)));
        assert_eq!(extent.range_of(b"elsewhere"), None);
    }

    #[test]
    fn a_stretch_is_one_extent_at_a_time() {
        let region = Arc::new(HeapRegion::new(4096).unwrap());
        let stretches = Arc::new(Stretches::new(region, 64, 256, 3));
        let first = Arc::new(stretches.extent(1, 0).unwrap());
        first.writer().unwrap().put(0, b"first");
        assert!(stretches.extent(1, 0).is_none());
        assert!(stretches.extent(3, 0).is_none());
        let beside = Arc::new(stretches.extent(2, 256).unwrap());
        assert_eq!(beside.bytes(0, 5).unwrap(), [0; 5]);
        drop(first);
        let again = stretches.extent(1, 5).unwrap();
        assert_eq!(again.bytes(0, 5).unwrap(), b"first");
    }

    #[test]
    fn there_is_one_writer_at_a_time() {
        let extent = extent(256, 16);
        let writer = extent.writer().unwrap();
        assert!(extent.writer().is_none());
        drop(writer);
        assert_eq!(extent.writer().unwrap().filled(), 16);
    }

    #[test]
    #[should_panic(expected = "leaves the unfilled part")]
    fn final_bytes_cannot_be_written_again() {
        extent(256, 16).writer().unwrap().put(15, b"x");
    }

    #[test]
    #[should_panic(expected = "leaves the unfilled part")]
    fn nothing_is_written_past_the_end() {
        extent(256, 16).writer().unwrap().put(250, b"1234567");
    }

    #[test]
    fn readers_follow_the_writer_across_threads() {
        let len = if cfg!(miri) { 64 } else { 2048 };
        let extent = extent(len, 0);
        let mut writer = extent.writer().unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let filled = extent.filled();
                        let seen = extent.bytes(0, filled).unwrap();
                        assert!(seen.iter().enumerate().all(|(i, byte)| *byte == i as u8));
                        if filled == len {
                            break;
                        }
                    }
                });
            }
            for i in 0..len {
                writer.put(i, &[i as u8]);
                writer.advance(i + 1);
            }
        });
    }
}
