//! What tests of several parts need: a data file, its segments, a record.

use std::sync::Arc;

use super::data_file::{DataFile, Filling};
use super::segments::Segment;
use crate::format::ext::Ext;
use crate::format::flags::Flags;
use crate::format::record::{Kind, Record};
use crate::format::segment::DATA_START;
use crate::sys::Pages;
use crate::sys::heap::HeapFs;
use crate::types::{Epoch, FencingToken, FileId, Generation, KeyHash, NamespaceId};
use crate::types::{SegmentId, Timestamp};

pub(super) const STORE: [u8; 16] = [7; 16];
pub(super) const SEGMENT_BYTES: u32 = 256 << 10;

pub(super) fn data_file(fs: &HeapFs, segments: u32) -> Arc<DataFile> {
    let mut filling = Filling::start(fs, FileId(0), segments, SEGMENT_BYTES, Pages::Small).unwrap();
    filling.step(fs, u64::MAX).unwrap();
    let now = Timestamp::from_ms(1);
    Arc::new(filling.finish(fs, &STORE, SegmentId(0), Generation(1), now).unwrap())
}

/// An empty one of the file's segments.
pub(super) fn segment(file: &Arc<DataFile>, number: u32) -> Arc<Segment> {
    let generation = Generation(1 + u64::from(number));
    Segment::new(&STORE, Arc::clone(file), SegmentId(number), generation, DATA_START).unwrap()
}

pub(super) fn release(key: &[u8], key_hash: KeyHash) -> Record<'_> {
    let now = Timestamp::from_ms(1);
    Record {
        kind: Kind::Release,
        flags: Flags::default(),
        token: FencingToken::new(Epoch(1), 1),
        key_hash,
        namespace: NamespaceId(1),
        expires: now,
        until: now,
        at: now,
        code: 0,
        attempt: 1,
        body_len: 0,
        body_crc: 0,
        ext: Ext::default(),
        more: &[],
        key,
        body: &[],
    }
}
