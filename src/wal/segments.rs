//! Segments in use: which file they lie in, and how far they are filled and durable.
//!
//! Readers come here with a location and get a record. They take no lock.
//!
//! Invariants
//! - W1  The bytes of a segment below its filled part's end are never written again while anybody
//!   can read them under the pin he found them with; so a record once returned stays what it is.
//! - W2  `durable` is at or below the filled part's end, and everything below it was synced.

use std::sync::Arc;

use super::data_file::DataFile;
use crate::checksum::Place;
use crate::chunked::Chunked;
use crate::error::StoreError;
use crate::format::record::{Extents, Flaw, HEADER_BYTES, is_skippable, padded};
use crate::format::record_ref::RecordRef;
use crate::sys::extent::Extent;
use crate::sys::kept::{Hold, KeptBytes};
use crate::sys::pin::{Pin, Shelf};
use crate::sys::sync::atomic::{AtomicU8, AtomicU32, Ordering};
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
    /// Up to where the page faults of filling it were taken since the last sync. A hint.
    ready: AtomicU32,
    /// Of the lane that fills it, or did, in this open. Written under the lane's lock, before any record in it.
    lane: AtomicU8,
}

/// Not a lane's number.
const NO_LANE: u8 = u8::MAX;

impl Segment {
    /// The segment as recovery found it, or as it was prepared: `filled` bytes are final, and all
    /// of them durable. `None` while somebody may still read what it was before.
    pub(crate) fn new(
        store_id: &[u8; 16],
        file: Arc<DataFile>,
        id: SegmentId,
        generation: Generation,
        filled: u32,
    ) -> Option<Arc<Self>> {
        let extent = Arc::new(file.extent(id, filled)?);
        let (place, durable) = (Place::segment(store_id, id, generation), AtomicU32::new(filled));
        let (ready, lane) = (AtomicU32::new(0), AtomicU8::new(NO_LANE));
        Some(Arc::new(Self { id, generation, place, file, extent, durable, ready, lane }))
    }

    /// The lane of this number fills it.
    pub(super) fn set_lane(&self, lane: usize) {
        // There are few.
        self.lane.store(lane as u8, Ordering::Relaxed);
    }

    /// The lane that filled it in this open. Relaxed: who knows of a record in it has seen that.
    #[inline]
    fn lane(&self) -> Option<usize> {
        let lane = self.lane.load(Ordering::Relaxed);
        (lane != NO_LANE).then_some(usize::from(lane))
    }

    pub(crate) fn durable(&self) -> u32 {
        self.durable.load(Ordering::Acquire)
    }

    /// Everything below `end` was synced.
    pub(crate) fn set_durable(&self, end: u32) {
        self.durable.fetch_max(end, Ordering::Release);
    }

    /// Takes the page faults of filling it up to `to` that were not taken since the last sync.
    pub(super) fn make_ready(&self, to: u64) {
        let to = u32::try_from(to).unwrap_or(u32::MAX);
        let from = self.ready.fetch_max(to, Ordering::Relaxed);
        if from < to {
            self.extent.prefault(from, to);
        }
    }

    /// A sync has cleaned its pages.
    pub(super) fn note_sync(&self) {
        self.ready.store(0, Ordering::Relaxed);
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
    fn record(&self, offset: u32) -> Result<RecordRef<'_>, Flaw> {
        let bytes = self.extent.bytes_from(offset).ok_or(Flaw::Length)?;
        RecordRef::check(bytes, self.place, offset)
    }

    /// The record at `offset`, and where the next one starts. `None` in its place: it is of a kind
    /// that this version may pass over.
    pub(crate) fn step(&self, offset: u32) -> Result<(Option<RecordRef<'_>>, u32), StoreError> {
        let found = match self.record(offset) {
            Ok(record) => Some(record),
            Err(flaw) if is_skippable(flaw) => None,
            Err(flaw) => return Err(self.corrupt(offset, flaw)),
        };
        let header = self.extent.bytes(offset, offset + HEADER_BYTES as u32);
        let sizes = Extents::read(header.unwrap_or_default(), usize::MAX);
        let sizes = sizes.map_err(|flaw| self.corrupt(offset, flaw))?;
        // It lies within the segment, as was checked above.
        Ok((found, offset + padded(sizes.len) as u32))
    }
}

/// All segments of a store that hold records or are to be filled, by number. Those that are being
/// recycled are not there.
#[derive(Debug)]
pub(crate) struct Segments {
    segment_bytes: u32,
    shelves: Chunked<Shelf<Segment>>,
}

impl Segments {
    pub(crate) fn new(segment_bytes: u32) -> Self {
        Self { segment_bytes, shelves: Chunked::new(2) }
    }

    pub(crate) fn segment_bytes(&self) -> u32 {
        self.segment_bytes
    }

    /// Enters a segment.
    pub(crate) fn add(&self, segment: Arc<Segment>) {
        self.shelves.ensure(segment.id.0).put(segment);
    }

    /// Takes a segment out, once no location in any table names it and no pin remembers one.
    pub(crate) fn remove(&self, id: SegmentId) {
        self.shelves.ensure(id.0).take();
    }

    #[inline]
    pub(crate) fn get<'p>(&'p self, id: SegmentId, pin: &'p Pin) -> Option<&'p Segment> {
        self.shelves.get(id.0)?.get(pin)
    }

    /// The record at `location`, which was found under `pin`, checked whole but for its body. All its lines are asked for at
    /// once: whoever checks the first one, and then the next, would wait for each.
    #[inline]
    pub(crate) fn record<'p>(
        &'p self,
        location: Location,
        pin: &'p Pin,
    ) -> Result<RecordRef<'p>, StoreError> {
        let (id, offset) = location.split(self.segment_bytes);
        let segment = self.known(id, pin);
        segment.extent.prefetch(offset);
        segment.record(offset).map_err(|flaw| segment.corrupt(offset, flaw))
    }

    /// Asks for the memory of the front of the record at `location`.
    #[inline]
    pub(crate) fn prefetch(&self, location: Location, pin: &Pin) {
        let (id, offset) = location.split(self.segment_bytes);
        if let Some(segment) = self.get(id, pin) {
            segment.extent.prefetch(offset);
        }
    }

    /// Checks the body of a record that came from `location`.
    #[inline]
    pub(crate) fn check_body(
        &self,
        record: RecordRef<'_>,
        location: Location,
        pin: &Pin,
    ) -> Result<(), StoreError> {
        record.check_body().map_err(|flaw| {
            let (id, offset) = location.split(self.segment_bytes);
            self.known(id, pin).corrupt(offset, flaw)
        })
    }

    /// The body of a record that came from `location`, to be kept beyond the pin.
    pub(crate) fn keep_body(
        &self,
        record: RecordRef<'_>,
        location: Location,
        pin: &Pin,
        hold: Arc<Hold>,
    ) -> Option<KeptBytes> {
        let (id, _) = location.split(self.segment_bytes);
        KeptBytes::new(&self.known(id, pin).extent, record.body(), hold)
    }

    /// The lane of the record at `location`, if it was appended in this open.
    #[inline]
    pub(crate) fn lane_of(&self, location: Location, pin: &Pin) -> Option<usize> {
        self.known(location.split(self.segment_bytes).0, pin).lane()
    }

    /// Whether the record at `location` survives power loss.
    pub(crate) fn is_durable(&self, location: Location, pin: &Pin) -> bool {
        let (id, offset) = location.split(self.segment_bytes);
        // A record ends within its segment and starts at its durable end at the earliest when it
        // is not durable: records become durable whole.
        offset < self.known(id, pin).durable()
    }

    /// A segment that some location names which was found under `pin`: locations come from appends
    /// and from recovery, and a segment goes when no table has one in it.
    #[inline]
    fn known<'p>(&'p self, id: SegmentId, pin: &'p Pin) -> &'p Segment {
        match self.get(id, pin) {
            Some(segment) => segment,
            None => unreachable!("no record lies in segment {}", id.0),
        }
    }
}
