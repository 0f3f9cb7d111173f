//! Rates: how many new keys are granted in a time, and how many answers there are that a fingerprint differs.
//!
//! Each rate is a bucket of tokens, one for a namespace or one for each of its scopes (GCRA, by
//! `governor`), on the store's monotonic clock. Buckets are memory of this process: what came before it was opened is not held against
//! anybody. Answers about keys that are known cost none.
//!
//! Invariants
//! - A1  A call pays once for a key, however often it has to look again.
//! - A2  What a scope is refused costs its namespace nothing: one scope does not use up what the others may have.

use std::sync::Arc;
use std::time::Duration;

use governor::clock::Clock as _;
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::HashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{NotUntil, Quota, RateLimiter};

use super::Engine;
use super::events::Event;
use super::namespaces::{Key, NamespaceState};
use crate::error::NamespaceError;
use crate::rates::{Rate, RateExceeded, RateOf, Rates};
use crate::sys::clock::Clock;
use crate::sys::sync::RwLock;
use crate::sys::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use crate::types::KeyHash;

/// Scopes whose buckets are kept before those that are full again are looked for.
const KEPT_MIN: usize = 1024;

/// When there are so many buckets, scopes share as many others, by their hashes, until some are full again.
const KEPT_MAX: usize = if cfg!(test) { 4096 } else { 1 << 20 };

/// The rates of a namespace.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    /// Whether there are any.
    is_limited: AtomicBool,
    buckets: RwLock<Option<Arc<Buckets>>>,
}

type Middleware = NoOpMiddleware<Duration>;

#[derive(Debug)]
struct Buckets {
    rates: Rates,
    new_keys: Option<RateLimiter<NotKeyed, InMemoryState, StoreClock, Middleware>>,
    new_keys_each_scope: Option<Scopes>,
    mismatches_each_scope: Option<Scopes>,
}

/// A bucket for each scope that was not idle.
#[derive(Debug)]
struct Scopes {
    buckets: RateLimiter<KeyHash, HashMapStateStore<KeyHash>, StoreClock, Middleware>,
    kept_max: AtomicUsize,
}

/// The clock of the store, as what limits rates reads it.
#[derive(Clone, Debug)]
struct StoreClock(Arc<dyn Clock>);

impl governor::clock::Clock for StoreClock {
    type Instant = Duration;

    fn now(&self) -> Duration {
        Duration::from_nanos(self.0.monotonic_ns())
    }
}

impl StoreClock {
    fn refusal(&self, of: RateOf, until: &NotUntil<Duration>) -> RateExceeded {
        RateExceeded { of, retry_after: until.wait_time_from(self.now()) }
    }
}

impl Buckets {
    fn new(rates: Rates, clock: &Arc<dyn Clock>) -> Self {
        let clock = StoreClock(Arc::clone(clock));
        let scopes = |rate| Scopes::new(rate, clock.clone());
        Self {
            rates,
            new_keys: rates
                .new_keys
                .map(|rate| RateLimiter::direct_with_clock(quota(rate), clock.clone())),
            new_keys_each_scope: rates.new_keys_each_scope.map(scopes),
            mismatches_each_scope: rates.mismatches_each_scope.map(scopes),
        }
    }
}

/// A rate, as the library has it.
fn quota(rate: Rate) -> Quota {
    let quota = Quota::with_period(rate.every()).expect("no rate is of no time");
    quota.allow_burst(rate.at_once())
}

impl Scopes {
    fn new(rate: Rate, clock: StoreClock) -> Self {
        let buckets = RateLimiter::hashmap_with_clock(quota(rate), clock);
        Self { buckets, kept_max: AtomicUsize::new(KEPT_MIN) }
    }

    fn take(&self, scope: KeyHash, of: RateOf) -> Result<(), RateExceeded> {
        let kept = self.buckets.len();
        // Whoever makes scopes up has as much memory, and no more.
        let scope = match kept {
            0..KEPT_MAX => scope,
            _ => KeyHash(scope.0 % KEPT_MAX as u64),
        };
        let taken = self.buckets.check_key(&scope);
        if kept > self.kept_max.load(Ordering::Relaxed) {
            self.buckets.retain_recent();
            self.buckets.shrink_to_fit();
            let kept_max = (2 * self.buckets.len()).max(KEPT_MIN);
            self.kept_max.store(kept_max, Ordering::Relaxed);
        }
        taken.map_err(|until| self.buckets.clock().refusal(of, &until))
    }
}

impl NamespaceState {
    /// Pays for a key that is new, of which nobody else may have one then.
    #[inline]
    pub(super) fn pay_for_new(&self, key: &Key<'_>) -> Result<(), RateExceeded> {
        match self.rates.buckets() {
            None => Ok(()),
            Some(buckets) => self.pay(|| {
                if let Some(scopes) = &buckets.new_keys_each_scope {
                    scopes.take(key.scope(), RateOf::NewKeysOfScope)?;
                }
                match &buckets.new_keys {
                    None => Ok(()),
                    Some(bucket) => bucket
                        .check()
                        .map_err(|until| bucket.clock().refusal(RateOf::NewKeys, &until)),
                }
            }),
        }
    }

    /// Pays for the answer that a key has another fingerprint.
    pub(super) fn pay_for_mismatch(&self, key: &Key<'_>) -> Result<(), RateExceeded> {
        match self.rates.buckets() {
            None => Ok(()),
            Some(buckets) => self.pay(|| match &buckets.mismatches_each_scope {
                None => Ok(()),
                Some(scopes) => scopes.take(key.scope(), RateOf::MismatchesOfScope),
            }),
        }
    }

    #[cold]
    fn pay(&self, take: impl FnOnce() -> Result<(), RateExceeded>) -> Result<(), RateExceeded> {
        take().inspect_err(|_| self.count(Event::OverRate))
    }
}

impl Meters {
    #[inline]
    fn buckets(&self) -> Option<Arc<Buckets>> {
        if !self.is_limited.load(Ordering::Relaxed) {
            return None;
        }
        self.buckets.read().clone()
    }

    /// With these rates from now on; those that are as they were go on.
    fn set(&self, rates: &Rates, clock: &Arc<dyn Clock>) {
        let mut buckets = self.buckets.write();
        if buckets.as_ref().map_or_else(Rates::default, |it| it.rates) == *rates {
            return;
        }
        let is_limited = *rates != Rates::default();
        *buckets = is_limited.then(|| Arc::new(Buckets::new(*rates, clock)));
        self.is_limited.store(is_limited, Ordering::Relaxed);
    }
}

impl Engine {
    /// Limits how often a namespace may be asked for something new.
    pub(crate) fn limit_rates(&self, name: &str, rates: &Rates) -> Result<(), NamespaceError> {
        self.check_open()?;
        let namespace = self.namespaces.by_name(name).ok_or(NamespaceError::UnknownName)?;
        namespace.rates.set(rates, self.timeline.clock());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::sys::sim_clock::SimClock;

    #[test]
    fn scopes_that_are_idle_are_not_kept() {
        let clock = SimClock::new();
        let rate = Rate::per_second(NonZeroU32::MIN);
        let scopes = Scopes::new(rate, StoreClock(Arc::new(clock.clone())));
        let busy = KeyHash(u64::MAX);
        for second in 0..40 {
            let take = |scope| scopes.take(scope, RateOf::NewKeysOfScope);
            assert_eq!(take(busy), Ok(()));
            for scope in 0..100 {
                assert_eq!(take(KeyHash(second * 100 + scope)), Ok(()));
            }
            assert!(take(busy).is_err());
            assert!(scopes.buckets.len() <= KEPT_MIN + 2, "{}", scopes.buckets.len());
            clock.advance(Duration::from_secs(1));
        }
    }

    #[test]
    fn scopes_that_somebody_makes_up_take_so_much_memory_and_no_more() {
        let rate = Rate::per_hour(NonZeroU32::MIN);
        let scopes = Scopes::new(rate, StoreClock(Arc::new(SimClock::new())));
        for scope in 0..20 * KEPT_MAX as u64 {
            scopes
                .take(KeyHash(crate::hash::mix(scope)), RateOf::NewKeysOfScope)
                .unwrap_or_default();
        }
        assert!(scopes.buckets.len() <= 2 * KEPT_MAX, "{}", scopes.buckets.len());
    }
}
