//! The outside world behind traits: file system, file, region of memory, clock.
//!
//! Everything above this layer reaches the disk and the time through these traits only, so the
//! whole engine runs unchanged on the real machine ([`real`]), on the heap ([`heap`]: memory mode,
//! Miri, tests) and on whatever a test wraps around either. The traits are used as objects: every
//! call behind them but a clock read is a system call or a copy, next to which the indirection is
//! nothing.
//!
//! Unsafe code lives in this folder alone: `extent` (reading and filling mapped memory), `region`
//! (owning it), `pin` (borrowing what may be taken away), `tally` (counting at hand), `fork` (a page the kernel wipes in a
//! child) and `prefetch` (an instruction).

mod barrier;
pub(crate) mod clock;
#[cfg(any(loom, shuttle))]
pub(crate) mod explored;
pub(crate) mod extent;
pub(crate) mod fork;
pub(crate) mod heap;
pub(crate) mod kept;
pub(crate) mod ordinal;
pub(crate) mod pin;
pub(crate) mod point;
pub(crate) mod prefetch;
pub(crate) mod real;
pub(crate) mod region;
#[cfg(any(test, feature = "test-util"))]
pub(crate) mod sim;
#[cfg(any(test, feature = "test-util"))]
pub(crate) mod sim_clock;
pub(crate) mod sync;
pub(crate) mod tally;
pub(crate) mod wakers;

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::sync::Arc;

pub use clock::Clock;
pub use region::Region;

/// One directory: the store's. Names are plain file names within it.
pub trait FileSystem: Send + Sync + Debug {
    /// Opens the file `name` for reading and writing; it must exist.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Creates the file `name`; it must not exist.
    fn create_new(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Removes the file `name`.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames `from` to `to`, replacing what was there, at once or not at all.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// The names of all files, in no order.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Makes creations, removals and renames survive power loss.
    fn sync_dir(&self) -> io::Result<()>;

    /// Takes the exclusive lock on the file `name`, creating it if need be, without waiting:
    /// `None` when another holder has it. Dropping the lock releases it.
    fn try_lock(&self, name: &str) -> io::Result<Option<Box<dyn DirectoryLock>>>;

    /// An id that changes with each start of the operating system, when there is one.
    fn boot_id(&self) -> Option<[u8; 16]>;

    /// Fills `bytes` with random ones that nobody can foresee.
    fn random(&self, bytes: &mut [u8]) -> io::Result<()>;

    /// Whether storing through a mapping to a block that was written before needs nothing that a device may refuse:
    /// no block that is not there yet. Else a process dies of it where a write would answer an error.
    fn stores_cannot_fail(&self) -> bool {
        true
    }

    /// Where `name` lies, for messages.
    fn describe(&self, name: &str) -> std::path::PathBuf;
}

/// How the page cache is to hold a file that is filled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pages {
    /// In pages of 4 KiB: a sync after a small change writes little.
    Small,
    /// In pages of up to 2 MiB, where the system can: through a mapping they take fewer page faults
    /// and fewer entries of the TLB, and a sync writes all of a page that was stored to.
    Large,
}

/// One open file.
#[allow(clippy::len_without_is_empty, reason = "a length that takes a system call")]
pub trait File: Send + Sync + Debug {
    /// Fills `buffer` from `offset` on. A file that ends earlier is `UnexpectedEof`.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes the parts one behind the other from `offset` on, in a single call. A short write is
    /// an error, and what it wrote is anyone's guess.
    fn write_at(&self, parts: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// Fills the bytes `from..to`, at the end of the file, with zeros, in blocks that are written,
    /// not merely reserved (docs/decisions/0004-zero-fill.md).
    fn zero_fill(&self, from: u64, to: u64, pages: Pages) -> io::Result<()>;

    /// Writes zeros where the file has no blocks: a copy may have holes where the original had
    /// zeros, and a store through a mapping to a hole kills the process when the disk is full. Gives
    /// the bytes written.
    fn fill_holes(&self) -> io::Result<u64>;

    /// Makes the data survive power loss, and the length with it (fdatasync).
    fn sync_data(&self) -> io::Result<()>;

    /// Makes data and all metadata survive power loss (fsync).
    fn sync_all(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// A number that a copy of this file does not share (the inode).
    fn identity(&self) -> io::Result<u64>;

    /// Maps the whole file, readable and writable, shared with the file's other readers.
    ///
    /// From then on whoever reads or writes by position keeps off the bytes that an extent's writer
    /// is filling at that moment: the kernel would not mind, a fake would.
    fn map(&self) -> io::Result<Arc<dyn Region>>;
}

/// An exclusive lock on the directory, released when dropped.
pub trait DirectoryLock: Send + Sync + Debug {}
