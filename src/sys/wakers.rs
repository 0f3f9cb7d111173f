//! Waking tasks: foreign code, which may do anything, panic too.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::task::Waker;

/// Wakes them all, with no lock held. A waker that panics keeps nobody behind it from being woken, nor whoever calls it from his
/// work: that task's executor is broken, and nobody else's.
pub(crate) fn wake_all(wakers: impl IntoIterator<Item = Waker>) {
    for waker in wakers {
        let woken = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        // What it panicked with is foreign, too: so much is lost.
        woken.unwrap_or_else(std::mem::forget);
    }
}
