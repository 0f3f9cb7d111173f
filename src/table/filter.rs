//! Filters: for each main bucket a word, apart from it, that says which tags its chain may hold.
//!
//! Most keys that somebody looks for and that are not there are told by it: eight words share a
//! cache line, so that there is one for fifty keys, and neither bucket nor overflow is loaded. The
//! idea of tags apart from what they stand for is that of the Swiss tables (Kulukundis, CppCon 2017).
//!
//! ```text
//! byte 0-6  a byte of the tag of that slot of the main bucket; 0: it is empty
//! byte 7    tags in overflow buckets: three bits of a tag choose the bit that is set
//! ```
//!
//! Invariant
//! - T5  At every moment the word covers every slot of the chain: a slot is covered before it is set,
//!   and no longer once it is cleared. What a word does not cover is not in the chain.

use crate::sys::sync::atomic::{AtomicU64, Ordering};

use super::bucket::{BUCKET_SLOTS, Tag};

/// The tags of one chain, by an over-estimate.
#[derive(Debug, Default)]
pub(super) struct Filter(AtomicU64);

/// What a [`Filter`] says.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Covered(u64);

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;
/// The bytes of slots.
const SLOTS: u64 = u64::MAX >> 8;
const OVERFLOW_SHIFT: usize = 8 * BUCKET_SLOTS;

impl Filter {
    /// Acquire: whoever sees that a slot is not covered any more sees why (T3).
    #[inline]
    pub(super) fn load(&self) -> Covered {
        Covered(self.0.load(Ordering::Acquire))
    }

    /// Release: who sees it sees what came before, see [`Filter::load`]. Only who may change the
    /// chain does.
    #[inline]
    pub(super) fn store(&self, covered: Covered) {
        self.0.store(covered.0, Ordering::Release);
    }
}

impl Covered {
    /// Whether a slot with this tag may be there.
    #[inline]
    pub(super) fn may_hold(self, tag: Tag) -> bool {
        // Zero where the byte is the tag's; then the high bit is where the lowest such byte is.
        let differing = self.0 ^ (tag.byte() * ONES);
        let equal = differing.wrapping_sub(ONES) & !differing & HIGH_BITS & SLOTS;
        equal != 0 || self.0 & overflow_bit(tag) != 0
    }

    /// The same, and slot `at` of the main bucket, which was empty.
    #[inline]
    pub(super) fn with_slot(self, at: usize, tag: Tag) -> Self {
        Self(self.0 & !(0xff << (8 * at)) | tag.byte() << (8 * at))
    }

    /// The same, and a slot of an overflow bucket.
    #[inline]
    pub(super) fn with_overflow(self, tag: Tag) -> Self {
        Self(self.0 | overflow_bit(tag))
    }
}

#[inline]
fn overflow_bit(tag: Tag) -> u64 {
    1 << (OVERFLOW_SHIFT + tag.eighth())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::KeyHash;

    proptest! {
        #[test]
        fn what_was_added_is_covered_and_most_else_is_not(
            slots in prop::collection::vec(any::<u64>(), 0..=BUCKET_SLOTS),
            overflow in prop::collection::vec(any::<u64>(), 0..3),
            other: u64,
        ) {
            let tag = |hash: u64| Tag::of(KeyHash(hash), 3);
            let mut covered = Covered::default();
            for (at, hash) in slots.iter().enumerate() {
                covered = covered.with_slot(at, tag(*hash));
            }
            for hash in &overflow {
                covered = covered.with_overflow(tag(*hash));
            }
            let is_covered = |hash: &u64| covered.may_hold(tag(*hash));
            prop_assert!(slots.iter().all(is_covered) && overflow.iter().all(is_covered));
            let shares_byte = slots.iter().any(|hash| tag(*hash).byte() == tag(other).byte());
            let shares_bit = overflow.iter().any(|hash| tag(*hash).eighth() == tag(other).eighth());
            prop_assert_eq!(is_covered(&other), shares_byte || shares_bit);
        }
    }

    #[test]
    fn an_empty_slot_covers_no_tag() {
        for byte in 0..=255_u64 {
            let tag = Tag::of(KeyHash(byte << (3 + 14)), 3);
            assert!(!Covered::default().may_hold(tag));
        }
    }
}
