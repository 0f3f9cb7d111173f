//! Records where they lie: checked once, then read a field at a time.
//!
//! Most answers need few of the fields, and one that is copied to where nobody looks costs as much as
//! one that somebody does.

use super::Fields;
use super::ext::{Ext, Parts};
use super::flags::{BodyState, Flags};
use super::record::{Extents, Flaw, HEADER_BYTES, Kind, Record, WORD_BYTES, padded};
use super::scope::STORED_KEY_BYTES_MAX;
use crate::checksum::{Place, crc32};
use crate::types::{
    FencingToken, Fingerprint, KeyHash, NamespaceId, OwnerId, Reference, Timestamp,
};

/// A record where it lies, checked whole but for its body (F1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordRef<'a> {
    header: &'a [u8; HEADER_BYTES],
    /// Extensions, key, body.
    rest: &'a [u8],
}

impl<'a> RecordRef<'a> {
    /// The record at the start of `bytes`, which lies at `offset` of `place`, if all of it is as it was
    /// written, but for the body, which [`RecordRef::check_body`] looks at.
    #[inline(always)]
    pub(crate) fn check(bytes: &'a [u8], place: Place, offset: u32) -> Result<Self, Flaw> {
        let header: &[u8; HEADER_BYTES] = bytes
            .get(..HEADER_BYTES)
            .and_then(|header| header.try_into().ok())
            .ok_or(Flaw::Length)?;
        let Extents { len, head_len } = Extents::read(header, bytes.len())?;
        let crc = Fields::new(&header[4..]).u32();
        // The length fits, so it has no more than 32 bits.
        if crc32(&bytes[WORD_BYTES..head_len]) ^ place.mask(offset, len as u32) != crc {
            return Err(Flaw::Crc);
        }
        Kind::decode(header[8]).ok_or(Flaw::Kind(header[8]))?;
        let record = Self { header, rest: &bytes[HEADER_BYTES..len] };
        let (kind, flags) = (record.kind(), record.flags());
        let body_is_kept =
            matches!(kind, Kind::Complete | Kind::Forget) && flags.body() == BodyState::Kept;
        let body_len = if body_is_kept { record.body_len() as usize } else { 0 };
        let key_fits = (1..=STORED_KEY_BYTES_MAX).contains(&record.key_len());
        let body_fits = len - head_len == body_len;
        if !flags.valid_for(kind) || !body_fits || !key_fits || record.namespace().0 == 0 {
            return Err(Flaw::Reserved);
        }
        record.parts().check()?;
        Ok(record)
    }

    /// What it takes of its segment, but for its entry in the index.
    pub(crate) fn padded_len(self) -> u64 {
        padded(HEADER_BYTES + self.rest.len()) as u64
    }

    /// Whether the body is what was written.
    #[inline]
    pub(crate) fn check_body(self) -> Result<(), Flaw> {
        let body = self.body();
        if body.is_empty() || crc32(body) == self.body_crc() { Ok(()) } else { Err(Flaw::BodyCrc) }
    }

    /// All fields.
    #[inline]
    pub(crate) fn read(self) -> Record<'a> {
        Record {
            kind: self.kind(),
            flags: self.flags(),
            token: self.token(),
            key_hash: self.key_hash(),
            namespace: self.namespace(),
            expires: self.expires(),
            until: self.until(),
            at: self.at(),
            code: self.code(),
            attempt: self.attempt(),
            body_len: self.body_len(),
            body_crc: self.body_crc(),
            ext: if self.ext_len() == 0 { Ext::default() } else { self.ext() },
            more: self.more(),
            key: self.key(),
            body: self.body(),
        }
    }

    /// See [`Record::more`].
    #[inline]
    fn more(self) -> &'a [u8] {
        let has_more = matches!(self.kind(), Kind::Complete | Kind::Release);
        if has_more && self.ext_len() > 0 { self.parts().more() } else { &[] }
    }

    #[inline]
    pub(crate) fn kind(self) -> Kind {
        match Kind::decode(self.header[8]) {
            Some(kind) => kind,
            None => unreachable!("the kind was checked"),
        }
    }

    #[inline]
    pub(crate) fn flags(self) -> Flags {
        Flags(self.header[9])
    }

    #[inline]
    fn key_len(self) -> usize {
        usize::from(Fields::new(&self.header[10..]).u16())
    }

    #[inline]
    pub(crate) fn body_len(self) -> u32 {
        Fields::new(&self.header[12..]).u32()
    }

    #[inline]
    pub(crate) fn token(self) -> FencingToken {
        FencingToken::from_raw(Fields::new(&self.header[16..]).u64())
    }

    #[inline]
    pub(crate) fn key_hash(self) -> KeyHash {
        KeyHash(Fields::new(&self.header[24..]).u64())
    }

    #[inline]
    pub(crate) fn namespace(self) -> NamespaceId {
        NamespaceId(Fields::new(&self.header[32..]).u32())
    }

    #[inline]
    fn body_crc(self) -> u32 {
        Fields::new(&self.header[36..]).u32()
    }

    #[inline]
    pub(crate) fn expires(self) -> Timestamp {
        self.ms_before(46)
    }

    #[inline]
    pub(crate) fn until(self) -> Timestamp {
        self.ms_before(52)
    }

    #[inline]
    pub(crate) fn at(self) -> Timestamp {
        self.ms_before(58)
    }

    /// The six bytes before `end`: the upper ones of eight.
    #[inline(always)]
    fn ms_before(self, end: usize) -> Timestamp {
        Timestamp::from_ms(Fields::new(&self.header[end - 8..]).u64() >> 16)
    }

    #[inline]
    pub(crate) fn code(self) -> u16 {
        Fields::new(&self.header[58..]).u16()
    }

    #[inline]
    pub(crate) fn attempt(self) -> u16 {
        Fields::new(&self.header[60..]).u16()
    }

    #[inline]
    fn ext_len(self) -> usize {
        usize::from(Fields::new(&self.header[62..]).u16())
    }

    #[inline]
    fn parts(self) -> Parts<'a> {
        Parts(&self.rest[..self.ext_len()])
    }

    /// The extensions. Who wants one of them asks for that.
    pub(crate) fn ext(self) -> Ext {
        self.parts().all()
    }

    #[inline(always)]
    pub(crate) fn fingerprint(self) -> Option<Fingerprint> {
        self.parts().fingerprint()
    }

    #[inline(always)]
    pub(crate) fn reference(self) -> Option<Reference> {
        self.parts().reference()
    }

    pub(crate) fn owner(self) -> Option<OwnerId> {
        self.parts().owner()
    }

    /// The first attempt's token.
    #[inline(always)]
    pub(crate) fn first_token(self) -> FencingToken {
        self.earlier_token().unwrap_or(self.token())
    }

    /// The same, when it was another attempt's.
    #[inline(always)]
    pub(crate) fn earlier_token(self) -> Option<FencingToken> {
        self.parts().first_token()
    }

    #[inline]
    pub(crate) fn key(self) -> &'a [u8] {
        &self.rest[self.ext_len()..][..self.key_len()]
    }

    #[inline]
    pub(crate) fn body(self) -> &'a [u8] {
        &self.rest[self.ext_len() + self.key_len()..]
    }
}
