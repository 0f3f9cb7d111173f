//! Which claims have ended, by their tokens: most claims that are still on disk have.
//!
//! A token is given to one claim of one key, and never again. So a record of a claim loses against
//! any exit that bears its token (R1), and nothing has to be read to know that they are of one key.
//! Without this, opening would read two records for each claim whose completion is kept.
//!
//! Tokens are dense: a set of them takes little more than a bit a token.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::format::index::Entry;
use crate::format::record::Kind;
use crate::hash::mix;
use crate::types::FencingToken;

const WORD_BITS: u64 = u64::BITS as u64;
const PAGE_WORDS: usize = 8;
const PAGE_BITS: u64 = WORD_BITS * PAGE_WORDS as u64;

/// See the file's header.
#[derive(Debug, Default)]
pub(super) struct Exits {
    pages: HashMap<u64, [u64; PAGE_WORDS], BuildHasherDefault<Mixer>>,
}

impl Exits {
    /// Notes what the entry ends, if it ends anything.
    pub(super) fn note(&mut self, entry: &Entry) {
        if !is_exit(entry.kind) {
            return;
        }
        let (page, word, bit) = place(entry.token);
        self.pages.entry(page).or_default()[word] |= bit;
    }

    /// Whether a record of this kind and token loses against an exit that was noted.
    pub(super) fn supersede(&self, kind: Kind, token: FencingToken) -> bool {
        let (page, word, bit) = place(token);
        !is_exit(kind) && self.pages.get(&page).is_some_and(|words| words[word] & bit != 0)
    }

    /// Takes in another set.
    pub(super) fn join(&mut self, other: Self) {
        for (page, words) in other.pages {
            let own = self.pages.entry(page).or_default();
            own.iter_mut().zip(words).for_each(|(own, other)| *own |= other);
        }
    }
}

/// Whether a record of this kind beats those of its token that are not of such a kind.
fn is_exit(kind: Kind) -> bool {
    kind.rank() >= Kind::Complete.rank()
}

/// Page, word of it and bit of that.
fn place(token: FencingToken) -> (u64, usize, u64) {
    let token = token.get();
    // Below the number of words.
    let word = (token % PAGE_BITS / WORD_BITS) as usize;
    (token / PAGE_BITS, word, 1 << (token % WORD_BITS))
}

/// Hashes the number of a page: our own files are no adversary.
#[derive(Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = mix(self.0 ^ word);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;
    use crate::types::{Epoch, KeyHash, NamespaceId, Timestamp};

    const KINDS: [Kind; 6] =
        [Kind::Claim, Kind::Renew, Kind::Park, Kind::Complete, Kind::Release, Kind::Forget];

    fn entry(kind: Kind, token: FencingToken) -> Entry {
        Entry {
            key_hash: KeyHash(1),
            token,
            kind,
            namespace: NamespaceId(1),
            offset: 0,
            len: 0,
            expires: Timestamp::MAX,
        }
    }

    proptest! {
        #[test]
        fn a_claim_is_superseded_by_exits_of_its_token_alone(
            noted in prop::collection::vec((0..3_u32, 0..3000_u64, 0..6_usize), 0..200),
            asked in prop::collection::vec((0..3_u32, 0..3000_u64), 0..200),
        ) {
            let token = |epoch, counter| FencingToken::new(Epoch(epoch), counter);
            let mut halves = [Exits::default(), Exits::default()];
            let mut ended = HashSet::new();
            for (at, (epoch, counter, kind)) in noted.iter().enumerate() {
                halves[at % 2].note(&entry(KINDS[*kind], token(*epoch, *counter)));
                if *kind >= 3 {
                    ended.insert(token(*epoch, *counter));
                }
            }
            let [mut exits, other] = halves;
            exits.join(other);
            let noted = noted.iter().map(|(epoch, counter, _)| (*epoch, *counter));
            for (epoch, counter) in asked.iter().copied().chain(noted) {
                let token = token(epoch, counter);
                for (at, kind) in KINDS.into_iter().enumerate() {
                    prop_assert_eq!(exits.supersede(kind, token), at < 3 && ended.contains(&token));
                }
            }
        }
    }
}
