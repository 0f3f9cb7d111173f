//! The file system of the simulated disk, as one process has it.
#![allow(unsafe_code, reason = "stands for mapped files")]

use std::fmt;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::ptr::NonNull;
use std::sync::Arc;

use super::super::region::HeapRegion;
use super::super::{DirectoryLock, File, FileSystem, Pages, Region};
use super::image::{Inode, PAGE};
use super::{NameChange, SimDisk};

/// The directory of a [`SimDisk`], as one process has it.
#[derive(Clone, Debug)]
pub struct SimFs {
    disk: SimDisk,
    mount: u64,
}

impl SimFs {
    pub(super) fn new(disk: SimDisk, mount: u64) -> Self {
        Self { disk, mount }
    }

    fn file(&self, inode: u64) -> Arc<dyn File> {
        Arc::new(SimFile { disk: self.disk.clone(), mount: self.mount, inode })
    }
}

impl FileSystem for SimFs {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, "open")?;
        let inode = *state.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        drop(state);
        Ok(self.file(inode))
    }

    fn create_new(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, "create")?;
        if state.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::new());
        state.names.insert(name.to_owned(), inode);
        state.renamed.push(NameChange::Create(name.to_owned(), inode));
        drop(state);
        Ok(self.file(inode))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, "remove")?;
        let inode = state.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        state.renamed.push(NameChange::Remove(name.to_owned()));
        let len = state.inode(inode)?.len;
        state.room = state.room.saturating_add(len);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, "rename")?;
        let inode = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.to_owned(), inode);
        state.renamed.push(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, "list")?;
        Ok(state.names.keys().cloned().collect())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, "sync_dir")?;
        state.renamed.clear();
        state.synced_names = state.names.clone();
        Ok(())
    }

    fn try_lock(&self, _name: &str) -> io::Result<Option<Box<dyn DirectoryLock>>> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, "lock")?;
        if std::mem::replace(&mut state.is_locked, true) {
            return Ok(None);
        }
        Ok(Some(Box::new(SimLock(self.clone()))))
    }

    fn boot_id(&self) -> Option<[u8; 16]> {
        let mut id = [7; 16];
        id[..8].copy_from_slice(&self.disk.state.lock().boot.to_le_bytes());
        Some(id)
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        for byte in bytes {
            *byte = state.random.next() as u8;
        }
        Ok(())
    }

    fn describe(&self, name: &str) -> PathBuf {
        PathBuf::from("simulated").join(name)
    }
}

#[derive(Debug)]
struct SimLock(SimFs);

impl DirectoryLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.0.disk.state.lock();
        if state.mounts == self.0.mount && state.crashed.is_none() {
            state.is_locked = false;
        }
    }
}

struct SimFile {
    disk: SimDisk,
    mount: u64,
    inode: u64,
}

impl SimFile {
    /// Begins a call; its file.
    fn with<T>(
        &self,
        operation: &'static str,
        call: impl FnOnce(&mut Inode) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut state = self.disk.state.lock();
        state.step(self.mount, operation)?;
        call(state.inode(self.inode)?)
    }

    /// The part of a write that is done when the process ends in the midst of it, or when the call
    /// fails: whole pages from the front, because the kernel looks around between pages. (What of
    /// them reaches the disk, sector by sector, is the power cut's to say.)
    fn write_some(&self, bytes: &[u8], offset: u64) {
        let mut state = self.disk.state.lock();
        let first = (PAGE as u64 - offset % PAGE as u64).min(bytes.len() as u64);
        let pages = state.random.below((bytes.len() as u64 - first).div_ceil(PAGE as u64) + 2);
        let done = if pages == 0 { 0 } else { first + (pages - 1) * PAGE as u64 };
        if let Ok(inode) = state.inode(self.inode) {
            inode.write(&bytes[..done.min(bytes.len() as u64) as usize], offset);
        }
    }
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("inode", &self.inode).finish_non_exhaustive()
    }
}

impl File for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.with("read", |inode| inode.read(buffer, offset))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes = parts.iter().fold(Vec::new(), |mut bytes, part| {
            bytes.extend_from_slice(part);
            bytes
        });
        {
            // What is about to be cut short is done in part.
            let state = self.disk.state.lock();
            let is_current = state.mounts == self.mount && state.crashed.is_none();
            let crash = state.crash_at.filter(|(at, _)| *at <= state.steps + 1);
            drop(state);
            if is_current && crash.is_some() {
                self.write_some(&bytes, offset);
            }
        }
        let mut state = self.disk.state.lock();
        if let Err(error) = state.step(self.mount, "write") {
            let is_current = state.mounts == self.mount && state.crashed.is_none();
            drop(state);
            if is_current {
                self.write_some(&bytes, offset);
            }
            return Err(error);
        }
        state.inode(self.inode)?.write(&bytes, offset);
        Ok(())
    }

    fn zero_fill(&self, from: u64, to: u64, _pages: Pages) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        let result = state.step(self.mount, "fill");
        if result.is_err() && (state.mounts != self.mount || state.crashed.is_some()) {
            return result;
        }
        let wanted = to - from;
        let taken = match &result {
            Ok(()) if wanted <= state.room => wanted,
            Ok(()) => {
                state.count("disk full");
                state.room
            }
            Err(_) => {
                let most = wanted.min(state.room);
                state.random.below(most + 1)
            }
        };
        if state.room != u64::MAX {
            state.room -= taken;
        }
        let inode = state.inode(self.inode)?;
        if inode.len != from {
            return Err(io::ErrorKind::Unsupported.into());
        }
        inode.len = from + taken;
        result?;
        if taken < wanted { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn fill_holes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state.lock();
        if let Err(error) = state.step(self.mount, "sync") {
            if state.mounts == self.mount && state.crashed.is_none() {
                // The kernel tried, and marked everything clean, whatever became of it.
                let mut random = state.random.clone();
                let inode = state.inode(self.inode)?;
                for page in std::mem::take(&mut inode.dirty).into_keys() {
                    if random.below(2) == 0
                        && let Some(bytes) = inode.page(page)
                    {
                        inode.disk.insert(page, bytes);
                    }
                }
                state.random = random;
            }
            return Err(error);
        }
        state.inode(self.inode)?.sync();
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.with("len", |inode| Ok(inode.len))
    }

    fn identity(&self) -> io::Result<u64> {
        Ok(self.inode)
    }

    fn map(&self) -> io::Result<Arc<dyn Region>> {
        let heap = self.with("map", Inode::map)?;
        let (disk, mount, inode) = (self.disk.clone(), self.mount, self.inode);
        Ok(Arc::new(SimRegion { heap, file: SimFile { disk, mount, inode } }))
    }
}

/// Memory that tells the disk when it is stored to.
#[derive(Debug)]
struct SimRegion {
    heap: Arc<HeapRegion>,
    file: SimFile,
}

// SAFETY: the address and the length are those of the heap region, which this one keeps.
unsafe impl Region for SimRegion {
    fn base(&self) -> NonNull<u8> {
        self.heap.base()
    }

    fn len(&self) -> usize {
        self.heap.len()
    }

    fn stored(&self, offset: usize, len: usize) {
        let mut state = self.file.disk.state.lock();
        let is_current = state.mounts == self.file.mount && state.crashed.is_none();
        if let Ok(inode) = state.inode(self.file.inode)
            && len > 0
        {
            let pages = (offset / PAGE) as u64..=((offset + len - 1) / PAGE) as u64;
            inode.stored(&self.heap, pages.clone());
            if is_current {
                for page in pages {
                    inode.dirty.entry(page).or_default();
                }
            }
        }
        if !is_current {
            return;
        }
        // A store cannot fail; the process can end behind it.
        drop(state.step(self.file.mount, "store"));
    }
}
