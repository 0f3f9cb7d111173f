//! Shrinking: a data file of which nobody needs a segment is given up.
//!
//! Out of use, a round that writes a mark elsewhere, off the list in both slots of the meta file, and
//! only then out of the directory: it is growth in reverse (R16). A crash on the way leaves a
//! file that is listed and empty, or one that is not listed, which the next open removes.

use std::io::ErrorKind;
use std::sync::Arc;

use super::Wal;
use super::data_file::DataFile;
use crate::error::{Failure, StoreError};
use crate::format::file;
use crate::format::meta::SLOTS;
use crate::sys::point::{Point, reach};
use crate::types::FileId;

impl Wal {
    /// Whether a data file can be spared.
    pub(crate) fn has_free_file(&self) -> bool {
        let total = u64::from(self.growth.lock().segments());
        self.lanes.has_free_file(total)
    }

    /// Takes a data file out of use that can be spared. It may be removed when a round has ended
    /// that begins after this returns.
    pub(crate) fn take_free_file(&self) -> Option<Arc<DataFile>> {
        let total = u64::from(self.growth.lock().segments());
        self.lanes.take_free_file(total)
    }

    /// Removes a data file that was taken out of use.
    pub(crate) fn remove_file(&self, file: &Arc<DataFile>) -> Result<(), StoreError> {
        let _passage = self.pass()?;
        let mut growth = self.growth.lock();
        let (id, gone) = (file.header().file, growth.next_generation);
        // In both slots: should one go bad, the other must not miss the file.
        for _ in 0..SLOTS {
            let unlisted = self.meta.update(|meta| {
                meta.files.remove(id);
                meta.gone_generation = meta.gone_generation.max(gone);
                meta.generation_ceiling = meta.generation_ceiling.max(gone);
            });
            unlisted.map_err(|cause| self.fail(cause))?;
        }
        reach(Point::BehindUnlisting);
        self.lanes.forget_free_file();
        for segment in file.header().ids() {
            self.segments.remove(segment);
        }
        growth.remove(file);
        // What is left behind is removed by the next open: no meta file lists it.
        if self.remove_unlisted(id).is_err() {
            growth.left_over.push(id);
        }
        Ok(())
    }

    fn remove_unlisted(&self, id: FileId) -> Result<(), Arc<Failure>> {
        let name = file::name(id);
        let failed = |error| Failure::new("remove", self.fs.describe(&name), error);
        match self.fs.remove(&name) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        self.fs.sync_dir().map_err(failed)
    }

    /// Removes the data files that could not be removed when they were given up.
    pub(crate) fn remove_left_over(&self) -> Result<(), StoreError> {
        let _passage = self.pass()?;
        let mut growth = self.growth.lock();
        while let Some(id) = growth.left_over.last().copied() {
            // A later file of that number has taken its place.
            if growth.has(id) {
                let failed = |error| Failure::new("sync", self.fs.describe(&file::name(id)), error);
                self.fs.sync_dir().map_err(|error| StoreError::Io(failed(error)))?;
            } else {
                self.remove_unlisted(id).map_err(StoreError::Io)?;
            }
            growth.left_over.pop();
        }
        Ok(())
    }
}
