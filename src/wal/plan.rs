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
