//! The table: where each key's current record lies, in eight bytes a key.
//!
//! One table serves one shard. It knows hashes, tags and locations; it reads no record, takes no
//! lock, starts no thread and asks no clock. The shard's mutex makes its writers exclusive; readers need
//! none ([`Buckets`]).

mod bucket;
mod buckets;
mod filter;
mod linear;
#[cfg(all(test, any(loom, shuttle)))]
mod schedules;

pub(crate) use bucket::Slot;
pub(crate) use buckets::{Buckets, Route, Sight};
pub(crate) use linear::{Position, Table};
