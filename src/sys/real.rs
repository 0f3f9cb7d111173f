//! The real file system: `std::fs` for names, rustix for positioned writes, memmap2 for mappings.
//!
//! Every file of a store lies in one directory. Nothing here decides when to sync.

use std::fs::{self, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, IoSlice};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{SeekFrom, seek};
use rustix::io::{Errno, pwritev, retry_on_intr};
use rustix::process::{Resource, getrlimit};

use super::region::MappedRegion;
use super::{DirectoryLock, File, FileSystem, Pages, Region};

/// A directory of the operating system.
#[derive(Debug)]
pub struct RealFs {
    directory: PathBuf,
    is_read_only: bool,
}

/// Makes the entry of a directory durable. A mount point's is in another file system, which may know of no sync, and
/// was made by nobody who makes stores.
fn sync_entry(directory: &Path) -> io::Result<()> {
    let directory = directory.canonicalize()?;
    match directory.parent() {
        Some(parent) if fs::metadata(parent)?.dev() == fs::metadata(&directory)?.dev() => {
            fs::File::open(parent)?.sync_all()
        }
        _ => Ok(()),
    }
}

impl RealFs {
    /// The directory at `path`, created with its parents if need be.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn new(path: &Path) -> io::Result<Self> {
        let missing: Vec<&Path> = path
            .ancestors()
            .take_while(|path| !path.as_os_str().is_empty() && !path.is_dir())
            .collect();
        // Whoever made what is there already, or a part of it, may have been killed before this. Where the
        // parent may not be read, it was not he.
        if !missing.is_empty() || fs::read_dir(path)?.next().is_none() {
            let there = path.ancestors().nth(missing.len());
            let there = there.filter(|there| !there.as_os_str().is_empty());
            match sync_entry(there.unwrap_or(Path::new("."))) {
                Err(error) if error.kind() != ErrorKind::PermissionDenied => return Err(error),
                _ => {}
            }
        }
        // The entry of each new directory must survive, too; one after the other, so that the next open
        // finds at most one whose does not.
        for created in missing.into_iter().rev() {
            match fs::create_dir(created) {
                Err(error) if !created.is_dir() => return Err(error),
                _ => sync_entry(created)?,
            }
        }
        Ok(Self { directory: path.canonicalize()?, is_read_only: false })
    }

    /// The directory at `path`, which exists and is only read: it may lie on a file system that
    /// takes no writes.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    pub fn read_only(path: &Path) -> io::Result<Self> {
        Ok(Self { directory: path.canonicalize()?, is_read_only: true })
    }

    /// The file to lock. A lock needs no right to write; and on a file system that takes no writes
    /// nobody can have the store open for writing, so that a lock on nothing will do.
    fn lock_file(&self, name: &str) -> io::Result<Option<fs::File>> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(true).create(true).truncate(false);
        match opened.open(self.path(name)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if self.is_read_only => {
                let is_fixed = error.kind() == ErrorKind::ReadOnlyFilesystem;
                match fs::File::open(self.path(name)) {
                    Ok(file) => Ok(Some(file)),
                    Err(missing) if missing.kind() == ErrorKind::NotFound && is_fixed => Ok(None),
                    Err(_) => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }
}

impl FileSystem for RealFs {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        if self.is_read_only {
            let file = fs::File::open(self.path(name))?;
            return Ok(Arc::new(RealFile { file, limit: Some(0), is_read_only: true }));
        }
        let file = OpenOptions::new().read(true).write(true).open(self.path(name))?;
        let file = RealFile::new(file);
        // Writes behind the limit would be refused one by one, or worse.
        file.check_limit(file.len()?)?;
        Ok(Arc::new(file))
    }

    fn create_new(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).open(self.path(name))?;
        Ok(Arc::new(RealFile::new(file)))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            // A name that is no UTF-8 is none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    fn sync_dir(&self) -> io::Result<()> {
        fs::File::open(&self.directory)?.sync_all()
    }

    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn DirectoryLock>>> {
        let Some(file) = self.lock_file(name)? else {
            return Ok(Some(Box::new(NoLock)));
        };
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(RealLock { file }))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn boot_id(&self) -> Option<[u8; 16]> {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).ok().map(u128::to_le_bytes)
    }

    #[cfg(target_os = "linux")]
    fn stores_cannot_fail(&self) -> bool {
        /// What ext2, ext3 and ext4 call themselves.
        const EXT4: u64 = 0xef53;
        const TMPFS: u64 = 0x0102_1994;
        // A magic number of 32 bits, of whatever type it is on this machine.
        let kind = rustix::fs::statfs(&self.directory).map(|it| it.f_type as u64 & 0xffff_ffff);
        matches!(kind, Ok(EXT4 | TMPFS))
    }

    fn random(&self, bytes: &mut [u8]) -> io::Result<()> {
        getrandom::fill(bytes).map_err(io::Error::other)
    }

    fn describe(&self, name: &str) -> PathBuf {
        self.path(name)
    }
}

/// Holds the lock until it is dropped: explicitly, because a forked child would otherwise keep it.
#[derive(Debug)]
struct RealLock {
    file: fs::File,
}

impl DirectoryLock for RealLock {}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Should this fail, closing the descriptor releases the lock all the same.
        self.file.unlock().unwrap_or_default();
    }
}

/// Stands for a lock where there can be none.
#[derive(Debug)]
struct NoLock;

impl DirectoryLock for NoLock {}

#[derive(Debug)]
struct RealFile {
    file: fs::File,
    is_read_only: bool,
    /// Length that the process may write up to.
    limit: Option<u64>,
}

impl RealFile {
    fn new(file: fs::File) -> Self {
        Self { file, limit: getrlimit(Resource::Fsize).current, is_read_only: false }
    }

    /// Beyond the limit the kernel would kill the process with SIGXFSZ.
    fn check_limit(&self, end: u64) -> io::Result<()> {
        if self.limit.is_some_and(|limit| end > limit) {
            let text = format!("{end} bytes exceed the file size limit of the process");
            return Err(io::Error::new(ErrorKind::FileTooLarge, text));
        }
        Ok(())
    }

    /// The page cache takes pages as large as what is written at once, and aligned.
    fn write_zeros(&self, from: u64, to: u64, pages: Pages) -> io::Result<()> {
        static ZEROS: [u8; 2 << 20] = [0; 2 << 20];
        let longest = match pages {
            Pages::Small => 4096,
            Pages::Large => ZEROS.len() as u64,
        };
        let mut offset = from;
        while offset < to {
            let piece = (to - offset).min(longest - offset % longest);
            self.file.write_all_at(&ZEROS[..piece as usize], offset)?;
            offset += piece;
        }
        Ok(())
    }
}

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let wanted: usize = parts.iter().map(|part| part.len()).sum();
        self.check_limit(offset + wanted as u64)?;
        // Interrupted means that nothing was written.
        let written = retry_on_intr(|| pwritev(&self.file, parts, offset))?;
        if written == wanted {
            Ok(())
        } else {
            let text = format!("short write: {written} of {wanted} bytes");
            Err(io::Error::new(ErrorKind::WriteZero, text))
        }
    }

    fn zero_fill(&self, from: u64, to: u64, pages: Pages) -> io::Result<()> {
        self.check_limit(to)?;
        self.write_zeros(from, to, pages)
    }

    fn fill_holes(&self) -> io::Result<u64> {
        let len = self.len()?;
        let (mut at, mut filled) = (0, 0);
        while at < len {
            // A file system that knows of no holes says that the first one is at the end.
            let hole = seek(&self.file, SeekFrom::Hole(at))?.min(len);
            let end = match seek(&self.file, SeekFrom::Data(hole)) {
                Ok(data) => data.min(len),
                Err(Errno::NXIO) => len,
                Err(error) => return Err(error.into()),
            };
            self.write_zeros(hole, end, Pages::Small)?;
            filled += end - hole;
            at = end;
        }
        Ok(filled)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file.sync_all()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn identity(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    fn map(&self) -> io::Result<Arc<dyn Region>> {
        let len = usize::try_from(self.len()?)
            .map_err(|error| io::Error::new(ErrorKind::FileTooLarge, error))?;
        Ok(Arc::new(MappedRegion::new(&self.file, len, self.is_read_only)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fixture() -> (tempfile::TempDir, RealFs) {
        let directory = tempfile::tempdir().unwrap();
        let fs = RealFs::new(&directory.path().join("a/b")).unwrap();
        (directory, fs)
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real files")]
    fn what_is_written_is_read_through_the_file_and_the_mapping() {
        let (_directory, fs) = fixture();
        let file = fs.create_new("data").unwrap();
        file.zero_fill(0, 5_000, Pages::Small).unwrap();
        file.zero_fill(5_000, 10_000, Pages::Large).unwrap();
        assert_eq!(file.len().unwrap(), 10_000);
        let region = file.map().unwrap();
        file.write_at(&[IoSlice::new(b"head"), IoSlice::new(b"body")], 4094).unwrap();
        let mut bytes = [0; 10];
        fs.open("data").unwrap().read_at(&mut bytes, 4093).unwrap();
        assert_eq!(&bytes, b"\0headbody\0");
        let extent = Arc::new(super::super::extent::Extent::new(region, 0, 8192, 8192));
        assert_eq!(extent.bytes(4093, 4103).unwrap(), &bytes);
        let end = file.read_at(&mut bytes, 9_995).unwrap_err();
        assert_eq!(end.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real files")]
    fn directories_are_made_one_after_the_other_and_nothing_else_is_taken_for_one() {
        let (directory, _) = fixture();
        let deep = directory.path().join("a/c/../d/e");
        fs::create_dir(directory.path().join("a/c")).unwrap();
        for _ in 0..2 {
            RealFs::new(&deep).unwrap();
        }
        assert!(directory.path().join("a/d/e").is_dir());
        fs::write(directory.path().join("file"), b"").unwrap();
        for taken in ["file", "file/store"] {
            let error = RealFs::new(&directory.path().join(taken)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{taken}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real files")]
    fn the_directory_above_a_mount_point_need_not_know_of_syncs() {
        let mount = Path::new("/sys/fs/cgroup");
        let above = fs::File::open("/sys/fs").and_then(|above| above.sync_all());
        if !mount.is_dir() || above.is_ok() {
            println!("SKIPPED: no such mount point");
            return;
        }
        sync_entry(mount).unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real files")]
    fn the_lock_has_one_holder_and_ends_with_it() {
        let (_directory, fs) = fixture();
        let held = fs.try_lock("LOCK").unwrap();
        assert!(held.is_some());
        assert!(fs.try_lock("LOCK").unwrap().is_none());
        drop(held);
        assert!(fs.try_lock("LOCK").unwrap().is_some());
    }

    #[test]
    #[cfg_attr(miri, ignore = "needs real files")]
    fn names_are_created_listed_renamed_and_removed() {
        let (_directory, fs) = fixture();
        fs.create_new("one").unwrap();
        assert!(fs.create_new("one").is_err());
        fs.rename("one", "two").unwrap();
        fs.sync_dir().unwrap();
        assert_eq!(fs.list().unwrap(), ["two"]);
        fs.remove("two").unwrap();
        assert!(fs.list().unwrap().is_empty());
        assert!(fs.open("two").is_err());
    }
}
