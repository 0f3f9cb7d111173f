//! The lane: the streams of segments that records are appended to.
//!
//! A stream owns its active segment exclusively, so at most the last record of a segment can be
//! unfinished after a kill, and no hole hides an acknowledged record behind it. Each class has a
//! stream; all of them take from the same prepared segments.
//!
//! ```text
//! prepared -> active -> ended -> sealed (unstable) -> stable -> recycled: prepared again
//! ```
//!
//! A prepared segment is empty and its header is durable. One that is full is sealed by maintenance:
//! its index takes longer to write than who appends should wait. A sealed one is unstable until a round
//! that began after the sealing has ended; then [`Lane::take_sealed`] hands it over, to be recycled
//! when its time has come.
//!
//! Room. A granted claim must be completable on a full disk, so it reserves room for its exits
//! (`held`). Only whole prepared segments count as room, never what is left of the active ones: an
//! open seals them. A record that is not an exit is refused when the prepared segments left over
//! would hold less than what is reserved, and three more. Where there is no more than that, exits of
//! all classes go to the stream of claims, so that no class takes a segment for one record. Copies
//! may use two of the three, and leave what was reserved before the last round, too: what gave it back
//! may not be durable. Where no more than that is left, the active segment of claims is not sealed for
//! its age: exits count on it. So after any one end of the process each granted claim can be ended.
//!
//! Invariants
//! - W3  An exit always fits: room in the active segment of claims plus the prepared ones is at
//!   least `held`. (A prepared segment counts for its data area less the longest exit, which may go
//!   to waste at its end.)
//! - W4  Every tail handed to a round was reached by appends that finished before.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use super::class::Class;
use super::data_file::DataFile;
use super::pool::{BEHIND_MAX, EXIT_SEGMENTS, Pool, SPARE_SEGMENTS, usable_bytes, wanted_segments};
use super::segments::Segment;
use super::stream::{Active, Ended, Index, SealedSegment, Stream, Supply};
use crossbeam_utils::CachePadded;

use crate::error::Failure;
use crate::format::record::{Draft, WORD_BYTES};
use crate::format::segment::data_limit;
use crate::sys::extent::ExtentWriter;
use crate::sys::point::{Point, reach};
use crate::sys::sync::{Mutex, MutexGuard, spin_loop};
use crate::types::{Generation, Location, SegmentId};

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
    pub(super) append: Append,
    pub(super) segment_bytes: u32,
    /// See [`usable_bytes`].
    usable: u64,
    /// Prepared segments that are wanted at least.
    headroom: u64,
    /// Whether rounds make anything durable here.
    has_rounds: bool,
    /// On lines of its own: whoever appends writes to it.
    pub(super) state: CachePadded<Mutex<State>>,
}

/// In this order: what every append changes lies together, with the lock before it.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct State {
    /// Reserved for exits.
    held: u64,
    /// The most that was since the present round began, and since the one before it did. What gave room
    /// back may not be durable, and after a kill or a power cut it has not.
    held_since: u64,
    held_peak: u64,
    appended_bytes: u64,
    used_bytes: u64,
    /// Whether everything up to the present tails is durable and the last mark says so.
    pub(super) proven: bool,
    /// The stream of claims is the first one.
    pub(super) streams: Vec<Stream>,
    pub(super) prepared: Pool,
    /// Generations of headers that were written and may not be durable yet.
    pub(super) headed: Vec<Generation>,
    /// The least generation in the data file that is being given up.
    pub(super) given_up: Option<Generation>,
    /// Empty, for segments that will be filled.
    pub(super) indexes: Vec<Index>,
    /// Full, or old enough, and not yet sealed; oldest first.
    pub(super) ended: Vec<Ended>,
    /// Sealed, and not yet known to be stable; oldest first.
    pub(super) unstable: Vec<(Arc<Segment>, SealedSegment)>,
    /// Durable in full, and not yet handed over.
    pub(super) sealed: Vec<SealedSegment>,
    /// Sealed and durable in full, with their ends: they are listed in every mark until the stable
    /// generation has passed them (R9).
    pub(super) settled: Vec<(SegmentId, Generation, u32)>,
    pub(super) files: Vec<Arc<DataFile>>,
    /// How many segments of claims became active.
    claims: u64,
    /// How many segments became active.
    activations: u64,
}

/// What is made ready of prepared segments for each stream, at most.
const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// When an active segment of claims that is needed to the end is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Looks at the lock before whoever appends goes to sleep for it.
const LOCK_SPINS: u32 = 100;
/// Streams at most, before classes are rounded up.
const STREAMS_MAX: usize = 17;

/// Who asks for room.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Asker {
    /// A call, which leaves room for the exits of others.
    Call,
    /// An exit, which has room reserved.
    Exit,
    /// A copy, whose original gives its room back later.
    Copy,
}

impl State {
    #[inline]
    fn set_held(&mut self, held: u64) {
        self.held = held;
        self.held_since = self.held_since.max(held);
        self.held_peak = self.held_peak.max(held);
    }

    /// A round begins: what is given back from now on is not in it.
    pub(super) fn begin_held(&mut self) {
        self.held_since = self.held;
    }

    /// It has ended.
    pub(super) fn end_held(&mut self) {
        self.held_peak = self.held_since;
    }

    /// What copies, and sealing, leave to exits.
    fn held_for_exits(&self, has_rounds: bool) -> u64 {
        if has_rounds { self.held_peak } else { self.held }
    }

    /// The stream of this class.
    fn stream(&mut self, class: Class) -> usize {
        let find = |streams: &[Stream], class| streams.iter().position(|it| it.class == class);
        if let Some(index) = find(&self.streams, class) {
            return index;
        }
        let class = if self.streams.len() < STREAMS_MAX { class } else { class.rounded_up() };
        find(&self.streams, class).unwrap_or_else(|| {
            self.streams.push(Stream { class, active: None });
            self.streams.len() - 1
        })
    }

    /// Whether a record that takes so much `room` fits the stream's active segment.
    fn fits(&self, stream: usize, room: u32, segment_bytes: u32) -> bool {
        let active = self.streams[stream].active.as_ref();
        active.is_some_and(|active| {
            // A segment's bytes.
            let used = active.writer.filled() + active.index.len();
            used + room <= data_limit(segment_bytes)
        })
    }

    /// A file that is written to anyway.
    fn active_file(&self) -> Option<Arc<DataFile>> {
        let active = self.streams.iter().find_map(|it| it.active.as_ref());
        active.map(|it| Arc::clone(&it.segment.file))
    }
}

impl Lane {
    /// `headroom_bytes` of prepared segments are wanted at least.
    pub(crate) fn new(
        append: Append,
        segment_bytes: u32,
        headroom_bytes: u64,
        has_rounds: bool,
    ) -> Self {
        let streams = vec![Stream { class: Class::Claims, active: None }];
        let state = State { streams, proven: true, ..State::default() };
        let (usable, state) = (usable_bytes(segment_bytes), CachePadded::new(Mutex::new(state)));
        let headroom = headroom_bytes.div_ceil(u64::from(segment_bytes));
        Self { append, segment_bytes, usable, headroom, has_rounds, state }
    }

    /// A data file that an open found: whatever is written in it, rounds have to sync.
    pub(crate) fn add_file(&self, file: Arc<DataFile>) {
        self.state.lock().files.push(file);
    }

    /// Tells that a segment whose `bytes` of records are gone got a header of this generation: the
    /// next round makes it durable.
    pub(crate) fn add_headed(&self, id: SegmentId, generation: Generation, bytes: u64) {
        let mut state = self.state.lock();
        state.settled.retain(|(settled, ..)| *settled != id);
        state.headed.push(generation);
        state.used_bytes -= bytes;
        state.proven = false;
    }

    /// Asks the next round for a mark, though there may be nothing else to do.
    pub(crate) fn want_mark(&self) {
        self.state.lock().proven = false;
    }

    /// Hands over an empty segment whose header is durable. From now on it may be filled, so from now on rounds
    /// sync its file, though it may be new and others of its segments not there yet (W4).
    pub(crate) fn add_prepared(&self, segment: Arc<Segment>) {
        let mut state = self.state.lock();
        if !state.files.iter().any(|it| Arc::ptr_eq(it, &segment.file)) {
            state.files.push(Arc::clone(&segment.file));
        }
        state.headed.retain(|headed| *headed != segment.generation);
        let came = state.activations;
        state.prepared.add(segment, came);
    }

    /// What is filled next, if each stream takes `bytes` more: segments, and up to where. Nothing where
    /// a call of the kernel writes.
    pub(crate) fn filled_next(&self, bytes: u64) -> Vec<(Arc<Segment>, u64)> {
        let state = self.state.lock();
        let (mut next, mut ahead) = (Vec::new(), 0);
        if self.append == Append::Positioned {
            return next;
        }
        for active in state.streams.iter().filter_map(|it| it.active.as_ref()) {
            let to = u64::from(active.writer.filled()) + bytes;
            next.push((Arc::clone(&active.segment), to));
            ahead += to.saturating_sub(u64::from(self.segment_bytes)).min(AHEAD_BYTES_MAX);
        }
        let beside = state.active_file();
        let prepared = state.prepared.in_turn(beside.as_ref(), state.activations);
        let count = ahead.div_ceil(u64::from(self.segment_bytes)) as usize;
        next.extend(prepared.take(count).map(|it| (Arc::clone(it), ahead)));
        next
    }

    /// Counts a segment that recovery found, and gives its order, see [`SealedSegment`]. Those of
    /// claims come first, in the order in which they were filled.
    pub(crate) fn add_used(&self, bytes: u64, is_claims: bool) -> u64 {
        let mut state = self.state.lock();
        state.used_bytes += bytes;
        let order = state.claims;
        state.claims += u64::from(is_claims);
        order
    }

    /// Whether there is a data file that [`Lane::take_free_file`] would take.
    pub(crate) fn has_free_file(&self, total: u64) -> bool {
        self.free_file(&self.state.lock(), total).is_some()
    }

    /// Takes a data file out of use, with its segments, of which none holds anything and none will be
    /// missed: twice what should be kept is left, in a store of `total` segments.
    pub(crate) fn take_free_file(&self, total: u64) -> Option<Arc<DataFile>> {
        let mut state = self.state.lock();
        let file = self.free_file(&state, total)?;
        // Until the file is off the list its segments must not pass for stable ones: they have no
        // trailer.
        state.given_up = state.prepared.take_all_in(&file);
        state.files.retain(|it| !Arc::ptr_eq(it, &file));
        // Marks in it go with it: the next round writes one elsewhere.
        state.proven = false;
        Some(file)
    }

    fn free_file(&self, state: &State, total: u64) -> Option<Arc<DataFile>> {
        let usable = self.usable;
        let is_free = |file: &&Arc<DataFile>| {
            let segments = u64::from(file.header().segments);
            let left = state.prepared.len().saturating_sub(segments);
            let wanted = 2 * wanted_segments(total.saturating_sub(segments)).max(self.headroom);
            left * usable >= state.held + wanted * usable
                && state.prepared.count_in(file) == segments
        };
        state.files.iter().filter(is_free).max_by_key(|it| it.header().segments).cloned()
    }

    /// The file that was taken out of use is off the list.
    pub(crate) fn forget_free_file(&self) {
        self.state.lock().given_up = None;
    }

    /// Reserves room for claims that recovery found.
    pub(crate) fn hold(&self, bytes: u64) {
        let mut state = self.state.lock();
        let held = state.held + bytes;
        state.set_held(held);
    }

    /// Gives back what was reserved for a claim that nobody can finish any more.
    pub(crate) fn release(&self, bytes: u64) {
        let mut state = self.state.lock();
        debug_assert!(bytes <= state.held, "room is released once");
        let held = state.held.saturating_sub(bytes);
        state.set_held(held);
    }

    /// What there is, in a store of `total` segments. It should grow when, beyond what claims may
    /// not use, less than an eighth of them is left, at least two and at most 64; and up to the
    /// headroom when it is quiet.
    pub(crate) fn supply(&self, total: u64) -> Supply {
        let state = self.state.lock();
        let usable = self.usable;
        let prepared = state.prepared.len();
        let room = prepared * usable;
        let wanted = wanted_segments(total);
        let least = wanted.max(self.headroom);
        Supply {
            prepared,
            held: state.held,
            appended_bytes: state.appended_bytes,
            used_bytes: state.used_bytes,
            is_ample: room >= state.held + least * 3 / 2 * usable,
            lacks_headroom: room < state.held + least * usable,
            is_low: room < state.held + wanted * usable,
            is_scarce: room
                < state.held + (SPARE_SEGMENTS + (wanted - SPARE_SEGMENTS) / 2) * usable,
            is_short: room < state.held + SPARE_SEGMENTS * usable,
        }
    }

    /// Appends a record. When this returns, readers that learn the location see it whole, and a
    /// killed process does not lose it.
    pub(crate) fn append(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
    ) -> Result<Location, AppendError> {
        let asker = if change.is_exit { Asker::Exit } else { Asker::Call };
        self.append_for(draft, class, change, asker)
    }

    /// Appends a copy of a record that is to be given up where it lies.
    pub(crate) fn append_copy(
        &self,
        draft: &Draft<'_>,
        class: Class,
    ) -> Result<Location, AppendError> {
        self.append_for(draft, class, RoomChange::default(), Asker::Copy)
    }

    fn append_for(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
        asker: Asker,
    ) -> Result<Location, AppendError> {
        // Callers keep bodies within half a segment, so a record fits an empty one.
        let room = draft.room() as u32;
        let mut state = self.lock_soon();
        debug_assert!(change.release <= state.held + change.reserve, "room is released once");
        debug_assert!(
            !change.is_exit || u64::from(room) + change.reserve <= change.release,
            "W3: an exit of {room} bytes against {change:?}"
        );
        let held_after = (state.held + change.reserve).saturating_sub(change.release);
        let usable = self.usable;
        let leaves = |prepared: u64, spare: u64| prepared * usable >= held_after + spare * usable;
        let prepared = state.prepared.len();
        let kept = state.held_for_exits(self.has_rounds);
        let mut stream = state.stream(class);
        let mut fits = state.fits(stream, room, self.segment_bytes);
        let has_room = prepared.checked_sub(u64::from(!fits)).is_some_and(|after| match asker {
            Asker::Call => held_after == 0 || leaves(after, SPARE_SEGMENTS),
            Asker::Exit => fits || class == Class::Claims || leaves(after, SPARE_SEGMENTS),
            // What is left of an active segment may be what an exit counts on.
            Asker::Copy => kept == 0 || after * usable >= kept + EXIT_SEGMENTS * usable,
        });
        if !has_room {
            // The last segments are for exits, and shared by all classes.
            stream = state.stream(Class::Claims);
            fits = state.fits(stream, room, self.segment_bytes);
            if asker != Asker::Exit || !(fits || prepared > 0) {
                if asker == Asker::Copy && kept > state.held {
                    // After a round there may be more.
                    state.proven = false;
                }
                return Err(AppendError::NoRoom);
            }
        }
        if !fits {
            self.rotate(&mut state, stream);
        }
        let Some(active) = &mut state.streams[stream].active else {
            return Err(AppendError::NoRoom);
        };
        let offset = active.writer.filled();
        self.write(&active.segment, &mut active.writer, draft).map_err(AppendError::Failed)?;
        active.note(draft, offset);
        let location = Location::new(active.segment.id, offset, self.segment_bytes);
        state.set_held(held_after);
        state.proven = false;
        state.appended_bytes += u64::from(room);
        state.used_bytes += u64::from(room);
        Ok(location)
    }

    /// The lock, for who will have it shortly: it is held for less time than it takes to sleep.
    fn lock_soon(&self) -> MutexGuard<'_, State> {
        for _ in 0..LOCK_SPINS {
            if let Some(state) = self.state.try_lock() {
                return state;
            }
            spin_loop();
        }
        self.state.lock()
    }

    fn write(
        &self,
        segment: &Segment,
        writer: &mut ExtentWriter,
        draft: &Draft<'_>,
    ) -> Result<(), Arc<Failure>> {
        let [front, body, tail] = draft.parts();
        let offset = writer.filled();
        let word = draft.word(segment.place, offset);
        segment.file.set_dirty();
        match self.append {
            Append::Mapped => {
                // The length last, and a body before it: a process killed here leaves no length.
                let start = offset + WORD_BYTES as u32;
                if !body.is_empty() {
                    // The casts: everything lies within a segment, hence below 2^26.
                    let at = start + front.len() as u32;
                    writer.put(at + body.len() as u32, tail);
                    writer.put(at, body);
                }
                writer.put(start, front);
                reach(Point::BeforeLength);
                writer.put_word_last(offset, word);
            }
            Append::Positioned => {
                let parts = [&word, front, body, tail].map(IoSlice::new);
                segment.file.write_at(&parts, segment.file_offset(offset))?;
            }
        }
        reach(Point::BehindLength);
        writer.advance(offset + draft.padded_len() as u32);
        Ok(())
    }

    /// Ends the stream's active segment and makes a prepared one active. There is one.
    fn rotate(&self, state: &mut State, stream: usize) {
        self.end(state, stream);
        let beside = state.active_file();
        let pool = &mut state.prepared;
        let Some(segment) = pool.take(beside.as_ref(), state.activations) else { return };
        let writer = segment.extent.writer();
        debug_assert!(writer.is_some(), "a prepared segment has no writer");
        let Some(writer) = writer else { return };
        let index = state.indexes.pop().unwrap_or_else(|| Index::new(self.segment_bytes));
        let (order, activation) = (state.claims, state.activations);
        state.activations += 1;
        state.claims += u64::from(state.streams[stream].class == Class::Claims);
        let active = Active::new(segment, writer, index, order, activation);
        state.streams[stream].active = Some(active);
    }

    /// Ends the stream's active segment. Its index is written later, with no lock held.
    fn end(&self, state: &mut State, stream: usize) {
        let class = state.streams[stream].class;
        if let Some(active) = state.streams[stream].active.take() {
            let ended = active.end(class, state.claims);
            state.ended.push(ended);
        }
    }

    /// Ends all active segments for good: the store is closing.
    pub(crate) fn end_all(&self) {
        let mut state = self.state.lock();
        (0..state.streams.len()).for_each(|stream| self.end(&mut state, stream));
    }

    /// Ends the active segments that have been filled for long enough, by the monotonic clock, and
    /// that of claims whatever its age when its number is before `claims_before`. Gives the time
    /// until the next one is.
    pub(crate) fn end_aged(&self, now: Duration, claims_before: u64) -> Option<Duration> {
        let mut state = self.state.lock();
        let activations = state.activations;
        let kept = state.held_for_exits(self.has_rounds);
        let room = state.prepared.len() * self.usable;
        let is_scarce = kept > 0 && room < kept + EXIT_SEGMENTS * self.usable;
        let active = state.streams.iter().filter(|it| it.active.is_some());
        let shortest = active.map(|it| it.class.fill_time()).min();
        let mut next: Option<Duration> = None;
        for stream in 0..state.streams.len() {
            let Stream { class, active } = &mut state.streams[stream];
            let Some(active) = active else { continue };
            let is_claims = *class == Class::Claims;
            // Completions wait for claims.
            let fill_time = shortest.filter(|_| is_claims).unwrap_or(class.fill_time());
            let age = now.saturating_sub(*active.seen.get_or_insert(now));
            let is_behind = active.activation + BEHIND_MAX < activations;
            let is_awaited = is_claims && active.order < claims_before;
            if age >= fill_time || is_behind || is_awaited {
                if is_claims && is_scarce {
                    // Exits count on what is left of it, as on a segment.
                    next = Some(next.map_or(LOOK_AGAIN, |next| next.min(LOOK_AGAIN)));
                    continue;
                }
                self.end(&mut state, stream);
            } else {
                let left = fill_time - age;
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_that_was_given_back_is_kept_until_a_round_has_made_sure_of_it() {
        let mut state = State::default();
        state.set_held(100);
        state.set_held(10);
        assert_eq!((state.held_for_exits(true), state.held_for_exits(false)), (100, 10));
        state.begin_held();
        // After the round began.
        state.set_held(70);
        state.set_held(5);
        assert_eq!(state.held_for_exits(true), 100);
        state.end_held();
        assert_eq!(state.held_for_exits(true), 70, "what gave it back is not in the round");
        state.begin_held();
        state.end_held();
        assert_eq!(state.held_for_exits(true), 5);
    }
}
