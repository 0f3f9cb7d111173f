//! Reading the indexes of sealed segments in place of their records, on several threads.
//!
//! Each thread has some of the shards and goes over all entries, so that no table is shared.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::scan::{Records, Sealed, read_index};
use super::winners::Winners;
use crate::error::OpenError;
use crate::format::segment::Content;
use crate::hash::KeyHasher;
use crate::types::{Epoch, Location, NamespaceId, SegmentId};

/// Fewer entries than this are no work for several threads.
const ENTRIES_FOR_THREADS: u64 = 50_000;
const THREADS_MAX: usize = 8;
/// Entries whose places in the table are loaded together.
const ENTRIES_TOUCHED: usize = 32;

/// Lets the records of these segments compete by their indexes, on several threads: each takes some
/// of the shards, and goes over all entries. Gives the segments whose index cannot be trusted, and
/// the highest epoch of any token.
pub(super) fn offer_indexes(
    indexed: &[&Sealed],
    segments: &[Sealed],
    winners: &mut Winners,
    hashers: &HashMap<NamespaceId, KeyHasher>,
) -> Result<(HashSet<SegmentId>, Epoch), OpenError> {
    let entries: u64 =
        indexed.iter().filter_map(|it| it.trailer).map(|it| u64::from(it.entries)).sum();
    let threads = match entries {
        0 => return Ok((HashSet::new(), Epoch(0))),
        1..ENTRIES_FOR_THREADS => 1,
        _ => std::thread::available_parallelism().map_or(1, |it| it.get().min(THREADS_MAX)),
    };
    let segment_bytes = indexed.first().map_or(0, |it| it.file.header().segment_bytes);
    let parts = winners.split(threads);
    // Completions first, then claims, the newest first: so exits come before most of what they end.
    let mut indexed: Vec<_> =
        indexed.iter().filter_map(|it| it.trailer.map(|trailer| (*it, trailer))).collect();
    indexed.sort_by_key(|(segment, trailer)| {
        (trailer.content == Content::Claims, Reverse(segment.generation))
    });
    let offer = |mut part: Winners| {
        let mut records = Records::new(segments, segment_bytes);
        let (mut buffer, mut entries) = (Vec::new(), Vec::new());
        let (mut bad, mut epoch) = (Vec::new(), Epoch(0));
        for (segment, trailer) in &indexed {
            if !read_index(segment, trailer, &mut buffer, &mut entries)? {
                bad.push(segment.id);
                continue;
            }
            for entry in &entries {
                if !hashers.contains_key(&entry.namespace) {
                    let what =
                        format!("its index names namespace {}", entry.namespace.unscoped().0);
                    return Err(segment.corrupt(entry.offset, what));
                }
                epoch = epoch.max(entry.token.epoch());
            }
            part.keep_contenders(&mut entries);
            for from in (0..entries.len()).step_by(ENTRIES_TOUCHED) {
                let few = &entries[from..entries.len().min(from + ENTRIES_TOUCHED)];
                few.iter().for_each(|it| part.prefetch(it.key_hash));
                for entry in few {
                    let location = Location::new(segment.id, entry.offset, segment_bytes);
                    part.offer_entry(entry, location, &mut records)?;
                }
            }
        }
        Ok::<_, OpenError>((part, bad, epoch))
    };
    let done: Vec<_> = if threads == 1 {
        parts.into_iter().map(offer).collect()
    } else {
        std::thread::scope(|scope| {
            let offer = &offer;
            let running: Vec<_> =
                parts.into_iter().map(|part| scope.spawn(move || offer(part))).collect();
            let joined = running.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            joined.collect()
        })
    };
    let (mut bad, mut epoch) = (HashSet::new(), Epoch(0));
    for part in done {
        let (part, bad_of_part, epoch_of_part) = part?;
        winners.join(part);
        bad.extend(bad_of_part);
        epoch = epoch.max(epoch_of_part);
    }
    Ok((bad, epoch))
}
