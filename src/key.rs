//! Keys that are made of several parts.
//!
//! ```text
//! 0xd1 | layout 1 | parts
//! part: kind 1 | length 4 | bytes
//! ```
//!
//! Each part has a kind and a length, so two lists of parts have one encoding only if they are the same list: `("a", "bc")` and
//! `("ab", "c")` are two keys, and so are the text `"7"` and the number 7. It is kept in stores: it never changes, and a
//! layout of another kind would have another number.

use smallvec::SmallVec;

/// What the encoding begins with, and which layout it is.
const START: [u8; 2] = [0xd1, 1];

const VERSION: u8 = 1;
const BYTES: u8 = 2;
const TEXT: u8 = 3;
const INT: u8 = 4;
const UUID: u8 = 5;
const PARENT: u8 = 6;

/// A key of several parts: an order and its line, a customer and the request's number.
///
/// Keys of different parts are different, whatever the parts contain. The first byte is 0xd1: in a namespace that also has
/// keys of other kinds, one that begins so could be the same. 6 bytes a part and 2 for the whole come on top of what the parts
/// have; a key that is longer than [`crate::KEY_BYTES_MAX`] is refused where it is used.
///
/// ```
/// use refrain::{PartsKey, Store};
/// # let directory = tempfile::tempdir()?;
/// # let store = Store::open(directory.path())?;
/// # let orders = store.namespace("orders")?;
/// let key = PartsKey::new().text("eu").int(17);
/// let lease = orders.claim(&key, None)?.acquired().expect("a new key");
/// // A step of the work on it, in another service, under the same key at each attempt:
/// let ship = PartsKey::child_of(&key, "ship");
/// assert!(orders.claim(&ship, None)?.acquired().is_some());
/// # drop(lease);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PartsKey {
    bytes: SmallVec<[u8; 64]>,
}

impl PartsKey {
    /// A key without parts.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: SmallVec::from_slice(&START) }
    }

    /// A key that is derived from something by the rules of this version. Whoever changes which parts a key has, or what they
    /// are made from, takes another version: a key never means two things.
    #[must_use]
    pub fn of_version(version: u32) -> Self {
        Self::new().with(VERSION, &version.to_le_bytes())
    }

    /// The key of a step within the work on `parent`, for whoever carries it out: the same at each attempt. Steps of a step
    /// are children of its key.
    #[must_use]
    pub fn child_of(parent: impl AsRef<[u8]>, step: &str) -> Self {
        Self::new().with(PARENT, parent.as_ref()).text(step)
    }

    /// With these bytes.
    #[must_use]
    pub fn bytes(self, part: impl AsRef<[u8]>) -> Self {
        self.with(BYTES, part.as_ref())
    }

    /// With this text. Texts are compared byte by byte: bring them to one form before, if they have several.
    #[must_use]
    pub fn text(self, part: &str) -> Self {
        self.with(TEXT, part.as_bytes())
    }

    /// With this number. The same number of another type is the same part.
    #[must_use]
    pub fn int(self, part: impl Into<i128>) -> Self {
        self.with(INT, &part.into().to_le_bytes())
    }

    /// With this UUID, as its sixteen bytes: `Uuid::into_bytes` of the crate `uuid` gives them.
    #[must_use]
    pub fn uuid(self, part: impl Into<[u8; 16]>) -> Self {
        self.with(UUID, &part.into())
    }

    fn with(mut self, kind: u8, part: &[u8]) -> Self {
        // A part of 4 GiB makes a key that is refused, whatever is said of its length.
        let len = u32::try_from(part.len()).unwrap_or(u32::MAX);
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&len.to_le_bytes());
        self.bytes.extend_from_slice(part);
        self
    }
}

impl Default for PartsKey {
    fn default() -> Self {
        Self::new()
    }
}

impl AsRef<[u8]> for PartsKey {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, PartialEq, Debug)]
    enum Part {
        Version(u32),
        Bytes(Vec<u8>),
        Text(String),
        Int(i128),
        Uuid([u8; 16]),
    }

    fn part() -> impl Strategy<Value = Part> {
        prop_oneof![
            any::<u32>().prop_map(Part::Version),
            prop::collection::vec(any::<u8>(), 0..20).prop_map(Part::Bytes),
            "[a-c]{0,4}".prop_map(Part::Text),
            (-3..3_i128).prop_map(Part::Int),
            any::<[u8; 16]>().prop_map(Part::Uuid),
        ]
    }

    fn key(parts: &[Part]) -> PartsKey {
        parts.iter().fold(PartsKey::new(), |key, part| match part {
            Part::Version(version) => key.with(VERSION, &version.to_le_bytes()),
            Part::Bytes(bytes) => key.bytes(bytes),
            Part::Text(text) => key.text(text),
            Part::Int(int) => key.int(*int),
            Part::Uuid(uuid) => key.uuid(*uuid),
        })
    }

    /// Reads the parts back: two lists with one encoding would be read as one.
    fn parts(key: &PartsKey) -> Vec<Part> {
        let mut rest = key.as_ref().strip_prefix(&START).unwrap();
        let mut parts = vec![];
        while let Some((kind, behind)) = rest.split_first() {
            let (len, behind) = behind.split_at(4);
            let len = u32::from_le_bytes(len.try_into().unwrap());
            let (value, behind) = behind.split_at(len as usize);
            rest = behind;
            parts.push(match *kind {
                VERSION => Part::Version(u32::from_le_bytes(value.try_into().unwrap())),
                BYTES => Part::Bytes(value.to_vec()),
                TEXT => Part::Text(String::from_utf8(value.to_vec()).unwrap()),
                INT => Part::Int(i128::from_le_bytes(value.try_into().unwrap())),
                UUID => Part::Uuid(value.try_into().unwrap()),
                other => panic!("kind {other}"),
            });
        }
        parts
    }

    proptest! {
        #[test]
        fn parts_are_read_back_as_they_were_given(list in prop::collection::vec(part(), 0..6)) {
            prop_assert_eq!(parts(&key(&list)), list);
        }
    }

    #[test]
    fn the_encoding_is_what_it_was() {
        let key = PartsKey::of_version(2).text("eu").int(17_u8).bytes([0xff]);
        let expected = [
            &[0xd1, 1][..],
            &[1, 4, 0, 0, 0, 2, 0, 0, 0],
            &[3, 2, 0, 0, 0, b'e', b'u'],
            &[4, 16, 0, 0, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            &[2, 1, 0, 0, 0, 0xff],
        ];
        assert_eq!(key.as_ref(), expected.concat());
        let child = PartsKey::child_of("k", "ship");
        let expected = [&[0xd1, 1, 6, 1, 0, 0, 0, b'k', 3, 4, 0, 0, 0][..], b"ship"].concat();
        assert_eq!(child.as_ref(), expected);
    }

    #[test]
    fn what_reads_alike_is_not_the_same_key() {
        let keys = [
            PartsKey::new(),
            PartsKey::new().text(""),
            PartsKey::new().text("ab").text("c"),
            PartsKey::new().text("a").text("bc"),
            PartsKey::new().text("abc"),
            PartsKey::new().bytes("abc"),
            PartsKey::new().text("7"),
            PartsKey::new().int(7),
            PartsKey::new().int(-7),
            PartsKey::of_version(7),
            PartsKey::child_of("abc", "d"),
            PartsKey::new().bytes("abc").text("d"),
            PartsKey::child_of(PartsKey::child_of("abc", "d"), "d"),
        ];
        let distinct: std::collections::HashSet<&[u8]> = keys.iter().map(AsRef::as_ref).collect();
        assert_eq!(distinct.len(), keys.len());
        assert_eq!(PartsKey::new().int(7_u8), PartsKey::new().int(7_i64));
    }
}
