//! What an operator does: `resolve`, `forget`, and the list of orphans.
//!
//! Whatever an operator writes takes a new token, so that it wins over everything the key's past
//! owners wrote or may still try to write (R1).

use super::events::Event;
use super::exits::{CompleteRequest, release_record};
use super::forget_all::Belonging;
use super::namespaces::Key;
use super::search::Found;
use super::state::{self, Standing, held_bytes, is_orphan};
use super::waiters::{Called, End};
use super::{Answered, CallDurability, Engine, Settle};
use crate::answer::{Completion, EndCause, KeyState, Orphan};
use crate::checksum::crc32;
use crate::error::{ForgetError, ResolveError, StoreError};
use crate::format::draft::Draft;
use crate::format::ext::{self, Ext};
use crate::format::flags::Flags;
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::format::scope;
use crate::sys::pin::Pin;
use crate::table::Slot;
use crate::types::{AUDIT_BYTES_MAX, FencingToken, NamespaceId, Timestamp};
use crate::wal::class::Class;
use crate::wal::lane::RoomChange;

/// How an unfinished claim ended after all.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ResolveRequest<'a> {
    /// The work was done, with this outcome.
    Completed(CompleteRequest<'a>),
    /// The work was not done: the key is free.
    NotDone(Option<CallDurability>),
}

/// Who forgets a key and why, as it is written down.
#[derive(Clone, Debug)]
pub(super) struct Audit(Vec<u8>);

impl Audit {
    pub(super) fn new(reason: &str, actor: &str) -> Result<Self, ForgetError> {
        if let Some(len) = audit_is_too_long(reason, actor) {
            return Err(ForgetError::TextLength { len });
        }
        // The actor's length, the actor, the reason.
        let mut body = vec![actor.len() as u8];
        body.extend_from_slice(actor.as_bytes());
        body.extend_from_slice(reason.as_bytes());
        Ok(Self(body))
    }
}

/// The length of the longer one, if that is too long.
fn audit_is_too_long(reason: &str, actor: &str) -> Option<usize> {
    Some(reason.len().max(actor.len())).filter(|longest| *longest > AUDIT_BYTES_MAX)
}

/// What a key must be for to be forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Forgetting {
    /// There, or in doubt.
    Any,
    /// There.
    Known,
}

/// What forgetting did.
pub(super) enum Forgot {
    /// Nothing: there was nothing to forget.
    Nothing,
    /// The key was in this state, or in doubt, and is free.
    Key(Option<KeyState>),
}

/// What can be resolved, or why not.
enum Resolvable<'s, 'p> {
    Yes(Found<'s, 'p>),
    No(ResolveError, Option<Settle>),
}

impl Engine {
    /// Decides an unfinished claim that nobody holds.
    pub(crate) fn resolve(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        request: &ResolveRequest<'_>,
        reason: &str,
        actor: &str,
    ) -> Answered<Option<Completion>, ResolveError> {
        if let Some(len) = audit_is_too_long(reason, actor) {
            return Err(ResolveError::TextLength { len }).into();
        }
        let audit = ext::audit(reason, actor);
        self.try_resolve(key, token, request, &audit).unwrap_or_else(|error| Err(error).into())
    }

    fn try_resolve(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        request: &ResolveRequest<'_>,
        audit: &[u8],
    ) -> Result<Answered<Option<Completion>, ResolveError>, ResolveError> {
        self.check_change(key)?;
        let prepared = match request {
            ResolveRequest::Completed(request) => {
                let mut prepared = self.prepare(&key.namespace.policy.load(), request)?;
                prepared.more = audit;
                Some(prepared)
            }
            ResolveRequest::NotDone(_) => None,
        };
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            let way = self.way(key.hash);
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let mut seen = None;
            let Some(found) = self.find(&shard, key, way.route, &mut seen, &pin)? else {
                return Err(ResolveError::Forgotten);
            };
            let found = match self.resolvable(found, token)? {
                Resolvable::Yes(found) => found,
                Resolvable::No(error, settle) => {
                    return Ok(Answered { result: Err(error), settle });
                }
            };
            let Some(new_token) = self.next_token(&mut shard) else {
                drop(shard);
                self.renew_tokens(key.hash)?;
                continue;
            };
            let old = found.record;
            let first_token = Some(old.first_token());
            match (request, &prepared) {
                (ResolveRequest::Completed(request), Some(prepared)) => {
                    let stored = self.store_outcome(
                        shard,
                        found,
                        new_token,
                        first_token,
                        prepared,
                        now,
                        growths,
                        &mut no_room,
                    );
                    if let Some(completion) = stored? {
                        key.namespace.count(Event::Resolved);
                        return Ok(self.changed(Some(completion), request.durability));
                    }
                }
                (ResolveRequest::NotDone(durability), _) => {
                    let (record, change) = release_record(old, now.lower);
                    let ext = Ext { first_token, ..record.ext };
                    // Where there is no room but what was reserved for its end, that comes first.
                    let more = if no_room.is_some() { &[] } else { audit };
                    let draft = Draft::new(&Record { token: new_token, ext, more, ..record });
                    let is_exit = draft.room() as u64 <= change.release;
                    let change = RoomChange { is_exit, ..change };
                    let location = self.append(&draft, Class::Claims, change, Some(found.seen))?;
                    if let Some(location) = location {
                        self.end_entry(&mut shard, found, &draft, location, now.lower);
                        let called = self.ended(&mut shard, old, End::Free);
                        drop(shard);
                        self.wake(called);
                        key.namespace.count(Event::Resolved);
                        return Ok(self.changed(None, *durability));
                    }
                    drop(shard);
                    if let Some(cause) = no_room.take() {
                        return Err(StoreError::Io(cause).into());
                    }
                    no_room = self.make_room(growths)?;
                }
                (ResolveRequest::Completed(_), None) => unreachable!("prepared above"),
            }
        }
    }

    fn resolvable<'s, 'p>(
        &self,
        found: Found<'s, 'p>,
        token: FencingToken,
    ) -> Result<Resolvable<'s, 'p>, StoreError> {
        let record = found.record;
        let now = self.timeline.judge(self.timeline.read(), [record.until(), record.expires()]);
        let fenced = ResolveError::Fenced { held: token, current: record.token() };
        Ok(match Standing::of(record, now, self.open_epoch) {
            Standing::Absent => Resolvable::No(ResolveError::Forgotten, None),
            Standing::Done => {
                self.wal.segments.check_body(record, found.location, found.pin)?;
                let outcome = Box::new(state::outcome(record, now));
                let settle = self.shown(Ok::<_, StoreError>(()), &found).settle;
                Resolvable::No(ResolveError::AlreadyCompleted(outcome), settle)
            }
            _ if record.token() != token => Resolvable::No(fenced, None),
            Standing::Held => Resolvable::No(ResolveError::InProgress, None),
            Standing::Lapsed(_) | Standing::Overdue | Standing::Parked(_) => Resolvable::Yes(found),
        })
    }

    /// Removes a key on purpose, whatever its state, and says what it was. Who did it and why is
    /// written down with it.
    pub(crate) fn forget(
        &self,
        key: &Key<'_>,
        reason: &str,
        actor: &str,
        durability: Option<CallDurability>,
    ) -> Answered<Option<KeyState>, ForgetError> {
        let forgot = Audit::new(reason, actor)
            .and_then(|audit| self.try_forget(key, &audit, Forgetting::Any));
        match forgot {
            Ok(Forgot::Nothing) => Ok(None).into(),
            Ok(Forgot::Key(state)) => self.changed(state, durability),
            Err(error) => Err(error).into(),
        }
    }

    pub(super) fn try_forget(
        &self,
        key: &Key<'_>,
        Audit(body): &Audit,
        what: Forgetting,
    ) -> Result<Forgot, ForgetError> {
        self.check_change(key)?;
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            let way = self.way(key.hash);
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let mut seen = None;
            let found = self.find(&shard, key, way.route, &mut seen, &pin)?;
            let state = found.and_then(|found| {
                let old = found.record;
                let judged = self.timeline.judge(now, [old.until(), old.expires()]);
                key_state(Standing::of(old, judged, self.open_epoch))
            });
            let newest = found.map(|found| found.record.token().epoch());
            let is_in_doubt =
                || what == Forgetting::Any && self.gaps.covering(now.lower, newest, None).is_some();
            if state.is_none() && !is_in_doubt() {
                return Ok(Forgot::Nothing);
            }
            let Some(token) = self.next_token(&mut shard) else {
                drop(shard);
                self.renew_tokens(key.hash)?;
                continue;
            };
            let old = found.map(|found| found.record);
            let release = old.map_or(0, held_bytes);
            let record = Record {
                kind: Kind::Forget,
                flags: old.map_or_else(Flags::default, |old| old.flags().rules_only()),
                token,
                key_hash: key.hash,
                namespace: key.number,
                expires: old.map_or(now.lower, |old| old.expires()),
                until: old.map_or(now.lower, |old| old.until()),
                at: now.lower,
                code: old.map_or(0, |old| old.code()),
                attempt: old.map_or(0, |old| old.attempt()),
                body_len: body.len() as u32,
                body_crc: crc32(body),
                ext: Ext { first_token: old.map(|old| old.first_token()), ..Ext::default() },
                more: &[],
                key: key.bytes,
                body,
            };
            let draft = Draft::new(&record);
            let is_exit = draft.room() as u64 <= release;
            let change = RoomChange { release, reserve: 0, is_exit };
            // R5: it stays for as long as what it forgets.
            let class = match old {
                Some(old) if old.kind() == Kind::Complete => {
                    Class::geometric(old.expires().since(now.lower))
                }
                _ => Class::Claims,
            };
            if let Some(location) =
                self.append(&draft, class, change, found.map(|found| found.seen))?
            {
                let mut called = Called::default();
                match found {
                    Some(found) => {
                        self.end_entry(&mut shard, found, &draft, location, now.lower);
                        called = self.ended(&mut shard, found.record, End::Free);
                    }
                    None => {
                        self.account(&shard, None, Some(&draft));
                        shard.table.insert(way.route, location, false);
                    }
                }
                drop(shard);
                self.wake(called);
                key.namespace.count(Event::Forgotten);
                return Ok(Forgot::Key(state));
            }
            drop(shard);
            if let Some(cause) = no_room.take() {
                return Err(ForgetError::Full { cause });
            }
            no_room = self.make_room(growths)?;
        }
    }

    /// All unfinished claims of earlier opens, of one namespace or of all; of a namespace with this in front of the key. Locks one shard after
    /// the other, and reads the records behind the unfinished entries.
    pub(crate) fn orphans(
        &self,
        of: Option<NamespaceId>,
        prefix: &[u8],
    ) -> Result<Vec<Orphan>, StoreError> {
        self.check_process()?;
        let mut orphans = Vec::new();
        for index in 0..self.shards.len() {
            let pin = Pin::new();
            let shard = self.shards[index].lock(&self.wal);
            if shard.is_closed {
                return Err(StoreError::Closed);
            }
            shard.table.for_each(|_, slot: Slot| {
                if !slot.is_done() {
                    let record = self.wal.segments.record(slot.location(), &pin)?;
                    let of = of.map(|namespace| Belonging { namespace, prefix });
                    if of.is_none_or(|of| of.holds(record)) {
                        orphans.extend(self.orphan(record));
                    }
                }
                Ok::<_, StoreError>(())
            })?;
        }
        orphans.sort_by_key(|orphan: &Orphan| orphan.token);
        Ok(orphans)
    }

    fn orphan(&self, record: RecordRef<'_>) -> Option<Orphan> {
        let now = self.timeline.judge(self.timeline.read(), [record.until(), record.expires()]);
        let standing = Standing::of(record, now, self.open_epoch);
        let is_ours = match standing {
            Standing::Parked(cause) => cause == EndCause::Orphaned,
            Standing::Absent | Standing::Done => false,
            Standing::Held | Standing::Lapsed(_) | Standing::Overdue => {
                is_orphan(record, self.open_epoch)
            }
        };
        let state = key_state(standing).filter(|_| is_ours)?;
        let namespace = self.namespaces.by_id(record.namespace().unscoped())?;
        let (scope, key) = scope::split(record.namespace(), record.key())?;
        Some(Orphan {
            namespace: namespace.name.clone(),
            scope: scope.to_vec(),
            key: key.to_vec(),
            state,
            token: record.token(),
            attempt: record.attempt(),
            at: record.at(),
            expires: if state == KeyState::Parked { Timestamp::MAX } else { record.expires() },
            reference: record.reference(),
        })
    }
}

fn key_state(standing: Standing) -> Option<KeyState> {
    Some(match standing {
        Standing::Absent => return None,
        Standing::Held => KeyState::InProgress,
        Standing::Lapsed(_) => KeyState::Lapsed,
        Standing::Overdue | Standing::Parked(_) => KeyState::Parked,
        Standing::Done => KeyState::Completed,
    })
}
