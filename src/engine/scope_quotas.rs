//! How much of each scope of a namespace there may be, and how much there is.
//!
//! As `quotas` has it for a namespace: sums that are changed with an entry, under the lock of its shard, of those scopes alone that have
//! any. They lie behind one lock of the namespace; only namespaces that limit their scopes take it, and those who wait for a key of a scope.

use std::collections::HashMap;

use super::quotas::{Limits, WAITERS, Weight};
use crate::limits::{QuotaExceeded, QuotaLevel, QuotaOf};
use crate::policy::Quota;
use crate::sys::sync::Mutex;

/// The limits of each scope, and what there is of those that have something. By what stands in front of their keys.
#[derive(Debug, Default)]
pub(crate) struct ScopeMeters {
    limits: Limits,
    used: Mutex<HashMap<Box<[u8]>, Used>>,
}

/// Room for so many scopes is kept, whatever there is.
const SPARE_MAX: usize = 1024;

/// Keys, bytes, claims in flight, waiters.
type Used = [u64; 4];

impl ScopeMeters {
    pub(crate) fn set(&self, quota: &Quota) {
        self.limits.set(quota);
    }

    pub(crate) fn quota(&self) -> Quota {
        self.limits.quota()
    }

    /// What there is of a scope.
    pub(crate) fn used(&self, scope: &[u8]) -> Weight {
        let used = self.used.lock().get(scope).copied().unwrap_or_default();
        Weight([used[0], used[1], used[2]])
    }

    /// Changes what there is of a scope.
    fn change<R>(&self, scope: &[u8], change: impl FnOnce(&mut Used) -> R) -> R {
        let mut all = self.used.lock();
        let Some(used) = all.get_mut(scope) else {
            let mut used = Used::default();
            let result = change(&mut used);
            if used != Used::default() {
                all.insert(scope.into(), used);
            }
            return result;
        };
        let result = change(used);
        if *used == Used::default() {
            all.remove(scope);
            if all.capacity() > SPARE_MAX && all.len() < all.capacity() / 8 {
                let len = all.len();
                all.shrink_to(2 * len);
            }
        }
        result
    }

    /// Counts what takes the place of `old`, if the limits allow of it; says whether it is near one.
    pub(super) fn exchange(
        &self,
        scope: &[u8],
        old: Option<Weight>,
        new: Weight,
    ) -> Result<bool, QuotaExceeded> {
        self.change(scope, |used| {
            for (at, of) in QuotaOf::ALL.into_iter().enumerate() {
                let limit = self.limits.of(at);
                let before = old.unwrap_or_default().0[at];
                let sum = (used[at] + new.0[at]).saturating_sub(before);
                if !new.is_free(old, at) && sum > limit {
                    let level = QuotaLevel::Scope;
                    return Err(QuotaExceeded { of, level, limit, used: used[at] });
                }
            }
            replace(used, new, old.unwrap_or_default());
            Ok((0..QuotaOf::ALL.len()).any(|at| self.limits.is_near(at, used[at])))
        })
    }

    /// Counts what comes and what goes.
    pub(super) fn replace(&self, scope: &[u8], more: Weight, less: Weight) {
        self.change(scope, |used| replace(used, more, less));
    }

    /// Nobody changes them any more.
    pub(super) fn forget(&self) {
        let mut all = self.used.lock();
        all.retain(|_, used| {
            *used = [0, 0, 0, used[WAITERS]];
            used[WAITERS] > 0
        });
    }

    /// Counts one who waits, if there may be one more; otherwise says how many there may be.
    pub(super) fn enter(&self, scope: &[u8]) -> Result<(), usize> {
        let limit = self.limits.of(WAITERS);
        self.change(scope, |used| {
            if used[WAITERS] >= limit {
                return Err(usize::try_from(limit).unwrap_or(usize::MAX));
            }
            used[WAITERS] += 1;
            Ok(())
        })
    }

    pub(super) fn leave(&self, scope: &[u8]) {
        self.change(scope, |used| used[WAITERS] = used[WAITERS].saturating_sub(1));
    }

    /// What is counted of all scopes.
    #[cfg(any(test, feature = "test-util"))]
    pub(super) fn all(&self) -> HashMap<Box<[u8]>, [u64; 3]> {
        let all = self.used.lock();
        let weights = all.iter().map(|(scope, used)| (scope.clone(), [used[0], used[1], used[2]]));
        weights.filter(|(_, weight)| *weight != [0; 3]).collect()
    }
}

fn replace(used: &mut Used, more: Weight, less: Weight) {
    for (used, (more, less)) in used.iter_mut().zip(more.0.into_iter().zip(less.0)) {
        // A record that could not be read was not counted either.
        *used = (*used + more).saturating_sub(less);
    }
}
