//! Hashing: the store's keyed hash of (namespace, key), and the plain digest of a payload.
//!
//! The keyed hash is XXH3-64 under a random 192-byte secret that each store draws at its creation
//! and keeps in its meta file, so that nobody outside can aim keys at one bucket. A fixed pair of
//! keys collides under about 2^-27 of all secrets, against 2^-10.5 of all seeds, which is why the
//! secret is used and not the seed. Collisions cost time, never an error: keys are always compared
//! whole.
//!
//! Each namespace hashes under a secret of its own: the store's, each word XORed with a mixture of
//! the namespace's number and the word's position. So every namespace's secret is as random as the
//! store's, and the namespace is part of the hash at no cost per call.

use xxhash_rust::xxh3::{xxh3_64_with_secret, xxh3_128};

use crate::types::{KeyHash, NamespaceId};

pub(crate) const SECRET_BYTES: usize = 192;

/// The secret a store is keyed with.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Secret(pub [u8; SECRET_BYTES]);

impl Secret {
    /// The hasher of one namespace.
    pub(crate) fn hasher(&self, namespace: NamespaceId) -> KeyHasher {
        let mut derived = self.0;
        for (at, word) in derived.chunks_exact_mut(8).enumerate() {
            let other = mix(u64::from(namespace.0) << 32 | at as u64).to_le_bytes();
            word.iter_mut().zip(other).for_each(|(byte, other)| *byte ^= other);
        }
        KeyHasher { secret: derived }
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Hashes the keys of one namespace.
#[derive(Clone)]
pub(crate) struct KeyHasher {
    secret: [u8; SECRET_BYTES],
}

impl KeyHasher {
    #[inline]
    pub(crate) fn hash(&self, key: &[u8]) -> KeyHash {
        KeyHash(xxh3_64_with_secret(key, &self.secret))
    }
}

impl std::fmt::Debug for KeyHasher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyHasher(..)")
    }
}

/// The XXH3 128-bit digest of `bytes`, little-endian, keyed by nothing.
pub(crate) fn digest_128(bytes: &[u8]) -> [u8; 16] {
    xxh3_128(bytes).to_le_bytes()
}

/// The finalizer of SplitMix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit.
#[inline]
pub(crate) fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(step: u8) -> Secret {
        let mut secret = [0; SECRET_BYTES];
        for (i, byte) in secret.iter_mut().enumerate() {
            *byte = (i as u8).wrapping_mul(step);
        }
        Secret(secret)
    }

    #[test]
    fn the_same_key_hashes_apart_in_two_namespaces_and_two_stores() {
        let (store, other_store) = (secret(7), secret(9));
        let one = store.hasher(NamespaceId(1)).hash(b"key");
        assert_eq!(one, store.hasher(NamespaceId(1)).hash(b"key"));
        assert_ne!(one, store.hasher(NamespaceId(2)).hash(b"key"));
        assert_ne!(one, other_store.hasher(NamespaceId(1)).hash(b"key"));
    }

    #[test]
    fn the_hash_of_a_stored_key_never_changes() {
        // These values are on disk in every store (docs/FORMAT.md, key hash): changing one of them
        // makes all its keys unreachable.
        let hasher = secret(1).hasher(NamespaceId(1));
        assert_eq!(hasher.hash(b"a").0, HASH_OF_A);
        assert_eq!(hasher.hash(&[b'x'; 300]).0, HASH_OF_300_X);
    }

    const HASH_OF_A: u64 = 6_335_278_471_014_102_358;
    const HASH_OF_300_X: u64 = 7_546_064_194_929_001_326;
}
