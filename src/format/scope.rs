//! Keys with a scope, as records hold them.
//!
//! ```text
//! without  key
//! with     len 1 | scope | key        in a record whose namespace number has its top bit set
//! ```
//!
//! So what a record says of a key without a scope is what it always was, no list of scope and key has two
//! encodings, and the two kinds of keys never meet, because their namespace numbers differ. The encoding is
//! on disk in every store that has scopes, and never changes.

use smallvec::SmallVec;

use crate::types::{KEY_BYTES_MAX, NamespaceId, SCOPE_BYTES_MAX};

/// Longest key that a record holds.
pub(crate) const STORED_KEY_BYTES_MAX: usize = 1 + SCOPE_BYTES_MAX + KEY_BYTES_MAX;

/// What stands in front of the keys of a scope; nothing without one.
pub(crate) type Prefix = SmallVec<[u8; 40]>;

/// What stands in front of the keys of this scope, which has 1 to 255 bytes.
pub(crate) fn prefix(scope: &[u8]) -> Prefix {
    debug_assert!((1..=SCOPE_BYTES_MAX).contains(&scope.len()));
    let mut prefix = Prefix::with_capacity(1 + scope.len());
    // At most 255.
    prefix.push(scope.len() as u8);
    prefix.extend_from_slice(scope);
    prefix
}

/// How many of the bytes of a key, as a record has it, are its scope's.
#[inline]
pub(crate) fn prefix_len(namespace: NamespaceId, stored: &[u8]) -> usize {
    if !namespace.is_scoped() {
        return 0;
    }
    // Also in front of a key that is too short.
    stored.first().map_or(0, |len| (1 + usize::from(*len)).min(stored.len()))
}

/// What stands in front of a key, as a record has it; nothing without a scope.
#[inline]
pub(crate) fn prefix_of(namespace: NamespaceId, stored: &[u8]) -> &[u8] {
    &stored[..prefix_len(namespace, stored)]
}

/// Scope and key of a record; `None`: bytes that no key with a scope has.
pub(crate) fn split(namespace: NamespaceId, stored: &[u8]) -> Option<(&[u8], &[u8])> {
    if !namespace.is_scoped() {
        return Some((&[], stored));
    }
    let (len, rest) = stored.split_first()?;
    let (scope, key) = rest.split_at_checked(usize::from(*len))?;
    (!scope.is_empty() && !key.is_empty()).then_some((scope, key))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// These bytes are on disk: another encoding of them would be another key.
    #[test]
    fn the_encoding_never_changes() {
        let space = NamespaceId(7);
        assert_eq!(space.scoped(), NamespaceId(0x8000_0007));
        let mut stored = prefix(b"acme");
        stored.extend_from_slice(b"order-17");
        assert_eq!(stored[..], *b"\x04acmeorder-17");
        assert_eq!(split(space.scoped(), &stored), Some((&b"acme"[..], &b"order-17"[..])));
        assert_eq!(split(space, &stored), Some((&b""[..], &stored[..])));
    }

    #[test]
    fn bytes_that_are_no_scoped_key_are_noticed() {
        let scoped = NamespaceId(1).scoped();
        for bad in [&b""[..], b"\x00", b"\x00key", b"\x01", b"\x01a", b"\x05abcd", b"\xff"] {
            assert_eq!(split(scoped, bad), None, "{bad:?}");
        }
        assert!(split(scoped, b"\x01ab").is_some());
    }
}
