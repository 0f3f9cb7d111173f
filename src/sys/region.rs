//! Regions: memory that stays where it is, owned by a mapping of a file or by the heap.
//!
//! A region hands out its address and its length and nothing else. No reference to the whole of it
//! is ever made: readers and the writer work on disjoint parts at the same time, through
//! `sys::extent`.
#![allow(unsafe_code, reason = "owns raw memory; see the SAFETY comments")]

use std::fmt::{self, Debug};
use std::io;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

#[cfg(all(target_os = "linux", not(miri)))]
use memmap2::UncheckedAdvice;
use memmap2::{Advice, MmapOptions, MmapRaw};

/// Memory at a fixed address.
///
/// # Safety
///
/// From creation until drop, `base()` and `len()` never change, and the `len()` bytes from `base()`
/// on may be read and written through raw pointers. `base()` is aligned to at least 64 bytes.
#[allow(clippy::len_without_is_empty, reason = "nobody maps nothing")]
pub unsafe trait Region: Send + Sync + Debug {
    /// Address of the first byte.
    fn base(&self) -> NonNull<u8>;

    /// Length in bytes.
    fn len(&self) -> usize;

    /// Takes the page faults of storing to these bytes now, so that whoever stores to them takes
    /// none. Changes nothing, and may be called while they are stored to.
    ///
    /// # Errors
    ///
    /// What the kernel answers: it may be older than Linux 5.14, or have no memory.
    fn prefault(&self, _offset: usize, _len: usize) -> io::Result<()> {
        Ok(())
    }

    /// These bytes are not stored to any more for a while: writing them back need not interrupt whoever
    /// uses the memory, page by page. Changes nothing, and may be called while they are read.
    ///
    /// # Errors
    ///
    /// What the kernel answers: it may be older than Linux 5.14.
    fn settle(&self, _offset: usize, _len: usize) -> io::Result<()> {
        Ok(())
    }

    /// Bytes were just stored through the memory. For a fake that has to know, where there can be
    /// one.
    #[cfg(any(test, feature = "test-util"))]
    fn stored(&self, _offset: usize, _len: usize) {}
}

/// A file mapped shared, readable and, but for one that is only read, writable.
#[derive(Debug)]
pub(crate) struct MappedRegion {
    map: ManuallyDrop<MmapRaw>,
    base: NonNull<u8>,
    /// Who mapped it.
    process: u32,
}

// SAFETY: `MmapRaw` is `Send` and owns its mapping until it drops; `base` points into it.
unsafe impl Send for MappedRegion {}
// SAFETY: shared access gives out an address and a length only.
unsafe impl Sync for MappedRegion {}

impl Drop for MappedRegion {
    fn drop(&mut self) {
        // A forked child has no such mapping (`DontFork`), and perhaps another one of its own there.
        if std::process::id() == self.process {
            // SAFETY: it is dropped here only, and not used from now on.
            unsafe { ManuallyDrop::drop(&mut self.map) }
        }
    }
}

impl MappedRegion {
    /// A file that was opened for reading is mapped for reading: the caller writes nothing.
    pub(crate) fn new(file: &std::fs::File, len: usize, is_read_only: bool) -> io::Result<Self> {
        let mut options = MmapOptions::new();
        options.len(len);
        let map = match is_read_only {
            true => options.map_raw_read_only(file)?,
            false => options.map_raw(file)?,
        };
        // A forked child has no business here and is refused at every call (`sys::fork`); a core
        // dump has no business with a store's payloads either. Both are help, not promises.
        for advice in [Advice::DontFork, Advice::DontDump] {
            map.advise(advice).unwrap_or_default();
        }
        let base = NonNull::new(map.as_mut_ptr())
            .ok_or_else(|| io::Error::other("the mapping has no address"))?;
        Ok(Self { map: ManuallyDrop::new(map), base, process: std::process::id() })
    }
}

// SAFETY: the kernel places the mapping at one address, page-aligned, for the life of `map`. The
// file was filled with written blocks before it was mapped and is never shortened while the
// directory lock is held, so no access past its end or into a hole can happen.
unsafe impl Region for MappedRegion {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn prefault(&self, offset: usize, len: usize) -> io::Result<()> {
        populate(&self.map, offset, len)
    }

    /// Pages that were stored to through a mapping are made read-only one by one when they are written
    /// back, and each time all processors that run this process are interrupted, to forget the page.
    /// Here the mapping lets go of all of them at once, with one such interruption, and takes them
    /// again as pages that are only read.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn settle(&self, offset: usize, len: usize) -> io::Result<()> {
        // SAFETY: of a shared mapping of a file nothing but the table of pages is given up: their
        // content, also what was stored last, is the page cache's, and whoever looks next finds it.
        unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, len)? };
        self.map.advise_range(Advice::PopulateRead, offset, len)
    }
}

/// Zeroed memory of the process: anonymous pages, which take no room before they are touched.
pub(crate) struct HeapRegion {
    map: MmapRaw,
    base: NonNull<u8>,
}

// SAFETY: `MmapRaw` is `Send` and owns its mapping until it drops; `base` points into it.
unsafe impl Send for HeapRegion {}
// SAFETY: shared access gives out an address and a length only.
unsafe impl Sync for HeapRegion {}

impl HeapRegion {
    /// `OutOfMemory` when there is none.
    pub(crate) fn new(len: usize) -> io::Result<Self> {
        let map = MmapRaw::from(MmapOptions::new().len(len.max(1)).map_anon()?);
        let base = NonNull::new(map.as_mut_ptr()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { map, base })
    }
}

impl Debug for HeapRegion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapRegion").field("len", &self.map.len()).finish_non_exhaustive()
    }
}

// SAFETY: the mapping neither moves nor shrinks before drop, and is page-aligned.
unsafe impl Region for HeapRegion {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len(&self) -> usize {
        self.map.len()
    }

    fn prefault(&self, offset: usize, len: usize) -> io::Result<()> {
        populate(&self.map, offset, len)
    }
}

/// Makes pages present and writable without a change of what is in them.
fn populate(map: &MmapRaw, offset: usize, len: usize) -> io::Result<()> {
    // Miri knows no page faults, other systems not this advice.
    #[cfg(all(target_os = "linux", not(miri)))]
    map.advise_range(Advice::PopulateWrite, offset, len)?;
    #[cfg(not(all(target_os = "linux", not(miri))))]
    let _ = (map, offset, len);
    Ok(())
}

/// Copies out of a region. For fakes: readers of published records borrow instead.
///
/// # Safety
///
/// Nobody writes to the range meanwhile.
pub(crate) unsafe fn copy_out(region: &dyn Region, offset: usize, to: &mut [u8]) {
    assert!(offset.checked_add(to.len()).is_some_and(|end| end <= region.len()));
    // SAFETY: the assert keeps the offset within the region, which is valid while it is borrowed.
    let from = unsafe { region.base().add(offset) };
    // SAFETY: the range lies within the region, and nobody writes to it (the caller's promise);
    // `to` is an exclusive borrow, so it lies elsewhere.
    unsafe { from.copy_to_nonoverlapping(NonNull::from(&mut *to).cast(), to.len()) }
}

/// Copies into a region. For fakes: the real file system writes through the kernel.
///
/// # Safety
///
/// Nobody reads or writes the range meanwhile.
pub(crate) unsafe fn copy_in(region: &dyn Region, offset: usize, from: &[u8]) {
    assert!(offset.checked_add(from.len()).is_some_and(|end| end <= region.len()));
    // SAFETY: the assert keeps the offset within the region, which is valid while it is borrowed.
    let to = unsafe { region.base().add(offset) };
    // SAFETY: the range lies within the region, and nobody else uses it (the caller's promise), so
    // the borrow `from` lies elsewhere.
    unsafe { to.copy_from_nonoverlapping(NonNull::from(from).cast(), from.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heap_memory_starts_zeroed_and_keeps_what_is_written() {
        let region = HeapRegion::new(8192).unwrap();
        assert_eq!(region.len(), 8192);
        let mut bytes = [1; 32];
        // SAFETY: no other thread knows the region.
        unsafe { copy_out(&region, 8160, &mut bytes) };
        assert_eq!(bytes, [0; 32]);
        // SAFETY: no other thread knows the region.
        unsafe { copy_in(&region, 8170, b"here") };
        // SAFETY: no other thread knows the region.
        unsafe { copy_out(&region, 8160, &mut bytes) };
        assert_eq!(&bytes[10..14], b"here");
    }

    #[test]
    #[should_panic(expected = "assertion failed")]
    fn a_copy_past_the_end_is_refused() {
        let region = HeapRegion::new(4096).unwrap();
        // SAFETY: no other thread knows the region.
        unsafe { copy_in(&region, 4090, b"too long") };
    }
}
