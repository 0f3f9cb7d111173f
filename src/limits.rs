//! What a call is told that is refused because there are too many already.

use std::fmt;

/// A namespace has as much as its quota ([`crate::Quota`]) allows of: the newest claim is refused, never a key given up for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the {level} has {used} {of} already, of {limit} that it may have")]
#[non_exhaustive]
pub struct QuotaExceeded {
    /// Of what.
    pub of: QuotaOf,
    /// Of whose quota.
    pub level: QuotaLevel,
    /// How much there may be.
    pub limit: u64,
    /// How much there was.
    pub used: u64,
}

/// Whose quota it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum QuotaLevel {
    /// The namespace's ([`crate::Store::limit`]).
    Namespace,
    /// That of each scope ([`crate::Store::limit_scopes`]).
    Scope,
}

impl fmt::Display for QuotaLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Namespace => "namespace",
            Self::Scope => "scope",
        })
    }
}

/// What a quota limits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum QuotaOf {
    /// Keys.
    Keys,
    /// Bytes of their records.
    Bytes,
    /// Unfinished claims.
    InFlight,
}

impl QuotaOf {
    pub(crate) const ALL: [Self; 3] = [Self::Keys, Self::Bytes, Self::InFlight];
}

impl fmt::Display for QuotaOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keys => "keys",
            Self::Bytes => "bytes",
            Self::InFlight => "unfinished claims",
        })
    }
}

/// As many wait already as may: nobody waits without a bound on memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{limit} calls wait for the same {scope} already")]
#[non_exhaustive]
pub struct TooManyWaiters {
    /// Of what.
    pub scope: WaiterScope,
    /// How many may wait, see [`crate::Options::max_waiters`].
    pub limit: usize,
}

/// What it is that only so many may wait for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum WaiterScope {
    /// One key.
    Key,
    /// Keys of one scope, where scopes have a quota ([`crate::Store::limit_scopes`]).
    Scope,
    /// Keys of one namespace.
    Namespace,
    /// Keys of the store.
    Store,
}

impl fmt::Display for WaiterScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "key",
            Self::Scope => "scope",
            Self::Namespace => "namespace",
            Self::Store => "store",
        })
    }
}
