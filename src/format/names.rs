//! The names file: which namespaces there are, under which policies.
//!
//! ```text
//!  0  len 2 | zeros 2 | crc 4 | namespace 4 | flags 1 | on lease end 1 | on orphan 1
//! 15  fingerprint rule 1 | lease_ms 8 | replay_ms 8 | dedupe_ms 8 | late_grace_ms 8
//! 48  name, zeros to a multiple of 8
//! ```
//!
//! Entries stand one behind the other and are only ever appended; a later entry of the same
//! namespace replaces its policy. How much of the file counts stands in the meta file, so an append
//! that a crash cut short is not part of it, and anything else that cannot be read is damage.

use std::time::Duration;

use super::{Fields, FieldsMut, ROLE_NAMES};
use crate::checksum::Place;
use crate::policy::{FingerprintRule, OnLeaseEnd, OnOrphan, Policy};
use crate::types::{NAME_BYTES_MAX, NamespaceId};

pub(crate) const HEADER_BYTES: usize = 48;
const CRC_OFFSET: usize = 4;

const IMPLICIT: u8 = 1;
const FINGERPRINT_REQUIRED: u8 = 1 << 1;
/// In place of a grace that follows from the lease.
const GRACE_UNSET: u64 = u64::MAX;

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Entry {
    pub(crate) namespace: NamespaceId,
    pub(crate) name: String,
    pub(crate) policy: Policy,
    /// Whether the policy is the default that came with the first use of the name.
    pub(crate) implicit: bool,
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(GRACE_UNSET - 1)
}

impl Entry {
    /// The bytes for `offset` of the file.
    pub(crate) fn encode(&self, store_id: &[u8; 16], offset: u32) -> Vec<u8> {
        debug_assert!((1..=NAME_BYTES_MAX).contains(&self.name.len()));
        let len = HEADER_BYTES + self.name.len();
        let mut bytes = vec![0; len.next_multiple_of(8)];
        let policy = &self.policy;
        let flags = if self.implicit { IMPLICIT } else { 0 }
            | if policy.fingerprint_required { FINGERPRINT_REQUIRED } else { 0 };
        FieldsMut::new(&mut bytes)
            // Names have at most 255 bytes.
            .u16(len as u16)
            .zeros(6)
            .u32(self.namespace.0)
            .u8(flags)
            .u8(match policy.on_lease_end {
                OnLeaseEnd::Reclaim => 0,
                OnLeaseEnd::Park => 1,
            })
            .u8(match policy.on_orphan {
                OnOrphan::AsLeaseEnd => 0,
                OnOrphan::Reclaim => 1,
                OnOrphan::Park => 2,
                OnOrphan::KeepLease => 3,
            })
            .u8(match policy.fingerprint {
                FingerprintRule::Ignore => 0,
                FingerprintRule::Count => 1,
                FingerprintRule::Enforce => 2,
            })
            .u64(ms(policy.lease))
            .u64(ms(policy.replay_ttl))
            .u64(ms(policy.dedupe_ttl))
            .u64(policy.late_grace.map_or(GRACE_UNSET, ms))
            .put(self.name.as_bytes());
        let crc = Self::crc(&bytes, store_id, offset);
        FieldsMut::new(&mut bytes[CRC_OFFSET..]).u32(crc);
        bytes
    }

    fn crc(bytes: &[u8], store_id: &[u8; 16], offset: u32) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[..CRC_OFFSET]);
        hasher.update(&bytes[CRC_OFFSET + 4..]);
        let place = Place::part(store_id, ROLE_NAMES, 0);
        hasher.finalize() ^ place.mask(offset, bytes.len() as u32)
    }

    /// Reads the entry at the front of `bytes`, which lies at `offset` of the file, and says how
    /// many bytes it took; `None` when there is no valid one.
    pub(crate) fn decode(bytes: &[u8], store_id: &[u8; 16], offset: u32) -> Option<(Self, usize)> {
        let len = usize::from(Fields::new(bytes.get(..2)?).u16());
        let bytes = bytes.get(..len.next_multiple_of(8))?;
        if len <= HEADER_BYTES {
            return None;
        }
        let mut fields = Fields::new(bytes);
        let _len = fields.u16();
        let reserved_is_zero = fields.zeros(2);
        if fields.u32() != Self::crc(bytes, store_id, offset) {
            return None;
        }
        let namespace = NamespaceId(fields.u32());
        let flags = fields.u8();
        let policy = Policy {
            on_lease_end: match fields.u8() {
                0 => OnLeaseEnd::Reclaim,
                1 => OnLeaseEnd::Park,
                _ => return None,
            },
            on_orphan: match fields.u8() {
                0 => OnOrphan::AsLeaseEnd,
                1 => OnOrphan::Reclaim,
                2 => OnOrphan::Park,
                3 => OnOrphan::KeepLease,
                _ => return None,
            },
            fingerprint: match fields.u8() {
                0 => FingerprintRule::Ignore,
                1 => FingerprintRule::Count,
                2 => FingerprintRule::Enforce,
                _ => return None,
            },
            lease: Duration::from_millis(fields.u64()),
            replay_ttl: Duration::from_millis(fields.u64()),
            dedupe_ttl: Duration::from_millis(fields.u64()),
            late_grace: match fields.u64() {
                GRACE_UNSET => None,
                ms => Some(Duration::from_millis(ms)),
            },
            fingerprint_required: flags & FINGERPRINT_REQUIRED != 0,
        };
        let name = std::str::from_utf8(&bytes[HEADER_BYTES..len]).ok()?.to_owned();
        let pad_is_zero = bytes[len..].iter().all(|byte| *byte == 0);
        let valid = reserved_is_zero
            && pad_is_zero
            && flags & !(IMPLICIT | FINGERPRINT_REQUIRED) == 0
            && namespace.0 != 0
            && name.len() <= NAME_BYTES_MAX
            && policy.problems().is_empty();
        let implicit = flags & IMPLICIT != 0;
        valid.then_some((Self { namespace, name, policy, implicit }, bytes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: [u8; 16] = [3; 16];

    fn entry() -> Entry {
        Entry {
            namespace: NamespaceId(4),
            name: "zahlungen/ä".to_owned(),
            policy: Policy::default()
                .lease(Duration::from_secs(3))
                .replay_ttl(Duration::from_secs(4))
                .dedupe_ttl(Duration::from_secs(5))
                .late_grace(Duration::from_secs(6))
                .on_lease_end(OnLeaseEnd::Park)
                .on_orphan(OnOrphan::KeepLease)
                .fingerprint(FingerprintRule::Count)
                .fingerprint_required(true),
            implicit: false,
        }
    }

    #[test]
    fn an_entry_comes_back_and_every_flipped_bit_is_noticed() {
        let implicit = Entry { policy: Policy::default(), implicit: true, ..entry() };
        for entry in [entry(), implicit] {
            let bytes = entry.encode(&STORE, 96);
            assert_eq!(Entry::decode(&bytes, &STORE, 96), Some((entry, bytes.len())));
            assert_eq!(Entry::decode(&bytes, &STORE, 104), None);
            assert_eq!(Entry::decode(&bytes, &[4; 16], 96), None);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Entry::decode(&bad, &STORE, 96), None, "bit {bit}");
            }
            for cut in 0..bytes.len() {
                assert_eq!(Entry::decode(&bytes[..cut], &STORE, 96), None, "{cut}");
            }
        }
    }
}
