//! How often a namespace may be asked for something new, and what a call is told that comes too often.

use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

/// So many in a time, evenly spread, and so many at once ([`Rate::burst`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a rate does nothing until it is given to `Store::limit_rates`"]
pub struct Rate {
    every: Duration,
    burst: NonZeroU32,
}

impl Rate {
    /// So many a second; and as many at once.
    pub fn per_second(count: NonZeroU32) -> Self {
        Self::per(Duration::from_secs(1), count)
    }

    /// So many a minute; and as many at once.
    pub fn per_minute(count: NonZeroU32) -> Self {
        Self::per(Duration::from_secs(60), count)
    }

    /// So many an hour; and as many at once.
    pub fn per_hour(count: NonZeroU32) -> Self {
        Self::per(Duration::from_secs(3600), count)
    }

    fn per(time: Duration, count: NonZeroU32) -> Self {
        // One each nanosecond is as good as no limit.
        let every = (time / count.get()).max(Duration::from_nanos(1));
        Self { every, burst: count }
    }

    /// So many at once, after a time without any.
    pub fn burst(mut self, count: NonZeroU32) -> Self {
        self.burst = count;
        self
    }

    /// After how long there may be another one.
    pub(crate) fn every(&self) -> Duration {
        self.every
    }

    pub(crate) fn at_once(&self) -> NonZeroU32 {
        self.burst
    }
}

/// How often a namespace may be asked for something new, see [`crate::Store::limit_rates`]. `None`: as often as anybody likes.
///
/// The fields are there to be read; each has a method of the same name to change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "rates do nothing until they are given to `Store::limit_rates`"]
#[non_exhaustive]
pub struct Rates {
    /// Keys that nobody has claimed before, or that are forgotten.
    pub new_keys: Option<Rate>,
    /// The same, in each scope by itself ([`crate::Namespace::scoped`]); keys without one count together.
    pub new_keys_each_scope: Option<Rate>,
    /// Answers that a key has another fingerprint ([`crate::Mismatch`]), in each scope by itself: who guesses payloads is not told as fast as he guesses.
    pub mismatches_each_scope: Option<Rate>,
}

impl Rates {
    /// Limits new keys.
    pub fn new_keys(mut self, rate: Rate) -> Self {
        self.new_keys = Some(rate);
        self
    }

    /// Limits new keys of each scope.
    pub fn new_keys_each_scope(mut self, rate: Rate) -> Self {
        self.new_keys_each_scope = Some(rate);
        self
    }

    /// Limits answers that the fingerprint differs.
    pub fn mismatches_each_scope(mut self, rate: Rate) -> Self {
        self.mismatches_each_scope = Some(rate);
        self
    }
}

/// A namespace was asked for something new too often ([`crate::Store::limit_rates`]). Nothing was done; the same call may be granted later.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("too many {of}: not before {retry_after:?} from now")]
#[non_exhaustive]
pub struct RateExceeded {
    /// Of what.
    pub of: RateOf,
    /// After how long there may be another one, if nobody else takes it.
    pub retry_after: Duration,
}

/// What a rate limits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum RateOf {
    /// New keys of the namespace.
    NewKeys,
    /// New keys of one scope.
    NewKeysOfScope,
    /// Answers that a fingerprint differs, in one scope.
    MismatchesOfScope,
}

impl fmt::Display for RateOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NewKeys => "new keys in the namespace",
            Self::NewKeysOfScope => "new keys in the scope",
            Self::MismatchesOfScope => "differing fingerprints in the scope",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_spread_evenly_and_never_empty() {
        let count = |count| NonZeroU32::new(count).unwrap();
        let minute = Rate::per_minute(count(4)).burst(count(2));
        assert_eq!((minute.every(), minute.at_once()), (Duration::from_secs(15), count(2)));
        assert_eq!(Rate::per_hour(count(3600)).every(), Rate::per_second(count(1)).every());
        assert_eq!(Rate::per_second(NonZeroU32::MAX).every(), Duration::from_nanos(1));
    }
}
