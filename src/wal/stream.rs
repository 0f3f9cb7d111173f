//! A stream of segments: the one that is being filled, and what is known of it when it is sealed; and
//! what all streams together have left.

use std::sync::Arc;
use std::time::Duration;

use super::class::Class;
use super::data_file::DataFile;
use super::segments::Segment;
use crate::format::index::{self, ENTRY_BYTES, Entry};
use crate::format::record::Draft;
use crate::format::segment::{DATA_START, Trailer};
use crate::sys::extent::ExtentWriter;
use crate::types::{SegmentId, Timestamp};

/// How much the lane has, and wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Supply {
    pub(crate) prepared: u64,
    pub(crate) held: u64,
    pub(crate) appended_bytes: u64,
    /// Bytes of records in active and sealed segments.
    pub(crate) used_bytes: u64,
    /// Whether there is no hurry to recycle.
    pub(crate) is_ample: bool,
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

#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) writer: ExtentWriter,
    pub(super) max_expires: Timestamp,
    pub(super) due: Timestamp,
    pub(super) latest: Timestamp,
    /// The entries of its index so far.
    pub(super) index: Index,
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
        order: u64,
        activation: u64,
    ) -> Self {
        Self {
            segment,
            writer,
            max_expires: Timestamp::default(),
            due: Timestamp::default(),
            latest: Timestamp::default(),
            index: Index::default(),
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
        self.index.push(&draft.entry(offset));
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

    /// The index, and what is written behind it when the segment is sealed as it is.
    pub(super) fn index_and_trailer(&self, class: Class) -> (Vec<u8>, Trailer) {
        let index = self.index.to_vec();
        let trailer = Trailer {
            entries: self.index.len() / ENTRY_BYTES as u32,
            entries_crc: index::checksum(&index, self.segment.place),
            data_end: self.writer.filled(),
            content: class.content(),
            generation: self.segment.generation,
            max_expires: self.max_expires,
            due: self.due,
            latest: self.latest,
        };
        (index, trailer)
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

/// The entries of an index that grows without being moved.
#[derive(Debug, Default)]
pub(super) struct Index {
    pieces: Vec<Vec<u8>>,
    len: u32,
}

/// Bytes of a piece.
const PIECE_BYTES: usize = 1024 * ENTRY_BYTES;

impl Index {
    /// Bytes of all entries.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    fn push(&mut self, entry: &Entry) {
        let entry = entry.encode();
        match self.pieces.last_mut().filter(|piece| piece.len() < PIECE_BYTES) {
            Some(piece) => piece.extend_from_slice(&entry),
            None => {
                let mut piece = Vec::with_capacity(PIECE_BYTES);
                piece.extend_from_slice(&entry);
                self.pieces.push(piece);
            }
        }
        self.len += ENTRY_BYTES as u32;
    }

    fn to_vec(&self) -> Vec<u8> {
        self.pieces.concat()
    }
}
