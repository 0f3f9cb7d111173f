//! Store time: the wall clock at open, continued by the monotonic clock.
//!
//! Steps of the wall clock while the store is open are not followed; a step back between two opens
//! is held by a floor, the latest time that anything on disk bears witness to.
//!
//! One reading gives two bounds. What has ended is judged by the lower one, so nothing ends early;
//! deadlines are computed from the upper one, so nothing is granted short. They differ by the
//! coarse clock's resolution and by how long the pairing of the two clocks took at open; both make
//! deadlines late, by at most one tick of the coarse clock, never early. A kernel that is late with a
//! tick makes what is granted meanwhile that much shorter, as if the call had begun then; all who judge
//! it judge by the deadline that was written.
//!
//! Invariants
//! - C1  `Now::lower` is at or below the true store time of the reading, `Now::upper` at or above.
//! - C2  Store time never goes back, within an open or across opens.

use std::sync::Arc;
use std::time::Duration;

use crate::sys::Clock;
use crate::types::Timestamp;

/// Two clocks read this closely together are paired well enough; a thread that lost its CPU in
/// between tries again.
const PAIRING_GOOD_NS: u64 = 20_000;
const PAIRING_TRIES: usize = 64;

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Timeline {
    clock: Arc<dyn Clock>,
    /// Store time, in nanoseconds, when the monotonic clock was somewhere in `paired`.
    base_ns: u64,
    /// The monotonic clock before and after the wall clock was read.
    paired: (u64, u64),
    resolution_ns: u64,
}

/// One reading of the coarse clock, as store time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Now {
    pub(crate) lower: Timestamp,
    pub(crate) upper: Timestamp,
}

/// What the wall clock was, next to the floor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Drift {
    /// How far the wall clock is behind what the store has seen: store time stands still until it
    /// has caught up, as far as later opens are concerned.
    pub(crate) behind: Duration,
    /// How far it is ahead of it: downtime, or a step.
    pub(crate) ahead: Duration,
}

impl Timeline {
    /// Pairs the clocks. Store time starts at the wall clock or at `floor`, whichever is later.
    pub(crate) fn new(clock: Arc<dyn Clock>, floor: Timestamp) -> (Self, Drift) {
        let mut best = Self::pair(&*clock);
        for _ in 0..PAIRING_TRIES {
            if best.1.1 - best.1.0 <= PAIRING_GOOD_NS {
                break;
            }
            let next = Self::pair(&*clock);
            if next.1.1 - next.1.0 < best.1.1 - best.1.0 {
                best = next;
            }
        }
        let (wall_ns, paired) = best;
        let wall = Timestamp::from_ms(wall_ns / 1_000_000);
        let drift = Drift { behind: floor.since(wall), ahead: wall.since(floor) };
        let base_ns = wall_ns.max(floor.ms().saturating_mul(1_000_000));
        let resolution_ns = clock.coarse_resolution_ns();
        (Self { clock, base_ns, paired, resolution_ns }, drift)
    }

    fn pair(clock: &dyn Clock) -> (u64, (u64, u64)) {
        let before = clock.monotonic_ns();
        let wall = clock.wall_ns();
        (wall, (before, clock.monotonic_ns()))
    }

    /// Reads the coarse clock.
    #[inline]
    pub(crate) fn read(&self) -> Now {
        let coarse = self.clock.coarse_ns();
        Now {
            lower: self.lower(coarse),
            upper: self.upper(coarse.saturating_add(self.resolution_ns)),
        }
    }

    /// The latest time that has surely come, for judging these deadlines: the reading's lower bound,
    /// or a fresh exact one when a deadline lies so close that the coarse clock cannot tell.
    #[inline]
    pub(crate) fn judge(&self, now: Now, deadlines: [Timestamp; 2]) -> Timestamp {
        let is_close = |deadline: Timestamp| deadline > now.lower && deadline <= now.upper;
        if deadlines.into_iter().any(is_close) {
            self.lower(self.clock.monotonic_ns()).max(now.lower)
        } else {
            now.lower
        }
    }

    /// The store time that has surely come.
    pub(crate) fn now(&self) -> Timestamp {
        self.lower(self.clock.monotonic_ns())
    }

    #[inline]
    fn lower(&self, monotonic_ns: u64) -> Timestamp {
        // The wall clock was read before `paired.1`.
        let elapsed = monotonic_ns.saturating_sub(self.paired.1);
        Timestamp::from_ms(self.base_ns.saturating_add(elapsed) / 1_000_000)
    }

    #[inline]
    fn upper(&self, monotonic_ns: u64) -> Timestamp {
        // The wall clock was read after `paired.0`.
        let elapsed = monotonic_ns.saturating_sub(self.paired.0);
        Timestamp::from_ms(self.base_ns.saturating_add(elapsed).div_ceil(1_000_000))
    }

    /// The clock itself.
    #[cfg(feature = "rate-limit")]
    pub(super) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Lets so much time pass, or less.
    pub(super) fn pause(&self, time: Duration) {
        self.clock.pause(time);
    }

    /// The monotonic clock, for intervals.
    pub(crate) fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.clock.monotonic_ns())
    }
}

impl Now {
    /// The deadline of something that is granted now for `span`.
    #[inline]
    pub(crate) fn deadline(self, span: Duration) -> Timestamp {
        self.upper.after(span)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;
    use crate::sys::clock::SystemClock;
    use crate::sys::sim_clock::SimClock;

    const MS: Duration = Duration::from_millis(1);

    fn timeline(clock: &SimClock, floor_ms: u64) -> (Timeline, Drift) {
        Timeline::new(Arc::new(clock.clone()), Timestamp::from_ms(floor_ms))
    }

    fn wall(ms: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(ms)
    }

    #[test]
    fn time_goes_on_from_the_wall_clock_whatever_the_wall_clock_does() {
        let clock = SimClock::at(wall(5000));
        let (timeline, drift) = timeline(&clock, 0);
        assert_eq!(drift.behind, Duration::ZERO);
        assert_eq!(timeline.now().ms(), 5000);
        clock.set_wall(wall(0));
        clock.advance(7 * MS);
        assert_eq!(timeline.now().ms(), 5007);
        clock.set_wall(wall(1_000_000_000));
        assert_eq!(timeline.now().ms(), 5007);
    }

    #[test]
    fn a_wall_clock_behind_the_floor_is_held_there() {
        let clock = SimClock::at(wall(5000));
        let (timeline, drift) = timeline(&clock, 9000);
        assert_eq!((drift.behind, drift.ahead), (4000 * MS, Duration::ZERO));
        assert_eq!(timeline.now().ms(), 9000);
        clock.advance(MS);
        assert_eq!(timeline.now().ms(), 9001);
    }

    #[test]
    fn a_wall_clock_ahead_of_the_floor_is_told() {
        let clock = SimClock::at(wall(5000));
        let (_, drift) = timeline(&clock, 2000);
        assert_eq!((drift.behind, drift.ahead), (Duration::ZERO, 3000 * MS));
    }

    #[test]
    fn deadlines_are_never_early_and_at_most_a_tick_late() {
        // The true time at each step is known: the clocks advance by hand.
        let clock = SimClock::at(wall(1000));
        clock.set_coarse_resolution(4 * MS);
        let (timeline, _) = timeline(&clock, 0);
        let step = Duration::from_micros(370);
        let start = clock.monotonic_ns();
        let true_us = |clock: &SimClock| 1_000_000 + (clock.monotonic_ns() - start) / 1000;
        for _ in 0..500 {
            clock.advance(step);
            let granted_at = true_us(&clock);
            let deadline = timeline.read().deadline(100 * MS);
            assert!(deadline.ms() * 1000 >= granted_at + 100_000, "early");
            assert!(deadline.ms() * 1000 <= granted_at + 100_000 + 5000, "more than a tick late");
        }
        let deadline = timeline.read().deadline(100 * MS);
        loop {
            let over = timeline.judge(timeline.read(), [deadline; 2]) >= deadline;
            assert_eq!(over, true_us(&clock) >= deadline.ms() * 1000, "judged to the millisecond");
            if over {
                break;
            }
            clock.advance(step);
        }
    }

    #[test]
    fn a_slow_pairing_makes_deadlines_late_and_never_early() {
        // A plain pairing would put the wall clock 22 ms behind the monotonic clock or ahead of it,
        // and the next open would end deadlines early by as much.
        let clock = SimClock::at(wall(1_000_000));
        clock.set_wall_read_time(22 * MS);
        let (first, _) = timeline(&clock, 0);
        let deadline = first.read().deadline(1000 * MS);
        let granted_at = clock.wall();
        clock.set_wall_read_time(Duration::ZERO);
        let (second, _) = timeline(&clock, 0);
        let wait = wall(deadline.ms()).duration_since(granted_at).unwrap();
        assert!(wait >= 1000 * MS && wait <= 1023 * MS, "{wait:?}");
        clock.advance(wait - MS);
        assert!(second.judge(second.read(), [deadline; 2]) < deadline);
        clock.advance(MS);
        assert!(second.judge(second.read(), [deadline; 2]) >= deadline);
    }

    #[test]
    fn the_real_clocks_pair_closely() {
        let (timeline, _) = Timeline::new(Arc::new(SystemClock::new()), Timestamp::default());
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        assert!(wall.abs_diff(timeline.now().ms()) < 10_000, "a coarse check that units are right");
        assert!(timeline.paired.1 >= timeline.paired.0);
        let now = timeline.read();
        assert!(now.lower <= timeline.now());
    }
}
