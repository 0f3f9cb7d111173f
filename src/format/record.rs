//! Records: one framed, checksummed unit of the WAL.
//!
//! ```text
//!  0  len 4 | crc 4                                       one 8-byte store, the last one
//!  8  kind 1 | flags 1 | key_len 2 | body_len 4 | token 8
//! 24  key_hash 8 | namespace 4 | body_crc 4
//! 40  expires_ms 6 | until_ms 6 | at_ms 6 | code 2 | attempt 2 | ext_len 2
//! 64  ext | key | body | pad to 16
//! ```
//!
//! `len` is what the record takes without the pad. `crc` is `crc32(bytes 8..64 + ext + key)` XOR the
//! mask of its place (segment, generation, offset, len). The body has a checksum of its own, not
//! masked, so that a copy keeps it. A length of zero is the end of what was written.
//!
//! Invariants
//! - F1  A record is valid iff its length fits, its masked CRC matches, its kind is known and its
//!   reserved bits are zero (`RecordRef::check`). Its body is valid iff `body_crc` matches.
//! - F2  What a record says depends on nothing outside it but the clock and the open epoch: the
//!   rules it was made under are in its flags.

use super::ext::{
    DIGEST_BYTES, EXT_BYTES_MAX, Ext, FINGERPRINT_BYTES, OWNER_BYTES, PREVIOUS_BYTES,
    REFERENCE_BYTES, TOKEN_BYTES,
};
use super::flags::{BodyState, Flags, ParkedBy};
use super::scope::STORED_KEY_BYTES_MAX;
use super::{Fields, index};
use crate::types::{FencingToken, KeyHash, Location, NamespaceId, Timestamp};

pub(crate) const HEADER_BYTES: usize = 64;
/// `len` and `crc`.
pub(crate) const WORD_BYTES: usize = 8;
/// Where the header has the length of the key.
pub(super) const KEY_LEN_OFFSET: usize = 10;
/// Zero bytes behind the last record, overwritten by the next one. Recovery does not rely on them.
pub(crate) const TERMINATOR_BYTES: usize = Location::UNIT_BYTES;
const _: () = {
    assert!(HEADER_BYTES.is_multiple_of(Location::UNIT_BYTES));
    // `exit_bytes_max` counts the digest and not the previous claim: no exit has both.
    assert!(PREVIOUS_BYTES <= DIGEST_BYTES);
};

/// Bytes from one record's start to the next one's, for a record of `len` bytes.
pub(crate) const fn padded(len: usize) -> usize {
    len.next_multiple_of(Location::UNIT_BYTES)
}

/// The most room that a record without a body takes which ends or renews a claim on a key of
/// `key_len` bytes, with its entry in the index: what a granted claim keeps reserved for each.
pub(crate) const fn exit_bytes_max(
    key_len: usize,
    has_fingerprint: bool,
    has_owner: bool,
) -> usize {
    // A completion's, with the longest extensions. A renewal or a park record has the previous
    // claim in place of the digest, which is shorter; and the owner, if there is one.
    let fingerprint = if has_fingerprint { FINGERPRINT_BYTES } else { 0 };
    let last = if has_owner { PREVIOUS_BYTES + OWNER_BYTES } else { DIGEST_BYTES };
    let ext = fingerprint + REFERENCE_BYTES + TOKEN_BYTES + last;
    padded(HEADER_BYTES + ext + key_len) + index::ENTRY_BYTES
}

/// What a record does to its key. Bit 7 of an unknown kind means that a reader may skip it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Claim = 1,
    Complete = 2,
    Release = 3,
    Renew = 4,
    Forget = 5,
    // 6 and 7 are left free: marks have their own place, and sealed segments a trailer.
    Park = 8,
}

impl Kind {
    const SKIPPABLE: u8 = 0x80;

    pub(super) fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Claim,
            2 => Self::Complete,
            3 => Self::Release,
            4 => Self::Renew,
            5 => Self::Forget,
            8 => Self::Park,
            _ => return None,
        })
    }

    /// Order of records that bear one token (R1): the higher one is the later.
    pub(crate) fn rank(self) -> u8 {
        match self {
            Self::Claim => 0,
            Self::Renew => 1,
            Self::Park => 2,
            Self::Complete | Self::Release => 3,
            Self::Forget => 4,
        }
    }
}

/// Why bytes are no valid record.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("no record: the length is zero")]
    Empty,
    #[error("the length does not fit")]
    Length,
    #[error("the checksum does not match")]
    Crc,
    #[error("the body's checksum does not match")]
    BodyCrc,
    #[error("the record is of unknown kind {0}, made by a newer version")]
    Kind(u8),
    #[error("reserved bits are set, or a field is out of range")]
    Reserved,
    #[error("the extensions cannot be read")]
    Ext,
}

/// What a record says. What is read where it lies is a [`super::record_ref::RecordRef`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) flags: Flags,
    pub(crate) token: FencingToken,
    pub(crate) key_hash: KeyHash,
    pub(crate) namespace: NamespaceId,
    /// From here on the record says nothing any more: an unfinished claim is forgotten, a
    /// completed key is new again.
    pub(crate) expires: Timestamp,
    /// Claim and renewal: end of the lease. Completion: end of the replay window.
    pub(crate) until: Timestamp,
    /// When the record was made.
    pub(crate) at: Timestamp,
    pub(crate) code: u16,
    pub(crate) attempt: u16,
    /// Length of the body that was given, also when it is not kept.
    pub(crate) body_len: u32,
    pub(crate) body_crc: u32,
    pub(crate) ext: Ext,
    /// Of a completion or a release: extensions behind those, as they are written. Others are as long as their room is.
    pub(crate) more: &'a [u8],
    pub(crate) key: &'a [u8],
    pub(crate) body: &'a [u8],
}

/// What the front of a record says about its size, before anything else of it is trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Extents {
    /// The record without its pad.
    pub(crate) len: usize,
    /// Header, extensions and key: what `crc` covers.
    pub(crate) head_len: usize,
}

impl Extents {
    /// Whether the head has a length that a record's can have. Whoever looks for records where there
    /// need be none checks this first, so that what looks like a length costs no more than a head.
    pub(crate) fn is_plausible(&self) -> bool {
        self.head_len <= HEADER_BYTES + EXT_BYTES_MAX + STORED_KEY_BYTES_MAX
    }

    /// Reads the sizes from the record's first [`HEADER_BYTES`] bytes. They are consistent with one
    /// another and bounded by `room`, nothing more.
    #[inline]
    pub(crate) fn read(header: &[u8], room: usize) -> Result<Self, Flaw> {
        if header.len() < HEADER_BYTES {
            return Err(Flaw::Length);
        }
        let len = Fields::new(header).u32() as usize;
        let key_len = usize::from(Fields::new(&header[10..]).u16());
        let ext_len = usize::from(Fields::new(&header[62..]).u16());
        let head_len = HEADER_BYTES + ext_len + key_len;
        if len == 0 {
            return Err(Flaw::Empty);
        }
        if len > room || head_len > len {
            return Err(Flaw::Length);
        }
        Ok(Self { len, head_len })
    }
}

impl Record<'_> {
    /// When the record has had its time where it lies: what it says then is over, or fits into a
    /// shorter record. A completion's body is kept until the replay window ends, the key until the
    /// dedupe window does.
    #[inline]
    pub(crate) fn due(&self) -> Timestamp {
        let has_body = self.kind == Kind::Complete && self.flags.body() == BodyState::Kept;
        if has_body { self.until.min(self.expires) } else { self.expires }
    }

    /// The time that the record bears witness to. A claim that an open has parked bears witness to
    /// that open: until all are parked, the others must be judged by when their owner was lost.
    #[inline]
    pub(crate) fn witnessed(&self) -> Timestamp {
        let by_open = self.kind == Kind::Park && self.flags.parked_by() == ParkedBy::Orphaned;
        if by_open { Timestamp::default() } else { self.at }
    }
}

/// Whether a reader of this version may pass over the record at the start of `bytes`: one of an
/// unknown kind that says so itself.
pub(crate) fn is_skippable(flaw: Flaw) -> bool {
    matches!(flaw, Flaw::Kind(kind) if kind & Kind::SKIPPABLE != 0)
}

#[cfg(test)]
mod tests {
    use super::super::draft::{Draft, FRONT_BYTES};
    use super::super::ext::PreviousClaim;
    use super::super::record_ref::RecordRef;
    use super::*;
    use crate::checksum::{Place, crc32};
    use crate::policy::{OnLeaseEnd, OnOrphan};
    use crate::types::{Fingerprint, Generation, OwnerId, Reference, SegmentId};

    fn place() -> Place {
        Place::segment(&[9; 16], SegmentId(2), Generation(5))
    }

    fn decode(bytes: &[u8], place: Place, offset: u32) -> Result<Record<'_>, Flaw> {
        RecordRef::check(bytes, place, offset).map(RecordRef::read)
    }

    fn full_record() -> Record<'static> {
        Record {
            kind: Kind::Complete,
            flags: Flags::rules(OnLeaseEnd::Park, OnOrphan::KeepLease).with_gate(true),
            token: FencingToken::from_raw(0x0000_0700_0000_0011),
            key_hash: KeyHash(0x1122_3344_5566_7788),
            namespace: NamespaceId(3),
            expires: Timestamp::from_ms(1_800_000_000_000),
            until: Timestamp::from_ms(1_700_000_000_000),
            at: Timestamp::from_ms(1_600_000_000_000),
            code: 201,
            attempt: 4,
            body_len: 12,
            body_crc: crc32(b"the receipt!"),
            ext: Ext {
                fingerprint: Some(Fingerprint::of(b"payload")),
                reference: Some(Reference([3; 16])),
                first_token: Some(FencingToken::from_raw(5)),
                previous: Some(PreviousClaim {
                    token: FencingToken::from_raw(6),
                    at: Timestamp::from_ms(1_500_000_000_000),
                    orphaned: true,
                }),
                body_digest: Some([4; 16]),
                owner: None,
            },
            more: b"\x87\x01a\x88\x00",
            key: b"order-17",
            body: b"the receipt!",
        }
    }

    fn written(record: &Record<'_>, place: Place, offset: u32) -> Vec<u8> {
        let draft = Draft::new(record);
        let mut bytes = draft.word(place, offset).to_vec();
        draft.parts().iter().for_each(|part| bytes.extend_from_slice(part));
        assert_eq!(bytes.len(), draft.padded_len() + TERMINATOR_BYTES);
        assert!(bytes[draft.len()..].iter().all(|byte| *byte == 0));
        bytes.truncate(draft.padded_len());
        bytes
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let mut bare = full_record();
        bare.kind = Kind::Claim;
        bare.flags = Flags::default().without_renewal_room();
        bare.ext = Ext::default();
        bare.more = b"";
        (bare.body, bare.body_len, bare.body_crc) = (b"", 0, 0);
        // As long as fits in place, and longer by one.
        let keys = [FRONT_BYTES - TERMINATOR_BYTES, FRONT_BYTES].map(|front| front - HEADER_BYTES);
        let [fits, spills] = keys.map(|len| vec![7; len + 1]);
        let long = [&fits[1..], &fits, &spills[1..], &spills];
        let long = long.map(|key| Record { key, ..bare });
        for record in [full_record(), bare].into_iter().chain(long) {
            let bytes = written(&record, place(), 512);
            let read = RecordRef::check(&bytes, place(), 512).unwrap();
            assert_eq!(read.read(), record);
            read.check_body().unwrap();
        }
        // What ends a claim is as long as its room is: it has nothing that the claim need not have.
        let bytes = written(&Record { more: full_record().more, ..bare }, place(), 512);
        assert_eq!(RecordRef::check(&bytes, place(), 512).unwrap().read(), bare);
    }

    /// W3: whatever a claim has, each record that ends or renews it fits what it keeps reserved for one.
    #[test]
    fn no_exit_takes_more_than_is_reserved_for_it() {
        let key = [b'k'; 40];
        for bits in 0..16_u8 {
            let of = |bit: u8| bits >> bit & 1 != 0;
            let full = full_record().ext;
            let claim = Ext {
                fingerprint: full.fingerprint.filter(|_| of(0)),
                reference: full.reference.filter(|_| of(1)),
                first_token: full.first_token.filter(|_| of(2)),
                previous: full.previous.filter(|_| of(2)),
                body_digest: None,
                owner: of(3).then_some(OwnerId([8; 16])),
            };
            // What ends it may bring a reference, and resolving it the first token.
            let (reference, first_token) = (full.reference, full.first_token);
            let done = Ext { previous: None, owner: None, reference, first_token, ..claim };
            let digest = Ext { body_digest: full.body_digest, ..done };
            let ends = Ext { first_token, ..claim };
            for len in 1..=key.len() {
                let most = exit_bytes_max(len, of(0), of(3));
                let exits = [
                    (Kind::Renew, claim),
                    (Kind::Park, claim),
                    (Kind::Release, ends),
                    (Kind::Complete, done),
                    (Kind::Complete, digest),
                ];
                for (kind, ext) in exits {
                    let flags = match kind {
                        Kind::Complete => Flags::default().with_body(BodyState::TooLarge),
                        _ => Flags::default(),
                    };
                    let (key, more) = (&key[..len], &b""[..]);
                    let bare = Record { kind, flags, ext, more, key, ..full_record() };
                    let room = Draft::new(&Record { body: &[], body_crc: 0, ..bare }).room();
                    assert!(room <= most, "{kind:?}, {bits:04b}, {len}: {room} of {most}");
                }
            }
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let record = full_record();
        let bytes = written(&record, place(), 512);
        let len = Draft::new(&record).len();
        for bit in 0..len * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let flaw = RecordRef::check(&bad, place(), 512).and_then(RecordRef::check_body);
            assert!(flaw.is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_record_is_valid_in_its_own_place_only() {
        let bytes = written(&full_record(), place(), 512);
        let elsewhere = [
            (Place::segment(&[9; 16], SegmentId(2), Generation(6)), 512),
            (Place::segment(&[9; 16], SegmentId(1), Generation(5)), 512),
            (Place::segment(&[8; 16], SegmentId(2), Generation(5)), 512),
            (place(), 528),
        ];
        for (place, offset) in elsewhere {
            assert_eq!(decode(&bytes, place, offset), Err(Flaw::Crc));
        }
    }

    #[test]
    fn cut_bytes_are_never_a_record() {
        let bytes = written(&full_record(), place(), 512);
        let len = Draft::new(&full_record()).len();
        for cut in 0..len {
            assert_eq!(decode(&bytes[..cut], place(), 512), Err(Flaw::Length), "{cut}");
        }
        assert_eq!(decode(&[0; 4096], place(), 512), Err(Flaw::Empty));
    }

    /// Writes a record with `change` applied to its head, under a checksum that is right for it.
    fn resealed(change: impl Fn(&mut [u8])) -> Vec<u8> {
        let mut bytes = written(&full_record(), place(), 512);
        change(&mut bytes);
        let sizes = Extents::read(&bytes, bytes.len()).unwrap();
        let crc = crc32(&bytes[WORD_BYTES..sizes.head_len]) ^ place().mask(512, sizes.len as u32);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn what_a_newer_version_wrote_is_told_apart_from_damage() {
        let decode = |bytes: &[u8]| decode(bytes, place(), 512).map(|_| ());
        let unknown = resealed(|bytes| bytes[8] = 77);
        assert_eq!(decode(&unknown), Err(Flaw::Kind(77)));
        assert!(!is_skippable(Flaw::Kind(77)));
        let skippable = resealed(|bytes| bytes[8] = 77 | 0x80);
        assert_eq!(decode(&skippable), Err(Flaw::Kind(77 | 0x80)));
        assert!(is_skippable(Flaw::Kind(77 | 0x80)));
        assert_eq!(decode(&resealed(|bytes| bytes[9] |= 3 << 6)), Err(Flaw::Reserved));
        // The tag of the first extension.
        assert_eq!(decode(&resealed(|bytes| bytes[64] = 9)), Err(Flaw::Ext));
        // No namespace, and a body length that is not the body's.
        assert_eq!(decode(&resealed(|bytes| bytes[32..36].fill(0))), Err(Flaw::Reserved));
        assert_eq!(decode(&resealed(|bytes| bytes[12] += 1)), Err(Flaw::Reserved));
    }

    #[test]
    fn ranks_order_the_records_of_one_token() {
        let rising = [Kind::Claim, Kind::Renew, Kind::Park, Kind::Complete, Kind::Forget];
        assert!(rising.windows(2).all(|pair| pair[0].rank() < pair[1].rank()));
        assert_eq!(Kind::Complete.rank(), Kind::Release.rank());
    }
}
