//! Fingerprints of JSON payloads: what says the same has the same, however it is written.
//!
//! A payload is brought to the form of RFC 8785 (names in order, no white space, numbers as ECMAScript writes them) by the crate
//! `serde_json_canonicalizer`. A number that a double does not hold is refused, where that form would take it for its
//! neighbour.

use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::types::Fingerprint;

/// Which fields of a JSON payload count.
///
/// Two payloads have one fingerprint if these fields say the same. Which fields count is part of the
/// fingerprint: one made with other fields, or of the plain bytes, is another. A field is named by a JSON
/// pointer (RFC 6901): `/amount`, `/lines/0/price`.
///
/// ```
/// use refrain::JsonFields;
/// let fields = JsonFields::without(["/sent_at", "/trace"])?;
/// let first = fields.fingerprint(br#"{"amount": 100, "sent_at": "10:00"}"#)?;
/// let again = fields.fingerprint(br#"{"sent_at": "10:05", "amount": 1e2}"#)?;
/// assert_eq!(first, again);
/// assert_ne!(first, fields.fingerprint(br#"{"amount": 101}"#)?);
/// # Ok::<(), refrain::JsonError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JsonFields {
    choice: Choice,
    pointers: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    Only,
    Without,
}

/// Why a payload has no fingerprint.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// It is no JSON, or nested more than 127 deep, or has a text that begins with `$serde_json::private::`.
    #[error("the payload cannot be read: {what}")]
    Syntax {
        /// What is wrong, and where.
        what: String,
    },
    /// It has a number that a double does not hold, in a field that counts or in another: what differs from it would look the
    /// same. Write it as a text.
    #[error("a double does not hold the number {number}")]
    Number {
        /// The number as the payload has it.
        number: String,
    },
    /// A field was named by what is no JSON pointer.
    #[error("{pointer:?} is no JSON pointer")]
    Pointer {
        /// What was given.
        pointer: String,
    },
}

impl JsonFields {
    /// All fields count.
    #[must_use]
    pub fn all() -> Self {
        Self { choice: Choice::Without, pointers: vec![] }
    }

    /// These fields count, and no others. One that is missing is not the same as `null`.
    ///
    /// # Errors
    ///
    /// [`JsonError::Pointer`].
    pub fn only<P: Into<String>>(pointers: impl IntoIterator<Item = P>) -> Result<Self, JsonError> {
        Self::new(Choice::Only, pointers)
    }

    /// All fields count but these. One of an array leaves its place behind, as `null`.
    ///
    /// # Errors
    ///
    /// [`JsonError::Pointer`].
    pub fn without<P: Into<String>>(
        pointers: impl IntoIterator<Item = P>,
    ) -> Result<Self, JsonError> {
        Self::new(Choice::Without, pointers)
    }

    fn new<P: Into<String>>(
        choice: Choice,
        pointers: impl IntoIterator<Item = P>,
    ) -> Result<Self, JsonError> {
        let mut pointers: Vec<String> = pointers.into_iter().map(Into::into).collect();
        pointers.sort_unstable();
        pointers.dedup();
        match pointers.iter().find(|pointer| !is_pointer(pointer)) {
            Some(pointer) => Err(JsonError::Pointer { pointer: pointer.clone() }),
            None => Ok(Self { choice, pointers }),
        }
    }

    /// The fingerprint of a payload, by XXH3-128, as [`Fingerprint::of`]: against mistakes, not against an adversary.
    ///
    /// # Errors
    ///
    /// [`JsonError::Syntax`] and [`JsonError::Number`].
    pub fn fingerprint(&self, payload: &[u8]) -> Result<Fingerprint, JsonError> {
        Ok(Fingerprint::of(&self.canonical(payload)?).of_json())
    }

    /// The same by BLAKE3, as [`Fingerprint::of_blake3`]: against an adversary, too.
    ///
    /// # Errors
    ///
    /// As [`JsonFields::fingerprint`].
    #[cfg(feature = "blake3")]
    pub fn fingerprint_blake3(&self, payload: &[u8]) -> Result<Fingerprint, JsonError> {
        Ok(Fingerprint::of_blake3(&self.canonical(payload)?).of_json())
    }

    /// What counts of a payload, and which fields do, in the form of RFC 8785.
    fn canonical(&self, payload: &[u8]) -> Result<Vec<u8>, JsonError> {
        let unreadable = |error: serde_json::Error| JsonError::Syntax { what: error.to_string() };
        check_tokens(payload)?;
        let mut payload: Value = serde_json::from_slice(payload).map_err(unreadable)?;
        let choice = match self.choice {
            Choice::Only => "only",
            Choice::Without => "without",
        };
        let counts = match self.choice {
            Choice::Only => {
                let field = |path: &String| Some((path.clone(), payload.pointer(path)?.clone()));
                Value::Object(self.pointers.iter().filter_map(field).collect())
            }
            Choice::Without => {
                self.pointers.iter().for_each(|pointer| remove(&mut payload, pointer));
                payload
            }
        };
        let pointers = self.pointers.iter().cloned().map(Value::String).collect();
        let about = Map::from_iter([
            (choice.to_owned(), Value::Array(pointers)),
            ("payload".to_owned(), counts),
        ]);
        serde_json_canonicalizer::to_vec(&Plain(&Value::Object(about))).map_err(unreadable)
    }
}

fn is_pointer(pointer: &str) -> bool {
    let mut escapes = pointer.split('~').skip(1);
    pointer.starts_with('/') && escapes.all(|behind| behind.starts_with(['0', '1']))
}

/// Takes a field out, if it is there.
fn remove(payload: &mut Value, pointer: &str) {
    let Some((parent, name)) = pointer.rsplit_once('/') else { return };
    match payload.pointer_mut(parent) {
        Some(Value::Object(fields)) => {
            drop(fields.remove(&name.replace("~1", "/").replace("~0", "~")));
        }
        Some(Value::Array(_)) => {
            if let Some(field) = payload.pointer_mut(pointer) {
                *field = Value::Null;
            }
        }
        _ => {}
    }
}

/// How `serde_json` says in its own tongue that an object is none: what begins so is refused, whatever features it is built
/// with.
const PRIVATE: &str = "$serde_json::private::";

/// Refuses what reading would take for something else: numbers that a double does not hold, and texts that mean something to the
/// reader. What is no JSON is for the reader to refuse.
fn check_tokens(payload: &[u8]) -> Result<(), JsonError> {
    let mut rest = payload;
    while let Some(first) = rest.first() {
        let len = match first {
            b'"' => text_len(rest),
            b'-' | b'0'..=b'9' => {
                let is_part =
                    |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                rest.iter().take_while(|byte| is_part(byte)).count()
            }
            _ => 1,
        };
        let (token, behind) = rest.split_at(len);
        rest = behind;
        let Ok(token) = std::str::from_utf8(token) else { continue };
        if *first == b'"' {
            // Escapes may hide any part of it.
            let may_be = token.contains("private") || token.contains('\\');
            if may_be
                && serde_json::from_str(token).is_ok_and(|text: String| text.starts_with(PRIVATE))
            {
                return Err(JsonError::Syntax {
                    what: format!("{token} has a meaning of its own"),
                });
            }
        } else if len > 1 && !is_held(token) {
            return Err(JsonError::Number { number: token.to_owned() });
        }
    }
    Ok(())
}

/// The bytes of a text with its quotes, or all there are if it has no end.
fn text_len(bytes: &[u8]) -> usize {
    let mut at = 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// Whether the double that is nearest to the number is written as the same number. What is no number is for others to refuse.
fn is_held(number: &str) -> bool {
    let Ok(double) = number.parse::<f64>() else { return true };
    double.is_finite() && decimal(number) == decimal(&format!("{double:e}"))
}

/// A number as its sign, its digits without zeros around them, and the power of ten of the first.
fn decimal(text: &str) -> Option<(bool, String, i64)> {
    let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
    let (is_negative, mantissa) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = format!("{whole}{fraction}");
    let zeros = digits.len() - digits.trim_start_matches('0').len();
    let significant = digits.trim_matches('0').to_owned();
    if significant.is_empty() {
        // Zero has no sign in RFC 8785, nor an exponent.
        return Some((false, significant, 0));
    }
    let exponent: i64 = exponent.parse().ok()?;
    let first = i64::try_from(whole.len()).ok()? - i64::try_from(zeros).ok()?;
    Some((is_negative, significant, exponent.checked_add(first)?))
}

/// A value as any serializer takes it: its numbers are doubles, whatever this crate's dependencies make of them.
struct Plain<'a>(&'a Value);

impl Serialize for Plain<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Null => serializer.serialize_unit(),
            Value::Bool(bool) => serializer.serialize_bool(*bool),
            // Numbers were checked. A zero is written without its sign.
            Value::Number(number) => {
                serializer.serialize_f64(number.as_f64().unwrap_or_default() + 0.0)
            }
            Value::String(text) => serializer.serialize_str(text),
            Value::Array(values) => serializer.collect_seq(values.iter().map(Plain)),
            Value::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(name, value)| (name, Plain(value))))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(payload: &str) -> String {
        let canonical = JsonFields::all().canonical(payload.as_bytes()).unwrap();
        let canonical = String::from_utf8(canonical).unwrap();
        let about = canonical.strip_prefix(r#"{"payload":"#).unwrap();
        about.strip_suffix(r#","without":[]}"#).unwrap().to_owned()
    }

    /// Facts of RFC 8785, its sections 3.2.2 and 3.2.3 and appendix B.
    #[test]
    fn the_form_is_that_of_rfc_8785() {
        assert_eq!(
            canonical("[ 56, {\"d\": true, \"10\": null, \"1\": [ ] } ]"),
            r#"[56,{"1":[],"10":null,"d":true}]"#
        );
        for (given, expected) in [
            ("333333333.3333333", "333333333.3333333"),
            ("1E30", "1e+30"),
            ("4.50", "4.5"),
            ("2e-3", "0.002"),
            ("0.000000000000000000000000001", "1e-27"),
            ("-0", "0"),
            ("-0.0e7", "0"),
            ("5e-324", "5e-324"),
            ("9007199254740992", "9007199254740992"),
            ("1e21", "1e+21"),
            ("100000000000000000000", "100000000000000000000"),
        ] {
            assert_eq!(canonical(given), expected, "{given}");
        }
        // Names are in the order of their UTF-16 units: U+1F600 begins with 0xd83d, before U+FB33.
        let names = "{\"\u{fb33}\": 1, \"\u{1f600}\": 2, \"\\r\": 3, \"\\u00f6\": 4}";
        let expected = "{\"\\r\":3,\"\u{f6}\":4,\"\u{1f600}\":2,\"\u{fb33}\":1}";
        assert_eq!(canonical(names), expected);
        assert_eq!(
            canonical("\"\\u20ac$\\u000F\\u000aA'\\u0042\\/\""),
            "\"\u{20ac}$\\u000f\\nA'B/\""
        );
    }

    #[test]
    fn a_number_that_would_be_taken_for_another_is_refused() {
        for number in [
            "9007199254740993",
            "0.10000000000000000001",
            "1e400",
            "-1e400",
            "1e-400",
            "12345678901234567890",
        ] {
            let refused = JsonFields::all().fingerprint(format!("[{number}]").as_bytes());
            assert_eq!(refused, Err(JsonError::Number { number: number.to_owned() }));
        }
        // A text may look like anything, and end in any way.
        JsonFields::all().fingerprint(br#"["1e400 \\\" 9007199254740993", "\\\\"]"#).unwrap();
    }

    #[test]
    fn an_object_that_the_reader_would_take_for_a_number_is_refused() {
        for payload in [
            r#"{"amount": {"$serde_json::private::Number": "100"}}"#,
            r#"{"amount": {"\u0024serde_json::private::Number": "100"}}"#,
            r#"{"amount": {"$serde_json::\u0070rivate::RawValue": "100"}}"#,
        ] {
            let refused = JsonFields::all().fingerprint(payload.as_bytes());
            assert!(matches!(refused, Err(JsonError::Syntax { .. })), "{payload} {refused:?}");
        }
        JsonFields::all().fingerprint(br#"{"private": "serde_json::private"}"#).unwrap();
    }

    #[test]
    fn the_fields_that_count_are_part_of_the_fingerprint() {
        let payload = br#"{"a": {"b": [1, 2]}, "c~/": 3}"#;
        let of =
            |fields: Result<JsonFields, JsonError>| fields.unwrap().fingerprint(payload).unwrap();
        let prints = [
            JsonFields::all().fingerprint(payload).unwrap(),
            of(JsonFields::only(["/a"])),
            of(JsonFields::only(["/a/b"])),
            of(JsonFields::only(["/a", "/missing"])),
            of(JsonFields::without(["/a"])),
            of(JsonFields::without(["/missing"])),
            of(JsonFields::without(["/c~0~1"])),
            Fingerprint::of(payload),
        ];
        for (at, print) in prints.iter().enumerate() {
            assert!(!prints[..at].contains(print), "{at}");
        }
        assert_eq!(
            of(JsonFields::only(["/a", "/c~0~1"])),
            of(JsonFields::only(["/c~0~1", "/a", "/a"]))
        );
    }

    #[test]
    fn a_field_that_does_not_count_may_be_missing() {
        let without = JsonFields::without(["/a/b", "/list/1", "/c~0~1"]).unwrap();
        let print = |payload: &str| without.fingerprint(payload.as_bytes()).unwrap();
        let plain = print(r#"{"a": {}, "list": [1, null]}"#);
        assert_eq!(plain, print(r#"{"a": {"b": 5}, "list": [1, 7], "c~/": 1}"#));
        assert_ne!(plain, print(r#"{"list": [1, null]}"#));
        let only = JsonFields::only(["/a"]).unwrap();
        let print = |payload: &str| only.fingerprint(payload.as_bytes()).unwrap();
        assert_eq!(print("{}"), print(r#"{"b": 1}"#));
        assert_ne!(print("{}"), print(r#"{"a": null}"#));
    }

    #[test]
    fn what_is_no_json_and_what_is_no_pointer_is_refused() {
        for payload in ["", "{", "nul", "[1] 2", "{\"a\": 1,}", "\"\u{0}\"", &"[".repeat(4000)] {
            let refused = JsonFields::all().fingerprint(payload.as_bytes());
            assert!(matches!(refused, Err(JsonError::Syntax { .. })), "{payload:.20} {refused:?}");
        }
        let refused = JsonFields::all().fingerprint(b"\"\xff\"");
        assert!(matches!(refused, Err(JsonError::Syntax { .. })), "{refused:?}");
        for pointer in ["", "a", "a/b", "/a~", "/a~2"] {
            let expected = JsonError::Pointer { pointer: pointer.to_owned() };
            assert_eq!(JsonFields::only([pointer]), Err(expected.clone()));
            assert_eq!(JsonFields::without([pointer]), Err(expected));
        }
    }
}
