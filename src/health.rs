//! Whether a store serves, as plain data.

use std::sync::Arc;
use std::time::Duration;

use crate::answer::Gap;
use crate::engine::Engine;
use crate::error::Failure;
use crate::report::RecoveryReport;

/// Whether calls are answered.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Serving {
    /// They are. A store is never here before its recovery has ended: opening returns then.
    #[default]
    All,
    /// Lookups are, of what was durable; nothing else is until the store is closed and opened again.
    Poisoned(Arc<Failure>),
    /// None is: the store was closed.
    Closed,
    /// None is: this is a forked child of the process that opened the store. Nothing else is told there.
    Forked,
}

/// Whether a store serves, and what it would suffer from first. From [`crate::Store::health`], which may wait for a write or a sync of the store
/// that is under way: give it a thread and a time limit where a disk may hang.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Health {
    /// Whether calls are answered.
    pub serving: Serving,
    /// How long ago the last sync ended that made calls durable; `None`: none has since the store was opened. A store in which nothing
    /// changes needs none: what counts is this together with `has_unsynced`.
    pub sync_age: Option<Duration>,
    /// Whether there is something that the next sync would make durable, or say so of.
    pub has_unsynced: bool,
    /// Gaps of a salvaged store that leave keys in doubt now.
    pub gaps: Vec<Gap>,
    /// What opening the store found and did.
    pub recovery: RecoveryReport,
    /// Bytes of segments that are ready for claims, beyond those that are being filled and what is kept for the ends of claims. With
    /// less than a segment the store must grow soon, and refuses claims if it cannot.
    pub ready_bytes: u64,
    /// Bytes by which the store may still grow ([`crate::Options::max_disk_bytes`]); `None`: as far as the disk goes.
    pub growth_bytes: Option<u64>,
}

impl Health {
    pub(crate) fn of(engine: &Engine, recovery: &RecoveryReport) -> Self {
        if engine.is_child() {
            return Self { serving: Serving::Forked, ..Self::default() };
        }
        let serving = match engine.wal.poison.cause() {
            _ if engine.is_closed() => Serving::Closed,
            Some(cause) => Serving::Poisoned(Arc::clone(cause)),
            None => Serving::All,
        };
        let room = engine.wal.room();
        let has_rounds = engine.has_rounds();
        Self {
            serving,
            sync_age: engine.sync_age(),
            has_unsynced: has_rounds && !engine.wal.is_proven(),
            gaps: engine.lasting_gaps(),
            recovery: recovery.clone(),
            ready_bytes: room.ready_bytes,
            growth_bytes: room.growth_bytes,
        }
    }
}
