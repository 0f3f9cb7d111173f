//! Finding a key's current record, with the lock of its shard and without.

use std::ops::Deref;

use super::namespaces::Key;
use super::shard::ShardState;
use super::{Engine, Way};
use crate::error::StoreError;
use crate::format::record_ref::RecordRef;
use crate::sys::pin::Pin;
use crate::sys::sync::atomic::Ordering;
use crate::table::{Position, Route, Sight, Slot};
use crate::types::Location;

/// A key's current record, as it was when somebody looked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) location: Location,
    pub(super) record: RecordRef<'a>,
    /// What keeps the record where it is.
    pub(super) pin: &'a Pin,
}

/// A key's slot and current record, found under the lock of its shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found<'s, 'p> {
    pub(super) position: Position,
    pub(super) seen: &'s Seen<'p>,
}

impl<'p> Deref for Found<'_, 'p> {
    type Target = Seen<'p>;

    fn deref(&self) -> &Seen<'p> {
        self.seen
    }
}

impl Engine {
    /// The current record of a key, found without its shard's lock: what it was at some moment since
    /// the call began. The whole key is compared.
    #[inline(always)]
    pub(super) fn find_unlocked<'p>(
        &'p self,
        key: &Key<'_>,
        way: &Way<'_>,
        seen: &mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<(), StoreError> {
        // Acquire: whoever closes the store waits for the pins that were there when it was set.
        if self.is_closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        let buckets = way.shard.buckets();
        match buckets.glance(&way.route) {
            Some(Sight::Nothing) => {
                *seen = None;
                Ok(())
            }
            Some(_) => self.search_unlocked(key, way, seen, pin),
            None => self.find_in_bucket(key, way, seen, pin),
        }
    }

    /// The same, of a key that is there most likely: the filter, which may have to come from memory, is not asked
    /// first.
    #[inline(always)]
    pub(super) fn find_expected<'p>(
        &'p self,
        key: &Key<'_>,
        way: &Way<'_>,
        seen: &mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<(), StoreError> {
        // Acquire: see above.
        if self.is_closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        self.find_in_bucket(key, way, seen, pin)
    }

    /// Most keys that are there are what their bucket shows first: what is found needs no second look.
    #[inline(always)]
    fn find_in_bucket<'p>(
        &'p self,
        key: &Key<'_>,
        way: &Way<'_>,
        seen: &mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<(), StoreError> {
        if let Some(slot) = way.shard.buckets().first_match(&way.route)
            && self.is_record_of(key, slot, seen, pin)?
        {
            return Ok(());
        }
        self.search_unlocked(key, way, seen, pin)
    }

    #[inline(never)]
    fn search_unlocked<'p>(
        &'p self,
        key: &Key<'_>,
        way: &Way<'_>,
        seen: &mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<(), StoreError> {
        let is_match = |slot: Slot| self.is_record_of(key, slot, seen, pin);
        match way.shard.buckets().find(&way.route, is_match)? {
            Sight::Slot(_) => {}
            Sight::Nothing => *seen = None,
            Sight::Unclear => {
                let shard = self.lock(way.shard)?;
                self.find(&shard, key, way.route, seen, pin)?;
            }
        }
        Ok(())
    }

    /// The current record of a key. What was `seen` without the lock is not read again when it still
    /// is the current one; in any case it is told there.
    #[inline]
    pub(super) fn find<'s, 'p>(
        &'p self,
        shard: &ShardState,
        key: &Key<'_>,
        route: Route,
        seen: &'s mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<Option<Found<'s, 'p>>, StoreError> {
        let is_expected = seen.is_some();
        let is_match = |slot: Slot| match seen {
            // Under one pin a location stands for one record.
            Some(seen) if seen.location == slot.location() => Ok(true),
            _ => self.is_record_of(key, slot, seen, pin),
        };
        let slot = shard.table.find_expected(route, is_expected, is_match)?;
        if slot.is_none() {
            *seen = None;
        }
        Ok(slot.zip(seen.as_ref()).map(|((position, _), seen)| Found { position, seen }))
    }

    /// Whether a slot points to a record of this key, which is then told.
    #[inline]
    fn is_record_of<'p>(
        &'p self,
        key: &Key<'_>,
        slot: Slot,
        seen: &mut Option<Seen<'p>>,
        pin: &'p Pin,
    ) -> Result<bool, StoreError> {
        let location = slot.location();
        let record = self.wal.segments.record(location, pin)?;
        let is_same = record.namespace() == key.number && record.key() == key.bytes;
        if is_same {
            *seen = Some(Seen { location, record, pin });
        }
        Ok(is_same)
    }
}
