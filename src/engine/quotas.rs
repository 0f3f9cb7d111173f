//! Quotas: how much of a namespace, and of each of its scopes, there may be, and how much there is.
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
//!   are in the sums; both change under the lock of the shard. Scopes are listed apart, by the number that
//!   records of keys with a scope have.
//! - Q2  What is granted was in the sums before it was written, and leaves them when it was not.

use crossbeam_utils::CachePadded;

use super::Engine;
use super::events::Event;
use super::namespaces::{Key, NamespaceState};
use super::shard::ShardState;
use crate::error::{NamespaceError, StoreError};
use crate::format::draft::Draft;
use crate::format::index;
use crate::format::names::Entry;
use crate::format::record::Kind;
use crate::format::record_ref::RecordRef;
use crate::format::scope;
use crate::limits::{QuotaExceeded, QuotaLevel, QuotaOf};
use crate::policy::Quota;
use crate::sys::pin::Pin;
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::types::{Location, NamespaceId};

/// No limit.
const UNLIMITED: u64 = u64::MAX;

/// Where waiters stand among what is limited.
pub(super) const WAITERS: usize = 3;

/// Limits of keys, bytes, claims in flight, waiters.
#[derive(Debug)]
pub(super) struct Limits([AtomicU64; 4]);

impl Default for Limits {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(UNLIMITED)))
    }
}

impl Limits {
    pub(super) fn set(&self, quota: &Quota) {
        let limits = [quota.keys, quota.bytes, quota.in_flight, quota.waiters];
        for (limit, new) in self.0.iter().zip(limits) {
            limit.store(new.unwrap_or(UNLIMITED), Ordering::Relaxed);
        }
    }

    pub(super) fn of(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    pub(super) fn quota(&self) -> Quota {
        let limit = |at| Some(self.of(at)).filter(|limit| *limit != UNLIMITED);
        Quota { keys: limit(0), bytes: limit(1), in_flight: limit(2), waiters: limit(WAITERS) }
    }

    /// Whether four fifths of a limit are used.
    pub(super) fn is_near(&self, at: usize, used: u64) -> bool {
        let limit = self.of(at);
        limit != UNLIMITED && used >= limit - limit / 5
    }
}

/// Limits of a namespace, and what there is. Relaxed throughout: each number stands for itself.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    limits: Limits,
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

    /// Whether taking the place of `old` costs nothing. The bytes of a key that is there already are not what
    /// a quota is for.
    pub(super) fn is_free(&self, old: Option<Self>, at: usize) -> bool {
        self.0[at] <= old.unwrap_or_default().0[at] || at == 1 && old.is_some()
    }
}

impl Meter {
    pub(crate) fn set(&self, quota: &Quota) {
        self.limits.set(quota);
    }

    pub(crate) fn quota(&self) -> Quota {
        self.limits.quota()
    }

    pub(crate) fn used(&self) -> Weight {
        Weight(self.used.each_ref().map(|used| used.load(Ordering::Relaxed)))
    }

    /// How many may wait for keys of the namespace.
    pub(super) fn waiters_max(&self) -> usize {
        usize::try_from(self.limits.of(WAITERS)).unwrap_or(usize::MAX)
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
            let (less, more, limit) = (before.0[at], new.0[at], self.limits.of(at));
            let is_free = new.is_free(old, at);
            let grow = |used: u64| {
                let sum = (used + more).saturating_sub(less);
                (is_free || sum <= limit).then_some(sum)
            };
            let grown = self.used[at].fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow);
            if let Err(used) = grown {
                for at in 0..at {
                    self.replace(at, new.0[at], before.0[at]);
                }
                let level = QuotaLevel::Namespace;
                return Err(QuotaExceeded { of: QuotaOf::ALL[at], level, limit, used });
            }
        }
        Ok(())
    }

    /// Whether there is no room for one more key at all, or for one more claim.
    #[inline]
    pub(super) fn exceeded_by_one(&self, is_claim: bool) -> Option<QuotaExceeded> {
        let is_used_up = |at: &usize| {
            let limit = self.limits.of(*at);
            limit != UNLIMITED && self.used[*at].load(Ordering::Relaxed) >= limit
        };
        // Without a claim there may be as many in flight as there are.
        let at = (0..if is_claim { 3 } else { 2 }).find(is_used_up)?;
        let (limit, used) = (self.limits.of(at), self.used[at].load(Ordering::Relaxed));
        Some(QuotaExceeded { of: QuotaOf::ALL[at], level: QuotaLevel::Namespace, limit, used })
    }

    fn replace(&self, at: usize, less: u64, more: u64) {
        let change = |used: u64| Some((used + more).saturating_sub(less));
        self.used[at]
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, change)
            .unwrap_or_default();
    }

    /// Whether four fifths of a limit are used.
    fn is_near(&self) -> bool {
        self.used().0.into_iter().enumerate().any(|(at, used)| self.limits.is_near(at, used))
    }
}

/// What is about to be granted, in the sums: taken out of them again unless it was (Q2).
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    namespace: &'a NamespaceState,
    /// Whether it is in the sums of the namespace.
    is_metered: bool,
    /// The scope in the sums of which it is.
    scope: Option<&'a [u8]>,
    is_near: bool,
    old: Option<Weight>,
    new: Weight,
}

impl Reserved<'_> {
    /// It was granted.
    pub(super) fn keep(self) {
        if self.is_near {
            self.namespace.count(Event::NearQuota);
        }
        std::mem::forget(self);
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        let before = self.old.unwrap_or_default();
        if self.is_metered {
            for at in 0..3 {
                self.namespace.meter.replace(at, self.new.0[at], before.0[at]);
            }
        }
        if let Some(scope) = self.scope {
            self.namespace.scope_meters.replace(scope, before, self.new);
        }
    }
}

impl ShardState {
    #[inline]
    fn meters(&self, number: NamespaceId) -> bool {
        !self.metered.is_empty() && self.metered.binary_search(&number).is_ok()
    }

    /// Whether a record of this number has a scope that is counted.
    #[inline]
    fn meters_scope(&self, number: NamespaceId) -> bool {
        number.is_scoped() && self.meters(number)
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
        let namespace = key.namespace;
        let (is_metered, limits_scope) =
            (shard.meters(namespace.id), shard.meters_scope(key.number));
        if !is_metered && !limits_scope {
            return Ok(None);
        }
        let (old, new) = (old.map(Weight::of_record), Weight::of_draft(draft));
        let mut reserved =
            Reserved { namespace, is_metered: false, scope: None, is_near: false, old, new };
        let mut reserve = || {
            // First: one that is refused is at no moment in the way of the others.
            if limits_scope {
                reserved.is_near = namespace.scope_meters.exchange(key.prefix(), old, new)?;
                reserved.scope = Some(key.prefix());
            }
            if is_metered {
                namespace.meter.exchange(old, new)?;
                reserved.is_metered = true;
                reserved.is_near |= namespace.meter.is_near();
            }
            Ok(())
        };
        match reserve() {
            Ok(()) => Ok(Some(reserved)),
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
        let of_old = old.map(|old| (old.namespace(), old.key()));
        if let Some(of) = of_old.or_else(|| new.map(|new| (new.namespace(), new.key()))) {
            let (old, new) = (old.map(Weight::of_record), new.map(Weight::of_draft));
            self.account_metered(shard, of, old, new);
        }
    }

    /// Counts that an entry is a completion of so many bytes now.
    #[inline]
    pub(super) fn account_completed(&self, shard: &ShardState, old: RecordRef<'_>, len: usize) {
        if !shard.metered.is_empty() {
            let new = Weight::new(Kind::Complete, len as u64);
            let of = (old.namespace(), old.key());
            self.account_metered(shard, of, Some(Weight::of_record(old)), Some(new));
        }
    }

    /// Counts that an entry is gone. Its record is there still.
    #[inline]
    pub(super) fn account_gone(&self, shard: &ShardState, entry: &index::Entry, at: Location) {
        if !shard.metered.is_empty() {
            self.account_gone_metered(shard, entry, at);
        }
    }

    #[cold]
    fn account_gone_metered(&self, shard: &ShardState, entry: &index::Entry, at: Location) {
        let (number, weight) = (entry.namespace, Some(Weight::of_entry(entry)));
        // An index knows no keys.
        let pin = Pin::new();
        let record = shard.meters_scope(number).then(|| self.wal.segments.record(at, &pin));
        match record {
            Some(Ok(record)) => self.account_metered(shard, (number, record.key()), weight, None),
            // One that cannot be read stays counted in its scope until the store is opened again.
            Some(Err(_)) | None => {
                self.account_metered(shard, (number.unscoped(), &[]), weight, None);
            }
        }
    }

    /// The key is as records have it.
    #[cold]
    fn account_metered(
        &self,
        shard: &ShardState,
        (number, key): (NamespaceId, &[u8]),
        old: Option<Weight>,
        new: Option<Weight>,
    ) {
        let (is_metered, limits_scope) =
            (shard.meters(number.unscoped()), shard.meters_scope(number));
        if !is_metered && !limits_scope {
            return;
        }
        let Some(namespace) = self.namespaces.by_id(number.unscoped()) else { return };
        let (old, new) = (old.unwrap_or_default(), new.unwrap_or_default());
        if is_metered {
            // Added first, so that nobody reads less than there is.
            namespace.meter.add(new);
            namespace.meter.subtract(old);
        }
        if limits_scope {
            namespace.scope_meters.replace(scope::prefix_of(number, key), new, old);
        }
    }

    /// Limits a namespace, or each of its scopes. It survives power loss when this returns.
    pub(crate) fn limit(
        &self,
        name: &str,
        level: QuotaLevel,
        quota: &Quota,
    ) -> Result<(), NamespaceError> {
        self.check_open()?;
        let namespace = self.namespaces.by_name(name).ok_or(NamespaceError::UnknownName)?;
        let _changing = self.namespaces.changing();
        let (number, before) = match level {
            QuotaLevel::Namespace => (namespace.id, namespace.meter.quota()),
            QuotaLevel::Scope => (namespace.id.scoped(), namespace.scope_meters.quota()),
        };
        if before == *quota {
            return Ok(());
        }
        {
            let _passage = self.wal.pass()?;
            self.wal.poison.check_before()?;
            if !self.wal.append_entry(&Entry::Quota(number, *quota), |_| ())? {
                return Err(NamespaceError::TooMany);
            }
        }
        match level {
            QuotaLevel::Namespace => namespace.meter.set(quota),
            QuotaLevel::Scope => namespace.scope_meters.set(quota),
        }
        match (before.is_none(), quota.is_none()) {
            (true, false) => self.meter(&[number])?,
            (false, true) => self.meter_no_more(&namespace, level, number),
            _ => {}
        }
        Ok(())
    }

    /// Counts what opening has found of namespaces with a quota.
    pub(super) fn meter_found(&self) -> Result<(), StoreError> {
        let mut metered = Vec::new();
        for namespace in self.namespaces.all() {
            metered.extend((!namespace.meter.quota().is_none()).then_some(namespace.id));
            let limits_scopes = !namespace.scope_meters.quota().is_none();
            metered.extend(limits_scopes.then(|| namespace.id.scoped()));
        }
        if metered.is_empty() { Ok(()) } else { self.meter(&metered) }
    }

    /// Counts these from now on, shard by shard (Q1). Reads every record.
    fn meter(&self, numbers: &[NamespaceId]) -> Result<(), StoreError> {
        for shard in &self.shards {
            // Before the look whether the store is closed, which waits for pins: the directory is ours meanwhile.
            let pin = Pin::new();
            let mut shard = self.lock(shard)?;
            shard.metered.extend_from_slice(numbers);
            shard.metered.sort_unstable();
            let counted = shard.table.for_each(|_, slot| {
                // One that cannot be read is told of by whoever asks for its key.
                if let Ok(record) = self.wal.segments.record(slot.location(), &pin) {
                    let number = record.namespace();
                    let is_new = |number| numbers.contains(&number);
                    let (of_namespace, of_scope) =
                        (is_new(number.unscoped()), number.is_scoped() && is_new(number));
                    let namespace = self.namespaces.by_id(number.unscoped());
                    let weight = Weight::of_record(record);
                    if let Some(namespace) = namespace.as_ref().filter(|_| of_namespace) {
                        namespace.meter.add(weight);
                    }
                    if let Some(namespace) = namespace.filter(|_| of_scope) {
                        let scope = scope::prefix_of(number, record.key());
                        namespace.scope_meters.replace(scope, weight, Weight::default());
                    }
                }
                Ok::<_, std::convert::Infallible>(())
            });
            let Ok(()) = counted;
        }
        Ok(())
    }

    fn meter_no_more(&self, namespace: &NamespaceState, level: QuotaLevel, number: NamespaceId) {
        for shard in &self.shards {
            shard.lock(&self.wal).metered.retain(|metered| *metered != number);
        }
        // Nobody changes them any more.
        match level {
            QuotaLevel::Namespace => namespace.meter.subtract(Weight([u64::MAX; 3])),
            QuotaLevel::Scope => namespace.scope_meters.forget(),
        }
    }

    /// Checks that what is counted is what there is.
    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn check_meters(&self) {
        use std::collections::HashMap;
        let shards: Vec<_> = self.shards.iter().map(|shard| shard.lock(&self.wal)).collect();
        let pin = Pin::new();
        let mut found: HashMap<NamespaceId, [u64; 3]> = HashMap::new();
        let mut found_of: HashMap<(NamespaceId, Box<[u8]>), [u64; 3]> = HashMap::new();
        for shard in &shards {
            let counted = shard.table.for_each(|_, slot| {
                let record = self.wal.segments.record(slot.location(), &pin)?;
                let (number, weight) = (record.namespace(), Weight::of_record(record));
                let add = |sums: &mut [u64; 3]| {
                    sums.iter_mut().zip(weight.0).for_each(|(sum, more)| *sum += more);
                };
                add(found.entry(number.unscoped()).or_default());
                if number.is_scoped() {
                    let scope = scope::prefix_of(number, record.key()).into();
                    add(found_of.entry((number, scope)).or_default());
                }
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
            let number = namespace.id.scoped();
            let limits_scopes = !namespace.scope_meters.quota().is_none();
            let of_this = found_of.iter().filter(|((of, _), _)| *of == number && limits_scopes);
            let expected: HashMap<_, _> =
                of_this.map(|((_, scope), sums)| (scope.clone(), *sums)).collect();
            assert_eq!(namespace.scope_meters.all(), expected, "scopes are counted");
            for (number, is_listed) in [(namespace.id, is_metered), (number, limits_scopes)] {
                let lists = shards.iter().filter(|shard| shard.meters(number)).count();
                assert_eq!(lists, if is_listed { shards.len() } else { 0 });
            }
        }
    }
}
