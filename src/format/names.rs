//! The names file: which namespaces there are, under which policies, and which gaps of a salvaged
//! store.
//!
//! ```text
//! every      0  len 2 | kind 2 | crc 4
//! namespace  8  namespace 4 | flags 1 | on lease end 1 | on orphan 1 | fingerprint rule 1
//!           16  lease_ms 8 | replay_ms 8 | dedupe_ms 8 | late_grace_ms 8
//! gap        8  gap 4 | epoch 4 | from_ms 8 | to_ms 8 | until_ms 8 | bytes 8
//! acceptance 8  gap 4 | zeros 4 | at_ms 8 | zeros 24
//! raise      8  namespace 4 | zeros 4 | at_ms 8 | dedupe_ms 8 | zeros 16
//! quota      8  namespace 4 | zeros 4 | keys 8 | bytes 8 | in_flight 8 | waiters 8
//! erasure    8  namespace 4 | what 1 | zeros 3 | at_ms 8 | keys 8 | zeros 16
//! every     48  name, or what the gap is, or one byte of length, the actor, the reason (of an acceptance and of an
//!               erasure), or `raised`, or `quota`; zeros to a multiple of 8
//! ```
//!
//! Entries stand one behind the other and are only ever appended; a later entry of the same
//! namespace replaces its policy. How much of the file counts stands in the meta file, so an append
//! that a crash cut short is not part of it, and anything else that cannot be read is damage.

use std::sync::Arc;
use std::time::Duration;

use super::{Fields, FieldsMut, ROLE_NAMES};
use crate::answer::{Acceptance, Gap};
use crate::checksum::Place;
use crate::erasure::Erasable;
use crate::policy::{
    DEDUPE_TTL_MAX, FingerprintRule, OnLeaseEnd, OnOrphan, Policy, Quota, RefreshOnHit,
};
use crate::types::{AUDIT_BYTES_MAX, Epoch, NAME_BYTES_MAX, NamespaceId, Timestamp};

pub(crate) const HEADER_BYTES: usize = 48;
const CRC_OFFSET: usize = 4;

const IMPLICIT: u8 = 1;
const FINGERPRINT_REQUIRED: u8 = 1 << 1;
/// Two bits: the share of the window below which a duplicate extends it.
const REFRESH_SHIFT: u32 = 2;
/// In place of a grace that follows from the lease.
const GRACE_UNSET: u64 = u64::MAX;

/// What an entry is about.
const KIND_NAMESPACE: u16 = 0;
const KIND_GAP: u16 = 1;
const KIND_ACCEPTANCE: u16 = 2;
const KIND_RAISE: u16 = 3;
const KIND_QUOTA: u16 = 4;
const KIND_ERASURE: u16 = 5;

/// The text of a raise: each entry has one.
const RAISED: &[u8] = b"raised";
/// The text of a quota.
const QUOTA: &[u8] = b"quota";
/// In place of a limit: there is none.
const UNLIMITED: u64 = u64::MAX;

/// What a gap is takes at most this many bytes.
pub(crate) const WHAT_BYTES_MAX: usize = 511;

/// No store comes to so many gaps; a larger number is damage, and the next one stays in range.
const GAP_ID_MAX: u32 = 1 << 31;

/// The longest text: what a gap is, or who accepted it and why.
const TEXT_BYTES_MAX: usize = 511;
const _: () = assert!(
    WHAT_BYTES_MAX <= TEXT_BYTES_MAX
        && NAME_BYTES_MAX <= TEXT_BYTES_MAX
        && 2 * AUDIT_BYTES_MAX < TEXT_BYTES_MAX
);

/// A namespace and its policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NamespaceEntry {
    pub(crate) namespace: NamespaceId,
    pub(crate) name: String,
    pub(crate) policy: Policy,
    /// Whether the policy is the default that came with the first use of the name.
    pub(crate) implicit: bool,
}

/// Keys of a namespace were forgotten sooner before this time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Raise {
    pub(crate) namespace: NamespaceId,
    pub(crate) at: Timestamp,
    /// The dedupe window that was in force up to then.
    pub(crate) dedupe_ttl: Duration,
}

/// Keys of a namespace were erased.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ErasureEntry {
    pub(crate) namespace: NamespaceId,
    pub(crate) what: Erasable,
    pub(crate) at: Timestamp,
    /// How many there were.
    pub(crate) keys: u64,
    pub(crate) actor: String,
    pub(crate) reason: String,
}

/// One entry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Entry {
    Namespace(NamespaceEntry),
    /// A gap that nobody has accepted yet.
    Gap(Gap),
    /// The gap of this number is accepted.
    Acceptance(u32, Acceptance),
    /// A dedupe window is about to become longer.
    Raise(Raise),
    /// The namespace may have so much from now on.
    Quota(NamespaceId, Quota),
    /// Keys are being erased.
    Erasure(ErasureEntry),
}

fn ms(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(GRACE_UNSET - 1)
}

impl Entry {
    /// Whether completions may be written again because of it.
    pub(crate) fn refreshes(&self) -> bool {
        matches!(self, Self::Namespace(entry) if entry.refreshes())
    }

    /// The bytes for `offset` of the file.
    pub(crate) fn encode(&self, store_id: &[u8; 16], offset: u32) -> Vec<u8> {
        let mut text = Vec::new();
        let kind = match self {
            Self::Namespace(entry) => {
                debug_assert!((1..=NAME_BYTES_MAX).contains(&entry.name.len()));
                text.extend_from_slice(entry.name.as_bytes());
                KIND_NAMESPACE
            }
            Self::Gap(gap) => {
                text.extend_from_slice(gap.what.as_bytes());
                KIND_GAP
            }
            Self::Acceptance(_, acceptance) => {
                put_audit(&mut text, &acceptance.actor, &acceptance.reason);
                KIND_ACCEPTANCE
            }
            Self::Raise(_) => {
                text.extend_from_slice(RAISED);
                KIND_RAISE
            }
            Self::Quota(..) => {
                text.extend_from_slice(QUOTA);
                KIND_QUOTA
            }
            Self::Erasure(erasure) => {
                put_audit(&mut text, &erasure.actor, &erasure.reason);
                KIND_ERASURE
            }
        };
        let len = HEADER_BYTES + text.len();
        let mut bytes = vec![0; len.next_multiple_of(8)];
        let mut fields = FieldsMut::new(&mut bytes);
        // Texts have at most 511 bytes.
        fields.u16(len as u16).u16(kind).zeros(4);
        match self {
            Self::Namespace(entry) => entry.put(&mut fields),
            Self::Gap(gap) => {
                fields
                    .u32(gap.id)
                    .u32(gap.epoch.0)
                    .u64(gap.from.ms())
                    .u64(gap.to.ms())
                    .u64(gap.until.ms())
                    .u64(gap.bytes);
            }
            Self::Acceptance(gap, acceptance) => {
                fields.u32(*gap).zeros(4).u64(acceptance.at.ms()).zeros(24);
            }
            Self::Raise(Raise { namespace, at, dedupe_ttl }) => {
                fields.u32(namespace.0).zeros(4).u64(at.ms()).u64(ms(*dedupe_ttl)).zeros(16);
            }
            Self::Quota(namespace, quota) => {
                fields.u32(namespace.0).zeros(4);
                for limit in [quota.keys, quota.bytes, quota.in_flight, quota.waiters] {
                    fields.u64(limit.unwrap_or(UNLIMITED));
                }
            }
            Self::Erasure(ErasureEntry { namespace, what, at, keys, .. }) => {
                let what = match what {
                    Erasable::Key => 0,
                    Erasable::Scope => 1,
                    Erasable::Namespace => 2,
                };
                fields.u32(namespace.0).u8(what).zeros(3).u64(at.ms()).u64(*keys).zeros(16);
            }
        }
        fields.put(&text);
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

    /// Gives the entry at the front of `bytes` the checksum that it has, and says how long it is.
    #[cfg(feature = "test-util")]
    pub(crate) fn seal(bytes: &mut [u8], store_id: &[u8; 16], offset: u32) -> Option<usize> {
        let len = usize::from(Fields::new(bytes.get(..2)?).u16()).next_multiple_of(8);
        let entry = bytes.get_mut(..len).filter(|entry| entry.len() > CRC_OFFSET + 4)?;
        let crc = Self::crc(entry, store_id, offset);
        FieldsMut::new(&mut entry[CRC_OFFSET..]).u32(crc);
        Some(len)
    }

    /// Reads the entry at the front of `bytes`, which lies at `offset` of the file, and says how
    /// many bytes it took; `None` when there is no valid one.
    pub(crate) fn decode(bytes: &[u8], store_id: &[u8; 16], offset: u32) -> Option<(Self, usize)> {
        let len = usize::from(Fields::new(bytes.get(..2)?).u16());
        let bytes = bytes.get(..len.next_multiple_of(8))?;
        if len <= HEADER_BYTES || len > HEADER_BYTES + TEXT_BYTES_MAX {
            return None;
        }
        let mut fields = Fields::new(bytes);
        let (_len, kind) = (fields.u16(), fields.u16());
        if fields.u32() != Self::crc(bytes, store_id, offset) {
            return None;
        }
        let text = &bytes[HEADER_BYTES..len];
        let pad_is_zero = bytes[len..].iter().all(|byte| *byte == 0);
        let entry = match kind {
            KIND_NAMESPACE => NamespaceEntry::decode(&mut fields, text).map(Self::Namespace),
            KIND_GAP => decode_gap(&mut fields, text).map(Self::Gap),
            KIND_ACCEPTANCE => decode_acceptance(&mut fields, text),
            KIND_RAISE => decode_raise(&mut fields, text).map(Self::Raise),
            KIND_QUOTA => decode_quota(&mut fields, text),
            KIND_ERASURE => decode_erasure(&mut fields, text),
            _ => None,
        };
        entry.filter(|_| pad_is_zero).map(|entry| (entry, bytes.len()))
    }
}

impl NamespaceEntry {
    pub(crate) fn refreshes(&self) -> bool {
        self.policy.refresh_on_hit != RefreshOnHit::Never
    }

    fn put(&self, fields: &mut FieldsMut<'_>) {
        let policy = &self.policy;
        let flags = if self.implicit { IMPLICIT } else { 0 }
            | if policy.fingerprint_required { FINGERPRINT_REQUIRED } else { 0 }
            | match policy.refresh_on_hit {
                RefreshOnHit::Never => 0,
                RefreshOnHit::BelowHalf => 1,
                RefreshOnHit::BelowQuarter => 2,
                RefreshOnHit::BelowEighth => 3,
            } << REFRESH_SHIFT;
        fields
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
            .u64(policy.late_grace.map_or(GRACE_UNSET, ms));
    }

    fn decode(fields: &mut Fields<'_>, text: &[u8]) -> Option<Self> {
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
            refresh_on_hit: match flags >> REFRESH_SHIFT & 3 {
                0 => RefreshOnHit::Never,
                1 => RefreshOnHit::BelowHalf,
                2 => RefreshOnHit::BelowQuarter,
                _ => RefreshOnHit::BelowEighth,
            },
        };
        let name = std::str::from_utf8(text).ok()?.to_owned();
        let is_valid = flags & !(IMPLICIT | FINGERPRINT_REQUIRED | 3 << REFRESH_SHIFT) == 0
            && (1..=NamespaceId::MAX.0).contains(&namespace.0)
            && name.len() <= NAME_BYTES_MAX
            && policy.problems().is_empty();
        let implicit = flags & IMPLICIT != 0;
        is_valid.then_some(Self { namespace, name, policy, implicit })
    }
}

fn decode_gap(fields: &mut Fields<'_>, text: &[u8]) -> Option<Gap> {
    let (id, epoch) = (fields.u32(), Epoch(fields.u32()));
    if epoch > Epoch::MAX || id > GAP_ID_MAX {
        return None;
    }
    Some(Gap {
        id,
        epoch,
        from: Timestamp::from_ms(fields.u64()),
        to: Timestamp::from_ms(fields.u64()),
        until: Timestamp::from_ms(fields.u64()),
        bytes: fields.u64(),
        what: Arc::from(std::str::from_utf8(text).ok()?),
        acceptance: None,
    })
}

fn decode_acceptance(fields: &mut Fields<'_>, text: &[u8]) -> Option<Entry> {
    let gap = fields.u32();
    let mut reserved_is_zero = fields.zeros(4);
    let at = Timestamp::from_ms(fields.u64());
    reserved_is_zero &= fields.zeros(24);
    let (actor, reason) = decode_audit(text)?;
    reserved_is_zero.then_some(Entry::Acceptance(gap, Acceptance { at, actor, reason }))
}

fn decode_erasure(fields: &mut Fields<'_>, text: &[u8]) -> Option<Entry> {
    let namespace = NamespaceId(fields.u32());
    let what = match fields.u8() {
        0 => Erasable::Key,
        1 => Erasable::Scope,
        2 => Erasable::Namespace,
        _ => return None,
    };
    let mut is_valid = fields.zeros(3) && namespace.0 != 0;
    let (at, keys) = (Timestamp::from_ms(fields.u64()), fields.u64());
    is_valid &= fields.zeros(16);
    let (actor, reason) = decode_audit(text)?;
    let erasure = ErasureEntry { namespace, what, at, keys, actor, reason };
    is_valid.then_some(Entry::Erasure(erasure))
}

/// One byte of length, the actor, the reason.
fn put_audit(text: &mut Vec<u8>, actor: &str, reason: &str) {
    debug_assert!(actor.len() <= AUDIT_BYTES_MAX);
    // At most 255.
    text.push(actor.len() as u8);
    text.extend_from_slice(actor.as_bytes());
    text.extend_from_slice(reason.as_bytes());
}

fn decode_audit(text: &[u8]) -> Option<(String, String)> {
    let (len, text) = text.split_first()?;
    let (actor, reason) = text.split_at_checked(usize::from(*len))?;
    let text = |bytes| Some(std::str::from_utf8(bytes).ok()?.to_owned());
    Some((text(actor)?, text(reason)?))
}

fn decode_raise(fields: &mut Fields<'_>, text: &[u8]) -> Option<Raise> {
    let namespace = NamespaceId(fields.u32());
    let mut reserved_is_zero = fields.zeros(4);
    let (at, dedupe_ttl) = (Timestamp::from_ms(fields.u64()), Duration::from_millis(fields.u64()));
    reserved_is_zero &= fields.zeros(16);
    let is_valid =
        reserved_is_zero && text == RAISED && namespace.0 != 0 && dedupe_ttl <= DEDUPE_TTL_MAX;
    is_valid.then_some(Raise { namespace, at, dedupe_ttl })
}

fn decode_quota(fields: &mut Fields<'_>, text: &[u8]) -> Option<Entry> {
    let namespace = NamespaceId(fields.u32());
    let reserved_is_zero = fields.zeros(4);
    let [keys, bytes, in_flight, waiters] =
        [(); 4].map(|()| Some(fields.u64()).filter(|limit| *limit != UNLIMITED));
    let is_valid = reserved_is_zero && text == QUOTA && namespace.0 != 0;
    let quota = Quota { keys, bytes, in_flight, waiters };
    is_valid.then_some(Entry::Quota(namespace, quota))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORE: [u8; 16] = [3; 16];

    fn entry() -> NamespaceEntry {
        NamespaceEntry {
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
                .fingerprint_required(true)
                .refresh_on_hit(RefreshOnHit::BelowQuarter),
            implicit: false,
        }
    }

    #[test]
    fn an_entry_comes_back_and_every_flipped_bit_is_noticed() {
        let implicit = NamespaceEntry { policy: Policy::default(), implicit: true, ..entry() };
        let at = Timestamp::from_ms(1_700_000_000_000);
        let gap = Gap {
            id: 3,
            epoch: Epoch(70_000),
            from: Timestamp::default(),
            to: at,
            until: Timestamp::MAX,
            bytes: 4096,
            what: Arc::from("data-00002, segment 7"),
            acceptance: None,
        };
        let text = |text: &str| text.to_owned();
        let acceptance = Acceptance { at, actor: text("ä"), reason: text("seen to") };
        let erasure = |what, reason, actor| {
            let (reason, actor, namespace) = (text(reason), text(actor), NamespaceId(4));
            Entry::Erasure(ErasureEntry { namespace, what, at, keys: 70_000, actor, reason })
        };
        let entries = [
            Entry::Namespace(entry()),
            Entry::Namespace(implicit),
            Entry::Gap(gap),
            Entry::Acceptance(3, acceptance),
            Entry::Raise(Raise { namespace: NamespaceId(4), at, dedupe_ttl: DEDUPE_TTL_MAX }),
            Entry::Quota(NamespaceId(4), Quota::default()),
            Entry::Quota(NamespaceId(4), Quota::default().keys(1).bytes(2).in_flight(3).waiters(4)),
            erasure(Erasable::Key, "the customer asked for it", "ä"),
            erasure(Erasable::Scope, "", "nobody"),
            erasure(Erasable::Namespace, "r", ""),
        ];
        for entry in entries {
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
