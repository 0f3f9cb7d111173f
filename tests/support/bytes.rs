//! Steps out of bytes: whatever a fuzzer makes up is a run of calls.

use super::world::{Shown, Step};

/// Takes bytes off the front; what is not there is zero.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 != 0
    }

    fn index(&mut self) -> usize {
        usize::from(self.byte())
    }

    fn shown(&mut self) -> Shown {
        match self.byte() % 8 {
            0 => Shown::Older,
            1 => Shown::Bogus,
            _ => Shown::Current,
        }
    }

    /// About as long as leases and windows are, and as their ends are away.
    fn ms(&mut self) -> u64 {
        let ms = [0, 1, 99, 100, 500, 1000, 5000, 20_000, 25_000, 90_000, 86_400_000];
        ms[self.index() % ms.len()] + self.byte() as u64 % 3
    }
}

/// At most `most` steps.
pub fn steps(bytes: &[u8], most: usize) -> Vec<Step> {
    let mut bytes = Bytes(bytes);
    let mut steps = Vec::new();
    while !bytes.0.is_empty() && steps.len() < most {
        steps.push(step(&mut bytes));
    }
    steps
}

fn step(bytes: &mut Bytes<'_>) -> Step {
    match bytes.byte() % 24 {
        0..=4 => Step::Claim {
            key: bytes.index(),
            fingerprint: bytes.byte(),
            reference: bytes.byte(),
            lease: bytes.byte(),
            quick: bytes.flag(),
        },
        5 => Step::Once {
            key: bytes.index(),
            fingerprint: bytes.byte(),
            reference: bytes.byte(),
            ttl: bytes.byte(),
        },
        6 => Step::Lookup { key: bytes.index() },
        7 => Step::Renew { key: bytes.index(), shown: bytes.shown(), lease: bytes.byte() },
        8..=10 => Step::Complete {
            key: bytes.index(),
            shown: bytes.shown(),
            body: bytes.byte(),
            code: bytes.byte(),
            reference: bytes.byte(),
            ttl: bytes.byte(),
            quick: bytes.flag(),
        },
        11 => Step::Release { key: bytes.index(), shown: bytes.shown(), quick: bytes.flag() },
        12 => Step::Park { key: bytes.index(), shown: bytes.shown(), quick: bytes.flag() },
        13 => {
            let (key, shown, code) = (bytes.index(), bytes.shown(), bytes.byte());
            let body = bytes.flag().then(|| bytes.byte());
            Step::Resolve { key, shown, body, code }
        }
        14 => match bytes.byte() {
            0..=15 => Step::ForgetAll { key: bytes.index(), whole: bytes.flag() },
            _ => Step::Forget { key: bytes.index() },
        },
        15 => Step::Orphans,
        16 | 17 => Step::Advance { ms: bytes.ms() },
        18 => Step::Define { namespace: bytes.index() % 3, policy: bytes.index() % 10 },
        19 => Step::Alter { namespace: bytes.index() % 3, policy: bytes.index() % 10 },
        20 => match bytes.byte() {
            byte @ 0..=127 => Step::SetWall { seconds: u64::from(byte) << 25 },
            byte => Step::ClaimNearEnd { key: usize::from(byte) },
        },
        21 => Step::Maintain,
        22 => match bytes.flag() {
            false => Step::Flush,
            true => Step::Close {
                shards: bytes.byte(),
                mode: bytes.byte(),
                back_ms: bytes.ms(),
                forward_ms: bytes.ms(),
            },
        },
        _ => Step::Kill { shards: bytes.byte(), mode: bytes.byte(), forward_ms: bytes.ms() },
    }
}
