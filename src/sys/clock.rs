//! Clocks: the trait, and the operating system's.
//!
//! A clock only reports; what the store makes of it (store time, deadlines, the persisted floor)
//! is `engine::time`.

use std::fmt::Debug;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_getres, clock_gettime};

/// Where the store takes the time from.
pub trait Clock: Send + Sync + Debug {
    /// Nanoseconds since the Unix epoch, as the wall clock has it; zero before 1970.
    fn wall_ns(&self) -> u64;

    /// Nanoseconds of a clock that never goes back.
    fn monotonic_ns(&self) -> u64;

    /// The same clock as its last tick left it: cheaper, never ahead of
    /// [`Clock::monotonic_ns`], behind it by at most [`Clock::coarse_resolution_ns`].
    fn coarse_ns(&self) -> u64;

    /// How far [`Clock::coarse_ns`] can lag, in nanoseconds.
    fn coarse_resolution_ns(&self) -> u64;

    /// Lets so much time pass, or less.
    fn pause(&self, time: Duration) {
        std::thread::sleep(time);
    }
}

/// The operating system's clocks: realtime, monotonic, monotonic-coarse.
#[derive(Debug)]
pub(crate) struct SystemClock {
    resolution_ns: u64,
}

impl SystemClock {
    /// Miri knows no coarse clock.
    const COARSE: ClockId = if cfg!(miri) { ClockId::Monotonic } else { ClockId::MonotonicCoarse };

    pub(crate) fn new() -> Self {
        let resolution_ns = if cfg!(miri) { 0 } else { nanoseconds(clock_getres(Self::COARSE)) };
        Self { resolution_ns }
    }
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    seconds.saturating_mul(1_000_000_000).saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0))
}

impl Clock for SystemClock {
    fn wall_ns(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::Realtime))
    }

    fn monotonic_ns(&self) -> u64 {
        nanoseconds(clock_gettime(ClockId::Monotonic))
    }

    #[inline]
    fn coarse_ns(&self) -> u64 {
        nanoseconds(clock_gettime(Self::COARSE))
    }

    fn coarse_resolution_ns(&self) -> u64 {
        self.resolution_ns
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_coarse_clock_is_never_ahead() {
        let clock = SystemClock::new();
        for _ in 0..1000 {
            let coarse = clock.coarse_ns();
            assert!(coarse <= clock.monotonic_ns());
        }
    }
}
