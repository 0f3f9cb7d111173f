//! Recycling: how a segment whose records have had their time becomes an empty one.
//!
//! The engine has made sure that no table names a location in the segment, that what supersedes its
//! records is durable and below a durable mark (two rounds), and that no pin from before is left.
//! From there on: out of [`Segments`](super::segments::Segments); then, once nobody can read it any
//! more, a header with the next generation; then a round; then it is prepared (R2).
//!
//! A segment that is merely free still looks live on disk, and would be recovered: its records lose
//! against what superseded them, or have expired.

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use super::data_file::DataFile;
use super::segments::Segment;
use super::stream::SealedSegment;
use super::{GENERATION_STEP, Growth, Passage, Wal};
use crate::error::StoreError;
use crate::format::segment::{self, DATA_START};
use crate::sys::point::{Point, reach};
use crate::types::{Generation, SegmentId, Timestamp};

impl Wal {
    /// Takes in a segment that recovery found or made empty, with everything below `filled` final
    /// and durable.
    pub(crate) fn enter(
        &self,
        file: &Arc<DataFile>,
        id: SegmentId,
        generation: Generation,
        filled: u32,
    ) {
        let segment = Segment::new(&self.store_id, Arc::clone(file), id, generation, filled);
        debug_assert!(segment.is_some(), "a segment is entered once");
        let Some(segment) = segment else { return };
        if filled == DATA_START {
            self.add_prepared(segment);
        } else {
            self.segments.add(segment);
        }
    }

    /// Counts a segment that recovery found, and gives its order, see [`SealedSegment`].
    pub(crate) fn add_used(&self, bytes: u64, is_claims: bool) -> u64 {
        self.lane.add_used(bytes, is_claims)
    }

    /// Enters an empty segment whose header is durable.
    pub(crate) fn add_prepared(&self, segment: Arc<Segment>) {
        self.segments.add(Arc::clone(&segment));
        self.lane.add_prepared(segment);
    }

    /// Segments that were sealed since the last call and are durable in full.
    pub(crate) fn take_sealed(&self) -> Vec<SealedSegment> {
        self.lane.take_sealed()
    }

    /// Seals what has been filled for long enough, see [`super::lane::Lane::seal_aged`].
    pub(crate) fn seal_aged(
        &self,
        now: Duration,
        claims_before: u64,
    ) -> Result<Option<Duration>, StoreError> {
        self.lane.seal_aged(now, claims_before).map_err(|cause| self.fail(cause))
    }

    /// Asks the next round for a mark: it bears the time.
    pub(crate) fn want_mark(&self) {
        self.lane.want_mark();
    }

    /// In memory nothing has to become durable.
    pub(crate) fn skip_rounds(&self) {
        self.lane.skip_rounds();
    }

    /// Takes a segment out of use that no location names any more.
    pub(crate) fn retire(&self, id: SegmentId) {
        self.segments.remove(id);
    }

    /// Writes the header of the segment's next life. `None`: somebody may still read it. The
    /// segment may be entered when a round has ended that begins after this returns.
    pub(crate) fn write_next_header(
        &self,
        passage: &Passage<'_>,
        retired: &SealedSegment,
        now: Timestamp,
    ) -> Result<Option<Arc<Segment>>, StoreError> {
        let file = Arc::clone(&retired.file);
        let mut growth = self.growth.lock();
        let generation = growth.next_generation;
        let Some(segment) = Segment::new(&self.store_id, file, retired.id, generation, DATA_START)
        else {
            return Ok(None);
        };
        self.use_generation(passage, &mut growth)?;
        let created = now;
        let header =
            segment::Header { segment: retired.id, generation, created, is_recycled: true };
        reach(Point::RecycleBeforeHeader);
        let bytes = header.encode(&self.store_id);
        let written = segment.file.write_at(&[IoSlice::new(&bytes)], segment.file_offset(0));
        written.map_err(|cause| self.fail(cause))?;
        reach(Point::RecycleBehindHeader);
        // Once more, after the write: a round may have taken the file since it began.
        segment.file.set_dirty();
        self.lane.add_headed(retired.id, generation, retired.bytes());
        Ok(Some(segment))
    }

    /// Uses up the next generation: no header bears one at or above the ceiling on disk (R8).
    fn use_generation(
        &self,
        _passage: &Passage<'_>,
        growth: &mut Growth,
    ) -> Result<(), StoreError> {
        growth.next_generation.0 += 1;
        let end = growth.next_generation.0;
        if self.meta.read(|meta| meta.generation_ceiling.0) < end {
            let ceiling = Generation(end + GENERATION_STEP);
            let raised = self.meta.update(|meta| meta.generation_ceiling = ceiling);
            raised.map_err(|cause| self.fail(cause))?;
        }
        Ok(())
    }
}
