//! The names file: appended to, never rewritten.
//!
//! How much of it counts stands in the meta file, which is updated after the append was synced. So
//! a namespace exists from the moment its call returns, and an append that a crash cut short is
//! overwritten by the next one.

use std::io::{ErrorKind, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Failure, OpenError};
use crate::format::NAMES_NAME;
use crate::format::names::Entry;
use crate::sys::point::{Point, reach};
use crate::sys::{File, FileSystem};

/// More than four billion namespaces would fit; memory does not.
const NAMES_BYTES_MAX: u64 = u32::MAX as u64;

/// What stopped an append.
#[derive(Debug)]
pub(crate) enum AppendFailure {
    /// Nothing that counts was changed; the disk may be full.
    Write(Arc<Failure>),
    /// The caller poisons the store.
    Sync(Arc<Failure>),
}

/// The open names file.
#[derive(Debug)]
pub(crate) struct NamesFile {
    file: Arc<dyn File>,
    path: PathBuf,
    store_id: [u8; 16],
    /// Where the next entry goes.
    end: u64,
}

impl NamesFile {
    /// Makes the empty file of a new store. The caller syncs the directory.
    pub(crate) fn create(fs: &dyn FileSystem) -> std::io::Result<()> {
        fs.create_new(NAMES_NAME)?.sync_all()
    }

    /// Opens the file and reads all entries within its first `end` bytes.
    pub(crate) fn load(
        fs: &dyn FileSystem,
        store_id: [u8; 16],
        end: u64,
    ) -> Result<(Self, Vec<Entry>), OpenError> {
        let path = fs.describe(NAMES_NAME);
        let file = fs.open(NAMES_NAME).map_err(|error| match error.kind() {
            ErrorKind::NotFound => OpenError::MissingFile { path: path.clone() },
            _ => OpenError::io("open", path.clone(), error),
        })?;
        let corrupt = |offset: u64, what: &str| OpenError::Corrupt {
            path: path.clone(),
            offset,
            what: what.to_owned(),
        };
        let len = file.len().map_err(|error| OpenError::io("measure", path.clone(), error))?;
        if len < end {
            return Err(corrupt(len, "the file is shorter than what was written to it"));
        }
        // Bounded by the length of the file, hence by the disk.
        let bytes_len = usize::try_from(end).map_err(|_| corrupt(0, "the file is too long"))?;
        let mut bytes = vec![0; bytes_len];
        file.read_at(&mut bytes, 0).map_err(|error| OpenError::io("read", path.clone(), error))?;
        let mut entries = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            // The file has less than 4 GiB.
            let decoded = Entry::decode(&bytes[at..], &store_id, at as u32);
            let (entry, len) =
                decoded.ok_or_else(|| corrupt(at as u64, "an entry cannot be read"))?;
            entries.push(entry);
            at += len;
        }
        Ok((Self { file, path, store_id, end }, entries))
    }

    /// Reads on behind what counts, up to the first entry that cannot be read, and counts that too:
    /// for when the meta file may be one write old.
    pub(crate) fn load_rest(&mut self, fs: &dyn FileSystem) -> Result<Vec<Entry>, OpenError> {
        let len = self.file.len();
        let len = len.map_err(|error| OpenError::io("measure", self.path.clone(), error))?;
        let (rest, mut entries) = (len.saturating_sub(self.end), Vec::new());
        let rest = usize::try_from(rest).unwrap_or(usize::MAX);
        let mut bytes = vec![0; rest];
        let read = self.file.read_at(&mut bytes, self.end);
        read.map_err(|error| OpenError::io("read", fs.describe(NAMES_NAME), error))?;
        let mut at = 0;
        while let Some((entry, len)) =
            Entry::decode(&bytes[at..], &self.store_id, (self.end as usize + at) as u32)
        {
            entries.push(entry);
            at += len;
        }
        self.end += at as u64;
        Ok(entries)
    }

    /// Writes what was counted beyond `counted` again, and zeros over what does not count, durably:
    /// an entry that was never acknowledged must not come back when a later open trusts the file
    /// more than the meta file.
    pub(crate) fn make_good(&self, counted: u64) -> Result<(), Arc<Failure>> {
        let failed = |operation| {
            let path = self.path.clone();
            move |error| Failure::new(operation, path, error)
        };
        let len = self.file.len().map_err(failed("measure"))?;
        let mut is_written = false;
        let mut at = counted;
        while at < len {
            let mut piece = [0; 4096];
            let piece = &mut piece[..(len - at).min(4096) as usize];
            self.file.read_at(piece, at).map_err(failed("read"))?;
            // Below `end` as it is, above it zeros.
            let kept = self.end.saturating_sub(at).min(piece.len() as u64) as usize;
            if kept > 0 || piece.iter().any(|byte| *byte != 0) {
                piece[kept..].fill(0);
                self.file.write_at(&[IoSlice::new(piece)], at).map_err(failed("write"))?;
                is_written = true;
            }
            at += piece.len() as u64;
        }
        if is_written { self.file.sync_data().map_err(failed("sync")) } else { Ok(()) }
    }

    /// How much of the file counts.
    pub(crate) fn end(&self) -> u64 {
        self.end
    }

    /// Whether one more entry fits.
    pub(crate) fn has_room(&self) -> bool {
        self.end + 1024 <= NAMES_BYTES_MAX
    }

    /// Appends an entry durably, and gives the length that counts once the meta file says so.
    pub(crate) fn append(&mut self, entry: &Entry) -> Result<u64, AppendFailure> {
        let failed = |operation| {
            let path = self.path.clone();
            move |error| Failure::new(operation, path, error)
        };
        // `has_room` keeps the offset within 32 bits.
        let bytes = entry.encode(&self.store_id, self.end as u32);
        let written = self.file.write_at(&[IoSlice::new(&bytes)], self.end);
        if let Err(error) = written {
            // Some of it may be there, all of it even. What is refused must not come back (I11).
            self.make_good(self.end).map_err(AppendFailure::Sync)?;
            return Err(AppendFailure::Write(failed("write")(error)));
        }
        reach(Point::BeforeNameSync);
        self.file.sync_data().map_err(failed("sync")).map_err(AppendFailure::Sync)?;
        Ok(self.end + bytes.len() as u64)
    }

    /// Declares that the meta file counts everything before `end`.
    pub(crate) fn advance(&mut self, end: u64) {
        self.end = end;
    }
}
