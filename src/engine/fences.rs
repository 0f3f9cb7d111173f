//! Which token a resource was last used under: what a sink asks before it carries something out.
//!
//! A fence is a completion without a body, of the resource as its key, with the newest token in place of a reference. A newer one is
//! written over it like a window that is extended (`refresh`): under the record's own token, with an end that is later by a
//! millisecond at least. So recovery takes the newest (R1), whichever of them have survived.
//!
//! Invariants
//! - N1  The token of a fence never goes back: it is compared and written under the lock of its shard.
//! - N2  Whoever is admitted is told when the record that says so is as durable as he asked; who is refused, at once.

use std::time::Duration;

use super::namespaces::Key;
use super::search::{Found, Seen};
use super::spans::class_of;
use super::state::Standing;
use super::{Answered, CallDurability, Engine, Settle};
use crate::admission::{Admitted, FenceError};
use crate::answer::Gap;
use crate::format::draft::Draft;
use crate::format::ext::Ext;
use crate::format::flags::{BodyState, Flags};
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::sys::pin::Pin;
use crate::types::{FencingToken, Reference, Timestamp};
use crate::wal::lane::RoomChange;

/// What is known of a resource.
#[derive(Clone, Copy)]
struct Fence {
    newest: FencingToken,
    expires: Timestamp,
}

impl Engine {
    /// Admits a token that is not older than the newest one of the resource, and makes it that.
    pub(crate) fn admit_token(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        durability: Option<CallDurability>,
    ) -> Answered<Admitted, FenceError> {
        self.try_admit(key, token, durability).unwrap_or_else(|error| Err(error).into())
    }

    fn try_admit(
        &self,
        key: &Key<'_>,
        token: FencingToken,
        durability: Option<CallDurability>,
    ) -> Result<Answered<Admitted, FenceError>, FenceError> {
        self.check_change(key)?;
        let way = self.way_to_change(key.hash);
        let mut no_room = None;
        loop {
            let growths = self.wal.growths();
            let pin = Pin::new();
            let mut seen = None;
            self.find_unlocked(key, &way, &mut seen, &pin)?;
            let ttl = key.namespace.policy.load().dedupe_ttl;
            // What was newer once is so for good. And a longer time is not worth a refusal.
            let least = if no_room.is_some() { Duration::ZERO } else { ttl / 2 };
            if let Some(admitted) = self.admitted(seen.as_ref(), token, least, durability)? {
                return Ok(admitted);
            }
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let found = self.find(&shard, key, way.route, &mut seen, &pin)?;
            // Somebody else may have been faster.
            let current = found.map(|found| found.seen);
            if let Some(admitted) = self.admitted(current, token, least, durability)? {
                return Ok(admitted);
            }
            if let Some(gap) = self.doubt(found.map(|found| found.record)) {
                return Err(FenceError::InDoubt(Box::new(gap)));
            }
            let old = found.and_then(|found| self.fence(found.record).map(|it| (found, it)));
            let expires = now.deadline(ttl);
            let record = match old {
                Some((found, fence)) => fence.advanced(found.record, token, now.lower, expires),
                None => {
                    let Some(own) = self.next_token(&mut shard) else {
                        drop(shard);
                        self.renew_tokens(key.hash)?;
                        continue;
                    };
                    first_record(key, own, token, now.lower, expires)
                }
            };
            let change = RoomChange { release: 0, reserve: 0, is_exit: false };
            let class = class_of(ttl, true);
            if let Some(location) =
                self.append(&Draft::new(&record), class, change, found.map(|found| found.seen))?
            {
                match found {
                    Some(Found { position, .. }) => shard.table.replace(position, location, true),
                    None => shard.table.insert(way.route, location, true),
                }
                drop(shard);
                let admitted = Admitted { token, expires: record.expires };
                return Ok(self.changed(admitted, durability));
            }
            drop(shard);
            if let Some(cause) = no_room.take() {
                return Err(FenceError::Full { cause });
            }
            no_room = self.make_room(growths)?;
        }
    }

    /// What there is to say without a write: that a token is older than the newest one, or is that itself, for at `least` so long.
    fn admitted(
        &self,
        seen: Option<&Seen<'_>>,
        token: FencingToken,
        least: Duration,
        durability: Option<CallDurability>,
    ) -> Result<Option<Answered<Admitted, FenceError>>, FenceError> {
        let Some((seen, fence)) = seen.and_then(|seen| Some((seen, self.fence(seen.record)?)))
        else {
            return Ok(None);
        };
        let (shown, newest) = (token, fence.newest);
        if shown < newest {
            return Err(FenceError::Stale { shown, newest });
        }
        let is_long = fence.expires.since(self.timeline.now()) >= least;
        if shown > newest || !is_long || self.doubt(Some(seen.record)).is_some() {
            return Ok(None);
        }
        let result = Ok(Admitted { token, expires: fence.expires });
        Ok(Some(Answered { result, settle: self.fence_settle(seen, durability) }))
    }

    /// The newest token that was admitted for a resource, if that is known.
    pub(crate) fn newest_admitted(
        &self,
        key: &Key<'_>,
    ) -> Result<Option<FencingToken>, FenceError> {
        self.check_process()?;
        super::check_key(key)?;
        let way = self.way(key.hash);
        let pin = Pin::new();
        let mut seen = None;
        self.find_unlocked(key, &way, &mut seen, &pin)?;
        let record = seen.map(|seen| seen.record);
        if let Some(gap) = self.doubt(record) {
            return Err(FenceError::InDoubt(Box::new(gap)));
        }
        Ok(record.and_then(|record| self.fence(record)).map(|fence| fence.newest))
    }

    /// What a record says of its resource, if it still says anything.
    fn fence(&self, record: RecordRef<'_>) -> Option<Fence> {
        let now = self.timeline.judge(self.timeline.read(), [record.until(), record.expires()]);
        let is_there = Standing::of(record, now, self.open_epoch) == Standing::Done;
        let newest = record.reference().map(token_of)?;
        is_there.then_some(Fence { newest, expires: record.expires() })
    }

    /// The gap in which a newer token may have been lost.
    fn doubt(&self, record: Option<RecordRef<'_>>) -> Option<Gap> {
        if !self.gaps.exist() {
            return None;
        }
        let newest = record.map(|record| record.token().epoch());
        self.gaps.covering(self.timeline.read().lower, newest, None)
    }

    /// What somebody waits for who is admitted by what was written before.
    fn fence_settle(&self, seen: &Seen<'_>, durability: Option<CallDurability>) -> Option<Settle> {
        let is_durable = || self.wal.segments.is_durable(seen.location, seen.pin);
        (self.waits(durability) && !is_durable())
            .then(|| Settle { ticket: self.wal.rounds.ticket(), is_own: false })
    }
}

impl Fence {
    /// The record of a later token, or of the same one for longer.
    fn advanced<'p>(
        self,
        old: RecordRef<'p>,
        token: FencingToken,
        at: Timestamp,
        expires: Timestamp,
    ) -> Record<'p> {
        // Of two that are written in one millisecond, the later one.
        let expires = expires.max(self.expires.after(Duration::from_millis(1)));
        let ext = Ext { reference: Some(reference_of(token)), ..old.ext() };
        Record { at, until: at, expires, ext, ..old.read() }
    }
}

/// The first record of a resource, under a token of this store's own.
fn first_record<'a>(
    key: &Key<'a>,
    own: FencingToken,
    token: FencingToken,
    at: Timestamp,
    expires: Timestamp,
) -> Record<'a> {
    Record {
        kind: Kind::Complete,
        flags: Flags::default().with_body(BodyState::None).with_refresh(true),
        token: own,
        key_hash: key.hash,
        namespace: key.number,
        expires,
        until: at,
        at,
        code: 0,
        attempt: 1,
        body_len: 0,
        body_crc: 0,
        ext: Ext { reference: Some(reference_of(token)), ..Ext::default() },
        more: &[],
        key: key.bytes,
        body: &[],
    }
}

fn reference_of(token: FencingToken) -> Reference {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&token.get().to_le_bytes());
    Reference(bytes)
}

fn token_of(Reference(bytes): Reference) -> FencingToken {
    let [a, b, c, d, e, f, g, h, ..] = bytes;
    FencingToken::from_raw(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back() {
        for raw in [0, 1, u64::MAX, 0x0102_0304_0506_0708] {
            assert_eq!(token_of(reference_of(FencingToken::from_raw(raw))).get(), raw);
        }
    }
}
