//! Reading a damaged store as far as it can be read. Nothing is refused here but a store of another
//! version, and nothing is written; what cannot be read is noted.
//!
//! Where opening would go on, nothing is lost: a tail above everything that was durable is cut here
//! too. Where opening would refuse, records are looked for at every place at which one can begin.

use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::found::Vouched;
use super::scan::last_written;
use super::walk::{Walk, tail};
use crate::checksum::Place;
use crate::error::{OpenError, SalvageError};
use crate::format::file::{self, Flaw as FileFlaw, SEGMENTS_MAX, SEGMENTS_START, id_of_name};
use crate::format::mark::{self, Mark};
use crate::format::meta::{Meta, segment_bytes_are_valid};
use crate::format::names::Entry;
use crate::format::record::Record;
use crate::format::record_ref::RecordRef;
use crate::format::segment::{self, DATA_START, Trailer};
use crate::format::{META_NAME, NAMES_NAME, PAGE_BYTES};
use crate::policy::{OnLeaseEnd, OnOrphan};
use crate::report::Damage;
use crate::sys::{File, FileSystem};
use crate::types::{FileId, Generation, SegmentId, Timestamp};
use crate::wal::meta::MetaFile;

/// Places that are listed.
const DAMAGE_MAX: usize = 1000;
/// Pieces in which is read what can be read.
const PIECE_BYTES: usize = 256 << 10;
/// Generations that a segment without a header is read under.
const GENERATIONS_MAX: usize = 8;
/// Entries of the names file begin at multiples of this.
const ENTRY_UNIT: usize = 8;

/// Records that are gone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Loss {
    pub(super) from: Timestamp,
    /// When the last of them would have said nothing any more.
    pub(super) until: Timestamp,
    /// 0 when that is not known.
    pub(super) bytes: u64,
    pub(super) what: String,
}

/// What is wrong with the store.
#[derive(Debug, Default)]
pub(super) struct Losses {
    pub(super) damage: Vec<Damage>,
    pub(super) list: Vec<Loss>,
}

impl Losses {
    fn note(&mut self, path: PathBuf, offset: u64, what: impl Into<String>) {
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(Damage { path, offset, what: what.into() });
        }
    }

    /// Something is lost of which nothing is known.
    pub(super) fn lose_unknown(&mut self, what: &str) {
        if self.list.iter().all(|loss| loss.what != what) {
            let (from, until) = (Timestamp::default(), Timestamp::MAX);
            self.list.push(Loss { from, until, bytes: 0, what: what.to_owned() });
        }
    }
}

/// A data file, as far as it can be read.
#[derive(Debug)]
struct Source {
    id: FileId,
    path: PathBuf,
    file: Arc<dyn File>,
    len: u64,
    header: Option<file::Header>,
}

/// A store, as far as it can be read.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) segment_bytes: u32,
    pub(super) meta: Option<Meta>,
    pub(super) is_fallback: bool,
    pub(super) entries: Vec<Entry>,
    pub(super) losses: Losses,
    pub(super) vouched: Vouched,
    pub(super) segments: usize,
    store_id: [u8; 16],
    sources: Vec<Source>,
}

impl Survey {
    /// Reads everything but the segments.
    pub(super) fn read(fs: &dyn FileSystem) -> Result<Self, SalvageError> {
        let mut losses = Losses::default();
        let names = fs.list().map_err(|error| {
            OpenError::io("list the directory of", fs.describe(META_NAME), error)
        })?;
        let (meta, is_fallback) = read_meta(fs, &mut losses)?;
        let mut sources = open_sources(fs, &names, &mut losses);
        let (store_id, segment_bytes) = match &meta {
            Some(meta) => (meta.store_id, meta.segment_bytes),
            None => identify(&sources)
                .ok_or_else(|| SalvageError::NoStore { path: fs.describe(META_NAME) })?,
        };
        // One that is not listed and has no header is left over from growth that did not finish.
        let may_count =
            |id| is_fallback || meta.as_ref().is_none_or(|meta| meta.files.contains(id));
        sources.retain_mut(|source| {
            let mut own = Losses::default();
            let is_ours = source.read_header(&store_id, segment_bytes, &mut own);
            let counts = may_count(source.id) || source.header.is_some();
            if counts {
                losses.damage.append(&mut own.damage);
                own.list.iter().for_each(|loss| losses.lose_unknown(&loss.what));
            }
            is_ours && counts
        });
        for id in meta.iter().flat_map(|meta| meta.files.iter()) {
            if sources.iter().all(|source| source.id != id) {
                let name = file::name(id);
                losses.note(fs.describe(&name), 0, "the file is missing, or another store's");
                losses.lose_unknown(&format!("{name} is missing"));
            }
        }
        let stable = meta.as_ref().map_or(Generation(0), |meta| meta.stable_generation);
        let mut vouched = Vouched { stable, ..Vouched::default() };
        for source in &sources {
            source.read_marks(&store_id, &mut vouched, &mut losses);
        }
        let counted = meta.as_ref().map(|meta| meta.names_bytes);
        let entries = read_names(fs, &store_id, counted, is_fallback, &mut losses);
        Ok(Self {
            segment_bytes,
            meta,
            is_fallback,
            entries,
            losses,
            vouched,
            segments: 0,
            store_id,
            sources,
        })
    }

    pub(super) fn files(&self) -> usize {
        self.sources.len()
    }

    /// Shows every record that is there to `visit`, and whether its body is whole.
    pub(super) fn visit(
        &mut self,
        mut visit: impl FnMut(&Record<'_>, bool) -> Result<(), SalvageError>,
    ) -> Result<(), SalvageError> {
        let mut buffer = vec![0; self.segment_bytes as usize];
        let mut seen = HashMap::<SegmentId, Generation>::new();
        let mut all = Vec::new();
        for source in std::mem::take(&mut self.sources) {
            let first = source.first(&self.store_id, self.segment_bytes);
            let known = (all.len(), self.losses.damage.len(), self.losses.list.len());
            let mut records = 0;
            for index in 0..source.segments(self.segment_bytes) {
                let start = SEGMENTS_START + u64::from(index) * u64::from(self.segment_bytes);
                let id = first.and_then(|first| first.checked_add(index)).map(SegmentId);
                all.extend(id);
                if start >= source.len {
                    self.lose_segment(&source, start, "the file is cut");
                    continue;
                }
                let unreadable = load(&*source.file, source.len, start, &mut buffer);
                let Some(walk) = self.read_segment(&source, id, start, &buffer, &unreadable)?
                else {
                    continue;
                };
                records += walk.found.len();
                self.segments += usize::from(!walk.found.is_empty());
                if let Some(id) = id {
                    let known = seen.entry(id).or_default();
                    *known = walk.generation.max(*known);
                }
                for (range, is_whole) in walk.found {
                    let bytes = &buffer[range.start as usize..range.end as usize];
                    if let Ok(record) = RecordRef::check(bytes, walk.place, range.start) {
                        visit(&record.read(), is_whole)?;
                    }
                }
            }
            let is_listed = self.meta.as_ref().is_none_or(|meta| meta.files.contains(source.id));
            if records == 0 && !is_listed {
                // Left over from growth that did not finish.
                all.truncate(known.0);
                self.losses.damage.truncate(known.1);
                self.losses.list.truncate(known.2);
            } else if !is_listed && !self.is_fallback {
                self.losses.note(source.path.clone(), 0, "the meta file does not list the file");
                self.losses.lose_unknown("the meta file is older than the data");
            }
        }
        // Each segment is there once. Files fill the lowest gap, so that none is left out, but for what
        // was given up, of which the meta file tells.
        all.sort_unstable();
        let gone_generation = self.meta.as_ref().map_or(Generation(0), |meta| meta.gone_generation);
        let is_twice = all.windows(2).any(|pair| pair[0] == pair[1]);
        let is_left_out = all.iter().zip(0..).any(|(id, number)| id.0 != number);
        if is_twice || (is_left_out && gone_generation == Generation(0)) {
            self.losses.lose_unknown("segments are missing, or there twice");
        }
        let gone = self.vouched.tails.iter().filter(|((id, generation), (durable, _))| {
            let is_there = match seen.get(id) {
                Some(known) => known >= generation,
                None => *generation < gone_generation,
            };
            *durable > 0 && !is_there
        });
        for ((id, _), _) in gone {
            self.losses.lose_unknown(&format!("segment {} was durable and is gone", id.0));
        }
        Ok(())
    }

    /// Reads a segment, of which `unreadable` could not be read. `None`: nothing can be told of it.
    fn read_segment(
        &mut self,
        source: &Source,
        id: Option<SegmentId>,
        start: u64,
        buffer: &[u8],
        unreadable: &[Range<u32>],
    ) -> Result<Option<Walk>, SalvageError> {
        let header = head(buffer).and_then(|head| {
            segment::Header::decode_any(head, &self.store_id)
                .ok()
                .filter(|header| id.is_none_or(|id| id == header.segment))
        });
        let mut best: Option<Walk> = None;
        if let Some(id) = id.or(header.map(|header| header.segment)) {
            for generation in self.generations(id, header, buffer) {
                let place = Place::segment(&self.store_id, id, generation);
                let walk = Walk::over(buffer, &source.path, place, generation)?;
                let is_better =
                    best.as_ref().is_none_or(|best| walk.found.len() > best.found.len());
                if is_better && (header.is_some() || !walk.is_blank()) {
                    best = Some(walk);
                }
            }
        }
        let Some(mut walk) = best else {
            self.lose_segment(source, start, "the segment header is damaged");
            return Ok(None);
        };
        // What opening would say of it.
        let key = id.or(header.map(|header| header.segment)).map(|id| (id, walk.generation));
        let (durable, _) =
            key.and_then(|key| self.vouched.tails.get(&key)).copied().unwrap_or_default();
        let is_stable = walk.generation < self.vouched.stable;
        let is_sealed_at = |end| walk.trailer.is_some_and(|trailer| trailer.data_end == end);
        let is_sound = |end| end >= durable && (!is_stable || is_sealed_at(end));
        let used = walk.trailer.map_or(self.segment_bytes, |trailer| trailer.data_end);
        let is_unreadable = unreadable.iter().any(|range| range.start < used);
        let is_plain = header.is_some() && !is_unreadable && !walk.is_strange;
        if is_plain && is_sound(walk.strict_end) {
            let end = walk.strict_end;
            walk.found.retain(|(range, _)| range.end <= end);
            return Ok(Some(walk));
        }
        let what = match (is_unreadable, header.is_some()) {
            (true, _) => "it cannot be read",
            (_, false) => "the segment header is damaged",
            _ => "a record, or the trailer, is damaged",
        };
        self.losses.note(source.path.clone(), start + u64::from(walk.strict_end), what);
        let last = walk.found.last().map_or(DATA_START, |(range, _)| range.end);
        let has_holes = walk.is_strange || last > walk.loose_end;
        if is_unreadable || has_holes || !is_sound(walk.loose_end) {
            let end = walk.trailer.map_or(0, |trailer| trailer.data_end).max(durable).max(last);
            let held: u32 = walk.found.iter().map(|(range, _)| range.end - range.start).sum();
            self.losses.list.push(Loss {
                from: header.map(|header| header.created).unwrap_or_default(),
                until: self.end_of_loss(&walk),
                bytes: u64::from(end - DATA_START - held),
                what: format!(
                    "{}, from {}: {what}",
                    file::name(source.id),
                    start + u64::from(walk.strict_end)
                ),
            });
        }
        Ok(Some(walk))
    }

    fn lose_segment(&mut self, source: &Source, start: u64, what: &str) {
        self.losses.note(source.path.clone(), start, what);
        let what = format!("{}, from {start}: {what}", file::name(source.id));
        let (from, until) = (Timestamp::default(), Timestamp::MAX);
        self.losses.list.push(Loss { from, until, bytes: u64::from(self.segment_bytes), what });
    }

    /// When the records that a segment has lost would have said nothing any more, as far as that is
    /// known. A claim that is parked when its owner dies outlives what its segment says.
    fn end_of_loss(&self, walk: &Walk) -> Timestamp {
        let parks = self.entries.iter().any(|entry| match entry {
            Entry::Namespace(entry) => {
                entry.policy.orphan_rule() == OnOrphan::Park
                    || entry.policy.on_lease_end == OnLeaseEnd::Park
            }
            Entry::Gap(_)
            | Entry::Acceptance(..)
            | Entry::Raise(_)
            | Entry::Quota(..)
            | Entry::Erasure(_) => false,
        });
        match walk.trailer {
            Some(trailer) if !parks => trailer.max_expires.max(walk.max_expires),
            _ => Timestamp::MAX,
        }
    }

    /// The generations that the segment may be of.
    fn generations(
        &self,
        id: SegmentId,
        header: Option<segment::Header>,
        buffer: &[u8],
    ) -> Vec<Generation> {
        if let Some(header) = header {
            return vec![header.generation];
        }
        let tails = self.vouched.tails.keys();
        let mut generations: Vec<_> =
            tails.filter(|(of, _)| *of == id).map(|(_, generation)| *generation).collect();
        generations.extend(tail(buffer).map(Trailer::generation_named));
        generations.sort_unstable();
        generations.dedup();
        // Newest first: of two that hold as many records, that one counts. Each costs a walk.
        generations.into_iter().rev().take(GENERATIONS_MAX).collect()
    }
}

impl Source {
    /// Reads the header, which should say what the name says. `false`: the file is another store's.
    fn read_header(
        &mut self,
        store_id: &[u8; 16],
        segment_bytes: u32,
        losses: &mut Losses,
    ) -> bool {
        let mut head = [0; file::HEADER_BYTES];
        let is_read = self.file.read_at(&mut head, 0).is_ok();
        let mut header = file::Header::decode(&head, store_id, self.id);
        if let Err(flaw) = header {
            let what = if is_read { flaw.to_string() } else { "it cannot be read".to_owned() };
            losses.note(self.path.clone(), 0, what);
        }
        match header {
            Err(FileFlaw::Store) => return false,
            Err(FileFlaw::Misnamed(id)) => {
                self.id = FileId(id);
                header = file::Header::decode(&head, store_id, self.id);
            }
            Ok(_) | Err(FileFlaw::Damaged) => {}
        }
        self.header = header.ok().filter(|header| header.segment_bytes == segment_bytes);
        if let Some(header) = self.header.filter(|header| header.file_bytes() != self.len) {
            let what = format!("the file has {} bytes, not {}", self.len, header.file_bytes());
            losses.note(self.path.clone(), self.len, what);
        }
        // Without a header the length says how many segments there are, if it is one that can be.
        let room = self.len.saturating_sub(SEGMENTS_START);
        if self.header.is_none() && (room == 0 || !room.is_multiple_of(u64::from(segment_bytes))) {
            losses.lose_unknown(&format!("{} is cut", file::name(self.id)));
        }
        true
    }

    fn segments(&self, segment_bytes: u32) -> u32 {
        let room = self.len.saturating_sub(SEGMENTS_START).div_ceil(u64::from(segment_bytes));
        // Bounded by what a file may have.
        let in_file = room.min(u64::from(SEGMENTS_MAX)) as u32;
        self.header.map_or(in_file, |header| header.segments)
    }

    /// The number of the first segment: the header's, or what the first readable segment says.
    fn first(&self, store_id: &[u8; 16], segment_bytes: u32) -> Option<u32> {
        if let Some(header) = self.header {
            return Some(header.first.0);
        }
        (0..self.segments(segment_bytes)).find_map(|index| {
            let mut head = [0; segment::HEADER_BYTES];
            let start = SEGMENTS_START + u64::from(index) * u64::from(segment_bytes);
            self.file.read_at(&mut head, start).ok()?;
            let header = segment::Header::decode_any(&head, store_id).ok()?;
            header.segment.0.checked_sub(index)
        })
    }

    fn read_marks(&self, store_id: &[u8; 16], vouched: &mut Vouched, losses: &mut Losses) {
        for slot in 0..mark::SLOTS {
            let mut page = [0; PAGE_BYTES];
            let offset = file::mark_offset(slot);
            match self.file.read_at(&mut page, offset) {
                Ok(()) => Mark::decode(&page, store_id, self.id, slot)
                    .into_iter()
                    .for_each(|mark| vouched.add(mark)),
                Err(_) if offset >= self.len => {}
                // What it vouched for is not known.
                Err(error) => {
                    losses.note(self.path.clone(), offset, error.to_string());
                    losses.lose_unknown(&format!("marks of {}", file::name(self.id)));
                }
            }
        }
    }
}

fn head(buffer: &[u8]) -> Option<&[u8; segment::HEADER_BYTES]> {
    buffer.get(..segment::HEADER_BYTES)?.try_into().ok()
}

/// Fills `buffer` from `start` of a file of `len` bytes. Gives what could not be read, and is zero.
fn load(file: &dyn File, len: u64, start: u64, buffer: &mut [u8]) -> Vec<Range<u32>> {
    let mut unreadable = Vec::new();
    buffer.fill(0);
    // Offsets within a segment, or within the names file of at most 4 GiB.
    let there = usize::try_from(len.saturating_sub(start)).unwrap_or(usize::MAX).min(buffer.len());
    for piece in (0..there).step_by(PIECE_BYTES) {
        let end = (piece + PIECE_BYTES).min(there);
        if file.read_at(&mut buffer[piece..end], start + piece as u64).is_ok() {
            continue;
        }
        for page in (piece..end).step_by(PAGE_BYTES) {
            let end = (page + PAGE_BYTES).min(end);
            if file.read_at(&mut buffer[page..end], start + page as u64).is_err() {
                buffer[page..end].fill(0);
                unreadable.push(page as u32..end as u32);
            }
        }
    }
    if there < buffer.len() {
        unreadable.push(there as u32..buffer.len() as u32);
    }
    unreadable
}

fn read_meta(
    fs: &dyn FileSystem,
    losses: &mut Losses,
) -> Result<(Option<Meta>, bool), SalvageError> {
    let path = || fs.describe(META_NAME);
    match MetaFile::load(fs) {
        Ok(Some(loaded)) => {
            if loaded.meta.unfinished {
                let what = "a salvage into the store did not come to its end";
                losses.note(path(), 0, what);
                losses.lose_unknown(what);
            }
            if loaded.is_fallback {
                losses.note(path(), 0, "one of its two slots cannot be read");
            }
            Ok((Some(loaded.meta), loaded.is_fallback))
        }
        Err(error @ OpenError::UnsupportedFormat { .. }) => Err(error.into()),
        result => {
            let what = match result {
                Err(error) => error.to_string(),
                Ok(_) => "the file is missing".to_owned(),
            };
            losses.note(path(), 0, what);
            losses.lose_unknown("the meta file is lost, which lists the data files");
            Ok((None, false))
        }
    }
}

fn open_sources(fs: &dyn FileSystem, names: &[String], losses: &mut Losses) -> Vec<Source> {
    let mut sources = Vec::new();
    for (name, id) in names.iter().filter_map(|name| Some((name, id_of_name(name)?))) {
        let path = fs.describe(name);
        let opened = fs.open(name).and_then(|file| Ok((file.len()?, file)));
        match opened {
            Ok((len, file)) => sources.push(Source { id, path, file, len, header: None }),
            Err(error) => losses.note(path, 0, error.to_string()),
        }
    }
    sources.sort_by_key(|source| source.id);
    sources
}

/// The store id and the segment size that most headers of data files name.
fn identify(sources: &[Source]) -> Option<([u8; 16], u32)> {
    let mut counts = HashMap::<([u8; 16], u32), usize>::new();
    for source in sources {
        let mut head = [0; file::HEADER_BYTES];
        if source.file.read_at(&mut head, 0).is_err() {
            continue;
        }
        let owner = file::Header::owner_named(&head);
        if let Ok(header) = file::Header::decode(&head, &owner, source.id)
            && segment_bytes_are_valid(header.segment_bytes)
        {
            *counts.entry((owner, header.segment_bytes)).or_default() += 1;
        }
    }
    // Of two with as many, neither can be told to be the one.
    let most = counts.values().copied().max()?;
    let mut first = counts.into_iter().filter(|(_, count)| *count == most);
    first.next().map(|(identity, _)| identity).filter(|_| first.next().is_none())
}

/// Reads the entries of the names file: those that count, or, when that is not known, all.
fn read_names(
    fs: &dyn FileSystem,
    store_id: &[u8; 16],
    counted: Option<u64>,
    is_fallback: bool,
    losses: &mut Losses,
) -> Vec<Entry> {
    const LOST: &str = "names of namespaces are lost";
    let path = fs.describe(NAMES_NAME);
    let opened = fs.open(NAMES_NAME).and_then(|file| Ok((file.len()?, file)));
    let (len, file) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            losses.note(path, 0, error.to_string());
            losses.lose_unknown(LOST);
            return Vec::new();
        }
    };
    // What is there, and no more: bounded by the disk.
    let there = len.min(u64::from(u32::MAX));
    let mut bytes = vec![0; usize::try_from(there).unwrap_or(usize::MAX)];
    // What cannot be read is zero, which is no entry.
    load(&*file, len, 0, &mut bytes);
    // Zeros behind what a lost meta file has counted are no loss.
    let written = last_written(&bytes).map_or(0, |last| last as u64 + 1);
    let end = counted.unwrap_or(written);
    let mut is_lost = len < end;
    let (mut entries, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        // Less than 4 GiB.
        match Entry::decode(&bytes[at..], store_id, at as u32) {
            Some((entry, len)) => {
                entries.push(entry);
                at += len;
            }
            None if (at as u64) < end => {
                is_lost = true;
                at += ENTRY_UNIT;
            }
            None => break,
        }
        if at as u64 >= end && !is_fallback {
            break;
        }
    }
    if is_lost {
        losses.note(path, 0, "entries cannot be read");
        losses.lose_unknown(LOST);
    }
    entries
}
