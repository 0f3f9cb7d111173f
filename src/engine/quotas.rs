//! Quotas: how much of a namespace there may be, and how much there is.
//!
//! What a namespace with a quota has in the table is counted: keys, bytes of their current records, and unfinished claims.
//! The sums are the namespace's; whatever changes an entry changes them, under the lock of its shard. A namespace without a
//! quota is not counted, and a store in which none has one looks at an empty list for each change.
//!
//! Only a grant is ever refused, the newest one; what ends, renews or takes over a claim is not, so that bodies may
//! carry the bytes beyond their limit, and nothing is granted until there are fewer. Sums are never written to the
//! disk: opening counts what it has found.
//!
//! Invariants
//! - Q1  A shard lists a namespace (`ShardState::metered`) from the moment on at which its entries in this shard
//!   are in the sums; both change under the lock of the shard.
//! - Q2  What is granted was in the sums before it was written, and leaves them when it was not.

use crossbeam_utils::CachePadded;

use super::Engine;
use super::events::Event;
use super::namespaces::{Key, NamespaceState};
use super::shard::ShardState;
use crate::error::NamespaceError;
use crate::format::index;
use crate::format::names::Entry;
use crate::format::record::{Draft, Kind};
use crate::format::record_ref::RecordRef;
use crate::limits::{QuotaExceeded, QuotaOf};
use crate::policy::Quota;
use crate::sys::pin::Pin;
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::types::NamespaceId;

/// No limit.
const UNLIMITED: u64 = u64::MAX;

/// Limits of a namespace, and what there is. Relaxed throughout: each number stands for itself.
#[derive(Debug)]
pub(crate) struct Meter {
    /// Of keys, bytes, claims in flight, waiters.
    limits: [AtomicU64; 4],
    /// On lines of their own: changed by all who claim, where there is a quota.
    used: CachePadded<[AtomicU64; 3]>,
}

/// What an entry counts for: as a key, in bytes, as a claim in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Weight(pub(crate) [u64; 3]);

impl Weight {
    fn new(kind: Kind, bytes: u64) -> Self {
        Self([1, bytes, u64::from(matches!(kind, Kind::Claim | Kind::Renew))])
    }

    fn of_record(record: RecordRef<'_>) -> Self {
        Self::new(record.kind(), record.padded_len())
    }

    fn of_draft(draft: &Draft<'_>) -> Self {
        Self::new(draft.kind(), draft.padded_len() as u64)
    }

    fn of_entry(entry: &index::Entry) -> Self {
        Self::new(entry.kind, u64::from(entry.len))
    }
}

impl Default for Meter {
    fn default() -> Self {
        let limits = std::array::from_fn(|_| AtomicU64::new(UNLIMITED));
        Self { limits, used: CachePadded::new(std::array::from_fn(|_| AtomicU64::new(0))) }
    }
}

impl Meter {
    pub(crate) fn set(&self, quota: &Quota) {
        let limits = [quota.keys, quota.bytes, quota.in_flight, quota.waiters];
        for (limit, new) in self.limits.iter().zip(limits) {
            limit.store(new.unwrap_or(UNLIMITED), Ordering::Relaxed);
        }
    }

    pub(crate) fn quota(&self) -> Quota {
        let limit = |at: usize| {
            Some(self.limits[at].load(Ordering::Relaxed)).filter(|limit| *limit != UNLIMITED)
        };
        Quota { keys: limit(0), bytes: limit(1), in_flight: limit(2), waiters: limit(3) }
    }

    pub(crate) fn used(&self) -> Weight {
        Weight(self.used.each_ref().map(|used| used.load(Ordering::Relaxed)))
    }

    /// How many may wait for keys of the namespace.
    pub(super) fn waiters_max(&self) -> usize {
        usize::try_from(self.limits[3].load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }

    fn add(&self, weight: Weight) {
        for (used, more) in self.used.iter().zip(weight.0) {
            used.fetch_add(more, Ordering::Relaxed);
        }
    }

    fn subtract(&self, weight: Weight) {
        for (used, less) in self.used.iter().zip(weight.0) {
            // A record that could not be read was not counted either.
            let rest = |used: u64| Some(used.saturating_sub(less));
            used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).unwrap_or_default();
        }
    }

    /// Counts what takes the place of `old`, if its limits allow of it.
    fn exchange(&self, old: Option<Weight>, new: Weight) -> Result<(), QuotaExceeded> {
        let before = old.unwrap_or_default();
        for at in 0..3 {
            let (less, more, limit) =
                (before.0[at], new.0[at], self.limits[at].load(Ordering::Relaxed));
            // The bytes of a key that is there already are not what a quota is for.
            let is_free = more <= less || at == 1 && old.is_some();
            let grow = |used: u64| {
                let sum = (used + more).saturating_sub(less);
                (is_free || sum <= limit).then_some(sum)
            };
            let grown = self.used[at].fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
            if let Err(used) = grown {
                for at in 0..at {
                    self.replace(at, new.0[at], before.0[at]);
                }
                return Err(QuotaExceeded { of: QuotaOf::ALL[at], limit, used });
            }
        }
        Ok(())
    }

    fn replace(&self, at: usize, less: u64, more: u64) {
        let change = |used: u64| Some((used + more).saturating_sub(less));
        self.used[at]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change)
            .unwrap_or_default();
    }

    /// Whether four fifths of a limit are used.
    fn is_near(&self) -> bool {
        let used = self.used();
        let near = |(used, limit): (u64, &AtomicU64)| {
            let limit = limit.load(Ordering::Relaxed);
            limit != UNLIMITED && used >= limit - limit / 5
        };
        used.0.into_iter().zip(&self.limits).any(near)
    }
}

/// What is about to be granted, in the sums: taken out of them again unless it was (Q2).
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    namespace: &'a NamespaceState,
    old: Option<Weight>,
    new: Weight,
}

impl Reserved<'_> {
    /// It was granted.
    pub(super) fn keep(self) {
        if self.namespace.meter.is_near() {
            self.namespace.count(Event::NearQuota);
        }
        std::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let before = self.old.unwrap_or_default();
        for at in 0..3 {
            self.namespace.meter.replace(at, self.new.0[at], before.0[at]);
        }
    }
}

impl ShardState {
    #[inline]
    fn meters(&self, namespace: NamespaceId) -> bool {
        !self.metered.is_empty() && self.metered.binary_search(&namespace).is_ok()
    }
}

impl Engine {
    /// Makes room in the quota of a namespace for what is about to be granted. `Ok(None)`: it has none.
    #[inline(never)]
    pub(super) fn reserve<'a>(
        &self,
        shard: &ShardState,
        key: &Key<'a>,
        old: Option<RecordRef<'_>>,
        draft: &Draft<'_>,
    ) -> Result<Option<Reserved<'a>>, QuotaExceeded> {
        if !shard.meters(key.namespace.id) {
            return Ok(None);
        }
        let (namespace, old) = (key.namespace, old.map(Weight::of_record));
        let new = Weight::of_draft(draft);
        match namespace.meter.exchange(old, new) {
            Ok(()) => Ok(Some(Reserved { namespace, old, new })),
            Err(exceeded) => {
                namespace.count(Event::OverQuota);
                Err(exceeded)
            }
        }
    }

    /// Counts that an entry has another record now, or none, or is a new one.
    #[inline]
    pub(super) fn account(
        &self,
        shard: &ShardState,
        old: Option<RecordRef<'_>>,
        new: Option<&Draft<'_>>,
    ) {
        if shard.metered.is_empty() {
            return;
        }
        let number = old.map(RecordRef::namespace).or(new.map(Draft::namespace));
        if let Some(number) = number {
            self.account_metered(
                shard,
                number,
                old.map(Weight::of_record),
                new.map(Weight::of_draft),
            );
        }
    }

    /// Counts that an entry is a completion of so many bytes now.
    #[inline]
    pub(super) fn account_completed(&self, shard: &ShardState, old: RecordRef<'_>, len: usize) {
        if !shard.metered.is_empty() {
            let new = Weight::new(Kind::Complete, len as u64);
            self.account_metered(shard, old.namespace(), Some(Weight::of_record(old)), Some(new));
        }
    }

    /// Counts that an entry is gone.
    #[inline]
    pub(super) fn account_gone(&self, shard: &ShardState, entry: &index::Entry) {
        if !shard.metered.is_empty() {
            self.account_metered(shard, entry.namespace, Some(Weight::of_entry(entry)), None);
        }
    }

    #[cold]
    fn account_metered(
        &self,
        shard: &ShardState,
        number: NamespaceId,
        old: Option<Weight>,
        new: Option<Weight>,
    ) {
        let id = number.unscoped();
        if shard.meters(id)
            && let Some(namespace) = self.namespaces.by_id(id)
        {
            // Added first, so that nobody reads less than there is.
            namespace.meter.add(new.unwrap_or_default());
            namespace.meter.subtract(old.unwrap_or_default());
        }
    }

    /// Limits a namespace. It survives power loss when this returns.
    pub(crate) fn limit(&self, name: &str, quota: &Quota) -> Result<(), NamespaceError> {
        self.check_open()?;
        let namespace = self.namespaces.by_name(name).ok_or(NamespaceError::UnknownName)?;
        let _changing = self.namespaces.changing();
        let before = namespace.meter.quota();
        if before == *quota {
            return Ok(());
        }
        {
            let _passage = self.wal.pass()?;
            self.wal.poison.check_before()?;
            let entry = Entry::Quota(namespace.id, *quota);
            if !self.wal.append_entry(&entry, |_| ())? {
                return Err(NamespaceError::TooMany);
            }
        }
        namespace.meter.set(quota);
        match (before.is_none(), quota.is_none()) {
            (true, false) => self.meter(&[namespace.id]),
            (false, true) => self.meter_no_more(&namespace),
            _ => {}
        }
        Ok(())
    }

    /// Counts what opening has found of namespaces with a quota.
    pub(super) fn meter_found(&self) {
        let all = self.namespaces.all();
        let metered = all.iter().filter(|namespace| !namespace.meter.quota().is_none());
        let metered: Vec<_> = metered.map(|namespace| namespace.id).collect();
        if !metered.is_empty() {
            self.meter(&metered);
        }
    }

    /// Counts these namespaces from now on, shard by shard (Q1). Reads every record.
    fn meter(&self, namespaces: &[NamespaceId]) {
        for shard in &self.shards {
            let pin = Pin::new();
            let mut shard = shard.lock(&self.wal);
            shard.metered.extend_from_slice(namespaces);
            shard.metered.sort_unstable();
            let counted = shard.table.for_each(|_, slot| {
                // One that cannot be read is told of by whoever asks for its key.
                if let Ok(record) = self.wal.segments.record(slot.location(), &pin) {
                    let id = record.namespace().unscoped();
                    if namespaces.contains(&id)
                        && let Some(namespace) = self.namespaces.by_id(id)
                    {
                        namespace.meter.add(Weight::of_record(record));
                    }
                }
                Ok::<_, std::convert::Infallible>(())
            });
            let Ok(()) = counted;
        }
    }

    fn meter_no_more(&self, namespace: &NamespaceState) {
        for shard in &self.shards {
            shard.lock(&self.wal).metered.retain(|id| *id != namespace.id);
        }
        // Nobody changes them any more.
        namespace.meter.subtract(Weight([u64::MAX; 3]));
    }

    /// Checks that what is counted is what there is.
    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn check_meters(&self) {
        use std::collections::HashMap;
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.lock(&self.wal)).collect();
        let pin = Pin::new();
        let mut found: HashMap<NamespaceId, [u64; 3]> = HashMap::new();
        for shard in &shards {
            let counted = shard.table.for_each(|_, slot| {
                let record = self.wal.segments.record(slot.location(), &pin)?;
                let sums = found.entry(record.namespace().unscoped()).or_default();
                let weight = Weight::of_record(record);
                sums.iter_mut().zip(weight.0).for_each(|(sum, more)| *sum += more);
                Ok::<_, crate::error::StoreError>(())
            });
            if counted.is_err() {
                return;
            }
        }
        for namespace in self.namespaces.all() {
            let is_metered = !namespace.meter.quota().is_none();
            let expected = found.get(&namespace.id).copied().filter(|_| is_metered);
            let used = namespace.meter.used().0;
            assert_eq!(used, expected.unwrap_or_default(), "keys, bytes and claims are counted");
            let lists = shards.iter().filter(|shard| shard.meters(namespace.id)).count();
            assert_eq!(lists, if is_metered { shards.len() } else { 0 });
        }
    }
}
