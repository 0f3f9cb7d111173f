//! Numbers about a store, as plain data.

use crate::engine::Engine;

/// Sizes and counts of a store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct StoreStats {
    /// Keys in the table. Those whose time is over are still counted.
    pub entries: usize,
    /// Bytes of the tables in memory.
    pub table_bytes: usize,
    /// Bytes of the segments that hold records.
    pub wal_bytes: u64,
    /// Bytes of all data files.
    pub disk_bytes: u64,
    /// Bytes kept free so that every unfinished claim can be completed.
    pub reserved_bytes: u64,
    /// Lease handles that exist.
    pub leases: usize,
    /// Rounds of group commit that have ended.
    pub rounds: u64,
}

impl StoreStats {
    pub(crate) fn of(engine: &Engine) -> Self {
        // A forked child has no store, and no say in its locks.
        if engine.is_child() {
            return Self::default();
        }
        let (entries, table_bytes) = engine.table_sizes();
        let (disk_bytes, wal_bytes) = engine.wal.sizes();
        Self {
            entries,
            table_bytes,
            wal_bytes,
            disk_bytes,
            reserved_bytes: engine.wal.supply().held,
            leases: engine.leases(),
            rounds: engine.wal.rounds.completed(),
        }
    }
}
