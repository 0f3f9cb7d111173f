//! Making good what a stop left behind, once the store was found to be sound: the first writes of an
//! open.
//!
//! When this is done, the next open finds what this one found, without looking again (R7).

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;

use super::found::Found;
use crate::engine::exits::park_record;
use crate::engine::{Engine, no_room};
use crate::error::OpenError;
use crate::format::META_NAME;
use crate::format::flags::ParkedBy;
use crate::format::record::Draft;
use crate::format::segment::{self, DATA_START, Trailer, trailer_offset};
use crate::sys::FileSystem;
use crate::table::Slot;
use crate::types::{Generation, KeyHash, Location, SegmentId, Timestamp};
use crate::wal::data_file::DataFile;
use crate::wal::segments::{Segment, Segments};

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
            let mut at = scanned.proven;
            while at < scanned.end {
                let piece = (scanned.end - at).min(REWRITE_BYTES);
                let mut bytes = vec![0; piece as usize];
                let offset = start + u64::from(at);
                segment.file.read_at(&mut bytes, offset).map_err(|error| {
                    OpenError::io("read", segment.file.path().to_owned(), error)
                })?;
                write(&segment.file, &bytes, offset)?;
                rewritten += u64::from(piece);
                at += piece;
            }
        }
        let trailer = Trailer {
            data_end: scanned.end,
            max_expires: scanned.max_expires,
            generation: segment.generation,
        };
        let at = trailer_offset(found.meta.segment_bytes);
        write(&segment.file, &trailer.encode(segment.place), start + u64::from(at))?;
    }
    Ok(rewritten)
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
        let header = segment::Header { segment: segment.id, generation, created: now };
        let bytes = header.encode(&found.meta.store_id);
        write(&segment.file, &bytes, segment.file.segment_offset(segment.id))?;
        generations.insert(segment.id, generation);
    }
    Ok(generations)
}

/// The segments as the WAL knows them, and those that are ready to be filled, by generation.
pub(super) fn take_over(
    found: &Found,
    generations: &HashMap<SegmentId, Generation>,
) -> (Segments, Vec<(Generation, SegmentId)>) {
    let segments = Segments::new(found.meta.segment_bytes);
    let mut prepared = Vec::new();
    for (segment, scanned) in found.both() {
        let generation = generations.get(&segment.id).copied().unwrap_or(segment.generation);
        if scanned.end == DATA_START {
            prepared.push((generation, segment.id));
        }
        let file = Arc::clone(&segment.file);
        let store_id = &found.meta.store_id;
        segments.add(Segment::new(store_id, file, segment.id, generation, scanned.end));
    }
    prepared.sort_unstable();
    (segments, prepared)
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
            let claim = engine.wal.segments.record(*location)?;
            let at = engine.timeline.now();
            let (record, change) = park_record(&claim, ParkedBy::Orphaned, at);
            if let Some(parked) = engine.append(&Draft::new(&record), change)? {
                let is_it = |slot: Slot| Ok::<_, OpenError>(slot.location() == *location);
                if let Some((position, _)) = shard.table.find(*hash, is_it)? {
                    shard.table.replace(position, parked, false);
                }
                break;
            }
            drop(shard);
            if let Some(cause) = engine.make_room(growths)? {
                return Err(OpenError::Full { cause });
            }
            if engine.wal.growths() == growths {
                return Err(OpenError::Full { cause: no_room() });
            }
        }
    }
    // The mark may reach the disk without the records: it does not tell the time of this open.
    engine.wal.sync_round(floor).map_err(OpenError::Io)
}
