//! Sealing: segments that take no more records get their index and trailer.
//!
//! It takes longer than who appends should wait, so maintenance does it, with no lock held but for a
//! moment. The memory that an index was collected in serves the next one.

use std::io::IoSlice;
use std::sync::Arc;

use super::lane::Append;
use super::lanes::Lanes;
use super::stream::{Ended, Index, SealedSegment};
use crate::error::Failure;
use crate::format::segment::{index_offset, trailer_offset};
use crate::sys::point::{Point, reach};

/// So many empty indexes are made ready, and so many are kept of those that were used, beside one for each lane.
const INDEXES_READY: usize = 1;
const INDEXES_MAX: usize = 3;
impl Lanes {
    /// Seals what was ended: writes indexes and trailers. Whether all of it is sealed; somebody else may be at it.
    pub(crate) fn seal_ended(&self) -> Result<bool, Arc<Failure>> {
        loop {
            let tail = match self.shared().ended.first_mut() {
                None => return Ok(true),
                Some(ended) => ended.tail.take(),
            };
            let Some((mut active, class)) = tail else { return Ok(false) };
            let segment = Arc::clone(&active.segment);
            let trailer = active.trailer(class);
            let bytes = trailer.encode(segment.place);
            let at = index_offset(self.segment_bytes, trailer.entries);
            reach(Point::BeforeTrailer);
            match self.append {
                Append::Mapped => {
                    active.writer.put(at, active.index.bytes());
                    active.writer.put(trailer_offset(self.segment_bytes), &bytes);
                }
                Append::Positioned => {
                    let parts = [IoSlice::new(active.index.bytes()), IoSlice::new(&bytes)];
                    segment.file.write_at(&parts, segment.file_offset(at))?;
                }
            }
            reach(Point::BehindTrailer);
            // Behind the write: a round may have taken the file meanwhile.
            segment.file.set_dirty();
            if self.append == Append::Mapped {
                segment.extent.settle();
            }
            let mut shared = self.shared();
            let Ended { segment, sealed, .. } = shared.ended.remove(0);
            shared.unstable.push((segment, sealed));
            shared.proven = false;
            if shared.indexes.len() < INDEXES_MAX + self.in_use() {
                shared.indexes.push(active.index.emptied());
            }
        }
    }

    /// Makes memory ready for the indexes of the segments that are filled next.
    pub(crate) fn stock_indexes(&self) {
        while self.shared().indexes.len() < INDEXES_READY + self.in_use() {
            let index = Index::ready(self.segment_bytes);
            self.shared().indexes.push(index);
        }
    }

    /// Hands over what was sealed and is durable in full by now.
    pub(crate) fn take_sealed(&self) -> Vec<SealedSegment> {
        std::mem::take(&mut self.shared().sealed)
    }

    /// Declares everything durable: the store is in memory, and has no rounds.
    pub(crate) fn skip_rounds(&self) {
        let mut shared = self.shared();
        let sealed: Vec<_> = shared.unstable.drain(..).map(|(_, sealed)| sealed).collect();
        shared.sealed.extend(sealed);
    }
}
