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

    /// As many as come in a hundred and forty years are as good as no limit.
    pub(crate) fn at_once(&self) -> NonZeroU32 {
        let most = u64::MAX / 4 / u64::try_from(self.every.as_nanos()).unwrap_or(u64::MAX).max(1);
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        NonZeroU32::new(most).map_or(NonZeroU32::MIN, |most| self.burst.min(most))
    }
}

/// How often a namespace may be asked for something new, see [`crate::Store::limit_rates`]. `None`: as often as anybody likes.
///
/// The fields are there to be read; each has a method of the same name to change it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use = "rates do nothing until they are given to `Store::limit_rates`"]
#[non_exhaustive]
pub struct Rates {
    /// Keys of which nothing is known: that nobody has claimed before, or that were released or forgotten, by hand or by the clock.
    pub new_keys: Option<Rate>,
    /// The same, in each scope by itself ([`crate::Namespace::scoped`]); keys without one count together.
    pub new_keys_each_scope: Option<Rate>,
    /// Answers that a key has another fingerprint ([`crate::Mismatch`], with all that it tells of the key), in each scope by itself. A
    /// limit for clients that go wrong, no defence against guessing: whoever shows the right fingerprint is answered.
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
        let much = Rate::per_hour(count(1)).burst(NonZeroU32::MAX);
        let most = much.at_once().get();
        assert!(
            (1_000_000..2_000_000).contains(&most),
            "{most}: what is reckoned with it overflows"
        );
        assert_eq!(Rate::per_second(count(1000)).burst(NonZeroU32::MAX).at_once(), NonZeroU32::MAX);
    }
}
