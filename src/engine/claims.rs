//! Asking for a key: `claim`, `once`.
//!
//! Both judge the key's current record the same way; they differ in what they do with a key that is
//! free. A fingerprint is compared before anything else is told.

use std::sync::Arc;
use std::time::Duration;

use super::events::Event;
use super::namespaces::Key;
use super::origin::{Origin, fresh_record};
use super::refresh::{Refresh, refreshes};
use super::search::{Found, Seen};
use super::shard::ShardGuard;
use super::spans::{class_of, dedupe_ttl_of, lease_of};
use super::state::{self, Standing, first_held_bytes, held_bytes};
use super::time::Now;
use super::told::Told;
use super::{Answered, CallDurability, Engine, Settle, Settling, Way};
use crate::answer::{EndCause, First, Gap, Once, OutsideWindow, Previous};
use crate::error::{ClaimError, Failure};
use crate::format::draft::Draft;
use crate::format::flags::{BodyState, Flags};
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::policy::{FingerprintRule, OnLeaseEnd, Policy, whole_ms};
use crate::sys::pin::Pin;
use crate::types::{FencingToken, Fingerprint, KeyHash, OwnerId, Reference, Timestamp};
use crate::wal::class::Class;
use crate::wal::lane::RoomChange;

/// What a claim asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct ClaimRequest {
    pub(crate) fingerprint: Option<Fingerprint>,
    pub(crate) reference: Option<Reference>,
    pub(crate) owner: Option<OwnerId>,
    pub(crate) lease: Option<Duration>,
    pub(crate) dedupe_ttl: Option<Duration>,
    pub(crate) durability: Option<CallDurability>,
    pub(crate) first_sent: Option<Timestamp>,
    /// That is what the key says, and nobody vouches for it.
    pub(crate) is_sent_by_key: bool,
    /// The same call has asked before, and waits: what it is told while the key is held was counted.
    pub(crate) is_again: bool,
}

/// A key that was taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grant {
    pub(crate) token: FencingToken,
    pub(crate) attempt: u16,
    pub(crate) previous: Option<Previous>,
    /// It goes on with a claim of the same owner.
    pub(crate) is_resumed: bool,
    pub(crate) deadline: Timestamp,
    pub(crate) expires: Timestamp,
}

/// What a key is taken for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Taking {
    Claim,
    Once,
}

/// What is asked about a key, as often as the call has to ask it again.
struct Question<'a> {
    key: &'a Key<'a>,
    request: &'a ClaimRequest,
    taking: Taking,
    rule: FingerprintRule,
    /// Whether the fingerprint differs from the one that the key is bound to, by the last judgement.
    differs: bool,
    /// Why the store could not grow, once it was asked to.
    no_room: Option<Arc<Failure>>,
    refresh: Refresh,
    /// Whether the call has paid for a new key.
    #[cfg(feature = "rate-limit")]
    is_paid: bool,
}

/// The key's current record, judged.
enum Judged {
    /// The key is free. `takeover` says how the unfinished claim ended that this one continues.
    Free {
        takeover: Option<EndCause>,
    },
    /// Held by who asks.
    Own,
    /// Done, held or parked, at this time.
    Taken(Standing, Timestamp),
    Mismatch(Standing),
    InDoubt(Box<Gap>),
    OutsideWindow(OutsideWindow),
}

impl Judged {
    /// Whether it holds however long ago the record was seen: what says so now said so then. What
    /// has ended by the clock may have been ended by its owner first.
    #[inline]
    fn is_lasting(&self) -> bool {
        match self {
            Self::Taken(standing, _) | Self::Mismatch(standing) => {
                matches!(standing, Standing::Done | Standing::Held)
            }
            Self::Free { .. } | Self::Own | Self::InDoubt(_) | Self::OutsideWindow(_) => false,
        }
    }
}

/// A lease that was counted and has no handle yet: not counted any more when its call fails.
struct CountedLease<'a> {
    engine: &'a Engine,
    hash: KeyHash,
}

impl<'a> CountedLease<'a> {
    #[inline]
    fn of(engine: &'a Engine, question: &Question<'_>) -> Option<Self> {
        let hash = question.key.hash;
        (question.taking == Taking::Claim).then(|| Self { engine, hash })
    }
}

impl Drop for CountedLease<'_> {
    fn drop(&mut self) {
        self.engine.lease_dropped(self.hash);
    }
}

/// What became of a try to take a key.
enum Try {
    /// And what must happen before anybody may know.
    Taken(Grant, Option<Settle>),
    Judged(Judged),
    /// There are tokens or room again, or none to be had: the key has to be looked for again.
    Again,
}

impl Engine {
    /// Asks to be the one worker for a key. `granted` makes the answer of a grant.
    #[inline]
    pub(crate) fn claim<T: Told>(
        &self,
        key: &Key<'_>,
        request: &ClaimRequest,
        settling: &mut Settling,
        granted: impl FnOnce(Grant) -> T,
    ) -> Result<T, ClaimError> {
        self.ask(key, request, Taking::Claim, settling, granted)
    }

    /// Marks a key as done before the work is: one bodyless completion with a new token.
    #[inline]
    pub(crate) fn once(
        &self,
        key: &Key<'_>,
        request: &ClaimRequest,
        settling: &mut Settling,
    ) -> Result<Once, ClaimError> {
        let first = |Grant { token, attempt, previous, expires, .. }: Grant| {
            Once::First(First { token, attempt, previous, expires })
        };
        self.ask(key, request, Taking::Once, settling, first)
    }

    /// Takes the key, or tells who has it. An answer about a key that is held or done takes no lock, and is
    /// made where it stays: it is large, and moving it costs more than making it.
    #[inline(always)]
    fn ask<T: Told>(
        &self,
        key: &Key<'_>,
        request: &ClaimRequest,
        taking: Taking,
        settling: &mut Settling,
        granted: impl FnOnce(Grant) -> T,
    ) -> Result<T, ClaimError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let mut question = Question::new(key, request, taking)?;
        loop {
            let pin = Pin::new();
            let mut seen = None;
            self.find_unlocked(key, &way, &mut seen, &pin)?;
            let mut judged = None;
            if seen.is_some() {
                let at_once = self.judge(seen.as_ref(), &mut question, self.timeline.read());
                judged = at_once.is_lasting().then_some(at_once);
            }
            let judged = match judged {
                Some(judged) => judged,
                None => match self.try_take(&mut question, way, &mut seen, &pin)? {
                    Try::Judged(judged) => judged,
                    Try::Again => continue,
                    Try::Taken(grant, settle) => {
                        question.count_fingerprint();
                        drop(pin);
                        let counted = CountedLease::of(self, &question);
                        settling.settle(self, settle)?;
                        std::mem::forget(counted);
                        return Ok(granted(grant));
                    }
                },
            };
            let settle = match judged {
                Judged::Taken(Standing::Done, now) => {
                    if question.refresh.is_wanted(key, seen.as_ref(), now) {
                        let durability = request.durability;
                        question.refresh = self.refresh(key, way, &mut seen, &pin, durability)?;
                        continue;
                    }
                    let settle = seen.as_ref().and_then(|seen| self.gate(seen));
                    settle.map(|settle| question.refresh.own(settle))
                }
                Judged::Mismatch(Standing::Done) => seen.as_ref().and_then(|seen| self.gate(seen)),
                _ => None,
            };
            if settle.is_none() {
                #[cfg(feature = "rate-limit")]
                question.pay_for_mismatch(&judged)?;
                question.count_answer(&judged);
                return self.show(judged, seen.as_ref());
            }
            if settling.is_later() {
                #[cfg(feature = "rate-limit")]
                if let Err(refusal) = question.pay_for_mismatch(&judged) {
                    settling.settle(self, settle)?;
                    return Err(refusal);
                }
                question.count_answer(&judged);
                let told = self.show(judged, seen.as_ref())?;
                settling.settle(self, settle)?;
                return Ok(told);
            }
            // Not under the pin; and meanwhile the key may have been forgotten.
            drop(pin);
            settling.settle(self, settle)?;
            question.no_room = None;
        }
    }

    /// Takes the key if it is free, under the lock of its shard.
    #[inline(never)]
    fn try_take<'p>(
        &'p self,
        question: &mut Question<'_>,
        way: Way<'_>,
        seen: &mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<Try, ClaimError> {
        let Question { key, request, taking, .. } = *question;
        let policy = key.namespace.policy.load();
        let span = taking.span(&policy, request)?;
        question.rule = policy.fingerprint;
        // Who is refused at full speed takes no lock that others need.
        if seen.is_none()
            && let Some(exceeded) = key.namespace.meter.exceeded_by_one(taking == Taking::Claim)
            && let Judged::Free { .. } = self.judge(None, question, self.timeline.read())
        {
            key.namespace.count(Event::OverQuota);
            return Err(exceeded.into());
        }
        let growths = self.wal.growths();
        let mut shard = self.lock(way.shard)?;
        let now = self.timeline.read();
        let entry = self.find(&shard, key, way.route, seen, pin)?;
        let seen = entry.map(|entry| entry.seen);
        let origin = match (self.judge(seen, question, now), seen) {
            (Judged::Free { takeover: Some(cause) }, Some(old)) => Origin::Other(old.record, cause),
            (Judged::Free { .. }, _) => Origin::Nothing,
            (Judged::Own, Some(old)) => Origin::Own(old.record),
            (other, _) => return Ok(Try::Judged(other)),
        };
        let Some(token) = self.next_token(&mut shard) else {
            drop(shard);
            self.renew_tokens(key.hash)?;
            return Ok(Try::Again);
        };
        let deadline = now.deadline(span);
        let mut record = fresh_record(key, token, request, origin, now);
        (record.kind, record.flags, record.until, record.expires) = match taking {
            Taking::Claim => {
                // A mark has no owner.
                record.ext.owner = request.owner;
                let expires = match policy.on_lease_end {
                    OnLeaseEnd::Park => Timestamp::MAX,
                    OnLeaseEnd::Reclaim => deadline.after(policy.grace_for(span)),
                };
                let flags = Flags::rules(policy.on_lease_end, policy.orphan_rule());
                (Kind::Claim, flags, deadline, expires)
            }
            Taking::Once => {
                let gated = self.is_gated(request.durability);
                let flags = Flags::default().with_body(BodyState::None).with_gate(gated);
                let flags = flags.with_refresh(refreshes(&policy, request.dedupe_ttl));
                (Kind::Complete, flags, now.lower, deadline)
            }
        };
        let (class, reserve) = match taking {
            Taking::Claim => (Class::Claims, first_held_bytes(&record)),
            Taking::Once => (class_of(span, request.dedupe_ttl.is_none()), 0),
        };
        let is_new = matches!(origin, Origin::Nothing);
        if !self.grant(shard, question, way, &record, is_new, class, reserve, entry, growths)? {
            return Ok(Try::Again);
        }
        key.namespace.count(match (taking, origin) {
            (Taking::Claim, Origin::Own(_)) => Event::Resumed,
            (Taking::Claim, _) => Event::Granted,
            (Taking::Once, _) => Event::Marked,
        });
        origin.takeover().into_iter().for_each(|event| key.namespace.count(event));
        let (previous, is_resumed) = (origin.previous(), matches!(origin, Origin::Own(_)));
        let Record { attempt, expires, .. } = record;
        let grant = Grant { token, attempt, previous, is_resumed, deadline, expires };
        let counted = CountedLease::of(self, question);
        let Answered { result, settle } = self.changed::<_, ClaimError>(grant, request.durability);
        let taken = Try::Taken(result?, settle);
        std::mem::forget(counted);
        Ok(taken)
    }

    #[inline]
    fn judge(&self, seen: Option<&Seen<'_>>, question: &mut Question<'_>, now: Now) -> Judged {
        question.differs = false;
        let Some(&Seen { record, .. }) = seen else {
            return self.free(None, None, now.lower, question);
        };
        let now = self.timeline.judge(now, [record.until(), record.expires()]);
        let standing = Standing::of(record, now, self.open_epoch);
        if standing == Standing::Absent {
            return self.free(Some(record), None, now, question);
        }
        if let Some(asked) = question.request.fingerprint
            && question.rule != FingerprintRule::Ignore
            && record.fingerprint().is_some_and(|bound| asked != bound)
        {
            question.differs = true;
            if question.rule == FingerprintRule::Enforce {
                return Judged::Mismatch(standing);
            }
        }
        match standing {
            Standing::Held if question.is_owners(record) => self.own(record, now),
            Standing::Absent => self.free(Some(record), None, now, question),
            Standing::Lapsed(cause) => self.free(Some(record), Some(cause), now, question),
            Standing::Held | Standing::Overdue | Standing::Parked(_) | Standing::Done => {
                Judged::Taken(standing, now)
            }
        }
    }

    /// Nobody holds the key, as far as is known: it is free, or in doubt.
    #[inline]
    fn free(
        &self,
        record: Option<RecordRef<'_>>,
        takeover: Option<EndCause>,
        now: Timestamp,
        question: &Question<'_>,
    ) -> Judged {
        if self.gaps.exist() {
            let newest = record.map(|record| record.token().epoch());
            let vouched = question.request.first_sent.filter(|_| !question.request.is_sent_by_key);
            let gap = self.gaps.covering(now, newest, vouched);
            if let Some(gap) = gap {
                return Judged::InDoubt(Box::new(gap));
            }
        }
        if takeover.is_none()
            && let Some(first_sent) = question.request.first_sent
            // Purge forgets by the exact clock.
            && let Some(remembered_since) =
                question.forgotten(first_sent, self.timeline.now().max(now))
        {
            return Judged::OutsideWindow(OutsideWindow { first_sent, remembered_since });
        }
        Judged::Free { takeover }
    }

    /// The owner of a claim asks for it again. What was lost may have told that he has completed it: a new token would take the key
    /// out of doubt, for everybody.
    fn own(&self, record: RecordRef<'_>, now: Timestamp) -> Judged {
        if self.gaps.exist() {
            let gap = self.gaps.covering(now, Some(record.token().epoch()), None);
            if let Some(gap) = gap {
                return Judged::InDoubt(Box::new(gap));
            }
        }
        Judged::Own
    }

    /// Answers with what somebody else did. No shard is locked: records stay what they are under
    /// their pin (W1).
    #[inline(always)]
    fn show<T: Told>(&self, judged: Judged, seen: Option<&Seen<'_>>) -> Result<T, ClaimError> {
        let Some(seen) = seen else {
            return Ok(match judged {
                Judged::InDoubt(gap) => T::in_doubt(*gap),
                Judged::OutsideWindow(outside) => T::outside_window(outside),
                _ => unreachable!("a free key is granted, and what is taken was seen"),
            });
        };
        let record = seen.record;
        Ok(match judged {
            Judged::Taken(Standing::Done, now) => {
                self.wal.segments.check_body(record, seen.location, seen.pin)?;
                T::completed(self.outcome(seen, now))
            }
            Judged::Taken(Standing::Held, now) => T::in_progress(state::in_progress(record, now)),
            Judged::Taken(Standing::Parked(cause), _) => T::parked(state::parked(record, cause)),
            Judged::Taken(Standing::Overdue, _) => {
                T::parked(state::parked(record, EndCause::LeaseEnded))
            }
            Judged::Mismatch(standing) => T::mismatch(state::mismatch(record, standing)),
            Judged::InDoubt(gap) => T::in_doubt(*gap),
            Judged::OutsideWindow(outside) => T::outside_window(outside),
            Judged::Free { .. }
            | Judged::Own
            | Judged::Taken(Standing::Absent | Standing::Lapsed(_), _) => {
                unreachable!("a free key is granted, and so is one's own")
            }
        })
    }

    /// Writes the record that takes a free key, and points the table at it. `false`: the store had
    /// to grow first, or could not and `no_room` now says why; ask again.
    #[expect(clippy::too_many_arguments, reason = "one step of two loops")]
    fn grant(
        &self,
        mut shard: ShardGuard<'_>,
        question: &mut Question<'_>,
        way: Way<'_>,
        record: &Record<'_>,
        is_new: bool,
        class: Class,
        reserve: u64,
        entry: Option<Found<'_, '_>>,
        growths: u64,
    ) -> Result<bool, ClaimError> {
        let key = question.key;
        let release = entry.map_or(0, |old| held_bytes(old.record));
        let change = RoomChange { release, reserve, is_exit: false };
        let mut draft = Draft::begin(record);
        draft.fill(record);
        let seen = entry.map(|it| it.seen);
        let reserved = match shard.metered.is_empty() {
            true => None,
            false => self.reserve(&shard, key, seen.map(|it| it.record), &draft)?,
        };
        #[cfg(feature = "rate-limit")]
        if is_new {
            // What the quota has refused costs nothing.
            question.pay_for_new()?;
        }
        #[cfg(not(feature = "rate-limit"))]
        let _ = is_new;
        let Some(location) = self.append(&draft, class, change, seen)? else {
            // Before the lock is given back (Q1).
            drop(reserved);
            drop(shard);
            if let Some(cause) = question.no_room.take() {
                key.namespace.count(Event::Full);
                return Err(ClaimError::Full { cause });
            }
            question.no_room = self.make_room(growths)?;
            return Ok(false);
        };
        let is_done = record.kind == Kind::Complete;
        match entry {
            Some(old) => shard.table.replace(old.position, location, is_done),
            None => shard.table.insert(way.route, location, is_done),
        }
        if let Some(reserved) = reserved {
            reserved.keep();
        }
        if !is_done {
            shard.add_lease();
        }
        if !shard.waiters.is_empty() {
            self.taken(shard, key, record);
        }
        Ok(true)
    }
}

impl<'a> Question<'a> {
    /// What cannot be asked is refused before anything is looked for.
    #[inline]
    fn new(
        key: &'a Key<'a>,
        request: &'a ClaimRequest,
        taking: Taking,
    ) -> Result<Self, ClaimError> {
        let policy = &key.namespace.policy;
        let (mut rule, is_required) = policy.fingerprint_rule();
        let is_plain = request.lease.is_none() && request.dedupe_ttl.is_none();
        if !is_plain || is_required {
            let policy = policy.load();
            taking.span(&policy, request)?;
            rule = policy.fingerprint;
        }
        Ok(Self {
            key,
            request,
            taking,
            rule,
            differs: false,
            no_room: None,
            refresh: Refresh::Untried,
            #[cfg(feature = "rate-limit")]
            is_paid: false,
        })
    }

    /// Pays for a new key: once (A1).
    #[cfg(feature = "rate-limit")]
    fn pay_for_new(&mut self) -> Result<(), ClaimError> {
        if !self.is_paid {
            self.key.namespace.pay_for_new(self.key)?;
            self.is_paid = true;
        }
        Ok(())
    }

    /// Pays for being told of another fingerprint, if that is what is told: the call ends with it.
    #[cfg(feature = "rate-limit")]
    fn pay_for_mismatch(&self, judged: &Judged) -> Result<(), ClaimError> {
        if matches!(judged, Judged::Mismatch(_)) {
            let paid = self.key.namespace.pay_for_mismatch(self.key);
            if paid.is_err() {
                self.count_fingerprint();
            }
            paid?;
        }
        Ok(())
    }

    /// Whether a key that was completed when the request was first sent may be forgotten by now; gives since when they are remembered.
    #[cold]
    fn forgotten(&self, first_sent: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let namespace = self.key.namespace;
        let mut dedupe_ttl = namespace.policy.load().dedupe_ttl;
        if self.taking == Taking::Once {
            // Who marks a key for a time of his own does so each time.
            dedupe_ttl = dedupe_ttl.min(self.request.dedupe_ttl.map_or(dedupe_ttl, whole_ms));
        }
        let since = namespace.remembered_since(dedupe_ttl, now);
        (first_sent < since).then_some(since)
    }

    /// Whether a claim that is held is that of who asks for it. A mark goes on with none.
    #[inline]
    fn is_owners(&self, held: RecordRef<'_>) -> bool {
        self.request.owner.is_some()
            && self.taking == Taking::Claim
            && held.owner() == self.request.owner
    }

    /// Counts a differing fingerprint, when the call has its answer. A refusal is an answer of its own.
    #[inline]
    fn count_fingerprint(&self) {
        let was_counted = self.request.is_again && self.rule == FingerprintRule::Count;
        if self.differs && !was_counted {
            self.key.namespace.count(Event::Differs);
        }
    }

    /// Counts the answer, when the call has it. One that waits is told once that the key is held.
    #[inline]
    fn count_answer(&self, judged: &Judged) {
        self.count_fingerprint();
        let event = match judged {
            Judged::Taken(Standing::Done, _) => Event::Replayed,
            Judged::Taken(Standing::Held, _) if self.request.is_again => return,
            Judged::Taken(Standing::Held, _) => Event::InProgress,
            Judged::Taken(..) => Event::Parked,
            Judged::Mismatch(_) => Event::Mismatch,
            Judged::InDoubt(_) => Event::InDoubt,
            Judged::OutsideWindow(_) => Event::OutsideWindow,
            Judged::Free { .. } | Judged::Own => return,
        };
        self.key.namespace.count(event);
    }
}

impl Taking {
    /// How long the key is taken for: the lease, or the dedupe window.
    fn span(self, policy: &Policy, request: &ClaimRequest) -> Result<Duration, ClaimError> {
        let span = match self {
            Self::Claim => lease_of(policy, request.lease)?,
            Self::Once => dedupe_ttl_of(policy, request.dedupe_ttl)?,
        };
        if policy.fingerprint_required && request.fingerprint.is_none() {
            return Err(ClaimError::FingerprintRequired);
        }
        Ok(span)
    }
}
