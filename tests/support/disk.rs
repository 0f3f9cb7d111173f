//! Disks for tests: one that asks before each operation, and bytes to look at and to change.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use refrain::testing::{DirectoryLock, File, FileSystem, HeapFs, Pages, Region};

/// What is about to happen: `sync`, `write`, `fill`, ..., and to which file.
pub type Hook = dyn Fn(&'static str, &str) -> io::Result<()> + Send + Sync;

/// A file system that asks a hook before it does anything.
#[derive(Clone)]
pub struct HookFs {
    inner: Arc<dyn FileSystem>,
    hook: Arc<Hook>,
}

impl HookFs {
    pub fn new(
        inner: impl FileSystem + 'static,
        hook: impl Fn(&'static str, &str) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self { inner: Arc::new(inner), hook: Arc::new(hook) }
    }

    fn wrap(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(HookFile { inner: file, name: name.to_owned(), hook: Arc::clone(&self.hook) })
    }
}

impl fmt::Debug for HookFs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookFs")
    }
}

impl FileSystem for HookFs {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        (self.hook)("open", name)?;
        Ok(self.wrap(name, self.inner.open(name)?))
    }

    fn create_new(&self, name: &str) -> io::Result<Arc<dyn File>> {
        (self.hook)("create", name)?;
        Ok(self.wrap(name, self.inner.create_new(name)?))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        (self.hook)("remove", name)?;
        self.inner.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        (self.hook)("rename", from)?;
        self.inner.rename(from, to)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        (self.hook)("list", "")?;
        self.inner.list()
    }

    fn sync_dir(&self) -> io::Result<()> {
        (self.hook)("sync_dir", "")?;
        self.inner.sync_dir()
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn DirectoryLock>>> {
        (self.hook)("lock", name)?;
        let Some(inner) = self.inner.try_lock(name)? else { return Ok(None) };
        let (hook, name) = (Arc::clone(&self.hook), name.to_owned());
        Ok(Some(Box::new(HookLock { _inner: inner, hook, name })))
    }

    fn boot_id(&self) -> Option<[u8; 16]> {
        self.inner.boot_id()
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        self.inner.random(bytes)
    }

    fn stores_cannot_fail(&self) -> bool {
        self.inner.stores_cannot_fail()
    }

    fn describe(&self, name: &str) -> PathBuf {
        self.inner.describe(name)
    }
}

/// Tells the hook when it is given back.
struct HookLock {
    _inner: Box<dyn DirectoryLock>,
    hook: Arc<Hook>,
    name: String,
}

impl DirectoryLock for HookLock {}

impl fmt::Debug for HookLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HookLock")
    }
}

impl Drop for HookLock {
    fn drop(&mut self) {
        // There is no way to refuse.
        (self.hook)("unlock", &self.name).unwrap_or_default();
    }
}

struct HookFile {
    inner: Arc<dyn File>,
    name: String,
    hook: Arc<Hook>,
}

impl fmt::Debug for HookFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HookFile({})", self.name)
    }
}

impl File for HookFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (self.hook)("read", &self.name)?;
        self.inner.read_at(buffer, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        if parts.iter().all(|part| part.iter().all(|byte| *byte == 0)) {
            (self.hook)("zero", &self.name)?;
        }
        (self.hook)("write", &self.name)?;
        self.inner.write_at(parts, offset)
    }

    fn zero_fill(&self, from: u64, to: u64, pages: Pages) -> io::Result<()> {
        (self.hook)("fill", &self.name)?;
        self.inner.zero_fill(from, to, pages)
    }

    fn fill_holes(&self) -> io::Result<u64> {
        self.inner.fill_holes()
    }

    fn sync_data(&self) -> io::Result<()> {
        (self.hook)("sync", &self.name)?;
        self.inner.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        (self.hook)("sync", &self.name)?;
        self.inner.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn identity(&self) -> io::Result<u64> {
        self.inner.identity()
    }

    fn map(&self) -> io::Result<Arc<dyn Region>> {
        (self.hook)("map", &self.name)?;
        self.inner.map()
    }
}

/// The bytes of a file.
pub fn read(fs: &dyn FileSystem, name: &str) -> Vec<u8> {
    let file = fs.open(name).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_at(&mut bytes, 0).unwrap();
    bytes
}

/// Every file with its bytes.
pub fn snapshot(fs: &dyn FileSystem) -> BTreeMap<String, Vec<u8>> {
    let names = fs.list().unwrap();
    names.into_iter().map(|name| (name.clone(), read(fs, &name))).collect()
}

/// Changes bytes of a file behind everybody's back.
pub fn poke(fs: &dyn FileSystem, name: &str, offset: u64, bytes: &[u8]) {
    fs.open(name).unwrap().write_at(&[IoSlice::new(bytes)], offset).unwrap();
}

/// Replaces a file by one with these bytes, or by none.
pub fn replace(fs: &HeapFs, name: &str, bytes: Option<&[u8]>) {
    fs.remove(name).unwrap();
    if let Some(bytes) = bytes {
        fs.create_new(name).unwrap().write_at(&[IoSlice::new(bytes)], 0).unwrap();
    }
}

/// Where the last occurrence of `needle` starts.
pub fn find_last(bytes: &[u8], needle: &[u8]) -> u64 {
    let at = bytes.windows(needle.len()).rposition(|window| window == needle);
    at.expect("the bytes are there") as u64
}
