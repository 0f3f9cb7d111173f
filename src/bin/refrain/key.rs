//! The key of a line: which part of it makes two lines the same.

use std::str::FromStr;

use refrain::KEY_BYTES_MAX;
use regex::bytes::Regex;
use serde_json::Value;

/// What stands before the digest of a key that the store could not hold itself.
const DIGEST_MARK: &[u8] = b"refrain:blake3:";
const DIGEST_BYTES: usize = DIGEST_MARK.len() + blake3::OUT_LEN;

/// Which part of a line is its key.
#[derive(Clone, Debug)]
pub enum KeyRule {
    /// All of it, without its newline.
    Whole,
    /// Columns, counted from 0, of lines that are CSV.
    Columns(Vec<usize>),
    /// The value at a JSON pointer.
    Pointer(String),
    /// The first capture group of the first match.
    Pattern(Regex),
}

impl FromStr for KeyRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "whole" if text == "whole" => Ok(Self::Whole),
            "col" => rest.split(',').map(column).collect::<Result<_, _>>().map(Self::Columns),
            "json" if rest.is_empty() || rest.starts_with('/') => {
                Ok(Self::Pointer(rest.to_owned()))
            }
            "json" => Err(format!("a JSON pointer begins with a slash: json:/{rest}")),
            "regex" if text.starts_with("regex:") => {
                Regex::new(rest).map(Self::Pattern).map_err(|error| error.to_string())
            }
            _ => Err("a key is whole, col:1,2, json:/pointer or regex:PATTERN".to_owned()),
        }
    }
}

fn column(text: &str) -> Result<usize, String> {
    let number = text.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    number.ok_or_else(|| format!("{text:?} is no column: they count from 1"))
}

/// The key of a line, under a rule that needs no more than the line.
#[derive(Debug, PartialEq, Eq)]
pub enum Key<'a> {
    /// The line has none.
    None,
    /// A part of the line.
    Part(&'a [u8]),
    /// Worked out.
    Made(Vec<u8>),
}

/// The value at `pointer` of a line of JSON, written the one way: members sorted, no spaces,
/// numbers with the digits they have. `null`, and no value at all, is no key.
pub fn pointer_key(line: &[u8], pointer: &str) -> Key<'static> {
    let Ok(document) = serde_json::from_slice::<Value>(line) else { return Key::None };
    match document.pointer(pointer) {
        None | Some(Value::Null) => Key::None,
        Some(value) => serde_json::to_vec(value).map_or(Key::None, Key::Made),
    }
}

/// The first capture group of the first match; the whole match when the pattern has no group.
pub fn pattern_key<'a>(line: &'a [u8], pattern: &Regex) -> Key<'a> {
    if pattern.captures_len() == 1 {
        return pattern.find(line).map_or(Key::None, |found| Key::Part(found.as_bytes()));
    }
    let group = pattern.captures(line).and_then(|captures| captures.get(1));
    group.map_or(Key::None, |group| Key::Part(group.as_bytes()))
}

/// Some of the fields of a line: one as it is, several each with its length, so that no two lists
/// of fields look the same. `None`: a column is missing.
pub fn columns_key<'a>(
    columns: &[usize],
    field: impl Fn(usize) -> Option<&'a [u8]>,
    key: &mut Vec<u8>,
) -> Option<()> {
    if let [column] = columns {
        key.extend_from_slice(field(*column)?);
        return Some(());
    }
    for column in columns {
        let field = field(*column)?;
        key.extend_from_slice(&(field.len() as u64).to_le_bytes());
        key.extend_from_slice(field);
    }
    Some(())
}

/// The key as the store holds it. One that is empty or longer than the store's keys, or that looks
/// like a digest, is replaced by its marked BLAKE3 digest: what looks like a digest always is one.
pub fn stored<'a>(key: &'a [u8], digest: &'a mut [u8; DIGEST_BYTES]) -> &'a [u8] {
    let looks_like_one = key.len() == DIGEST_BYTES && key.starts_with(DIGEST_MARK);
    if (1..=KEY_BYTES_MAX).contains(&key.len()) && !looks_like_one {
        return key;
    }
    let (mark, hash) = digest.split_at_mut(DIGEST_MARK.len());
    mark.copy_from_slice(DIGEST_MARK);
    hash.copy_from_slice(blake3::hash(key).as_bytes());
    digest
}

/// Room for what [`stored`] may have to make.
pub fn digest_room() -> [u8; DIGEST_BYTES] {
    [0; DIGEST_BYTES]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a panic is the report")]

    use super::*;

    fn pointer(line: &str, pointer: &str) -> Option<String> {
        match pointer_key(line.as_bytes(), pointer) {
            Key::Made(key) => Some(String::from_utf8(key).unwrap()),
            _ => None,
        }
    }

    fn columns(columns: &[usize], fields: &[&str]) -> Option<Vec<u8>> {
        let mut key = vec![];
        let field = |column| fields.get(column).map(|field: &&str| field.as_bytes());
        columns_key(columns, field, &mut key).map(|()| key)
    }

    #[test]
    fn rules_are_read_and_nonsense_is_refused() {
        assert!(matches!("whole".parse(), Ok(KeyRule::Whole)));
        assert!(matches!("col:2,1".parse(), Ok(KeyRule::Columns(it)) if it == [1, 0]));
        assert!(matches!("json:/a/b".parse(), Ok(KeyRule::Pointer(it)) if it == "/a/b"));
        assert!(matches!("json:".parse(), Ok(KeyRule::Pointer(it)) if it.is_empty()));
        assert!(matches!("regex:a:b".parse(), Ok(KeyRule::Pattern(it)) if it.as_str() == "a:b"));
        for wrong in [
            "", "col", "col:", "col:0", "col:1,", "col:x", "json:a", "regex:(", "regex", "whole:",
            "line",
        ] {
            assert!(wrong.parse::<KeyRule>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn json_values_are_the_same_however_they_are_written() {
        let same = [r#"{"id": {"b": 1, "a": "x"}}"#, r#"{"z":0,"id":{"a":"\u0078","b":1}}"#];
        assert_eq!(pointer(same[0], "/id").unwrap(), r#"{"a":"x","b":1}"#);
        assert_eq!(pointer(same[0], "/id"), pointer(same[1], "/id"));
        // A string is not the number it spells, and a large number keeps its last digit.
        assert_ne!(pointer(r#"{"id":"1"}"#, "/id"), pointer(r#"{"id":1}"#, "/id"));
        let large = ["98765432109876543210987654321", "98765432109876543210987654322"];
        assert_ne!(pointer(large[0], ""), pointer(large[1], ""));
        assert_eq!(pointer(r#"[10,[20]]"#, "/1/0").unwrap(), "20");
    }

    #[test]
    fn json_without_the_value_has_no_key() {
        for line in ["", "{}", r#"{"id":null}"#, r#"{"id":1"#, "id", "{\"id\":\"\u{0}\"}"] {
            assert_eq!(pointer(line, "/id"), None, "{line}");
        }
        assert_eq!(pointer_key(b"{\"id\":\"\xff\"}", "/id"), Key::None);
        assert_eq!(pointer(r#"{"id":false}"#, "/id").unwrap(), "false");
    }

    #[test]
    fn a_pattern_gives_its_first_group_or_all_it_matches() {
        let key =
            |pattern: &str, line: &'static [u8]| pattern_key(line, &Regex::new(pattern).unwrap());
        assert_eq!(key("id=([0-9]+)", b"a id=17 id=18"), Key::Part(b"17"));
        assert_eq!(key("id=[0-9]+", b"a id=17 id=18"), Key::Part(b"id=17"));
        assert_eq!(key("id=([0-9]+)", b"a"), Key::None);
        assert_eq!(key("a(b)?", b"a"), Key::None);
        assert_eq!(key("=(.*)$", b"\xff=x"), Key::Part(b"x"));
        assert_eq!(key("=(x*)$", b"a="), Key::Part(b""));
    }

    #[test]
    fn columns_are_joined_without_ambiguity() {
        assert_eq!(columns(&[1], &["a", "b"]).unwrap(), b"b");
        assert_ne!(columns(&[0, 1], &["a", "bc"]), columns(&[0, 1], &["ab", "c"]));
        assert_ne!(columns(&[0, 1], &["a", ""]), columns(&[0, 1], &["", "a"]));
        assert_eq!(columns(&[0, 2], &["a", "b"]), None);
        assert_eq!(columns(&[0, 0], &["a"]).unwrap().len(), 18);
    }

    #[test]
    fn only_what_the_store_cannot_hold_becomes_a_digest() {
        let longest = vec![b'x'; KEY_BYTES_MAX];
        assert_eq!(stored(&longest, &mut digest_room()), longest);
        let mut long = longest.clone();
        long.push(b'x');
        let mut room = digest_room();
        let digest = stored(&long, &mut room).to_vec();
        assert!(digest.starts_with(b"refrain:blake3:") && digest.len() == 47);
        long.push(b'x');
        assert_ne!(stored(&long, &mut digest_room()), digest);
        assert!(stored(b"", &mut digest_room()).starts_with(b"refrain:blake3:"));
        // A line that spells the digest is another line.
        assert_ne!(stored(&digest, &mut digest_room()), digest);
    }
}
