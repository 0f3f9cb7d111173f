//! Barriers: that stores of one thread and loads of it, in this order, are seen in this order by another one, which does
//! the like.
//!
//! One of the two runs often and the other one seldom. With `membarrier(2)` the seldom one makes the barrier of all
//! threads of the process, wherever they are, and the frequent one none: it only keeps the compiler from changing the
//! order. Without it (other systems, old kernels, sandboxes that forbid the call, Miri) both make their own.

use std::sync::atomic::{Ordering, compiler_fence, fence};

/// Whether [`all`] is a barrier of every thread, so that [`own`] need be none. It stays as it is.
#[cfg(all(target_os = "linux", not(miri)))]
pub(super) fn is_for_all() -> bool {
    use std::sync::LazyLock;

    use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

    static IS_FOR_ALL: LazyLock<bool> = LazyLock::new(|| {
        membarrier_query().contains(MembarrierQuery::PRIVATE_EXPEDITED)
            && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok()
            && membarrier(MembarrierCommand::PrivateExpedited).is_ok()
    });
    *IS_FOR_ALL
}

#[cfg(not(all(target_os = "linux", not(miri))))]
pub(super) fn is_for_all() -> bool {
    false
}

/// The barrier of the thread that runs often.
#[inline(always)]
pub(super) fn own(is_made: bool) {
    if is_made { fence(Ordering::SeqCst) } else { compiler_fence(Ordering::SeqCst) }
}

/// The barrier of the thread that runs seldom. Whether it was made: the system may refuse it, if somebody has forbidden
/// the call since.
pub(super) fn all() -> bool {
    fence(Ordering::SeqCst);
    #[cfg(all(target_os = "linux", not(miri)))]
    if is_for_all() {
        use rustix::thread::{MembarrierCommand, membarrier};
        return membarrier(MembarrierCommand::PrivateExpedited).is_ok();
    }
    true
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32};

    use crossbeam_utils::CachePadded;

    use super::*;
    use crate::hash::mix;

    /// Each of two threads stores to its own line and then loads the other's. Without the barrier both miss what the other one
    /// has stored, one time in some hundreds: stores wait in the processor while loads go by.
    #[test]
    fn one_of_two_threads_sees_the_other() {
        let rounds: u32 = if cfg!(miri) { 200 } else { 20_000 };
        let line = || CachePadded::new(AtomicU32::new(0));
        let (stored, began, ended) = ([line(), line()], [line(), line()], [line(), line()]);
        let (saw_none, blind) = (AtomicU32::new(0), AtomicU32::new(0));
        let (makes_barriers, is_made) = (!is_for_all(), AtomicBool::new(true));
        let meet = |lines: &[CachePadded<AtomicU32>; 2], me: usize, round| {
            lines[me].store(round, Ordering::SeqCst);
            for looks in 0.. {
                if lines[1 - me].load(Ordering::SeqCst) >= round {
                    break;
                }
                if looks < 10_000 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        };
        let run = |me: usize| {
            for round in 1..=rounds {
                meet(&began, me, round);
                // Neither is always the first one.
                for _ in 0..mix(u64::from(round) << 1 | me as u64) % 32 {
                    std::hint::spin_loop();
                }
                stored[me].store(round, Ordering::Relaxed);
                if me == 0 {
                    own(makes_barriers)
                } else {
                    assert!(all(), "it was made before")
                }
                if stored[1 - me].load(Ordering::Relaxed) < round {
                    saw_none.fetch_add(1, Ordering::SeqCst);
                }
                meet(&ended, me, round);
                if me == 0 && saw_none.swap(0, Ordering::SeqCst) == 2 {
                    // Not yet: the other one would wait for ever.
                    blind.fetch_add(1, Ordering::SeqCst);
                }
            }
        };
        std::thread::scope(|scope| {
            scope.spawn(|| run(0));
            run(1);
        });
        assert!(is_made.into_inner());
        assert_eq!(blind.into_inner(), 0, "of {rounds} rounds");
    }
}
