//! Marks: up to where the WAL is durable.
//!
//! ```text
//!  0  magic 4 | count 2 | flags 2 | epoch 4 | zeros 4 | round 8 | clock_ms 8
//! 32  stable generation 8 | zeros 4 | crc 4
//! 48  count x { segment 4 | durable 4 | attempted 4 | zeros 4 | generation 8 }
//! ```
//!
//! Each round writes one mark before it syncs, into the slots of a file that it syncs; in parts, of which each stands for
//! itself, when one slot has no room for it. The mark of
//! round r lists every segment that may hold records of round r or of the one before: `durable` is
//! its tail when the last *completed* round began, so it is proven; `attempted` is its tail when
//! round r began, which the end of round r will have made durable, though nothing on disk proves
//! that it ended (R9, R10). Segments of a generation below `stable` were sealed and durable in full
//! before the last completed round began.
//!
//! Every mark ever written stays true, so recovery takes the highest claim of all valid ones.

use super::{Fields, FieldsMut, PAGE_BYTES, ROLE_MARK};
use crate::checksum::Place;
use crate::types::{Epoch, FileId, Generation, SegmentId, Timestamp};

/// Slots of a file. Each part of a mark takes one, and successive parts and marks take successive ones.
pub(crate) const SLOTS: usize = 7;
/// Parts of a mark at most: those of the mark before are not written over.
pub(crate) const PARTS_MAX: usize = SLOTS / 2;

pub(crate) const HEADER_BYTES: usize = 48;
pub(crate) const ENTRY_BYTES: usize = 24;
/// Entries a slot has room for.
pub(crate) const ENTRIES_MAX: usize = (PAGE_BYTES - HEADER_BYTES) / ENTRY_BYTES;
/// Segments that a mark can list.
pub(crate) const LISTED_MAX: usize = PARTS_MAX * ENTRIES_MAX;

const MAGIC: [u8; 4] = *b"RFmk";
const CRC_OFFSET: usize = HEADER_BYTES - 4;

/// What a mark says of one segment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) segment: SegmentId,
    pub(crate) generation: Generation,
    /// Durable up to here, whatever happened since.
    pub(crate) durable: u32,
    /// Durable up to here, if the mark's own round ended.
    pub(crate) attempted: u32,
}

/// One mark, see the file's header.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Mark {
    pub(crate) epoch: Epoch,
    pub(crate) round: u64,
    pub(crate) clock: Timestamp,
    pub(crate) stable: Generation,
    pub(crate) entries: Vec<Entry>,
}

fn place(store_id: &[u8; 16], file: FileId, slot: usize) -> Place {
    // Slots are few.
    Place::part(store_id, ROLE_MARK | (slot as u32) << 8, file.0)
}

impl Mark {
    /// The parts that the mark is written in, one at least; `None`: it lists more than it can.
    pub(crate) fn parts(&self) -> Option<impl Iterator<Item = Self>> {
        let count = self.entries.len().div_ceil(ENTRIES_MAX).max(1);
        let part = |part: usize| {
            let entries = self.entries.iter().skip(part * ENTRIES_MAX).take(ENTRIES_MAX);
            Self { entries: entries.copied().collect(), ..*self }
        };
        (count <= PARTS_MAX).then(|| (0..count).map(part))
    }

    /// The bytes of a part for `slot` of `file`.
    pub(crate) fn encode(&self, store_id: &[u8; 16], file: FileId, slot: usize) -> Vec<u8> {
        let entries = &self.entries;
        debug_assert!(entries.len() <= ENTRIES_MAX);
        let mut bytes = vec![0; HEADER_BYTES + entries.len() * ENTRY_BYTES];
        let mut fields = FieldsMut::new(&mut bytes);
        fields
            .put(&MAGIC)
            // At most 168.
            .u16(entries.len() as u16)
            .u16(0)
            .u32(self.epoch.0)
            .zeros(4)
            .u64(self.round)
            .u64(self.clock.ms())
            .u64(self.stable.0)
            .zeros(8);
        for entry in entries {
            fields
                .u32(entry.segment.0)
                .u32(entry.durable)
                .u32(entry.attempted)
                .zeros(4)
                .u64(entry.generation.0);
        }
        let crc = Self::crc(&bytes, store_id, file, slot);
        FieldsMut::new(&mut bytes[CRC_OFFSET..]).u32(crc);
        bytes
    }

    fn crc(bytes: &[u8], store_id: &[u8; 16], file: FileId, slot: usize) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..CRC_OFFSET]);
        hasher.update(&bytes[HEADER_BYTES..]);
        // A slot is one page.
        hasher.finalize() ^ place(store_id, file, slot).mask(0, bytes.len() as u32)
    }

    /// Gives the page the checksum that its bytes have.
    #[cfg(feature = "test-util")]
    pub(crate) fn seal(page: &mut [u8], store_id: &[u8; 16], file: FileId, slot: usize) {
        let count = usize::from(Fields::new(&page[4..]).u16());
        let Some(mark) = page.get(..HEADER_BYTES + count * ENTRY_BYTES) else { return };
        let crc = Self::crc(mark, store_id, file, slot);
        FieldsMut::new(&mut page[CRC_OFFSET..]).u32(crc);
    }

    /// The mark in a slot's page, if there is a whole one.
    pub(crate) fn decode(
        page: &[u8; PAGE_BYTES],
        store_id: &[u8; 16],
        file: FileId,
        slot: usize,
    ) -> Option<Self> {
        let mut fields = Fields::new(page);
        let (magic, count, flags) = (fields.array::<4>(), usize::from(fields.u16()), fields.u16());
        if magic != MAGIC || count > ENTRIES_MAX || flags != 0 {
            return None;
        }
        let epoch = Epoch(fields.u32());
        let mut rest_is_zero = fields.zeros(4);
        let round = fields.u64();
        let clock = Timestamp::from_ms(fields.u64());
        let stable = Generation(fields.u64());
        rest_is_zero &= fields.zeros(4);
        let crc = fields.u32();
        if crc != Self::crc(&page[..HEADER_BYTES + count * ENTRY_BYTES], store_id, file, slot) {
            return None;
        }
        let mut entries = Vec::with_capacity(count);
        for _ in 0..count {
            let segment = SegmentId(fields.u32());
            let (durable, attempted) = (fields.u32(), fields.u32());
            rest_is_zero &= fields.zeros(4);
            let generation = Generation(fields.u64());
            entries.push(Entry { segment, generation, durable, attempted });
        }
        let is_possible = stable <= Generation::MAX;
        (rest_is_zero && is_possible).then_some(Self { epoch, round, clock, stable, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: [u8; 16] = [3; 16];

    fn mark(entries: usize) -> Mark {
        let entry = |i: usize| Entry {
            segment: SegmentId(i as u32),
            generation: Generation(i as u64 + 10),
            durable: if i.is_multiple_of(2) { 0 } else { 4096 },
            attempted: 8192,
        };
        Mark {
            epoch: Epoch(2),
            round: 77,
            clock: Timestamp::from_ms(1_700_000_000_000),
            stable: Generation(9),
            entries: (0..entries).map(entry).collect(),
        }
    }

    fn page(bytes: &[u8]) -> [u8; PAGE_BYTES] {
        let mut page = [0; PAGE_BYTES];
        page[..bytes.len()].copy_from_slice(bytes);
        page
    }

    #[test]
    fn a_mark_comes_back_and_every_flipped_bit_is_noticed() {
        let written = mark(3);
        let bytes = written.encode(&STORE, FileId(1), 4);
        let read = Mark::decode(&page(&bytes), &STORE, FileId(1), 4).unwrap();
        assert_eq!(read, written);
        // Few of them where each step of the checksum is checked.
        for bit in (0..bytes.len() * 8).step_by(if cfg!(miri) { 1009 } else { 1 }) {
            let mut bad = page(&bytes);
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Mark::decode(&bad, &STORE, FileId(1), 4), None, "bit {bit}");
        }
    }

    #[test]
    fn a_mark_is_valid_in_its_own_slot_only() {
        let bytes = page(&mark(1).encode(&STORE, FileId(1), 4));
        assert_eq!(Mark::decode(&bytes, &STORE, FileId(1), 5), None);
        assert_eq!(Mark::decode(&bytes, &STORE, FileId(2), 4), None);
        assert_eq!(Mark::decode(&bytes, &[4; 16], FileId(1), 4), None);
        assert_eq!(Mark::decode(&[0; PAGE_BYTES], &STORE, FileId(1), 4), None);
    }

    #[test]
    fn a_mark_that_is_too_long_for_one_slot_is_written_in_parts_and_leaves_nothing_out() {
        for (count, wanted) in
            [(0, 1), (1, 1), (ENTRIES_MAX, 1), (ENTRIES_MAX + 1, 2), (LISTED_MAX, 3)]
        {
            if cfg!(miri) && count > 1 {
                continue;
            }
            let whole = mark(count);
            let parts: Vec<_> = whole.parts().unwrap().collect();
            assert_eq!(parts.len(), wanted, "{count}");
            let mut entries = Vec::new();
            for (slot, part) in parts.iter().enumerate() {
                let bytes = part.encode(&STORE, FileId(1), slot);
                assert!(bytes.len() <= PAGE_BYTES);
                let read = Mark::decode(&page(&bytes), &STORE, FileId(1), slot).unwrap();
                assert_eq!(read, *part);
                let Mark { epoch, round, clock, stable, .. } = read;
                assert_eq!(
                    Mark { epoch, round, clock, stable, entries: whole.entries.clone() },
                    whole
                );
                entries.extend(read.entries);
            }
            assert_eq!(entries, whole.entries);
        }
        assert!(mark(LISTED_MAX + 1).parts().is_none());
        // The mark before is not written over.
        const { assert!(2 * PARTS_MAX <= SLOTS) };
    }
}
