//! How a store is opened.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::Mode;
use crate::engine::recovery::{self, OpenRequest};
use crate::engine::waiters::WaiterLimits;
use crate::error::{OpenError, OptionProblem, SalvageError};
use crate::format::META_NAME;
use crate::format::meta::segment_bytes_are_valid;
use crate::handle::Handle;
use crate::report::{RecoveryReport, SalvageReport};
use crate::store::Store;
use crate::sys::clock::SystemClock;
use crate::sys::heap::HeapFs;
use crate::sys::real::RealFs;
use crate::sys::{Clock, FileSystem};
use crate::wal::lanes::LANES_MAX;

const SHARDS_DEFAULT: usize = 64;
const SHARDS_MAX: usize = 1024;
const WAITERS_DEFAULT: WaiterLimits = WaiterLimits { key: 64, namespace: 10_000, store: 100_000 };
const INTERVAL_MIN: Duration = Duration::from_millis(1);
const INTERVAL_MAX: Duration = Duration::from_secs(3600);

/// When a change is acknowledged. What survives a killed process is the same in all three:
/// everything acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Durability {
    /// When it survives power loss. Calls that come together share one sync (group commit); a lone
    /// one waits for a sync of its own. What waits for none, as renewals, is synced within some 100 ms. The default.
    #[default]
    Sync,
    /// When it survives the end of the process. A power cut may lose what was not synced since:
    /// the store syncs after a second of idleness, every ten seconds and every 256 MiB of use, and at
    /// `flush` and `close`.
    Buffered,
    /// As `Buffered`, synced at least this often, from 1 ms to 1 hour. An outcome is shown to other
    /// callers only once it survives power loss.
    Interval(Duration),
}

#[derive(Clone, Debug)]
enum Place {
    Directory(PathBuf),
    Memory,
    #[cfg(feature = "test-util")]
    Given(Arc<dyn FileSystem>),
}

/// Options to open a store with; every one has a safe default.
///
/// Shards and durability may differ at every open of a store; the segment size is fixed when it is
/// made.
///
/// ```no_run
/// use refrain::{Durability, Options};
///
/// let store = Options::new("data/idem").durability(Durability::Buffered).open()?;
/// # Ok::<(), refrain::OpenError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "options do nothing until `open`"]
pub struct Options {
    place: Place,
    durability: Option<Durability>,
    shards: usize,
    lanes: Option<usize>,
    #[cfg(any(test, feature = "test-util"))]
    shared_by_chance: Option<u64>,
    segment_bytes: Option<u64>,
    max_clock_jump: Option<Duration>,
    max_disk_bytes: Option<u64>,
    headroom_bytes: u64,
    verify_at_open: bool,
    clock: Option<Arc<dyn Clock>>,
    waiter_limits: WaiterLimits,
    first_counter: u64,
    pub(crate) manual_maintenance: bool,
}

impl Options {
    /// For a store in the directory `path`, which is made if it does not exist.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::at(Place::Directory(path.as_ref().to_owned()))
    }

    /// For a store on the heap, which ends with its last handle. It promises tokens for the life
    /// of the process, and nothing else survives it.
    pub fn in_memory() -> Self {
        Self::at(Place::Memory)
    }

    fn at(place: Place) -> Self {
        Self {
            place,
            durability: None,
            shards: SHARDS_DEFAULT,
            lanes: None,
            #[cfg(any(test, feature = "test-util"))]
            shared_by_chance: None,
            segment_bytes: None,
            max_clock_jump: None,
            max_disk_bytes: None,
            headroom_bytes: 0,
            verify_at_open: false,
            clock: None,
            waiter_limits: WAITERS_DEFAULT,
            first_counter: 0,
            manual_maintenance: false,
        }
    }

    /// When changes are acknowledged, unless a call asks otherwise. Default [`Durability::Sync`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = Some(durability);
        self
    }

    /// How many calls may wait at the same time for one key, for keys of one namespace, and for keys of the
    /// store ([`crate::Namespace::claim_or_wait`], [`crate::Namespace::wait`]): who waits takes memory,
    /// and whoever can guess a key that is in use could make others wait. More are refused with
    /// [`crate::TooManyWaiters`]. Default 64, 10,000 and 100,000.
    pub fn max_waiters(mut self, of_key: usize, of_namespace: usize, of_store: usize) -> Self {
        self.waiter_limits = WaiterLimits { key: of_key, namespace: of_namespace, store: of_store };
        self
    }

    /// Independent parts of the table, each with its own lock: a power of two from 1 to 1024.
    /// Default 64. More shards let more threads write at once, and cost about 2 KiB each.
    pub fn shards(mut self, shards: usize) -> Self {
        self.shards = shards;
        self
    }

    /// Parts of the WAL that are filled at the same time, each under its own lock: a power of two from 1 to 16. Each
    /// has segments of its own that are being filled, one of claims and one for each time that completions are
    /// kept. Default: one at first, and twice as many when threads have to wait for one another and there is
    /// room, up to the number of processors; in [`Durability::Sync`] a quarter of that, at most four. A number that
    /// is given is used as soon as there is room.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = Some(lanes);
        self
    }

    /// Bytes of a segment, the unit in which the WAL grows: a power of two from 256 KiB to 64 MiB.
    /// Default 4 MiB for a new store, and what it was made with for an old one. Bodies are kept up
    /// to half of it, at most 16 MiB.
    pub fn segment_bytes(mut self, bytes: u64) -> Self {
        self.segment_bytes = Some(bytes);
        self
    }

    /// Refuses to open when the wall clock is further than this ahead of the last time the store
    /// has witnessed. Default: opens, and reports it. Set it if you know your longest downtime: a
    /// wall clock that is wrong by years expires everything at once.
    pub fn max_clock_jump(mut self, jump: Duration) -> Self {
        self.max_clock_jump = Some(jump);
        self
    }

    /// The most bytes that the data files may take together. Default: as many as the disk has. When
    /// there is no room left below it, the newest claim is refused ([`crate::ClaimError::Full`]) until
    /// something has expired or was forgotten; nothing that is stored is given up for it, and the
    /// exits of claims that were granted still fit. The meta and the names file are not counted: 8 KiB,
    /// and some tens of bytes a namespace.
    pub fn max_disk_bytes(mut self, bytes: u64) -> Self {
        self.max_disk_bytes = Some(bytes);
        self
    }

    /// Bytes of free segments that are kept ready beside what the store needs: a burst of so much waits
    /// for no data file. Opening makes what is missing, at the speed at which the disk takes zeros, and
    /// fails when it can't; what a burst has used is made again when nothing was written for a fifth of
    /// a second. Default: an eighth of the store, at most 64 segments, made while it is in use.
    pub fn headroom_bytes(mut self, bytes: u64) -> Self {
        self.headroom_bytes = bytes;
        self
    }

    /// Reads every record when the store is opened, and refuses a store in which one is damaged.
    /// Default: where a segment is known to be durable its index is read, and a damaged record is an
    /// error ([`crate::StoreError::Corrupt`]) when its key is first asked for. Opening takes several
    /// times as long.
    pub fn verify_at_open(mut self, verify: bool) -> Self {
        self.verify_at_open = verify;
        self
    }

    /// Starts no thread: [`Store::maintain`] does what the thread would. Futures and intervals
    /// depend on it then.
    pub fn manual_maintenance(mut self, manual: bool) -> Self {
        self.manual_maintenance = manual;
        self
    }

    /// Takes the time from `clock`.
    #[cfg(feature = "test-util")]
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// Opens the store in a directory of `fs` instead.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    pub fn file_system(mut self, fs: impl FileSystem + 'static) -> Self {
        self.place = Place::Given(Arc::new(fs));
        self
    }

    /// Appends of a `Sync` store are written as if rounds were for many, or not, by chance that begins here: else no
    /// test of one thread has the former.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    pub fn shared_by_chance(mut self, seed: u64) -> Self {
        self.shared_by_chance = Some(seed);
        self
    }

    /// Starts the token counters here, to see what happens when they run out.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    pub fn first_counter(mut self, counter: u64) -> Self {
        self.first_counter = counter;
        self
    }

    /// Opens the store, and makes it if it does not exist. Takes as long as it takes to read the
    /// index of the WAL, 32 bytes a record, and after a crash the segments that were filled last.
    ///
    /// On return everything found is durable, the open epoch is raised, and claims of earlier opens
    /// are orphans (see [`crate::OnOrphan`]). [`Store::report`] tells what was found.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: locked by another opener, options that cannot be (all at once), an unknown
    /// format, a missing or damaged file. Nothing is written to a store that is refused.
    pub fn open(self) -> Result<Store, OpenError> {
        let (has_thread, (request, place)) = (!self.manual_maintenance, self.request(RealFs::new)?);
        Handle::start(request, has_thread, place).map(Store::new)
    }

    /// Reads and checks everything that opening would read, and writes nothing: no epoch is raised,
    /// no tail is cut. The report says what the next open will find.
    ///
    /// # Errors
    ///
    /// [`OpenError`], as `open` would answer; [`OpenError::MissingFile`] when there is no store.
    pub fn verify(self) -> Result<RecoveryReport, OpenError> {
        let (mut request, _) = self.request(RealFs::read_only)?;
        request.in_full = true;
        recovery::verify(&request)
    }

    /// Copies what can be read of a damaged store into a new one in the empty directory of `target`,
    /// which is made if it does not exist; options of `target` hold for the copying alone. Nothing
    /// is written to the source, but for an empty lock file if it has none. Takes as long as it takes to read the WAL and to write it again.
    ///
    /// Every record that is whole is kept, with its token; so is, without its body, a completion of
    /// which only the body is damaged. Damage that may have taken records with it becomes a
    /// [`crate::Gap`] of the new store, and keys that nothing is known of are in doubt there until
    /// the gap is over or accepted. Tokens of the new store are above all that the source ever gave.
    ///
    /// On return the new store survives power loss, and can be opened. Before that it cannot, once
    /// it has a meta file; a salvage that ended before that leaves nothing of a store, so that
    /// opening the directory would make a new one. After an error, remove the directory.
    ///
    /// # Errors
    ///
    /// [`SalvageError`]: no store, a locked one, one of another version; a target that is not empty,
    /// or has no room.
    pub fn salvage(self, target: Self) -> Result<SalvageReport, SalvageError> {
        let (source, _) = self.request(RealFs::read_only)?;
        let (target, _) = target.durability(Durability::Buffered).request(RealFs::new)?;
        recovery::salvage(&source, target)
    }

    /// What is asked of the engine, if it can be, and the place for messages.
    fn request(
        self,
        directory: impl FnOnce(&Path) -> io::Result<RealFs>,
    ) -> Result<(OpenRequest, PathBuf), OpenError> {
        let problems = self.problems();
        if !problems.is_empty() {
            return Err(OpenError::Options(problems));
        }
        let fs: Arc<dyn FileSystem> = match &self.place {
            Place::Memory => Arc::new(HeapFs::new()),
            #[cfg(feature = "test-util")]
            Place::Given(fs) => Arc::clone(fs),
            Place::Directory(path) => Arc::new(
                directory(path).map_err(|error| OpenError::io("open", path.clone(), error))?,
            ),
        };
        let request = OpenRequest {
            fs: Arc::clone(&fs),
            clock: self.clock.clone().unwrap_or_else(|| Arc::new(SystemClock::new())),
            mode: self.mode(),
            shards: self.shards,
            // Checked above: valid sizes have 27 bits.
            segment_bytes: self.segment_bytes.map(|bytes| bytes as u32),
            max_clock_jump: self.max_clock_jump,
            max_disk_bytes: self.max_disk_bytes,
            headroom_bytes: self.headroom_bytes,
            lanes: self.lanes,
            #[cfg(any(test, feature = "test-util"))]
            shared_by_chance: self.shared_by_chance,
            waiter_limits: self.waiter_limits,
            first_counter: self.first_counter,
            is_salvage: false,
            in_full: self.verify_at_open,
        };
        Ok((request, fs.describe(META_NAME)))
    }

    fn mode(&self) -> Mode {
        match (&self.place, self.durability.unwrap_or_default()) {
            (Place::Memory, _) => Mode::Memory,
            (_, Durability::Sync) => Mode::Sync,
            (_, Durability::Buffered) => Mode::Buffered,
            (_, Durability::Interval(interval)) => Mode::Interval(interval),
        }
    }

    fn problems(&self) -> Vec<OptionProblem> {
        let mut problems = Vec::new();
        if !self.shards.is_power_of_two() || self.shards > SHARDS_MAX {
            problems.push(OptionProblem::Shards(self.shards));
        }
        if let Some(lanes) = self.lanes
            && (!lanes.is_power_of_two() || lanes > LANES_MAX)
        {
            problems.push(OptionProblem::Lanes(lanes));
        }
        let WaiterLimits { key: of_key, namespace: of_namespace, store: of_store } =
            self.waiter_limits;
        if of_key == 0 || of_key > of_namespace || of_namespace > of_store {
            problems.push(OptionProblem::Waiters { of_key, of_namespace, of_store });
        }
        if let Some(bytes) = self.segment_bytes
            && !u32::try_from(bytes).is_ok_and(segment_bytes_are_valid)
        {
            problems.push(OptionProblem::SegmentBytes(bytes));
        }
        if let Some(Durability::Interval(interval)) = self.durability
            && !(INTERVAL_MIN..=INTERVAL_MAX).contains(&interval)
        {
            problems.push(OptionProblem::Interval(interval));
        }
        if matches!(self.place, Place::Memory) && self.durability.is_some() {
            problems.push(OptionProblem::DurabilityInMemory);
        }
        problems
    }
}

impl Store {
    /// Opens the store in the directory `path` with default options: every change is acknowledged
    /// when it survives power loss.
    ///
    /// # Errors
    ///
    /// See [`Options::open`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Options::new(path).open()
    }

    /// Checks the store in the directory `path` without a write. See [`Options::verify`].
    ///
    /// # Errors
    ///
    /// See [`Options::verify`].
    pub fn verify(path: impl AsRef<Path>) -> Result<RecoveryReport, OpenError> {
        Options::new(path).verify()
    }

    /// Copies what can be read of the damaged store in `source` into a new store in the empty
    /// directory `target`. Never needed but after [`OpenError::Corrupt`] or
    /// [`OpenError::MissingFile`], and never done by itself. See [`Options::salvage`].
    ///
    /// # Errors
    ///
    /// See [`Options::salvage`].
    pub fn salvage(
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> Result<SalvageReport, SalvageError> {
        Options::new(source).salvage(Options::new(target))
    }

    /// Opens a store on the heap, which ends with its last handle.
    ///
    /// # Errors
    ///
    /// [`OpenError::Full`] when there is no memory, [`OpenError::Io`] when there are no random
    /// numbers or no threads.
    pub fn in_memory() -> Result<Self, OpenError> {
        Options::in_memory().open()
    }
}
