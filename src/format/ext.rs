//! The extensions of a record: the parts that not every record has.
//!
//! Tag, length, value, in rising order of tags. Bit 7 of an unknown tag means that a reader may
//! skip it.

use super::record::Flaw;
use super::{Fields, FieldsMut};
use crate::types::{AUDIT_BYTES_MAX, FencingToken, Fingerprint, OwnerId, Reference, Timestamp};

/// What a record has of its own takes no more.
const OWN_BYTES_MAX: usize = 96;
/// Who resolved a claim, and why.
const AUDIT_EXT_BYTES_MAX: usize = 2 * (2 + AUDIT_BYTES_MAX);
/// No record this version writes has longer extensions.
pub(crate) const EXT_BYTES_MAX: usize = OWN_BYTES_MAX + AUDIT_EXT_BYTES_MAX;
/// Bytes of the extension that holds a fingerprint.
pub(super) const FINGERPRINT_BYTES: usize = 2 + 17;
/// Bytes of the other extensions.
pub(super) const REFERENCE_BYTES: usize = 2 + 16;
pub(super) const TOKEN_BYTES: usize = 2 + 8;
pub(super) const PREVIOUS_BYTES: usize = 2 + 15;
pub(super) const DIGEST_BYTES: usize = 2 + 16;
pub(super) const OWNER_BYTES: usize = 2 + 16;

const _: () = {
    // A completion has no owner any more, and nothing else a digest.
    let last = if DIGEST_BYTES > OWNER_BYTES { DIGEST_BYTES } else { OWNER_BYTES };
    let others = FINGERPRINT_BYTES + REFERENCE_BYTES + TOKEN_BYTES + PREVIOUS_BYTES;
    assert!(others + last <= OWN_BYTES_MAX);
};

/// Who held the key before, and why no longer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct PreviousClaim {
    pub(crate) token: FencingToken,
    pub(crate) at: Timestamp,
    pub(crate) orphaned: bool,
}

/// See the file's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Ext {
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) reference: Option<Reference>,
    /// The token of the first attempt, when this is a later one.
    pub(crate) first_token: Option<FencingToken>,
    pub(crate) previous: Option<PreviousClaim>,
    /// Of a body that is not kept.
    pub(crate) body_digest: Option<[u8; 16]>,
    /// Whose claim it is, if he said so.
    pub(crate) owner: Option<OwnerId>,
}

const TAG_FINGERPRINT: u8 = 1;
const TAG_REFERENCE: u8 = 2;
const TAG_FIRST_TOKEN: u8 = 3;
const TAG_PREVIOUS: u8 = 4;
const TAG_BODY_DIGEST: u8 = 5;
const TAG_SKIPPABLE: u8 = 0x80;
/// Versions that do not know it hold the claim for somebody's: nobody resumes it.
const TAG_OWNER: u8 = TAG_SKIPPABLE | 6;
/// Of what was resolved: for who reads the WAL, and nobody else.
const TAG_ACTOR: u8 = TAG_SKIPPABLE | 7;
const TAG_REASON: u8 = TAG_SKIPPABLE | 8;

/// The extensions of what somebody has resolved, for [`super::record::Record::more`].
pub(crate) fn audit(reason: &str, actor: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (tag, text) in [(TAG_ACTOR, actor), (TAG_REASON, reason)] {
        debug_assert!(text.len() <= AUDIT_BYTES_MAX);
        if text.is_empty() {
            continue;
        }
        // At most 255.
        bytes.extend_from_slice(&[tag, text.len() as u8]);
        bytes.extend_from_slice(text.as_bytes());
    }
    bytes
}

impl Ext {
    /// Bytes that [`Ext::encode`] fills.
    pub(super) fn len(&self) -> usize {
        let of = |is_there: bool, bytes: usize| if is_there { bytes } else { 0 };
        of(self.fingerprint.is_some(), FINGERPRINT_BYTES)
            + of(self.reference.is_some(), REFERENCE_BYTES)
            + of(self.first_token.is_some(), TOKEN_BYTES)
            + of(self.previous.is_some(), PREVIOUS_BYTES)
            + of(self.body_digest.is_some(), DIGEST_BYTES)
            + of(self.owner.is_some(), OWNER_BYTES)
    }

    /// Fills `to`, which has [`Ext::len`] bytes.
    pub(super) fn encode(&self, to: &mut [u8]) {
        let mut fields = FieldsMut::new(to);
        if let Some(fingerprint) = self.fingerprint {
            fields
                .u8(TAG_FINGERPRINT)
                .u8(17)
                .u8(fingerprint.algorithm())
                .put(&fingerprint.digest());
        }
        if let Some(reference) = self.reference {
            fields.u8(TAG_REFERENCE).u8(16).put(&reference.0);
        }
        if let Some(token) = self.first_token {
            fields.u8(TAG_FIRST_TOKEN).u8(8).u64(token.get());
        }
        if let Some(previous) = self.previous {
            fields.u8(TAG_PREVIOUS).u8(15).u64(previous.token.get()).u48(previous.at.ms());
            fields.u8(u8::from(previous.orphaned));
        }
        if let Some(digest) = self.body_digest {
            fields.u8(TAG_BODY_DIGEST).u8(16).put(&digest);
        }
        if let Some(owner) = self.owner {
            fields.u8(TAG_OWNER).u8(16).put(&owner.0);
        }
    }
}

/// The extensions of a record where they lie.
#[derive(Clone, Copy)]
pub(super) struct Parts<'a>(pub(super) &'a [u8]);

impl<'a> Parts<'a> {
    /// Whether this version can read them. Everything else here is asked of such as it can.
    #[inline]
    pub(super) fn check(self) -> Result<(), Flaw> {
        let (mut bytes, mut last_tag) = (self.0, 0);
        while let [tag, len, rest @ ..] = bytes {
            let (value, behind) = rest.split_at_checked(usize::from(*len)).ok_or(Flaw::Ext)?;
            if *tag <= last_tag {
                return Err(Flaw::Ext);
            }
            let is_known = match *tag {
                TAG_FINGERPRINT => value.len() == 17,
                TAG_REFERENCE | TAG_BODY_DIGEST | TAG_OWNER => value.len() == 16,
                TAG_FIRST_TOKEN => value.len() == 8,
                TAG_PREVIOUS => value.len() == 15 && value[14] <= 1,
                tag => tag & TAG_SKIPPABLE != 0,
            };
            if !is_known {
                return Err(Flaw::Ext);
            }
            (bytes, last_tag) = (behind, *tag);
        }
        if bytes.is_empty() { Ok(()) } else { Err(Flaw::Ext) }
    }

    /// The value of this tag.
    #[inline(always)]
    fn find(self, wanted: u8) -> Option<Fields<'a>> {
        let mut bytes = self.0;
        while let [tag, len, rest @ ..] = bytes {
            let (value, behind) = rest.split_at_checked(usize::from(*len))?;
            if *tag == wanted {
                return Some(Fields::new(value));
            }
            bytes = behind;
        }
        None
    }

    /// What comes behind those that [`Ext`] has: of tags that may be passed over, and are passed on.
    pub(super) fn more(self) -> &'a [u8] {
        let mut bytes = self.0;
        while let [tag, len, rest @ ..] = bytes
            && *tag <= TAG_OWNER
            && let Some(behind) = rest.get(usize::from(*len)..)
        {
            bytes = behind;
        }
        bytes
    }

    #[inline]
    pub(super) fn fingerprint(self) -> Option<Fingerprint> {
        let mut fields = self.find(TAG_FINGERPRINT)?;
        Some(Fingerprint::from_parts(fields.u8(), fields.array()))
    }

    #[inline]
    pub(super) fn reference(self) -> Option<Reference> {
        Some(Reference(self.find(TAG_REFERENCE)?.array()))
    }

    #[inline]
    pub(super) fn first_token(self) -> Option<FencingToken> {
        Some(FencingToken::from_raw(self.find(TAG_FIRST_TOKEN)?.u64()))
    }

    #[inline]
    pub(super) fn owner(self) -> Option<OwnerId> {
        Some(OwnerId(self.find(TAG_OWNER)?.array()))
    }

    pub(super) fn all(self) -> Ext {
        let previous = self.find(TAG_PREVIOUS).map(|mut fields| PreviousClaim {
            token: FencingToken::from_raw(fields.u64()),
            at: Timestamp::from_ms(fields.u48()),
            orphaned: fields.u8() == 1,
        });
        Ext {
            fingerprint: self.fingerprint(),
            reference: self.reference(),
            first_token: self.first_token(),
            previous,
            body_digest: self.find(TAG_BODY_DIGEST).map(|mut fields| fields.array()),
            owner: self.owner(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Result<Ext, Flaw> {
        Parts(bytes).check()?;
        Ok(Parts(bytes).all())
    }

    #[test]
    fn each_extension_is_found_behind_any_others() {
        let token = FencingToken::from_raw(7);
        let ext = Ext {
            fingerprint: Some(Fingerprint::from_digest([1; 16])),
            reference: Some(Reference([2; 16])),
            first_token: Some(token),
            previous: Some(PreviousClaim { token, at: Timestamp::from_ms(8), orphaned: true }),
            body_digest: Some([3; 16]),
            owner: Some(OwnerId([4; 16])),
        };
        // Each set of them.
        for set in 0..64_u8 {
            let has = |at: u8| set >> at & 1 != 0;
            let some = Ext {
                fingerprint: ext.fingerprint.filter(|_| has(0)),
                reference: ext.reference.filter(|_| has(1)),
                first_token: ext.first_token.filter(|_| has(2)),
                previous: ext.previous.filter(|_| has(3)),
                body_digest: ext.body_digest.filter(|_| has(4)),
                owner: ext.owner.filter(|_| has(5)),
            };
            let mut bytes = vec![0; some.len()];
            some.encode(&mut bytes);
            bytes.extend([0x89, 2, 7, 7]);
            assert_eq!(decode(&bytes), Ok(some));
            let parts = Parts(&bytes);
            let (fingerprint, first_token) = (parts.fingerprint(), parts.first_token());
            assert_eq!((fingerprint, first_token), (some.fingerprint, some.first_token));
            assert_eq!((parts.reference(), parts.owner()), (some.reference, some.owner));
            assert_eq!(parts.more(), [0x89, 2, 7, 7]);
        }
    }

    #[test]
    fn who_resolved_it_is_passed_over_and_passed_on() {
        let audit = audit("it was paid", "ä");
        assert_eq!(audit, b"\x87\x02\xc3\xa4\x88\x0bit was paid");
        assert_eq!(decode(&audit), Ok(Ext::default()));
        assert_eq!(Parts(&audit).more(), audit);
        assert_eq!(super::audit("", ""), b"");
        let longest = super::audit(&"x".repeat(255), &"y".repeat(255));
        assert_eq!((longest.len(), decode(&longest)), (AUDIT_EXT_BYTES_MAX, Ok(Ext::default())));
    }

    #[test]
    fn unknown_extensions_are_skipped_if_they_say_so_and_never_repeat() {
        assert_eq!(decode(&[0x81, 2, 7, 7]), Ok(Ext::default()));
        assert_eq!(decode(&[0x81, 3, 7, 7]), Err(Flaw::Ext));
        assert_eq!(decode(&[9, 0]), Err(Flaw::Ext));
        assert_eq!(decode(&[5]), Err(Flaw::Ext));
        assert_eq!(decode(&[0x82, 0, 0x81, 0]), Err(Flaw::Ext));
        assert_eq!(decode(&[0x81, 0, 0x81, 0]), Err(Flaw::Ext));
        let owner = Ext { owner: Some(OwnerId([7; 16])), ..Ext::default() };
        let mut bytes = [0; OWNER_BYTES];
        owner.encode(&mut bytes);
        assert_eq!((owner.len(), bytes[..3].to_vec()), (OWNER_BYTES, vec![0x86, 16, 7]));
        assert_eq!(decode(&bytes), Ok(owner));
        let mut previous = [0; 17];
        (previous[0], previous[1], previous[16]) = (TAG_PREVIOUS, 15, 2);
        assert_eq!(decode(&previous), Err(Flaw::Ext));
    }
}
