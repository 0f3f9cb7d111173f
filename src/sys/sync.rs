//! The one door to locks, condition variables and atomics, which is where threads meet: an explorer of
//! schedules can stand in for the real ones, loom under `--cfg loom` and shuttle under `--cfg shuttle`.
//!
//! What is about memory alone (`pin`, `extent`, `region`) has the real ones in any case: neither explorer
//! sees the bytes of a mapping, nor crossbeam's epochs. Miri and ThreadSanitizer do.

#[cfg(not(any(loom, shuttle)))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::hint::spin_loop;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::atomic;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::thread::{sleep, yield_now};

#[cfg(any(loom, shuttle))]
pub(crate) use super::explored::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, atomic, sleep, spin_loop, yield_now,
};
