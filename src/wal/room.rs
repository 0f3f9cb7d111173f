//! Room: what prepared segments must be left for the exits of claims, what lanes may have of it, and when there should be
//! more.
//!
//! Room. A granted claim must be completable on a full disk, so it reserves room for its exits
//! (`held`). Only whole prepared segments count as room, never what is left of the active ones: an
//! open seals them. A record that is not an exit is refused when the prepared segments left over
//! would hold less than what is reserved, and three more; and one more for each further lane, because what is left of
//! a lane's last segment is no use to another's exits. Where there is no more than that, exits of
//! all classes go to the stream of claims, so that no class takes a segment for one record. Copies
//! may use two of the three, and leave what was reserved before the last round, too: what gave it back
//! may not be durable. Where no more than that is left, the active segment of claims is not sealed for
//! its age: exits count on it. So after any one kill each granted claim can be ended (a power cut: docs/decisions/0007-room.md).
//!
//! Credit. Each lane holds some room that counts as reserved already, and that its claims take and its exits give
//! back, so that few appends look at what is shared. It is given where it leaves what must be spared, and with a segment
//! to take besides; so whoever claims on credit takes no room of a segment that an exit took because room was tight.
//! Who finds no room takes the credit of all lanes, and looks again.
//!
//! Invariants
//! - W3  An exit always fits: for each lane, room in its active segment of claims plus the prepared ones that
//!   others do not need is at least what its claims have reserved. (A prepared segment counts for its data area
//!   less the longest exit, which may go to waste at its end.)
//! - W6  A lane's `credit` is a part of `held`, and where any lane has some, `is_on_credit` says so.

use std::sync::Arc;

use super::data_file::DataFile;
use super::lane::LaneState;
use super::lanes::{All, Lanes, Shared};
use super::pool::{EXIT_SEGMENTS, SPARE_SEGMENTS, wanted_segments};
use super::stream::Supply;
use crate::format::record::exit_bytes_max;
use crate::sys::sync::MutexGuard;
use crate::sys::sync::atomic::Ordering;

/// Threads that met so often between two looks want more lanes.
const MET_OFTEN: u64 = 64;

impl Shared {
    #[inline]
    pub(super) fn set_held(&mut self, held: u64) {
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
    pub(super) fn held_for_exits(&self, has_rounds: bool) -> u64 {
        if has_rounds { self.held_peak } else { self.held }
    }

    /// Takes back what a lane has left of its credit.
    pub(super) fn take_credit(&mut self, lane: &mut LaneState) {
        let credit = std::mem::take(&mut lane.credit);
        debug_assert!(credit <= self.held, "W6");
        self.held = self.held.saturating_sub(credit);
    }
}

impl Lanes {
    /// Segments that claims leave to exits, beyond what is reserved; and copies.
    pub(super) fn spare(&self) -> u64 {
        SPARE_SEGMENTS + self.in_use() as u64 - 1
    }

    /// Prepared segments that copies, and sealing, leave to exits beyond the room of what is reserved: one is lost with
    /// the end of the process, and each further lane that has anything reserved may need one for the rest of it.
    pub(super) fn exit_segments(&self, kept: u64) -> u64 {
        let least = exit_bytes_max(1, false, false) as u64;
        EXIT_SEGMENTS - 1 + (kept / least).clamp(1, self.in_use() as u64)
    }

    /// Whether what is left of active segments of claims is needed for exits.
    pub(super) fn leaves_few(
        &self,
        lanes: &mut [MutexGuard<'_, LaneState>],
        shared: &mut Shared,
    ) -> bool {
        let is_scarce = |shared: &Shared| {
            let kept = shared.held_for_exits(self.has_rounds);
            let room = shared.prepared.len() * self.usable;
            kept > 0 && room < kept + self.exit_segments(kept) * self.usable
        };
        if is_scarce(shared) && shared.is_on_credit {
            self.take_credits(lanes, shared);
        }
        let is_scarce = is_scarce(shared);
        if is_scarce && shared.held_peak > shared.held {
            // After a round there may be more.
            shared.proven = false;
        }
        is_scarce
    }

    /// Uses twice as many lanes, if they are wanted and there is room for what each takes of it.
    ///
    /// The store can have `most` segments.
    pub(crate) fn widen(&self, most: u64) {
        let in_use = self.in_use();
        if in_use == self.lanes.len() - 1 {
            return;
        }
        let met: u64 = self.lanes.iter().map(|lane| lane.met()).sum();
        let met_since = met.saturating_sub(self.met.swap(met, Ordering::Relaxed));
        if self.is_lazy && met_since < MET_OFTEN {
            return;
        }
        let mut all = self.all();
        // For each new lane one to spare, and one of claims and one of completions.
        let needed = self.spare() + 1 + 3 * in_use as u64;
        let room = all.shared.prepared.len() * self.usable;
        // They take it for good.
        if 4 * needed <= most && room >= all.shared.held + needed * self.usable {
            self.in_use.store(2 * in_use, Ordering::Release);
            // With more lanes each has fewer streams: those that are too many end.
            let most = LaneState::streams_max(2 * in_use);
            let All { lanes, shared } = &mut all;
            for lane in lanes {
                for stream in most..lane.streams.len() {
                    self.end(lane, shared, stream);
                }
                lane.streams.truncate(most);
            }
        }
    }

    /// Whether there is a data file that [`Lanes::take_free_file`] would take.
    pub(crate) fn has_free_file(&self, total: u64) -> bool {
        self.free_file(&self.shared(), total).is_some()
    }

    /// Takes a data file out of use, with its segments, of which none holds anything and none will be
    /// missed: twice what should be kept is left, in a store of `total` segments.
    pub(crate) fn take_free_file(&self, total: u64) -> Option<Arc<DataFile>> {
        let mut shared = self.shared();
        let file = self.free_file(&shared, total)?;
        // Until the file is off the list its segments must not pass for stable ones: they have no
        // trailer.
        shared.given_up = shared.prepared.take_all_in(&file);
        shared.files.retain(|it| !Arc::ptr_eq(it, &file));
        shared.beside.take_if(|beside| Arc::ptr_eq(beside, &file));
        // Marks in it go with it: the next round writes one elsewhere.
        shared.proven = false;
        Some(file)
    }

    fn free_file(&self, shared: &Shared, total: u64) -> Option<Arc<DataFile>> {
        let usable = self.usable;
        let is_free = |file: &&Arc<DataFile>| {
            let segments = u64::from(file.header().segments);
            let left = shared.prepared.len().saturating_sub(segments);
            let wanted = 2 * self.wanted(total.saturating_sub(segments)).max(self.headroom);
            left * usable >= shared.held + wanted * usable
                && shared.prepared.count_in(file) == segments
        };
        shared.files.iter().filter(is_free).max_by_key(|it| it.header().segments).cloned()
    }

    /// The file that was taken out of use is off the list.
    pub(crate) fn forget_free_file(&self) {
        self.shared().given_up = None;
    }

    /// Reserves room for claims that recovery found.
    pub(crate) fn hold(&self, bytes: u64) {
        let mut shared = self.shared();
        let held = shared.held + bytes;
        shared.set_held(held);
    }

    /// Gives back what was reserved for a claim that nobody can finish any more.
    pub(crate) fn release(&self, bytes: u64) {
        let mut shared = self.shared();
        debug_assert!(bytes <= shared.held, "room is released once");
        let held = shared.held.saturating_sub(bytes);
        shared.set_held(held);
    }

    /// Prepared segments that a store of `total` should have, beyond what is reserved.
    fn wanted(&self, total: u64) -> u64 {
        wanted_segments(total) + self.in_use() as u64 - 1
    }

    /// What there is, in a store of `total` segments. It should grow when, beyond what claims may
    /// not use, less than an eighth of them is left, at least two and at most 64; and up to the
    /// headroom when it is quiet.
    pub(crate) fn supply(&self, total: u64) -> Supply {
        let all = self.all();
        let (shared, usable, spare) = (&all.shared, self.usable, self.spare());
        let credit: u64 = all.lanes.iter().map(|lane| lane.credit).sum();
        let appended_bytes: u64 = all.lanes.iter().map(|lane| lane.appended_bytes).sum();
        let prepared = shared.prepared.len();
        let (room, held) = (prepared * usable, shared.held.saturating_sub(credit));
        let wanted = self.wanted(total);
        let least = wanted.max(self.headroom);
        Supply {
            prepared,
            held,
            free_bytes: room.saturating_sub(held + spare * usable),
            appended_bytes,
            used_bytes: shared.found_bytes + appended_bytes - shared.gone_bytes,
            is_ample: room >= held + least * 3 / 2 * usable,
            lacks_headroom: room < held + least * usable,
            is_low: room < held + wanted * usable,
            is_scarce: room < held + (spare + (wanted - spare) / 2) * usable,
            is_short: room < held + spare * usable,
        }
    }

    /// Takes the credit of all lanes. Whether there was any.
    pub(super) fn take_all_credit(&self) -> bool {
        if !self.shared().is_on_credit {
            return false;
        }
        let All { mut lanes, mut shared } = self.all();
        self.take_credits(&mut lanes, &mut shared)
    }

    fn take_credits(&self, lanes: &mut [MutexGuard<'_, LaneState>], shared: &mut Shared) -> bool {
        let before = shared.held;
        lanes.iter_mut().for_each(|lane| shared.take_credit(lane));
        shared.is_on_credit = false;
        shared.held < before
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::class::Class;
    use super::super::fixtures::{SEGMENT_BYTES, data_file, release, segment};
    use super::super::lane::{Append, LaneChoice, RoomChange};
    use super::super::lanes::LANES_MAX;
    use super::*;
    use crate::format::draft::Draft;
    use crate::format::mark::ENTRIES_MAX;
    use crate::hash::mix;
    use crate::sys::heap::HeapFs;
    use crate::types::KeyHash;

    /// Lanes with so many prepared segments, all of them in use.
    fn lanes_of(count: usize, segments: u32) -> Lanes {
        let lanes = Lanes::new(Append::Mapped, SEGMENT_BYTES, 0, false, count, false);
        let file = data_file(&HeapFs::new(), segments);
        (0..segments).for_each(|number| lanes.add_prepared(segment(&file, number)));
        while lanes.in_use() < count {
            let before = lanes.in_use();
            lanes.widen(u64::from(segments));
            assert!(lanes.in_use() > before, "there is too little room for {count} lanes");
        }
        lanes
    }

    /// Appends a record with a key of this length.
    fn append(lanes: &Lanes, hash: u64, key_len: usize, change: RoomChange) -> bool {
        let key = vec![b'k'; key_len];
        let draft = Draft::new(&release(&key, KeyHash(hash)));
        lanes
            .append(
                &draft,
                Class::Claims,
                change,
                LaneChoice::Any((hash >> 60) as usize),
                Append::Mapped,
            )
            .is_ok()
    }

    fn room_of(key_len: usize) -> u64 {
        Draft::new(&release(&vec![b'k'; key_len], KeyHash(0))).room() as u64
    }

    #[test]
    fn a_store_is_told_to_grow_before_it_has_to() {
        // Three that are spared, and an eighth of 64 beyond them.
        let lanes = Lanes::new(Append::Mapped, SEGMENT_BYTES, 0, true, 1, true);
        let roomy = Lanes::new(Append::Mapped, SEGMENT_BYTES, 15 << 18, true, 1, true);
        let [file, other] = [(); 2].map(|()| data_file(&HeapFs::new(), 24));
        for prepared in 0..24 {
            let told = |lanes: &Lanes| {
                let it = lanes.supply(64);
                (it.is_short, it.is_scarce, it.is_low, it.lacks_headroom, it.is_ample)
            };
            let is_low = prepared < 11;
            let wanted = (prepared < 3, prepared < 7, is_low, is_low, prepared >= 16);
            assert_eq!(told(&lanes), wanted, "{prepared}");
            let wanted = (prepared < 3, prepared < 7, is_low, prepared < 15, prepared >= 22);
            assert_eq!(told(&roomy), wanted, "{prepared}");
            lanes.add_prepared(segment(&file, prepared));
            roomy.add_prepared(segment(&other, prepared));
        }
        // What is reserved comes on top.
        lanes.hold(8 * lanes.usable);
        assert!(lanes.supply(64).is_ample);
        lanes.hold(1);
        assert!(!lanes.supply(64).is_ample);
        assert_eq!(lanes.supply(64).held, 8 * lanes.usable + 1);
    }

    /// However many streams there were before there are more lanes.
    #[test]
    fn a_mark_lists_the_active_segments_of_all_lanes() {
        let lanes = Lanes::new(Append::Mapped, SEGMENT_BYTES, 0, true, LANES_MAX, false);
        let file = data_file(&HeapFs::new(), 700);
        (0..700).for_each(|number| lanes.add_prepared(segment(&file, number)));
        let exact = (10..40).map(|seconds| Class::exact(Duration::from_secs(seconds)));
        let geometric = (3..31).map(|bits| Class::geometric(Duration::from_secs(1 << bits)));
        let classes: Vec<_> = exact.chain(geometric).collect();
        let fill = || {
            for choice in (0..LANES_MAX).map(LaneChoice::Any) {
                let draft = Draft::new(&release(b"key", KeyHash(1)));
                for class in &classes {
                    let change = RoomChange::default();
                    lanes.append(&draft, *class, change, choice, Append::Mapped).unwrap();
                }
            }
        };
        fill();
        while lanes.in_use() < LANES_MAX {
            lanes.widen(10_000);
            fill();
            // One more lane is for large records.
            let active = lanes.all().active().count();
            assert!(active <= ENTRIES_MAX / 2 + lanes.in_use(), "{active}");
            assert_eq!(active, lanes.shared().active);
        }
    }

    /// W3. Everything is filled to the brim, each lane's last segment with it, and then claims end one after the other,
    /// in any order; whatever room that gives back is filled again in between.
    #[test]
    fn an_exit_fits_whatever_lane_it_is_in_and_whatever_is_appended_before() {
        for (seed, count) in [1, 2, 4, 8, 16].into_iter().cycle().take(40).enumerate() {
            if cfg!(miri) && seed > 1 {
                continue;
            }
            let mut drawn = mix(seed as u64);
            let mut draw = move |below: u64| {
                drawn = mix(drawn);
                drawn % below
            };
            let lanes = lanes_of(count, 24 + 16 * count as u32);
            // Few in each lane, so that what is reserved for a lane is less than what it may waste; or many.
            let claims = count as u64 * if seed % 2 == 0 { 2 } else { 40 };
            let mut held = vec![];
            for _ in 0..claims {
                let (hash, key_len) = (draw(u64::MAX), 1 + draw(3000) as usize);
                let room = room_of(key_len);
                let change = RoomChange { reserve: room, ..RoomChange::default() };
                assert!(append(&lanes, hash, 1 + draw(30) as usize, change));
                held.push((hash, key_len, room));
            }
            let fill = |draw: &mut dyn FnMut(u64) -> u64| {
                for key_len in [4000, 300, 1] {
                    // So often that each lane refuses.
                    let mut refused = 0;
                    while refused < 10 * count {
                        let (hash, change) = (draw(u64::MAX), RoomChange::default());
                        refused += usize::from(!append(&lanes, hash, key_len, change));
                    }
                    // W6: nothing that a lane could give is refused to another.
                    assert!(lanes.all().lanes.iter().all(|lane| lane.credit == 0));
                }
            };
            fill(&mut draw);
            while !held.is_empty() {
                let (hash, key_len, release) = held.swap_remove(draw(held.len() as u64) as usize);
                let change = RoomChange { release, reserve: 0, is_exit: true };
                let fits = append(&lanes, hash, key_len, change);
                assert!(fits, "seed {seed}, {count} lanes: {} claims are left", held.len());
                if draw(2) == 0 {
                    fill(&mut draw);
                }
            }
            lanes.take_all_credit();
            assert_eq!(lanes.shared().held, 0, "what is reserved is given back");
        }
    }

    #[test]
    fn room_that_was_given_back_is_kept_until_a_round_has_made_sure_of_it() {
        let mut shared = Shared::default();
        shared.set_held(100);
        shared.set_held(10);
        assert_eq!((shared.held_for_exits(true), shared.held_for_exits(false)), (100, 10));
        shared.begin_held();
        // After the round began.
        shared.set_held(70);
        shared.set_held(5);
        assert_eq!(shared.held_for_exits(true), 100);
        shared.end_held();
        assert_eq!(shared.held_for_exits(true), 70, "what gave it back is not in the round");
        shared.begin_held();
        shared.end_held();
        assert_eq!(shared.held_for_exits(true), 5);
    }
}
