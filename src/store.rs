//! The store as its users hold it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::answer::{Gap, Orphan};
use crate::engine::namespaces::{NamespaceState, Wanted};
use crate::erasure::Erasure;
use crate::error::{CloseError, Failure, GapError, NamespaceError, StoreError};
use crate::fence::FenceGuard;
use crate::handle::{Handle, Space};
use crate::health::Health;
use crate::limits::QuotaLevel;
use crate::namespace::Namespace;
use crate::policy::{LEASE_MIN, Policy, Quota, RefreshOnHit};
#[cfg(feature = "rate-limit")]
use crate::rates::Rates;
use crate::report::RecoveryReport;
use crate::stats::StoreStats;

/// What names of namespaces begin with whose keys are resources, and whose completions are fences.
const FENCES: &str = "refrain.fences/";

/// An open store. Cheap to clone; clones are the same store, from any thread.
///
/// The store holds an exclusive lock on its directory until it is closed, or until its last clone
/// and its last lease are gone; and as long as an outcome with a large body is kept ([`crate::Outcome`]). Dropping it does what [`Store::close`] does, silently.
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

impl Store {
    pub(crate) fn new(handle: Arc<Handle>) -> Self {
        Self { handle }
    }

    /// The namespace `name`. One that is new gets the default policy, until the first
    /// [`Store::define`] replaces it; it survives power loss when this returns.
    ///
    /// # Errors
    ///
    /// A name of no or more than 255 bytes; whatever any call can fail with.
    pub fn namespace(&self, name: &str) -> Result<Namespace, NamespaceError> {
        self.ensure(name, Wanted::Any)
    }

    /// The namespace `name` with this policy. The policy survives power loss when this returns.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::PolicyConflict`] when it was defined with another policy;
    /// [`NamespaceError::Policy`] when the policy cannot be.
    pub fn define(&self, name: &str, policy: &Policy) -> Result<Namespace, NamespaceError> {
        self.ensure(name, Wanted::Defined(&policy.in_whole_ms()))
    }

    /// Changes the policy of a namespace that exists. What is in the store keeps its deadlines and
    /// the rules it was made under. The policy survives power loss when this returns.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::UnknownName`]; [`NamespaceError::Policy`] when the policy cannot be.
    pub fn alter(&self, name: &str, policy: &Policy) -> Result<Namespace, NamespaceError> {
        self.ensure(name, Wanted::Altered(&policy.in_whole_ms()))
    }

    /// Limits a namespace that exists: how many keys it may have, bytes of their records, unfinished claims, and calls that wait. The
    /// newest claim is refused then ([`crate::ClaimError::QuotaExceeded`]); nothing that was granted is. What there is
    /// already stays, and counts. In force, and surviving power loss, when this returns; a quota without limits lifts it.
    ///
    /// The first quota of a namespace reads every record of the store, shard by shard, and so does opening a store in which
    /// a namespace has one. A claim in it changes a sum that all claims of the namespace share.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::UnknownName`], [`NamespaceError::Reserved`]; [`NamespaceError::TooMany`] when there is no room to write it down;
    /// whatever any call can fail with.
    pub fn limit(&self, name: &str, quota: &Quota) -> Result<(), NamespaceError> {
        if name.starts_with(FENCES) {
            return Err(NamespaceError::Reserved { prefix: FENCES });
        }
        self.handle.limit(name, QuotaLevel::Namespace, &quota.as_stored())
    }

    /// Limits each scope of a namespace by itself ([`Namespace::scoped`]), as [`Store::limit`] does the namespace; keys without a
    /// scope are not limited by it. A claim takes a lock that all claims in scopes of the namespace share, and what is
    /// removed because its time is over is read again, for its scope. Scopes that have nothing take no memory.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::UnknownName`], [`NamespaceError::Reserved`]; [`NamespaceError::TooMany`] when there is no room to write it down;
    /// whatever any call can fail with.
    pub fn limit_scopes(&self, name: &str, quota: &Quota) -> Result<(), NamespaceError> {
        if name.starts_with(FENCES) {
            return Err(NamespaceError::Reserved { prefix: FENCES });
        }
        self.handle.limit(name, QuotaLevel::Scope, &quota.as_stored())
    }

    /// Limits how often a namespace that exists is granted new keys, or told that a fingerprint differs: by all, and in each
    /// scope. What comes too often is refused ([`crate::ClaimError::RateExceeded`], with the time after which it may come
    /// again); answers about keys that are known, and whatever ends, renews or takes over a claim, are free. In force when this returns; rates without limits lift them.
    ///
    /// Rates are the process's: they are not written to the disk, and their buckets are full when they are set. Rates that are
    /// set again as they are leave them as they are. Needs the feature `rate-limit`.
    ///
    /// # Errors
    ///
    /// [`NamespaceError::UnknownName`], [`NamespaceError::Reserved`]; a store that is closed.
    #[cfg(feature = "rate-limit")]
    pub fn limit_rates(&self, name: &str, rates: &Rates) -> Result<(), NamespaceError> {
        if name.starts_with(FENCES) {
            return Err(NamespaceError::Reserved { prefix: FENCES });
        }
        self.handle.limit_rates(name, rates)
    }

    /// The guard `name`, by which a sink refuses tokens that are older than the newest one of their resource ([`FenceGuard`]). It remembers
    /// what was admitted for `retention`, up to thirty years; what was admitted before this call, for as long as was said then. Like a namespace it survives
    /// power loss when this returns, and has names of 1 to 240 bytes.
    ///
    /// # Errors
    ///
    /// A name or a retention that cannot be; whatever any call can fail with.
    pub fn fence_guard(
        &self,
        name: &str,
        retention: Duration,
    ) -> Result<FenceGuard, NamespaceError> {
        if name.is_empty() {
            return Err(NamespaceError::NameLength { len: 0 });
        }
        let policy = Policy::default().lease(LEASE_MIN).replay_ttl(Duration::ZERO);
        // Fences are written again, as what is refreshed is: versions that do not know that refuse the store.
        let policy = policy.dedupe_ttl(retention).refresh_on_hit(RefreshOnHit::BelowHalf);
        let (name, policy) = (format!("{FENCES}{name}"), policy.in_whole_ms());
        let state = match self.state(&name, Wanted::Defined(&policy)) {
            Err(NamespaceError::PolicyConflict { .. }) => {
                self.state(&name, Wanted::Altered(&policy))?
            }
            other => other?,
        };
        Ok(FenceGuard::new(Space::share(Arc::clone(&self.handle), state)))
    }

    fn ensure(&self, name: &str, wanted: Wanted<'_>) -> Result<Namespace, NamespaceError> {
        if name.starts_with(FENCES) {
            return Err(NamespaceError::Reserved { prefix: FENCES });
        }
        Ok(Namespace::new(Arc::clone(&self.handle), self.state(name, wanted)?))
    }

    fn state(&self, name: &str, wanted: Wanted<'_>) -> Result<Arc<NamespaceState>, NamespaceError> {
        let engine = &self.handle;
        engine.check_open()?;
        engine.namespaces.ensure(&engine.wal, name, wanted, || engine.timeline.now())
    }

    /// The names of all namespaces, sorted. Guards are not among them.
    #[must_use]
    pub fn namespaces(&self) -> Vec<String> {
        let mut names = self.handle.namespaces.names();
        names.retain(|name| !name.starts_with(FENCES));
        names
    }

    /// Unfinished claims of processes that are gone, by token. They were orphaned by the end of the
    /// process that had the store open; what happens to them is [`crate::OnOrphan`]'s.
    ///
    /// Reads every unfinished entry.
    ///
    /// # Errors
    ///
    /// What any call can fail with.
    pub fn orphans(&self) -> Result<Vec<Orphan>, StoreError> {
        self.handle.orphans(None, &[])
    }

    /// The gaps of a salvaged store, those that are over or accepted too; see [`Gap`].
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        self.handle.gaps.list()
    }

    /// What was erased ([`crate::Namespace::erase_all`]), by whom and why, the latest last. A call that was not over in time is there, too.
    #[must_use]
    pub fn erasures(&self) -> Vec<Erasure> {
        self.handle.erasures()
    }

    /// Ends the gap of this number: no key is in doubt for it any more, and keys of which nothing is
    /// known are new. Who says so and why, at most 255 bytes each, is written down with it. That it
    /// is accepted survives power loss when this returns. A gap that was accepted before stays as
    /// it was accepted.
    ///
    /// # Errors
    ///
    /// [`GapError::UnknownGap`]; [`GapError::TextLength`].
    pub fn accept_gap(&self, id: u32, reason: &str, actor: &str) -> Result<(), GapError> {
        self.handle.accept_gap(id, reason, actor)
    }

    /// Makes everything acknowledged so far survive power loss, in any mode.
    ///
    /// # Errors
    ///
    /// [`StoreError::Poisoned`] when a sync failed.
    pub fn flush(&self) -> Result<(), StoreError> {
        self.handle.flush()
    }

    /// Does what the maintenance thread does: leads rounds for futures, makes those that are due,
    /// purges, recycles and compacts, grows ahead. Begins nothing more once it has worked for
    /// `budget`; a round, a piece of a new file and the emptying of a thousand entries of a segment are not interrupted.
    /// Gives the time until there may be more to do; `None`: not before something is changed.
    ///
    /// For stores opened with [`crate::Options::manual_maintenance`]; harmless on others.
    pub fn maintain(&self, budget: Duration) -> Option<Duration> {
        self.handle.maintain(budget).time()
    }

    /// Closes the store for all its handles: every call on them answers [`StoreError::Closed`] from
    /// now on. Everything acknowledged is durable when this returns without an error, and the
    /// directory is free for the next open when it returns, unless somebody keeps an outcome with a large body
    /// ([`crate::Outcome`]): then it is when he lets go of it.
    ///
    /// # Errors
    ///
    /// [`CloseError::LeasesHeld`]: complete, release, park or drop them first; the store stays
    /// open. [`CloseError::Store`]: the store is closed, but could not do so in order; the next
    /// open recovers.
    pub fn close(&self) -> Result<(), CloseError> {
        self.handle.close()?;
        self.handle.stop_thread();
        Ok(())
    }

    /// What opening the store found and did.
    #[must_use]
    pub fn report(&self) -> &RecoveryReport {
        self.handle.report()
    }

    /// The failure that poisoned the store, if one did.
    #[must_use]
    pub fn poisoned(&self) -> Option<Arc<Failure>> {
        self.handle.wal.poison.cause().cloned()
    }

    /// Whether the store serves, and what it would suffer from first, as it is now. Writes nothing: [`Store::flush`] does, and
    /// says whether the disk still takes it.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::of(&self.handle, self.report())
    }

    /// Sizes and counts, as they are now. Locks one shard after the other.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        StoreStats::of(&self.handle)
    }

    /// [`Store::stats`] without what takes a look at every table, which is 0.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    #[must_use]
    pub fn counts(&self) -> StoreStats {
        StoreStats::without_tables(&self.handle)
    }

    /// Ends the store as a killed process would: nothing more is written, and the lock falls.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    pub fn abandon(self) {
        self.handle.stop_thread();
        self.handle.abandon();
    }

    /// Calls `during` with every shard locked.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    pub fn with_shards_locked<T>(&self, during: impl FnOnce() -> T) -> T {
        self.handle.with_shards_locked(during)
    }

    /// Checks the tables against the WAL, and panics if they disagree. Reads every record.
    ///
    /// # Errors
    ///
    /// [`StoreError::Corrupt`] when a record cannot be read.
    #[cfg(feature = "test-util")]
    #[doc(hidden)]
    pub fn check_invariants(&self) -> Result<(), StoreError> {
        self.handle.check_invariants()
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("epoch", &self.handle.report().epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::thread;

    use super::*;
    use crate::options::Options;
    use crate::sys::heap::HeapFs;
    use crate::sys::pin::Pin;
    use crate::sys::sim::{Fault, SimDisk};
    use crate::sys::sim_clock::SimClock;
    use crate::types::SegmentId;

    /// Whoever has pinned may have found a location, and looks for its segment next.
    #[test]
    fn a_segment_is_there_while_somebody_may_have_a_location_in_it() {
        let (clock, second) = (SimClock::new(), Duration::from_secs(1));
        let options = Options::in_memory().segment_bytes(256 << 10).clock(clock.clone());
        let store = options.manual_maintenance(true).open().unwrap();
        let policy = Policy::default().lease(second).late_grace(second);
        let policy = policy.replay_ttl(second).dedupe_ttl(second);
        let space = store.define("space", &policy).unwrap();
        let lease = space.claim("a", None).unwrap().acquired().unwrap();
        lease.complete("outcome").unwrap();
        let segments = |pin: &Pin| -> BTreeSet<u32> {
            let is_there = |id: &u32| store.handle.wal.segments.get(SegmentId(*id), pin).is_some();
            (0..64).filter(is_there).collect()
        };
        let maintain = || {
            let maintained = || {
                for _ in 0..4 {
                    clock.advance(6 * second);
                    store.maintain(Duration::MAX);
                }
            };
            thread::scope(|scope| scope.spawn(maintained).join().unwrap());
        };
        let pin = Pin::new();
        let before = segments(&pin);
        maintain();
        assert_eq!(store.stats().recycled, 0, "{:?}", store.stats());
        assert!(segments(&pin).is_superset(&before), "{:?} of {before:?}", segments(&pin));
        drop(pin);
        maintain();
        assert!(store.stats().recycled > 0, "{:?}", store.stats());
    }

    /// A round has a leader, who is about to read the clock; maintenance finds meanwhile that a
    /// segment has had its time, and asks for a mark that says so. It gets one that does.
    #[test]
    fn a_mark_that_is_asked_for_tells_the_time_of_who_asked() {
        let options = Options::new("unused").file_system(HeapFs::new()).clock(SimClock::new());
        let store = options.segment_bytes(256 << 10).manual_maintenance(true).open().unwrap();
        store.flush().unwrap();
        let (wal, timeline) = (&store.handle.wal, &store.handle.timeline);
        wal.want_mark();
        let early = timeline.now();
        let read_late = || {
            wal.want_mark();
            early
        };
        wal.sync_round(read_late).unwrap();
        assert!(!wal.is_proven(), "the mark tells of a time before");
        wal.sync_round(|| timeline.now()).unwrap();
        assert!(wal.is_proven());
    }

    /// Those who wait for keys are told by the store's thread, which sleeps.
    #[test]
    fn a_write_or_sync_that_fails_calls_the_thread() {
        for operation in ["write", "sync"] {
            let disk = SimDisk::new(1);
            let options = Options::new("unused").file_system(disk.mount()).clock(SimClock::new());
            let store = options.segment_bytes(256 << 10).manual_maintenance(true).open().unwrap();
            let space = store.define("space", &Policy::default()).unwrap();
            let _held = space.claim("key", None).unwrap();
            store.maintain(Duration::MAX);
            let background = &store.handle.background;
            assert!(!background.is_wanted(), "{operation}");
            let error = std::io::ErrorKind::Other;
            disk.fail(Fault { operation, after: 0, times: 1, error });
            space.claim("another", None).unwrap_err();
            assert!(background.is_wanted(), "{operation}");
        }
    }
}
