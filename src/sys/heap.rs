//! A file system on the heap: memory mode, Miri, tests.
//!
//! It behaves as the page cache of a machine that never loses power: what was written is there for
//! the next open of the same [`HeapFs`], synced or not. It counts its syncs, and can be told to
//! refuse room, so that tests see what the engine asks of a disk.
#![allow(unsafe_code, reason = "a positioned write to a mapped file is a copy into its region")]

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::region::{HeapRegion, copy_in, copy_out};
use super::sync::Mutex;
use super::{DirectoryLock, File, FileSystem, Pages, Region};

/// A directory on the heap; clones share it.
#[derive(Clone, Default)]
pub struct HeapFs {
    shared: Arc<Directory>,
}

#[derive(Default)]
struct Directory {
    files: Mutex<BTreeMap<String, Arc<HeapFile>>>,
    locked: Arc<AtomicBool>,
    next_identity: AtomicU64,
    room: Arc<Room>,
}

/// What all files of a directory share.
struct Room {
    /// Bytes that zero-fills may still take.
    left: AtomicU64,
    syncs: AtomicU64,
}

impl Default for Room {
    fn default() -> Self {
        Self { left: AtomicU64::new(u64::MAX), syncs: AtomicU64::new(0) }
    }
}

impl Room {
    fn take(&self, bytes: u64) -> io::Result<()> {
        let taken = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            if left == u64::MAX { Some(left) } else { left.checked_sub(bytes) }
        });
        taken.map(drop).map_err(|_| io::ErrorKind::StorageFull.into())
    }

    fn give_back(&self, bytes: u64) {
        self.left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                Some(left.saturating_add(bytes))
            })
            .unwrap_or_default();
    }
}

impl HeapFs {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn create(&self, name: &str) -> io::Result<Arc<HeapFile>> {
        let mut files = self.shared.files.lock();
        if files.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(HeapFile {
            content: Mutex::new(Content::Bytes(Vec::new())),
            identity: self.shared.next_identity.fetch_add(1, Ordering::SeqCst),
            room: Arc::clone(&self.shared.room),
        });
        files.insert(name.to_owned(), Arc::clone(&file));
        Ok(file)
    }
}

#[cfg(any(test, feature = "test-util"))]
impl HeapFs {
    /// Lets zero-fills take `bytes` more before they answer `StorageFull`.
    pub fn set_room(&self, bytes: u64) {
        self.shared.room.left.store(bytes, Ordering::SeqCst);
    }

    /// How many syncs of files there have been.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.shared.room.syncs.load(Ordering::SeqCst)
    }

    /// A copy of the directory as it stands, as `cp -r` of a closed store makes one: same bytes,
    /// other identities, unlocked.
    ///
    /// # Errors
    ///
    /// `OutOfMemory` when the heap has no room for the copy.
    pub fn copy(&self) -> io::Result<Self> {
        let copy = Self::new();
        copy.shared.next_identity.store(1 << 32, Ordering::SeqCst);
        for (name, file) in self.shared.files.lock().iter() {
            let to = copy.create(name)?;
            *to.content.lock() = file.content.lock().duplicate()?;
        }
        Ok(copy)
    }
}

impl fmt::Debug for HeapFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapFs")
            .field("files", &self.shared.files.lock().keys())
            .finish_non_exhaustive()
    }
}

impl FileSystem for HeapFs {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let files = self.shared.files.lock();
        let file = files.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::clone(file) as Arc<dyn File>)
    }

    fn create_new(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.create(name)?)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let file = self.shared.files.lock().remove(name).ok_or(io::ErrorKind::NotFound)?;
        if !matches!(&*file.content.lock(), Content::Bytes(_)) {
            self.shared.room.give_back(file.len()?);
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut files = self.shared.files.lock();
        let file = files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.shared.files.lock().keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock(&self, _name: &str) -> io::Result<Option<Box<dyn DirectoryLock>>> {
        let taken = self.shared.locked.swap(true, Ordering::SeqCst);
        Ok((!taken)
            .then(|| Box::new(HeapLock(Arc::clone(&self.shared.locked))) as Box<dyn DirectoryLock>))
    }

    fn boot_id(&self) -> Option<[u8; 16]> {
        None
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }

    fn describe(&self, name: &str) -> PathBuf {
        PathBuf::from("memory").join(name)
    }
}

#[derive(Debug)]
struct HeapLock(Arc<AtomicBool>);

impl DirectoryLock for HeapLock {}

impl Drop for HeapLock {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

struct HeapFile {
    content: Mutex<Content>,
    identity: u64,
    room: Arc<Room>,
}

enum Content {
    /// Grows with each write past its end.
    Bytes(Vec<u8>),
    /// This many zeros, not in memory before the file is mapped.
    Zeros(u64),
    /// Of fixed length, and mapped.
    Region(Arc<HeapRegion>),
}

#[cfg(any(test, feature = "test-util"))]
impl Content {
    fn duplicate(&self) -> io::Result<Self> {
        match self {
            Self::Bytes(bytes) => Ok(Self::Bytes(bytes.clone())),
            Self::Zeros(len) => Ok(Self::Zeros(*len)),
            Self::Region(region) => {
                let mut bytes = vec![0; region.len()];
                // SAFETY: a store is copied when it is closed, so nobody writes to it.
                unsafe { copy_out(region.as_ref(), 0, &mut bytes) };
                let copy = HeapRegion::new(region.len())?;
                // SAFETY: nobody else knows the new region yet.
                unsafe { copy_in(&copy, 0, &bytes) };
                Ok(Self::Region(Arc::new(copy)))
            }
        }
    }
}

impl fmt::Debug for HeapFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeapFile").field("identity", &self.identity).finish_non_exhaustive()
    }
}

fn range(offset: u64, len: usize, limit: usize) -> io::Result<usize> {
    let start = usize::try_from(offset).ok();
    let end = start.and_then(|start| start.checked_add(len)).filter(|end| *end <= limit);
    start.filter(|_| end.is_some()).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

impl File for HeapFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &*self.content.lock() {
            Content::Bytes(bytes) => {
                let start = range(offset, buffer.len(), bytes.len())?;
                buffer.copy_from_slice(&bytes[start..start + buffer.len()]);
            }
            Content::Zeros(len) => {
                range(offset, buffer.len(), usize::try_from(*len).unwrap_or(usize::MAX))?;
                buffer.fill(0);
            }
            Content::Region(region) => {
                let start = range(offset, buffer.len(), region.len())?;
                // SAFETY: whoever reads by position stays off what is being filled (`File::map`).
                unsafe { copy_out(region.as_ref(), start, buffer) };
            }
        }
        Ok(())
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let len = parts.iter().map(|part| part.len()).sum();
        match &mut *self.content.lock() {
            Content::Bytes(bytes) => {
                let mut at = range(offset, len, usize::MAX)?;
                bytes.resize(bytes.len().max(at + len), 0);
                for part in parts {
                    bytes[at..at + part.len()].copy_from_slice(part);
                    at += part.len();
                }
            }
            Content::Zeros(_) => return Err(io::ErrorKind::Unsupported.into()),
            Content::Region(region) => {
                let mut at = range(offset, len, region.len())?;
                for part in parts {
                    // SAFETY: whoever writes by position owns the range, and nobody reads what is
                    // not final (`File::map`).
                    unsafe { copy_in(region.as_ref(), at, part) };
                    at += part.len();
                }
            }
        }
        Ok(())
    }

    fn zero_fill(&self, from: u64, to: u64, _pages: Pages) -> io::Result<()> {
        let mut content = self.content.lock();
        match &*content {
            Content::Bytes(bytes) if bytes.is_empty() && from == 0 => {}
            Content::Zeros(len) if *len == from && to >= from => {}
            _ => return Err(io::ErrorKind::Unsupported.into()),
        }
        self.room.take(to - from)?;
        *content = Content::Zeros(to);
        Ok(())
    }

    fn fill_holes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.room.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(match &*self.content.lock() {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::Zeros(len) => *len,
            Content::Region(region) => region.len() as u64,
        })
    }

    fn identity(&self) -> io::Result<u64> {
        Ok(self.identity)
    }

    fn map(&self) -> io::Result<Arc<dyn Region>> {
        let mut content = self.content.lock();
        if let Content::Zeros(len) = &*content {
            let len = usize::try_from(*len).map_err(|_| io::ErrorKind::OutOfMemory)?;
            *content = Content::Region(Arc::new(HeapRegion::new(len)?));
        }
        match &*content {
            Content::Region(region) => Ok(Arc::clone(region) as Arc<dyn Region>),
            Content::Bytes(_) | Content::Zeros(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_positioned_write_shows_in_the_mapping() {
        let fs = HeapFs::new();
        let file = fs.create_new("data").unwrap();
        file.zero_fill(0, 8192, Pages::Small).unwrap();
        let region = file.map().unwrap();
        file.write_at(&[IoSlice::new(b"ab"), IoSlice::new(b"cd")], 100).unwrap();
        let extent = super::super::extent::Extent::new(region, 0, 4096, 4096);
        assert_eq!(extent.bytes(99, 105).unwrap(), b"\0abcd\0");
        assert!(file.write_at(&[IoSlice::new(b"x")], 8192).is_err());
    }

    #[test]
    fn room_runs_out_as_on_a_full_disk() {
        let fs = HeapFs::new();
        fs.set_room(5000);
        let file = fs.create_new("one").unwrap();
        file.zero_fill(0, 2048, Pages::Small).unwrap();
        file.zero_fill(2048, 4096, Pages::Small).unwrap();
        let full = fs.create_new("two").unwrap().zero_fill(0, 4096, Pages::Small).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        fs.remove("one").unwrap();
        fs.create_new("three").unwrap().zero_fill(0, 4096, Pages::Small).unwrap();
    }

    #[test]
    fn files_outlive_their_handles_and_copies_are_other_files() {
        let fs = HeapFs::new();
        fs.create_new("meta").unwrap().write_at(&[IoSlice::new(b"hello")], 3).unwrap();
        let copy = fs.copy().unwrap();
        let (file, other) = (fs.open("meta").unwrap(), copy.open("meta").unwrap());
        let mut bytes = [0; 8];
        other.read_at(&mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"\0\0\0hello");
        assert_ne!(file.identity().unwrap(), other.identity().unwrap());
    }
}
