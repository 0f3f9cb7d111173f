//! Opening a store, after any stop.
//!
//! In this order: lock; read and validate everything by positioned reads, refusing here without a
//! write; raise the epoch, durably; make durable what was only in the page cache; say so in the
//! meta file; park the orphans that are to be parked; serve.
//!
//! `found` reads and validates, over `scan` (records of a segment) and `winners` (the record that
//! counts for each key); `mend` writes. `salvage` copies what can be read of a damaged store, over
//! `survey` and `walk`. Does not decide what a record means; that is
//! `engine::state`.

mod exits;
mod found;
mod indexes;
mod mend;
mod salvage;
mod scan;
mod survey;
mod walk;
mod winners;

pub(crate) use salvage::salvage;

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::expiry::Expiry;
use super::gaps::Gaps;
use super::lease_ends::LeaseEnds;
use super::maintenance::Background;
use super::namespaces::Namespaces;
use super::purge::PurgeCounts;
use super::shard::{Shard, Tokens};
use super::state::{Standing, held_bytes, is_orphan};
use super::time::Timeline;
use super::waiters::WaiterLimits;
use super::{Engine, Mode};
use crate::answer::EndCause;
use crate::error::{Failure, OpenError, StoreError};
use crate::format::file::id_of_name;
use crate::format::meta::{FileSet, Meta, Mode as StoredMode, SLOTS};
use crate::format::names::NamespaceEntry;
use crate::format::record::Kind;
use crate::format::{LOCK_NAME, META_NAME, NAMES_NAME, SEGMENT_BYTES_DEFAULT};
use crate::hash::{SECRET_BYTES, Secret};
use crate::policy::OnOrphan;
use crate::report::RecoveryReport;
use crate::sys::fork::ForkGuard;
use crate::sys::kept::Hold;
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use crate::sys::sync::{Mutex, RwLock};
use crate::sys::{Clock, DirectoryLock, FileSystem, Pages};
use crate::types::{Epoch, Generation, KeyHash, Location, Timestamp};
use crate::wal::growth::Growth;
use crate::wal::lane::Append;
use crate::wal::lanes::LANES_MAX;
use crate::wal::meta::MetaFile;
use crate::wal::names::NamesFile;
use crate::wal::segments::Segments;
use crate::wal::{Wal, WalParts};

use found::{Found, read};
use mend::{forget_again, make_good, park_orphans, remove_unlisted, renew_empty, take_over};
use scan::Records;
use winners::Survivors;

/// The epoch goes up by this when the directory turns out to be a copy, so that the tokens of copy
/// and original stay apart for so many opens.
const COPY_EPOCH_STEP: u32 = 65_536;
/// Generations skipped when the meta file may be one write old.
const FALLBACK_GENERATION_STEP: u64 = 1 << 20;

/// What a store is opened with.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) mode: Mode,
    pub(crate) shards: usize,
    pub(crate) segment_bytes: Option<u32>,
    pub(crate) max_clock_jump: Option<Duration>,
    pub(crate) max_disk_bytes: Option<u64>,
    pub(crate) headroom_bytes: u64,
    /// Lanes at most, a power of two; without, as the processors are.
    pub(crate) lanes: Option<usize>,
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) shared_by_chance: Option<u64>,
    pub(crate) waiter_limits: WaiterLimits,
    /// Where token counters start; above zero in tests only.
    pub(crate) first_counter: u64,
    /// Whether the store is one that salvage is making.
    pub(crate) is_salvage: bool,
    /// Whether every record is read, also where an index would do.
    pub(crate) in_full: bool,
}

/// Opens the store in the request's directory, making one if there is none.
pub(crate) fn open(request: OpenRequest) -> Result<(Engine, RecoveryReport), OpenError> {
    let start = Instant::now();
    let mut report = RecoveryReport::default();
    let fs = Arc::clone(&request.fs);
    let lock = lock(&*fs)?;
    let fork = ForkGuard::new()
        .map_err(|error| OpenError::io("guard against forks of", fs.describe(LOCK_NAME), error))?;
    let fork = Arc::new(fork);
    let hold = Hold::new(lock, Arc::clone(&fork));

    let loaded = match MetaFile::load(&*fs)? {
        Some(loaded) => loaded,
        None => {
            create(&request)?;
            report.created = true;
            let made = MetaFile::load(&*fs)?;
            made.ok_or_else(|| OpenError::MissingFile { path: fs.describe(META_NAME) })?
        }
    };
    let (names, mut found, meta_file) = read(&request, loaded, &mut report)?;

    // The clock starts at the latest time that anything bears witness to.
    let floor = found.floor();
    let (timeline, drift) = Timeline::new(Arc::clone(&request.clock), floor);
    if !report.created {
        (report.clock_behind, report.clock_ahead) = (drift.behind, drift.ahead);
        if request.max_clock_jump.is_some_and(|limit| drift.ahead > limit) {
            return Err(OpenError::ClockJumped { ahead: drift.ahead });
        }
    }
    let now = timeline.now();
    let epoch = next_epoch(&found)?;
    let settled = settle(&mut found, epoch, floor, now, &mut report)?;

    // From here on the store is written to.
    reach(Point::OpenBehindRead);
    let failed = |cause| OpenError::Io(cause);
    let first_generation = first_generation(&found);
    let fresh = found.empty().count() as u64;
    let next_generation = Generation(first_generation.0 + fresh);
    let identity = meta_file.identity();
    let inode =
        identity.map_err(|error| OpenError::io("examine", fs.describe(META_NAME), error))?;
    for file in &found.files {
        file.fill_holes().map_err(hole_failure)?;
    }
    // Another process may have died between an entry of the directory and its sync, too.
    fs.sync_dir()
        .map_err(|error| OpenError::io("sync the directory of", fs.describe(META_NAME), error))?;
    meta_file.make_good().map_err(failed)?;
    names.make_good(found.meta.names_bytes).map_err(failed)?;
    let raised = meta_file.update(|meta| {
        meta.epoch = epoch;
        meta.clean = false;
        meta.generation_ceiling = meta.generation_ceiling.max(next_generation);
        for file in &found.files {
            meta.files.insert(file.header().file);
        }
        meta.names_bytes = found.names_end;
        meta.namespaces = found.namespaces.iter().map(|it| it.namespace.0).max().unwrap_or(0);
        meta.has_raises = !found.raises.is_empty();
        meta.has_refreshes = found.namespaces.iter().any(NamespaceEntry::refreshes);
        meta.has_quotas = !found.quotas.is_empty();
        meta.has_erasures = !found.erasures.is_empty();
        meta.inode = inode;
        // Not clean from here on: until the page cache is made good below, the next open must
        // distrust it as this one does. Mode and poison stay for the report of that open.
    });
    raised.map_err(failed)?;
    reach(Point::OpenBehindEpoch);
    remove_unlisted(&*fs, &found)?;
    report.rewritten_bytes = make_good(&found)?;
    reach(Point::OpenBehindRewrite);
    let generations = renew_empty(&found, first_generation, now)?;
    reach(Point::OpenBehindHeaders);
    for file in &found.files {
        file.take_dirty();
        file.sync().map_err(failed)?;
    }
    reach(Point::OpenBehindSync);
    // Every segment was read, and is sealed or newly empty.
    let stable = generations.values().min().copied().unwrap_or(next_generation);
    let boot_id = fs.boot_id().unwrap_or_default();
    // In both slots: should one go bad, the other tells a data file of an earlier time as well.
    for _ in 0..SLOTS {
        let served = meta_file.update(|meta| {
            meta.boot_id = boot_id;
            meta.stable_generation = stable;
            // Until the orphans are parked, the next open must judge them as this one does.
            meta.clock = if settled.to_park.is_empty() { now } else { floor };
            meta.mode = stored_mode(request.mode);
            meta.poisoned = false;
        });
        served.map_err(failed)?;
    }

    let Found { files, meta, winners, segments, scanned, .. } = found;
    let (namespaces, raises, quotas) = (found.namespaces, found.raises, found.quotas);
    let (gaps, erasures) = (Gaps::new(found.gaps), RwLock::new(found.erasures));
    let wal = Wal::new(WalParts {
        fs,
        store_id: meta.store_id,
        append: match request.mode {
            Mode::Sync => Append::Positioned,
            Mode::Memory | Mode::Buffered | Mode::Interval(_) => Append::Mapped,
        },
        // Rounds of the others are many, and small.
        pages: match request.mode {
            Mode::Memory | Mode::Buffered => Pages::Large,
            Mode::Sync | Mode::Interval(_) => Pages::Small,
        },
        has_rounds: request.mode != Mode::Memory,
        segments: Segments::new(meta.segment_bytes),
        meta: meta_file,
        names,
        growth: Growth::new(files, next_generation),
        epoch,
        disk_bytes_max: request.max_disk_bytes.unwrap_or(u64::MAX),
        headroom_bytes: request.headroom_bytes,
        lanes: request.lanes.unwrap_or_else(|| lanes_by_default(request.mode)),
        lanes_are_lazy: request.lanes.is_none(),
        #[cfg(any(test, feature = "test-util"))]
        shared_by_chance: request.shared_by_chance,
    });
    let found: Vec<_> = segments.into_iter().zip(scanned).collect();
    let sealed = take_over(&wal, &found, &generations);
    wal.hold_room(settled.held_bytes);
    let shards = winners.tables.into_iter().enumerate().map(|(index, table)| {
        let tokens = Tokens::new(epoch, request.first_counter + index as u64);
        Shard::new(table, tokens)
    });
    let engine = Engine {
        background: Background::new(
            request.mode,
            timeline.monotonic(),
            Expiry::new(timeline.now(), sealed),
        ),
        purge_counts: PurgeCounts::default(),
        synced_at: CachePadded::new(AtomicU64::new(0)),
        namespaces: Namespaces::new(meta.secret, namespaces, raises, quotas),
        gaps,
        erasures,
        lease_ends: LeaseEnds::new(timeline.now()),
        waiters: AtomicUsize::new(0),
        waiter_limits: request.waiter_limits,
        shards: shards.collect(),
        mode: request.mode,
        open_epoch: epoch,
        is_closed: AtomicBool::new(false),
        has_scopes: AtomicBool::new(meta.has_scopes),
        body_bytes_max: body_bytes_max(meta.segment_bytes),
        fork,
        held: Arc::downgrade(&hold),
        hold: Mutex::new(Some(hold)),
        timeline,
        wal,
    };
    if report.created {
        // A store that can have no segment is refused now, not at its first use.
        if let Some(cause) = engine.make_room(engine.wal.growths())? {
            return Err(OpenError::Full { cause });
        }
    }
    if engine.wal.supply().is_short && !report.created {
        // Opening seals segments. Should the disk be full, claims are refused until it is not, and
        // those that were granted still have the spare segments.
        engine.make_room(engine.wal.growths())?;
    }
    if request.headroom_bytes > 0 {
        make_headroom(&engine)?;
    }
    if request.lanes.is_some() {
        (0..LANES_MAX.ilog2()).for_each(|_| engine.wal.widen());
    }
    engine.background.owe(forget_again(&engine, settled.to_forget)?);
    if !settled.to_park.is_empty() {
        park_orphans(&engine, &settled.to_park, floor)?;
        reach(Point::OpenBehindPark);
        engine.wal.meta.update(|meta| meta.clock = now).map_err(failed)?;
    }
    engine.meter_found()?;
    report.epoch = epoch.0;
    report.duration = start.elapsed();
    Ok((engine, report))
}

/// Makes data files until there is the room that was asked for.
fn make_headroom(engine: &Engine) -> Result<(), OpenError> {
    while engine.wal.supply().lacks_headroom {
        match engine.wal.grow_ahead(u64::MAX, engine.timeline.now()) {
            Ok(()) => {}
            Err(StoreError::Io(cause)) => return Err(hole_failure(cause)),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A copy with holes on a full disk, or room that is not to be had.
fn hole_failure(cause: Arc<Failure>) -> OpenError {
    match cause.io().kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => OpenError::Full { cause },
        _ => OpenError::Io(cause),
    }
}

/// Reads and checks everything that opening would, and writes nothing.
pub(crate) fn verify(request: &OpenRequest) -> Result<RecoveryReport, OpenError> {
    let start = Instant::now();
    let fs = &*request.fs;
    // Nothing is made in a directory without a store, not even a lock.
    let is_there = fs.list().map(|names| names.iter().any(|name| name == META_NAME));
    let path = || fs.describe(META_NAME);
    if !is_there.map_err(|error| OpenError::io("list the directory of", path(), error))? {
        return Err(OpenError::MissingFile { path: path() });
    }
    let _lock = lock(fs)?;
    let loaded = MetaFile::load(fs)?;
    let loaded = loaded.ok_or_else(|| OpenError::MissingFile { path: fs.describe(META_NAME) })?;
    let mut report = RecoveryReport::default();
    let (_, mut found, _) = read(request, loaded, &mut report)?;
    let floor = found.floor();
    let (timeline, drift) = Timeline::new(Arc::clone(&request.clock), floor);
    (report.clock_behind, report.clock_ahead) = (drift.behind, drift.ahead);
    // As the next open would judge.
    let epoch = next_epoch(&found)?;
    settle(&mut found, epoch, floor, timeline.now(), &mut report)?;
    report.epoch = found.meta.epoch.0;
    report.duration = start.elapsed();
    Ok(report)
}

fn lock(fs: &dyn FileSystem) -> Result<Box<dyn DirectoryLock>, OpenError> {
    fs.try_lock(LOCK_NAME)
        .map_err(|error| OpenError::io("lock", fs.describe(LOCK_NAME), error))?
        .ok_or_else(|| OpenError::Locked { path: fs.describe(LOCK_NAME) })
}

/// As many as there are processors; where each round writes a page of each, and a sync is what takes time, few.
fn lanes_by_default(mode: Mode) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let lanes = match mode {
        Mode::Sync => (processors / 4).clamp(1, 4),
        Mode::Memory | Mode::Buffered | Mode::Interval(_) => processors,
    };
    1 << lanes.min(LANES_MAX).ilog2()
}

fn stored_mode(mode: Mode) -> StoredMode {
    match mode {
        Mode::Memory => StoredMode::Memory,
        Mode::Buffered => StoredMode::Buffered,
        Mode::Sync => StoredMode::Sync,
        Mode::Interval(_) => StoredMode::Interval,
    }
}

fn body_bytes_max(segment_bytes: u32) -> usize {
    crate::types::BODY_BYTES_MAX.min(segment_bytes as usize / 2)
}

/// Makes the meta and names files of a new store. Refuses where there was one before.
fn create(request: &OpenRequest) -> Result<(), OpenError> {
    let fs = &*request.fs;
    let failed = |operation, name: &str| {
        let path = fs.describe(name);
        move |error| OpenError::io(operation, path, error)
    };
    let (mut store_id, mut secret) = ([0; 16], [0; SECRET_BYTES]);
    fs.random(&mut store_id)
        .and_then(|()| fs.random(&mut secret))
        .map_err(failed("make", META_NAME))?;
    let names = fs.list().map_err(failed("list the directory of", META_NAME))?;
    let was_store = names.iter().any(|name| id_of_name(name).is_some());
    let has_names = names.iter().any(|name| name == NAMES_NAME);
    let is_empty = |file: Arc<dyn crate::sys::File>| Ok(file.len()? == 0);
    let names_are_empty = !has_names
        || fs.open(NAMES_NAME).and_then(is_empty).map_err(failed("measure", NAMES_NAME))?;
    if was_store || !names_are_empty {
        return Err(OpenError::MissingFile { path: fs.describe(META_NAME) });
    }
    if !has_names {
        NamesFile::create(fs).map_err(failed("create", NAMES_NAME))?;
    }
    // Entries of a directory may reach the disk in any order: this one comes before META's, also
    // when a process that died has made it.
    fs.sync_dir().map_err(failed("sync the directory of", NAMES_NAME))?;
    let meta = Meta {
        sequence: 0,
        store_id,
        segment_bytes: request.segment_bytes.unwrap_or(SEGMENT_BYTES_DEFAULT),
        mode: stored_mode(request.mode),
        clean: true,
        poisoned: false,
        unfinished: request.is_salvage,
        epoch: Epoch(0),
        namespaces: 0,
        has_raises: false,
        has_refreshes: false,
        has_scopes: false,
        has_quotas: false,
        has_erasures: false,
        names_bytes: 0,
        generation_ceiling: Generation(1),
        stable_generation: Generation(0),
        gone_generation: Generation(0),
        clock: Timestamp::default(),
        boot_id: [0; 16],
        inode: 0,
        secret: Secret(secret),
        files: FileSet::empty(),
    };
    MetaFile::create(fs, meta).map_err(failed("create", META_NAME))
}

/// The epoch of this open: never one that any token may bear.
fn next_epoch(found: &Found) -> Result<Epoch, OpenError> {
    let seen = found.meta.epoch.max(found.epoch).max(found.vouched.epoch);
    let step = match (found.is_copy, found.is_fallback) {
        (true, _) => COPY_EPOCH_STEP,
        // The state that was lost may have been one epoch further.
        (false, true) => 2,
        (false, false) => 1,
    };
    seen.raised_by(step).ok_or(OpenError::EpochsExhausted)
}

/// The first generation that no header ever bore.
fn first_generation(found: &Found) -> Generation {
    let ceiling = found.meta.generation_ceiling.0;
    let newest = found.segments.last().map_or(0, |segment| segment.generation.0);
    let step = if found.is_fallback { FALLBACK_GENERATION_STEP } else { 0 };
    Generation((ceiling + step).max(newest + 1))
}

/// What the winners leave to do.
#[derive(Debug, Default)]
struct Settled {
    held_bytes: u64,
    to_park: Vec<(KeyHash, Location)>,
    to_forget: Vec<(Location, Timestamp)>,
}

fn settle(
    found: &mut Found,
    epoch: Epoch,
    floor: Timestamp,
    now: Timestamp,
    report: &mut RecoveryReport,
) -> Result<Settled, OpenError> {
    let mut settled = Settled::default();
    let gaps = Gaps::new(found.gaps.clone());
    let mut records = Records::new(&found.segments, found.meta.segment_bytes);
    settled.to_forget = found.winners.unaccounted(&mut records, now)?;
    let Survivors { completed, expired } =
        found.winners.settle(&mut records, now, |record, location| {
            // A claim that is parked for having lost its owner lost it when the store stopped. The
            // clock has not forgotten it in the time during which nobody could have finished it.
            let at = if record.flags().on_orphan() == OnOrphan::Park { floor } else { now };
            let standing = Standing::of(record, at, epoch);
            if standing == Standing::Absent {
                let was_claim = matches!(record.kind(), Kind::Claim | Kind::Renew);
                report.expired += usize::from(was_claim);
                // While a gap lasts, it counts what the last record of a key is: one that somebody has
                // ended since is in no doubt, one that was claimed before is, whatever a caller says.
                let keeps = record.kind() != Kind::Complete && gaps.last(at);
                // Whatever takes the place of the entry gives back the room that it holds.
                settled.held_bytes += if keeps { held_bytes(record) } else { 0 };
                return keeps;
            }
            settled.held_bytes += held_bytes(record);
            let is_claim = record.kind() != Kind::Park;
            report.orphaned += usize::from(is_claim && is_orphan(record, epoch));
            let parks = standing == Standing::Parked(EndCause::Orphaned);
            report.parked +=
                usize::from(matches!(standing, Standing::Parked(_) | Standing::Overdue));
            if parks && is_claim {
                settled.to_park.push((record.key_hash(), location));
            }
            true
        })?;
    report.completed = completed;
    report.expired += expired;
    Ok(settled)
}
