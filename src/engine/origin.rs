//! What a grant goes on from: nothing, a claim that its owner did not finish, or one that the same owner holds.
//!
//! Whoever takes over begins another attempt, under his own owner id or none. An owner who resumes goes on with his attempt, under
//! a new token: whatever still holds the old one is fenced.

use super::claims::ClaimRequest;
use super::events::Event;
use super::namespaces::Key;
use super::state;
use super::time::Now;
use crate::answer::{EndCause, Previous};
use crate::format::ext::{Ext, PreviousClaim};
use crate::format::flags::Flags;
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::types::{FencingToken, Timestamp};

/// See the file's header.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin<'p> {
    Nothing,
    /// A claim that nobody holds, and how it ended.
    Other(RecordRef<'p>, EndCause),
    /// A claim that is held by who asks.
    Own(RecordRef<'p>),
}

impl<'p> Origin<'p> {
    fn record(self) -> Option<RecordRef<'p>> {
        match self {
            Self::Nothing => None,
            Self::Other(old, _) | Self::Own(old) => Some(old),
        }
    }

    fn attempt(self) -> u16 {
        match self {
            Self::Nothing => 1,
            Self::Other(old, _) => old.attempt().saturating_add(1),
            Self::Own(old) => old.attempt(),
        }
    }

    /// What is counted when it took over.
    pub(super) fn takeover(self) -> Option<Event> {
        match self {
            Self::Other(_, EndCause::Orphaned) => Some(Event::TakenOverOrphaned),
            Self::Other(..) => Some(Event::TakenOver),
            Self::Nothing | Self::Own(_) => None,
        }
    }

    /// The claim that the attempt took over from.
    pub(super) fn previous(self) -> Option<Previous> {
        match self {
            Self::Nothing => None,
            Self::Other(old, cause) => Some(state::previous(old, cause)),
            Self::Own(old) => old.ext().previous.map(|PreviousClaim { token, at, orphaned }| {
                let cause = if orphaned { EndCause::Orphaned } else { EndCause::LeaseEnded };
                Previous { token, at, cause }
            }),
        }
    }

    fn previous_claim(self) -> Option<PreviousClaim> {
        self.previous().map(|Previous { token, at, cause }| PreviousClaim {
            token,
            at,
            orphaned: cause == EndCause::Orphaned,
        })
    }
}

/// What a first record under a token has in common, be it a claim or a mark. Fingerprint and
/// reference of an unfinished claim stay with the key when it is taken over.
#[inline(always)]
pub(super) fn fresh_record<'a>(
    key: &Key<'a>,
    token: FencingToken,
    request: &ClaimRequest,
    origin: Origin<'_>,
    now: Now,
) -> Record<'a> {
    let old = origin.record();
    Record {
        kind: Kind::Claim,
        flags: Flags::default(),
        token,
        key_hash: key.hash,
        namespace: key.number,
        expires: Timestamp::default(),
        until: Timestamp::default(),
        at: now.lower,
        code: 0,
        attempt: origin.attempt(),
        body_len: 0,
        body_crc: 0,
        ext: Ext {
            fingerprint: old.and_then(|old| old.fingerprint()).or(request.fingerprint),
            reference: request.reference.or(old.and_then(|old| old.reference())),
            first_token: old.map(RecordRef::first_token),
            previous: origin.previous_claim(),
            body_digest: None,
            owner: None,
        },
        more: &[],
        key: key.bytes,
        body: &[],
    }
}
