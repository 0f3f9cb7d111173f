//! Segments in use: which file they lie in, and how far they are filled and durable.
//!
//! Readers come here with a location and get a record. They take no lock.
//!
//! Invariants
//! - W1  The bytes of a segment below its filled part's end are never written again while it bears
//!   its generation; so a record once returned stays what it is.
//! - W2  `durable` is at or below the filled part's end, and everything below it was synced.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use super::data_file::DataFile;
use crate::checksum::Place;
use crate::chunked::Chunked;
use crate::error::StoreError;
use crate::format::record::{Extents, Flaw, HEADER_BYTES, Record};
use crate::sys::extent::Extent;
use crate::types::{Generation, Location, SegmentId};

/// One segment in one generation.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) id: SegmentId,
    pub(crate) generation: Generation,
    /// What its records' checksums are bound to.
    pub(crate) place: Place,
    pub(crate) file: Arc<DataFile>,
    pub(crate) extent: Arc<Extent>,
    /// W2. Release by the leader of a round after its sync; Acquire by readers.
    durable: AtomicU32,
}

impl Segment {
    /// The segment as recovery found it, or as it was prepared: `filled` bytes are final, and all
    /// of them durable.
    pub(crate) fn new(
        store_id: &[u8; 16],
        file: Arc<DataFile>,
        id: SegmentId,
        generation: Generation,
        filled: u32,
    ) -> Self {
        Self {
            id,
            generation,
            place: Place::segment(store_id, id, generation),
            extent: Arc::new(file.extent(id, filled)),
            file,
            durable: AtomicU32::new(filled),
        }
    }

    pub(crate) fn durable(&self) -> u32 {
        self.durable.load(Ordering::Acquire)
    }

    /// Everything below `end` was synced.
    pub(crate) fn set_durable(&self, end: u32) {
        self.durable.fetch_max(end, Ordering::Release);
    }

    /// Where a record at `offset` lies in the file.
    pub(crate) fn file_offset(&self, offset: u32) -> u64 {
        self.file.segment_offset(self.id) + u64::from(offset)
    }

    fn corrupt(&self, offset: u32, flaw: Flaw) -> StoreError {
        StoreError::Corrupt {
            path: self.file.path().to_owned(),
            offset: self.file_offset(offset),
            what: flaw.to_string(),
        }
    }

    /// The record at `offset`, checked whole but for its body.
    #[inline]
    fn record(&self, offset: u32) -> Result<Record<'_>, Flaw> {
        let header_end = offset.saturating_add(HEADER_BYTES as u32);
        let header = self.extent.bytes(offset, header_end).ok_or(Flaw::Length)?;
        let room = self.extent.filled() - offset;
        let sizes = Extents::read(header, room as usize)?;
        // `read` keeps the length within the filled part.
        let end = offset + sizes.len as u32;
        let bytes = self.extent.bytes(offset, end).ok_or(Flaw::Length)?;
        Record::decode(bytes, self.place, offset)
    }
}

/// All segments of a store, by number.
#[derive(Debug)]
pub(crate) struct Segments {
    segment_bytes: u32,
    slots: Chunked<OnceLock<Segment>>,
}

impl Segments {
    pub(crate) fn new(segment_bytes: u32) -> Self {
        Self { segment_bytes, slots: Chunked::new(2) }
    }

    pub(crate) fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    /// Enters a segment. Each number is entered once.
    pub(crate) fn add(&self, segment: Segment) {
        let slot = self.slots.ensure(segment.id.0);
        let entered = slot.set(segment);
        debug_assert!(entered.is_ok(), "a segment is entered once");
    }

    #[inline]
    pub(crate) fn get(&self, id: SegmentId) -> Option<&Segment> {
        self.slots.get(id.0)?.get()
    }

    /// The record at `location`, checked whole but for its body.
    #[inline]
    pub(crate) fn record(&self, location: Location) -> Result<Record<'_>, StoreError> {
        let (id, offset) = location.split(self.segment_bytes);
        let segment = self.known(id);
        segment.record(offset).map_err(|flaw| segment.corrupt(offset, flaw))
    }

    /// Checks the body of a record that came from `location`.
    #[inline]
    pub(crate) fn check_body(
        &self,
        record: &Record<'_>,
        location: Location,
    ) -> Result<(), StoreError> {
        record.check_body().map_err(|flaw| {
            let (id, offset) = location.split(self.segment_bytes);
            self.known(id).corrupt(offset, flaw)
        })
    }

    /// Whether the record at `location` survives power loss.
    pub(crate) fn is_durable(&self, location: Location) -> bool {
        let (id, offset) = location.split(self.segment_bytes);
        // A record ends within its segment and starts at its durable end at the earliest when it
        // is not durable: records become durable whole.
        offset < self.known(id).durable()
    }

    /// A segment that some location names: locations come from appends and from recovery only.
    #[inline]
    fn known(&self, id: SegmentId) -> &Segment {
        match self.get(id) {
            Some(segment) => segment,
            None => unreachable!("no record was ever written to segment {}", id.0),
        }
    }
}
