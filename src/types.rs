//! Common words: the small value types every layer speaks of.
//!
//! Each is a newtype, so that a count, a position and a time cannot be mixed up. Nothing here
//! knows about files, locks or clocks.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use xxhash_rust::xxh3::xxh3_128;

/// Longest key, in bytes. The shortest is one byte.
pub const KEY_BYTES_MAX: usize = 4096;

/// Longest scope, in bytes. The shortest is one byte.
pub const SCOPE_BYTES_MAX: usize = 255;

/// Longest body any store keeps, in bytes; a store keeps at most half its segment size.
pub const BODY_BYTES_MAX: usize = 16 << 20;

/// Longest namespace name, in bytes of UTF-8. The shortest is one byte.
pub const NAME_BYTES_MAX: usize = 255;

/// Longest reason, and longest name of an actor, in bytes.
pub(crate) const AUDIT_BYTES_MAX: usize = 255;

/// A number given with a lease, higher at every new claim of the key; an older one is refused.
///
/// A token never repeats within a file-backed store, whatever crashed in between: its upper 24 bits
/// are the open epoch, which is raised and synced at every open before the first token is given
/// out; its lower 40 bits count within the epoch. Hand it to the system that carries out the side
/// effect, and let that system refuse a token lower than one it has seen.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FencingToken(u64);

impl FencingToken {
    pub(crate) const COUNTER_BITS: u32 = 40;
    pub(crate) const COUNTER_MAX: u64 = (1 << Self::COUNTER_BITS) - 1;

    pub(crate) fn new(epoch: Epoch, counter: u64) -> Self {
        debug_assert!(counter <= Self::COUNTER_MAX);
        Self(u64::from(epoch.0) << Self::COUNTER_BITS | counter)
    }

    /// Rebuilds a token from the number that [`FencingToken::get`] gave, for example one that was
    /// kept in a database beside the work.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The token as a plain number, ordered as tokens are.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    #[inline]
    pub(crate) fn epoch(self) -> Epoch {
        // 24 bits are left after the shift.
        Epoch((self.0 >> Self::COUNTER_BITS) as u32)
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.epoch().0, self.0 & Self::COUNTER_MAX)
    }
}

impl fmt::Debug for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FencingToken({self})")
    }
}

/// The open epoch: raised at each open, 24 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Epoch(pub u32);

impl Epoch {
    pub(crate) const MAX: Self = Self((1 << 24) - 1);

    /// The epoch `step` further on, or `None` past the last one.
    pub(crate) fn raised_by(self, step: u32) -> Option<Self> {
        let next = self.0.checked_add(step)?;
        (next <= Self::MAX.0).then_some(Self(next))
    }
}

/// Milliseconds since the Unix epoch, 48 bits: the store's own time, see `engine::time`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Timestamp(u64);

impl Timestamp {
    /// Never. What bears it does not expire.
    pub(crate) const MAX: Self = Self((1 << 48) - 1);

    /// Saturates at [`Timestamp::MAX`].
    #[inline]
    pub(crate) fn from_ms(ms: u64) -> Self {
        Self(ms.min(Self::MAX.0))
    }

    pub(crate) const fn ms(self) -> u64 {
        self.0
    }

    /// Saturates at [`Timestamp::MAX`]; a part of a millisecond counts as a whole one.
    #[inline]
    pub(crate) fn after(self, span: Duration) -> Self {
        let part = u64::from(span.subsec_nanos().div_ceil(1_000_000));
        let ms = span.as_secs().saturating_mul(1000).saturating_add(part);
        Self::from_ms(self.0.saturating_add(ms))
    }

    /// Saturates at the first.
    #[inline]
    pub(crate) fn before(self, span: Duration) -> Self {
        let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_sub(ms))
    }

    /// How long after `earlier` this is; zero when it is not after.
    #[inline]
    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// A caller's point in time, a part of a millisecond left off.
    pub(crate) fn from_system(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self::from_ms(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    /// The same instant for callers; `None` when it never comes.
    pub(crate) fn to_system(self) -> Option<SystemTime> {
        (self != Self::MAX).then(|| UNIX_EPOCH + Duration::from_millis(self.0))
    }
}

/// Number of a namespace within its store; never reused, starts at 1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NamespaceId(pub u32);

impl NamespaceId {
    /// Set in the number of a record whose key has a scope. No namespace has such a number.
    const SCOPED: u32 = 1 << 31;

    /// The highest number of a namespace.
    pub(crate) const MAX: Self = Self(Self::SCOPED - 1);

    /// What keys with a scope have in place of it.
    pub(crate) fn scoped(self) -> Self {
        Self(self.0 | Self::SCOPED)
    }

    pub(crate) fn is_scoped(self) -> bool {
        self.0 & Self::SCOPED != 0
    }

    /// The namespace of a record, whether its key has a scope or not.
    pub(crate) fn unscoped(self) -> Self {
        Self(self.0 & !Self::SCOPED)
    }
}

/// Number of a segment within its store; segments of one data file are numbered on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct SegmentId(pub u32);

/// Raised at each use of a segment, from one counter for the whole store; never reused (R8).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(crate) struct Generation(pub u64);

impl Generation {
    /// A larger one on disk is damage, and sums stay in range.
    pub(crate) const MAX: Self = Self(1 << 63);
    /// A store that has come further is not opened: what it would write stays below `MAX`. None
    /// comes this far.
    pub(crate) const OPEN_MAX: Self = Self(1 << 62);
}

/// Number of a data file; its name on disk follows from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct FileId(pub u32);

/// The keyed hash of (namespace, key): the top bits choose the shard, the low bits the bucket.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct KeyHash(pub u64);

/// Where a record starts: its position among all segments, in units of 16 bytes, 40 bits.
///
/// Zero is no record: it would be the header of segment 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Location(u64);

impl Location {
    /// Records start at multiples of this.
    pub(crate) const UNIT_BYTES: usize = 16;
    pub(crate) const BITS: u32 = 40;

    pub(crate) fn from_units(units: u64) -> Self {
        debug_assert!(units != 0 && units >> Self::BITS == 0, "location out of range: {units}");
        Self(units)
    }

    pub(crate) fn new(segment: SegmentId, offset: u32, segment_bytes: u32) -> Self {
        debug_assert!(offset < segment_bytes && (offset as usize).is_multiple_of(Self::UNIT_BYTES));
        let bytes = u64::from(segment.0) * u64::from(segment_bytes) + u64::from(offset);
        Self::from_units(bytes / Self::UNIT_BYTES as u64)
    }

    pub(crate) const fn units(self) -> u64 {
        self.0
    }

    /// Segment and offset within it, for a store whose segments have `segment_bytes` (a power of
    /// two).
    #[inline]
    pub(crate) fn split(self, segment_bytes: u32) -> (SegmentId, u32) {
        let bytes = self.0 * Self::UNIT_BYTES as u64;
        let shift = segment_bytes.trailing_zeros();
        // 44 bits of bytes; the shift leaves fewer than 32, the mask fewer than 27.
        (SegmentId((bytes >> shift) as u32), (bytes & u64::from(segment_bytes - 1)) as u32)
    }
}

/// Digest of a request's payload: the same key with another fingerprint is a mismatch, which is
/// never executed and never replayed.
///
/// The digest is not keyed by the store, so it survives an export, and equal payloads give equal
/// fingerprints everywhere. [`Fingerprint::of`] guards against mistakes, not against an adversary
/// who crafts two payloads of one digest; such callers take BLAKE3 (feature `blake3`), or give a cryptographic digest of their own to
/// [`Fingerprint::from_digest`].
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint {
    algorithm: u8,
    digest: [u8; 16],
}

impl Fingerprint {
    const CALLER: u8 = 0;
    const XXH3_128: u8 = 1;
    #[cfg(feature = "blake3")]
    const BLAKE3: u8 = 2;
    /// Added to the digest's number: of JSON in canonical form, version 1.
    #[cfg(feature = "json")]
    const JSON: u8 = 16;

    /// The XXH3 128-bit digest of `payload`.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        Self { algorithm: Self::XXH3_128, digest: xxh3_128(payload).to_le_bytes() }
    }

    /// The first 128 bits of the BLAKE3 digest of `payload`: to find two payloads with one digest takes 2^64 tries.
    #[cfg(feature = "blake3")]
    #[must_use]
    pub fn of_blake3(payload: &[u8]) -> Self {
        let mut digest = [0; 16];
        digest.copy_from_slice(&blake3::hash(payload).as_bytes()[..16]);
        Self { algorithm: Self::BLAKE3, digest }
    }

    /// The same digest, of JSON in canonical form: it is never that of plain bytes.
    #[cfg(feature = "json")]
    pub(crate) fn of_json(self) -> Self {
        Self { algorithm: self.algorithm + Self::JSON, ..self }
    }

    /// A digest the caller computed. It never equals one made by [`Fingerprint::of`].
    #[must_use]
    pub const fn from_digest(digest: [u8; 16]) -> Self {
        Self { algorithm: Self::CALLER, digest }
    }

    pub(crate) fn from_parts(algorithm: u8, digest: [u8; 16]) -> Self {
        Self { algorithm, digest }
    }

    /// Which digest this is: 0 the caller's, 1 XXH3-128, 2 BLAKE3; 16 more of JSON in canonical form, version 1.
    #[must_use]
    pub const fn algorithm(&self) -> u8 {
        self.algorithm
    }

    /// The 16 bytes of the digest.
    #[must_use]
    pub const fn digest(&self) -> [u8; 16] {
        self.digest
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({}:{:02x?})", self.algorithm, self.digest)
    }
}

/// Sixteen bytes of the caller's own that come with every later answer about the key: an order id,
/// a UUID, a line number. Opaque to the store, and shown in conflicts, so nothing secret.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Reference(pub [u8; 16]);

/// Who claims a key, whatever process or thread that is now: sixteen bytes of the caller's own, say the id of a workflow's run. A claim by the owner who holds the
/// key resumes his claim ([`crate::ClaimOptions::owner`]), so it is known to nobody else: no answer shows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OwnerId(pub [u8; 16]);

impl fmt::Debug for OwnerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnerId")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_orders_by_epoch_before_counter() {
        let old = FencingToken::new(Epoch(1), FencingToken::COUNTER_MAX);
        let new = FencingToken::new(Epoch(2), 0);
        assert!(old < new);
        assert_eq!(new.epoch(), Epoch(2));
        assert_eq!(old.to_string(), format!("1.{}", FencingToken::COUNTER_MAX));
    }

    #[test]
    fn the_last_epoch_cannot_be_raised() {
        assert_eq!(Epoch(5).raised_by(1), Some(Epoch(6)));
        assert_eq!(Epoch(Epoch::MAX.0 - 1).raised_by(1), Some(Epoch::MAX));
        assert_eq!(Epoch::MAX.raised_by(1), None);
        assert_eq!(Epoch(1).raised_by(u32::MAX), None);
    }

    #[test]
    fn a_timestamp_saturates_and_rounds_up() {
        assert_eq!(Timestamp::from_ms(u64::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::MAX.after(Duration::from_secs(1)), Timestamp::MAX);
        assert_eq!(Timestamp::from_ms(10).after(Duration::from_nanos(1)).ms(), 11);
        assert_eq!(Timestamp::from_ms(10).after(Duration::MAX), Timestamp::MAX);
        assert_eq!(Timestamp::from_ms(10).since(Timestamp::from_ms(12)), Duration::ZERO);
        assert_eq!(Timestamp::MAX.to_system(), None);
    }

    #[test]
    fn a_location_splits_into_what_it_was_made_of() {
        for segment_bytes in [256 << 10, 4 << 20, 64 << 20] {
            for (segment, offset) in [(0, 512), (1, 0), (7, segment_bytes - 16), (25_000, 1024)] {
                let location = Location::new(SegmentId(segment), offset, segment_bytes);
                assert_eq!(location.split(segment_bytes), (SegmentId(segment), offset));
                assert_eq!(Location::from_units(location.units()), location);
            }
        }
    }
}
