//! Scrubbing: zeros over what nobody reads any more and earlier lives of segments have left: behind the header of a
//! prepared segment, and between the records and the index of a sealed one.
//!
//! No record that counts lies there, whatever an open finds: what a prepared segment holds is of an earlier generation, and a
//! sealed one ends before its gap. The first and the last sector of a gap are shared with a record, or with the index, which is
//! written again as it is.

use std::io::IoSlice;
use std::sync::Arc;

use super::data_file::DataFile;
use super::lanes::{All, Lanes};
use super::segments::Segment;
use super::stream::SealedSegment;
use super::{Passage, Wal};
use crate::error::{Failure, StoreError};
use crate::format::segment::{DATA_START, index_offset};
use crate::types::SegmentId;

/// Bytes that are looked at at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Bytes that are written at a time: larger ones would make large pages of the file, of which a small sync writes more
/// (docs/decisions/0004-zero-fill.md).
const ZEROS_BYTES: usize = 4 << 10;

/// What became of sealing what is active.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sealing {
    /// All of it is sealed, and durable after a round.
    Done,
    /// Somebody else is sealing, or exits count on what is left of a segment.
    Awaited,
    /// There are too few prepared segments to go on with.
    NoRoom,
}

impl Lanes {
    /// Ends all active segments, unless others are too few or exits count on what is left of one.
    fn end_active(&self) -> Sealing {
        let All { mut lanes, mut shared } = self.all();
        if self.leaves_few(&mut lanes, &mut shared) {
            return Sealing::Awaited;
        }
        let active = lanes.iter().flat_map(|lane| lane.active()).count() as u64;
        if active > 0 && shared.prepared.len() < active + self.spare() {
            return Sealing::NoRoom;
        }
        for lane in &mut lanes {
            (0..lane.streams.len()).for_each(|stream| self.end(lane, &mut shared, stream));
        }
        Sealing::Done
    }

    /// Does this while the segment is prepared, if it still is: whoever wants another segment waits.
    fn while_prepared(
        &self,
        segment: &Arc<Segment>,
        act: impl FnOnce() -> Result<bool, Failed>,
    ) -> Result<bool, Failed> {
        let mut shared = self.shared();
        let is_prepared = shared.prepared.iter().any(|it| Arc::ptr_eq(it, segment));
        if !is_prepared {
            return Ok(false);
        }
        let has_written = act()?;
        shared.proven &= !has_written;
        Ok(has_written)
    }
}

/// What failed.
enum Failed {
    Read(Arc<Failure>),
    /// What it left behind is anyone's guess.
    Write(Arc<Failure>),
}

impl Wal {
    /// Seals all active segments, if there are others to go on with.
    pub(crate) fn seal_active(&self, _passage: &Passage<'_>) -> Result<Sealing, StoreError> {
        let ended = self.lanes.end_active();
        if ended == Sealing::Done {
            let is_sealed = self.lanes.seal_ended().map_err(|cause| self.fail(cause))?;
            return Ok(if is_sealed { Sealing::Done } else { Sealing::Awaited });
        }
        Ok(ended)
    }

    /// The segments that are prepared now.
    pub(crate) fn prepared(&self) -> Vec<Arc<Segment>> {
        self.lanes.shared().prepared.iter().cloned().collect()
    }

    /// Writes zeros over what a prepared segment has of earlier lives. One that becomes active meanwhile may keep some of it. Whether
    /// there was any.
    pub(crate) fn scrub_prepared(
        &self,
        _passage: &Passage<'_>,
        segment: &Arc<Segment>,
    ) -> Result<bool, StoreError> {
        let (file, id, mut has_any) = (&segment.file, segment.id, false);
        for (from, to) in pieces(DATA_START, self.segments.segment_bytes()) {
            // Nobody stores to it while it is read, either.
            let scrubbed = self.lanes.while_prepared(segment, || scrub(file, id, from, to));
            has_any |= scrubbed.map_err(|failed| self.failed(failed))?;
        }
        Ok(has_any)
    }

    /// The same between the records and the index of a sealed segment, whether it is in use or on its way to its next life.
    pub(crate) fn scrub_gap(
        &self,
        _passage: &Passage<'_>,
        sealed: &SealedSegment,
    ) -> Result<(), StoreError> {
        let end = index_offset(self.segments.segment_bytes(), sealed.entries);
        for (from, to) in pieces(sealed.end, end) {
            let scrubbed = scrub(&sealed.file, sealed.id, from, to);
            if scrubbed.map_err(|failed| self.failed(failed))? {
                // Behind the write: a round that has begun before does not cover it.
                self.lanes.want_mark();
            }
        }
        Ok(())
    }

    fn failed(&self, failed: Failed) -> StoreError {
        match failed {
            Failed::Read(cause) => StoreError::Io(cause),
            Failed::Write(cause) => self.fail(cause),
        }
    }
}

fn pieces(from: u32, to: u32) -> impl Iterator<Item = (u32, u32)> {
    // A segment's bytes.
    (from..to).step_by(PIECE_BYTES).map(move |at| (at, to.min(at + PIECE_BYTES as u32)))
}

/// Writes zeros over what is none between these offsets of a segment, of one piece. Whether there was anything.
fn scrub(file: &DataFile, id: SegmentId, from: u32, to: u32) -> Result<bool, Failed> {
    let mut piece = vec![0; (to - from) as usize];
    let start = file.segment_offset(id) + u64::from(from);
    let failed = |error| Failed::Read(Failure::new("read", file.path().to_owned(), error));
    file.read_at(&mut piece, start).map_err(failed)?;
    let first = piece.iter().position(|byte| *byte != 0);
    let last = piece.iter().rposition(|byte| *byte != 0);
    let (Some(first), Some(last)) = (first, last) else { return Ok(false) };
    static ZEROS: [u8; ZEROS_BYTES] = [0; ZEROS_BYTES];
    for at in (first..=last).step_by(ZEROS_BYTES) {
        let len = ZEROS_BYTES.min(last + 1 - at);
        let written = file.write_at(&[IoSlice::new(&ZEROS[..len])], start + at as u64);
        written.map_err(Failed::Write)?;
    }
    // Once more, after the writes: a round may have taken the file since they began.
    file.set_dirty();
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::class::Class;
    use super::super::fixtures::{SEGMENT_BYTES, data_file, release, segment};
    use super::super::lane::{Append, LaneChoice, RoomChange};
    use super::*;
    use crate::format::draft::Draft;
    use crate::sys::heap::HeapFs;
    use crate::types::KeyHash;

    /// A lane with so many prepared segments, of which one is active then.
    fn lanes(segments: u32) -> Lanes {
        let lanes = Lanes::new(Append::Mapped, SEGMENT_BYTES, 0, true, 1, false);
        let file = data_file(&HeapFs::new(), segments);
        (0..segments).for_each(|number| lanes.add_prepared(segment(&file, number)));
        append(&lanes);
        lanes
    }

    fn append(lanes: &Lanes) {
        let draft = Draft::new(&release(b"key", KeyHash(1)));
        let appended = lanes.append(
            &draft,
            Class::Claims,
            RoomChange::default(),
            LaneChoice::Any(0),
            Append::Mapped,
        );
        appended.unwrap();
    }

    #[test]
    fn what_is_active_is_ended_where_others_are_left_to_go_on_with() {
        for prepared in 1..10 {
            let lanes = lanes(prepared + 1);
            let ended = lanes.end_active();
            let has_room = u64::from(prepared) > lanes.spare();
            assert_eq!(ended == Sealing::Done, has_room, "{prepared}");
            assert_eq!(lanes.all().active().count(), usize::from(!has_room));
            // With nothing active there is nothing to do.
            assert!(!has_room || lanes.end_active() == Sealing::Done);
        }
    }

    #[test]
    fn what_has_become_active_is_left_alone() {
        let lanes = lanes(5);
        let active = lanes.all().active().next().cloned().unwrap();
        let prepared = lanes.shared().prepared.iter().next().cloned().unwrap();
        assert!(matches!(lanes.while_prepared(&active, || Ok(true)), Ok(false)));
        assert!(matches!(lanes.while_prepared(&prepared, || Ok(true)), Ok(true)));
    }

    /// Whoever found no room for a mark seals, too.
    #[test]
    fn what_somebody_else_is_sealing_is_not_sealed_yet() {
        let lanes = lanes(10);
        assert_eq!(lanes.end_active(), Sealing::Done);
        append(&lanes);
        assert_eq!(lanes.end_active(), Sealing::Done);
        let others = lanes.shared().ended[0].tail.take();
        assert!(!lanes.seal_ended().unwrap(), "the first one is being sealed");
        lanes.shared().ended[0].tail = others;
        assert!(lanes.seal_ended().unwrap());
        assert_eq!(lanes.shared().unstable.len(), 2);
    }
}
