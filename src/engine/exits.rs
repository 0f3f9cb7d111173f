//! What an owner does with a claim: `renew`, `complete`, `release`, `park`.
//!
//! Each is accepted if and only if the key's current record is a claim with exactly the token that
//! is shown. The deadline alone refuses nothing; a newer token refuses everything. An exit is never
//! refused for want of room: the claim reserved it.

use std::sync::Arc;
use std::time::Duration;

use super::events::Event;
use super::namespaces::Key;
use super::refresh::refreshes;
use super::search::{Found, Seen};
use super::shard::{ShardGuard, ShardState};
use super::spans::{class_of, dedupe_ttl_of, lease_of};
use super::state::{self, Standing, exit_bytes, held_bytes};
use super::time::Now;
use super::waiters::End;
use super::{Answered, CallDurability, Engine};
use crate::answer::{BodyKept, Completion, Renewed};
use crate::checksum::crc32;
use crate::error::{CompleteError, Failure, LeaseError, StoreError};
use crate::format::draft::Draft;
use crate::format::ext::Ext;
use crate::format::flags::{BodyState, ParkedBy};
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::hash::digest_128;
use crate::policy::{OnLeaseEnd, Policy, PolicyProblem, whole_ms};
use crate::sys::pin::Pin;
use crate::table::Route;
use crate::types::{FencingToken, Reference, Timestamp};
use crate::wal::class::Class;
use crate::wal::lane::RoomChange;

/// What a completion brings.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CompleteRequest<'a> {
    pub(crate) body: Option<&'a [u8]>,
    pub(crate) code: u16,
    pub(crate) reference: Option<Reference>,
    pub(crate) replay_ttl: Option<Duration>,
    pub(crate) dedupe_ttl: Option<Duration>,
    pub(crate) durability: Option<CallDurability>,
}

/// A completion with everything worked out that does not need the lock.
pub(super) struct Prepared<'a> {
    request: &'a CompleteRequest<'a>,
    replay_ttl: Duration,
    dedupe_ttl: Duration,
    /// With the body, and without.
    class: Class,
    bodyless_class: Class,
    state: BodyState,
    kept: BodyKept,
    body_len: u32,
    body_crc: u32,
    /// Who resolved it, and why, see [`Record::more`].
    pub(super) more: &'a [u8],
    /// Whether duplicates may extend its window.
    refreshes: bool,
}

/// Why an owner is refused.
enum Refusal<'s, 'p> {
    Forgotten { late_by: Option<Duration> },
    Fenced { current: FencingToken },
    Completed(&'s Seen<'p>, Timestamp),
    Parked,
}

impl Engine {
    /// Extends a lease from now on, never shortens it. Never waits for the disk.
    pub(crate) fn renew(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        lease: Option<Duration>,
    ) -> Result<Renewed, LeaseError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let policy = key.namespace.policy.load();
        let lease = lease_of(&policy, lease)?;
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            // What has to come from memory comes before the lock is taken.
            let mut seen = None;
            self.find_expected(key, &way, &mut seen, &pin)?;
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let (found, judged) = self
                .own_claim(&shard, key, way.route, token, now, &mut seen, &pin)?
                .map_err(|refusal| refused(key, refusal).into_lease_error(token))?;
            let old = found.record;
            // Never shorter than it was: recovery takes the latest deadline of one token (R1).
            let deadline = now.deadline(lease).max(old.until());
            let expires = match old.flags().on_lease_end() {
                OnLeaseEnd::Park => Timestamp::MAX,
                OnLeaseEnd::Reclaim => deadline.after(policy.grace_for(lease)).max(old.expires()),
            };
            let record = Record {
                kind: Kind::Renew,
                flags: old.flags().rules_only(),
                expires,
                until: deadline,
                at: now.lower,
                ..old.read()
            };
            let (release, exit) = (held_bytes(old), exit_bytes(old));
            let change = RoomChange { release, reserve: 2 * exit, is_exit: false };
            let mut draft = Draft::new(&record);
            let mut location = self.append(&draft, Class::Claims, change, Some(found.seen))?;
            if location.is_none() && no_room.is_some() && old.flags().has_renewal_room() {
                // The disk is full: this renewal takes the room that was kept for one.
                let flags = record.flags.without_renewal_room();
                let change = RoomChange { release, reserve: exit, is_exit: true };
                draft = Draft::new(&Record { flags, ..record });
                location = self.append(&draft, Class::Claims, change, Some(found.seen))?;
            }
            let Some(location) = location else {
                drop(shard);
                if let Some(cause) = no_room.take() {
                    return Err(LeaseError::Full { cause });
                }
                no_room = self.make_room(growths)?;
                continue;
            };
            self.account(&shard, Some(old), Some(&draft));
            shard.table.replace(found.position, location, false);
            drop(shard);
            key.namespace.count(Event::Renewed);
            let late_by = (judged >= old.until()).then(|| judged.since(old.until()));
            count_late(key, late_by.is_some());
            self.wal.poison.check_after()?;
            let lease_left = deadline.since(now.lower);
            return Ok(Renewed { deadline, lease_left, late_by, expires });
        }
    }

    /// Whether a claim is its owner's: what ends or renews it is refused otherwise. `Ok(false)`: it is, but its
    /// lease is over.
    pub(crate) fn check_owner(
        &self,
        key: &Key<'_>,
        token: FencingToken,
    ) -> Result<bool, LeaseError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let pin = Pin::new();
        let mut seen = None;
        self.find_expected(key, &way, &mut seen, &pin)?;
        let shard = self.lock(way.shard)?;
        let now = self.timeline.read();
        match self.own_claim(&shard, key, way.route, token, now, &mut seen, &pin)? {
            Ok((found, judged)) => Ok(judged < found.record.until()),
            Err(refusal) => Err(refusal.into_lease_error(token)),
        }
    }

    /// Gives a claim back without an outcome: the key is free.
    pub(crate) fn release(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        durability: Option<CallDurability>,
    ) -> Answered<(), LeaseError> {
        self.leave(key, token, durability, Kind::Release)
    }

    /// Ends a claim with its outcome unknown.
    pub(crate) fn park(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        durability: Option<CallDurability>,
    ) -> Answered<(), LeaseError> {
        self.leave(key, token, durability, Kind::Park)
    }

    fn leave(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        durability: Option<CallDurability>,
        kind: Kind,
    ) -> Answered<(), LeaseError> {
        self.try_leave(key, token, durability, kind).unwrap_or_else(|error| Err(error).into())
    }

    fn try_leave(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        durability: Option<CallDurability>,
        kind: Kind,
    ) -> Result<Answered<(), LeaseError>, LeaseError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            // What has to come from memory comes before the lock is taken.
            let mut seen = None;
            self.find_expected(key, &way, &mut seen, &pin)?;
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let own = self.own_claim(&shard, key, way.route, token, now, &mut seen, &pin)?;
            let (found, judged) = match own {
                Ok(own) => own,
                Err(Refusal::Completed(found, _)) => {
                    drop(shard);
                    // That it is completed is told when it is as durable as it was asked to be.
                    return Ok(self.shown(Err(LeaseError::Completed), found));
                }
                Err(refusal) => return Err(refused(key, refusal).into_lease_error(token)),
            };
            let ((record, change), event) = match kind {
                Kind::Park => {
                    (park_record(found.record, ParkedBy::Owner, now.lower), Event::LeftParked)
                }
                _ => (release_record(found.record, now.lower), Event::Released),
            };
            let mut draft = Draft::begin(&record);
            draft.fill(&record);
            if let Some(location) = self.append(&draft, Class::Claims, change, Some(found.seen))? {
                let end = if kind == Kind::Park {
                    self.account(&shard, Some(found.record), Some(&draft));
                    shard.table.replace(found.position, location, false);
                    End::Decided
                } else {
                    self.end_entry(&mut shard, found, &draft, location, now.lower);
                    End::Free
                };
                let called = self.ended(&mut shard, found.record, end);
                drop(shard);
                self.wake(called);
                key.namespace.count(event);
                count_late(key, judged >= found.record.until());
                return Ok(self.changed((), durability));
            }
            // Only after several crashes on a full disk, see `wal::lane`.
            drop(shard);
            if let Some(cause) = no_room.take() {
                return Err(StoreError::Io(cause).into());
            }
            no_room = self.make_room(growths)?;
        }
    }

    /// Ends a claim by storing its outcome.
    pub(crate) fn complete(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        request: &CompleteRequest<'_>,
    ) -> Answered<Completion, CompleteError> {
        self.try_complete(key, token, request).unwrap_or_else(|error| Err(error).into())
    }

    fn try_complete(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        request: &CompleteRequest<'_>,
    ) -> Result<Answered<Completion, CompleteError>, CompleteError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let prepared = self.prepare(&key.namespace.policy.load(), request)?;
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            // What has to come from memory comes before the lock is taken.
            let mut seen = None;
            self.find_expected(key, &way, &mut seen, &pin)?;
            let shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let own = self.own_claim(&shard, key, way.route, token, now, &mut seen, &pin)?;
            let (found, judged) = match own {
                Ok(own) => own,
                Err(Refusal::Completed(found, judged)) => {
                    drop(shard);
                    return self.complete_again(found, judged, request);
                }
                Err(refusal) => return Err(refused(key, refusal).into_complete_error(token)),
            };
            let is_late = judged >= found.record.until();
            let completion = self.store_outcome(
                shard,
                found,
                token,
                None,
                &prepared,
                now,
                growths,
                &mut no_room,
            )?;
            if let Some(completion) = completion {
                key.namespace.count(Event::Completed);
                count_late(key, is_late);
                return Ok(self.changed(completion, request.durability));
            }
        }
    }

    /// Works out what the lock is not needed for: windows, and what becomes of the body.
    pub(super) fn prepare<'a>(
        &self,
        policy: &Policy,
        request: &'a CompleteRequest<'a>,
    ) -> Result<Prepared<'a>, PolicyProblem> {
        let dedupe_ttl = dedupe_ttl_of(policy, request.dedupe_ttl)?;
        let replay_ttl = match request.replay_ttl.map(whole_ms) {
            None => policy.replay_ttl.min(dedupe_ttl),
            Some(replay_ttl) if replay_ttl > dedupe_ttl => {
                return Err(PolicyProblem::ReplayOutlivesDedupe { replay_ttl, dedupe_ttl });
            }
            Some(replay_ttl) => replay_ttl,
        };
        let (state, kept) = match request.body {
            None => (BodyState::None, BodyKept::None),
            Some(body) if body.len() > self.body_bytes_max => {
                (BodyState::TooLarge, BodyKept::TooLarge)
            }
            Some(_) if replay_ttl.is_zero() => (BodyState::ReplayOver, BodyKept::NoReplay),
            Some(_) => (BodyState::Kept, BodyKept::Kept),
        };
        let body = request.body.unwrap_or_default();
        // A body of 4 GiB and more is told as the longest that can be told.
        let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let body_crc = if state == BodyState::Kept { crc32(body) } else { 0 };
        let bodyless_class = class_of(dedupe_ttl, request.dedupe_ttl.is_none());
        let is_policy = request.replay_ttl.is_none() && request.dedupe_ttl.is_none();
        let class = class_of(replay_ttl, is_policy);
        Ok(Prepared {
            request,
            replay_ttl,
            dedupe_ttl,
            class,
            bodyless_class,
            state,
            kept,
            body_len,
            body_crc,
            more: &[],
            refreshes: refreshes(policy, request.dedupe_ttl),
        })
    }

    /// Writes a completion over a claim, under `token`; `first_token` is that of the first attempt, if the
    /// claim does not tell. A body for which there is no room is left
    /// out. `None`: the store had to grow first, or could not and `no_room` now says why; ask again.
    #[expect(clippy::too_many_arguments, reason = "one step of two loops")]
    pub(super) fn store_outcome(
        &self,
        mut shard: ShardGuard<'_>,
        found: Found<'_, '_>,
        token: FencingToken,
        first_token: Option<FencingToken>,
        prepared: &Prepared<'_>,
        now: Now,
        growths: u64,
        no_room: &mut Option<Arc<Failure>>,
    ) -> Result<Option<Completion>, StoreError> {
        let (old, request) = (found.record, prepared.request);
        let mut kept = prepared.kept;
        let mut record = Record {
            kind: Kind::Complete,
            flags: old
                .flags()
                .rules_only()
                .with_body(prepared.state)
                .with_gate(self.is_gated(request.durability))
                .with_refresh(prepared.refreshes),
            token,
            expires: now.deadline(prepared.dedupe_ttl),
            until: now.deadline(prepared.replay_ttl),
            at: now.lower,
            code: request.code,
            body_len: prepared.body_len,
            body_crc: prepared.body_crc,
            ext: Ext {
                fingerprint: old.fingerprint(),
                reference: request.reference.or(old.reference()),
                first_token: first_token.or_else(|| old.earlier_token()),
                previous: None,
                body_digest: None,
                // Nobody resumes what is done.
                owner: None,
            },
            // Where there is no room but what was reserved for its end, that comes first.
            more: if no_room.is_some() { &[] } else { prepared.more },
            body: &[],
            key_hash: old.key_hash(),
            namespace: old.namespace(),
            attempt: old.attempt(),
            key: old.key(),
        };
        let release = held_bytes(old);
        let bodyless = |record: Record<'_>, state: BodyState| {
            let digest = request.body.map(digest_128);
            let flags = record.flags.with_body(state);
            let ext = Ext { body_digest: digest, ..record.ext };
            let draft = Draft::new(&Record { flags, body_crc: 0, body: &[], ext, ..record });
            let is_exit = draft.room() as u64 <= release;
            let change = RoomChange { release, reserve: 0, is_exit };
            let location =
                self.append(&draft, prepared.bodyless_class, change, Some(found.seen))?;
            Ok::<_, StoreError>((location, draft.padded_len()))
        };
        let (location, len) = if prepared.state == BodyState::Kept {
            record.body = request.body.unwrap_or_default();
            let mut draft = Draft::begin(&record);
            draft.fill(&record);
            let is_exit = draft.room() as u64 <= release;
            let change = RoomChange { release, reserve: 0, is_exit };
            match self.append(&draft, prepared.class, change, Some(found.seen))? {
                None if no_room.is_some() => {
                    kept = BodyKept::NoRoom;
                    bodyless(record, BodyState::TooLarge)?
                }
                location => (location, draft.padded_len()),
            }
        } else {
            bodyless(record, prepared.state)?
        };
        let Some(location) = location else {
            drop(shard);
            if let Some(cause) = no_room.take() {
                return Err(StoreError::Io(cause));
            }
            *no_room = self.make_room(growths)?;
            return Ok(None);
        };
        self.account_completed(&shard, old, len);
        shard.table.replace(found.position, location, true);
        let called = self.ended(&mut shard, old, End::Decided);
        drop(shard);
        self.wake(called);
        Ok(Some(Completion { token, kept, expires: record.expires }))
    }

    /// A second completion under the same token: the same outcome is fine, another is not.
    fn complete_again(
        &self,
        found: &Seen<'_>,
        now: Timestamp,
        request: &CompleteRequest<'_>,
    ) -> Result<Answered<Completion, CompleteError>, CompleteError> {
        let stored = found.record;
        self.wal.segments.check_body(stored, found.location, found.pin)?;
        let is_same_body = match (stored.flags().body(), request.body) {
            (BodyState::Kept, body) => body == Some(stored.body()),
            (BodyState::None, body) => body.is_none(),
            (BodyState::TooLarge | BodyState::ReplayOver, None) => false,
            (BodyState::TooLarge | BodyState::ReplayOver, Some(body)) => {
                u32::try_from(body.len()).unwrap_or(u32::MAX) == stored.body_len()
                    && stored.ext().body_digest == Some(digest_128(body))
            }
        };
        let is_same_reference =
            request.reference.is_none_or(|reference| stored.reference() == Some(reference));
        if is_same_body && is_same_reference && request.code == stored.code() {
            let kept = match stored.flags().body() {
                // Whether it is still there or not.
                BodyState::Kept if now >= stored.until() => BodyKept::NoReplay,
                BodyState::Kept => BodyKept::Kept,
                BodyState::None => BodyKept::None,
                BodyState::TooLarge => BodyKept::TooLarge,
                BodyState::ReplayOver => BodyKept::NoReplay,
            };
            let completion = Completion { token: stored.token(), kept, expires: stored.expires() };
            return Ok(self.shown(Ok(completion), found));
        }
        // A copy: errors are passed on, and kept, where nobody thinks of the store.
        let outcome = state::outcome(stored, now);
        Ok(self.shown(Err(CompleteError::AlreadyCompleted(Box::new(outcome))), found))
    }

    /// The claim that bears this token, and the time it was judged at.
    #[expect(clippy::too_many_arguments, reason = "one step of three loops")]
    fn own_claim<'s, 'p>(
        &'p self,
        shard: &ShardState,
        key: &Key<'_>,
        route: Route,
        token: FencingToken,
        now: Now,
        seen: &'s mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<Result<(Found<'s, 'p>, Timestamp), Refusal<'s, 'p>>, StoreError> {
        let Some(found) = self.find(shard, key, route, seen, pin)? else {
            return Ok(Err(Refusal::Forgotten { late_by: None }));
        };
        let record = found.record;
        let now = self.timeline.judge(now, [record.until(), record.expires()]);
        let standing = Standing::of(record, now, self.open_epoch);
        Ok(match standing {
            Standing::Absent => {
                let was_claim = matches!(record.kind(), Kind::Claim | Kind::Renew);
                let is_own = was_claim && record.token() == token;
                let late_by = is_own.then(|| now.since(record.until()));
                Err(Refusal::Forgotten { late_by })
            }
            _ if record.token() != token => Err(Refusal::Fenced { current: record.token() }),
            Standing::Held | Standing::Lapsed(_) | Standing::Overdue => Ok((found, now)),
            Standing::Parked(_) => Err(Refusal::Parked),
            Standing::Done => Err(Refusal::Completed(found.seen, now)),
        })
    }
}

impl Refusal<'_, '_> {
    fn into_lease_error(self, held: FencingToken) -> LeaseError {
        match self {
            Self::Forgotten { late_by } => LeaseError::Forgotten { late_by },
            Self::Fenced { current } => LeaseError::Fenced { held, current },
            Self::Completed(..) => LeaseError::Completed,
            Self::Parked => LeaseError::Parked,
        }
    }

    fn into_complete_error(self, held: FencingToken) -> CompleteError {
        match self {
            Self::Forgotten { late_by } => CompleteError::Forgotten { late_by },
            Self::Fenced { current } => CompleteError::Fenced { held, current },
            Self::Parked => CompleteError::Parked,
            Self::Completed(..) => unreachable!("a second completion is compared, not refused"),
        }
    }
}

/// Counts what an owner did behind the end of his lease.
#[inline]
fn count_late(key: &Key<'_>, is_late: bool) {
    if is_late {
        key.namespace.count(Event::Late);
    }
}

/// Counts an owner who is one no more.
#[cold]
fn refused<'s, 'p>(key: &Key<'_>, refusal: Refusal<'s, 'p>) -> Refusal<'s, 'p> {
    if let Refusal::Fenced { .. } = refusal {
        key.namespace.count(Event::Fenced);
    }
    refusal
}

/// A claim that is parked. It goes on holding room for what ends it, if its claim still has any.
pub(super) fn park_record<'a>(
    claim: RecordRef<'a>,
    parked_by: ParkedBy,
    at: Timestamp,
) -> (Record<'a>, RoomChange) {
    let (release, exit) = (held_bytes(claim), exit_bytes(claim));
    let mut flags = claim.flags().rules_only().with_parked_by(parked_by);
    let reserve = release - exit;
    if reserve == 0 {
        flags = flags.without_renewal_room();
    }
    let expires = Timestamp::MAX;
    let record = Record { kind: Kind::Park, flags, expires, until: expires, at, ..claim.read() };
    (record, RoomChange { release, reserve, is_exit: true })
}

/// A claim that is given back.
pub(super) fn release_record<'a>(claim: RecordRef<'a>, at: Timestamp) -> (Record<'a>, RoomChange) {
    let record =
        Record { kind: Kind::Release, flags: claim.flags().rules_only(), at, ..claim.read() };
    (record, RoomChange { release: held_bytes(claim), reserve: 0, is_exit: true })
}
