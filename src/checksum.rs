//! Checksums: CRC-32 (IEEE) over content, bound to the place it was written to.
//!
//! A checksum of content alone accepts a good record in the wrong place: a leftover of a segment's
//! earlier use, a block the disk wrote elsewhere, a file of another store. So what is stored is
//! `crc32(content) XOR mask(place)`, where the place is store, segment, generation, offset and
//! length. The content's part can be computed before any lock is taken; the place's is a few
//! arithmetic steps.

use std::sync::LazyLock;

use crc32fast::Hasher;

use crate::hash::mix;
use crate::types::{Generation, SegmentId};

/// A checksum of nothing yet. A new one asks each time what the processor can do, a copy does not.
static EMPTY: LazyLock<Hasher> = LazyLock::new(Hasher::new);

/// CRC-32 (IEEE 802.3) of `bytes`.
#[inline]
pub(crate) fn crc32(bytes: &[u8]) -> u32 {
    let mut hasher = EMPTY.clone();
    hasher.update(bytes);
    hasher.finalize()
}

/// What a checksum is bound to, short of the position: one use of one segment, or one small file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Place(u64);

impl Place {
    /// One generation of one segment of one store.
    pub(crate) fn segment(store_id: &[u8; 16], segment: SegmentId, generation: Generation) -> Self {
        Self::mixed(store_id, u64::from(segment.0) ^ 0x5347_0000_0000_0000, generation.0)
    }

    /// A part of a store that is not a segment, told apart by `role` and `number`.
    pub(crate) fn part(store_id: &[u8; 16], role: u32, number: u32) -> Self {
        Self::mixed(store_id, u64::from(role), u64::from(number))
    }

    fn mixed(store_id: &[u8; 16], a: u64, b: u64) -> Self {
        let mut halves = [0; 8];
        halves.copy_from_slice(&store_id[..8]);
        let low = u64::from_le_bytes(halves);
        halves.copy_from_slice(&store_id[8..]);
        let high = u64::from_le_bytes(halves);
        Self(mix(mix(mix(low) ^ high) ^ a).wrapping_add(mix(b ^ high)))
    }

    /// The mask for `len` bytes at `offset` of this place.
    #[inline]
    pub(crate) fn mask(self, offset: u32, len: u32) -> u32 {
        // The upper half of the mixed word.
        (mix(self.0 ^ (u64::from(offset) << 32 | u64::from(len))) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_place_changes_the_mask() {
        let store = [1; 16];
        let place = Place::segment(&store, SegmentId(3), Generation(9));
        let masks = [
            place.mask(512, 128),
            place.mask(528, 128),
            place.mask(512, 144),
            Place::segment(&store, SegmentId(4), Generation(9)).mask(512, 128),
            Place::segment(&store, SegmentId(3), Generation(10)).mask(512, 128),
            Place::segment(&[2; 16], SegmentId(3), Generation(9)).mask(512, 128),
            Place::part(&store, 3, 9).mask(512, 128),
        ];
        for (i, a) in masks.iter().enumerate() {
            for b in &masks[i + 1..] {
                assert_ne!(a, b);
            }
        }
    }

    #[test]
    fn the_mask_is_part_of_the_format() {
        let place = Place::segment(&[7; 16], SegmentId(1), Generation(2));
        assert_eq!(place.mask(512, 96), MASK_OF_A_KNOWN_PLACE);
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    const MASK_OF_A_KNOWN_PLACE: u32 = 936_865_604;
}
