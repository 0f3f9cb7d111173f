//! Errors: one enum an operation family, over one storage error.
//!
//! Normal answers are not errors: *in progress* and *completed* are variants of what `claim`
//! returns. Each variant says what is now true and what to do. [`StoreError::Unknown`] alone leaves
//! open whether the call had its effect; every other error means that it had none.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::answer::{Gap, KeyState, Outcome};
use crate::limits::{QuotaExceeded, TooManyWaiters};
use crate::policy::{Policy, PolicyProblem};
use crate::types::FencingToken;

/// An operation on a file that failed.
#[derive(Debug)]
pub struct Failure {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl Failure {
    pub(crate) fn new(operation: &'static str, path: PathBuf, source: io::Error) -> Arc<Self> {
        Arc::new(Self { operation, path, source })
    }

    /// What was tried, as a verb: `sync`, `write`, `zero-fill`, ...
    #[must_use]
    pub fn operation(&self) -> &str {
        self.operation
    }

    /// On which file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the operating system said.
    #[must_use]
    pub fn io(&self) -> &io::Error {
        &self.source
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {} {}: {}", self.operation, self.path.display(), self.source)
    }
}

impl std::error::Error for Failure {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

/// What can go wrong in any call on a store.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was closed through another handle. Nothing was done.
    #[error("the store is closed")]
    Closed,
    /// This process is a forked child of the one that opened the store. Nothing was done; open
    /// stores after the fork.
    #[error("the store belongs to the parent of this forked process")]
    Forked,
    /// A sync or a write failed earlier, so that nothing more can be promised: nothing was done,
    /// and no change will be acknowledged until the store is closed and opened again. Lookups of
    /// what was durable go on.
    #[error("the store is poisoned: {cause}")]
    Poisoned {
        /// The first failure.
        cause: Arc<Failure>,
    },
    /// The store was poisoned while this call waited: its effect may or may not survive. After
    /// reopening, `lookup` tells.
    #[error("the outcome of the call is unknown, the store is poisoned: {cause}")]
    Unknown {
        /// The first failure.
        cause: Arc<Failure>,
    },
    /// Bytes that should be a valid record are not: the disk changed them after they were written.
    /// Nothing was done. Close the store; opening it again checks everything.
    #[error("{} is corrupt at offset {offset}: {what}", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// Keys have 1 to 4096 bytes. Nothing was done.
    #[error("a key of {len} bytes: keys have 1 to 4096")]
    KeyLength {
        /// The length that was given.
        len: usize,
    },
    /// All 2^24 open epochs are used up: no new token can be given. Nothing was done.
    #[error("all fencing tokens of the store are used up")]
    TokensExhausted,
    /// A file operation failed before anything was changed.
    #[error(transparent)]
    Io(Arc<Failure>),
}

impl StoreError {
    /// Whether the store was poisoned, before this call or during it.
    #[must_use]
    pub fn is_poisoned(&self) -> bool {
        matches!(self, Self::Poisoned { .. } | Self::Unknown { .. })
    }
}

/// What `claim` and `once` can refuse with. The key is as it was, unless the error is
/// [`StoreError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// There is no room to promise that the claim could be completed. Keys already claimed can
    /// still be. Free space, or wait until entries expire.
    #[error("the store is full: {cause}")]
    Full {
        /// What happened when the store tried to grow.
        cause: Arc<Failure>,
    },
    /// The namespace requires a fingerprint, and none was given.
    #[error("the namespace requires a fingerprint")]
    FingerprintRequired,
    /// The namespace, or the scope, has as much as its quota allows of. Keys already claimed can be completed; what expires makes room.
    #[error(transparent)]
    QuotaExceeded(#[from] QuotaExceeded),
    /// The namespace, or the scope, was asked for something new too often. Whoever comes later may be granted it.
    #[cfg(feature = "rate-limit")]
    #[error(transparent)]
    RateExceeded(#[from] crate::rates::RateExceeded),
    /// The key is in progress, and as many wait for it as may. Only calls that wait answer this.
    #[error(transparent)]
    TooManyWaiters(#[from] TooManyWaiters),
    /// The times asked for contradict each other or a limit.
    #[error(transparent)]
    Times(#[from] PolicyProblem),
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a wait for the end of somebody's claim can refuse with.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// As many wait as may.
    #[error(transparent)]
    TooManyWaiters(#[from] TooManyWaiters),
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<WaitError> for ClaimError {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TooManyWaiters(error) => Self::TooManyWaiters(error),
            WaitError::Store(error) => Self::Store(error),
        }
    }
}

/// What `renew`, `release` and `park` can refuse with. The key is as it was, unless the error is
/// [`StoreError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// A newer claim, completion or forget holds the key: it is no longer yours.
    #[error("the claim with token {held} was fenced off by token {current}")]
    Fenced {
        /// The token that was shown.
        held: FencingToken,
        /// The token the key has now.
        current: FencingToken,
    },
    /// The key has no claim: it was released or forgotten by hand, or its lease ended so long ago
    /// that the clock forgot it. The next claim is a first attempt.
    #[error("the claim is forgotten")]
    Forgotten {
        /// How long ago the lease ended, when that is still known.
        late_by: Option<Duration>,
    },
    /// The key is completed under this token.
    #[error("the claim is completed already")]
    Completed,
    /// The key is parked under this token; `resolve` decides.
    #[error("the key is parked")]
    Parked,
    /// There is no room for another renewal; the lease stays as it is, and can still be completed.
    #[error("the store is full: {cause}")]
    Full {
        /// What happened when the store tried to grow.
        cause: Arc<Failure>,
    },
    /// The times asked for contradict each other or a limit.
    #[error(transparent)]
    Times(#[from] PolicyProblem),
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `complete` can refuse with. The key is as it was, unless the error is
/// [`StoreError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompleteError {
    /// A newer claim, completion or forget holds the key; the outcome was not stored. Do not
    /// retry: it is no longer yours.
    #[error("the claim with token {held} was fenced off by token {current}")]
    Fenced {
        /// The token that was shown.
        held: FencingToken,
        /// The token the key has now.
        current: FencingToken,
    },
    /// The key has no claim: it was released or forgotten by hand, or its lease ended so long ago
    /// that the clock forgot it. The next claim is a first attempt.
    #[error("the claim is forgotten")]
    Forgotten {
        /// How long ago the lease ended, when that is still known.
        late_by: Option<Duration>,
    },
    /// The key is completed under this token, with another outcome, which stands.
    #[error("the claim is completed already, with another outcome")]
    AlreadyCompleted(Box<Outcome>),
    /// The key is parked under this token; `resolve` decides.
    #[error("the key is parked")]
    Parked,
    /// The times asked for contradict each other or a limit.
    #[error(transparent)]
    Times(#[from] PolicyProblem),
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `resolve` can refuse with. The key is as it was, unless the error is
/// [`StoreError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Reason and actor have at most 255 bytes each.
    #[error("reason and actor have at most 255 bytes each, not {len}")]
    TextLength {
        /// The length that was given.
        len: usize,
    },
    /// The claim has a live owner, who alone decides until the lease ends.
    #[error("the key is in progress")]
    InProgress,
    /// The key has another token.
    #[error("the key has token {current}, not {held}")]
    Fenced {
        /// The token that was shown.
        held: FencingToken,
        /// The token the key has now.
        current: FencingToken,
    },
    /// The key is completed.
    #[error("the key is completed already")]
    AlreadyCompleted(Box<Outcome>),
    /// There is no such claim.
    #[error("the claim is forgotten")]
    Forgotten,
    /// The times asked for contradict each other or a limit.
    #[error(transparent)]
    Times(#[from] PolicyProblem),
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `forget` can refuse with. The key is as it was, unless the error is
/// [`StoreError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForgetError {
    /// Reason and actor have at most 255 bytes each.
    #[error("reason and actor have at most 255 bytes each, not {len}")]
    TextLength {
        /// The length that was given.
        len: usize,
    },
    /// There is no room to write down that the key is forgotten.
    #[error("the store is full: {cause}")]
    Full {
        /// What happened when the store tried to grow.
        cause: Arc<Failure>,
    },
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What erasing can refuse with. Nothing was done, unless it says otherwise.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EraseError {
    /// It was not forgotten, or not all of it.
    #[error(transparent)]
    Forget(#[from] ForgetError),
    /// While a gap leaves keys in doubt nothing leaves the disk ([`crate::Store::accept_gap`]).
    #[error("nothing leaves the disk while a gap leaves keys in doubt")]
    InDoubt(Box<Gap>),
    /// It is forgotten, durably, and some of it is on the disk still: call again. Somebody keeps an outcome or reads, there is no room
    /// to copy what shares a segment with it, or it just takes longer.
    #[error("it is forgotten, and not off the disk yet: {segments} segments are left")]
    TimedOut {
        /// Keys that were known and are not any more.
        keys: u64,
        /// Segments that are known to hold something, or to have held it and not to be written over.
        segments: usize,
    },
    /// Any call can fail like this. What is forgotten stays so.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `accept_gap` can refuse with. The gap is as it was, unless the error is
/// [`StoreError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GapError {
    /// Reason and actor have at most 255 bytes each.
    #[error("reason and actor have at most 255 bytes each, not {len}")]
    TextLength {
        /// The length that was given.
        len: usize,
    },
    /// The store has no gap of this number.
    #[error("there is no such gap")]
    UnknownGap,
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `namespace`, `define` and `alter` can refuse with. Nothing was changed, unless the error is
/// [`StoreError::Unknown`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// Names have 1 to 255 bytes.
    #[error("a namespace name of {len} bytes: names have 1 to 255")]
    NameLength {
        /// The length that was given.
        len: usize,
    },
    /// Scopes have 1 to 255 bytes.
    #[error("a scope of {len} bytes: scopes have 1 to 255")]
    ScopeLength {
        /// The length that was given.
        len: usize,
    },
    /// The namespace is of a scope already. A scope of several parts is one scope ([`crate::PartsKey`]).
    #[error("a scope within a scope")]
    ScopeWithinScope,
    /// The policy contradicts itself or a limit; all problems are listed.
    #[error("the policy cannot be: {}", join(.0))]
    Policy(Vec<PolicyProblem>),
    /// The namespace was defined with another policy. `alter` changes it on purpose.
    #[error("the namespace was defined with another policy")]
    PolicyConflict {
        /// The policy it has.
        stored: Box<Policy>,
        /// The policy it was asked with.
        asked: Box<Policy>,
    },
    /// Names that begin so are the store's own, see [`crate::Store::fence_guard`].
    #[error("names that begin with {prefix:?} are the store's own")]
    Reserved {
        /// What it begins with.
        prefix: &'static str,
    },
    /// `alter` changes namespaces that exist.
    #[error("there is no such namespace")]
    UnknownName,
    /// All 2^32 numbers, or the 4 GiB of the names file, are used up.
    #[error("the store can have no more namespaces")]
    TooMany,
    /// Any call can fail like this.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `close` can refuse with.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseError {
    /// Leases are still held: the store stays open.
    #[error("{0} leases are still held")]
    LeasesHeld(usize),
    /// The store is closed now; what went wrong on the way is here. Everything that was
    /// acknowledged as durable is.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What `salvage` can refuse with. The source is never written to.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SalvageError {
    /// There is nothing in the source directory that tells of one store: no readable meta file, and
    /// no data file with a readable header, or as many of two stores.
    #[error("{} holds nothing that tells of a store", path.display())]
    NoStore {
        /// The meta file that would be.
        path: PathBuf,
    },
    /// The target directory is not empty.
    #[error("{} is there already", path.display())]
    NotEmpty {
        /// What is there.
        path: PathBuf,
    },
    /// As `open` of the source or of the target would answer. The target is not usable; remove it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// As a call on the target would answer. The target is not usable; remove it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// One way in which options cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OptionProblem {
    /// A shard count that is no power of two from 1 to 1024.
    #[error("{0} shards: the count is a power of two from 1 to 1024")]
    Shards(usize),
    /// A lane count that is no power of two from 1 to 16.
    #[error("{0} lanes: the count is a power of two from 1 to 16")]
    Lanes(usize),
    /// Nobody may wait for a key, or more than may wait in all.
    #[error(
        "{of_key} waiters a key, {of_namespace} a namespace, {of_store} in all: each is at least 1, and at most the next"
    )]
    Waiters {
        /// For one key.
        of_key: usize,
        /// For keys of one namespace.
        of_namespace: usize,
        /// For keys of the store.
        of_store: usize,
    },
    /// A segment size that is no power of two from 256 KiB to 64 MiB.
    #[error("segments of {0} bytes: the size is a power of two from 256 KiB to 64 MiB")]
    SegmentBytes(u64),
    /// An interval outside 1 ms to 1 hour.
    #[error("an interval of {0:?}: it lies between 1 ms and 1 hour")]
    Interval(Duration),
    /// A durability asked of a store in memory.
    #[error("a store in memory has no durability")]
    DurabilityInMemory,
}

/// What `open` can refuse with. Nothing was written to a store that is refused, unless the variant
/// says so.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process, or another handle of this one, has the store open, or keeps an outcome of it with a large
    /// body ([`crate::Outcome`]).
    #[error("{} is locked by another opener", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The options cannot be; all problems are listed.
    #[error("the options cannot be: {}", join(.0))]
    Options(Vec<OptionProblem>),
    /// The store was created with another segment size, which is fixed. Leave it unset to use the
    /// stored one.
    #[error("the store has segments of {stored} bytes, not {asked}")]
    SegmentBytes {
        /// The store's.
        stored: u32,
        /// The one asked for.
        asked: u32,
    },
    /// The store was written by a version that this one does not understand.
    #[error(
        "{} has format {major}.{minor} (features {features:#x}), this version reads {supported}",
        path.display()
    )]
    UnsupportedFormat {
        /// The meta file, or the data file with an unknown record.
        path: PathBuf,
        /// The store's major version.
        major: u16,
        /// The store's minor version.
        minor: u16,
        /// Required features that this version does not know, or the kind of an unknown record.
        features: u64,
        /// The major version this one reads.
        supported: u16,
    },
    /// A salvage into this directory did not come to its end. Remove the directory, and salvage
    /// again.
    #[error("{}: a salvage into the store did not come to its end", path.display())]
    Unfinished {
        /// The meta file.
        path: PathBuf,
    },
    /// A file that belongs to the store is not there.
    #[error("{} is missing", path.display())]
    MissingFile {
        /// Its name.
        path: PathBuf,
    },
    /// Something below the point up to which the store was durable cannot be read: acknowledged
    /// data are damaged. Never cut off silently: restore the file, or [`crate::Store::salvage`] what
    /// is left.
    #[error("{} is corrupt at offset {offset}: {what}", path.display())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// The wall clock is further ahead of the store's last time than
    /// [`crate::Options::max_clock_jump`] allows: opening would expire entries at once.
    #[error("the wall clock is {ahead:?} ahead of the store's last time")]
    ClockJumped {
        /// By how much.
        ahead: Duration,
    },
    /// All 2^24 open epochs are used up.
    #[error("all open epochs of the store are used up")]
    EpochsExhausted,
    /// There is no room for what opening must write: the files of a new store, the blocks of a copy
    /// with holes, or the park records of orphaned claims. Some of that may have been written; every
    /// key is as it was, or parked as its policy says.
    #[error("the store is full: {cause}")]
    Full {
        /// What happened when the store tried to grow.
        cause: Arc<Failure>,
    },
    /// A file operation failed.
    #[error(transparent)]
    Io(Arc<Failure>),
}

impl OpenError {
    pub(crate) fn io(operation: &'static str, path: PathBuf, source: io::Error) -> Self {
        Self::Io(Failure::new(operation, path, source))
    }
}

impl From<StoreError> for OpenError {
    /// For what open does through the parts that serve later: no other error can arise there.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Io(cause)
            | StoreError::Poisoned { cause }
            | StoreError::Unknown { cause } => Self::Io(cause),
            StoreError::Corrupt { path, offset, what } => Self::Corrupt { path, offset, what },
            StoreError::TokensExhausted => Self::EpochsExhausted,
            StoreError::Closed | StoreError::Forked | StoreError::KeyLength { .. } => {
                Self::io("open", PathBuf::new(), io::Error::other(error))
            }
        }
    }
}

/// The state a key was in, for messages.
impl fmt::Display for KeyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InProgress => "in progress",
            Self::Lapsed => "lapsed",
            Self::Completed => "completed",
            Self::Parked => "parked",
        })
    }
}

fn join<T: fmt::Display>(problems: &[T]) -> String {
    problems.iter().map(T::to_string).collect::<Vec<_>>().join("; ")
}
