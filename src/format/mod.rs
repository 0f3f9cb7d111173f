//! The bytes on disk: pure functions between values and bytes, no I/O.
//!
//! The constants here are the truth; docs/FORMAT.md explains them, and `tests/compatibility.rs`
//! holds both against a checked-in store. Everything is little-endian and of fixed width; reserved
//! bytes are zero and checked; every structure is under a checksum that is bound to its place
//! ([`crate::checksum`]). Decoding never panics and never trusts a length.

pub(crate) mod draft;
pub(crate) mod ext;
pub(crate) mod file;
pub(crate) mod flags;
pub(crate) mod index;
pub(crate) mod mark;
pub(crate) mod meta;
pub(crate) mod names;
pub(crate) mod record;
pub(crate) mod record_ref;
pub(crate) mod scope;
pub(crate) mod segment;

/// Raised by every change of bytes; a store of another major is refused by name.
pub(crate) const FORMAT_MAJOR: u16 = 2;
/// Raised by additions that a reader of the same major may ignore.
pub(crate) const FORMAT_MINOR: u16 = 0;

/// Disk blocks are written whole in units of this (the "powersafe overwrite" assumption).
pub(crate) const SECTOR_BYTES: usize = 512;
/// Pages of memory and of the page cache.
pub(crate) const PAGE_BYTES: usize = 4096;

/// Bounds and default of the segment size; it is a power of two.
pub(crate) const SEGMENT_BYTES_MIN: u32 = 256 << 10;
pub(crate) const SEGMENT_BYTES_MAX: u32 = 64 << 20;
pub(crate) const SEGMENT_BYTES_DEFAULT: u32 = 4 << 20;

/// Names of the files in a store's directory.
pub(crate) const LOCK_NAME: &str = "LOCK";
pub(crate) const META_NAME: &str = "META";
pub(crate) const META_NEW_NAME: &str = "META.new";
pub(crate) const NAMES_NAME: &str = "NAMES";

/// Roles that small structures bind their checksums to ([`crate::checksum::Place::part`]).
pub(crate) const ROLE_FILE: u32 = 1;
pub(crate) const ROLE_MARK: u32 = 2;
pub(crate) const ROLE_NAMES: u32 = 3;
pub(crate) const ROLE_SEGMENT: u32 = 4;

/// Reads fixed-width integers off the front of a slice. Running out is the caller's bug: every
/// structure checks its length first.
pub(crate) struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    #[inline]
    pub(crate) fn array<const N: usize>(&mut self) -> [u8; N] {
        let (front, rest) = self.bytes.split_at(N);
        self.bytes = rest;
        let mut array = [0; N];
        array.copy_from_slice(front);
        array
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> u8 {
        u8::from_le_bytes(self.array())
    }

    #[inline]
    pub(crate) fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.array())
    }

    #[inline]
    pub(crate) fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.array())
    }

    /// Six bytes.
    #[inline]
    pub(crate) fn u48(&mut self) -> u64 {
        let mut wide = [0; 8];
        wide[..6].copy_from_slice(&self.array::<6>());
        u64::from_le_bytes(wide)
    }

    #[inline]
    pub(crate) fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// Takes `len` bytes and says whether all were zero.
    pub(crate) fn zeros(&mut self, len: usize) -> bool {
        let (front, rest) = self.bytes.split_at(len);
        self.bytes = rest;
        front.iter().all(|byte| *byte == 0)
    }
}

/// Writes fixed-width integers to the front of a slice.
pub(crate) struct FieldsMut<'a> {
    bytes: &'a mut [u8],
}

impl<'a> FieldsMut<'a> {
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes }
    }

    #[inline]
    pub(crate) fn put(&mut self, bytes: &[u8]) -> &mut Self {
        let (front, rest) = std::mem::take(&mut self.bytes).split_at_mut(bytes.len());
        front.copy_from_slice(bytes);
        self.bytes = rest;
        self
    }

    /// Has the next `len` bytes filled by `fill`.
    #[inline]
    pub(crate) fn with(&mut self, len: usize, fill: impl FnOnce(&mut [u8])) -> &mut Self {
        let (front, rest) = std::mem::take(&mut self.bytes).split_at_mut(len);
        fill(front);
        self.bytes = rest;
        self
    }

    #[inline]
    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    #[inline]
    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    #[inline]
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    /// Six bytes; the value has no more.
    #[inline]
    pub(crate) fn u48(&mut self, value: u64) -> &mut Self {
        debug_assert!(value >> 48 == 0);
        self.put(&value.to_le_bytes()[..6])
    }

    #[inline]
    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.put(&value.to_le_bytes())
    }

    pub(crate) fn zeros(&mut self, len: usize) -> &mut Self {
        let (front, rest) = std::mem::take(&mut self.bytes).split_at_mut(len);
        front.fill(0);
        self.bytes = rest;
        self
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The tables of docs/FORMAT.md: name, and the end of the last field of fixed size.
    fn documented() -> HashMap<&'static str, usize> {
        let document = include_str!("../../docs/FORMAT.md");
        let tables = document.split("<!-- table: ").skip(1);
        let ends = tables.map(|text| {
            let (name, rest) = text.split_once(" -->\n").unwrap();
            let rows = rest.lines().take_while(|line| line.starts_with('|')).skip(2);
            let end = rows.fold(0, |end, row| {
                let cells: Vec<_> = row.split('|').map(str::trim).collect();
                assert_eq!(cells[1], end.to_string(), "{name}: fields follow one another");
                // The last one may be of any size.
                end + cells[2].parse::<usize>().unwrap_or(0)
            });
            (name, end)
        });
        ends.collect()
    }

    #[test]
    fn the_document_describes_structures_of_these_sizes() {
        let sizes = [
            ("meta", meta::SLOT_BYTES),
            ("names", names::HEADER_BYTES),
            ("gap", names::HEADER_BYTES),
            ("acceptance", names::HEADER_BYTES),
            ("raise", names::HEADER_BYTES),
            ("quota", names::HEADER_BYTES),
            ("erasure", names::HEADER_BYTES),
            ("file", file::HEADER_BYTES),
            ("mark", mark::HEADER_BYTES),
            ("mark entry", mark::ENTRY_BYTES),
            ("segment", segment::HEADER_BYTES),
            ("index entry", index::ENTRY_BYTES),
            ("trailer", segment::TRAILER_BYTES),
            ("record", record::HEADER_BYTES),
        ];
        let documented = documented();
        assert_eq!(documented.len(), sizes.len());
        for (name, size) in sizes {
            assert_eq!(documented[name], size, "{name}");
        }
    }

    #[test]
    fn fields_come_back_as_they_were_put() {
        let mut bytes = [0xff; 32];
        FieldsMut::new(&mut bytes).u8(1).u16(2).u32(3).u48(4).u64(5).zeros(3).put(b"abc");
        let mut fields = Fields::new(&bytes);
        assert_eq!((fields.u8(), fields.u16(), fields.u32()), (1, 2, 3));
        assert_eq!((fields.u48(), fields.u64()), (4, 5));
        assert!(fields.zeros(3));
        assert_eq!(&fields.array::<3>(), b"abc");
        assert!(!fields.zeros(5));
    }
}
