//! Opening a store, after any stop.
//!
//! In this order: lock; read and validate everything by positioned reads, refusing here without a
//! write; raise the epoch, durably; make durable what was only in the page cache; say so in the
//! meta file; park the orphans that are to be parked; serve.
//!
//! What separates a torn tail from damage is the highest point that anything on disk vouches for:
//! marks, trailers of segments below the stable generation, the clean flag. Valid records must
//! reach it; behind it they may end anywhere.
//!
//! Does not decide what a record means; that is `engine::state`.

mod scan;
mod winners;

use std::collections::{HashMap, HashSet};
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::exits::park_record;
use super::maintenance::Background;
use super::namespaces::Namespaces;
use super::shard::{Shard, Tokens};
use super::state::{Standing, held_bytes, is_orphan};
use super::time::Timeline;
use super::{Engine, Mode, no_room};
use crate::answer::EndCause;
use crate::error::OpenError;
use crate::format::file::id_of_name;
use crate::format::meta::{FileSet, Meta, Mode as StoredMode};
use crate::format::names::Entry;
use crate::format::record::{Draft, Kind, ParkedBy};
use crate::format::segment::{self, DATA_START, Trailer, trailer_offset};
use crate::format::{LOCK_NAME, META_NAME, NAMES_NAME, SEGMENT_BYTES_DEFAULT};
use crate::hash::{KeyHasher, RandomError, Secret, random_bytes};
use crate::report::{RecoveryReport, TornTail};
use crate::sys::fork::ForkGuard;
use crate::sys::sync::Mutex;
use crate::sys::{Clock, FileSystem};
use crate::types::{
    Epoch, FileId, Generation, KeyHash, Location, NamespaceId, SegmentId, Timestamp,
};
use crate::wal::data_file::DataFile;
use crate::wal::lane::Append;
use crate::wal::meta::{LoadedMeta, MetaFile};
use crate::wal::names::NamesFile;
use crate::wal::segments::{Segment, Segments};
use crate::wal::{Growth, Wal, WalParts};

use scan::{Records, Scan, Scanner, Sealed, corrupt};
use winners::{Survivors, Winners};

/// The epoch goes up by this when the directory turns out to be a copy, so that the tokens of copy
/// and original stay apart for so many opens.
const COPY_EPOCH_STEP: u32 = 65_536;
/// Generations skipped when the meta file may be one write old.
const FALLBACK_GENERATION_STEP: u64 = 1 << 20;
/// Pieces in which a tail is written again.
const REWRITE_BYTES: u32 = 1 << 20;
/// A guess at the log bytes behind one entry, to size the tables; they grow if it is wrong.
const ENTRY_BYTES_GUESS: u64 = 320;

/// What a store is opened with.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    pub(crate) fs: Arc<dyn FileSystem>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) mode: Mode,
    pub(crate) shards: usize,
    pub(crate) segment_bytes: Option<u32>,
    pub(crate) max_clock_jump: Option<Duration>,
    /// Where token counters start; above zero in tests only.
    pub(crate) first_counter: u64,
}

/// What the marks vouch for.
#[derive(Debug, Default)]
struct Vouched {
    /// Per segment and generation: durable, attempted.
    tails: HashMap<(SegmentId, Generation), (u32, u32)>,
    stable: Generation,
    clock: Timestamp,
    epoch: Epoch,
}

/// A segment after its scan.
#[derive(Debug)]
struct Scanned {
    end: u32,
    max_expires: Timestamp,
    /// Up to here it is proven durable; what lies behind may be in the page cache only.
    proven: u32,
    is_stable: bool,
}

/// Everything that was read and validated, before anything is written.
#[derive(Debug)]
struct Found {
    meta: Meta,
    is_fallback: bool,
    is_copy: bool,
    files: Vec<Arc<DataFile>>,
    /// Files of the directory that look like data files and are not listed.
    unlisted: Vec<String>,
    names_end: u64,
    segments: Vec<Sealed>,
    scanned: Vec<Scanned>,
    vouched: Vouched,
    winners: Winners,
    /// The highest epoch in any token.
    epoch: Epoch,
    /// The latest time in any record.
    at: Timestamp,
}

/// Opens the store in the request's directory, making one if there is none.
pub(crate) fn open(request: OpenRequest) -> Result<(Engine, RecoveryReport), OpenError> {
    let start = Instant::now();
    let mut report = RecoveryReport::default();
    let fs = Arc::clone(&request.fs);
    let lock = fs
        .try_lock(LOCK_NAME)
        .map_err(|error| OpenError::io("lock", fs.describe(LOCK_NAME), error))?
        .ok_or_else(|| OpenError::Locked { path: fs.describe(LOCK_NAME) })?;
    let fork = ForkGuard::new()
        .map_err(|error| OpenError::io("guard against forks of", fs.describe(LOCK_NAME), error))?;

    let loaded = match MetaFile::load(&*fs)? {
        Some(loaded) => loaded,
        None => {
            create(&request)?;
            report.created = true;
            let made = MetaFile::load(&*fs)?;
            made.ok_or_else(|| OpenError::MissingFile { path: fs.describe(META_NAME) })?
        }
    };
    let (names, entries, mut found, meta_file) = read(&request, loaded, &mut report)?;

    // The clock starts at the latest time that anything bears witness to.
    let floor = found.meta.clock.max(found.vouched.clock).max(found.at);
    let (timeline, drift) = Timeline::new(Arc::clone(&request.clock), floor);
    if !report.created {
        (report.clock_behind, report.clock_ahead) = (drift.behind, drift.ahead);
        if request.max_clock_jump.is_some_and(|limit| drift.ahead > limit) {
            return Err(OpenError::ClockJumped { ahead: drift.ahead });
        }
    }
    let now = timeline.now();
    let epoch = next_epoch(&found)?;
    let settled = settle(&mut found, epoch, now, &mut report)?;

    // From here on the store is written to.
    let failed = |cause| OpenError::Io(cause);
    let first_generation = first_generation(&found);
    let fresh = if found.meta.clean { 0 } else { found.empty().count() as u64 };
    let next_generation = Generation(first_generation.0 + fresh);
    let identity = meta_file.identity();
    let inode =
        identity.map_err(|error| OpenError::io("examine", fs.describe(META_NAME), error))?;
    let raised = meta_file.update(|meta| {
        meta.epoch = epoch;
        meta.clean = false;
        meta.generation_ceiling = meta.generation_ceiling.max(next_generation);
        for file in &found.files {
            meta.files.insert(file.header().file);
        }
        meta.names_bytes = found.names_end;
        meta.namespaces = entries.iter().map(|it| it.namespace.0).max().unwrap_or(0);
        meta.inode = inode;
        // Mode and poison stay: until the page cache is made good below, the next open must
        // distrust it as this one does.
    });
    raised.map_err(failed)?;
    remove_unlisted(&*fs, &found)?;
    report.rewritten_bytes = make_good(&found)?;
    let generations = renew_empty(&found, first_generation, now)?;
    for file in &found.files {
        file.sync().map_err(failed)?;
    }
    let (segments, prepared) = take_over(&found, &generations);
    let stable = prepared.first().map_or(next_generation, |(generation, _)| *generation);
    let boot_id = fs.boot_id().unwrap_or_default();
    let served = meta_file.update(|meta| {
        meta.boot_id = boot_id;
        meta.stable_generation = stable;
        meta.clock = now;
        meta.mode = stored_mode(request.mode);
        meta.poisoned = false;
    });
    served.map_err(failed)?;

    let Found { files, meta, winners, .. } = found;
    let wal = Wal::new(WalParts {
        fs,
        store_id: meta.store_id,
        append: match request.mode {
            Mode::Sync => Append::Positioned,
            Mode::Memory | Mode::Buffered | Mode::Interval(_) => Append::Mapped,
        },
        segments,
        meta: meta_file,
        names,
        growth: Growth::new(files, next_generation),
        epoch,
    });
    wal.add_prepared(prepared.into_iter().map(|(_, segment)| segment));
    wal.hold_room(settled.held_bytes);
    let shards = winners.tables.into_iter().enumerate().map(|(index, table)| {
        let tokens = Tokens::new(epoch, request.first_counter + index as u64);
        Shard::new(table, tokens)
    });
    let engine = Engine {
        background: Background::new(request.mode, timeline.monotonic()),
        namespaces: Namespaces::new(meta.secret, entries),
        shards: shards.collect(),
        mode: request.mode,
        open_epoch: epoch,
        body_bytes_max: body_bytes_max(meta.segment_bytes),
        fork,
        directory_lock: Mutex::new(Some(lock)),
        timeline,
        wal,
    };
    if report.created {
        // A store that cannot hold a single claim is refused now, not at its first use.
        if let Some(cause) = engine.make_room(engine.wal.growths())? {
            return Err(OpenError::Full { cause });
        }
    }
    if engine.wal.supply().is_short && !report.created {
        // Opening seals segments. Should the disk be full, claims are refused until it is not, and
        // those that were granted still have the spare segments.
        engine.make_room(engine.wal.growths())?;
    }
    park_orphans(&engine, &settled.to_park)?;
    report.epoch = epoch.0;
    report.duration = start.elapsed();
    Ok((engine, report))
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
    let random = |error: RandomError| {
        OpenError::io("make", fs.describe(META_NAME), std::io::Error::other(error))
    };
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
    let meta = Meta {
        sequence: 0,
        store_id: random_bytes().map_err(random)?,
        segment_bytes: request.segment_bytes.unwrap_or(SEGMENT_BYTES_DEFAULT),
        mode: stored_mode(request.mode),
        clean: true,
        poisoned: false,
        epoch: Epoch(0),
        namespaces: 0,
        names_bytes: 0,
        generation_ceiling: Generation(1),
        stable_generation: Generation(0),
        clock: Timestamp::default(),
        boot_id: [0; 16],
        inode: 0,
        secret: Secret::random().map_err(random)?,
        files: FileSet::empty(),
    };
    MetaFile::create(fs, meta).map_err(failed("create", META_NAME))
}

/// Reads and validates everything. Nothing is written.
fn read(
    request: &OpenRequest,
    loaded: LoadedMeta,
    report: &mut RecoveryReport,
) -> Result<(NamesFile, Vec<Entry>, Found, MetaFile), OpenError> {
    let fs = &*request.fs;
    let LoadedMeta { file: meta_file, mut meta, is_fallback } = loaded;
    if is_fallback {
        // R15: the state may be one write old.
        meta.clean = false;
        meta.stable_generation = Generation(0);
    }
    if let Some(asked) = request.segment_bytes.filter(|asked| *asked != meta.segment_bytes) {
        return Err(OpenError::SegmentBytes { stored: meta.segment_bytes, asked });
    }
    let identity = meta_file.identity();
    let inode =
        identity.map_err(|error| OpenError::io("examine", fs.describe(META_NAME), error))?;
    let is_copy = inode != meta.inode;
    let (mut names, mut entries) = NamesFile::load(fs, meta.store_id, meta.names_bytes)?;
    if is_fallback {
        // The state that was lost may have counted more.
        entries.extend(names.load_rest(fs)?);
    }
    let highest = entries.iter().map(|entry| entry.namespace.0).max().unwrap_or(0);
    if highest != meta.namespaces && !is_fallback {
        let what = format!("it ends at namespace {highest}, not {}", meta.namespaces);
        let path = fs.describe(NAMES_NAME);
        return Err(OpenError::Corrupt { path, offset: meta.names_bytes, what });
    }

    let (files, unlisted) = open_files(fs, &meta, is_fallback)?;
    let vouched = read_marks(&meta, &files)?;
    let segments = read_segments(&meta, &files)?;
    let boot = fs.boot_id().map(|boot_id| boot_id == meta.boot_id);
    report.clean = meta.clean && !is_copy;
    report.copied = is_copy;
    report.meta_fallback = is_fallback;
    report.same_boot = boot.filter(|_| !report.created);
    report.was_poisoned = meta.poisoned;
    report.files = files.len();

    let sealed_bytes = segments.iter().filter_map(|segment| segment.trailer);
    let sealed_bytes: u64 = sealed_bytes.map(|trailer| u64::from(trailer.data_end)).sum();
    let guess = usize::try_from(sealed_bytes / ENTRY_BYTES_GUESS).unwrap_or(usize::MAX);
    let wall = Timestamp::from_ms(request.clock.wall_ns() / 1_000_000);
    let now = wall.max(meta.clock).max(vouched.clock);
    let winners = Winners::new(request.shards, guess, now);
    let names_end = names.end();
    let mut found = Found {
        meta,
        is_fallback,
        is_copy,
        files,
        unlisted,
        names_end,
        segments,
        scanned: Vec::new(),
        vouched,
        winners,
        epoch: Epoch(0),
        at: Timestamp::default(),
    };
    scan_all(&mut found, &entries, report)?;
    check_counters(fs, &found)?;
    Ok((names, entries, found, meta_file))
}

/// Opens the listed data files. Unlisted ones are left over from growth that did not finish, or,
/// when the meta file may be one write old, perhaps from growth that did: those that are whole are
/// taken in.
fn open_files(
    fs: &dyn FileSystem,
    meta: &Meta,
    is_fallback: bool,
) -> Result<(Vec<Arc<DataFile>>, Vec<String>), OpenError> {
    let open = |id| DataFile::open(fs, &meta.store_id, id, meta.segment_bytes);
    let mut files = Vec::new();
    for id in meta.files.iter() {
        files.push(Arc::new(open(id)?));
    }
    let names = fs.list();
    let names = names
        .map_err(|error| OpenError::io("list the directory of", fs.describe(META_NAME), error))?;
    let mut unlisted = Vec::new();
    for name in names {
        let Some(id) = id_of_name(&name).filter(|id: &FileId| !meta.files.contains(*id)) else {
            continue;
        };
        match open(id) {
            Ok(file) if is_fallback => files.push(Arc::new(file)),
            Ok(file) => {
                check_unused(fs, meta, Arc::new(file))?;
                unlisted.push(name);
            }
            Err(OpenError::Corrupt { .. }) => unlisted.push(name),
            // A file that cannot even be looked at is not ours to remove.
            Err(error) => return Err(error),
        }
    }
    files.sort_by_key(|file| file.header().first);
    for pair in files.windows(2) {
        let end = pair[0].header().first.0.saturating_add(pair[0].header().segments);
        if end > pair[1].header().first.0 {
            let what = format!("its segments overlap those of {}", pair[0].path().display());
            return Err(corrupt(&pair[1], 0, what));
        }
    }
    Ok((files, unlisted))
}

/// A whole file that is not listed holds no record, or the meta file is an older one than the data
/// and must not decide what is removed.
fn check_unused(fs: &dyn FileSystem, meta: &Meta, file: Arc<DataFile>) -> Result<(), OpenError> {
    let path = file.path().to_owned();
    let mut scanner = Scanner::new(meta.segment_bytes);
    for segment in read_segments(meta, &[file])? {
        if scanner.scan(&segment, |_, _, _| Ok(()))?.records > 0 {
            let what = format!("it does not list {}, which holds records", path.display());
            return Err(OpenError::Corrupt { path: fs.describe(META_NAME), offset: 0, what });
        }
    }
    Ok(())
}

fn read_marks(meta: &Meta, files: &[Arc<DataFile>]) -> Result<Vouched, OpenError> {
    let mut vouched = Vouched { stable: meta.stable_generation, ..Vouched::default() };
    for file in files {
        let marks = file.read_marks(&meta.store_id);
        let marks = marks.map_err(|error| OpenError::io("read", file.path().to_owned(), error))?;
        for mark in marks {
            vouched.stable = vouched.stable.max(mark.stable);
            vouched.clock = vouched.clock.max(mark.clock);
            vouched.epoch = vouched.epoch.max(mark.epoch);
            for entry in mark.entries {
                let tail = vouched.tails.entry((entry.segment, entry.generation)).or_default();
                tail.0 = tail.0.max(entry.durable);
                tail.1 = tail.1.max(entry.attempted);
            }
        }
    }
    Ok(vouched)
}

fn read_segments(meta: &Meta, files: &[Arc<DataFile>]) -> Result<Vec<Sealed>, OpenError> {
    let mut segments = Vec::new();
    for file in files {
        let first = file.header().first.0;
        for id in first..first + file.header().segments {
            segments.push(Sealed::read(&meta.store_id, file, SegmentId(id))?);
        }
    }
    // In the order in which they were filled, so that a key's records are close together.
    segments.sort_by_key(|segment| segment.generation);
    for pair in segments.windows(2) {
        if pair[0].generation == pair[1].generation {
            let what = format!("segments {} and {} share a generation", pair[0].id.0, pair[1].id.0);
            return Err(pair[1].corrupt(0, what));
        }
    }
    Ok(segments)
}

fn scan_all(
    found: &mut Found,
    entries: &[Entry],
    report: &mut RecoveryReport,
) -> Result<(), OpenError> {
    let segment_bytes = found.meta.segment_bytes;
    let hashers: HashMap<NamespaceId, KeyHasher> = entries
        .iter()
        .map(|entry| (entry.namespace, found.meta.secret.hasher(entry.namespace)))
        .collect();
    let mut scanner = Scanner::new(segment_bytes);
    let mut records = Records::new(&found.segments, segment_bytes);
    let (winners, epoch, at) = (&mut found.winners, &mut found.epoch, &mut found.at);
    for segment in &found.segments {
        let scan = scanner.scan(segment, |record, offset, loaded| {
            let Some(hasher) = hashers.get(&record.namespace) else {
                let what = format!("it names namespace {}, which is not known", record.namespace.0);
                return Err(segment.corrupt(offset, what));
            };
            if hasher.hash(record.key) != record.key_hash {
                return Err(segment.corrupt(offset, "the key does not hash to what is stored"));
            }
            *epoch = (*epoch).max(record.token.epoch());
            *at = (*at).max(record.at);
            let location = Location::new(segment.id, offset, segment_bytes);
            winners.offer(record, location, &mut records, (segment.id, loaded))
        })?;
        let scanned = judge_end(&found.vouched, segment, &scan, report)?;
        report.records += scan.records;
        report.records_skipped += scan.skipped;
        report.bytes += u64::from(scan.end - DATA_START);
        report.segments += usize::from(scan.end > DATA_START);
        found.scanned.push(scanned);
    }
    let known: HashSet<_> = found.segments.iter().map(|it| (it.id, it.generation)).collect();
    check_vouched(found, &known)
}

/// Tells a torn tail from damage.
fn judge_end(
    vouched: &Vouched,
    segment: &Sealed,
    scan: &Scan,
    report: &mut RecoveryReport,
) -> Result<Scanned, OpenError> {
    let tail = vouched.tails.get(&(segment.id, segment.generation));
    let (durable, attempted) = tail.copied().unwrap_or_default();
    let is_stable = segment.generation < vouched.stable;
    if scan.end < durable {
        let what = format!("a record is damaged: the log was durable up to {durable}");
        return Err(segment.corrupt(scan.end, what));
    }
    match segment.trailer {
        Some(trailer) if is_stable && scan.end != trailer.data_end => {
            let end = trailer.data_end;
            let what = format!("a record is damaged: the sealed segment ends at {end}");
            return Err(segment.corrupt(scan.end, what));
        }
        Some(trailer) if is_stable && !trailer.covers(scan.max_expires) => {
            return Err(segment.corrupt(scan.end, "records outlive what the trailer says"));
        }
        None if is_stable => {
            let at = trailer_offset(segment.file.header().segment_bytes);
            return Err(segment.corrupt(at, "the trailer of a sealed segment is damaged"));
        }
        _ => {}
    }
    let sealed_at = segment.trailer.map_or(0, |trailer| trailer.data_end);
    let written = sealed_at.max(attempted);
    let missing = u64::from(written.saturating_sub(scan.end)).max(scan.beyond_bytes);
    if missing > 0 && !is_stable && scan.end != sealed_at {
        report.torn_tails.push(TornTail {
            path: segment.file.path().to_owned(),
            offset: segment.file.segment_offset(segment.id) + u64::from(scan.end),
            bytes: missing,
            records: scan.beyond_records,
            last_round_incomplete: attempted > scan.end,
        });
    }
    let proven = if is_stable { scan.end } else { durable.max(DATA_START) };
    Ok(Scanned { end: scan.end, max_expires: scan.max_expires, proven, is_stable })
}

/// A mark that vouches for bytes of a segment needs that segment to be there, in that generation
/// or in a newer one (R9).
fn check_vouched(found: &Found, known: &HashSet<(SegmentId, Generation)>) -> Result<(), OpenError> {
    for ((id, generation), (durable, _)) in &found.vouched.tails {
        if *durable == 0 || known.contains(&(*id, *generation)) {
            continue;
        }
        match found.segments.iter().find(|segment| segment.id == *id) {
            Some(segment) if segment.generation > *generation => {}
            Some(segment) => {
                let (was, is) = (generation.0, segment.generation.0);
                let what = format!("the segment is of generation {is}, and was durable in {was}");
                return Err(segment.corrupt(0, what));
            }
            None => {
                let path = found.files.last().map(|file| file.path().to_owned());
                let what = format!("segment {} was durable and is gone", id.0);
                return Err(OpenError::Corrupt { path: path.unwrap_or_default(), offset: 0, what });
            }
        }
    }
    Ok(())
}

/// The counters in the meta file are ahead of everything they were used for, or the meta file is
/// an older one than the data files.
fn check_counters(fs: &dyn FileSystem, found: &Found) -> Result<(), OpenError> {
    let newest = found.segments.last().map_or(Generation(0), |segment| segment.generation);
    let epoch = found.epoch.max(found.vouched.epoch);
    let is_behind = epoch > found.meta.epoch || newest >= found.meta.generation_ceiling;
    if is_behind && !found.is_fallback {
        let what = format!(
            "it is older than the data: epoch {} against {}, generation ceiling {} against {}",
            found.meta.epoch.0, epoch.0, found.meta.generation_ceiling.0, newest.0
        );
        return Err(OpenError::Corrupt { path: fs.describe(META_NAME), offset: 0, what });
    }
    Ok(())
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
}

fn settle(
    found: &mut Found,
    epoch: Epoch,
    now: Timestamp,
    report: &mut RecoveryReport,
) -> Result<Settled, OpenError> {
    let mut settled = Settled::default();
    let mut records = Records::new(&found.segments, found.meta.segment_bytes);
    let Survivors { completed, expired } =
        found.winners.settle(&mut records, |record, location| {
            let standing = Standing::of(record, now, epoch);
            if standing == Standing::Absent {
                let was_claim = matches!(record.kind, Kind::Claim | Kind::Renew);
                report.expired += usize::from(was_claim);
                return false;
            }
            settled.held_bytes += held_bytes(record);
            let is_claim = record.kind != Kind::Park;
            report.orphaned += usize::from(is_claim && is_orphan(record, epoch));
            let parks = standing == Standing::Parked(EndCause::Orphaned);
            report.parked +=
                usize::from(matches!(standing, Standing::Parked(_) | Standing::Overdue));
            if parks && is_claim {
                settled.to_park.push((record.key_hash, location));
            }
            true
        })?;
    report.completed = completed;
    report.expired += expired;
    Ok(settled)
}

fn remove_unlisted(fs: &dyn FileSystem, found: &Found) -> Result<(), OpenError> {
    for name in &found.unlisted {
        fs.remove(name).map_err(|error| OpenError::io("remove", fs.describe(name), error))?;
    }
    if !found.unlisted.is_empty() {
        let failed = |error| OpenError::io("sync the directory of", fs.describe(META_NAME), error);
        fs.sync_dir().map_err(failed)?;
    }
    Ok(())
}

impl Found {
    fn both(&self) -> impl Iterator<Item = (&Sealed, &Scanned)> {
        self.segments.iter().zip(&self.scanned)
    }

    /// Segments without a record.
    fn empty(&self) -> impl Iterator<Item = &Sealed> {
        self.both().filter(|(_, scanned)| scanned.end == DATA_START).map(|(segment, _)| segment)
    }

    /// Whether what recovery read may be in the page cache and not on disk, behind a failed sync
    /// that marked it clean.
    fn distrusts_cache(&self) -> bool {
        let promised = match self.meta.mode {
            StoredMode::Sync | StoredMode::Interval => true,
            StoredMode::Buffered | StoredMode::Memory => self.meta.poisoned || self.is_fallback,
        };
        promised && !self.meta.clean
    }
}

/// Seals what was not sealed, so that the next open finds what this one found, and writes again
/// what the page cache cannot be trusted with. Gives the bytes written again.
fn make_good(found: &Found) -> Result<u64, OpenError> {
    let mut rewritten = 0;
    for (segment, scanned) in found.both() {
        if scanned.is_stable || scanned.end == DATA_START {
            continue;
        }
        let start = segment.file.segment_offset(segment.id);
        if found.distrusts_cache() {
            let mut at = scanned.proven;
            while at < scanned.end {
                let piece = (scanned.end - at).min(REWRITE_BYTES);
                let mut bytes = vec![0; piece as usize];
                let offset = start + u64::from(at);
                segment.file.read_at(&mut bytes, offset).map_err(|error| {
                    OpenError::io("read", segment.file.path().to_owned(), error)
                })?;
                write(&segment.file, &bytes, offset)?;
                rewritten += u64::from(piece);
                at += piece;
            }
        }
        let trailer = Trailer {
            data_end: scanned.end,
            max_expires: scanned.max_expires,
            generation: segment.generation,
        };
        let at = trailer_offset(found.meta.segment_bytes);
        write(&segment.file, &trailer.encode(segment.place), start + u64::from(at))?;
    }
    Ok(rewritten)
}

fn write(file: &DataFile, bytes: &[u8], offset: u64) -> Result<(), OpenError> {
    file.write_at(&[IoSlice::new(bytes)], offset).map_err(OpenError::Io)
}

/// Gives every empty segment a generation of its own, unless the store was closed in order: a
/// record behind a hole must not become valid again when the hole is filled (R8). Gives the new
/// generations.
fn renew_empty(
    found: &Found,
    first: Generation,
    now: Timestamp,
) -> Result<HashMap<SegmentId, Generation>, OpenError> {
    let mut generations = HashMap::new();
    if found.meta.clean {
        return Ok(generations);
    }
    for (segment, generation) in found.empty().zip(first.0..) {
        let generation = Generation(generation);
        let header = segment::Header { segment: segment.id, generation, created: now };
        let bytes = header.encode(&found.meta.store_id);
        write(&segment.file, &bytes, segment.file.segment_offset(segment.id))?;
        generations.insert(segment.id, generation);
    }
    Ok(generations)
}

/// The segments as the WAL knows them, and those that are ready to be filled, by generation.
fn take_over(
    found: &Found,
    generations: &HashMap<SegmentId, Generation>,
) -> (Segments, Vec<(Generation, SegmentId)>) {
    let segments = Segments::new(found.meta.segment_bytes);
    let mut prepared = Vec::new();
    for (segment, scanned) in found.both() {
        let generation = generations.get(&segment.id).copied().unwrap_or(segment.generation);
        if scanned.end == DATA_START {
            prepared.push((generation, segment.id));
        }
        let file = Arc::clone(&segment.file);
        let store_id = &found.meta.store_id;
        segments.add(Segment::new(store_id, file, segment.id, generation, scanned.end));
    }
    prepared.sort_unstable();
    (segments, prepared)
}

/// Writes a park record for every orphan whose rule says so, durably, before anybody is served: a
/// claim that nobody finishes must not be forgotten by the clock.
fn park_orphans(engine: &Engine, to_park: &[(KeyHash, Location)]) -> Result<(), OpenError> {
    for (hash, location) in to_park {
        loop {
            let growths = engine.wal.growths();
            let mut shard = engine.lock_shard(*hash)?;
            let claim = engine.wal.segments.record(*location)?;
            let at = engine.timeline.now();
            let (record, change) = park_record(&claim, ParkedBy::Orphaned, at);
            if let Some(parked) = engine.append(&Draft::new(&record), change)? {
                let is_it =
                    |slot: crate::table::Slot| Ok::<_, OpenError>(slot.location() == *location);
                if let Some((position, _)) = shard.table.find(*hash, is_it)? {
                    shard.table.replace(position, parked, false);
                }
                break;
            }
            drop(shard);
            if let Some(cause) = engine.make_room(growths)? {
                return Err(OpenError::Full { cause });
            }
            if engine.wal.growths() == growths {
                return Err(OpenError::Full { cause: no_room() });
            }
        }
    }
    if !to_park.is_empty() {
        engine.wal.sync_round(engine.timeline.now()).map_err(OpenError::Io)?;
    }
    Ok(())
}
