//! Numbers about a store, as plain data.

use std::time::Duration;

use crate::engine::Engine;
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
        }
    }
}
