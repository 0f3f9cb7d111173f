//! The keys, streams and bodies that every contestant is given, derived from numbers only.
//!
//! Keys look like UUIDs: 36 bytes. A body is 128 bytes that do not compress. Streams are made
//! before anything is timed, and read from front to back.

/// Bytes of a body.
pub const BODY: usize = 128;

/// A key.
pub type Key = [u8; 36];

/// A body.
pub type Body = [u8; BODY];

/// The first number of the keys that are never claimed.
pub const MISSING: u64 = 1 << 40;

/// Step of the generator `splitmix64`.
pub fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// The key with this number.
pub fn key(number: u64) -> Key {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut state = number.wrapping_mul(0xd1b5_4a32_d192_ed03) ^ 0xa5a5_1234;
    let raw = [random(&mut state), random(&mut state)].map(u64::to_le_bytes).concat();
    let mut key = [b'-'; 36];
    let mut at = 0;
    for (nth, byte) in raw.iter().enumerate() {
        at += usize::from([4, 6, 8, 10].contains(&nth));
        key[at] = HEX[usize::from(byte >> 4)];
        key[at + 1] = HEX[usize::from(byte & 15)];
        at += 2;
    }
    key
}

/// The 128-bit fingerprint that goes with a key.
pub fn fingerprint(key: &Key) -> [u8; 16] {
    let mut digest = [0; 16];
    digest.copy_from_slice(&key[..16]);
    digest
}

/// Keys from `start` on.
pub fn sequence(start: u64, count: usize) -> Vec<Key> {
    (start..start + count as u64).map(key).collect()
}

/// Keys drawn evenly from the first `n`.
pub fn uniform(n: usize, count: usize, seed: u64) -> Vec<Key> {
    let mut state = seed;
    let mut draw = || ((u128::from(random(&mut state)) * n as u128) >> 64) as u64;
    (0..count).map(|_| key(draw())).collect()
}

/// Keys drawn from the first `n` by a Zipf law with exponent 0.99, as YCSB draws them.
pub fn zipf(n: usize, count: usize, seed: u64) -> Vec<Key> {
    const THETA: f64 = 0.99;
    let zeta = |n: usize| (1..=n).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
    let (zeta_n, zeta_2, alpha) = (zeta(n), zeta(2), 1.0 / (1.0 - THETA));
    let eta = (1.0 - (2.0 / n as f64).powf(1.0 - THETA)) / (1.0 - zeta_2 / zeta_n);
    let mut state = seed;
    let mut draw = || {
        let even = (random(&mut state) >> 11) as f64 / (1u64 << 53) as f64;
        match even * zeta_n {
            scaled if scaled < 1.0 => 0,
            scaled if scaled < zeta_2 => 1,
            _ => ((n as f64 * (eta * even - eta + 1.0).powf(alpha)) as u64).min(n as u64 - 1),
        }
    };
    (0..count).map(|_| key(draw())).collect()
}

/// Bodies to be taken in turn.
pub struct Bodies(Vec<Body>);

impl Bodies {
    const COUNT: usize = 4096;

    pub fn new() -> Self {
        let mut state = 77;
        let mut body = || {
            let mut body = [0; BODY];
            for part in body.chunks_mut(8) {
                part.copy_from_slice(&random(&mut state).to_le_bytes());
            }
            body
        };
        Self((0..Self::COUNT).map(|_| body()).collect())
    }

    /// The body of the nth completion.
    pub fn nth(&self, nth: usize) -> &Body {
        &self.0[nth % Self::COUNT]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_distinct_and_look_like_uuids() {
        let mut keys = sequence(0, 10_000);
        assert!(keys.iter().all(|key| [8, 13, 18, 23].iter().all(|at| key[*at] == b'-')));
        assert!(keys.iter().all(|key| key.iter().filter(|byte| **byte == b'-').count() == 4));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 10_000);
    }

    #[test]
    fn the_head_of_a_zipf_stream_is_hot() {
        let stream = zipf(1000, 10_000, 1);
        let hottest = stream.iter().filter(|it| **it == key(0)).count();
        assert!((900..2000).contains(&hottest), "{hottest} of 10000");
    }
}
