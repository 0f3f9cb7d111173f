//! Reports: what opening a store found, and what salvage could read, as plain data.

use std::path::PathBuf;
use std::time::Duration;

/// What [`crate::Options::open`] found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The store did not exist and was made.
    pub created: bool,
    /// The store had been closed in order; nothing was in doubt.
    pub clean: bool,
    /// The meta file is not the one the store was last opened with: the directory is a copy. The
    /// epoch was raised by 65,536, so that tokens of copy and original differ.
    pub copied: bool,
    /// One of the two meta slots could not be read, and the other was used.
    pub meta_fallback: bool,
    /// The operating system has not been restarted since the store was last opened; `None` when
    /// that is not known.
    pub same_boot: Option<bool>,
    /// A sync had failed while the store was last open.
    pub was_poisoned: bool,
    /// The epoch of this open.
    pub epoch: u32,
    /// How far the wall clock is behind the store's time; the store's time goes on regardless.
    pub clock_behind: Duration,
    /// How far the wall clock is ahead of the last time the store has witnessed.
    pub clock_ahead: Duration,
    /// Data files.
    pub files: usize,
    /// Segments that hold records.
    pub segments: usize,
    /// Records that were taken into account.
    pub records: u64,
    /// Those of them of which the index of their segment was read, and not the record: the segment
    /// was known to be durable. What an index names is checked when it is first read.
    pub records_indexed: u64,
    /// Records of kinds that a newer version wrote and that may be skipped.
    pub records_skipped: u64,
    /// Bytes of valid records.
    pub bytes: u64,
    /// Completed keys.
    pub completed: usize,
    /// Unfinished claims whose owner died with the last process.
    pub orphaned: usize,
    /// Parked keys, orphans that were parked by this open among them.
    pub parked: usize,
    /// Keys whose time was over.
    pub expired: usize,
    /// Ends of segments that were not written to the end. All of it lies above what was proven
    /// durable.
    pub torn_tails: Vec<TornTail>,
    /// Bytes written again because the page cache could not be trusted with them.
    pub rewritten_bytes: u64,
    /// How long it took.
    pub duration: Duration,
}

/// The end of a segment that a crash cut short.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct TornTail {
    /// The data file.
    pub path: PathBuf,
    /// Where in the file the valid records end.
    pub offset: u64,
    /// How many bytes behind that are known to have been written, at least.
    pub bytes: u64,
    /// How many of those still look like valid records, at least. They are not applied: something
    /// before them is missing.
    pub records: u64,
    /// The last round was under way or had just ended when the store stopped: a crash during the
    /// round, or damage to what it wrote.
    pub last_round_incomplete: bool,
}

impl RecoveryReport {
    /// Bytes of all torn tails.
    #[must_use]
    pub fn torn_bytes(&self) -> u64 {
        self.torn_tails.iter().map(|tail| tail.bytes).sum()
    }
}

/// What [`crate::Store::salvage`] could read and copy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct SalvageReport {
    /// Data files that were read.
    pub files: usize,
    /// Segments in which records were found.
    pub segments: usize,
    /// Namespaces whose names and policies are kept.
    pub namespaces: usize,
    /// Records copied.
    pub records: u64,
    /// Those among them whose bodies were damaged: that the key is completed is kept, what it said
    /// is lost.
    pub bodies_lost: u64,
    /// Records that were not copied, because the name of their namespace is lost.
    pub records_unnamed: u64,
    /// Bytes that are known to have held records, and do no more.
    pub bytes_lost: u64,
    /// Everything that was wrong, the first thousand places.
    pub damage: Vec<Damage>,
    /// Gaps of the new store that were made for it; see [`crate::Gap`]. When it has none, nothing
    /// was lost that opening the source would not have cut off.
    pub gaps: usize,
    /// The epoch of the new store: above that of every token ever given by the source.
    pub epoch: u32,
    /// How long it took.
    pub duration: Duration,
}

/// A place in a store that could not be read, or says what cannot be.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where in the file.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
}
