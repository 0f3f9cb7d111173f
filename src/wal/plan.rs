//! What the lane gives a round to do, and what it takes from one that has ended.

use std::sync::Arc;

use super::data_file::DataFile;
use super::lane::{Append, Lane};
use super::segments::Segment;
use crate::format::mark::Entry;
use crate::format::segment::DATA_START;
use crate::types::Generation;

/// What a round has to do, taken when it began.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Every segment with records that is not stable, with its tail.
    pub(crate) entries: Vec<Entry>,
    pub(crate) stable: Generation,
    /// Files with something to sync.
    pub(crate) files: Vec<Arc<DataFile>>,
    /// The file that the mark goes to: one that is synced anyway, if there is one.
    pub(crate) marked: Option<Arc<DataFile>>,
    /// Those of the entries.
    segments: Vec<Arc<Segment>>,
    /// How many of the unstable segments there were: the oldest ones.
    sealed: usize,
}

impl Lane {
    /// Takes down what a round that begins now has to make durable; `None` when everything is, and
    /// the last mark says so. Whatever is appended from now on is the next round's.
    pub(crate) fn begin_round(&self) -> Option<Plan> {
        let mut state = self.state.lock();
        if state.proven {
            return None;
        }
        let active = state.streams.iter().filter_map(|it| it.active.as_ref());
        let ended = state.ended.iter().map(|it| &it.segment);
        let unstable = state.unstable.iter().map(|(segment, _)| segment).chain(ended);
        let segments: Vec<_> = unstable.chain(active.map(|it| &it.segment)).cloned().collect();
        if self.append == Append::Mapped {
            // A sync cleans pages: storing to them faults again.
            let active = state.streams.iter().flat_map(|it| &it.active).map(|it| &it.segment);
            active.chain(state.prepared.iter()).for_each(|it| it.note_sync());
        }
        let prepared = state.prepared.first();
        // R8: the least generation of all that is active, prepared or about to be, or sealed since
        // the last completed round began.
        let used = segments.iter().chain(prepared).map(|it| it.generation);
        let used = used.chain(state.headed.iter().copied()).chain(state.given_up);
        let stable = used.min().unwrap_or_default();
        let mut entries: Vec<_> = segments
            .iter()
            .map(|segment| Entry {
                segment: segment.id,
                generation: segment.generation,
                durable: match segment.durable() {
                    DATA_START => 0,
                    durable => durable,
                },
                attempted: segment.extent.filled(),
            })
            .collect();
        let last = segments.last().or(prepared).map(|segment| Arc::clone(&segment.file));
        state.settled.retain(|(_, generation, _)| *generation >= stable);
        let settled = state.settled.iter().map(|&(segment, generation, end)| Entry {
            segment,
            generation,
            durable: end,
            attempted: end,
        });
        entries.extend(settled);
        let files: Vec<_> = state.files.iter().filter(|file| file.take_dirty()).cloned().collect();
        let marked = files.first().cloned().or(last).or_else(|| state.files.last().cloned());
        let sealed = state.unstable.len();
        // Until something is appended, this round's mark is the last word, if it proves it all.
        state.proven = true;
        state.begin_held();
        Some(Plan { entries, stable, files, marked, segments, sealed })
    }

    /// The round that took `plan` has ended: everything in it is durable.
    pub(crate) fn end_round(&self, plan: &Plan) {
        let mut state = self.state.lock();
        for (segment, entry) in plan.segments.iter().zip(&plan.entries) {
            segment.set_durable(entry.attempted);
        }
        let ended: Vec<_> = state.unstable.drain(..plan.sealed).collect();
        for (segment, sealed) in ended {
            state.settled.push((segment.id, segment.generation, sealed.end));
            state.sealed.push(sealed);
        }
        state.end_held();
        if plan.entries.iter().any(|entry| entry.durable != entry.attempted) {
            // The mark could not yet say so; the next one can (R10).
            state.proven = false;
        }
    }

    /// The least generation that is prepared, or about to be.
    pub(crate) fn first_prepared(&self) -> Option<Generation> {
        let state = self.state.lock();
        let first = state.prepared.first().map(|segment| segment.generation);
        first.into_iter().chain(state.headed.iter().copied()).chain(state.given_up).min()
    }

    /// Whether a mark is still owed for what is durable already, and nothing else.
    pub(crate) fn is_proven(&self) -> bool {
        self.state.lock().proven
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::Class;
    use super::super::data_file::Filling;
    use super::super::lane::RoomChange;
    use super::*;
    use crate::format::ext::Ext;
    use crate::format::flags::Flags;
    use crate::format::record::{Draft, Kind, Record};
    use crate::sys::Pages;
    use crate::sys::heap::HeapFs;
    use crate::types::{Epoch, FencingToken, FileId, KeyHash, NamespaceId, SegmentId, Timestamp};

    const STORE: [u8; 16] = [7; 16];
    const SEGMENT_BYTES: u32 = 256 << 10;

    fn release() -> Record<'static> {
        let now = Timestamp::from_ms(1);
        Record {
            kind: Kind::Release,
            flags: Flags::default(),
            token: FencingToken::new(Epoch(1), 1),
            key_hash: KeyHash(1),
            namespace: NamespaceId(1),
            expires: now,
            until: now,
            at: now,
            code: 0,
            attempt: 1,
            body_len: 0,
            body_crc: 0,
            ext: Ext::default(),
            key: b"key",
            body: &[],
        }
    }

    #[test]
    fn a_round_syncs_the_file_of_whatever_was_appended_before_it() {
        let fs = HeapFs::new();
        let mut filling = Filling::start(&fs, FileId(0), 2, SEGMENT_BYTES, Pages::Small).unwrap();
        filling.step(&fs, u64::MAX).unwrap();
        let now = Timestamp::from_ms(1);
        let file = filling.finish(&fs, &STORE, SegmentId(0), Generation(1), now);
        let file = Arc::new(file.unwrap());
        let lane = Lane::new(Append::Mapped, SEGMENT_BYTES, 0, true);
        let segment = |n: u32| {
            let generation = Generation(1 + u64::from(n));
            Segment::new(&STORE, Arc::clone(&file), SegmentId(n), generation, DATA_START).unwrap()
        };
        // Whoever makes the file has entered one of its segments, and somebody fills it at once.
        lane.add_prepared(segment(0));
        lane.append(&Draft::new(&release()), Class::Claims, RoomChange::default()).unwrap();
        let plan = lane.begin_round().unwrap();
        assert_eq!(plan.files.len(), 1);
        assert!(Arc::ptr_eq(&plan.files[0], &file));
        lane.add_prepared(segment(1));
        assert_eq!(lane.state.lock().files.len(), 1, "once each");
    }
}
