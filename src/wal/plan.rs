//! What the lanes give a round to do, and what they take from one that has ended.

use std::sync::Arc;

use super::data_file::DataFile;
use super::lane::Append;
use super::lanes::Lanes;
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

impl Lanes {
    /// Takes down what a round that begins now has to make durable; `None` when everything is, and
    /// the last mark says so. Whatever is appended from now on is the next round's.
    pub(crate) fn begin_round(&self) -> Option<Plan> {
        let mut all = self.all();
        if all.is_proven() {
            return None;
        }
        // Until something is appended, this round's mark is the last word, if it proves it all.
        all.set_proven();
        let active: Vec<_> = all.active().cloned().collect();
        let shared = &mut *all.shared;
        if self.append == Append::Mapped {
            // A sync cleans pages: storing to them faults again.
            active.iter().chain(shared.prepared.iter()).for_each(|it| it.note_sync());
        }
        let ended = shared.ended.iter().map(|it| &it.segment);
        let unstable = shared.unstable.iter().map(|(segment, _)| segment).chain(ended);
        let segments: Vec<_> = unstable.cloned().chain(active).collect();
        let prepared = shared.prepared.first();
        // R8: the least generation of all that is active, prepared or about to be, or sealed since
        // the last completed round began.
        let used = segments.iter().chain(prepared).map(|it| it.generation);
        let used = used.chain(shared.headed.iter().copied()).chain(shared.given_up);
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
        shared.settled.retain(|(_, generation, _)| *generation >= stable);
        let settled = shared.settled.iter().map(|&(segment, generation, end)| Entry {
            segment,
            generation,
            durable: end,
            attempted: end,
        });
        entries.extend(settled);
        let files: Vec<_> = shared.files.iter().filter(|file| file.take_dirty()).cloned().collect();
        let marked = files.first().cloned().or(last).or_else(|| shared.files.last().cloned());
        let sealed = shared.unstable.len();
        shared.begin_held();
        Some(Plan { entries, stable, files, marked, segments, sealed })
    }

    /// The round that took `plan` has ended: everything in it is durable.
    pub(crate) fn end_round(&self, plan: &Plan) {
        let mut shared = self.shared();
        for (segment, entry) in plan.segments.iter().zip(&plan.entries) {
            segment.set_durable(entry.attempted);
        }
        let ended: Vec<_> = shared.unstable.drain(..plan.sealed).collect();
        for (segment, sealed) in ended {
            shared.settled.push((segment.id, segment.generation, sealed.end));
            shared.sealed.push(sealed);
        }
        shared.end_held();
        if plan.entries.iter().any(|entry| entry.durable != entry.attempted) {
            // The mark could not yet say so; the next one can (R10).
            shared.proven = false;
        }
    }

    /// The least generation that is prepared, or about to be.
    pub(crate) fn first_prepared(&self) -> Option<Generation> {
        let shared = self.shared();
        let first = shared.prepared.first().map(|segment| segment.generation);
        first.into_iter().chain(shared.headed.iter().copied()).chain(shared.given_up).min()
    }

    /// Whether a mark is still owed for what is durable already, and nothing else.
    pub(crate) fn is_proven(&self) -> bool {
        self.all().is_proven()
    }
}

#[cfg(test)]
mod tests {
    use super::super::class::Class;
    use super::super::fixtures::{SEGMENT_BYTES, data_file, release, segment};
    use super::super::lane::{LaneChoice, RoomChange};
    use super::*;
    use crate::format::draft::Draft;
    use crate::sys::heap::HeapFs;
    use crate::types::KeyHash;

    #[test]
    fn a_round_syncs_the_file_of_whatever_was_appended_before_it() {
        let file = data_file(&HeapFs::new(), 2);
        let lanes = Lanes::new(Append::Mapped, SEGMENT_BYTES, 0, true, 1, true);
        // Whoever makes the file has entered one of its segments, and somebody fills it at once.
        lanes.add_prepared(segment(&file, 0));
        let appended = lanes.append(
            &Draft::new(&release(b"key", KeyHash(1))),
            Class::Claims,
            RoomChange::default(),
            LaneChoice::Any(0),
            Append::Mapped,
        );
        appended.unwrap();
        let plan = lanes.begin_round().unwrap();
        assert_eq!(plan.files.len(), 1);
        assert!(Arc::ptr_eq(&plan.files[0], &file));
        lanes.add_prepared(segment(&file, 1));
        assert_eq!(lanes.shared().files.len(), 1, "once each");
    }
}
