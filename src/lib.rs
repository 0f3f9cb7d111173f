//! An embedded dedupe store: *has this piece of work been claimed, finished, or never seen?*
//!
//! Distributed systems deliver work at least once. Claim a key before a side effect, complete it
//! with the outcome after it, and every retry gets the original bytes back, without a network round
//! trip and across restarts.
//!
//! ```
//! use refrain::{Claim, Store};
//!
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path();
//! let store = Store::open(path)?; // Every change survives power loss when its call returns.
//! let payments = store.namespace("payments")?;
//!
//! match payments.claim("order-17", None)? {
//!     Claim::Acquired(lease) => {
//!         // Hand `lease.token()` to whoever carries out the side effect; then:
//!         lease.complete("receipt 17")?;
//!     }
//!     Claim::Completed(outcome) => println!("done before: {:?}", outcome.body()),
//!     Claim::InProgress(other) => println!("retry in {:?}", other.lease_left()),
//!     Claim::Mismatch(_) => println!("this key was used for another payload"),
//!     Claim::Parked(_) => println!("begun once, outcome unknown: somebody must decide"),
//!     Claim::InDoubt(_) => println!("the store was damaged, and may have forgotten this key"),
//!     _ => unreachable!("no other answer in this version"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it is not for
//!
//! It does not keep others from acting: an owner can be paused past its lease, and what protects the
//! side effect then is its [`FencingToken`], refused by the system that carries it out. It has one
//! opener at a time, on one machine. It is no cache: a live entry is never dropped to make room.
//!
//! # The tour
//!
//! * [`Store`] is opened with [`Options`]; [`Namespace`]s are sets of keys under a [`Policy`].
//! * [`Namespace::claim`] answers a [`Claim`]; a granted one holds a [`Lease`], which is renewed,
//!   completed, released or parked. The same calls exist on the namespace, by key and token.
//! * [`Lease::lost`] tells its owner that a lease is lost, and a [`Renewer`] renews it while the work goes on.
//! * [`PartsKey`] makes keys of several parts, and keys of the steps within a piece of work.
//! * [`Namespace::claim_batch`] and its siblings take several keys in one call.
//! * [`Namespace::once`] marks a key before the work, at most once; [`Namespace::lookup`] changes
//!   nothing.
//! * [`Store::orphans`], [`Namespace::resolve`] and [`Namespace::forget`] are for operators.
//! * [`Store::verify`] checks a store without a write; [`Store::salvage`] copies what is left of a
//!   damaged one, and keys that may have been lost are in doubt until the [`Gap`] is over.
//! * Each call that waits has an `_async` form, which gives a [`Commit`] for any executor.
//!
//! # Consistency
//!
//! Calls on one key take effect one after the other, in an order that agrees with the order in which
//! they return. A batch of keys is not a transaction. [`Lookup`]s and claims of completed keys show
//! an outcome only once it is as durable as it was asked to be.
//!
//! # Durability
//!
//! [`Durability::Sync`], the default, acknowledges a change when it survives power loss; calls that
//! come together share a sync. [`Durability::Buffered`] and [`Durability::Interval`] acknowledge it
//! when it survives the end of the process. After the first failed sync the store is *poisoned*:
//! nothing more is acknowledged until it is opened again.
//!
//! # Cost
//!
//! A claim locks one of 64 shards, reads one bucket of 64 bytes and appends one record; a duplicate
//! reads the bucket and the record. The table takes about 14 bytes an entry, in arrays that double;
//! keys and outcomes lie in mapped files. Opening reads the whole WAL.
//!
//! # Features
//!
//! None by default. `json` makes fingerprints of JSON payloads however they are written (`JsonFields`), `blake3` makes them
//! with that digest (`Fingerprint::of_blake3`). `uuid` takes the time of a request from a UUID of version 7 (`Namespace::claim_uuid`). `rate-limit` limits how many new keys, and how many differing fingerprints, a namespace or
//! a scope is served in a time (`Store::limit_rates`). `cli` builds the command `refrain`, and changes nothing in the library.
//! `test-util` adds a clock that tests move by hand (`testing::SimClock`).
//!
//! The state table, the format, clocks and decisions are in the repository under `docs/`.

mod admission;
mod answer;
mod by_hand;
#[cfg(feature = "json")]
mod canonical;
mod checksum;
mod chunked;
mod claim;
mod commit;
mod engine;
mod erasure;
mod error;
mod fence;
mod format;
mod handle;
mod hash;
mod health;
mod held;
mod key;
mod lease;
mod limits;
mod lost;
mod namespace;
mod options;
mod policy;
#[cfg(feature = "rate-limit")]
mod rates;
mod renewer;

mod report;
mod request;
mod stats;
mod store;
mod sys;
mod table;
#[cfg(feature = "test-util")]
pub mod testing;
mod types;
#[cfg(feature = "uuid")]
mod uuids;
mod wait;
mod wal;
mod wheel;

pub use admission::{Admitted, FenceError};
pub use answer::{
    Acceptance, Body, BodyKept, Completion, EndCause, First, Gap, InProgress, KeyState, Lapsed,
    Lookup, Mismatch, Once, Orphan, Outcome, OutcomeRef, OutsideWindow, Parked, Previous, Renewed,
};
#[cfg(feature = "json")]
pub use canonical::{JsonError, JsonFields};
pub use claim::Claim;
pub use commit::Commit;
pub use erasure::{Erasable, Erased, Erasure};
pub use error::{
    ClaimError, CloseError, CompleteError, EraseError, Failure, ForgetError, GapError, LeaseError,
    NamespaceError, OpenError, OptionProblem, ResolveError, SalvageError, StoreError, WaitError,
};
pub use fence::FenceGuard;
pub use health::{Health, Serving};
pub use key::PartsKey;
pub use lease::{Lease, LeaseEnd};
pub use limits::{QuotaExceeded, QuotaLevel, QuotaOf, TooManyWaiters, WaiterScope};
pub use lost::{LeaseLost, Lost};
pub use namespace::Namespace;
pub use options::{Durability, Options};
pub use policy::{
    DEDUPE_TTL_MAX, FingerprintRule, LEASE_MIN, OnLeaseEnd, OnOrphan, Policy, PolicyProblem, Quota,
    RefreshOnHit,
};
#[cfg(feature = "rate-limit")]
pub use rates::{Rate, RateExceeded, RateOf, Rates};
pub use renewer::{Renewer, RenewerThread, Renewing};
pub use report::{Damage, RecoveryReport, SalvageReport, TornTail};
pub use request::{ClaimOptions, CompleteOptions, Resolution};
pub use stats::{CallCounts, NamespaceStats, StoreStats, Usage};
pub use store::Store;
pub use types::{
    BODY_BYTES_MAX, FencingToken, Fingerprint, KEY_BYTES_MAX, NAME_BYTES_MAX, OwnerId, Reference,
    SCOPE_BYTES_MAX,
};
pub use wait::{ClaimWait, HeldWait};

/// The examples of the README are compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
