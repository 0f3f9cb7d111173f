//! Data files: a preallocated file of many segments.
//!
//! ```text
//! | header page 4 KiB | seven mark slots of 4 KiB | segment | segment | ... |
//! ```
//!
//! ```text
//! header  0  magic 8 | major 2 | minor 2 | file 4 | store id 16
//!        32  first segment 4 | segments 4 | segment_bytes 4 | zeros 16 | crc 4
//! ```
//!
//! A file never changes its length. The marks ([`super::mark`]) stand in the file, because a round
//! syncs the file and nothing else; and apart from the segments, so that no single bad page takes a
//! record and the mark that vouches for it.

use super::mark::SLOTS;
use super::{FORMAT_MAJOR, FORMAT_MINOR, Fields, FieldsMut, PAGE_BYTES, ROLE_FILE};
use crate::checksum::{Place, crc32};
use crate::types::{FileId, SegmentId};

pub(crate) const HEADER_BYTES: usize = 64;
/// Where the first segment starts.
pub(crate) const SEGMENTS_START: u64 = ((1 + SLOTS) * PAGE_BYTES) as u64;

/// A store has at most this many data files.
pub(crate) const FILES_MAX: u32 = 16_384;
/// Segments of a store's first file; each next one doubles. Claims and completions fill one each,
/// and some are kept for exits.
pub(crate) const SEGMENTS_FIRST: u32 = 8;
/// Segments of a file at most.
pub(crate) const SEGMENTS_MAX: u32 = 256;

const MAGIC: [u8; 8] = *b"RFRNdata";
const NAME_PREFIX: &str = "data-";

/// The name of a data file on disk.
pub(crate) fn name(file: FileId) -> String {
    format!("{NAME_PREFIX}{:05}", file.0)
}

/// Which data file bears this name, if any does.
pub(crate) fn id_of_name(text: &str) -> Option<FileId> {
    let id = FileId(text.strip_prefix(NAME_PREFIX)?.parse().ok()?);
    (id.0 < FILES_MAX && name(id) == text).then_some(id)
}

/// Where mark slot `slot` starts in its file.
pub(crate) const fn mark_offset(slot: usize) -> u64 {
    ((1 + slot % SLOTS) * PAGE_BYTES) as u64
}

/// The first bytes of a data file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) file: FileId,
    pub(crate) first: SegmentId,
    pub(crate) segments: u32,
    pub(crate) segment_bytes: u32,
}

/// Why a data file cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("the file header is damaged")]
    Damaged,
    #[error("the file belongs to another store")]
    Store,
    #[error("the file is data file {0} under a wrong name")]
    Misnamed(u32),
}

impl Header {
    /// Length of the whole file.
    pub(crate) fn file_bytes(&self) -> u64 {
        SEGMENTS_START + u64::from(self.segments) * u64::from(self.segment_bytes)
    }

    /// One past its last segment.
    pub(crate) fn end(&self) -> SegmentId {
        SegmentId(self.first.0 + self.segments)
    }

    /// Its segments.
    pub(crate) fn ids(&self) -> impl Iterator<Item = SegmentId> {
        (self.first.0..self.end().0).map(SegmentId)
    }

    pub(crate) fn encode(&self, store_id: &[u8; 16]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        FieldsMut::new(&mut bytes)
            .put(&MAGIC)
            .u16(FORMAT_MAJOR)
            .u16(FORMAT_MINOR)
            .u32(self.file.0)
            .put(store_id)
            .u32(self.first.0)
            .u32(self.segments)
            .u32(self.segment_bytes)
            .zeros(16);
        let crc = Self::crc(&bytes, store_id);
        FieldsMut::new(&mut bytes[HEADER_BYTES - 4..]).u32(crc);
        bytes
    }

    fn crc(bytes: &[u8; HEADER_BYTES], store_id: &[u8; 16]) -> u32 {
        let place = Place::part(store_id, ROLE_FILE, 0);
        crc32(&bytes[..HEADER_BYTES - 4]) ^ place.mask(0, HEADER_BYTES as u32)
    }

    /// Gives the bytes the checksum that they have, for the store that they name.
    #[cfg(feature = "test-util")]
    pub(crate) fn seal(bytes: &mut [u8; HEADER_BYTES]) {
        let crc = Self::crc(bytes, &Self::owner_named(bytes));
        FieldsMut::new(&mut bytes[HEADER_BYTES - 4..]).u32(crc);
    }

    /// The store that the bytes of a header name, be they valid or not.
    pub(crate) fn owner_named(bytes: &[u8; HEADER_BYTES]) -> [u8; 16] {
        Fields::new(&bytes[16..]).array()
    }

    /// Reads the header that should be data file `expected`'s.
    pub(crate) fn decode(
        bytes: &[u8; HEADER_BYTES],
        store_id: &[u8; 16],
        expected: FileId,
    ) -> Result<Self, Flaw> {
        let mut fields = Fields::new(bytes);
        let (magic, major, _minor) = (fields.array::<8>(), fields.u16(), fields.u16());
        let file = FileId(fields.u32());
        let owner: [u8; 16] = fields.array();
        let first = SegmentId(fields.u32());
        let (segments, segment_bytes) = (fields.u32(), fields.u32());
        let rest_is_zero = fields.zeros(16);
        let known = magic == MAGIC && major == FORMAT_MAJOR;
        if Self::crc(bytes, &owner) != fields.u32() || !known || !rest_is_zero {
            return Err(Flaw::Damaged);
        }
        if owner != *store_id {
            return Err(Flaw::Store);
        }
        if file != expected {
            return Err(Flaw::Misnamed(file.0));
        }
        let end = first.0.checked_add(segments);
        if !(1..=SEGMENTS_MAX).contains(&segments) || end.is_none() {
            return Err(Flaw::Damaged);
        }
        Ok(Self { file, first, segments, segment_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_and_every_flipped_bit_is_noticed() {
        let header =
            Header { file: FileId(3), first: SegmentId(28), segments: 32, segment_bytes: 4 << 20 };
        let bytes = header.encode(&[2; 16]);
        assert_eq!(Header::decode(&bytes, &[2; 16], FileId(3)), Ok(header));
        assert_eq!(Header::owner_named(&bytes), [2; 16]);
        assert_eq!(Header::decode(&bytes, &[2; 16], FileId(4)), Err(Flaw::Misnamed(3)));
        assert_eq!(Header::decode(&bytes, &[1; 16], FileId(3)), Err(Flaw::Store));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, &[2; 16], FileId(3)).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn names_and_ids_belong_together() {
        assert_eq!(name(FileId(7)), "data-00007");
        assert_eq!(id_of_name("data-00007"), Some(FileId(7)));
        for other in ["data-7", "data-0000x", "META", "data-", "data-+0007", "data-16384"] {
            assert_eq!(id_of_name(other), None, "{other}");
        }
    }
}
