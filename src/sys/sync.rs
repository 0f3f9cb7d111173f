//! The one door to locks, condition variables and atomics, which is where threads meet: an explorer of
//! schedules can stand in for the real ones, loom under `--cfg loom` and shuttle under `--cfg shuttle`.
//!
//! What is about memory alone (`pin`, `extent`, `region`) has the real ones in any case: neither explorer
//! sees the bytes of a mapping, nor what a barrier of all threads does. Miri and ThreadSanitizer do.

#[cfg(not(any(loom, shuttle)))]
pub(crate) use crossbeam_utils::sync::Unparker;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::hint::spin_loop;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::sync::atomic;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::thread::{sleep, yield_now};

/// For what a thread keeps beyond one schedule of an explorer; held for a few instructions.
pub(crate) use parking_lot::Mutex as PlainMutex;

#[cfg(any(loom, shuttle))]
pub(crate) use super::explored::{
    Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, Unparker, atomic, parker, sleep,
    spin_loop, yield_now,
};

/// What this thread sleeps on until it is woken. Not [`std::thread::park`], which is its user's: a wake-up that was
/// meant for him would be lost here.
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn parker() -> std::rc::Rc<crossbeam_utils::sync::Parker> {
    use crossbeam_utils::sync::Parker;
    use std::rc::Rc;

    thread_local! {
        static PARKER: Rc<Parker> = Rc::new(Parker::new());
    }
    // A thread that ends may have lost its own already.
    PARKER.try_with(Rc::clone).unwrap_or_else(|_| Rc::new(Parker::new()))
}
