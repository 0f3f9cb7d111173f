//! What a claim answers.

use std::collections::HashMap;
use std::sync::Arc;

use crate::answer::{Gap, InProgress, Mismatch, Outcome, OutsideWindow, Parked};
use crate::engine::Settling;
use crate::engine::namespaces::Key;
use crate::engine::told::Told;
use crate::error::ClaimError;
use crate::handle::SharedSpace;
use crate::lease::Lease;
use crate::request::ClaimOptions;
use crate::types::FencingToken;

/// What `claim` answers.
#[derive(Debug)]
#[must_use = "a claim may have been granted: work, and complete, release or park it"]
#[non_exhaustive]
pub enum Claim {
    /// The key is yours: do the work, then complete the lease.
    Acquired(Lease),
    /// The key was yours already ([`ClaimOptions::owner`]), and is: go on with the work, under the lease's new token. The old one is refused.
    Resumed(Lease),
    /// The work was done: here is what it said.
    Completed(Outcome),
    /// Somebody else is at it.
    InProgress(InProgress),
    /// The key is known with another fingerprint: never execute, never replay.
    Mismatch(Mismatch),
    /// The work was begun once and its outcome is unknown: somebody must resolve it.
    Parked(Parked),
    /// The store was salvaged, and what was lost may have been about this key: the work may have been
    /// done. Somebody must find out.
    InDoubt(Gap),
    /// The request was first sent ([`ClaimOptions::first_sent`]) so long ago that its key, had it been completed then,
    /// would be forgotten by now: the work may have been done. Somebody must find out.
    OutsideWindow(OutsideWindow),
}

impl Claim {
    /// Not for each type of key again.
    #[inline(always)]
    pub(crate) fn ask(
        space: &SharedSpace,
        key: &Key<'_>,
        options: &ClaimOptions,
        settling: &mut Settling,
    ) -> Result<Self, ClaimError> {
        space.handle.claim(key, options.request(), settling, |grant| {
            let lease = Lease::new(Arc::clone(space), key, &grant);
            if grant.is_resumed { Self::Resumed(lease) } else { Self::Acquired(lease) }
        })
    }

    /// Tells claims that met another one of the same batch which one it was.
    pub(crate) fn name_aliases(answers: &mut [Result<Self, ClaimError>]) {
        if !answers.iter().any(|answer| matches!(answer, Ok(Claim::InProgress(_)))) {
            return;
        }
        let granted = answers.iter().enumerate().filter_map(|(at, answer)| match answer {
            Ok(Claim::Acquired(lease) | Claim::Resumed(lease)) => Some((lease.token(), at)),
            _ => None,
        });
        let granted: HashMap<FencingToken, usize> = granted.collect();
        for answer in answers {
            if let Ok(Claim::InProgress(other)) = answer {
                other.alias_of = granted.get(&other.token).copied();
            }
        }
    }

    /// The lease, if the claim was granted, anew or again.
    #[must_use]
    pub fn acquired(self) -> Option<Lease> {
        match self {
            Self::Acquired(lease) | Self::Resumed(lease) => Some(lease),
            _ => None,
        }
    }

    /// The outcome, if the work was done before.
    #[must_use]
    pub fn completed(self) -> Option<Outcome> {
        match self {
            Self::Completed(outcome) => Some(outcome),
            _ => None,
        }
    }
}

impl Told for Claim {
    #[inline]
    fn completed(it: Outcome) -> Self {
        Self::Completed(it)
    }

    #[inline]
    fn in_progress(it: InProgress) -> Self {
        Self::InProgress(it)
    }

    fn mismatch(it: Mismatch) -> Self {
        Self::Mismatch(it)
    }

    fn parked(it: Parked) -> Self {
        Self::Parked(it)
    }

    fn in_doubt(it: Gap) -> Self {
        Self::InDoubt(it)
    }

    fn outside_window(it: OutsideWindow) -> Self {
        Self::OutsideWindow(it)
    }
}
