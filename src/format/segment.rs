//! Segments: one fixed-size piece of a data file, filled with records front to back.
//!
//! ```text
//! | header 64 B | zeros to 512 | record | record | ... | 16 zeros | ... | index | trailer 64 B |
//! ```
//!
//! ```text
//! header   0  magic 4 | version 2 | header_len 2 | store id 16 | segment 4 | lane 2 | class 2
//!         32  generation 8 | created_ms 8 | ttl_ceiling_ms 8 | state 4 | crc 4
//! trailer  0  magic 4 | entries 4 | data_end 4 | class 4 | generation 8 | max_expires_ms 8
//!         32  due_ms 8 | latest_ms 8 | zeros 8 | entries_crc 4 | crc 4
//! ```
//!
//! The header has a sector of its own, so that writing it never shares an atomic unit with the
//! first record. It is written and synced before the first record of its generation (R2, R16), so
//! a segment of a listed file always has a valid header: a bad one is damage.
//!
//! The trailer is written when the segment is sealed, and says where the data end. It is valid iff
//! its checksum matches and its generation is the header's. `entries` counts the entries of the
//! index in front of it ([`super::index`]); with none, the segment is scanned.
//!
//! A prepared segment serves whichever stream needs one next, so its header does not say which: lane,
//! class and ttl ceiling are zero there, and the class stands in the trailer (0: claims, 1:
//! completions; docs/decisions/0014-recycling.md). `state` is 1 in a segment that was used before:
//! behind its tail lie records of earlier generations, and only a terminator tells where it ends.

use super::record::TERMINATOR_BYTES;
use super::{Fields, FieldsMut, ROLE_SEGMENT, SECTOR_BYTES, index};
use crate::checksum::{Place, crc32};
use crate::types::{Generation, Location, SegmentId, Timestamp};

pub(crate) const HEADER_BYTES: usize = 64;
pub(crate) const TRAILER_BYTES: usize = 64;
/// Where the first record starts.
pub(crate) const DATA_START: u32 = SECTOR_BYTES as u32;

const MAGIC: [u8; 4] = *b"RFsg";
const TRAILER_MAGIC: [u8; 4] = *b"RFtr";
const VERSION: u16 = 1;

const _: () = {
    assert!(HEADER_BYTES <= SECTOR_BYTES);
    assert!(SECTOR_BYTES.is_multiple_of(Location::UNIT_BYTES));
    assert!((TRAILER_BYTES + TERMINATOR_BYTES).is_multiple_of(Location::UNIT_BYTES));
};

/// Where the last record must have ended, in a segment without an index.
pub(crate) const fn data_limit(segment_bytes: u32) -> u32 {
    segment_bytes - (TRAILER_BYTES + TERMINATOR_BYTES) as u32
}

/// Where the index of so many entries starts.
pub(crate) const fn index_offset(segment_bytes: u32, entries: u32) -> u32 {
    trailer_offset(segment_bytes).saturating_sub(entries * index::ENTRY_BYTES as u32)
}

/// Where the trailer starts.
pub(crate) const fn trailer_offset(segment_bytes: u32) -> u32 {
    segment_bytes - TRAILER_BYTES as u32
}

/// The first bytes of a segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) segment: SegmentId,
    pub(crate) generation: Generation,
    pub(crate) created: Timestamp,
    /// Whether the segment had records in an earlier generation.
    pub(crate) is_recycled: bool,
}

/// What the records of a segment are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Content {
    /// Claims and what ends them without an outcome; when room is scarce also completions.
    Claims,
    /// Completions, and what forgot them.
    Completions,
}

/// Why a segment's header or trailer is none.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("the segment header is damaged")]
    Header,
    #[error("the segment header belongs to another store")]
    Store,
    #[error("the segment header belongs elsewhere: to segment {0}")]
    Misplaced(u32),
}

fn place(store_id: &[u8; 16]) -> Place {
    Place::part(store_id, ROLE_SEGMENT, 0)
}

impl Header {
    pub(crate) fn encode(&self, store_id: &[u8; 16]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        FieldsMut::new(&mut bytes)
            .put(&MAGIC)
            .u16(VERSION)
            .u16(HEADER_BYTES as u16)
            .put(store_id)
            .u32(self.segment.0)
            .zeros(4)
            .u64(self.generation.0)
            .u64(self.created.ms())
            .zeros(8)
            .u32(u32::from(self.is_recycled));
        let crc = crc32(&bytes[..HEADER_BYTES - 4]) ^ place(store_id).mask(0, HEADER_BYTES as u32);
        FieldsMut::new(&mut bytes[HEADER_BYTES - 4..]).u32(crc);
        bytes
    }

    /// Gives the bytes the checksum that they have, for the store that they name, and says which generation.
    #[cfg(feature = "test-util")]
    pub(crate) fn seal(bytes: &mut [u8]) -> Generation {
        let (front, crc) = bytes.split_at_mut(HEADER_BYTES - 4);
        let owner: [u8; 16] = Fields::new(&front[8..]).array();
        let word = crc32(front) ^ place(&owner).mask(0, HEADER_BYTES as u32);
        FieldsMut::new(crc).u32(word);
        Generation(Fields::new(&front[32..]).u64())
    }

    /// Reads the header that should be segment `expected`'s.
    pub(crate) fn decode(
        bytes: &[u8; HEADER_BYTES],
        store_id: &[u8; 16],
        expected: SegmentId,
    ) -> Result<Self, Flaw> {
        let header = Self::decode_any(bytes, store_id)?;
        if header.segment != expected {
            return Err(Flaw::Misplaced(header.segment.0));
        }
        Ok(header)
    }

    /// Reads the header of whichever segment it is.
    pub(crate) fn decode_any(
        bytes: &[u8; HEADER_BYTES],
        store_id: &[u8; 16],
    ) -> Result<Self, Flaw> {
        let mut fields = Fields::new(bytes);
        let (magic, version, len) = (fields.array::<4>(), fields.u16(), fields.u16());
        let owner: [u8; 16] = fields.array();
        let segment = SegmentId(fields.u32());
        let stream_is_zero = fields.zeros(4);
        let generation = Generation(fields.u64());
        let created = Timestamp::from_ms(fields.u64());
        let ttl_is_zero = fields.zeros(8);
        let state = fields.u32();
        let crc = crc32(&bytes[..HEADER_BYTES - 4]) ^ place(&owner).mask(0, HEADER_BYTES as u32);
        let known = magic == MAGIC && version == VERSION && usize::from(len) == HEADER_BYTES;
        if crc != fields.u32()
            || !known
            || !stream_is_zero
            || !ttl_is_zero
            || state > 1
            || generation > Generation::MAX
        {
            return Err(Flaw::Header);
        }
        if owner != *store_id {
            return Err(Flaw::Store);
        }
        Ok(Self { segment, generation, created, is_recycled: state == 1 })
    }
}

/// The last bytes of a sealed segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Trailer {
    /// Entries of the index; with none, the segment has no index.
    pub(crate) entries: u32,
    pub(crate) entries_crc: u32,
    /// Where the data end: the offset behind the last record's pad.
    pub(crate) data_end: u32,
    pub(crate) content: Content,
    pub(crate) generation: Generation,
    /// The latest `expires` of all records.
    pub(crate) max_expires: Timestamp,
    /// When the last record has had its time here, see [`super::record::Record::due`].
    pub(crate) due: Timestamp,
    /// The latest time that a record bears witness to, see [`super::record::Record::witnessed`].
    pub(crate) latest: Timestamp,
}

impl Trailer {
    /// `place` is the segment's, in the trailer's generation.
    pub(crate) fn encode(&self, place: Place) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        FieldsMut::new(&mut bytes)
            .put(&TRAILER_MAGIC)
            .u32(self.entries)
            .u32(self.data_end)
            .u32(self.content as u32)
            .u64(self.generation.0)
            .u64(self.max_expires.ms())
            .u64(self.due.ms())
            .u64(self.latest.ms())
            .zeros(8)
            .u32(self.entries_crc);
        let crc = crc32(&bytes[..TRAILER_BYTES - 4]) ^ place.mask(0, TRAILER_BYTES as u32);
        FieldsMut::new(&mut bytes[TRAILER_BYTES - 4..]).u32(crc);
        bytes
    }

    /// Gives trailer and index at the end of a segment the checksums that they have.
    #[cfg(feature = "test-util")]
    pub(crate) fn seal(segment: &mut [u8], place: Place) {
        let (front, trailer) = segment.split_at_mut(segment.len() - TRAILER_BYTES);
        let entries = Fields::new(&trailer[4..]).u32() as usize;
        let from =
            entries.checked_mul(index::ENTRY_BYTES).and_then(|it| front.len().checked_sub(it));
        let Some(from) = from.filter(|_| trailer[..4] == TRAILER_MAGIC) else { return };
        FieldsMut::new(&mut trailer[TRAILER_BYTES - 8..])
            .u32(index::checksum(&front[from..], place));
        let crc = crc32(&trailer[..TRAILER_BYTES - 4]) ^ place.mask(0, TRAILER_BYTES as u32);
        FieldsMut::new(&mut trailer[TRAILER_BYTES - 4..]).u32(crc);
    }

    /// The trailer of the segment's present generation, if there is one.
    pub(crate) fn decode(
        bytes: &[u8; TRAILER_BYTES],
        place: Place,
        generation: Generation,
        segment_bytes: u32,
    ) -> Option<Self> {
        let mut fields = Fields::new(bytes);
        let (magic, entries) = (fields.array::<4>(), fields.u32());
        let (data_end, content) = (fields.u32(), fields.u32());
        let of = Generation(fields.u64());
        let max_expires = Timestamp::from_ms(fields.u64());
        let due = Timestamp::from_ms(fields.u64());
        let latest = Timestamp::from_ms(fields.u64());
        let rest_is_zero = fields.zeros(8);
        let entries_crc = fields.u32();
        let crc = crc32(&bytes[..TRAILER_BYTES - 4]) ^ place.mask(0, TRAILER_BYTES as u32);
        let content = match content {
            0 => Content::Claims,
            1 => Content::Completions,
            _ => return None,
        };
        let valid = crc == fields.u32()
            && magic == TRAILER_MAGIC
            && rest_is_zero
            && entries <= segment_bytes / index::ENTRY_BYTES as u32
            && of == generation
            && (DATA_START..=data_limit(segment_bytes)).contains(&data_end)
            && data_end <= index_offset(segment_bytes, entries)
            && (data_end as usize).is_multiple_of(Location::UNIT_BYTES);
        valid.then_some(Self {
            entries,
            entries_crc,
            data_end,
            content,
            generation,
            max_expires,
            due,
            latest,
        })
    }

    /// The generation that the bytes of a trailer name, be they valid or not.
    pub(crate) fn generation_named(bytes: &[u8; TRAILER_BYTES]) -> Generation {
        Generation(Fields::new(&bytes[16..]).u64())
    }

    /// Whether the records of the segment really expire no later than it says.
    pub(crate) fn covers(&self, max_expires: Timestamp) -> bool {
        max_expires <= self.max_expires
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: [u8; 16] = [5; 16];
    const SEGMENT_BYTES: u32 = 256 << 10;

    fn header() -> Header {
        Header {
            segment: SegmentId(7),
            generation: Generation(0x1234_5678_9abc),
            created: Timestamp::from_ms(1_700_000_000_000),
            is_recycled: true,
        }
    }

    fn trailer(generation: u64) -> Trailer {
        Trailer {
            entries: 3,
            entries_crc: 77,
            data_end: 4096,
            content: Content::Completions,
            generation: Generation(generation),
            max_expires: Timestamp::MAX,
            due: Timestamp::from_ms(1_800_000_000_001),
            latest: Timestamp::from_ms(1_700_000_000_001),
        }
    }

    #[test]
    fn a_header_comes_back_and_every_flipped_bit_is_noticed() {
        let bytes = header().encode(&STORE);
        assert_eq!(Header::decode(&bytes, &STORE, SegmentId(7)), Ok(header()));
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bad, &STORE, SegmentId(7)).is_err(), "bit {bit}");
        }
        assert_eq!(Header::decode(&[0; 64], &STORE, SegmentId(7)), Err(Flaw::Header));
    }

    /// Each field that has one value, or a bound, with another one and the right checksum: a newer version's.
    #[test]
    fn a_header_that_says_what_no_header_may_is_refused() {
        let with = |at: usize, byte: u8| {
            let mut bytes = header().encode(&STORE);
            bytes[at] = byte;
            let crc =
                crc32(&bytes[..HEADER_BYTES - 4]) ^ place(&STORE).mask(0, HEADER_BYTES as u32);
            FieldsMut::new(&mut bytes[HEADER_BYTES - 4..]).u32(crc);
            Header::decode(&bytes, &STORE, SegmentId(7))
        };
        assert!(with(0, MAGIC[0]).is_ok(), "the checksum is right");
        // Magic, version, length, stream, ttl, state.
        for at in [0, 3, 4, 6, 28, 31, 48, 55, 56, 59] {
            assert_eq!(with(at, 0x7e), Err(Flaw::Header), "byte {at}");
        }
        assert_eq!(with(56, 2), Err(Flaw::Header));
        assert_eq!(with(39, 0xff), Err(Flaw::Header), "a generation beyond the last");
    }

    #[test]
    fn a_header_in_the_wrong_place_is_named() {
        let bytes = header().encode(&STORE);
        assert_eq!(Header::decode(&bytes, &STORE, SegmentId(8)), Err(Flaw::Misplaced(7)));
        assert_eq!(Header::decode(&bytes, &[6; 16], SegmentId(7)), Err(Flaw::Store));
    }

    #[test]
    fn a_trailer_is_valid_for_its_own_generation_only() {
        let place = |generation| Place::segment(&STORE, SegmentId(7), generation);
        let generation = Generation(4);
        let bytes = trailer(4).encode(place(generation));
        let read = Trailer::decode(&bytes, place(generation), generation, SEGMENT_BYTES);
        assert_eq!(read, Some(trailer(4)));
        assert!(trailer(4).covers(Timestamp::MAX));
        assert_eq!(Trailer::generation_named(&bytes), generation);
        let next = Generation(5);
        assert_eq!(Trailer::decode(&bytes, place(next), next, SEGMENT_BYTES), None);
        for bit in 0..TRAILER_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Trailer::decode(&bad, place(generation), generation, SEGMENT_BYTES), None);
        }
        assert_eq!(
            Trailer::decode(&[0; TRAILER_BYTES], place(generation), generation, SEGMENT_BYTES),
            None
        );
    }
}
