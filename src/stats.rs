//! Numbers about a store, as plain data.

use std::time::Duration;

use crate::engine::Engine;
use crate::engine::events::Event;
use crate::engine::namespaces::NamespaceState;
use crate::sys::sync::atomic::{AtomicU64, Ordering};

/// Sizes and counts of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StoreStats {
    /// Keys in the table. Those whose time is over are counted until their segment is recycled.
    pub entries: usize,
    /// Bytes of the tables in memory.
    pub table_bytes: usize,
    /// Bytes of the segments that hold records, or are being recycled.
    pub wal_bytes: u64,
    /// Bytes of the records in them.
    pub record_bytes: u64,
    /// Bytes of all data files.
    pub disk_bytes: u64,
    /// Bytes kept free so that every unfinished claim can be completed.
    pub reserved_bytes: u64,
    /// Lease handles that exist.
    pub leases: usize,
    /// Calls that wait for a key, see [`crate::Namespace::claim_or_wait`].
    pub waiters: usize,
    /// Lanes of the WAL in use, see [`crate::Options::lanes`].
    pub lanes: usize,
    /// Rounds of group commit that have ended.
    pub rounds: u64,
    /// Since the store was opened: keys that were removed because their time was over.
    pub purged: u64,
    /// Records that were copied, to be kept when their segment was recycled.
    pub copied: u64,
    /// Segments that were recycled.
    pub recycled: u64,
    /// Calls that found no room prepared, and made a data file or waited for one.
    pub room_waits: u64,
    /// The most keys that were looked at for that while a lock was held.
    pub purge_hold_keys_max: u64,
    /// The longest that a lock was held for that.
    pub purge_hold_max: Duration,
    /// What calls were answered, and what became of keys, in all namespaces.
    pub calls: CallCounts,
}

/// Numbers about one namespace. From [`crate::Namespace::stats`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct NamespaceStats {
    /// What calls were answered, and what became of keys.
    pub calls: CallCounts,
    /// Calls that wait for a key of it, see [`crate::Namespace::claim_or_wait`].
    pub waiters: usize,
    /// What there is of it, or of the scope that was asked for, if that has a quota: it is counted then. The other numbers are the
    /// namespace's.
    pub usage: Option<Usage>,
}

/// What there is of a namespace, as its quota counts it ([`crate::Quota`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Usage {
    /// Keys.
    pub keys: u64,
    /// Bytes of the current records of its keys.
    pub bytes: u64,
    /// Unfinished claims.
    pub in_flight: u64,
}

impl NamespaceStats {
    /// With what there is of this scope, in place of the namespace, if one is given: what stands in front of its keys.
    pub(crate) fn of(namespace: &NamespaceState, scope: &[u8]) -> Self {
        let (quota, used) = match scope {
            [] => (namespace.meter.quota(), namespace.meter.used()),
            _ => (namespace.scope_meters.quota(), namespace.scope_meters.used(scope)),
        };
        let is_metered = !quota.is_none();
        let usage = || {
            let [keys, bytes, in_flight] = used.0;
            Usage { keys, bytes, in_flight }
        };
        Self {
            calls: CallCounts::of(namespace),
            waiters: namespace.waiters.load(Ordering::Relaxed),
            usage: is_metered.then(usage),
        }
    }
}

/// What calls were answered, and what became of keys, since the store was opened.
///
/// Always counted, each thread for itself, so that a call writes no line for it that another thread
/// writes. Exact, but for calls that are under way. A call whose answer waits for the disk is counted before the wait; one that
/// failed with [`crate::StoreError`] is not, unless that came while it waited, or while its outcome was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct CallCounts {
    /// Claims that were granted, those that took a key over among them.
    pub granted: u64,
    /// Keys that `once` has marked as done: [`crate::Once::First`].
    pub marked: u64,
    /// Claims and marks among these that took over from a claim whose lease had ended.
    pub taken_over: u64,
    /// Those that took over from a claim of a process that is gone.
    pub taken_over_orphaned: u64,
    /// Claims by which an owner resumed what he holds; not among those that were granted.
    pub resumed: u64,
    /// Claims and marks of a key that was completed.
    pub replayed: u64,
    /// Those of a key that somebody holds. A call that waits is counted here once, and by what it is answered in the end.
    pub in_progress: u64,
    /// Those that were answered that the key has another fingerprint.
    pub mismatches: u64,
    /// Fingerprints that differed, under [`crate::FingerprintRule::Count`] too.
    pub differing_fingerprints: u64,
    /// Claims and marks of a key that is parked.
    pub parked: u64,
    /// Those of a key that is in doubt ([`crate::Gap`]).
    pub in_doubt: u64,
    /// Those of requests from outside the window.
    pub outside_window: u64,
    /// Those that were refused for want of room.
    pub refused_full: u64,
    /// Those that were refused because of the namespace's quota, or of their scope's ([`crate::Store::limit`], [`crate::Store::limit_scopes`]).
    pub refused_quota: u64,
    /// Those that were refused because they came too often (`Store::limit_rates`).
    #[cfg(feature = "rate-limit")]
    pub refused_rate: u64,
    /// Those that were granted when four fifths of a quota were used, or more: a warning before there are refusals.
    pub granted_near_quota: u64,
    /// Claims that their owners have completed; a completion that is repeated is not counted again.
    pub completed: u64,
    /// Claims that their owners have given back.
    pub released: u64,
    /// Claims that their owners have parked.
    pub left_parked: u64,
    /// Renewals.
    pub renewed: u64,
    /// Completions, releases, renewals, and keys parked by their owners, that came behind the end of the lease.
    pub late: u64,
    /// Owners who were refused because of a newer token.
    pub fenced: u64,
    /// Claims that were resolved.
    pub resolved: u64,
    /// Keys that were forgotten by hand.
    pub forgotten: u64,
    /// Completed keys that were removed because their time was over. Keys are removed when their segment is recycled: what has expired
    /// may be counted later, and what expired while the store was closed is in [`crate::RecoveryReport::expired`].
    pub expired: u64,
    /// Unfinished claims that were removed: their lease ended, nobody took them over, and their grace is over.
    pub expired_unfinished: u64,
}

impl CallCounts {
    pub(crate) fn of(namespace: &NamespaceState) -> Self {
        let counts = namespace.tally.read();
        let of = |event: Event| counts[event as usize];
        Self {
            granted: of(Event::Granted),
            marked: of(Event::Marked),
            taken_over: of(Event::TakenOver),
            taken_over_orphaned: of(Event::TakenOverOrphaned),
            resumed: of(Event::Resumed),
            replayed: of(Event::Replayed),
            in_progress: of(Event::InProgress),
            mismatches: of(Event::Mismatch),
            differing_fingerprints: of(Event::Differs),
            parked: of(Event::Parked),
            in_doubt: of(Event::InDoubt),
            outside_window: of(Event::OutsideWindow),
            refused_full: of(Event::Full),
            refused_quota: of(Event::OverQuota),
            #[cfg(feature = "rate-limit")]
            refused_rate: of(Event::OverRate),
            granted_near_quota: of(Event::NearQuota),
            completed: of(Event::Completed),
            released: of(Event::Released),
            left_parked: of(Event::LeftParked),
            renewed: of(Event::Renewed),
            late: of(Event::Late),
            fenced: of(Event::Fenced),
            resolved: of(Event::Resolved),
            forgotten: of(Event::Forgotten),
            expired: of(Event::Expired),
            expired_unfinished: of(Event::ExpiredUnfinished),
        }
    }

    /// Claims and marks of keys that were known: replayed, in progress, parked, or with another fingerprint.
    #[must_use]
    pub fn duplicates(&self) -> u64 {
        self.replayed + self.in_progress + self.parked + self.mismatches
    }

    /// Replayed ones among those that were answered for good, from 0 to 1; `None`: there were none.
    #[must_use]
    pub fn replay_rate(&self) -> Option<f64> {
        let answered = self.granted + self.marked + self.replayed;
        (answered > 0).then(|| self.replayed as f64 / answered as f64)
    }

    fn add(self, other: Self) -> Self {
        Self {
            granted: self.granted + other.granted,
            marked: self.marked + other.marked,
            taken_over: self.taken_over + other.taken_over,
            taken_over_orphaned: self.taken_over_orphaned + other.taken_over_orphaned,
            resumed: self.resumed + other.resumed,
            replayed: self.replayed + other.replayed,
            in_progress: self.in_progress + other.in_progress,
            mismatches: self.mismatches + other.mismatches,
            differing_fingerprints: self.differing_fingerprints + other.differing_fingerprints,
            parked: self.parked + other.parked,
            in_doubt: self.in_doubt + other.in_doubt,
            outside_window: self.outside_window + other.outside_window,
            refused_full: self.refused_full + other.refused_full,
            refused_quota: self.refused_quota + other.refused_quota,
            #[cfg(feature = "rate-limit")]
            refused_rate: self.refused_rate + other.refused_rate,
            granted_near_quota: self.granted_near_quota + other.granted_near_quota,
            completed: self.completed + other.completed,
            released: self.released + other.released,
            left_parked: self.left_parked + other.left_parked,
            renewed: self.renewed + other.renewed,
            late: self.late + other.late,
            fenced: self.fenced + other.fenced,
            resolved: self.resolved + other.resolved,
            forgotten: self.forgotten + other.forgotten,
            expired: self.expired + other.expired,
            expired_unfinished: self.expired_unfinished + other.expired_unfinished,
        }
    }
}

impl StoreStats {
    pub(crate) fn of(engine: &Engine) -> Self {
        // A forked child has no store, and no say in its locks.
        if engine.is_child() {
            return Self::default();
        }
        let (entries, table_bytes) = engine.table_sizes();
        Self { entries, table_bytes, ..Self::without_tables(engine) }
    }

    /// All but what takes a look at every table.
    pub(crate) fn without_tables(engine: &Engine) -> Self {
        if engine.is_child() {
            return Self::default();
        }
        let (disk_bytes, wal_bytes) = engine.wal.sizes();
        let (supply, counts) = (engine.wal.supply(), &engine.purge_counts);
        // Relaxed: each is told for itself.
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Self {
            entries: 0,
            table_bytes: 0,
            wal_bytes,
            disk_bytes,
            record_bytes: supply.used_bytes,
            reserved_bytes: supply.held,
            leases: engine.leases(),
            waiters: engine.waiters(),
            lanes: engine.wal.lanes(),
            rounds: engine.wal.rounds.completed(),
            purged: read(&counts.purged),
            copied: read(&counts.copied),
            recycled: read(&counts.recycled),
            room_waits: engine.wal.room_waits(),
            purge_hold_keys_max: read(&counts.hold_slots_max),
            purge_hold_max: Duration::from_nanos(read(&counts.hold_ns_max)),
            calls: engine
                .namespaces
                .all()
                .iter()
                .map(|namespace| CallCounts::of(namespace))
                .fold(CallCounts::default(), CallCounts::add),
        }
    }
}
