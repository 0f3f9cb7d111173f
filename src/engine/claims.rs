//! Asking for a key: `claim`, `once`, `lookup`.
//!
//! All three judge the key's current record the same way; they differ in what they do with a key
//! that is free. A fingerprint is compared before anything else is told.

use std::sync::Arc;
use std::time::Duration;

use super::namespaces::{Key, NamespaceState};
use super::shard::ShardGuard;
use super::state::{self, Standing, held_bytes};
use super::time::Now;
use super::{Answered, CallDurability, Engine, Found, Seen, Way, check_key};
use crate::answer::{
    Body, EndCause, First, Gap, InProgress, Lookup, Mismatch, Once, Outcome, OutcomeRef, Parked,
    Previous, StoredBody,
};
use crate::error::{ClaimError, Failure, StoreError};
use crate::format::ext::{Ext, PreviousClaim};
use crate::format::flags::{BodyState, Flags};
use crate::format::record::{Draft, Kind, Record};
use crate::policy::{FingerprintRule, LEASE_MIN, OnLeaseEnd, Policy, PolicyProblem, whole_ms};
use crate::sys::pin::Pin;
use crate::sys::sync::atomic::Ordering;
use crate::types::{Epoch, FencingToken, Fingerprint, KeyHash, Reference, Timestamp};
use crate::wal::class::Class;
use crate::wal::lane::RoomChange;

/// What a claim asks for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClaimRequest {
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) reference: Option<Reference>,
    pub(crate) lease: Option<Duration>,
    pub(crate) dedupe_ttl: Option<Duration>,
    pub(crate) durability: Option<CallDurability>,
    pub(crate) first_sent: Option<Timestamp>,
}

/// What a claim is answered.
#[derive(Debug)]
pub(crate) enum Claimed {
    Granted(Grant),
    Completed(Outcome),
    InProgress(InProgress),
    Mismatch(Mismatch),
    Parked(Parked),
    InDoubt(Gap),
}

/// A granted claim.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) hash: KeyHash,
    pub(crate) token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) previous: Option<Previous>,
    pub(crate) deadline: Timestamp,
    pub(crate) expires: Timestamp,
}

/// What is asked about a key, as often as the call has to ask it again.
struct Question<'a> {
    namespace: &'a NamespaceState,
    policy: &'a Policy,
    fingerprint: Option<Fingerprint>,
    first_sent: Option<Timestamp>,
    /// A call counts a differing fingerprint once.
    is_counted: bool,
}

/// The key's current record, judged.
enum Judged {
    /// The key is free. `takeover` says how the unfinished claim ended that this one continues.
    Free {
        takeover: Option<EndCause>,
    },
    Done(Timestamp),
    InProgress(InProgress),
    Parked(Parked),
    Mismatch(Mismatch, Standing),
    InDoubt(Gap),
}

impl Judged {
    /// Whether it holds however long ago the record was seen: what says so now said so then. What
    /// has ended by the clock may have been ended by its owner first.
    fn is_lasting(&self) -> bool {
        match self {
            Self::Done(_) | Self::InProgress(_) => true,
            Self::Mismatch(_, standing) => matches!(standing, Standing::Done | Standing::Held),
            Self::Free { .. } | Self::Parked(_) | Self::InDoubt(_) => false,
        }
    }
}

impl Engine {
    /// Asks to be the one worker for a key.
    pub(crate) fn claim(
        &self,
        key: &Key<'_>,
        request: &ClaimRequest,
    ) -> Answered<Claimed, ClaimError> {
        self.try_claim(key, request).unwrap_or_else(|error| Err(error).into())
    }

    fn try_claim(
        &self,
        key: &Key<'_>,
        request: &ClaimRequest,
    ) -> Result<Answered<Claimed, ClaimError>, ClaimError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let policy = key.namespace.policy.load();
        let lease = lease_of(&policy, request.lease)?;
        if policy.fingerprint_required && request.fingerprint.is_none() {
            return Err(ClaimError::FingerprintRequired);
        }
        let mut question = Question::new(key.namespace, &policy, request);
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            let mut seen = None;
            self.find_unlocked(key, &way, &mut seen, &pin)?;
            if let Some(seen) = &seen {
                let judged = self.judge(Some(seen), &mut question, self.timeline.read());
                if judged.is_lasting() {
                    return self.show(judged, Some(seen));
                }
            }
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let entry = self.find(&shard, key, way.route, &mut seen, &pin)?;
            let seen = entry.map(|entry| entry.seen);
            let takeover = match self.judge(seen, &mut question, now) {
                Judged::Free { takeover } => seen.map(|seen| &seen.record).zip(takeover),
                other => {
                    drop(shard);
                    return self.show(other, seen);
                }
            };
            let Some(token) = self.next_token(&mut shard) else {
                drop(shard);
                self.renew_tokens(key.hash)?;
                continue;
            };
            let deadline = now.deadline(lease);
            let expires = match policy.on_lease_end {
                OnLeaseEnd::Park => Timestamp::MAX,
                OnLeaseEnd::Reclaim => deadline.after(policy.grace_for(lease)),
            };
            let record = Record {
                kind: Kind::Claim,
                flags: Flags::rules(policy.on_lease_end, policy.orphan_rule()),
                expires,
                until: deadline,
                ..fresh_record(key, token, request, takeover, now)
            };
            let (class, reserve) = (Class::Claims, held_bytes(&record));
            if !self.grant(shard, way, &record, class, reserve, entry, growths, &mut no_room)? {
                continue;
            }
            let previous = takeover.map(|(old, cause)| state::previous(old, cause));
            let attempt = record.attempt;
            let grant = Grant { hash: key.hash, token, attempt, previous, deadline, expires };
            let answered = self.changed(Claimed::Granted(grant), request.durability);
            if answered.result.is_err() {
                self.lease_dropped(key.hash);
            }
            return Ok(answered);
        }
    }

    /// Marks a key as done before the work is: one bodyless completion with a new token.
    pub(crate) fn once(&self, key: &Key<'_>, request: &ClaimRequest) -> Answered<Once, ClaimError> {
        self.try_once(key, request).unwrap_or_else(|error| Err(error).into())
    }

    fn try_once(
        &self,
        key: &Key<'_>,
        request: &ClaimRequest,
    ) -> Result<Answered<Once, ClaimError>, ClaimError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let policy = key.namespace.policy.load();
        let dedupe_ttl = dedupe_ttl_of(&policy, request.dedupe_ttl)?;
        if policy.fingerprint_required && request.fingerprint.is_none() {
            return Err(ClaimError::FingerprintRequired);
        }
        let mut question = Question::new(key.namespace, &policy, request);
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            let mut seen = None;
            self.find_unlocked(key, &way, &mut seen, &pin)?;
            if let Some(seen) = &seen {
                let judged = self.judge(Some(seen), &mut question, self.timeline.read());
                if judged.is_lasting() {
                    return self.show(judged, Some(seen));
                }
            }
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let entry = self.find(&shard, key, way.route, &mut seen, &pin)?;
            let seen = entry.map(|entry| entry.seen);
            let takeover = match self.judge(seen, &mut question, now) {
                Judged::Free { takeover } => seen.map(|seen| &seen.record).zip(takeover),
                other => {
                    drop(shard);
                    return self.show(other, seen);
                }
            };
            let Some(token) = self.next_token(&mut shard) else {
                drop(shard);
                self.renew_tokens(key.hash)?;
                continue;
            };
            let expires = now.deadline(dedupe_ttl);
            let record = Record {
                kind: Kind::Complete,
                flags: Flags::default()
                    .with_body(BodyState::None)
                    .with_gate(self.is_gated(request.durability)),
                expires,
                until: now.lower,
                ..fresh_record(key, token, request, takeover, now)
            };
            let class = class_of(dedupe_ttl, request.dedupe_ttl.is_none());
            if !self.grant(shard, way, &record, class, 0, entry, growths, &mut no_room)? {
                continue;
            }
            let previous = takeover.map(|(old, cause)| state::previous(old, cause));
            let first = First { token, attempt: record.attempt, previous, expires };
            return Ok(self.changed(Once::First(first), request.durability));
        }
    }

    /// Reads a key's state without claiming it.
    pub(crate) fn lookup(&self, key: &Key<'_>) -> Answered<Lookup, StoreError> {
        self.try_lookup(key).unwrap_or_else(|error| Err(error).into())
    }

    fn try_lookup(&self, key: &Key<'_>) -> Result<Answered<Lookup, StoreError>, StoreError> {
        let pin = Pin::new();
        let done = |seen: &Seen<'_>, now| {
            let outcome = self.outcome(seen, now);
            self.shown(Ok(Lookup::Completed(outcome)), seen)
        };
        self.sight(key, &pin, done, |other| Ok(other).into())
    }

    /// Reads a key's state, and shows the outcome where it lies: `show` is called once. Waits until what it
    /// is shown may be.
    pub(crate) fn lookup_with<R>(
        &self,
        key: &Key<'_>,
        show: impl FnOnce(Lookup<OutcomeRef<'_>>) -> R,
    ) -> Result<R, StoreError> {
        loop {
            let pin = Pin::new();
            let (lookup, settle) = self.sight(
                key,
                &pin,
                |seen, now| {
                    let outcome = state::outcome_ref(&seen.record, now);
                    let settle = self.shown::<_, StoreError>(Ok(()), seen).settle;
                    (Lookup::Completed(outcome), settle)
                },
                |other| (other, None),
            )?;
            let Some(settle) = settle else { return Ok(show(lookup)) };
            // Not under the pin; and meanwhile the key may have been forgotten.
            drop(pin);
            self.settle(settle)?;
        }
    }

    /// The outcome in a completion, to keep: a small body copied, a large one where it lies. The caller has
    /// checked the body.
    #[inline]
    fn outcome(&self, seen: &Seen<'_>, now: Timestamp) -> Outcome {
        let outcome = state::outcome_ref(&seen.record, now);
        match outcome.body {
            Body::Bytes(bytes) if bytes.len() >= Outcome::KEPT_BYTES_MIN => {
                self.kept(seen, outcome)
            }
            _ => outcome.to_outcome(),
        }
    }

    #[cold]
    fn kept(&self, seen: &Seen<'_>, outcome: OutcomeRef<'_>) -> Outcome {
        let Seen { record, location, pin } = seen;
        // A store that is closed has none to give.
        let kept = self
            .held
            .upgrade()
            .and_then(|hold| self.wal.segments.keep_body(record, *location, pin, hold));
        match kept {
            Some(body) => Outcome { body: StoredBody::Kept(body), about: outcome.about },
            None => outcome.to_outcome(),
        }
    }

    /// Gives what is known of a key to one of these: a completion, where it lies and the time by which it is
    /// judged, or whatever else.
    #[inline(always)]
    fn sight<'p, O, T>(
        &'p self,
        key: &Key<'_>,
        pin: &'p Pin,
        done: impl FnOnce(&Seen<'p>, Timestamp) -> T,
        other: impl FnOnce(Lookup<O>) -> T,
    ) -> Result<T, StoreError> {
        self.check_process()?;
        check_key(key)?;
        let way = self.way(key.hash);
        loop {
            let mut seen = None;
            self.find_unlocked(key, &way, &mut seen, pin)?;
            let Some(seen) = seen else {
                return Ok(other(self.absent(None)));
            };
            let record = &seen.record;
            let now = self.timeline.judge(self.timeline.read(), [record.until, record.expires]);
            let newest = Some(record.token.epoch());
            let lookup = match Standing::of(record, now, self.open_epoch) {
                Standing::Held => {
                    return Ok(other(Lookup::InProgress(state::in_progress(record, now))));
                }
                Standing::Done => {
                    self.wal.segments.check_body(record, seen.location, seen.pin)?;
                    return Ok(done(&seen, now));
                }
                Standing::Absent => self.absent(newest),
                Standing::Lapsed(cause) => match self.absent(newest) {
                    Lookup::Absent => Lookup::Lapsed(state::lapsed(record, cause)),
                    in_doubt => in_doubt,
                },
                Standing::Overdue => Lookup::Parked(state::parked(record, EndCause::LeaseEnded)),
                Standing::Parked(cause) => Lookup::Parked(state::parked(record, cause)),
            };
            // What has ended by the clock may have been ended by its owner first: it holds if it
            // still was the current record after the clock was read.
            let mut again = None;
            self.find_unlocked(key, &way, &mut again, pin)?;
            if again.is_some_and(|again| again.location == seen.location) {
                return Ok(other(lookup));
            }
        }
    }

    /// The answer about a key that nobody holds, as far as is known: it is free, or in doubt.
    #[inline]
    fn absent<O>(&self, newest: Option<Epoch>) -> Lookup<O> {
        if !self.gaps.exist() {
            return Lookup::Absent;
        }
        let gap = self.gaps.covering(self.timeline.read().lower, newest, None);
        gap.map_or(Lookup::Absent, Lookup::InDoubt)
    }

    fn judge(&self, seen: Option<&Seen<'_>>, question: &mut Question<'_>, now: Now) -> Judged {
        let Question { namespace, policy, fingerprint, .. } = *question;
        let Some(Seen { record, .. }) = seen else {
            return self.free(None, None, now.lower, question);
        };
        let now = self.timeline.judge(now, [record.until, record.expires]);
        let standing = Standing::of(record, now, self.open_epoch);
        if standing == Standing::Absent {
            return self.free(Some(record), None, now, question);
        }
        let differs = matches!(
            (fingerprint, &record.ext.fingerprint),
            (Some(asked), Some(bound)) if asked != *bound
        );
        if differs && policy.fingerprint != FingerprintRule::Ignore {
            if !std::mem::replace(&mut question.is_counted, true) {
                namespace.mismatches.fetch_add(1, Ordering::Relaxed);
            }
            if policy.fingerprint == FingerprintRule::Enforce {
                return Judged::Mismatch(state::mismatch(record, standing), standing);
            }
        }
        match standing {
            Standing::Absent => self.free(Some(record), None, now, question),
            Standing::Lapsed(cause) => self.free(Some(record), Some(cause), now, question),
            Standing::Held => Judged::InProgress(state::in_progress(record, now)),
            Standing::Overdue => Judged::Parked(state::parked(record, EndCause::LeaseEnded)),
            Standing::Parked(cause) => Judged::Parked(state::parked(record, cause)),
            Standing::Done => Judged::Done(now),
        }
    }

    /// Nobody holds the key, as far as is known: it is free, or in doubt.
    #[inline]
    fn free(
        &self,
        record: Option<&Record<'_>>,
        takeover: Option<EndCause>,
        now: Timestamp,
        question: &Question<'_>,
    ) -> Judged {
        if !self.gaps.exist() {
            return Judged::Free { takeover };
        }
        let newest = record.map(|record| record.token.epoch());
        match self.gaps.covering(now, newest, question.first_sent) {
            Some(gap) => Judged::InDoubt(gap),
            None => Judged::Free { takeover },
        }
    }

    /// Answers with what somebody else did. No shard is locked: records stay what they are under
    /// their pin (W1).
    fn show<T: From<Taken>>(
        &self,
        judged: Judged,
        seen: Option<&Seen<'_>>,
    ) -> Result<Answered<T, ClaimError>, ClaimError> {
        Ok(match (judged, seen) {
            (Judged::Done(now), Some(seen)) => {
                self.wal.segments.check_body(&seen.record, seen.location, seen.pin)?;
                let outcome = self.outcome(seen, now);
                self.shown(Ok(Taken::Completed(outcome).into()), seen)
            }
            (Judged::Mismatch(it, Standing::Done), Some(seen)) => {
                self.shown(Ok(Taken::Mismatch(it).into()), seen)
            }
            (Judged::InProgress(it), _) => Ok(Taken::InProgress(it).into()).into(),
            (Judged::Parked(it), _) => Ok(Taken::Parked(it).into()).into(),
            (Judged::Mismatch(it, _), _) => Ok(Taken::Mismatch(it).into()).into(),
            (Judged::InDoubt(it), _) => Ok(Taken::InDoubt(it).into()).into(),
            (Judged::Free { .. } | Judged::Done(_), _) => {
                unreachable!("a free key is granted, and what is done was seen")
            }
        })
    }

    /// Writes the record that takes a free key, and points the table at it. `false`: the store had
    /// to grow first, or could not and `no_room` now says why; ask again.
    #[expect(clippy::too_many_arguments, reason = "one step of two loops")]
    fn grant(
        &self,
        mut shard: ShardGuard<'_>,
        way: Way<'_>,
        record: &Record<'_>,
        class: Class,
        reserve: u64,
        entry: Option<Found<'_, '_>>,
        growths: u64,
        no_room: &mut Option<Arc<Failure>>,
    ) -> Result<bool, ClaimError> {
        let release = entry.map_or(0, |old| held_bytes(&old.record));
        let change = RoomChange { release, reserve, is_exit: false };
        let Some(location) = self.append(&Draft::new(record), class, change)? else {
            drop(shard);
            if let Some(cause) = no_room.take() {
                return Err(ClaimError::Full { cause });
            }
            *no_room = self.make_room(growths)?;
            return Ok(false);
        };
        let is_done = record.kind == Kind::Complete;
        match entry {
            Some(old) => shard.table.replace(old.position, location, is_done),
            None => shard.table.insert(way.route, location, is_done),
        }
        if !is_done {
            shard.add_lease();
        }
        Ok(true)
    }
}

impl<'a> Question<'a> {
    fn new(namespace: &'a NamespaceState, policy: &'a Policy, request: &ClaimRequest) -> Self {
        let ClaimRequest { fingerprint, first_sent, .. } = *request;
        Self { namespace, policy, fingerprint, first_sent, is_counted: false }
    }
}

/// What a key is that is not to be had.
enum Taken {
    Completed(Outcome),
    InProgress(InProgress),
    Parked(Parked),
    Mismatch(Mismatch),
    InDoubt(Gap),
}

impl From<Taken> for Claimed {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::Completed(it) => Self::Completed(it),
            Taken::InProgress(it) => Self::InProgress(it),
            Taken::Parked(it) => Self::Parked(it),
            Taken::Mismatch(it) => Self::Mismatch(it),
            Taken::InDoubt(it) => Self::InDoubt(it),
        }
    }
}

impl From<Taken> for Once {
    fn from(taken: Taken) -> Self {
        match taken {
            Taken::Completed(it) => Self::Seen(it),
            Taken::InProgress(it) => Self::InProgress(it),
            Taken::Parked(it) => Self::Parked(it),
            Taken::Mismatch(it) => Self::Mismatch(it),
            Taken::InDoubt(it) => Self::InDoubt(it),
        }
    }
}

/// What a first record about a key has in common, be it a claim or a mark. Fingerprint and
/// reference of an unfinished claim stay with the key when it is taken over.
fn fresh_record<'a>(
    key: &Key<'a>,
    token: FencingToken,
    request: &ClaimRequest,
    takeover: Option<(&Record<'_>, EndCause)>,
    now: Now,
) -> Record<'a> {
    let old = takeover.map(|(old, _)| old);
    Record {
        kind: Kind::Claim,
        flags: Flags::default(),
        token,
        key_hash: key.hash,
        namespace: key.namespace.id,
        expires: Timestamp::default(),
        until: Timestamp::default(),
        at: now.lower,
        code: 0,
        attempt: old.map_or(1, |old| old.attempt.saturating_add(1)),
        body_len: 0,
        body_crc: 0,
        ext: Ext {
            fingerprint: old.and_then(|old| old.ext.fingerprint).or(request.fingerprint),
            reference: request.reference.or(old.and_then(|old| old.ext.reference)),
            first_token: old.map(Record::first_token),
            previous: takeover.map(|(old, cause)| PreviousClaim {
                token: old.token,
                at: old.at,
                orphaned: cause == EndCause::Orphaned,
            }),
            body_digest: None,
        },
        key: key.bytes,
        body: &[],
    }
}

/// The lease a claim gets: the one asked for, within the limits, or the policy's.
pub(super) fn lease_of(
    policy: &Policy,
    asked: Option<Duration>,
) -> Result<Duration, PolicyProblem> {
    let Some(lease) = asked.map(whole_ms) else { return Ok(policy.lease) };
    let dedupe_ttl = policy.dedupe_ttl;
    if lease < LEASE_MIN {
        Err(PolicyProblem::LeaseTooShort { lease })
    } else if lease > dedupe_ttl {
        Err(PolicyProblem::LeaseOutlivesDedupe { lease, dedupe_ttl })
    } else {
        Ok(lease)
    }
}

/// The dedupe window a completion gets.
pub(super) fn dedupe_ttl_of(
    policy: &Policy,
    asked: Option<Duration>,
) -> Result<Duration, PolicyProblem> {
    let Some(dedupe_ttl) = asked.map(whole_ms) else { return Ok(policy.dedupe_ttl) };
    if dedupe_ttl > crate::policy::DEDUPE_TTL_MAX {
        return Err(PolicyProblem::DedupeTooLong { dedupe_ttl });
    }
    Ok(dedupe_ttl)
}

/// The class of a completion that is kept for `ttl`, because the policy says so or because the call
/// does.
pub(super) fn class_of(ttl: Duration, is_policy: bool) -> Class {
    if is_policy { Class::exact(ttl) } else { Class::geometric(ttl) }
}
