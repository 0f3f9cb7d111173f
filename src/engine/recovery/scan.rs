//! Reading segments at open: record by record, by positioned reads.
//!
//! An I/O error is an error, never the end of the WAL; and no page is touched through a mapping, so
//! a bad disk answers with a code, not with a signal.

use std::collections::HashMap;
use std::sync::Arc;

use crate::checksum::Place;
use crate::error::OpenError;
use crate::format::draft::Draft;
use crate::format::index::{self, ENTRY_BYTES, Entry};
use crate::format::record::{self, Extents, Flaw, HEADER_BYTES, Kind, padded};
use crate::format::record_ref::RecordRef;
use crate::format::segment::{
    self, DATA_START, TRAILER_BYTES, Trailer, data_limit, index_offset, trailer_offset,
};
use crate::format::{FORMAT_MAJOR, FORMAT_MINOR};
use crate::types::{Generation, Location, SegmentId, Timestamp};
use crate::wal::data_file::DataFile;

/// Segments are read in pieces of this, so that an empty one costs one small read.
const PIECE_BYTES: usize = 256 << 10;

/// A single record is read as if it were so long, most are no longer.
const RECORD_GUESS_BYTES: usize = 512;

/// A segment as its header and its trailer describe it.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) id: SegmentId,
    pub(super) file: Arc<DataFile>,
    pub(super) generation: Generation,
    pub(super) place: Place,
    pub(super) is_recycled: bool,
    pub(super) trailer: Option<Trailer>,
}

impl Sealed {
    /// Reads header and trailer. A bad header is damage: it was synced before the file was listed.
    pub(super) fn read(
        store_id: &[u8; 16],
        file: &Arc<DataFile>,
        id: SegmentId,
    ) -> Result<Self, OpenError> {
        let start = file.segment_offset(id);
        let mut head = [0; segment::HEADER_BYTES];
        read(file, &mut head, start)?;
        let header = segment::Header::decode(&head, store_id, id)
            .map_err(|flaw| corrupt(file, start, flaw.to_string()))?;
        let place = Place::segment(store_id, id, header.generation);
        let segment_bytes = file.header().segment_bytes;
        let mut tail = [0; TRAILER_BYTES];
        read(file, &mut tail, start + u64::from(trailer_offset(segment_bytes)))?;
        let trailer = Trailer::decode(&tail, place, header.generation, segment_bytes);
        let (file, segment::Header { generation, is_recycled, .. }) = (Arc::clone(file), header);
        Ok(Self { id, file, generation, place, is_recycled, trailer })
    }

    pub(super) fn corrupt(&self, offset: u32, what: impl Into<String>) -> OpenError {
        corrupt(&self.file, self.file.segment_offset(self.id) + u64::from(offset), what.into())
    }
}

pub(super) fn corrupt(file: &DataFile, offset: u64, what: String) -> OpenError {
    OpenError::Corrupt { path: file.path().to_owned(), offset, what }
}

fn read(file: &DataFile, buffer: &mut [u8], offset: u64) -> Result<(), OpenError> {
    file.read_at(buffer, offset)
        .map_err(|error| OpenError::io("read", file.path().to_owned(), error))
}

/// What a scan found.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    /// Where the valid records end.
    pub(super) end: u32,
    pub(super) records: u64,
    pub(super) skipped: u64,
    pub(super) max_expires: Timestamp,
    pub(super) due: Timestamp,
    pub(super) latest: Timestamp,
    /// Whether there are completions, and whether there are records of claims.
    pub(super) has_completions: bool,
    pub(super) has_claims: bool,
    /// Bytes behind `end` that are not zero, and how many of them look like records, within the
    /// piece that was read.
    pub(super) beyond_bytes: u64,
    pub(super) beyond_records: u64,
    /// The index that the segment has, or should have.
    pub(super) index: Vec<u8>,
}

/// Reads segments one after the other into one buffer.
#[derive(Debug)]
pub(super) struct Scanner {
    buffer: Vec<u8>,
    loaded: usize,
}

impl Scanner {
    pub(super) fn new(segment_bytes: u32) -> Self {
        Self { buffer: vec![0; segment_bytes as usize], loaded: 0 }
    }

    /// Shows every valid record of the segment to `visit`, with its offset and with what of the
    /// segment is in memory. Stops at the first that is none, and where the trailer says so.
    pub(super) fn scan(
        &mut self,
        segment: &Sealed,
        mut visit: impl FnMut(RecordRef<'_>, u32, &[u8]) -> Result<(), OpenError>,
    ) -> Result<Scan, OpenError> {
        let segment_bytes = segment.file.header().segment_bytes;
        let limit = segment.trailer.map_or(data_limit(segment_bytes), |trailer| trailer.data_end);
        let mut scan = Scan { end: DATA_START, ..Scan::default() };
        self.loaded = 0;
        loop {
            let at = scan.end as usize;
            let room = limit as usize - at;
            if room < HEADER_BYTES {
                break;
            }
            self.load(segment, at + HEADER_BYTES)?;
            let Ok(sizes) = Extents::read(&self.buffer[at..at + HEADER_BYTES], room) else { break };
            self.load(segment, at + sizes.len)?;
            let bytes = &self.buffer[at..at + sizes.len];
            let len = padded(sizes.len) as u32;
            match RecordRef::check(bytes, segment.place, scan.end) {
                Ok(record) if record.check_body().is_ok() => {
                    visit(record, scan.end, &self.buffer[..self.loaded])?;
                    let record = record.read();
                    scan.records += 1;
                    scan.max_expires = scan.max_expires.max(record.expires);
                    scan.due = scan.due.max(record.due());
                    scan.latest = scan.latest.max(record.witnessed());
                    scan.index.extend_from_slice(&Draft::new(&record).entry(scan.end).encode());
                    match record.kind {
                        Kind::Complete => scan.has_completions = true,
                        // Of a claim that is never forgotten by the clock.
                        Kind::Forget => scan.has_claims |= record.expires == Timestamp::MAX,
                        Kind::Claim | Kind::Renew | Kind::Release | Kind::Park => {
                            scan.has_claims = true;
                        }
                    }
                }
                Ok(_) | Err(Flaw::Crc | Flaw::Length | Flaw::Empty | Flaw::BodyCrc) => break,
                Err(flaw) if record::is_skippable(flaw) => scan.skipped += 1,
                Err(Flaw::Kind(kind)) => {
                    return Err(OpenError::UnsupportedFormat {
                        path: segment.file.path().to_owned(),
                        major: FORMAT_MAJOR,
                        minor: FORMAT_MINOR,
                        features: u64::from(kind),
                        supported: FORMAT_MAJOR,
                    });
                }
                // The checksum is right, so this is no torn write.
                Err(flaw @ (Flaw::Reserved | Flaw::Ext)) => {
                    return Err(segment.corrupt(scan.end, flaw.to_string()));
                }
            }
            scan.end += len;
        }
        self.look_beyond(segment, &mut scan);
        Ok(scan)
    }

    /// Loads the segment up to `end` at least.
    fn load(&mut self, segment: &Sealed, end: usize) -> Result<(), OpenError> {
        if end > self.loaded {
            let to = end.next_multiple_of(PIECE_BYTES).min(self.buffer.len());
            let start = segment.file.segment_offset(segment.id) + self.loaded as u64;
            read(&segment.file, &mut self.buffer[self.loaded..to], start)?;
            self.loaded = to;
        }
        Ok(())
    }

    /// Counts what lies behind the end, in what was loaded anyway.
    fn look_beyond(&self, segment: &Sealed, scan: &mut Scan) {
        let limit = data_limit(segment.file.header().segment_bytes) as usize;
        let loaded = self.loaded.min(limit);
        let end = scan.end as usize;
        let Some(beyond) = self.buffer.get(end..loaded) else { return };
        let last = last_written(beyond);
        scan.beyond_bytes = last.map_or(0, |last| last as u64 + 1);
        if last.is_some() {
            scan.beyond_records = count_records(beyond, segment.place, scan.end).records;
        }
        if segment.is_recycled && scan.beyond_records == 0 {
            // Of an earlier generation.
            scan.beyond_bytes = 0;
        }
    }
}

/// Reads the index of a sealed segment into `entries`. `false`: it cannot be trusted.
pub(super) fn read_index(
    segment: &Sealed,
    trailer: &Trailer,
    buffer: &mut Vec<u8>,
    entries: &mut Vec<Entry>,
) -> Result<bool, OpenError> {
    let segment_bytes = segment.file.header().segment_bytes;
    buffer.resize(trailer.entries as usize * ENTRY_BYTES, 0);
    let start = segment.file.segment_offset(segment.id);
    read(&segment.file, buffer, start + u64::from(index_offset(segment_bytes, trailer.entries)))?;
    if index::checksum(buffer, segment.place) != trailer.entries_crc {
        return Ok(false);
    }
    entries.clear();
    let mut next = DATA_START;
    for bytes in buffer.chunks_exact(ENTRY_BYTES) {
        // Records that may be passed over have no entry.
        let entry = Entry::decode(bytes)
            .filter(|entry| entry.offset >= next && entry.len as usize >= HEADER_BYTES);
        let end = entry.and_then(|entry| entry.offset.checked_add(entry.len));
        let (Some(entry), Some(end)) = (entry, end.filter(|end| *end <= trailer.data_end)) else {
            return Ok(false);
        };
        next = end;
        entries.push(entry);
    }
    Ok(true)
}

/// What was counted, and how many bytes were checksummed for it.
struct Counted {
    records: u64,
    checksummed: usize,
}

/// Counts what looks like records in `bytes`, which lie at `offset` of a segment. What looks like a
/// length decides how much is checksummed, and bytes that were made to look so must not make this
/// long: the count stops when it has cost four times the bytes.
fn count_records(bytes: &[u8], place: Place, offset: u32) -> Counted {
    let mut counted = Counted { records: 0, checksummed: 0 };
    for at in (0..bytes.len()).step_by(Location::UNIT_BYTES) {
        let rest = &bytes[at..];
        let Ok(sizes) = Extents::read(rest, rest.len()) else { continue };
        if counted.checksummed + sizes.head_len > 4 * bytes.len() {
            break;
        }
        counted.checksummed += sizes.head_len;
        let is_record = RecordRef::check(rest, place, offset + at as u32).is_ok();
        counted.records += u64::from(is_record);
    }
    counted
}

/// Where the last byte is that is not zero. Mostly all are.
pub(super) fn last_written(bytes: &[u8]) -> Option<usize> {
    const ZEROS: [u8; 4096] = [0; 4096];
    let mut end = bytes.len();
    while end > 0 {
        let start = end.saturating_sub(ZEROS.len());
        let piece = &bytes[start..end];
        if *piece != ZEROS[..piece.len()] {
            return piece.iter().rposition(|byte| *byte != 0).map(|at| start + at);
        }
        end = start;
    }
    None
}

/// Reads single records that were scanned before.
#[derive(Debug)]
pub(super) struct Records<'a> {
    segments: HashMap<SegmentId, &'a Sealed>,
    segment_bytes: u32,
    scratch: Vec<u8>,
}

impl<'a> Records<'a> {
    pub(super) fn new(segments: &'a [Sealed], segment_bytes: u32) -> Self {
        let segments = segments.iter().map(|segment| (segment.id, segment)).collect();
        Self { segments, segment_bytes, scratch: Vec::new() }
    }

    /// Shows the record at `location`, which lies in the loaded part of the segment under scan or
    /// is read from its file.
    pub(super) fn with<T>(
        &mut self,
        location: Location,
        current: Option<(SegmentId, &[u8])>,
        view: impl FnOnce(RecordRef<'_>) -> T,
    ) -> Result<T, OpenError> {
        let (id, offset) = location.split(self.segment_bytes);
        let Some(segment) = self.segments.get(&id) else {
            unreachable!("segment {} was never scanned", id.0)
        };
        let gone = |flaw: Flaw| segment.corrupt(offset, flaw.to_string());
        if let Some((_, loaded)) = current.filter(|(current, _)| *current == id) {
            let record = RecordRef::check(&loaded[offset as usize..], segment.place, offset);
            return record.map(view).map_err(gone);
        }
        let start = segment.file.segment_offset(id) + u64::from(offset);
        // It was read whole, and so is what lies behind it in the segment.
        let room = (self.segment_bytes - offset) as usize;
        let guess = room.min(RECORD_GUESS_BYTES);
        self.scratch.resize(guess, 0);
        read(&segment.file, &mut self.scratch, start)?;
        let sizes = Extents::read(&self.scratch, room).map_err(gone)?;
        self.scratch.resize(sizes.len, 0);
        if sizes.len > guess {
            read(&segment.file, &mut self.scratch[guess..], start + guess as u64)?;
        }
        let record = RecordRef::check(&self.scratch, segment.place, offset);
        record.map(view).map_err(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE_OF: ([u8; 16], SegmentId, Generation) = ([7; 16], SegmentId(1), Generation(1));

    #[test]
    fn counting_what_is_no_record_costs_a_few_times_its_bytes() {
        let (store_id, segment, generation) = PLACE_OF;
        let place = Place::segment(&store_id, segment, generation);
        // Every sixteen bytes begin a record whose head has 128 KiB.
        let mut unit = [7_u8; 16];
        unit[..4].copy_from_slice(&131_200_u32.to_le_bytes());
        unit[10..12].fill(255);
        unit[14..].fill(255);
        let bytes: Vec<u8> = unit.iter().copied().cycle().take(1 << 20).collect();
        let counted = count_records(&bytes, place, DATA_START);
        assert_eq!(counted.records, 0);
        assert!(counted.checksummed > bytes.len() / 2, "they do look like records");
        assert!(counted.checksummed <= 4 * bytes.len(), "{} bytes", counted.checksummed);
    }

    #[test]
    fn the_last_byte_is_found_wherever_it_is() {
        let mut bytes = vec![0; 10_000];
        assert_eq!(last_written(&bytes), None);
        for at in [0, 1, 1807, 1808, 5903, 5904, 9999] {
            bytes[at] = 1;
            assert_eq!(last_written(&bytes), Some(at));
        }
    }
}
