//! Prepared segments: empty, with a durable header, waiting to be filled.

use std::collections::VecDeque;
use std::sync::Arc;

use super::data_file::DataFile;
use super::segments::Segment;
use crate::format::record::exit_bytes_max;
use crate::format::scope::STORED_KEY_BYTES_MAX;
use crate::format::segment::{DATA_START, data_limit};
use crate::types::Generation;

/// When so many segments have become active since, a prepared one is used next, wherever it lies,
/// and an active one is sealed: what is newer than the oldest of them is not stable.
pub(super) const BEHIND_MAX: u64 = 64;

/// Segments beyond what is reserved that only exits, and copies, may use.
pub(super) const SPARE_SEGMENTS: u64 = 3;

/// Those of them that copies leave to exits: opening a store costs one.
pub(super) const EXIT_SEGMENTS: u64 = 1;

/// Data bytes that a prepared segment is good for (W3).
pub(super) fn usable_bytes(segment_bytes: u32) -> u64 {
    let longest_exit = exit_bytes_max(STORED_KEY_BYTES_MAX, true, true) as u64;
    u64::from(data_limit(segment_bytes) - DATA_START) - longest_exit
}

/// Prepared segments that a store of `total` should have, beyond what is reserved.
pub(super) fn wanted_segments(total: u64) -> u64 {
    SPARE_SEGMENTS + (total / 8).clamp(2, 64)
}

/// See the file's header. In rising order of generations.
#[derive(Debug, Default)]
pub(super) struct Pool {
    segments: VecDeque<Prepared>,
}

#[derive(Debug)]
struct Prepared {
    segment: Arc<Segment>,
    /// How many segments had become active when it came.
    came: u64,
}

impl Pool {
    pub(super) fn len(&self) -> u64 {
        self.segments.len() as u64
    }

    /// The one of the least generation.
    pub(super) fn first(&self) -> Option<&Arc<Segment>> {
        self.segments.front().map(|prepared| &prepared.segment)
    }

    pub(super) fn add(&mut self, segment: Arc<Segment>, came: u64) {
        let generation = segment.generation;
        let at = self.segments.binary_search_by_key(&generation, |it| it.segment.generation);
        // None bears it yet.
        self.segments.insert(at.unwrap_or_else(|at| at), Prepared { segment, came });
    }

    /// Takes the segment to be filled next: one in a file that is written to anyway, so that a round
    /// syncs few files, unless another has been waiting for long.
    pub(super) fn take(
        &mut self,
        beside: Option<&Arc<DataFile>>,
        activations: u64,
    ) -> Option<Arc<Segment>> {
        let next = self.places_in_turn(beside, activations).next()?;
        self.segments.remove(next).map(|prepared| prepared.segment)
    }

    /// Where they stand, in the order in which they would be taken.
    fn places_in_turn(
        &self,
        beside: Option<&Arc<DataFile>>,
        activations: u64,
    ) -> impl Iterator<Item = usize> {
        let is_old = |it: &Prepared| it.came + BEHIND_MAX < activations;
        let beside = beside.filter(|_| !self.segments.front().is_some_and(is_old));
        let is_beside =
            move |it: &Prepared| beside.is_some_and(|file| Arc::ptr_eq(&it.segment.file, file));
        let all = || self.segments.iter().enumerate();
        let first = all().filter(move |(_, it)| is_beside(it));
        let others = all().filter(move |(_, it)| !is_beside(it));
        first.chain(others).map(|(at, _)| at)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.segments.iter().map(|prepared| &prepared.segment)
    }

    /// The same, in the order in which they would be taken.
    pub(super) fn in_turn(
        &self,
        beside: Option<&Arc<DataFile>>,
        activations: u64,
    ) -> impl Iterator<Item = &Arc<Segment>> {
        self.places_in_turn(beside, activations).map(|at| &self.segments[at].segment)
    }

    /// How many of them lie in a file.
    pub(super) fn count_in(&self, file: &Arc<DataFile>) -> u64 {
        self.segments.iter().filter(|it| Arc::ptr_eq(&it.segment.file, file)).count() as u64
    }

    /// Takes those out that lie in a file. Gives the least generation of them.
    pub(super) fn take_all_in(&mut self, file: &Arc<DataFile>) -> Option<Generation> {
        let is_of_file = |it: &Prepared| Arc::ptr_eq(&it.segment.file, file);
        let of_file = self.segments.iter().filter(|it| is_of_file(it));
        let least = of_file.map(|it| it.segment.generation).min();
        self.segments.retain(|it| !is_of_file(it));
        least
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{data_file, segment};
    use super::*;
    use crate::sys::heap::HeapFs;
    use crate::types::SegmentId;

    #[test]
    fn what_lies_beside_goes_first_unless_another_has_waited_for_long() {
        let (one, other) = (data_file(&HeapFs::new(), 4), data_file(&HeapFs::new(), 4));
        let filled = || {
            let mut pool = Pool::default();
            for (file, number) in [(&other, 3), (&one, 1), (&other, 2), (&one, 0)] {
                pool.add(segment(file, number), 10);
            }
            pool
        };
        let take = |beside: Option<&Arc<DataFile>>, activations: u64| {
            let mut pool = filled();
            let order: Vec<_> = pool.in_turn(beside, activations).map(|it| it.id).collect();
            let first = pool.take(beside, activations).unwrap().id;
            assert_eq!((first, order.len(), pool.len()), (order[0], 4, 3));
            order.into_iter().map(|SegmentId(number)| number).collect::<Vec<_>>()
        };
        assert_eq!(take(None, 10), [0, 1, 2, 3]);
        assert_eq!(take(Some(&other), 10), [2, 3, 0, 1]);
        assert_eq!(take(Some(&other), 10 + BEHIND_MAX), [2, 3, 0, 1]);
        assert_eq!(take(Some(&other), 11 + BEHIND_MAX), [0, 1, 2, 3], "the first is old");
    }
}
