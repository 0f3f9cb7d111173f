//! What a record means now: pure functions of the record, the time and the open epoch.
//!
//! The states of a key, and which call leads where, stand in docs/STATES.md; `tests/states.rs`
//! walks every cell of that table.

use crate::answer::{
    AboutOutcome, Body, EndCause, InProgress, KeyState, Lapsed, Mismatch, Outcome, OutcomeRef,
    Parked, Previous,
};
use crate::format::flags::{BodyState, ParkedBy};
use crate::format::record::{Kind, Record, exit_bytes_max};
use crate::format::record_ref::RecordRef;
use crate::policy::{OnLeaseEnd, OnOrphan};
use crate::types::{Epoch, Timestamp};

/// The state of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Standing {
    /// No record, or one that says nothing any more.
    Absent,
    /// Claimed, its lease running.
    Held,
    /// Claimed, held by nobody, up for the next claim.
    Lapsed(EndCause),
    /// Claimed, its lease over, under a rule that parks. The owner may still finish.
    Overdue,
    /// Parked by its owner, or orphaned under a rule that parks: nobody finishes it late.
    Parked(EndCause),
    /// Completed.
    Done,
}

impl Standing {
    /// What `record` says at `now`, to a store opened in `open_epoch`.
    #[inline]
    pub(crate) fn of(record: RecordRef<'_>, now: Timestamp, open_epoch: Epoch) -> Self {
        match record.kind() {
            Kind::Complete if now < record.expires() => Self::Done,
            Kind::Park => Self::Parked(match record.flags().parked_by() {
                ParkedBy::Owner => EndCause::Parked,
                ParkedBy::Orphaned => EndCause::Orphaned,
            }),
            Kind::Claim | Kind::Renew if now < record.expires() => {
                let orphan_rule = is_orphan(record, open_epoch).then(|| record.flags().on_orphan());
                match (orphan_rule, record.flags().on_lease_end()) {
                    (Some(OnOrphan::Reclaim), _) => Self::Lapsed(EndCause::Orphaned),
                    (Some(OnOrphan::Park), _) => Self::Parked(EndCause::Orphaned),
                    _ if now < record.until() => Self::Held,
                    (_, OnLeaseEnd::Reclaim) => Self::Lapsed(EndCause::LeaseEnded),
                    (_, OnLeaseEnd::Park) => Self::Overdue,
                }
            }
            Kind::Complete | Kind::Claim | Kind::Renew | Kind::Release | Kind::Forget => {
                Self::Absent
            }
        }
    }
}

/// Whether the claim was made in an earlier open, so that its owner is gone.
pub(crate) fn is_orphan(record: RecordRef<'_>, open_epoch: Epoch) -> bool {
    record.token().epoch() < open_epoch
}

/// Room that the longest bodyless exit of the key takes.
pub(crate) fn exit_bytes(record: RecordRef<'_>) -> u64 {
    let ext = record.ext();
    exit_bytes_max(record.key().len(), ext.fingerprint.is_some(), ext.owner.is_some()) as u64
}

/// What a claim that is about to be made will keep reserved.
pub(crate) fn first_held_bytes(claim: &Record<'_>) -> u64 {
    let ext = &claim.ext;
    2 * exit_bytes_max(claim.key.len(), ext.fingerprint.is_some(), ext.owner.is_some()) as u64
}

/// Room that a key's current record keeps reserved: a claim for its end and for one renewal, a
/// parked key for its end.
pub(crate) fn held_bytes(record: RecordRef<'_>) -> u64 {
    let exit = exit_bytes(record);
    match record.kind() {
        Kind::Claim => 2 * exit,
        Kind::Renew if record.flags().has_renewal_room() => 2 * exit,
        Kind::Park if !record.flags().has_renewal_room() => 0,
        Kind::Renew | Kind::Park => exit,
        Kind::Complete | Kind::Release | Kind::Forget => 0,
    }
}

#[inline]
pub(crate) fn in_progress(record: RecordRef<'_>, now: Timestamp) -> InProgress {
    InProgress {
        token: record.token(),
        attempt: record.attempt(),
        at: record.at(),
        deadline: record.until(),
        lease_left: record.until().since(now),
        expires: record.expires(),
        reference: record.reference(),
        alias_of: None,
    }
}

pub(crate) fn lapsed(record: RecordRef<'_>, cause: EndCause) -> Lapsed {
    Lapsed {
        token: record.token(),
        attempt: record.attempt(),
        at: record.at(),
        cause,
        expires: record.expires(),
        reference: record.reference(),
    }
}

pub(crate) fn parked(record: RecordRef<'_>, cause: EndCause) -> Parked {
    // A claim that is parked by time has been since its lease ended.
    let at = if cause == EndCause::LeaseEnded { record.until() } else { record.at() };
    let (token, attempt) = (record.token(), record.attempt());
    Parked { token, attempt, at, cause, reference: record.reference() }
}

pub(crate) fn mismatch(record: RecordRef<'_>, standing: Standing) -> Mismatch {
    let (state, expires) = match standing {
        Standing::Held => (KeyState::InProgress, record.expires()),
        Standing::Absent | Standing::Lapsed(_) => (KeyState::Lapsed, record.expires()),
        Standing::Overdue | Standing::Parked(_) => (KeyState::Parked, Timestamp::MAX),
        Standing::Done => (KeyState::Completed, record.expires()),
    };
    let (token, at) = (record.token(), record.at());
    Mismatch { state, token, at, expires, reference: record.reference() }
}

/// What is left of the body of a completion. The caller has checked it.
#[inline(always)]
pub(crate) fn body<'a>(record: RecordRef<'a>, now: Timestamp) -> Body<'a> {
    match record.flags().body() {
        BodyState::Kept if now < record.until() => Body::Bytes(record.body()),
        BodyState::Kept | BodyState::ReplayOver => Body::Expired,
        BodyState::None => Body::None,
        BodyState::TooLarge => Body::TooLarge { len: record.body_len() },
    }
}

/// What else a completion says.
#[inline(always)]
pub(crate) fn about_outcome(record: RecordRef<'_>, now: Timestamp) -> AboutOutcome {
    AboutOutcome {
        code: record.code(),
        reference: record.reference(),
        token: record.token(),
        first_token: record.first_token(),
        attempt: record.attempt(),
        at: record.at(),
        age: now.since(record.at()),
        expires: record.expires(),
    }
}

/// The outcome in a completion, where it lies. The caller has checked the body.
#[inline(always)]
pub(crate) fn outcome_ref<'a>(record: RecordRef<'a>, now: Timestamp) -> OutcomeRef<'a> {
    OutcomeRef { body: body(record, now), about: about_outcome(record, now) }
}

/// The same, to keep.
pub(crate) fn outcome(record: RecordRef<'_>, now: Timestamp) -> Outcome {
    outcome_ref(record, now).to_outcome()
}

/// The claim that a new one takes over from.
pub(crate) fn previous(record: RecordRef<'_>, cause: EndCause) -> Previous {
    Previous { token: record.token(), at: record.at(), cause }
}
