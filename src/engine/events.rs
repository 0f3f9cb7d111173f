//! What is counted of each namespace, since the store was opened.
//!
//! Each thread counts for itself (`sys::tally`): a call that counts writes no line that another thread
//! writes. An answer is counted when the call has it, before it is shown.

use crate::sys::tally::COUNTS;
use crate::types::NamespaceId;

use super::{Engine, namespaces::NamespaceState};

/// See the file's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    /// Of claims and marks.
    Granted,
    Marked,
    TakenOver,
    TakenOverOrphaned,
    Resumed,
    Replayed,
    InProgress,
    Mismatch,
    Parked,
    InDoubt,
    OutsideWindow,
    Full,
    NearQuota,
    OverQuota,
    #[cfg(feature = "rate-limit")]
    OverRate,
    /// A fingerprint that differs, whatever the rule made of it.
    Differs,
    /// Of those who hold a claim.
    Completed,
    Released,
    LeftParked,
    Renewed,
    Late,
    Fenced,
    /// Of operators.
    Resolved,
    Forgotten,
    /// Of the clock.
    Expired,
    ExpiredUnfinished,
}

const _: () = assert!((Event::ExpiredUnfinished as usize) < COUNTS);

impl NamespaceState {
    #[inline]
    pub(crate) fn count(&self, event: Event) {
        self.tally.count(event as usize);
    }
}

impl Engine {
    /// Counts what happened to keys of a namespace.
    pub(super) fn count_of(&self, namespace: NamespaceId, event: Event, count: u64) {
        if count > 0
            && let Some(state) = self.namespaces.by_id(namespace.unscoped())
        {
            state.tally.add(event as usize, count);
        }
    }
}
