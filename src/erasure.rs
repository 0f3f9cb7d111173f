//! What was erased: taken off the disk, for good.

use std::time::SystemTime;

use crate::types::Timestamp;

/// What somebody had erased.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Erasable {
    /// One key.
    Key,
    /// Every key of a scope.
    Scope,
    /// Every key of a namespace, those of its scopes among them.
    Namespace,
}

/// That keys were erased, by whom and why ([`crate::Store::erasures`]). It does not say which ones: that is what was erased.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Erasure {
    pub(crate) namespace: String,
    pub(crate) what: Erasable,
    pub(crate) at: Timestamp,
    pub(crate) keys: u64,
    pub(crate) actor: String,
    pub(crate) reason: String,
}

impl Erasure {
    /// The namespace's name.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// What was erased of it.
    #[must_use]
    pub fn what(&self) -> Erasable {
        self.what
    }

    /// How many keys were known and are not any more.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// When it was begun.
    #[must_use]
    pub fn at(&self) -> Option<SystemTime> {
        self.at.to_system()
    }

    /// Who.
    #[must_use]
    pub fn actor(&self) -> &str {
        &self.actor
    }

    /// Why.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// What a call that erases has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Erased {
    /// Keys that were known and are not any more.
    pub keys: u64,
    /// Segments that held something of them and were written over.
    pub segments: u64,
}
