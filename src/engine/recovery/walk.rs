//! Going over a damaged segment: every record that is there, whatever lies between.
//!
//! A record is looked for at every place at which one can begin, and its checksum, which is bound
//! to the place and the generation, tells. What looks like a length costs no more than the checksum
//! of a head.

use std::ops::Range;
use std::path::Path;

use super::scan::last_written;
use crate::checksum::Place;
use crate::error::OpenError;
use crate::format::record::{self, Extents, Flaw, HEADER_BYTES, padded};
use crate::format::record_ref::RecordRef;
use crate::format::segment::{DATA_START, TRAILER_BYTES, Trailer, data_limit};
use crate::format::{FORMAT_MAJOR, FORMAT_MINOR};
use crate::types::{Generation, Location, Timestamp};

/// What a segment holds, read under one generation.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) generation: Generation,
    pub(super) place: Place,
    pub(super) trailer: Option<Trailer>,
    /// Where records begin and end, and whether their bodies are whole.
    pub(super) found: Vec<(Range<u32>, bool)>,
    /// Where the first place is that holds no whole record.
    pub(super) strict_end: u32,
    /// Where the first place is that holds no record.
    pub(super) loose_end: u32,
    pub(super) max_expires: Timestamp,
    /// There is something with a right checksum that no version of this writes.
    pub(super) is_strange: bool,
}

impl Walk {
    /// Goes over a segment, at 16-byte steps where there is no record.
    pub(super) fn over(
        buffer: &[u8],
        path: &Path,
        place: Place,
        generation: Generation,
    ) -> Result<Self, OpenError> {
        // Segments have at most 64 MiB.
        let segment_bytes = buffer.len() as u32;
        let tail = tail(buffer);
        let trailer = tail.and_then(|tail| Trailer::decode(tail, place, generation, segment_bytes));
        let limit = trailer.map_or(data_limit(segment_bytes), |trailer| trailer.data_end);
        let limit = limit as usize;
        let written = last_written(&buffer[..limit]).map_or(0, |last| last + 1);
        let mut walk = Self {
            generation,
            place,
            trailer,
            found: Vec::new(),
            strict_end: DATA_START,
            loose_end: DATA_START,
            max_expires: Timestamp::default(),
            is_strange: false,
        };
        let (mut is_strict, mut is_loose) = (true, true);
        let mut at = DATA_START as usize;
        while at < written && at + HEADER_BYTES <= limit {
            let sizes = Extents::read(&buffer[at..limit], limit - at);
            let Some(sizes) = sizes.ok().filter(Extents::is_plausible) else {
                (is_strict, is_loose) = (false, false);
                at += Location::UNIT_BYTES;
                continue;
            };
            // Offsets within a segment.
            let range = at as u32..(at + padded(sizes.len)).min(limit) as u32;
            match RecordRef::check(&buffer[at..at + sizes.len], place, range.start) {
                Ok(record) => {
                    let is_whole = record.check_body().is_ok();
                    is_strict &= is_whole;
                    walk.max_expires = walk.max_expires.max(record.expires());
                    walk.found.push((range.clone(), is_whole));
                }
                Err(flaw) if record::is_skippable(flaw) => {}
                Err(Flaw::Kind(kind)) => {
                    return Err(OpenError::UnsupportedFormat {
                        path: path.to_owned(),
                        major: FORMAT_MAJOR,
                        minor: FORMAT_MINOR,
                        features: u64::from(kind),
                        supported: FORMAT_MAJOR,
                    });
                }
                Err(flaw) => {
                    walk.is_strange |= matches!(flaw, Flaw::Reserved | Flaw::Ext);
                    (is_strict, is_loose) = (false, false);
                    at += Location::UNIT_BYTES;
                    continue;
                }
            }
            at = range.end as usize;
            if is_loose {
                walk.loose_end = range.end;
            }
            if is_strict {
                walk.strict_end = range.end;
            }
        }
        Ok(walk)
    }

    /// Whether nothing speaks for the generation.
    pub(super) fn is_blank(&self) -> bool {
        self.found.is_empty() && self.trailer.is_none()
    }
}

/// Where the trailer of a segment is.
pub(super) fn tail(buffer: &[u8]) -> Option<&[u8; TRAILER_BYTES]> {
    let start = buffer.len().checked_sub(TRAILER_BYTES)?;
    buffer[start..].try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::SegmentId;

    #[test]
    fn bytes_that_look_like_records_cost_little() {
        let place = Place::segment(&[7; 16], SegmentId(1), Generation(1));
        // Every sixteen bytes begin a record whose head has 128 KiB, or one of 4 KiB.
        for key_len in [u16::MAX, 4096] {
            let mut unit = [7_u8; 16];
            unit[..4].copy_from_slice(&131_200_u32.to_le_bytes());
            unit[10..12].copy_from_slice(&key_len.to_le_bytes());
            unit[14..].fill(0);
            let bytes: Vec<u8> = unit.iter().copied().cycle().take(256 << 10).collect();
            let walk = Walk::over(&bytes, Path::new("a file"), place, Generation(1)).unwrap();
            assert!(walk.is_blank());
            assert_eq!((walk.strict_end, walk.loose_end), (DATA_START, DATA_START));
        }
    }
}
