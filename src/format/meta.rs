//! The meta file: what a store is, and how far its counters have gone.
//!
//! Two slots of 4 KiB, written in turn; the valid one with the highest sequence counts.
//!
//! ```text
//! preamble   0  magic 8 | major 2 | minor 2 | compat 4 | ro_compat 4 | incompat 4 | slot_len 4
//!           28  zeros 32 | crc 4
//! body      64  sequence 8 | store id 16 | segment_bytes 4 | hash kind 1 | last mode 1 | flags 2
//!           96  epoch 4 | namespaces 4 | names_bytes 8 | generation ceiling 8 | stable generation 8
//!          128  clock_ms 8 | boot id 16 | inode of the meta file 8
//!          160  secret 192
//!          352  bitmap of data files 2048
//!         2400  gone generation 8
//!         2408  zeros to the end, crc 4 the last four bytes
//! ```
//!
//! The preamble never changes, in any version: it has a checksum of its own, so that a newer store
//! is refused by name and not called damaged. An unknown `incompat` or `ro_compat` feature refuses
//! the store, an unknown `compat` one is ignored.

use super::file::FILES_MAX;
use super::{FORMAT_MAJOR, FORMAT_MINOR, Fields, FieldsMut, SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN};
use crate::checksum::crc32;
use crate::hash::{SECRET_BYTES, Secret};
use crate::types::{Epoch, FileId, Generation, Timestamp};

pub(crate) const SLOTS: usize = 2;
pub(crate) const SLOT_BYTES: usize = 4096;
/// The last one that a slot may have, and that the slot of a store to be opened may have, so that
/// those it writes can be read. No store comes this far.
const SEQUENCE_MAX: u64 = 1 << 63;
const SEQUENCE_OPEN_MAX: u64 = 1 << 62;
pub(crate) const PREAMBLE_BYTES: usize = 64;

const MAGIC: [u8; 8] = *b"RFRNmeta";
const BITMAP_BYTES: usize = FILES_MAX as usize / 8;
const BODY_END: usize = 352 + BITMAP_BYTES + 8;
const HASH_XXH3: u8 = 1;
const CLEAN: u16 = 1;
const POISONED: u16 = 1 << 1;
const UNFINISHED: u16 = 1 << 2;

const _: () = assert!(BODY_END + 4 <= SLOT_BYTES);

/// How the store was last opened: decides what recovery may expect of the page cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub(crate) enum Mode {
    Memory = 0,
    Buffered = 1,
    Sync = 2,
    Interval = 3,
}

/// The data files that belong to the store.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct FileSet(Box<[u8; BITMAP_BYTES]>);

impl FileSet {
    pub(crate) fn empty() -> Self {
        Self(Box::new([0; BITMAP_BYTES]))
    }

    pub(crate) fn contains(&self, file: FileId) -> bool {
        self.0.get(file.0 as usize / 8).is_some_and(|byte| byte & 1 << (file.0 % 8) != 0)
    }

    /// The file must be below [`FILES_MAX`].
    pub(crate) fn insert(&mut self, file: FileId) {
        self.0[file.0 as usize / 8] |= 1 << (file.0 % 8);
    }

    pub(crate) fn remove(&mut self, file: FileId) {
        self.0[file.0 as usize / 8] &= !(1 << (file.0 % 8));
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = FileId> + '_ {
        (0..FILES_MAX).map(FileId).filter(|file| self.contains(*file))
    }

    /// The lowest number that no file has, other than `taken`.
    pub(crate) fn first_free(&self, taken: Option<FileId>) -> Option<FileId> {
        (0..FILES_MAX).map(FileId).find(|file| !self.contains(*file) && Some(*file) != taken)
    }
}

impl std::fmt::Debug for FileSet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.iter().map(|file| file.0)).finish()
    }
}

/// The feature `incompat` 0: the names file has raises.
const RAISES: u32 = 1;
/// The feature `incompat` 1: completions may be written again under their token, with a later end.
const REFRESHES: u32 = 1 << 1;
/// The feature `incompat` 2: there are, or may be, keys with a scope.
const SCOPES: u32 = 1 << 2;
/// The feature `incompat` 3: the names file has quotas.
const QUOTAS: u32 = 1 << 3;
/// The feature `incompat` 4: the names file has erasures.
const ERASURES: u32 = 1 << 4;
const KNOWN: u32 = RAISES | REFRESHES | SCOPES | QUOTAS | ERASURES;
const INCOMPAT_OFFSET: usize = 20;

/// One state of the meta file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    pub(crate) sequence: u64,
    pub(crate) store_id: [u8; 16],
    pub(crate) segment_bytes: u32,
    pub(crate) mode: Mode,
    /// Closed in order: everything was synced, and nothing was written since.
    pub(crate) clean: bool,
    /// A sync failed while the store was open.
    pub(crate) poisoned: bool,
    /// A salvage into the store has not come to its end.
    pub(crate) unfinished: bool,
    pub(crate) epoch: Epoch,
    /// How many namespaces there are: the highest number given out.
    pub(crate) namespaces: u32,
    /// How much of the names file counts.
    pub(crate) names_bytes: u64,
    /// Whether it has raises, which earlier versions do not know.
    pub(crate) has_raises: bool,
    /// Whether it has, or has had, a policy that refreshes windows, which earlier versions do not know.
    pub(crate) has_refreshes: bool,
    /// Whether there may be keys with a scope.
    pub(crate) has_scopes: bool,
    /// Whether the names file has quotas.
    pub(crate) has_quotas: bool,
    /// Whether it has erasures.
    pub(crate) has_erasures: bool,
    /// No generation at or above this was ever used (R8).
    pub(crate) generation_ceiling: Generation,
    /// Every segment below this was sealed and synced in full.
    pub(crate) stable_generation: Generation,
    /// The store's time was at least this.
    pub(crate) clock: Timestamp,
    pub(crate) boot_id: [u8; 16],
    pub(crate) inode: u64,
    pub(crate) secret: Secret,
    pub(crate) files: FileSet,
    /// Every segment of a data file that was given up had a generation below this.
    pub(crate) gone_generation: Generation,
}

/// Why a slot holds no state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Flaw {
    /// Never written.
    Blank,
    /// Neither blank nor readable.
    Damaged,
    /// Another version's.
    Foreign { major: u16, minor: u16, incompat: u32, ro_compat: u32 },
}

impl Meta {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; SLOT_BYTES];
        let bit = |is_there: bool, bit: u32| if is_there { bit } else { 0 };
        let incompat = bit(self.has_raises, RAISES)
            | bit(self.has_refreshes, REFRESHES)
            | bit(self.has_scopes, SCOPES)
            | bit(self.has_quotas, QUOTAS)
            | bit(self.has_erasures, ERASURES);
        FieldsMut::new(&mut bytes)
            .put(&MAGIC)
            .u16(FORMAT_MAJOR)
            .u16(FORMAT_MINOR)
            .zeros(8)
            .u32(incompat)
            .u32(SLOT_BYTES as u32);
        let preamble_crc = crc32(&bytes[..PREAMBLE_BYTES - 4]);
        FieldsMut::new(&mut bytes[PREAMBLE_BYTES - 4..]).u32(preamble_crc);
        let flags = if self.clean { CLEAN } else { 0 }
            | if self.poisoned { POISONED } else { 0 }
            | if self.unfinished { UNFINISHED } else { 0 };
        FieldsMut::new(&mut bytes[PREAMBLE_BYTES..])
            .u64(self.sequence)
            .put(&self.store_id)
            .u32(self.segment_bytes)
            .u8(HASH_XXH3)
            .u8(self.mode as u8)
            .u16(flags)
            .u32(self.epoch.0)
            .u32(self.namespaces)
            .u64(self.names_bytes)
            .u64(self.generation_ceiling.0)
            .u64(self.stable_generation.0)
            .u64(self.clock.ms())
            .put(&self.boot_id)
            .u64(self.inode)
            .put(&self.secret.0)
            .put(&self.files.0[..])
            .u64(self.gone_generation.0);
        let crc = crc32(&bytes[PREAMBLE_BYTES..SLOT_BYTES - 4]);
        FieldsMut::new(&mut bytes[SLOT_BYTES - 4..]).u32(crc);
        bytes
    }

    /// Whether there are numbers left to count on with.
    pub(crate) fn can_go_on(&self) -> bool {
        self.sequence <= SEQUENCE_OPEN_MAX && self.generation_ceiling <= Generation::OPEN_MAX
    }

    pub(crate) fn decode(bytes: &[u8; SLOT_BYTES]) -> Result<Self, Flaw> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Err(Flaw::Blank);
        }
        let mut fields = Fields::new(bytes);
        let magic: [u8; 8] = fields.array();
        let (major, minor) = (fields.u16(), fields.u16());
        let (_compat, ro_compat, incompat) = (fields.u32(), fields.u32(), fields.u32());
        let preamble_crc = crc32(&bytes[..PREAMBLE_BYTES - 4]);
        if magic != MAGIC || preamble_crc != Fields::new(&bytes[PREAMBLE_BYTES - 4..]).u32() {
            return Err(Flaw::Damaged);
        }
        if major != FORMAT_MAJOR || incompat & !KNOWN != 0 || ro_compat != 0 {
            return Err(Flaw::Foreign { major, minor, incompat, ro_compat });
        }
        Self::decode_body(bytes).ok_or(Flaw::Damaged)
    }

    fn decode_body(bytes: &[u8; SLOT_BYTES]) -> Option<Self> {
        let crc = crc32(&bytes[PREAMBLE_BYTES..SLOT_BYTES - 4]);
        if crc != Fields::new(&bytes[SLOT_BYTES - 4..]).u32() {
            return None;
        }
        let mut fields = Fields::new(&bytes[PREAMBLE_BYTES..]);
        let sequence = fields.u64();
        let store_id = fields.array();
        let segment_bytes = fields.u32();
        let hash_kind = fields.u8();
        let mode = match fields.u8() {
            0 => Mode::Memory,
            1 => Mode::Buffered,
            2 => Mode::Sync,
            3 => Mode::Interval,
            _ => return None,
        };
        let flags = fields.u16();
        let valid = hash_kind == HASH_XXH3
            && flags & !(CLEAN | POISONED | UNFINISHED) == 0
            && segment_bytes_are_valid(segment_bytes)
            && bytes[BODY_END..SLOT_BYTES - 4].iter().all(|byte| *byte == 0);
        if !valid {
            return None;
        }
        let incompat = Fields::new(&bytes[INCOMPAT_OFFSET..]).u32();
        let meta = Self {
            sequence,
            store_id,
            segment_bytes,
            mode,
            clean: flags & CLEAN != 0,
            poisoned: flags & POISONED != 0,
            unfinished: flags & UNFINISHED != 0,
            epoch: Epoch(fields.u32()),
            namespaces: fields.u32(),
            names_bytes: fields.u64(),
            has_raises: incompat & RAISES != 0,
            has_refreshes: incompat & REFRESHES != 0,
            has_scopes: incompat & SCOPES != 0,
            has_quotas: incompat & QUOTAS != 0,
            has_erasures: incompat & ERASURES != 0,
            generation_ceiling: Generation(fields.u64()),
            stable_generation: Generation(fields.u64()),
            clock: Timestamp::from_ms(fields.u64()),
            boot_id: fields.array(),
            inode: fields.u64(),
            secret: Secret(fields.array::<SECRET_BYTES>()),
            files: FileSet(Box::new(fields.array())),
            gone_generation: Generation(fields.u64()),
        };
        // What no store comes to is damage; sums stay in range.
        let is_possible = meta.sequence <= SEQUENCE_MAX
            && meta.names_bytes <= u64::from(u32::MAX)
            && meta.generation_ceiling <= Generation::MAX
            && meta.stable_generation <= meta.generation_ceiling
            && meta.gone_generation <= meta.generation_ceiling;
        is_possible.then_some(meta)
    }
}

/// Whether a store can have segments of this size.
pub(crate) fn segment_bytes_are_valid(segment_bytes: u32) -> bool {
    segment_bytes.is_power_of_two()
        && (SEGMENT_BYTES_MIN..=SEGMENT_BYTES_MAX).contains(&segment_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta() -> Meta {
        let mut files = FileSet::empty();
        files.insert(FileId(0));
        files.insert(FileId(FILES_MAX - 1));
        Meta {
            sequence: 12,
            store_id: [1; 16],
            segment_bytes: SEGMENT_BYTES_MIN,
            mode: Mode::Interval,
            clean: true,
            poisoned: false,
            unfinished: false,
            epoch: Epoch(3),
            namespaces: 2,
            names_bytes: 144,
            has_raises: true,
            has_refreshes: true,
            has_scopes: true,
            has_quotas: true,
            has_erasures: true,
            generation_ceiling: Generation(1024),
            stable_generation: Generation(7),
            gone_generation: Generation(5),
            clock: Timestamp::from_ms(1_700_000_000_000),
            boot_id: [2; 16],
            inode: 99,
            secret: Secret([4; SECRET_BYTES]),
            files,
        }
    }

    fn slot(meta: &Meta) -> [u8; SLOT_BYTES] {
        meta.encode().try_into().unwrap()
    }

    #[test]
    fn a_state_comes_back_and_every_flipped_bit_is_noticed() {
        let bytes = slot(&meta());
        assert_eq!(Meta::decode(&bytes), Ok(meta()));
        // Few of them where each step of the checksum is checked.
        for bit in (0..SLOT_BYTES * 8).step_by(if cfg!(miri) { 1009 } else { 1 }) {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Meta::decode(&bad), Err(Flaw::Damaged), "bit {bit}");
        }
        assert_eq!(Meta::decode(&[0; SLOT_BYTES]), Err(Flaw::Blank));
    }

    #[test]
    fn features_come_back_each_by_itself() {
        for bits in 0..=KNOWN as u8 {
            let meta = Meta {
                has_raises: bits & 1 != 0,
                has_refreshes: bits & 2 != 0,
                has_scopes: bits & 4 != 0,
                has_quotas: bits & 8 != 0,
                has_erasures: bits & 16 != 0,
                ..meta()
            };
            assert_eq!(slot(&meta)[INCOMPAT_OFFSET], bits);
            assert_eq!(Meta::decode(&slot(&meta)), Ok(meta));
        }
    }

    /// A slot as another version would write it: a preamble we can read, a body we cannot.
    fn foreign(change: impl Fn(&mut [u8])) -> [u8; SLOT_BYTES] {
        let mut bytes = slot(&meta());
        change(&mut bytes);
        bytes[2000] ^= 1;
        let crc = crc32(&bytes[..PREAMBLE_BYTES - 4]);
        bytes[PREAMBLE_BYTES - 4..PREAMBLE_BYTES].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    #[test]
    fn another_version_is_named_and_not_called_damaged() {
        let newer = foreign(|bytes| bytes[8] = 3);
        let flaw = Flaw::Foreign { major: 3, minor: 0, incompat: KNOWN, ro_compat: 0 };
        assert_eq!(Meta::decode(&newer), Err(flaw));
        let feature = foreign(|bytes| bytes[20] = 63);
        assert!(matches!(Meta::decode(&feature), Err(Flaw::Foreign { incompat: 63, .. })));
        let feature = foreign(|bytes| bytes[16] = 1);
        assert!(matches!(Meta::decode(&feature), Err(Flaw::Foreign { ro_compat: 1, .. })));
        // An unknown compatible feature is no reason to refuse; the damaged body is.
        assert_eq!(Meta::decode(&foreign(|bytes| bytes[12] = 1)), Err(Flaw::Damaged));
    }

    #[test]
    fn a_file_set_knows_its_members_and_the_first_free_number() {
        let mut files = FileSet::empty();
        assert_eq!(files.first_free(None), Some(FileId(0)));
        for id in [0, 1, 3] {
            files.insert(FileId(id));
        }
        assert_eq!(files.first_free(None), Some(FileId(2)));
        assert_eq!(files.first_free(Some(FileId(2))), Some(FileId(4)));
        assert_eq!(files.iter().map(|file| file.0).collect::<Vec<_>>(), [0, 1, 3]);
        assert!(!files.contains(FileId(FILES_MAX)));
    }

    #[test]
    fn segment_sizes_are_powers_of_two_within_bounds() {
        for good in [256 << 10, 4 << 20, 64 << 20] {
            assert!(segment_bytes_are_valid(good));
        }
        for bad in [0, 1, 128 << 10, 3 << 20, 128 << 20] {
            assert!(!segment_bytes_are_valid(bad));
        }
    }
}
