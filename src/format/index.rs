//! The index of a sealed segment: one entry a record, in the order of the records.
//!
//! ```text
//!  0  key_hash 8 | token 8 | offset_units 3 | kind 1 | expires_s 4 | namespace 4
//! 28  len_units 3 | zero 1
//! ```
//!
//! It lies right in front of the trailer, which counts its entries and has their checksum. Whoever
//! fills a segment keeps room for it. Recovery reads the index of a segment that is known to be
//! durable, and not the records.

use super::record::Kind;
use super::{Fields, FieldsMut};
use crate::checksum::{Place, crc32};
use crate::types::{FencingToken, KeyHash, Location, NamespaceId, Timestamp};

pub(crate) const ENTRY_BYTES: usize = 32;

/// What the index says of one record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) key_hash: KeyHash,
    pub(crate) token: FencingToken,
    pub(crate) kind: Kind,
    pub(crate) namespace: NamespaceId,
    pub(crate) offset: u32,
    /// With the pad.
    pub(crate) len: u32,
    /// Rounded up to a second.
    pub(crate) expires: Timestamp,
}

impl Entry {
    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        // Segments have at most 64 MiB, hence 22 bits of units.
        let units = |bytes: u32| bytes / Location::UNIT_BYTES as u32;
        let mut bytes = [0; ENTRY_BYTES];
        FieldsMut::new(&mut bytes)
            .u64(self.key_hash.0)
            .u64(self.token.get())
            .u32(units(self.offset) | (self.kind as u32) << 24)
            .u32(seconds_rounded_up(self.expires))
            .u32(self.namespace.0)
            .u32(units(self.len));
        bytes
    }

    /// `None`: no version of this writes such an entry.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields::new(bytes.get(..ENTRY_BYTES)?);
        let (key_hash, token) = (KeyHash(fields.u64()), FencingToken::from_raw(fields.u64()));
        let place = fields.u32();
        let expires = match fields.u32() {
            u32::MAX => Timestamp::MAX,
            seconds => Timestamp::from_ms(u64::from(seconds) * 1000),
        };
        let (namespace, len) = (NamespaceId(fields.u32()), fields.u32());
        let bytes_of = |units: u32| (units & 0xff_ffff).checked_mul(Location::UNIT_BYTES as u32);
        // The upper eight bits.
        let kind = Kind::decode((place >> 24) as u8)?;
        let (offset, len_bytes) = (bytes_of(place)?, bytes_of(len)?);
        (len >> 24 == 0 && namespace.0 != 0).then_some(Self {
            key_hash,
            token,
            kind,
            namespace,
            offset,
            len: len_bytes,
            expires,
        })
    }
}

/// The same entry, of a record that lies at `offset`: `bytes` is one of a record at 0.
#[inline]
pub(super) fn moved_to(mut bytes: [u8; ENTRY_BYTES], offset: u32) -> [u8; ENTRY_BYTES] {
    let (units, place) = (offset / Location::UNIT_BYTES as u32, 16..19);
    bytes[place].copy_from_slice(&units.to_le_bytes()[..3]);
    bytes
}

/// The checksum of all entries, as the trailer has it.
pub(crate) fn checksum(bytes: &[u8], place: Place) -> u32 {
    // A segment has at most 64 MiB.
    crc32(bytes) ^ place.mask(0, bytes.len() as u32)
}

/// Seconds since the Unix epoch, rounded up; `u32::MAX` stands for never.
fn seconds_rounded_up(time: Timestamp) -> u32 {
    u32::try_from(time.ms().div_ceil(1000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back() {
        let mut entry = Entry {
            key_hash: KeyHash(0x0123_4567_89ab_cdef),
            token: FencingToken::from_raw(99),
            kind: Kind::Park,
            namespace: NamespaceId(7),
            offset: (64 << 20) - 32,
            len: 16 << 20,
            expires: Timestamp::from_ms(1_700_000_000_000),
        };
        assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        entry.expires = Timestamp::MAX;
        assert_eq!(Entry::decode(&entry.encode()), Some(entry));
        let exact = Entry { expires: Timestamp::from_ms(1_700_000_000_001), ..entry };
        let read = Entry::decode(&exact.encode()).unwrap();
        assert_eq!(read.expires.ms(), 1_700_000_001_000, "never before its time");
        let mut bad = entry.encode();
        bad[19] = 77;
        assert_eq!(Entry::decode(&bad), None);
        assert_eq!(Entry::decode(&entry.encode()[1..]), None);
        let unplaced = Entry { offset: 0, ..entry };
        assert_eq!(moved_to(unplaced.encode(), entry.offset), entry.encode());
    }
}
