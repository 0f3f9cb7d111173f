//! Making good what a stop left behind, once the store was found to be sound: the first writes of an
//! open.
//!
//! When this is done, the next open finds what this one found, without looking again (R7).

use std::collections::HashMap;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use super::found::{Found, Scanned};
use super::scan::Sealed;
use crate::engine::exits::park_record;
use crate::engine::{Engine, no_room};
use crate::error::OpenError;
use crate::format::META_NAME;
use crate::format::draft::Draft;
use crate::format::flags::ParkedBy;
use crate::format::index;
use crate::format::segment::{self, Content, DATA_START, Trailer, index_offset};
use crate::sys::FileSystem;
use crate::sys::pin::Pin;
use crate::table::Slot;
use crate::types::{Generation, KeyHash, Location, SegmentId, Timestamp};
use crate::wal::Wal;
use crate::wal::class::Class;
use crate::wal::data_file::DataFile;
use crate::wal::stream::SealedSegment;

/// Pieces in which a tail is written again.
const REWRITE_BYTES: u32 = 1 << 20;

/// Removes what growth that did not finish has left.
pub(super) fn remove_unlisted(fs: &dyn FileSystem, found: &Found) -> Result<(), OpenError> {
    for name in &found.unlisted {
        fs.remove(name).map_err(|error| OpenError::io("remove", fs.describe(name), error))?;
    }
    if !found.unlisted.is_empty() {
        let failed = |error| OpenError::io("sync the directory of", fs.describe(META_NAME), error);
        fs.sync_dir().map_err(failed)?;
    }
    Ok(())
}

/// Seals what was not sealed, so that the next open finds what this one found, and writes again
/// what the page cache cannot be trusted with. Gives the bytes written again.
pub(super) fn make_good(found: &Found) -> Result<u64, OpenError> {
    let mut rewritten = 0;
    for (segment, scanned) in found.both() {
        if scanned.is_stable || scanned.end == DATA_START {
            continue;
        }
        let start = segment.file.segment_offset(segment.id);
        if found.distrusts_cache() {
            rewritten += write_again(&segment.file, start, scanned.proven..scanned.end)?;
        }
        if scanned.index.is_empty() && scanned.entries > 0 {
            // What was read, and may be in the page cache only.
            let segment_bytes = found.meta.segment_bytes;
            let index = index_offset(segment_bytes, scanned.entries);
            if found.distrusts_cache() {
                rewritten += write_again(&segment.file, start, index..segment_bytes)?;
            }
            continue;
        }
        // Who filled it kept room for the index.
        let trailer = Trailer {
            entries: scanned.entries,
            entries_crc: index::checksum(&scanned.index, segment.place),
            data_end: scanned.end,
            content: scanned.content,
            generation: segment.generation,
            max_expires: scanned.max_expires,
            due: scanned.due,
            latest: scanned.latest,
        };
        let at = index_offset(found.meta.segment_bytes, scanned.entries);
        let bytes = [&scanned.index[..], &trailer.encode(segment.place)].concat();
        write(&segment.file, &bytes, start + u64::from(at))?;
    }
    Ok(rewritten)
}

/// Writes a part of the segment that starts at `start` as it is read. Gives its bytes.
fn write_again(file: &DataFile, start: u64, part: Range<u32>) -> Result<u64, OpenError> {
    let mut at = part.start;
    while at < part.end {
        let piece = (part.end - at).min(REWRITE_BYTES);
        let mut bytes = vec![0; piece as usize];
        let offset = start + u64::from(at);
        file.read_at(&mut bytes, offset)
            .map_err(|error| OpenError::io("read", file.path().to_owned(), error))?;
        write(file, &bytes, offset)?;
        at += piece;
    }
    Ok(u64::from(part.end.saturating_sub(part.start)))
}

fn write(file: &DataFile, bytes: &[u8], offset: u64) -> Result<(), OpenError> {
    file.write_at(&[IoSlice::new(bytes)], offset).map_err(OpenError::Io)
}

/// Gives every empty segment a generation of its own: a record behind a hole must not become valid
/// again when the hole is filled (R8), and a file as it was before this open must not pass for the
/// one that this open will fill, also when the store was closed in order. Gives the new generations.
pub(super) fn renew_empty(
    found: &Found,
    first: Generation,
    now: Timestamp,
) -> Result<HashMap<SegmentId, Generation>, OpenError> {
    let mut generations = HashMap::new();
    for (segment, generation) in found.empty().zip(first.0..) {
        let generation = Generation(generation);
        let (created, is_recycled) = (now, segment.is_recycled);
        let header = segment::Header { segment: segment.id, generation, created, is_recycled };
        let bytes = header.encode(&found.meta.store_id);
        write(&segment.file, &bytes, segment.file.segment_offset(segment.id))?;
        generations.insert(segment.id, generation);
    }
    Ok(generations)
}

/// Hands the segments to the WAL, and those with records to whoever expires them: claims first, each
/// kind in the order in which it was filled.
pub(super) fn take_over(
    wal: &Wal,
    found: &[(Sealed, Scanned)],
    generations: &HashMap<SegmentId, Generation>,
) -> Vec<SealedSegment> {
    let mut sealed = Vec::new();
    for content in [Content::Claims, Content::Completions] {
        for (segment, scanned) in found {
            let (id, end) = (segment.id, scanned.end);
            if end > DATA_START && scanned.content == content {
                let mut segment = SealedSegment {
                    id,
                    file: Arc::clone(&segment.file),
                    is_claims: content == Content::Claims,
                    end,
                    entries: scanned.entries,
                    due: scanned.due,
                    is_found: true,
                    order: 0,
                };
                segment.order = wal.add_used(segment.bytes(), segment.is_claims);
                sealed.push(segment);
            }
        }
    }
    for (segment, scanned) in found {
        let generation = generations.get(&segment.id).copied().unwrap_or(segment.generation);
        wal.enter(&segment.file, segment.id, generation, scanned.end);
    }
    sealed
}

/// Writes a forget for each of these completions: it was forgotten, and what said so is lost. Gives
/// those for which there is no room: they keep everything else where it is. No round is needed:
/// whatever may be destroyed next is so after two of them.
pub(super) fn forget_again(
    engine: &Engine,
    mut lost: Vec<(Location, Timestamp)>,
) -> Result<Vec<(Location, Timestamp)>, OpenError> {
    while let Some((location, _)) = lost.last() {
        let growths = engine.wal.growths();
        if engine.forget_again(*location)? {
            lost.pop();
        } else if engine.make_room(growths)?.is_some() || engine.wal.growths() == growths {
            break;
        }
    }
    Ok(lost)
}

/// Makes room, or says that there is none.
fn make_room(engine: &Engine, growths: u64) -> Result<(), OpenError> {
    if let Some(cause) = engine.make_room(growths)? {
        return Err(OpenError::Full { cause });
    }
    if engine.wal.growths() == growths {
        return Err(OpenError::Full { cause: no_room() });
    }
    Ok(())
}

/// Writes a park record for every orphan whose rule says so, durably, before anybody is served: a
/// claim that nobody finishes must not be forgotten by the clock.
pub(super) fn park_orphans(
    engine: &Engine,
    to_park: &[(KeyHash, Location)],
    floor: Timestamp,
) -> Result<(), OpenError> {
    for (hash, location) in to_park {
        loop {
            let growths = engine.wal.growths();
            let mut shard = engine.lock_shard(*hash)?;
            let pin = Pin::new();
            let claim = engine.wal.segments.record(*location, &pin)?;
            let at = engine.timeline.now();
            let (record, change) = park_record(claim, ParkedBy::Orphaned, at);
            if let Some(parked) =
                engine.append(&Draft::new(&record), Class::Claims, change, None)?
            {
                let is_it = |slot: Slot| Ok::<_, OpenError>(slot.location() == *location);
                if let Some((position, _)) = shard.table.find(shard.table.route(*hash), is_it)? {
                    shard.table.replace(position, parked, false);
                }
                break;
            }
            drop(shard);
            make_room(engine, growths)?;
        }
    }
    // The mark may reach the disk without the records: it does not tell the time of this open.
    engine.wal.sync_round(|| floor).map_err(OpenError::Io)
}
