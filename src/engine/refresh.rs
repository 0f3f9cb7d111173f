//! Windows that duplicates extend: a completed key that is asked for is remembered on.
//!
//! The completion is written again, under its own token, with a later end and everything else as it was. Of completions of one
//! token the latest end counts (R1), so whatever crashes in between, the key is remembered until one of the ends that
//! somebody was told of, or a later one. What was written before is over earlier, and goes earlier: nothing of it comes back.
//!
//! Whether a window may be extended is decided when it begins, and stands in the record; whether it is, and for how
//! long, is the policy's to say when the key is asked for.

use std::time::Duration;

use super::namespaces::Key;
use super::purge::bodyless;
use super::search::Seen;
use super::state::Standing;
use super::{CallDurability, Engine, Settle, Way};
use crate::error::StoreError;
use crate::format::draft::Draft;
use crate::format::flags::BodyState;
use crate::format::record::{Kind, Record};
use crate::format::record_ref::RecordRef;
use crate::policy::{Policy, RefreshOnHit};
use crate::sys::pin::Pin;
use crate::sys::point::{Point, reach};
use crate::types::Timestamp;
use crate::wal::class::Class;
use crate::wal::lane::RoomChange;

/// What a call has done about the window of the key that it asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refresh {
    Untried,
    /// Nothing: somebody else has changed the key, or there is no room. It is remembered for as long as it was.
    Vain,
    Done,
}

impl Refresh {
    /// Whether a completed key is to be remembered for longer, because it is asked for.
    #[inline]
    pub(super) fn is_wanted(self, key: &Key<'_>, seen: Option<&Seen<'_>>, now: Timestamp) -> bool {
        seen.is_some_and(|seen| seen.record.flags().refreshes())
            && self == Self::Untried
            && seen.is_some_and(|seen| is_due(key, seen.record, now))
    }

    /// What is waited for before the outcome is shown may be what the call has written itself.
    pub(super) fn own(self, settle: Settle) -> Settle {
        Settle { is_own: settle.is_own || self == Self::Done, ..settle }
    }
}

impl Engine {
    /// Extends the window of a key that is completed, if little of it still is left. The key has to be looked at again.
    #[cold]
    pub(super) fn refresh<'p>(
        &'p self,
        key: &Key<'_>,
        way: Way<'_>,
        seen: &mut Option<Seen<'p>>,
        pin: &'p Pin,
        durability: Option<CallDurability>,
    ) -> Result<Refresh, StoreError> {
        if let Some(seen) = seen {
            // The memory of what is copied under the lock.
            self.wal.segments.check_body(seen.record, seen.location, seen.pin)?;
        }
        loop {
            let growths = self.wal.growths();
            let mut shard = self.lock(way.shard)?;
            let now = self.timeline.read();
            let Some(found) = self.find(&shard, key, way.route, seen, pin)? else {
                return Ok(Refresh::Vain);
            };
            let old = found.record;
            let judged = self.timeline.judge(now, [old.until(), old.expires()]);
            let is_done = Standing::of(old, judged, self.open_epoch) == Standing::Done;
            if !is_done || !old.flags().refreshes() || !is_due(key, old, judged) {
                return Ok(Refresh::Vain);
            }
            let dedupe_ttl = key.namespace.policy.load().dedupe_ttl;
            let expires = now.deadline(dedupe_ttl).max(old.expires());
            // Whoever is told of the later end is told when it is as durable as the store promises.
            let is_gated = self.is_gated(None) || self.is_gated(durability) || old.flags().gated();
            let (record, class) = again(old, judged, dedupe_ttl);
            let flags = record.flags.with_gate(is_gated);
            let change = RoomChange { release: 0, reserve: 0, is_exit: false };
            let draft = Draft::new(&Record { flags, expires, ..record });
            if let Some(location) = self.append(&draft, class, change, Some(found.seen))? {
                self.account(&shard, Some(old), Some(&draft));
                shard.table.replace(found.position, location, true);
                drop(shard);
                reach(Point::BehindInsert);
                self.wal.poison.check_after()?;
                return Ok(Refresh::Done);
            }
            drop(shard);
            if self.make_room(growths)?.is_some() {
                return Ok(Refresh::Vain);
            }
        }
    }
}

/// The completion as it is written again, and where it belongs. A body whose replay window is over is left out.
fn again<'p>(old: RecordRef<'p>, now: Timestamp, dedupe_ttl: Duration) -> (Record<'p>, Class) {
    let has_body = old.kind() == Kind::Complete && old.flags().body() == BodyState::Kept;
    if has_body && now < old.until() {
        return (old.read(), Class::geometric(old.until().since(now)));
    }
    let record = if has_body { bodyless(old) } else { old.read() };
    (record, Class::exact(dedupe_ttl))
}

/// Whether so little is left of a completed key's window that a duplicate extends it.
#[cold]
fn is_due(key: &Key<'_>, record: RecordRef<'_>, now: Timestamp) -> bool {
    let policy = key.namespace.policy.load();
    policy.refresh_on_hit.is_due(record.expires().since(now), policy.dedupe_ttl)
}

/// Whether the window of a completion may be extended later: one that a call asked for is what was asked for.
pub(super) fn refreshes(policy: &Policy, asked: Option<Duration>) -> bool {
    policy.refresh_on_hit != RefreshOnHit::Never && asked.is_none()
}
