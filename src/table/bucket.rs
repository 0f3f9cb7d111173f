//! Buckets and slots: 64 bytes, one cache line.
//!
//! ```text
//! bucket:  head 8 | slot 8 | slot | slot | slot | slot | slot | slot
//!
//! head     bits  0-31  overflow bucket, 0 is none
//!               32-62  version: raised before and after slots move
//!                  63  splitting
//!
//! slot     bits  0-39  location, 0 is an empty slot
//!               40-61  tag: 22 bits of the key hash, directly above those that chose the
//!                      bucket when the table was made
//!                  62  done: the record is a completion
//!                  63  zero
//! ```

use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::types::{KeyHash, Location};

/// Slots of a bucket. Loom looks at every order of their loads: for it there are few.
pub(crate) const BUCKET_SLOTS: usize = if cfg!(loom) { 2 } else { 7 };
pub(crate) const TAG_BITS: u32 = 22;

const TAG_SHIFT: u32 = Location::BITS;
const TAG_MASK: u64 = (1 << TAG_BITS) - 1;
const LOCATION_MASK: u64 = (1 << Location::BITS) - 1;
const DONE: u64 = 1 << 62;

const _: () = assert!(TAG_SHIFT + TAG_BITS == 62);

/// One 8-byte position of the table, occupied.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Slot(u64);

impl Slot {
    pub(super) fn new(location: Location, tag: Tag, done: bool) -> Self {
        Self(location.units() | tag.0 << TAG_SHIFT | if done { DONE } else { 0 })
    }

    pub(super) fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    pub(super) fn bits(self) -> u64 {
        self.0
    }

    pub(crate) fn location(self) -> Location {
        Location::from_units(self.0 & LOCATION_MASK)
    }

    /// Whether the record is a completion.
    pub(crate) fn is_done(self) -> bool {
        self.0 & DONE != 0
    }

    pub(super) fn tag(self) -> Tag {
        Tag(self.0 >> TAG_SHIFT & TAG_MASK)
    }
}

/// The few bits of the key hash kept in a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tag(u64);

impl Tag {
    /// The tag in a table that was made with `first_bits` bits of bucket number.
    pub(super) fn of(hash: KeyHash, first_bits: u32) -> Self {
        Self(hash.0 >> first_bits & TAG_MASK)
    }

    /// Eight of its bits, of which one is set: the last ones to decide where slots go.
    #[inline]
    pub(super) fn byte(self) -> u64 {
        (self.0 >> (TAG_BITS - 8)).max(1)
    }

    /// Three others, as a number.
    #[inline]
    pub(super) fn eighth(self) -> usize {
        // Below eight.
        (self.0 >> (TAG_BITS - 11) & 7) as usize
    }

    /// Bit `level` of the tag: decides where a slot goes when the table doubles for the
    /// `level + 1`st time.
    pub(super) fn bit(self, level: u32) -> bool {
        debug_assert!(level < TAG_BITS);
        self.0 >> level & 1 != 0
    }
}

/// One cache line of the table.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub(super) struct Bucket {
    head: AtomicU64,
    slots: [AtomicU64; BUCKET_SLOTS],
}

// Those of an explorer are longer.
#[cfg(not(any(loom, shuttle)))]
const _: () = assert!(size_of::<Bucket>() == 64);

const OVERFLOW_MASK: u64 = u32::MAX as u64;
const VERSION_ONE: u64 = 1 << 32;
const SPLITTING: u64 = 1 << 63;

impl Bucket {
    /// The slot at `at`, if it is occupied. Acquire: what it points to was written before.
    #[inline]
    pub(super) fn slot(&self, at: usize) -> Option<Slot> {
        Slot::from_bits(self.slots[at].load(Ordering::Acquire))
    }

    /// Release: a reader that sees the slot sees the record.
    #[inline]
    pub(super) fn set_slot(&self, at: usize, slot: Option<Slot>) {
        self.slots[at].store(slot.map_or(0, Slot::bits), Ordering::Release);
    }

    /// Which slots bear this tag, as bits; of an empty one nobody knows better than who looks.
    #[inline]
    pub(super) fn matches(&self, tag: Tag) -> Matches {
        let wanted = tag.0 << TAG_SHIFT;
        let mut bits = 0;
        for (at, slot) in self.slots.iter().enumerate() {
            // Acquire: whoever sees that a slot has moved sees the version that says so.
            let is_it = slot.load(Ordering::Acquire) & (TAG_MASK << TAG_SHIFT) == wanted;
            bits |= u8::from(is_it) << at;
        }
        Matches(bits)
    }

    #[inline]
    pub(super) fn first_empty(&self) -> Option<usize> {
        // Relaxed: only who may change the bucket asks.
        self.slots.iter().position(|slot| slot.load(Ordering::Relaxed) == 0)
    }

    /// The bucket that this one overflows into.
    #[inline]
    pub(super) fn overflow(&self) -> Option<u32> {
        // Masked to 32 bits.
        let index = (self.head.load(Ordering::Acquire) & OVERFLOW_MASK) as u32;
        (index != 0).then_some(index)
    }

    /// Writers are exclusive, so load and store need not be one step.
    pub(super) fn set_overflow(&self, index: Option<u32>) {
        let head = self.head.load(Ordering::Relaxed) & !OVERFLOW_MASK;
        self.head.store(head | u64::from(index.unwrap_or(0)), Ordering::Release);
    }

    /// Says that slots of this chain move, from now until [`Bucket::end_move`].
    pub(super) fn begin_move(&self) {
        let head = self.head.load(Ordering::Relaxed);
        self.head.store(raised(head) | SPLITTING, Ordering::Release);
    }

    pub(super) fn end_move(&self) {
        let head = self.head.load(Ordering::Relaxed);
        self.head.store(raised(head) & !SPLITTING, Ordering::Release);
    }

    /// Whether, and how often, slots of this chain have moved.
    #[inline]
    pub(super) fn version(&self) -> Version {
        Version(self.head.load(Ordering::Acquire) & !OVERFLOW_MASK)
    }

    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn is_splitting(&self) -> bool {
        self.head.load(Ordering::Acquire) & SPLITTING != 0
    }
}

/// Numbers of slots, see [`Bucket::matches`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Matches(u8);

impl Iterator for Matches {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        let at = self.0.trailing_zeros() as usize;
        self.0 &= self.0.wrapping_sub(1);
        (at < BUCKET_SLOTS).then_some(at)
    }
}

/// How often slots of a chain have moved, and whether they are moving.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Version(u64);

impl Version {
    #[inline]
    pub(super) fn is_at_rest(self) -> bool {
        self.0 & SPLITTING == 0
    }
}

/// The head with its version one higher; the version wraps within its own bits.
fn raised(head: u64) -> u64 {
    (head.wrapping_add(VERSION_ONE) & !SPLITTING) | head & SPLITTING
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_its_parts_apart() {
        for (units, hash, done) in [
            (1, 0, false),
            ((1 << 40) - 1, u64::MAX, true),
            (0x12_3456_789a, 0x5555_aaaa_5555_aaaa, true),
        ] {
            let (location, tag) = (Location::from_units(units), Tag::of(KeyHash(hash), 6));
            let slot = Slot::new(location, tag, done);
            assert_eq!((slot.location(), slot.tag(), slot.is_done()), (location, tag, done));
            assert_eq!(slot.bits() >> 63, 0);
        }
    }

    #[test]
    fn tag_bits_are_those_above_the_bucket_number() {
        let hash = KeyHash(0b1011 << 6);
        let tag = Tag::of(hash, 6);
        assert_eq!([0, 1, 2, 3, 4].map(|level| tag.bit(level)), [true, true, false, true, false]);
    }

    #[test]
    fn moving_raises_the_version_twice_and_keeps_the_overflow() {
        let bucket = Bucket::default();
        bucket.set_overflow(Some(7));
        bucket.begin_move();
        assert!(bucket.is_splitting());
        bucket.end_move();
        assert!(!bucket.is_splitting());
        assert_eq!(bucket.overflow(), Some(7));
        assert_eq!(bucket.head.load(Ordering::Relaxed) >> 32, 2);
        // The version wraps without touching its neighbours.
        bucket.head.store(!SPLITTING, Ordering::Relaxed);
        bucket.begin_move();
        assert_eq!(bucket.head.load(Ordering::Relaxed), SPLITTING | OVERFLOW_MASK);
    }
}
