//! The lane: one writer's stream of segments.
//!
//! A lane owns its active segment exclusively, so at most the last record of a segment can be
//! unfinished after a kill, and no hole hides an acknowledged record behind it.
//!
//! ```text
//! prepared -> active -> sealed (unstable) -> stable
//! ```
//!
//! A prepared segment is empty and its header is durable. A sealed one is unstable until a round
//! that began after the sealing has ended.
//!
//! Room. A granted claim must be completable on a full disk, so it reserves room for its exits
//! (`held`). Only whole prepared segments count as room, never what is left of the active one: an
//! open seals the active segment and would lose it. A record that is not an exit is refused when
//! the prepared segments left over would hold less than what is reserved, and two more: each open,
//! after a crash or not, costs a segment.
//!
//! Invariants
//! - W3  An exit always fits: room in the active segment plus the prepared ones is at least `held`.
//!   (A prepared segment counts for its data area less the longest exit, which may go to waste at
//!   its end.)
//! - W4  Every tail handed to a round was reached by appends that finished before.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::sync::Arc;

use super::data_file::DataFile;
use super::segments::{Segment, Segments};
use crate::error::Failure;
use crate::format::mark::Entry;
use crate::format::record::{Draft, TERMINATOR_BYTES, WORD_BYTES, exit_bytes_max, padded};
use crate::format::segment::{DATA_START, Trailer, data_limit, trailer_offset};
use crate::sys::extent::ExtentWriter;
use crate::sys::point::{Point, reach};
use crate::sys::sync::Mutex;
use crate::types::{Generation, KEY_BYTES_MAX, Location, SegmentId, Timestamp};

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

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Lane {
    append: Append,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    active: Option<Active>,
    /// In rising order of generations.
    prepared: VecDeque<SegmentId>,
    /// Sealed, and not yet known to be stable; oldest first.
    unstable: Vec<SegmentId>,
    held: u64,
    /// Whether everything up to the present tails is durable and the last mark says so.
    proven: bool,
    appended_bytes: u64,
}

#[derive(Debug)]
struct Active {
    segment: SegmentId,
    writer: ExtentWriter,
    max_expires: Timestamp,
}

/// What a round has to do, taken when it began.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Every segment with records that is not stable, with its tail.
    pub(crate) entries: Vec<Entry>,
    pub(crate) stable: Generation,
    /// Files with something to sync.
    pub(crate) files: Vec<Arc<DataFile>>,
    /// The file that is written to at present.
    pub(crate) current: Option<Arc<DataFile>>,
    /// How many of the unstable segments there were: the oldest ones.
    sealed: usize,
}

/// How much the lane has, and wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Supply {
    pub(crate) prepared: u64,
    pub(crate) held: u64,
    pub(crate) appended_bytes: u64,
    /// Whether the store should grow before it must.
    pub(crate) is_low: bool,
    /// Whether it must, for the next claim to be granted.
    pub(crate) is_short: bool,
}

/// Segments beyond what is reserved that only exits may use.
const SPARE_SEGMENTS: u64 = 2;

/// Data bytes that a prepared segment is good for (W3).
fn usable_bytes(segment_bytes: u32) -> u64 {
    let longest_exit = exit_bytes_max(KEY_BYTES_MAX, true) as u64;
    u64::from(data_limit(segment_bytes) - DATA_START) - longest_exit
}

impl Lane {
    pub(crate) fn new(append: Append) -> Self {
        Self { append, state: Mutex::new(State { proven: true, ..State::default() }) }
    }

    /// Hands prepared segments to the lane, in rising order of generations, all above those it has.
    pub(crate) fn add_prepared(&self, segments: impl IntoIterator<Item = SegmentId>) {
        self.state.lock().prepared.extend(segments);
    }

    /// Reserves room for claims that recovery found.
    pub(crate) fn hold(&self, bytes: u64) {
        self.state.lock().held += bytes;
    }

    /// What there is, in a store of `total` segments. It should grow when, beyond what claims may
    /// not use, less than an eighth of them is left, at least two and at most 64.
    pub(crate) fn supply(&self, segments: &Segments, total: u64) -> Supply {
        let state = self.state.lock();
        let usable = usable_bytes(segments.segment_bytes());
        let prepared = state.prepared.len() as u64;
        let room = prepared * usable;
        let wanted = SPARE_SEGMENTS + (total / 8).clamp(2, 64);
        Supply {
            prepared,
            held: state.held,
            appended_bytes: state.appended_bytes,
            is_low: room < state.held + wanted * usable,
            is_short: room < state.held + SPARE_SEGMENTS * usable,
        }
    }

    /// Appends a record. When this returns, readers that learn the location see it whole, and a
    /// killed process does not lose it.
    pub(crate) fn append(
        &self,
        segments: &Segments,
        draft: &Draft<'_>,
        change: RoomChange,
    ) -> Result<Location, AppendError> {
        let segment_bytes = segments.segment_bytes();
        // Callers keep bodies within half a segment, so a record fits an empty one.
        let len = draft.padded_len() as u32;
        let mut state = self.state.lock();
        let fits = state
            .active
            .as_ref()
            .is_some_and(|active| active.writer.filled() + len <= data_limit(segment_bytes));
        let prepared_after = (state.prepared.len() as u64).checked_sub(u64::from(!fits));
        debug_assert!(change.release <= state.held + change.reserve, "room is released once");
        debug_assert!(
            !change.is_exit || u64::from(len) + change.reserve <= change.release,
            "W3: an exit of {len} bytes against {change:?}"
        );
        let held_after = (state.held + change.reserve).saturating_sub(change.release);
        let Some(prepared_after) = prepared_after else { return Err(AppendError::NoRoom) };
        if !change.is_exit && held_after > 0 {
            let usable = usable_bytes(segment_bytes);
            if prepared_after * usable < held_after + SPARE_SEGMENTS * usable {
                return Err(AppendError::NoRoom);
            }
        }
        if !fits {
            self.rotate(&mut state, segments).map_err(AppendError::Failed)?;
        }
        let Some(active) = &mut state.active else { return Err(AppendError::NoRoom) };
        let segment = known(segments, active.segment);
        let offset = active.writer.filled();
        self.write(segment, &mut active.writer, draft).map_err(AppendError::Failed)?;
        active.max_expires = active.max_expires.max(draft.expires());
        state.held = held_after;
        state.proven = false;
        state.appended_bytes += u64::from(len);
        Ok(Location::new(segment.id, offset, segment_bytes))
    }

    fn write(
        &self,
        segment: &Segment,
        writer: &mut ExtentWriter,
        draft: &Draft<'_>,
    ) -> Result<(), Arc<Failure>> {
        let zeros = [0; Location::UNIT_BYTES + TERMINATOR_BYTES];
        let pad = padded(draft.len()) - draft.len();
        let tail = &zeros[..pad + TERMINATOR_BYTES];
        let offset = writer.filled();
        let word = draft.word(segment.place, offset);
        segment.file.set_dirty();
        match self.append {
            Append::Mapped => {
                // Back to front, and the length last: a process killed here leaves no length.
                // The casts: everything lies within a segment, hence below 2^26.
                let mut at = offset + draft.len() as u32;
                writer.put(at, tail);
                at -= draft.body().len() as u32;
                writer.put(at, draft.body());
                writer.put(offset + WORD_BYTES as u32, draft.head_after_word());
                reach(Point::BeforeLength);
                writer.put_word_last(offset, word);
            }
            Append::Positioned => {
                let parts = [
                    IoSlice::new(&word),
                    IoSlice::new(draft.head_after_word()),
                    IoSlice::new(draft.body()),
                    IoSlice::new(tail),
                ];
                segment.file.write_at(&parts, segment.file_offset(offset))?;
            }
        }
        reach(Point::BehindLength);
        writer.advance(offset + draft.padded_len() as u32);
        Ok(())
    }

    /// Seals the active segment and makes the first prepared one active. There is one.
    fn rotate(&self, state: &mut State, segments: &Segments) -> Result<(), Arc<Failure>> {
        self.seal(state, segments)?;
        if let Some(id) = state.prepared.pop_front() {
            let writer = known(segments, id).extent.writer();
            debug_assert!(writer.is_some(), "a prepared segment has no writer");
            let max_expires = Timestamp::default();
            state.active = writer.map(|writer| Active { segment: id, writer, max_expires });
        }
        Ok(())
    }

    fn seal(&self, state: &mut State, segments: &Segments) -> Result<(), Arc<Failure>> {
        let Some(mut active) = state.active.take() else { return Ok(()) };
        let segment = known(segments, active.segment);
        let trailer = Trailer {
            data_end: active.writer.filled(),
            max_expires: active.max_expires,
            generation: segment.generation,
        };
        let bytes = trailer.encode(segment.place);
        let at = trailer_offset(segments.segment_bytes());
        segment.file.set_dirty();
        reach(Point::BeforeTrailer);
        match self.append {
            Append::Mapped => active.writer.put(at, &bytes),
            Append::Positioned => {
                segment.file.write_at(&[IoSlice::new(&bytes)], segment.file_offset(at))?;
            }
        }
        reach(Point::BehindTrailer);
        state.unstable.push(active.segment);
        state.proven = false;
        Ok(())
    }

    /// Seals the active segment, for good: the store is closing.
    pub(crate) fn seal_active(&self, segments: &Segments) -> Result<(), Arc<Failure>> {
        let mut state = self.state.lock();
        self.seal(&mut state, segments)
    }

    /// Takes down what a round that begins now has to make durable; `None` when everything is, and
    /// the last mark says so. Whatever is appended from now on is the next round's.
    pub(crate) fn begin_round(&self, segments: &Segments) -> Option<Plan> {
        let mut state = self.state.lock();
        if state.proven {
            return None;
        }
        let active = state.active.as_ref().map(|active| active.segment);
        let listed = || state.unstable.iter().copied().chain(active).map(|id| known(segments, id));
        let entries = listed()
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
        // R8: the least generation of all that is active, prepared, or sealed since the last
        // completed round began.
        let prepared = state.prepared.front().map(|id| known(segments, *id));
        let stable = listed().chain(prepared).map(|segment| segment.generation).min();
        let mut files: Vec<Arc<DataFile>> = Vec::new();
        for segment in listed() {
            if segment.file.take_dirty() {
                files.push(Arc::clone(&segment.file));
            }
        }
        let current = listed().last().or(prepared).map(|segment| Arc::clone(&segment.file));
        let sealed = state.unstable.len();
        // Until something is appended, this round's mark is the last word, if it proves it all.
        state.proven = true;
        Some(Plan { entries, stable: stable.unwrap_or_default(), files, current, sealed })
    }

    /// The round that took `plan` has ended: everything in it is durable.
    pub(crate) fn end_round(&self, segments: &Segments, plan: &Plan) {
        let mut state = self.state.lock();
        for entry in &plan.entries {
            known(segments, entry.segment).set_durable(entry.attempted);
        }
        state.unstable.drain(..plan.sealed);
        if plan.entries.iter().any(|entry| entry.durable != entry.attempted) {
            // The mark could not yet say so; the next one can (R10).
            state.proven = false;
        }
    }

    /// The generation of the segment that will be filled next.
    pub(crate) fn first_prepared(&self, segments: &Segments) -> Option<Generation> {
        let first = self.state.lock().prepared.front().copied();
        first.map(|id| known(segments, id).generation)
    }

    /// Whether a mark is still owed for what is durable already, and nothing else.
    pub(crate) fn is_proven(&self) -> bool {
        self.state.lock().proven
    }
}

fn known(segments: &Segments, id: SegmentId) -> &Segment {
    match segments.get(id) {
        Some(segment) => segment,
        None => unreachable!("segment {} was handed to the lane", id.0),
    }
}
