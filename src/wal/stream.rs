//! A stream of segments: the one that is being filled, and what is known of it when it is sealed; and
//! what all streams together have left.

use std::sync::Arc;
use std::time::Duration;

use super::class::Class;
use super::data_file::DataFile;
use super::segments::Segment;
use crate::format::draft::Draft;
use crate::format::index::{self, ENTRY_BYTES};
use crate::format::record::{HEADER_BYTES, padded};
use crate::format::segment::{DATA_START, Trailer};
use crate::sys::extent::ExtentWriter;
use crate::sys::prefetch::prefetch;
use crate::types::{SegmentId, Timestamp};

/// How much the lane has, and wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Supply {
    pub(crate) prepared: u64,
    pub(crate) held: u64,
    /// Bytes of prepared segments that claims may use.
    pub(crate) free_bytes: u64,
    pub(crate) appended_bytes: u64,
    /// Bytes of records in active and sealed segments.
    pub(crate) used_bytes: u64,
    /// Whether there is no hurry to recycle.
    pub(crate) is_ample: bool,
    /// Whether there is less than was asked for as headroom, or than there should be without it.
    pub(crate) lacks_headroom: bool,
    /// Whether the store should grow before it must.
    pub(crate) is_low: bool,
    /// Whether it should hurry.
    pub(crate) is_scarce: bool,
    /// Whether it must, for the next claim to be granted.
    pub(crate) is_short: bool,
}

/// A sealed segment, handed over when it is durable in full.
#[derive(Clone, Debug)]
pub(crate) struct SealedSegment {
    pub(crate) id: SegmentId,
    pub(crate) file: Arc<DataFile>,
    pub(crate) is_claims: bool,
    /// Where its data end.
    pub(crate) end: u32,
    /// Entries of its index.
    pub(crate) entries: u32,
    /// When its last record has had its time.
    pub(crate) due: Timestamp,
    /// Whether recovery found it. Of such segments of claims it is not known in which order they were
    /// filled: generations tell only roughly.
    pub(crate) is_found: bool,
    /// Of claims: its number in the order in which they were filled. Of completions: how many
    /// segments of claims there were when it was sealed; it outlives all of them (R4).
    pub(crate) order: u64,
}

impl SealedSegment {
    /// What its records and their index take.
    pub(crate) fn bytes(&self) -> u64 {
        u64::from(self.end - DATA_START) + u64::from(self.entries) * ENTRY_BYTES as u64
    }
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) class: Class,
    pub(super) active: Option<Active>,
}

/// In this order, and on lines of its own: what every append reads and changes is one line.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) writer: ExtentWriter,
    /// The entries of its index so far.
    pub(super) index: Index,
    pub(super) max_expires: Timestamp,
    pub(super) due: Timestamp,
    pub(super) latest: Timestamp,
    /// Of claims: its number.
    pub(super) order: u64,
    /// How many segments had become active before it.
    pub(super) activation: u64,
    /// When maintenance first saw it, by the monotonic clock.
    pub(super) seen: Option<Duration>,
}

impl Active {
    pub(super) fn new(
        segment: Arc<Segment>,
        writer: ExtentWriter,
        index: Index,
        order: u64,
        activation: u64,
    ) -> Self {
        Self {
            segment,
            writer,
            max_expires: Timestamp::default(),
            due: Timestamp::default(),
            latest: Timestamp::default(),
            index,
            order,
            activation,
            seen: None,
        }
    }

    /// Notes a record that was written at `offset`.
    pub(super) fn note(&mut self, draft: &Draft<'_>, offset: u32) {
        self.max_expires = self.max_expires.max(draft.expires());
        self.due = self.due.max(draft.due());
        self.latest = self.latest.max(draft.witnessed());
        self.index.push(&draft.encoded_entry(offset));
    }

    /// Ends the segment as it is. Of completions `order` tells what it outlives.
    pub(super) fn end(self, class: Class, claims: u64) -> Ended {
        let is_claims = class == Class::Claims;
        let sealed = SealedSegment {
            id: self.segment.id,
            file: Arc::clone(&self.segment.file),
            is_claims,
            end: self.writer.filled(),
            entries: self.index.len() / ENTRY_BYTES as u32,
            due: self.due,
            is_found: false,
            order: if is_claims { self.order } else { claims },
        };
        Ended { segment: Arc::clone(&self.segment), sealed, tail: Some((self, class)) }
    }

    /// What is written behind the index when the segment is sealed as it is.
    pub(super) fn trailer(&self, class: Class) -> Trailer {
        Trailer {
            entries: self.index.len() / ENTRY_BYTES as u32,
            entries_crc: index::checksum(self.index.bytes(), self.segment.place),
            data_end: self.writer.filled(),
            content: class.content(),
            generation: self.segment.generation,
            max_expires: self.max_expires,
            due: self.due,
            latest: self.latest,
        }
    }
}

/// A segment that takes no more records, and has no index yet: nobody waits for it to be written.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) segment: Arc<Segment>,
    pub(super) sealed: SealedSegment,
    /// What is to be written; not there while somebody does.
    pub(super) tail: Option<(Active, Class)>,
}

/// The entries of an index to be, in memory that is used again for the next one.
#[derive(Debug)]
pub(super) struct Index {
    bytes: Vec<u8>,
}

impl Index {
    /// An empty one, with room for all records that fit a segment.
    pub(super) fn new(segment_bytes: u32) -> Self {
        let entries = segment_bytes as usize / (RECORD_BYTES_MIN + ENTRY_BYTES);
        Self { bytes: Vec::with_capacity(entries * ENTRY_BYTES) }
    }

    /// An empty one whose memory is there: filling it takes no page faults.
    pub(super) fn ready(segment_bytes: u32) -> Self {
        let mut index = Self::new(segment_bytes);
        // There is room for the shortest records; those of keys of 36 bytes need two thirds of it.
        let touched = (index.bytes.capacity() / 3 * 2).min(READY_BYTES_MAX);
        // Not zeros: those would be pages that are not there yet.
        index.bytes.resize(touched, 1);
        index.emptied()
    }

    /// The same memory for another segment.
    pub(super) fn emptied(mut self) -> Self {
        self.bytes.clear();
        self
    }

    /// Bytes of all entries.
    pub(super) fn len(&self) -> u32 {
        // A part of a segment.
        self.bytes.len() as u32
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn push(&mut self, entry: &[u8; ENTRY_BYTES]) {
        self.bytes.extend_from_slice(entry);
        // Of what comes next, see `ExtentWriter::prefetch_next`.
        prefetch(self.bytes.as_ptr_range().end.wrapping_add(ENTRY_BYTES));
    }
}

/// The shortest record.
const RECORD_BYTES_MIN: usize = padded(HEADER_BYTES + 1);
/// Of very large segments only so much is made ready.
const READY_BYTES_MAX: usize = 2 << 20;
