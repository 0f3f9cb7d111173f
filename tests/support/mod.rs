//! What several test programs share: the model, and seeds.
#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a panic is the report")]

pub mod bytes;
pub mod calls;
pub mod checksum;
pub mod disk;
pub mod model;
pub mod simulation;
pub mod task;
pub mod traces;
pub mod world;

/// The seed of a random test: from `REFRAIN_SEED` if it is set, and printed either way.
pub fn seed(test: &str) -> u64 {
    let given = std::env::var("REFRAIN_SEED").ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.unwrap().as_nanos() as u64
    });
    println!("{test}: REFRAIN_SEED={seed}");
    seed
}

/// A small generator (SplitMix64), for tests that are no proptest.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
