//! Classes: what a stream of segments is for.
//!
//! Records that end at about the same time share segments, so that a segment dies whole and nothing
//! is ever looked for to be removed. Claims live for seconds and have a stream of their own;
//! completions have one for each time that they are kept, which the policies name, or, for what a
//! single call asks, for each power of two of it.

use std::time::Duration;

use crate::format::segment::Content;

/// A segment is not sealed for its age before this one.
const FILL_MIN: Duration = Duration::from_secs(5);
/// A segment of claims is sealed at this age at the latest: completions outlive the claims they
/// end, so segments of theirs wait for it.
const FILL_MAX_CLAIMS: Duration = Duration::from_secs(30);
/// The lowest class of completions that calls ask for.
const LOWEST: Duration = Duration::from_secs(8);

/// See the file's header.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Class {
    Claims,
    /// Completions that are due at most this long after they were made.
    Kept(Duration),
}

impl Class {
    /// For completions that a policy keeps for `ttl`.
    pub(crate) fn exact(ttl: Duration) -> Self {
        Self::Kept(ttl.max(LOWEST))
    }

    /// For completions that are kept for `ttl` for another reason.
    pub(crate) fn geometric(ttl: Duration) -> Self {
        let mut ceiling = LOWEST;
        while ceiling < ttl {
            ceiling = ceiling.saturating_mul(2);
        }
        Self::Kept(ceiling)
    }

    /// The class that takes this one's place where classes are too many.
    pub(super) fn rounded_up(self) -> Self {
        match self {
            Self::Claims => Self::Claims,
            Self::Kept(ttl) => Self::geometric(ttl),
        }
    }

    pub(super) fn content(self) -> Content {
        match self {
            Self::Claims => Content::Claims,
            Self::Kept(_) => Content::Completions,
        }
    }

    /// How long a segment is filled at most: what is due first in it waits so long for what is due
    /// last.
    pub(super) fn fill_time(self) -> Duration {
        match self {
            Self::Claims => FILL_MAX_CLAIMS,
            Self::Kept(ttl) => (ttl / 8).max(FILL_MIN),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn what_calls_ask_for_falls_into_powers_of_two() {
        assert_eq!(Class::geometric(Duration::ZERO), Class::Kept(8 * S));
        assert_eq!(Class::geometric(8 * S), Class::Kept(8 * S));
        assert_eq!(Class::geometric(9 * S), Class::Kept(16 * S));
        assert_eq!(Class::exact(9 * S), Class::Kept(9 * S));
        let Class::Kept(longest) = Class::geometric(Duration::MAX) else { unreachable!() };
        assert_eq!(longest, Duration::MAX);
        for days in 1..=30 * 365 {
            let ttl = 86_400 * days * S;
            let Class::Kept(ceiling) = Class::geometric(ttl) else { unreachable!() };
            assert!(ttl <= ceiling && ceiling < 2 * ttl);
        }
    }

    #[test]
    fn a_segment_is_filled_for_an_eighth_of_what_it_keeps() {
        assert_eq!(Class::exact(80 * S).fill_time(), 10 * S);
        assert_eq!(Class::exact(8 * S).fill_time(), 5 * S);
        assert_eq!(Class::Claims.fill_time(), 30 * S);
    }
}
