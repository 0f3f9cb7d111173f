//! The extensions of a record: the parts that not every record has.
//!
//! Tag, length, value, in rising order of tags. Bit 7 of an unknown tag means that a reader may
//! skip it.

use super::record::Flaw;
use super::{Fields, FieldsMut};
use crate::types::{FencingToken, Fingerprint, Reference, Timestamp};

/// No record this version writes has longer extensions.
pub(crate) const EXT_BYTES_MAX: usize = 96;
/// Bytes of the extension that holds a fingerprint.
pub(super) const FINGERPRINT_BYTES: usize = 2 + 17;
/// Bytes of the other extensions.
pub(super) const REFERENCE_BYTES: usize = 2 + 16;
pub(super) const TOKEN_BYTES: usize = 2 + 8;
pub(super) const PREVIOUS_BYTES: usize = 2 + 15;
pub(super) const DIGEST_BYTES: usize = 2 + 16;

const _: () = assert!(
    FINGERPRINT_BYTES + REFERENCE_BYTES + TOKEN_BYTES + PREVIOUS_BYTES + DIGEST_BYTES
        <= EXT_BYTES_MAX
);

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
}

const TAG_FINGERPRINT: u8 = 1;
const TAG_REFERENCE: u8 = 2;
const TAG_FIRST_TOKEN: u8 = 3;
const TAG_PREVIOUS: u8 = 4;
const TAG_BODY_DIGEST: u8 = 5;
const TAG_SKIPPABLE: u8 = 0x80;

impl Ext {
    /// Bytes that [`Ext::encode`] fills.
    pub(super) fn len(&self) -> usize {
        let of = |is_there: bool, bytes: usize| if is_there { bytes } else { 0 };
        of(self.fingerprint.is_some(), FINGERPRINT_BYTES)
            + of(self.reference.is_some(), REFERENCE_BYTES)
            + of(self.first_token.is_some(), TOKEN_BYTES)
            + of(self.previous.is_some(), PREVIOUS_BYTES)
            + of(self.body_digest.is_some(), DIGEST_BYTES)
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
    }

    pub(super) fn decode(mut bytes: &[u8]) -> Result<Self, Flaw> {
        let mut ext = Self::default();
        let mut last_tag = 0;
        while let [tag, len, rest @ ..] = bytes {
            let value = rest.get(..usize::from(*len)).ok_or(Flaw::Ext)?;
            bytes = &rest[value.len()..];
            if *tag <= last_tag {
                return Err(Flaw::Ext);
            }
            last_tag = *tag;
            let mut fields = Fields::new(value);
            match (*tag, value.len()) {
                (TAG_FINGERPRINT, 17) => {
                    ext.fingerprint = Some(Fingerprint::from_parts(fields.u8(), fields.array()));
                }
                (TAG_REFERENCE, 16) => ext.reference = Some(Reference(fields.array())),
                (TAG_FIRST_TOKEN, 8) => {
                    ext.first_token = Some(FencingToken::from_raw(fields.u64()));
                }
                (TAG_PREVIOUS, 15) => {
                    let token = FencingToken::from_raw(fields.u64());
                    let at = Timestamp::from_ms(fields.u48());
                    let orphaned = match fields.u8() {
                        0 => false,
                        1 => true,
                        _ => return Err(Flaw::Ext),
                    };
                    ext.previous = Some(PreviousClaim { token, at, orphaned });
                }
                (TAG_BODY_DIGEST, 16) => ext.body_digest = Some(fields.array()),
                (tag, _) if tag & TAG_SKIPPABLE != 0 => {}
                _ => return Err(Flaw::Ext),
            }
        }
        if bytes.is_empty() { Ok(ext) } else { Err(Flaw::Ext) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_extensions_are_skipped_if_they_say_so_and_never_repeat() {
        assert_eq!(Ext::decode(&[0x81, 2, 7, 7]), Ok(Ext::default()));
        assert_eq!(Ext::decode(&[0x81, 3, 7, 7]), Err(Flaw::Ext));
        assert_eq!(Ext::decode(&[9, 0]), Err(Flaw::Ext));
        assert_eq!(Ext::decode(&[5]), Err(Flaw::Ext));
        assert_eq!(Ext::decode(&[0x82, 0, 0x81, 0]), Err(Flaw::Ext));
        assert_eq!(Ext::decode(&[0x81, 0, 0x81, 0]), Err(Flaw::Ext));
        let mut previous = [0; 17];
        (previous[0], previous[1], previous[16]) = (TAG_PREVIOUS, 15, 2);
        assert_eq!(Ext::decode(&previous), Err(Flaw::Ext));
    }
}
