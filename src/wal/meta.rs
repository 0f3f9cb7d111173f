//! The meta file, written one slot after the other (R15).
//!
//! One mutex orders all writers: a slot is written only after the write before it was synced, so no
//! crash can tear both. A process may die between the two, and the next one finds in the page cache
//! what is not on the disk: so the first thing an open writes is the newest slot once more. The
//! mutex is held across the sync, and nothing on the path of a claim takes it.

use std::io::{IoSlice, Result as IoResult};
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Failure, OpenError};
use crate::format::meta::{Flaw, Meta, SLOT_BYTES, SLOTS};
use crate::format::{FORMAT_MAJOR, META_NAME, META_NEW_NAME};
use crate::sys::point::{Point, reach};
use crate::sys::sync::Mutex;
use crate::sys::{File, FileSystem};

/// The open meta file.
#[derive(Debug)]
pub(crate) struct MetaFile {
    file: Arc<dyn File>,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// What the disk holds.
    meta: Meta,
    next_slot: usize,
}

/// What reading the meta file gave.
#[derive(Debug)]
pub(crate) struct LoadedMeta {
    pub(crate) file: MetaFile,
    pub(crate) meta: Meta,
    /// One slot could not be read, so what the other one says may be one write old.
    pub(crate) is_fallback: bool,
}

impl MetaFile {
    /// Makes the meta file of a new store, whole or not at all.
    pub(crate) fn create(fs: &dyn FileSystem, mut meta: Meta) -> IoResult<()> {
        if fs.list()?.iter().any(|name| name == META_NEW_NAME) {
            fs.remove(META_NEW_NAME)?;
        }
        let file = fs.create_new(META_NEW_NAME)?;
        meta.inode = file.identity()?;
        for slot in 0..SLOTS {
            meta.sequence = slot as u64 + 1;
            file.write_at(&[IoSlice::new(&meta.encode())], offset(slot))?;
        }
        file.sync_all()?;
        fs.rename(META_NEW_NAME, META_NAME)?;
        fs.sync_dir()
    }

    /// Opens the meta file and reads both slots; `None` when there is no such file.
    pub(crate) fn load(fs: &dyn FileSystem) -> Result<Option<LoadedMeta>, OpenError> {
        let path = fs.describe(META_NAME);
        let failed = |operation| {
            let path = path.clone();
            move |error| OpenError::io(operation, path, error)
        };
        let file = match fs.open(META_NAME) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::io("open", path, error)),
        };
        let len = file.len().map_err(failed("measure"))?;
        let mut slots = Vec::new();
        for slot in 0..SLOTS {
            let mut bytes = [0; SLOT_BYTES];
            if len >= offset(slot) + SLOT_BYTES as u64 {
                file.read_at(&mut bytes, offset(slot)).map_err(failed("read"))?;
            }
            slots.push(Meta::decode(&bytes));
        }
        for slot in &slots {
            if let Err(Flaw::Foreign { major, minor, incompat, ro_compat }) = *slot {
                let features = u64::from(ro_compat) << 32 | u64::from(incompat);
                let supported = FORMAT_MAJOR;
                return Err(OpenError::UnsupportedFormat {
                    path,
                    major,
                    minor,
                    features,
                    supported,
                });
            }
        }
        let corrupt = |what: &str| OpenError::Corrupt {
            path: path.clone(),
            offset: 0,
            what: what.to_owned(),
        };
        if len != offset(SLOTS) {
            return Err(corrupt("the length is wrong"));
        }
        let is_fallback = slots.iter().any(Result::is_err);
        let newest = slots.into_iter().flatten().max_by_key(|meta| meta.sequence);
        let meta = newest.ok_or_else(|| corrupt("neither slot can be read"))?;
        // Slots take turns by sequence, so the next write spares this one.
        let next_slot = slot_of(meta.sequence + 1);
        let state = Mutex::new(State { meta: meta.clone(), next_slot });
        Ok(Some(LoadedMeta { file: Self { file, path, state }, meta, is_fallback }))
    }

    /// A number that a copy of the store does not share.
    pub(crate) fn identity(&self) -> IoResult<u64> {
        self.file.identity()
    }

    /// Writes the newest slot again, as it is, and syncs it, so that the other one may be written. A
    /// sync alone would not do: after one that failed the page is clean and not on the disk.
    pub(crate) fn make_good(&self) -> Result<(), Arc<Failure>> {
        let state = self.state.lock();
        let failed = |operation| move |error| Failure::new(operation, self.path.clone(), error);
        let at = offset(slot_of(state.meta.sequence));
        self.file.write_at(&[IoSlice::new(&state.meta.encode())], at).map_err(failed("write"))?;
        self.file.sync_data().map_err(failed("sync"))
    }

    /// Changes the state on disk, durably. After an error nobody may rely on either state, and
    /// the caller poisons the store.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Meta)) -> Result<(), Arc<Failure>> {
        let mut state = self.state.lock();
        let mut meta = state.meta.clone();
        change(&mut meta);
        meta.sequence += 1;
        let failed = |operation| move |error| Failure::new(operation, self.path.clone(), error);
        let bytes = meta.encode();
        let at = offset(state.next_slot);
        reach(Point::BeforeMetaWrite);
        self.file.write_at(&[IoSlice::new(&bytes)], at).map_err(failed("write"))?;
        reach(Point::BeforeMetaSync);
        self.file.sync_data().map_err(failed("sync"))?;
        reach(Point::BehindMetaSync);
        state.next_slot = slot_of(meta.sequence + 1);
        state.meta = meta;
        Ok(())
    }

    /// The state on disk.
    pub(crate) fn read<T>(&self, view: impl FnOnce(&Meta) -> T) -> T {
        view(&self.state.lock().meta)
    }
}

fn offset(slot: usize) -> u64 {
    (slot * SLOT_BYTES) as u64
}

/// The slot that the write with this sequence goes to: the first one went to slot 0.
fn slot_of(sequence: u64) -> usize {
    // Two slots.
    ((sequence + 1) % SLOTS as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SEGMENT_BYTES_MIN;
    use crate::format::meta::{FileSet, Mode};
    use crate::hash::{SECRET_BYTES, Secret};
    use crate::sys::heap::HeapFs;
    use crate::types::{Epoch, Generation, Timestamp};

    fn meta() -> Meta {
        Meta {
            sequence: 0,
            store_id: [1; 16],
            segment_bytes: SEGMENT_BYTES_MIN,
            mode: Mode::Sync,
            clean: true,
            poisoned: false,
            unfinished: false,
            epoch: Epoch(0),
            namespaces: 0,
            names_bytes: 0,
            has_raises: false,
            has_refreshes: false,
            has_scopes: false,
            has_quotas: false,
            has_erasures: false,
            generation_ceiling: Generation(0),
            stable_generation: Generation(0),
            gone_generation: Generation(0),
            clock: Timestamp::from_ms(0),
            boot_id: [0; 16],
            inode: 0,
            secret: Secret([4; SECRET_BYTES]),
            files: FileSet::empty(),
        }
    }

    fn load(fs: &HeapFs) -> LoadedMeta {
        MetaFile::load(fs).unwrap().unwrap()
    }

    #[test]
    #[cfg_attr(miri, ignore = "no memory of its own, and slow there")]
    fn every_update_spares_the_state_before_it() {
        let fs = HeapFs::new();
        assert!(MetaFile::load(&fs).unwrap().is_none());
        MetaFile::create(&fs, meta()).unwrap();
        for round in 1..6 {
            let loaded = load(&fs);
            assert!(!loaded.is_fallback);
            assert_eq!(loaded.meta.epoch, Epoch(round - 1));
            loaded.file.update(|meta| meta.epoch = Epoch(round)).unwrap();
            // Tear the write that was just made: the state before it must still be there.
            let file = fs.open(META_NAME).unwrap();
            let torn = offset(slot_of(load(&fs).meta.sequence)) + 200;
            let mut byte = [0];
            file.read_at(&mut byte, torn).unwrap();
            file.write_at(&[IoSlice::new(&[!byte[0]])], torn).unwrap();
            let fallback = load(&fs);
            assert!(fallback.is_fallback);
            assert_eq!(fallback.meta.epoch, Epoch(round - 1));
            file.write_at(&[IoSlice::new(&byte)], torn).unwrap();
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "no memory of its own, and slow there")]
    fn two_bad_slots_or_a_wrong_length_refuse() {
        let fs = HeapFs::new();
        MetaFile::create(&fs, meta()).unwrap();
        let file = fs.open(META_NAME).unwrap();
        for slot in 0..SLOTS {
            file.write_at(&[IoSlice::new(&[9])], offset(slot) + 70).unwrap();
        }
        assert!(matches!(MetaFile::load(&fs), Err(OpenError::Corrupt { .. })));
        let fs = HeapFs::new();
        MetaFile::create(&fs, meta()).unwrap();
        fs.open(META_NAME).unwrap().write_at(&[IoSlice::new(&[0])], offset(SLOTS)).unwrap();
        assert!(matches!(MetaFile::load(&fs), Err(OpenError::Corrupt { .. })));
    }
}
