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
use super::growth::{GENERATION_STEP, Growth};
use super::segments::Segment;
use super::stream::SealedSegment;
use super::{Passage, Wal};
use crate::error::{Failure, StoreError};
use crate::format::draft::Draft;
use crate::format::index::{self, ENTRY_BYTES, Entry};
use crate::format::segment::{self, DATA_START, TRAILER_BYTES, Trailer, index_offset};
use crate::sys::pin::Pin;
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
        self.lanes.add_used(bytes, is_claims)
    }

    /// Enters an empty segment whose header is durable.
    pub(crate) fn add_prepared(&self, segment: Arc<Segment>) {
        self.segments.add(Arc::clone(&segment));
        self.lanes.add_prepared(segment);
    }

    /// Segments that were sealed since the last call and are durable in full.
    pub(crate) fn take_sealed(&self) -> Vec<SealedSegment> {
        self.lanes.take_sealed()
    }

    /// The index of a sealed segment, as it was written, or worked out from the records where that
    /// cannot be trusted.
    pub(crate) fn read_entries(&self, sealed: &SealedSegment) -> Result<Vec<Entry>, StoreError> {
        let pin = Pin::new();
        let Some(segment) = self.segments.get(sealed.id, &pin) else { return Ok(Vec::new()) };
        if let Some(entries) = self.read_index(sealed, segment)? {
            return Ok(entries);
        }
        let (mut entries, mut at) = (Vec::new(), DATA_START);
        while at < sealed.end {
            let (record, next) = segment.step(at)?;
            entries.extend(record.map(|record| Draft::new(&record.read()).entry(at)));
            at = next;
        }
        Ok(entries)
    }

    /// Up to `count` entries of a segment's index, from one on, as they are: for counting.
    pub(crate) fn read_some_entries(
        &self,
        sealed: &SealedSegment,
        from: u32,
        count: u32,
    ) -> Result<Vec<Entry>, StoreError> {
        let count = count.min(sealed.entries.saturating_sub(from));
        let mut bytes = vec![0; count as usize * ENTRY_BYTES];
        let index = index_offset(self.segments.segment_bytes(), sealed.entries);
        let start = sealed.file.segment_offset(sealed.id)
            + u64::from(index)
            + u64::from(from) * ENTRY_BYTES as u64;
        let failed = |error| Failure::new("read", sealed.file.path().to_owned(), error);
        let read = sealed.file.read_at(&mut bytes, start);
        read.map_err(|error| StoreError::Io(failed(error)))?;
        Ok(bytes.chunks_exact(ENTRY_BYTES).filter_map(Entry::decode).collect())
    }

    /// `None`: there is none, or it is damaged.
    fn read_index(
        &self,
        sealed: &SealedSegment,
        segment: &Segment,
    ) -> Result<Option<Vec<Entry>>, StoreError> {
        let start = index_offset(self.segments.segment_bytes(), sealed.entries);
        let mut bytes = vec![0; (self.segments.segment_bytes() - start) as usize];
        let failed = |error| Failure::new("read", segment.file.path().to_owned(), error);
        let read = segment.file.read_at(&mut bytes, segment.file_offset(start));
        read.map_err(|error| StoreError::Io(failed(error)))?;
        let Some((index, tail)) = bytes.split_last_chunk::<TRAILER_BYTES>() else {
            return Ok(None);
        };
        let segment_bytes = self.segments.segment_bytes();
        let trailer = Trailer::decode(tail, segment.place, segment.generation, segment_bytes);
        let is_good = trailer.is_some_and(|trailer| {
            trailer.entries == sealed.entries
                && sealed.entries > 0
                && trailer.entries_crc == index::checksum(index, segment.place)
        });
        let entries = index.chunks_exact(ENTRY_BYTES).map(Entry::decode);
        Ok(if is_good { entries.collect() } else { None })
    }

    /// Seals what is full, or has been filled for long enough, see
    /// [`end_aged`](super::lanes::Lanes::end_aged). One caller at a time, past the gate.
    pub(crate) fn seal_aged(
        &self,
        _passage: &Passage<'_>,
        now: Duration,
        claims_before: u64,
    ) -> Result<Option<Duration>, StoreError> {
        let next = self.lanes.end_aged(now, claims_before);
        self.lanes.seal_ended().map_err(|cause| self.fail(cause))?;
        Ok(next)
    }

    /// Asks the next round for a mark: it bears the time.
    pub(crate) fn want_mark(&self) {
        self.lanes.want_mark();
    }

    /// In memory nothing has to become durable.
    pub(crate) fn skip_rounds(&self) {
        self.lanes.skip_rounds();
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
        if !file.is_free(retired.id) {
            return Ok(None);
        }
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
        self.lanes.add_headed(retired.id, generation, retired.bytes());
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
