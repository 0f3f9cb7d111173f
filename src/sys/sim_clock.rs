//! A clock that a test moves by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Clock;

/// A clock that stands still until it is told to move.
///
/// Clones share the time. The wall clock and the monotonic clock move together under
/// [`SimClock::advance`]; [`SimClock::set_wall`] steps the wall clock alone, as an administrator or
/// NTP would.
///
/// ```
/// use refrain::testing::SimClock;
/// use std::time::Duration;
///
/// let clock = SimClock::new();
/// let store = refrain::Options::in_memory().clock(clock.clone()).open()?;
/// let mails = store.namespace("mails")?;
/// let lease = mails.claim("order-17", None)?.acquired().expect("never seen");
/// clock.advance(Duration::from_secs(31)); // The default lease is 30 s.
/// assert!(lease.lease_left().is_zero());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct SimClock {
    shared: Arc<SimTime>,
}

#[derive(Debug)]
struct SimTime {
    wall_ns: AtomicU64,
    monotonic_ns: AtomicU64,
    resolution_ns: AtomicU64,
    /// Added to both clocks at each wall-clock read: how long such a read takes.
    read_ns: AtomicU64,
}

impl SimClock {
    /// A clock that stands at 2026-01-01 00:00:00 UTC.
    #[must_use]
    pub fn new() -> Self {
        Self::at(UNIX_EPOCH + Duration::from_secs(1_767_225_600))
    }

    /// A clock whose wall clock stands at `wall`.
    #[must_use]
    pub fn at(wall: SystemTime) -> Self {
        Self {
            shared: Arc::new(SimTime {
                wall_ns: AtomicU64::new(wall_nanoseconds(wall)),
                monotonic_ns: AtomicU64::new(1_000_000_000),
                resolution_ns: AtomicU64::new(0),
                read_ns: AtomicU64::new(0),
            }),
        }
    }

    /// Moves both clocks on.
    pub fn advance(&self, span: Duration) {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        for clock in [&self.shared.wall_ns, &self.shared.monotonic_ns] {
            let now = clock.load(Ordering::SeqCst);
            clock.store(now.saturating_add(ns), Ordering::SeqCst);
        }
    }

    /// Steps the wall clock to `wall`, forward or back; the monotonic clock does not notice.
    pub fn set_wall(&self, wall: SystemTime) {
        self.shared.wall_ns.store(wall_nanoseconds(wall), Ordering::SeqCst);
    }

    /// What the wall clock shows.
    #[must_use]
    pub fn wall(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.shared.wall_ns.load(Ordering::SeqCst))
    }

    /// Makes the coarse clock tick in steps of `resolution` from now on.
    pub fn set_coarse_resolution(&self, resolution: Duration) {
        let ns = u64::try_from(resolution.as_nanos()).unwrap_or(u64::MAX);
        self.shared.resolution_ns.store(ns, Ordering::SeqCst);
    }

    /// Makes every read of the wall clock take `span` from now on, as a thread that loses its CPU
    /// in the middle of one does.
    pub fn set_wall_read_time(&self, span: Duration) {
        let ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        self.shared.read_ns.store(ns, Ordering::SeqCst);
    }
}

fn wall_nanoseconds(wall: SystemTime) -> u64 {
    let since = wall.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Default for SimClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SimClock {
    fn wall_ns(&self) -> u64 {
        let read = self.shared.wall_ns.load(Ordering::SeqCst);
        self.advance(Duration::from_nanos(self.shared.read_ns.load(Ordering::SeqCst)));
        read
    }

    /// Moves on by itself: nobody else may be there to move it.
    fn pause(&self, time: Duration) {
        self.advance(time);
    }

    fn monotonic_ns(&self) -> u64 {
        self.shared.monotonic_ns.load(Ordering::SeqCst)
    }

    fn coarse_ns(&self) -> u64 {
        let now = self.monotonic_ns();
        match self.coarse_resolution_ns() {
            0 => now,
            resolution => now - now % resolution,
        }
    }

    fn coarse_resolution_ns(&self) -> u64 {
        self.shared.resolution_ns.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stepped_wall_leaves_the_monotonic_clock_alone() {
        let clock = SimClock::new();
        let before = clock.monotonic_ns();
        clock.set_wall(UNIX_EPOCH);
        assert_eq!(clock.monotonic_ns(), before);
        assert_eq!(clock.wall_ns(), 0);
        clock.advance(Duration::from_millis(5));
        assert_eq!(clock.monotonic_ns(), before + 5_000_000);
        assert_eq!(clock.wall_ns(), 5_000_000);
    }
}
