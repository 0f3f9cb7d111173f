//! A lane: streams of segments that are filled under one lock.
//!
//! A stream owns its active segment exclusively, so at most the last record of a segment can be
//! unfinished after a kill, and no hole hides an acknowledged record behind it. Each class has a
//! stream in each lane that has records of it; all of them take from the same prepared segments
//! ([`super::lanes`]).

use std::sync::Arc;

use super::class::Class;
use super::segments::Segment;
use super::stream::Stream;
use crate::error::Failure;
use crate::format::segment::data_limit;
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::sys::sync::{Mutex, MutexGuard, spin_loop};

/// How bytes get into a segment (docs/decisions/0005-append.md).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Append {
    /// Stores through the mapping: no system call.
    Mapped,
    /// One positioned write: a sync of a written page costs half of one of a stored-to page.
    Positioned,
}

/// What an append does to the room that is reserved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct RoomChange {
    /// Bytes that were reserved and are not any more.
    pub(crate) release: u64,
    /// Bytes to reserve.
    pub(crate) reserve: u64,
    /// An exit: never refused, and never longer than what it releases.
    pub(crate) is_exit: bool,
}

/// Why nothing was appended.
#[derive(Debug)]
pub(crate) enum AppendError {
    /// The store must grow first.
    NoRoom,
    /// The write failed; what it left behind is anyone's guess. The caller poisons the store.
    Failed(Arc<Failure>),
}

/// Looks at the lock before whoever appends goes to sleep for it.
const LOCK_SPINS: u32 = 100;
/// Streams of a lane at most, before classes are rounded up, and before they share a stream with another
/// class; and of all lanes together, so that a mark can list their segments.
const STREAMS_EXACT: usize = 17;
const STREAMS_MAX: usize = 48;
const STREAMS_ALL: usize = 96;

/// See the file's header.
#[derive(Debug)]
pub(super) struct Lane {
    state: Mutex<LaneState>,
    /// How often whoever came had to wait for another.
    met: AtomicU64,
}

/// The lane that a record goes to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LaneChoice {
    /// This one: that of the record whose place it takes (R3).
    Of(usize),
    /// Any. This one, if there are so many.
    Any(usize),
}

/// What the lock protects. In this order: what every append changes lies together, with the lock before it.
#[derive(Debug)]
#[repr(C)]
pub(super) struct LaneState {
    /// Room that the lane may reserve, and gets back, without asking: what all lanes share counts it as
    /// reserved.
    pub(super) credit: u64,
    pub(super) appended_bytes: u64,
    /// Whether the last round that began took everything there is.
    pub(super) proven: bool,
    /// The stream of claims is the first one.
    pub(super) streams: Vec<Stream>,
    pub(super) number: usize,
}

impl Lane {
    pub(super) fn new(number: usize) -> Self {
        let state = LaneState {
            credit: 0,
            appended_bytes: 0,
            proven: true,
            streams: vec![Stream { class: Class::Claims, active: None }],
            number,
        };
        Self { state: Mutex::new(state), met: AtomicU64::new(0) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock()
    }

    #[inline]
    pub(super) fn try_lock(&self) -> Option<MutexGuard<'_, LaneState>> {
        self.state.try_lock()
    }

    /// The lock, for who could not have it at once and will shortly: it is held for less time than it takes to
    /// sleep.
    #[cold]
    pub(super) fn lock_after_another(&self) -> MutexGuard<'_, LaneState> {
        self.met.fetch_add(1, Ordering::Relaxed);
        for _ in 0..LOCK_SPINS {
            spin_loop();
            if let Some(state) = self.state.try_lock() {
                return state;
            }
        }
        self.state.lock()
    }

    /// How often whoever came had to wait for another.
    pub(super) fn met(&self) -> u64 {
        self.met.load(Ordering::Relaxed)
    }
}

impl LaneState {
    /// The stream of this class, in a store that uses so many lanes.
    #[inline]
    pub(super) fn stream(&mut self, class: Class, lanes: usize) -> usize {
        let found = self.streams.iter().position(|it| it.class == class);
        found.unwrap_or_else(|| self.other_stream(class, lanes))
    }

    /// How many streams a lane has at most, where there are so many. One more is for large records.
    pub(super) fn streams_max(lanes: usize) -> usize {
        STREAMS_MAX.min(STREAMS_ALL / (lanes + 1))
    }

    #[cold]
    fn other_stream(&mut self, class: Class, lanes: usize) -> usize {
        let most = Self::streams_max(lanes);
        let exact = STREAMS_EXACT.min(most - most / 3);
        let class = if self.streams.len() < exact { class } else { class.rounded_up() };
        if let Some(found) = self.streams.iter().position(|it| it.class == class) {
            return found;
        }
        if self.streams.len() < most {
            self.streams.push(Stream { class, active: None });
            return self.streams.len() - 1;
        }
        let is_unused = |it: &Stream| it.active.is_none() && it.class != Class::Claims;
        if let Some(unused) = self.streams.iter().position(is_unused) {
            self.streams[unused].class = class;
            return unused;
        }
        // What lies in a segment says itself when it has had its time.
        let kept = self.streams.iter().enumerate().filter(|(_, it)| it.class != Class::Claims);
        let longer = kept.clone().filter(|(_, it)| it.class > class).min_by_key(|(_, it)| it.class);
        let stream = longer.or_else(|| kept.max_by_key(|(_, it)| it.class));
        stream.map_or(0, |(at, _)| at)
    }

    /// Whether a record that takes so much `room` fits the stream's active segment.
    #[inline]
    pub(super) fn fits(&self, stream: usize, room: u32, segment_bytes: u32) -> bool {
        let active = self.streams[stream].active.as_ref();
        active.is_some_and(|active| {
            // A segment's bytes.
            let used = active.writer.filled() + active.index.len();
            used + room <= data_limit(segment_bytes)
        })
    }

    /// Makes the change out of the lane's credit, if it has some, and that is neither used up nor more than `most`
    /// then. It has none of its own accord: what all lanes share would not know that there is any.
    #[inline]
    pub(super) fn change_credit(&mut self, change: RoomChange, most: u64) -> bool {
        let credit = (self.credit + change.release).checked_sub(change.reserve);
        let credit = credit.filter(|credit| self.credit > 0 && *credit <= most);
        let Some(credit) = credit else { return false };
        self.credit = credit;
        true
    }

    /// The active segments.
    pub(super) fn active(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.streams.iter().filter_map(|it| it.active.as_ref()).map(|it| &it.segment)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn classes_that_are_too_many_share_streams() {
        for lanes in [1, 2, 4, 8, 16] {
            let lane = Lane::new(0);
            let mut state = lane.lock();
            assert_eq!(state.stream(Class::Claims, lanes), 0);
            let exact = (10..5000).map(|seconds| Class::exact(Duration::from_secs(seconds)));
            let geometric = (0..60).map(|bits| Class::geometric(Duration::from_secs(1 << bits)));
            for class in exact.chain(geometric) {
                let stream = state.stream(class, lanes);
                assert!(stream > 0, "no completion goes to the stream of claims for its class");
                assert_eq!(state.stream(class, lanes), stream);
            }
            assert!(state.streams.len() * (lanes + 1) <= STREAMS_ALL);
        }
    }

    #[test]
    fn credit_is_neither_overdrawn_nor_hoarded() {
        let lane = Lane::new(0);
        let mut state = lane.lock();
        let claim = RoomChange { release: 0, reserve: 100, is_exit: false };
        let exit = RoomChange { release: 100, reserve: 0, is_exit: true };
        assert!(!state.change_credit(claim, 1000), "there is none");
        assert!(!state.change_credit(exit, 1000), "nobody would know of it");
        state.credit = 150;
        assert!(state.change_credit(claim, 1000) && state.credit == 50);
        assert!(!state.change_credit(claim, 1000) && state.credit == 50);
        assert!(state.change_credit(exit, 150) && state.credit == 150);
        assert!(!state.change_credit(exit, 200) && state.credit == 150);
    }
}
