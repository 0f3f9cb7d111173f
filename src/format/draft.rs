//! Drafts: records that are ready to be written anywhere.
//!
//! What is worked out before the lock of a lane is taken: the bytes of the front, the checksum but for the mask of
//! the place, the entry in the index. Layout and meaning are [`super::record`]'s.

use super::ext::EXT_BYTES_MAX;
use super::record::{
    HEADER_BYTES, KEY_LEN_OFFSET, Kind, Record, TERMINATOR_BYTES, WORD_BYTES, padded,
};
use super::scope::STORED_KEY_BYTES_MAX;
use super::{FieldsMut, index};
use crate::checksum::{Place, crc32};
use crate::types::{Location, NamespaceId, Timestamp};

/// A record ready to be written anywhere: everything but the place is worked out.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    front: Front,
    head_len: usize,
    crc: u32,
    body: &'a [u8],
    /// But for the place.
    entry: index::Entry,
    encoded_entry: [u8; index::ENTRY_BYTES],
    due: Timestamp,
    witnessed: Timestamp,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(record: &Record<'a>) -> Self {
        let mut draft = Self::begin(record);
        draft.fill(record);
        draft
    }

    /// One whose bytes are not there yet, for who has [`Draft::fill`] make them where it stays: it is large, and
    /// to move it costs as much as a record's checksum.
    #[inline(always)]
    pub(crate) fn begin(record: &Record<'a>) -> Self {
        let own_len = record.ext.len();
        let head_len = HEADER_BYTES + own_len + record.more.len() + record.key.len();
        let len = head_len + record.body.len();
        let entry = index::Entry {
            key_hash: record.key_hash,
            token: record.token,
            kind: record.kind,
            namespace: record.namespace,
            offset: 0,
            len: padded(len) as u32,
            expires: record.expires,
        };
        Self {
            front: Front { short: [0; FRONT_BYTES], long: Vec::new(), len: 0 },
            head_len,
            crc: 0,
            body: record.body,
            entry,
            encoded_entry: [0; index::ENTRY_BYTES],
            due: record.due(),
            witnessed: record.witnessed(),
        }
    }

    /// Makes the bytes of a draft that was begun for this record.
    #[inline(never)]
    pub(crate) fn fill(&mut self, record: &Record<'a>) {
        debug_assert!((1..=STORED_KEY_BYTES_MAX).contains(&record.key.len()));
        debug_assert!(record.flags.valid_for(record.kind));
        let ext_len = self.head_len - HEADER_BYTES - record.key.len();
        debug_assert!(ext_len <= EXT_BYTES_MAX);
        self.encoded_entry = self.entry.encode();
        let (head_len, len) = (self.head_len, self.len());
        // Without a body the pad and the zeros behind it are part of the front.
        let front_len =
            if record.body.is_empty() { padded(len) + TERMINATOR_BYTES } else { head_len };
        // In one piece: a field that is put where it stays asks anew where that is.
        let mut header = [0; HEADER_BYTES];
        // The casts: callers keep keys within 4352 bytes and bodies within 16 MiB.
        FieldsMut::new(&mut header)
            .u32(len as u32)
            .u32(0)
            .u8(record.kind as u8)
            .u8(record.flags.0)
            .u16(record.key.len() as u16)
            .u32(record.body_len)
            .u64(record.token.get())
            .u64(record.key_hash.0)
            .u32(record.namespace.0)
            .u32(record.body_crc)
            .u48(record.expires.ms())
            .u48(record.until.ms())
            .u48(record.at.ms())
            .u16(record.code)
            .u16(record.attempt)
            .u16(ext_len as u16);
        let front = self.front.resize(front_len);
        let mut fields = FieldsMut::new(front);
        fields.put(&header);
        if ext_len > 0 {
            let own_len = ext_len - record.more.len();
            fields.with(own_len, |to| record.ext.encode(to)).put(record.more);
        }
        fields.put(record.key);
        self.crc = crc32(&front[WORD_BYTES..head_len]);
    }

    pub(crate) fn len(&self) -> usize {
        self.head_len + self.body.len()
    }

    pub(crate) fn padded_len(&self) -> usize {
        padded(self.len())
    }

    pub(crate) fn kind(&self) -> Kind {
        self.entry.kind
    }

    pub(crate) fn namespace(&self) -> NamespaceId {
        self.entry.namespace
    }

    pub(crate) fn key(&self) -> &[u8] {
        let head = &self.front.bytes()[..self.head_len];
        let len = u16::from_le_bytes([head[KEY_LEN_OFFSET], head[KEY_LEN_OFFSET + 1]]);
        &head[self.head_len - usize::from(len)..]
    }

    /// What the record takes of a segment, with its entry in the index.
    pub(crate) fn room(&self) -> usize {
        self.padded_len() + index::ENTRY_BYTES
    }

    pub(crate) fn expires(&self) -> Timestamp {
        self.entry.expires
    }

    /// The record's entry in the index of its segment, when it lies at `offset`.
    pub(crate) fn entry(&self, offset: u32) -> index::Entry {
        index::Entry { offset, ..self.entry }
    }

    /// The same, as it lies there.
    #[inline]
    pub(crate) fn encoded_entry(&self, offset: u32) -> [u8; index::ENTRY_BYTES] {
        index::moved_to(self.encoded_entry, offset)
    }

    /// See [`Record::due`].
    pub(crate) fn due(&self) -> Timestamp {
        self.due
    }

    /// See [`Record::witnessed`].
    pub(crate) fn witnessed(&self) -> Timestamp {
        self.witnessed
    }

    /// Length and checksum, for this place: the word that is stored last.
    pub(crate) fn word(&self, place: Place, offset: u32) -> [u8; WORD_BYTES] {
        // Lengths have less than 32 bits, see `new`.
        let len = self.len() as u32;
        let mut word = [0; WORD_BYTES];
        FieldsMut::new(&mut word).u32(len).u32(self.crc ^ place.mask(offset, len));
        word
    }

    /// What is written behind the word, zeros behind the record included: the front, the body, and what
    /// is behind a body.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        static ZEROS: [u8; Location::UNIT_BYTES + TERMINATOR_BYTES] =
            [0; Location::UNIT_BYTES + TERMINATOR_BYTES];
        let front = &self.front.bytes()[WORD_BYTES..];
        if self.body.is_empty() {
            return [front, &[], &[]];
        }
        let pad = self.padded_len() - self.len();
        [front, self.body, &ZEROS[..pad + TERMINATOR_BYTES]]
    }
}

/// The front of a record to be: of usual length in place, else on the heap.
#[derive(Debug)]
struct Front {
    short: [u8; FRONT_BYTES],
    long: Vec<u8>,
    len: usize,
}

/// Header, all extensions and a key of a hundred bytes, or few extensions and a longer one.
pub(super) const FRONT_BYTES: usize = 256;

impl Front {
    /// So many zeros, of one that is empty.
    #[inline]
    fn resize(&mut self, len: usize) -> &mut [u8] {
        self.len = len;
        if len <= FRONT_BYTES {
            return &mut self.short[..len];
        }
        self.long = vec![0; len];
        &mut self.long
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        if self.len > FRONT_BYTES { &self.long } else { &self.short[..self.len] }
    }
}
