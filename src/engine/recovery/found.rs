//! Reading and validating a store at open: nothing is written here, whatever is found.
//!
//! What separates a torn tail from damage is the highest point that anything on disk vouches for:
//! marks, trailers of segments below the stable generation. Valid records must reach it; behind it
//! they may end anywhere.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::OpenRequest;
use super::indexes::offer_indexes;
use super::scan::{Records, Scan, Scanner, Sealed, corrupt};
use super::winners::Winners;
use crate::answer::Gap;
use crate::engine::gaps::{Split, split};
use crate::error::OpenError;
use crate::format::file;
use crate::format::file::id_of_name;
use crate::format::index::ENTRY_BYTES;
use crate::format::mark::Mark;
use crate::format::meta::Meta;
use crate::format::names::{ErasureEntry, NamespaceEntry, Raise};
use crate::format::record::TERMINATOR_BYTES;
use crate::format::record_ref::RecordRef;
use crate::format::scope;
use crate::format::segment::{Content, DATA_START, Trailer, index_offset, trailer_offset};
use crate::format::{META_NAME, NAMES_NAME};
use crate::hash::KeyHasher;
use crate::policy::Quota;
use crate::report::{RecoveryReport, TornTail};
use crate::sys::FileSystem;
use crate::types::{Epoch, FileId, Generation, Location, NamespaceId, SegmentId, Timestamp};
use crate::wal::data_file::DataFile;
use crate::wal::meta::{LoadedMeta, MetaFile};
use crate::wal::names::NamesFile;

/// What the marks vouch for.
#[derive(Debug, Default)]
pub(super) struct Vouched {
    /// Per segment and generation: durable, attempted.
    pub(super) tails: HashMap<(SegmentId, Generation), (u32, u32)>,
    pub(super) stable: Generation,
    pub(super) clock: Timestamp,
    pub(super) epoch: Epoch,
}

impl Vouched {
    /// Takes in what one mark says. Every mark ever written stays true.
    pub(super) fn add(&mut self, mark: Mark) {
        self.stable = self.stable.max(mark.stable);
        self.clock = self.clock.max(mark.clock);
        self.epoch = self.epoch.max(mark.epoch);
        for entry in mark.entries {
            let tail = self.tails.entry((entry.segment, entry.generation)).or_default();
            tail.0 = tail.0.max(entry.durable);
            tail.1 = tail.1.max(entry.attempted);
        }
    }

    /// The trailer of a sealed segment of which everything is known to be durable, and which has an
    /// index (R12).
    fn trusted(&self, segment: &Sealed) -> Option<Trailer> {
        let trailer = segment.trailer.filter(|trailer| trailer.entries > 0)?;
        let tail = self.tails.get(&(segment.id, segment.generation));
        let is_durable = tail.is_some_and(|(durable, _)| *durable >= trailer.data_end);
        (segment.generation < self.stable || is_durable).then_some(trailer)
    }
}

impl Scanned {
    /// A segment that is taken as its trailer says.
    fn trusted(trailer: &Trailer, is_stable: bool) -> Self {
        Self {
            end: trailer.data_end,
            max_expires: trailer.max_expires,
            due: trailer.due,
            latest: trailer.latest,
            content: trailer.content,
            entries: trailer.entries,
            index: Vec::new(),
            proven: trailer.data_end,
            is_stable,
        }
    }
}

/// A segment after its scan.
#[derive(Debug)]
pub(super) struct Scanned {
    pub(super) end: u32,
    pub(super) max_expires: Timestamp,
    pub(super) due: Timestamp,
    pub(super) latest: Timestamp,
    pub(super) content: Content,
    /// Entries of its index; and the index, if it was worked out anew.
    pub(super) entries: u32,
    pub(super) index: Vec<u8>,
    /// Up to here it is proven durable; what lies behind may be in the page cache only.
    pub(super) proven: u32,
    pub(super) is_stable: bool,
}

/// Everything that was read and validated, before anything is written.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) meta: Meta,
    pub(super) is_fallback: bool,
    pub(super) is_copy: bool,
    pub(super) files: Vec<Arc<DataFile>>,
    /// Files of the directory that look like data files and are not listed.
    pub(super) unlisted: Vec<String>,
    pub(super) names_end: u64,
    pub(super) namespaces: Vec<NamespaceEntry>,
    pub(super) raises: Vec<Raise>,
    pub(super) quotas: Vec<(NamespaceId, Quota)>,
    pub(super) erasures: Vec<ErasureEntry>,
    pub(super) gaps: Vec<Gap>,
    pub(super) segments: Vec<Sealed>,
    pub(super) scanned: Vec<Scanned>,
    pub(super) vouched: Vouched,
    pub(super) winners: Winners,
    /// The highest epoch in any token.
    pub(super) epoch: Epoch,
    /// The latest time in any record.
    pub(super) at: Timestamp,
}

impl Found {
    pub(super) fn both(&self) -> impl Iterator<Item = (&Sealed, &Scanned)> {
        self.segments.iter().zip(&self.scanned)
    }

    /// The latest time that anything bears witness to.
    pub(super) fn floor(&self) -> Timestamp {
        self.meta.clock.max(self.vouched.clock).max(self.at)
    }

    /// Segments without a record.
    pub(super) fn empty(&self) -> impl Iterator<Item = &Sealed> {
        self.both().filter(|(_, scanned)| scanned.end == DATA_START).map(|(segment, _)| segment)
    }

    /// Whether what recovery read may be in the page cache and not on disk, behind a failed sync
    /// that marked it clean. After any stop but a clean one: nobody may have lived to tell of the
    /// failure, whatever the mode was.
    pub(super) fn distrusts_cache(&self) -> bool {
        !self.meta.clean
    }
}

/// Reads and validates everything. Nothing is written.
pub(super) fn read(
    request: &OpenRequest,
    loaded: LoadedMeta,
    report: &mut RecoveryReport,
) -> Result<(NamesFile, Found, MetaFile), OpenError> {
    let fs = &*request.fs;
    let LoadedMeta { file: meta_file, mut meta, is_fallback } = loaded;
    if is_fallback {
        // R15: the state may be one write old. Its stable generation was true, and stays so.
        meta.clean = false;
    }
    if !meta.can_go_on() {
        let (path, what) = (fs.describe(META_NAME), "its counters are used up".to_owned());
        return Err(OpenError::Corrupt { path, offset: 0, what });
    }
    if meta.unfinished && !request.is_salvage {
        return Err(OpenError::Unfinished { path: fs.describe(META_NAME) });
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
    let Split { namespaces, raises, quotas, erasures, gaps } = split(entries);
    let highest = namespaces.iter().map(|entry| entry.namespace.0).max().unwrap_or(0);
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

    let completions = segments.iter().filter_map(|segment| segment.trailer);
    let completions = completions.filter(|trailer| trailer.content == Content::Completions);
    let guess: u64 = completions.map(|trailer| u64::from(trailer.entries)).sum();
    let guess = usize::try_from(guess).unwrap_or(usize::MAX);
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
        namespaces,
        raises,
        quotas,
        erasures,
        gaps,
        segments,
        scanned: Vec::new(),
        vouched,
        winners,
        epoch: Epoch(0),
        at: Timestamp::default(),
    };
    scan_all(&mut found, request.in_full, report)?;
    check_counters(fs, &found)?;
    Ok((names, found, meta_file))
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
            Ok(file) => {
                let file = Arc::new(file);
                let Look { is_whole, records, newest } = look_into(meta, &file)?;
                // Given up, and in the directory still: other files may have its segments' numbers.
                let is_gone = records == 0 && newest < meta.gone_generation;
                if is_fallback && is_whole && !is_gone {
                    files.push(file);
                } else if records > 0 {
                    // The meta file is an older one than the data, and must not decide what is
                    // removed; or, in fallback, what it listed is damaged.
                    let path = file.path().display();
                    let what = format!("it does not list {path}, which holds {records} records");
                    let path = fs.describe(META_NAME);
                    return Err(OpenError::Corrupt { path, offset: 0, what });
                } else {
                    unlisted.push(name);
                }
            }
            // Never begun, or given up: the header was not written. A header that was and is bad
            // may be that of a file which the lost slot has listed.
            Err(OpenError::Corrupt { .. }) if !is_fallback || has_no_header(fs, &name)? => {
                unlisted.push(name);
            }
            // A file that cannot even be looked at is not ours to remove.
            Err(error) => return Err(error),
        }
    }
    files.sort_by_key(|file| file.header().first);
    for pair in files.windows(2) {
        if pair[0].header().end() > pair[1].header().first {
            let what = format!("its segments overlap those of {}", pair[0].path().display());
            return Err(corrupt(&pair[1], 0, what));
        }
    }
    // What is kept for each segment is kept for those before it, too.
    let count: u64 = files.iter().map(|file| u64::from(file.header().segments)).sum();
    if let Some(last) =
        files.last().filter(|last| u64::from(last.header().end().0) > 4096 + 64 * count)
    {
        let what =
            format!("its segments are far from those of the other {} files", files.len() - 1);
        return Err(corrupt(last, 0, what));
    }
    Ok((files, unlisted))
}

/// What is in a file that the meta file does not list.
struct Look {
    /// Whether all segments have their headers: a crash while a file is being made leaves some without.
    is_whole: bool,
    records: u64,
    /// The latest generation of its segments.
    newest: Generation,
}

fn look_into(meta: &Meta, file: &Arc<DataFile>) -> Result<Look, OpenError> {
    let mut scanner = Scanner::new(meta.segment_bytes);
    let mut look = Look { is_whole: true, records: 0, newest: Generation(0) };
    for id in file.header().ids() {
        match Sealed::read(&meta.store_id, file, id) {
            Ok(segment) => {
                look.records += scanner.scan(&segment, |_, _, _| Ok(()))?.records;
                look.newest = look.newest.max(segment.generation);
            }
            Err(OpenError::Corrupt { .. }) => look.is_whole = false,
            Err(error) => return Err(error),
        }
    }
    Ok(look)
}

/// Whether a file is too short for a header, or has zeros in its place.
fn has_no_header(fs: &dyn FileSystem, name: &str) -> Result<bool, OpenError> {
    let failed = |error| OpenError::io("read", fs.describe(name), error);
    let opened = fs.open(name).map_err(failed)?;
    let mut head = [0; file::HEADER_BYTES];
    if opened.len().map_err(failed)? >= head.len() as u64 {
        opened.read_at(&mut head, 0).map_err(failed)?;
    }
    Ok(head == [0; file::HEADER_BYTES])
}

fn read_marks(meta: &Meta, files: &[Arc<DataFile>]) -> Result<Vouched, OpenError> {
    let mut vouched = Vouched { stable: meta.stable_generation, ..Vouched::default() };
    for file in files {
        let marks = file.read_marks(&meta.store_id);
        let marks = marks.map_err(|error| OpenError::io("read", file.path().to_owned(), error))?;
        marks.into_iter().for_each(|mark| vouched.add(mark));
    }
    Ok(vouched)
}

fn read_segments(meta: &Meta, files: &[Arc<DataFile>]) -> Result<Vec<Sealed>, OpenError> {
    let mut segments = Vec::new();
    for file in files {
        for id in file.header().ids() {
            segments.push(Sealed::read(&meta.store_id, file, id)?);
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

/// Lets all records compete: those of segments that are known to be durable by their index, unless
/// `in_full`, and the others one by one.
fn scan_all(
    found: &mut Found,
    in_full: bool,
    report: &mut RecoveryReport,
) -> Result<(), OpenError> {
    let hashers: HashMap<NamespaceId, KeyHasher> = found
        .namespaces
        .iter()
        .flat_map(|entry| {
            let hasher = found.meta.secret.hasher(entry.namespace);
            [(entry.namespace, hasher.clone()), (entry.namespace.scoped(), hasher)]
        })
        .collect();
    let by_index: Vec<bool> = found
        .segments
        .iter()
        .map(|segment| !in_full && found.vouched.trusted(segment).is_some())
        .collect();
    let indexed = found.segments.iter().zip(&by_index).filter(|(_, by_index)| **by_index);
    let indexed: Vec<&Sealed> = indexed.map(|(segment, _)| segment).collect();
    let (bad, epoch) = offer_indexes(&indexed, &found.segments, &mut found.winners, &hashers)?;
    found.epoch = found.epoch.max(epoch);
    let mut scanner = Scanner::new(found.meta.segment_bytes);
    let mut records = Records::new(&found.segments, found.meta.segment_bytes);
    let (winners, epoch, at) = (&mut found.winners, &mut found.epoch, &mut found.at);
    for (segment, by_index) in found.segments.iter().zip(by_index) {
        let trusted = found.vouched.trusted(segment).filter(|_| by_index);
        let scanned = match trusted.filter(|_| !bad.contains(&segment.id)) {
            Some(trailer) => {
                report.records += u64::from(trailer.entries);
                report.records_indexed += u64::from(trailer.entries);
                *at = (*at).max(trailer.latest);
                // Its records are durable; index and trailer may not be.
                Scanned::trusted(&trailer, segment.generation < found.vouched.stable)
            }
            None => {
                let mut scan = scanner.scan(segment, |record, offset, loaded| {
                    check_key(segment, &hashers, record, offset)?;
                    *epoch = (*epoch).max(record.token().epoch());
                    let location = Location::new(segment.id, offset, found.meta.segment_bytes);
                    winners.offer(record, location, &mut records, (segment.id, loaded))
                })?;
                report.records += scan.records;
                report.records_skipped += scan.skipped;
                *at = (*at).max(scan.latest);
                judge_end(&found.vouched, segment, &mut scan, report)?
            }
        };
        report.bytes += u64::from(scanned.end - DATA_START);
        report.segments += usize::from(scanned.end > DATA_START);
        found.scanned.push(scanned);
    }
    let known: HashSet<_> = found.segments.iter().map(|it| (it.id, it.generation)).collect();
    check_vouched(found, &known)
}

fn check_key(
    segment: &Sealed,
    hashers: &HashMap<NamespaceId, KeyHasher>,
    record: RecordRef<'_>,
    offset: u32,
) -> Result<(), OpenError> {
    let Some(hasher) = hashers.get(&record.namespace()) else {
        let what =
            format!("it names namespace {}, which is not known", record.namespace().unscoped().0);
        return Err(segment.corrupt(offset, what));
    };
    if scope::split(record.namespace(), record.key()).is_none() {
        return Err(segment.corrupt(offset, "the key has no scope, and should"));
    }
    if hasher.hash(record.key()) != record.key_hash() {
        return Err(segment.corrupt(offset, "the key does not hash to what is stored"));
    }
    Ok(())
}

/// Tells a torn tail from damage.
fn judge_end(
    vouched: &Vouched,
    segment: &Sealed,
    scan: &mut Scan,
    report: &mut RecoveryReport,
) -> Result<Scanned, OpenError> {
    let tail = vouched.tails.get(&(segment.id, segment.generation));
    let (durable, attempted) = tail.copied().unwrap_or_default();
    let is_stable = segment.generation < vouched.stable;
    if scan.end < durable {
        let what = format!("a record is damaged: the WAL was durable up to {durable}");
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
    // A segment of forgets alone may be one of claims.
    let is_completions = scan.has_completions && !scan.has_claims;
    let likely = if is_completions { Content::Completions } else { Content::Claims };
    let mut index = std::mem::take(&mut scan.index);
    // Entries of a segment are few enough.
    let entries = (index.len() / ENTRY_BYTES) as u32;
    let fits = scan.end + TERMINATOR_BYTES as u32
        <= index_offset(segment.file.header().segment_bytes, entries);
    if !fits {
        // Nothing that this writes is so full.
        index.clear();
    }
    Ok(Scanned {
        end: scan.end,
        max_expires: scan.max_expires,
        due: scan.due,
        latest: scan.latest,
        content: segment.trailer.map_or(likely, |trailer| trailer.content),
        entries: if fits { entries } else { 0 },
        index,
        proven,
        is_stable,
    })
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
            // Its file was given up.
            None if *generation < found.meta.gone_generation => {}
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
    if let Some(segment) = found.segments.last().filter(|_| newest > Generation::OPEN_MAX) {
        return Err(segment.corrupt(0, "generations are used up"));
    }
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
