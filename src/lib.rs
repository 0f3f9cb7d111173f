//! refrain
#![warn(missing_docs)]

mod answer;
mod checksum;
mod chunked;
mod claim;
mod commit;
mod engine;
mod error;
mod format;
mod handle;
mod hash;
mod lease;
mod namespace;
mod options;
mod policy;
mod report;
mod request;
mod stats;
mod store;
mod sys;
mod table;
#[cfg(feature = "test-util")]
pub mod testing;
mod types;
mod wal;

pub use answer::{
    Body, BodyKept, Completion, EndCause, First, InProgress, KeyState, Lapsed, Lookup, Mismatch,
    Once, Orphan, Outcome, Parked, Previous, Renewed,
};
pub use claim::Claim;
pub use commit::Commit;
pub use error::{
    ClaimError, CloseError, CompleteError, Failure, ForgetError, LeaseError, NamespaceError,
    OpenError, OptionProblem, ResolveError, StoreError,
};
pub use lease::Lease;
pub use namespace::Namespace;
pub use options::{Durability, Options};
pub use policy::{
    DEDUPE_TTL_MAX, FingerprintRule, LEASE_MIN, OnLeaseEnd, OnOrphan, Policy, PolicyProblem,
};
pub use report::{RecoveryReport, TornTail};
pub use request::{ClaimOptions, CompleteOptions, Resolution};
pub use stats::StoreStats;
pub use store::Store;
pub use types::{
    BODY_BYTES_MAX, FencingToken, Fingerprint, KEY_BYTES_MAX, NAME_BYTES_MAX, Reference,
};
