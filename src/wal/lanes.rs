//! The lanes, and what they share. Room is in [`super::room`].
//!
//! Threads are spread over lanes, so that those which append seldom meet, and each finds the lines that it writes
//! where it left them; each lane fills segments of its own ([`Lane`]). A store begins with one, and has twice as many when
//! threads have met often enough and there is room: each has active segments that others cannot use.
//!
//! ```text
//! prepared -> active -> ended -> sealed (unstable) -> stable -> recycled: prepared again
//! ```
//!
//! A prepared segment is empty and its header is durable. One that is full is sealed by maintenance:
//! its index takes longer to write than who appends should wait. A sealed one is unstable until a round
//! that began after the sealing has ended; then [`Lanes::take_sealed`] hands it over, to be recycled
//! when its time has come.
//!
//! Large completions have a lane of their own, so that who claims does not wait while they are copied. No order is
//! kept with them: a segment of completions outlives all claims of its time (R4).
//!
//! Order. Segments of claims are numbered as they become active, and destroyed in that order (R3). A record that
//! takes the place of another, or ends it, goes to the lane of that one, so it lies in the same segment or in one of a higher
//! number. What takes the place of none, or of one that recovery found, may go to any lane: found segments are destroyed first.
//!
//! Locks: lanes by falling number, then what they share.
//!
//! Invariants
//! - W4  Every tail handed to a round was reached by appends that finished before.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_utils::CachePadded;
use smallvec::SmallVec;

use super::class::Class;
use super::data_file::DataFile;
use super::lane::{Append, AppendError, Lane, LaneChoice, LaneState, RoomChange};
use super::pool::{BEHIND_MAX, Pool, usable_bytes};
use super::segments::Segment;
use super::stream::{Active, Ended, Index, SealedSegment, Stream};
use crate::error::Failure;
use crate::format::draft::Draft;
use crate::format::mark::LISTED_MAX;
use crate::format::record::WORD_BYTES;
use crate::sys::extent::ExtentWriter;
use crate::sys::ordinal;
use crate::sys::point::{Point, reach};
use crate::sys::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use crate::sys::sync::{Mutex, MutexGuard};
use crate::types::{Generation, Location, SegmentId};

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Lanes {
    pub(super) append: Append,
    pub(super) segment_bytes: u32,
    /// See [`usable_bytes`].
    pub(super) usable: u64,
    /// Prepared segments that are wanted at least.
    pub(super) headroom: u64,
    /// Whether rounds make anything durable here.
    pub(super) has_rounds: bool,
    /// What a lane takes of the room at a time, to have it as credit.
    pub(super) credit: u64,
    /// Whether threads must have met before there are more lanes.
    pub(super) is_lazy: bool,
    /// The last one is for large records.
    pub(super) lanes: Box<[CachePadded<Lane>]>,
    /// How many lanes are in use, a power of two. Changed under all locks.
    pub(super) in_use: AtomicUsize,
    /// How often threads had met when that was last looked at.
    pub(super) met: AtomicU64,
    shared: CachePadded<Mutex<Shared>>,
}

/// What lanes share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    /// Reserved for exits, the credit of lanes with it.
    pub(super) held: u64,
    /// The most that was since the present round began, and since the one before it did. What gave room
    /// back may not be durable, and after a kill or a power cut it has not.
    pub(super) held_since: u64,
    pub(super) held_peak: u64,
    /// Whether any lane may have credit.
    pub(super) is_on_credit: bool,
    /// Bytes of records that recovery found, and of those that are gone.
    pub(super) found_bytes: u64,
    pub(super) gone_bytes: u64,
    /// Whether everything up to the present tails is durable and the last mark says so, as far as no
    /// lane says otherwise.
    pub(super) proven: bool,
    pub(super) prepared: Pool,
    /// Where a segment last became active.
    pub(super) beside: Option<Arc<DataFile>>,
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
    /// How many segments are active.
    pub(super) active: usize,
    /// Whether somebody found that a mark could list no more segments.
    pub(super) is_crowded: bool,
    /// How many segments of claims became active.
    claims: u64,
    /// How many segments became active.
    activations: u64,
}

/// All lanes and what they share, locked.
pub(super) struct All<'a> {
    pub(super) lanes: SmallVec<[MutexGuard<'a, LaneState>; LANES_MAX + 1]>,
    pub(super) shared: MutexGuard<'a, Shared>,
}

/// Lanes at most.
pub(crate) const LANES_MAX: usize = 16;
/// What is made ready of prepared segments for each stream, at most.
const AHEAD_BYTES_MAX: u64 = 16 << 20;
/// When an active segment of claims that is needed to the end is looked at again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// So many segments in a mark are many: one slot has room for 168, see [`crate::format::mark`].
const LISTED_MANY: usize = 130;
/// A lane's credit is one part in so many of a segment.
const CREDIT_PART: u64 = 32;
/// A record that takes more is large: nobody waits while it is copied but for others.
const LARGE_BYTES: u32 = 64 << 10;

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

impl All<'_> {
    /// The active segments.
    pub(super) fn active(&self) -> impl Iterator<Item = &Arc<Segment>> {
        self.lanes.iter().flat_map(|lane| lane.active())
    }

    /// Whether everything up to the present tails is durable and the last mark says so.
    pub(super) fn is_proven(&self) -> bool {
        self.shared.proven && self.lanes.iter().all(|lane| lane.proven)
    }

    /// Says so, until something is appended.
    pub(super) fn set_proven(&mut self) {
        self.shared.proven = true;
        self.lanes.iter_mut().for_each(|lane| lane.proven = true);
    }
}

impl Shared {
    /// How many segments a mark would list at the most.
    fn listed(&self) -> usize {
        self.active + self.ended.len() + self.unstable.len() + self.settled.len()
    }
}

impl Lanes {
    /// Whether somebody found that a mark could list no more segments, and that it still could not.
    pub(crate) fn is_crowded(&self) -> bool {
        let mut shared = self.shared();
        shared.is_crowded = shared.is_crowded && shared.listed() >= LISTED_MAX;
        shared.is_crowded
    }

    /// `headroom_bytes` of prepared segments are wanted at least. So many lanes at most, a power of two.
    pub(crate) fn new(
        append: Append,
        segment_bytes: u32,
        headroom_bytes: u64,
        has_rounds: bool,
        lanes: usize,
        is_lazy: bool,
    ) -> Self {
        debug_assert!(lanes.is_power_of_two() && lanes <= LANES_MAX);
        let shared = Shared { proven: true, ..Shared::default() };
        let usable = usable_bytes(segment_bytes);
        Self {
            append,
            segment_bytes,
            usable,
            headroom: headroom_bytes.div_ceil(u64::from(segment_bytes)),
            has_rounds,
            credit: usable / CREDIT_PART,
            is_lazy,
            lanes: (0..=lanes).map(|number| CachePadded::new(Lane::new(number))).collect(),
            in_use: AtomicUsize::new(1),
            met: AtomicU64::new(0),
            shared: CachePadded::new(Mutex::new(shared)),
        }
    }

    pub(super) fn all(&self) -> All<'_> {
        // That of large records first: nobody else is kept waiting while one is copied.
        let mut lanes: SmallVec<_> = self.lanes.iter().rev().map(|lane| lane.lock()).collect();
        lanes.reverse();
        All { lanes, shared: self.shared.lock() }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock()
    }

    /// How many lanes are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Acquire)
    }

    /// The lane that is chosen; or of large records, if this is one.
    #[inline]
    fn lane_of(&self, choice: LaneChoice, is_large: bool) -> MutexGuard<'_, LaneState> {
        if is_large {
            return self.lanes[self.lanes.len() - 1].lock();
        }
        let lane = match choice {
            LaneChoice::Of(number) => &self.lanes[number],
            // A power of two.
            LaneChoice::Any(number) => &self.lanes[number & (self.in_use() - 1)],
        };
        lane.try_lock().unwrap_or_else(|| {
            if matches!(choice, LaneChoice::Any(_)) {
                ordinal::change();
            }
            lane.lock_after_another()
        })
    }

    /// A data file that an open found: whatever is written in it, rounds have to sync.
    pub(crate) fn add_file(&self, file: Arc<DataFile>) {
        self.shared.lock().files.push(file);
    }

    /// Tells that a segment whose `bytes` of records are gone got a header of this generation: the
    /// next round makes it durable.
    pub(crate) fn add_headed(&self, id: SegmentId, generation: Generation, bytes: u64) {
        let mut shared = self.shared.lock();
        shared.settled.retain(|(settled, ..)| *settled != id);
        shared.headed.push(generation);
        shared.gone_bytes += bytes;
        shared.proven = false;
    }

    /// Asks the next round for a mark, though there may be nothing else to do.
    pub(crate) fn want_mark(&self) {
        self.shared.lock().proven = false;
    }

    /// Hands over an empty segment whose header is durable. From now on it may be filled, so from now on rounds
    /// sync its file, though it may be new and others of its segments not there yet (W4).
    pub(crate) fn add_prepared(&self, segment: Arc<Segment>) {
        let mut shared = self.shared.lock();
        if !shared.files.iter().any(|it| Arc::ptr_eq(it, &segment.file)) {
            shared.files.push(Arc::clone(&segment.file));
        }
        shared.headed.retain(|headed| *headed != segment.generation);
        let came = shared.activations;
        shared.prepared.add(segment, came);
    }

    /// What is filled next, if each stream takes `bytes` more: segments, and up to where. Nothing where
    /// a call of the kernel writes.
    pub(crate) fn filled_next(&self, bytes: u64) -> Vec<(Arc<Segment>, u64)> {
        let (mut next, mut ahead) = (Vec::new(), 0);
        if self.append == Append::Positioned {
            return next;
        }
        let all = self.all();
        for segment in all.active() {
            let to = u64::from(segment.extent.filled()) + bytes;
            next.push((Arc::clone(segment), to));
            ahead += to.saturating_sub(u64::from(self.segment_bytes)).min(AHEAD_BYTES_MAX);
        }
        let shared = &all.shared;
        let prepared = shared.prepared.in_turn(shared.beside.as_ref(), shared.activations);
        let count = ahead.div_ceil(u64::from(self.segment_bytes)) as usize;
        next.extend(prepared.take(count).map(|it| (Arc::clone(it), ahead)));
        next
    }

    /// Counts a segment that recovery found, and gives its order, see [`SealedSegment`]. Those of
    /// claims come first, in the order in which they were filled.
    pub(crate) fn add_used(&self, bytes: u64, is_claims: bool) -> u64 {
        let mut shared = self.shared.lock();
        shared.found_bytes += bytes;
        let order = shared.claims;
        shared.claims += u64::from(is_claims);
        order
    }

    /// Appends a record. When this returns, readers that learn the location see it whole, and a
    /// killed process does not lose it.
    pub(crate) fn append(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
        choice: LaneChoice,
        way: Append,
    ) -> Result<Location, AppendError> {
        let asker = if change.is_exit { Asker::Exit } else { Asker::Call };
        let room = draft.room() as u64;
        debug_assert!(
            !change.is_exit || room + change.reserve <= change.release,
            "W3: an exit of {room} bytes against {change:?}"
        );
        self.append_asked(draft, class, change, asker, choice, way)
    }

    /// Appends a copy of a record that is to be given up where it lies.
    pub(crate) fn append_copy(
        &self,
        draft: &Draft<'_>,
        class: Class,
        choice: LaneChoice,
        way: Append,
    ) -> Result<Location, AppendError> {
        self.append_asked(draft, class, RoomChange::default(), Asker::Copy, choice, way)
    }

    fn append_asked(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
        asker: Asker,
        choice: LaneChoice,
        way: Append,
    ) -> Result<Location, AppendError> {
        match self.append_for(draft, class, change, asker, choice, way) {
            // The credit of other lanes may be what is missing.
            Err(AppendError::NoRoom) if self.take_all_credit() => {
                self.append_for(draft, class, change, asker, choice, way)
            }
            appended => appended,
        }
    }

    fn append_for(
        &self,
        draft: &Draft<'_>,
        class: Class,
        change: RoomChange,
        asker: Asker,
        choice: LaneChoice,
        way: Append,
    ) -> Result<Location, AppendError> {
        // Callers keep bodies within half a segment, so a record fits an empty one.
        let room = draft.room() as u32;
        let is_large = room > LARGE_BYTES && class != Class::Claims;
        let mut lane = self.lane_of(choice, is_large);
        let stream = lane.stream(class, self.in_use());
        let is_ready = asker != Asker::Copy
            && lane.fits(stream, room, self.segment_bytes)
            && lane.change_credit(change, 2 * self.credit);
        if is_ready {
            return self.put(&mut lane, stream, draft, way);
        }
        // The lane of large records has no claims, so credit is no use to it.
        let credit = if is_large { 0 } else { self.credit };
        let stream = self.make_fit(&mut lane, stream, room, change, asker, credit)?;
        self.put(&mut lane, stream, draft, way)
    }

    /// Reserves room, and takes another segment for the stream, or another stream, where the record does not
    /// fit. Gives the stream.
    fn make_fit(
        &self,
        lane: &mut LaneState,
        mut stream: usize,
        room: u32,
        change: RoomChange,
        asker: Asker,
        credit: u64,
    ) -> Result<usize, AppendError> {
        let mut shared = self.shared.lock();
        shared.take_credit(lane);
        debug_assert!(change.release <= shared.held + change.reserve, "room is released once");
        let held_after = (shared.held + change.reserve).saturating_sub(change.release);
        let (usable, spare) = (self.usable, self.spare());
        let leaves = |prepared: u64, held: u64| prepared * usable >= held + spare * usable;
        let prepared = shared.prepared.len();
        let kept = shared.held_for_exits(self.has_rounds);
        let mut fits = lane.fits(stream, room, self.segment_bytes);
        let is_claims = lane.streams[stream].class == Class::Claims;
        let has_room = prepared.checked_sub(u64::from(!fits)).is_some_and(|after| match asker {
            Asker::Call => held_after == 0 || leaves(after, held_after),
            Asker::Exit => fits || is_claims || leaves(after, held_after),
            // What is left of an active segment may be what an exit counts on.
            Asker::Copy => kept == 0 || after * usable >= kept + self.exit_segments(kept) * usable,
        });
        if !has_room {
            // The last segments are for exits, and shared by all classes.
            stream = 0;
            fits = lane.fits(stream, room, self.segment_bytes);
            if asker != Asker::Exit || !(fits || prepared > 0) {
                if asker == Asker::Copy && kept > shared.held {
                    // After a round there may be more.
                    shared.proven = false;
                }
                return Err(AppendError::NoRoom);
            }
        }
        if !fits {
            if self.has_rounds && shared.listed() >= LISTED_MAX {
                // R9: the next mark lists all that are not stable. Some must become so first.
                shared.is_crowded = true;
                return Err(AppendError::NoRoom);
            }
            self.rotate(lane, &mut shared, stream);
        }
        shared.set_held(held_after);
        // Credit for what comes next, where that does not make room tight.
        let with_credit = held_after + credit;
        if leaves(shared.prepared.len().saturating_sub(1), with_credit) {
            lane.credit = credit;
            shared.set_held(with_credit);
            shared.is_on_credit = true;
        }
        Ok(stream)
    }

    /// Writes a record that fits the stream's active segment.
    fn put(
        &self,
        lane: &mut LaneState,
        stream: usize,
        draft: &Draft<'_>,
        way: Append,
    ) -> Result<Location, AppendError> {
        let Some(active) = &mut lane.streams[stream].active else {
            return Err(AppendError::NoRoom);
        };
        let offset = active.writer.filled();
        write(&active.segment, &mut active.writer, draft, way).map_err(AppendError::Failed)?;
        active.note(draft, offset);
        let location = Location::new(active.segment.id, offset, self.segment_bytes);
        lane.proven = false;
        lane.appended_bytes += draft.room() as u64;
        Ok(location)
    }

    /// Ends the stream's active segment and makes a prepared one active. There is one.
    fn rotate(&self, lane: &mut LaneState, shared: &mut Shared, stream: usize) {
        self.end(lane, shared, stream);
        let next = shared.prepared.take(shared.beside.as_ref(), shared.activations);
        let Some(segment) = next else { return };
        let writer = segment.extent.writer();
        debug_assert!(writer.is_some(), "a prepared segment has no writer");
        let Some(writer) = writer else { return };
        // What comes after a large completion may go anywhere: it outlives the claims before it (R4).
        if lane.number + 1 < self.lanes.len() {
            segment.set_lane(lane.number);
        }
        shared.beside = Some(Arc::clone(&segment.file));
        let index = shared.indexes.pop().unwrap_or_else(|| Index::new(self.segment_bytes));
        let (order, activation) = (shared.claims, shared.activations);
        shared.activations += 1;
        shared.claims += u64::from(lane.streams[stream].class == Class::Claims);
        let active = Active::new(segment, writer, index, order, activation);
        lane.streams[stream].active = Some(active);
        shared.active += 1;
    }

    /// Ends the stream's active segment. Its index is written later, with no lock held.
    pub(super) fn end(&self, lane: &mut LaneState, shared: &mut Shared, stream: usize) {
        let class = lane.streams[stream].class;
        if let Some(active) = lane.streams[stream].active.take() {
            let ended = active.end(class, shared.claims);
            shared.ended.push(ended);
            shared.active -= 1;
        }
    }

    /// Ends all active segments for good: the store is closing.
    pub(crate) fn end_all(&self) {
        let All { mut lanes, mut shared } = self.all();
        for lane in &mut lanes {
            (0..lane.streams.len()).for_each(|stream| self.end(lane, &mut shared, stream));
        }
    }

    /// Ends the active segments that have been filled for long enough, by the monotonic clock, and
    /// those of claims whatever their age whose number is before `claims_before`. Gives the time
    /// until the next one is.
    pub(crate) fn end_aged(&self, now: Duration, claims_before: u64) -> Option<Duration> {
        let All { mut lanes, mut shared } = self.all();
        let activations = shared.activations;
        let active = lanes.iter().flat_map(|lane| lane.active()).count();
        let is_crowded = active + shared.settled.len() > LISTED_MANY;
        let behind = if is_crowded { BEHIND_MAX / 8 } else { BEHIND_MAX };
        let is_scarce = self.leaves_few(&mut lanes, &mut shared);
        let streams = lanes.iter().flat_map(|lane| lane.streams.iter());
        let shortest =
            streams.filter(|it| it.active.is_some()).map(|it| it.class.fill_time()).min();
        let mut next: Option<Duration> = None;
        for lane in &mut lanes {
            for stream in 0..lane.streams.len() {
                let Stream { class, active } = &mut lane.streams[stream];
                let Some(active) = active else { continue };
                let is_claims = *class == Class::Claims;
                // Completions wait for claims.
                let fill_time = shortest.filter(|_| is_claims).unwrap_or(class.fill_time());
                let age = now.saturating_sub(*active.seen.get_or_insert(now));
                let is_behind = active.activation + behind < activations;
                let is_awaited = is_claims && active.order < claims_before;
                let left = if age < fill_time && !is_behind && !is_awaited {
                    fill_time - age
                } else if is_claims && is_scarce {
                    // Exits count on what is left of it, as on a segment.
                    LOOK_AGAIN
                } else {
                    self.end(lane, &mut shared, stream);
                    continue;
                };
                next = Some(next.map_or(left, |next| next.min(left)));
            }
        }
        next
    }
}

/// Writes a record to the end of a segment.
fn write(
    segment: &Segment,
    writer: &mut ExtentWriter,
    draft: &Draft<'_>,
    way: Append,
) -> Result<(), Arc<Failure>> {
    let [front, body, tail] = draft.parts();
    let offset = writer.filled();
    let word = draft.word(segment.place, offset);
    segment.file.set_dirty();
    match way {
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
    writer.prefetch_next();
    Ok(())
}
