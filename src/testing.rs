//! What this project's own tests and fuzz targets reach beyond the public calls. Not part of the
//! crate's promises but for [`SimClock`].

use crate::checksum::{Place, crc32};
use crate::format::PAGE_BYTES;
use crate::format::draft::Draft;
use crate::format::file::{self, SEGMENTS_START};
use crate::format::mark;
use crate::format::meta::{PREAMBLE_BYTES, SLOT_BYTES};
use crate::format::names;
use crate::format::record::{Extents, HEADER_BYTES, WORD_BYTES, padded};
use crate::format::record_ref::RecordRef;
use crate::format::segment::{self, DATA_START};
use crate::types::{FileId, Generation, SegmentId};

#[doc(hidden)]
pub use crate::sys::heap::HeapFs;
#[doc(hidden)]
pub use crate::sys::point::{Point, end_process_at};
#[doc(hidden)]
pub use crate::sys::real::RealFs;
#[doc(hidden)]
pub use crate::sys::sim::{Crash, Fault, SimDisk, SimFs};
pub use crate::sys::sim_clock::SimClock;
#[doc(hidden)]
pub use crate::sys::{Clock, DirectoryLock, File, FileSystem, Pages, Region};

/// Gives a slot of the meta file the checksums that its bytes have. For fuzzing.
#[doc(hidden)]
pub fn seal_meta(slot: &mut [u8]) {
    if slot.len() != SLOT_BYTES {
        return;
    }
    let crc = crc32(&slot[..PREAMBLE_BYTES - 4]);
    slot[PREAMBLE_BYTES - 4..PREAMBLE_BYTES].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32(&slot[PREAMBLE_BYTES..SLOT_BYTES - 4]);
    slot[SLOT_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
}

/// Gives the bytes at `at` of the first data file of a store the checksums of a record, as its
/// header and the header of its segment have them. For fuzzing.
#[doc(hidden)]
pub fn seal_record(data: &mut [u8], at: usize) {
    let (Some(head), Some(segments)) = (data.get(..64), at.checked_sub(SEGMENTS_START as usize))
    else {
        return;
    };
    let (mut store_id, mut segment_bytes) = ([0; 16], [0; 4]);
    store_id.copy_from_slice(&head[16..32]);
    segment_bytes.copy_from_slice(&head[40..44]);
    let segment_bytes = (u32::from_le_bytes(segment_bytes) as usize).max(1);
    let id = SegmentId((segments / segment_bytes) as u32);
    let start = SEGMENTS_START as usize + segments / segment_bytes * segment_bytes;
    let mut header = [0; segment::HEADER_BYTES];
    let Some(bytes) = data.get(start..start + header.len()) else { return };
    header.copy_from_slice(bytes);
    let Ok(header) = segment::Header::decode(&header, &store_id, id) else { return };
    let place = Place::segment(&store_id, id, header.generation);
    seal_record_at(&mut data[at..], place, (at - start) as u32);
}

/// Gives the record at the front of `bytes` its checksums, and says where the next one would be.
fn seal_record_at(bytes: &mut [u8], place: Place, offset: u32) -> Option<usize> {
    let sizes = Extents::read(bytes, bytes.len()).ok()?;
    let body_crc = crc32(&bytes[sizes.head_len..sizes.len]);
    bytes[36..40].copy_from_slice(&body_crc.to_le_bytes());
    let crc = crc32(&bytes[WORD_BYTES..sizes.head_len]) ^ place.mask(offset, sizes.len as u32);
    bytes[4..8].copy_from_slice(&crc.to_le_bytes());
    Some(padded(sizes.len))
}

/// Gives everything in a data file the checksums that its bytes have: header, marks, segments with records,
/// indexes and trailers. For fuzzing.
#[doc(hidden)]
pub fn seal_data(data: &mut [u8], number: u32) {
    let head = data.get_mut(..file::HEADER_BYTES).and_then(|head| head.try_into().ok());
    let Some(head): Option<&mut [u8; file::HEADER_BYTES]> = head else { return };
    file::Header::seal(head);
    let store_id = file::Header::owner_named(head);
    let mut words = [0; 4];
    words.copy_from_slice(&head[32..36]);
    let first = u32::from_le_bytes(words);
    words.copy_from_slice(&head[40..44]);
    // A segment has at least its header and its trailer.
    let segment_bytes = (u32::from_le_bytes(words) as usize).max(4096);
    for slot in 0..mark::SLOTS {
        let at = file::mark_offset(slot) as usize;
        let Some(page) = data.get_mut(at..at + PAGE_BYTES) else { return };
        mark::Mark::seal(page, &store_id, FileId(number), slot);
    }
    let starts = (SEGMENTS_START as usize..data.len()).step_by(segment_bytes);
    for (start, id) in starts.zip(first..) {
        let Some(bytes) = data.get_mut(start..start + segment_bytes) else { return };
        let generation = segment::Header::seal(&mut bytes[..segment::HEADER_BYTES]);
        let place = Place::segment(&store_id, SegmentId(id), generation);
        let mut at = DATA_START as usize;
        while let Some(len) =
            bytes.get_mut(at..).and_then(|it| seal_record_at(it, place, at as u32))
        {
            at += len;
        }
        segment::Trailer::seal(bytes, place);
    }
}

/// The same for a names file, of the store of this meta file. For fuzzing.
#[doc(hidden)]
pub fn seal_names(names: &mut [u8], store_id: &[u8; 16]) {
    let mut at = 0;
    while let Some(len) =
        names.get_mut(at..).and_then(|it| names::Entry::seal(it, store_id, at as u32))
    {
        at += len;
    }
}

/// Reads the bytes as a record, as they are and under a checksum that is right for them; what
/// decodes must be writable and decode to the same again. For fuzzing.
#[doc(hidden)]
pub fn exercise_record(bytes: &[u8]) {
    let place = Place::segment(&[7; 16], SegmentId(1), Generation(1));
    let offset = DATA_START;
    // Almost never right, and never a panic.
    if let Ok(record) = RecordRef::check(bytes, place, offset) {
        record.check_body().unwrap_or_default();
    }
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let mut sealed = bytes.to_vec();
    // The length is what there is, and the word fits the rest.
    sealed[..4].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
    let Ok(sizes) = Extents::read(&sealed, sealed.len()) else { return };
    let body_crc = crc32(&sealed[sizes.head_len..]);
    sealed[36..40].copy_from_slice(&body_crc.to_le_bytes());
    let crc = crc32(&sealed[WORD_BYTES..sizes.head_len]) ^ place.mask(offset, sizes.len as u32);
    sealed[4..8].copy_from_slice(&crc.to_le_bytes());
    let Ok(record) = RecordRef::check(&sealed, place, offset) else { return };
    assert_eq!(record.check_body(), Ok(()));
    let draft = Draft::new(&record.read());
    let mut again = draft.word(place, offset).to_vec();
    draft.parts().iter().for_each(|part| again.extend_from_slice(part));
    assert_eq!(RecordRef::check(&again, place, offset).map(RecordRef::read), Ok(record.read()));
}
