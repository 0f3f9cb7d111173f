//! A hierarchical timer wheel: things to be had back at a tick, in constant time each.
//!
//! Five levels of 64 buckets. A bucket of level 0 is one tick wide, of each next level 64 times as
//! wide; a thing lies at the lowest level at which its tick and the present one differ only from
//! there on down. When the present enters a bucket of a higher level, what lies in it moves down. At
//! one second a tick the levels reach 34 years; what is later than that waits in the last one.
//!
//! A data structure and nothing else: no clock, no lock, no thread. After G. Varghese and T. Lauck,
//! "Hashed and Hierarchical Timing Wheels", SOSP 1987.

/// Buckets of a level.
const BUCKETS: usize = 64;
const BUCKET_BITS: u32 = BUCKETS.trailing_zeros();
const LEVELS: usize = 5;
/// Ticks that all levels together reach.
const REACH: u64 = 1 << (BUCKET_BITS * LEVELS as u32);

/// See the file's header.
#[derive(Debug)]
pub(crate) struct Wheel<T> {
    /// The present tick: everything at or before it was given back.
    now: u64,
    len: usize,
    levels: [Level<T>; LEVELS],
}

#[derive(Debug)]
struct Level<T> {
    /// Which buckets hold something.
    occupied: u64,
    buckets: [Vec<(u64, T)>; BUCKETS],
}

impl<T> Level<T> {
    fn new() -> Self {
        Self { occupied: 0, buckets: [const { Vec::new() }; BUCKETS] }
    }
}

impl<T> Wheel<T> {
    pub(crate) fn new(now: u64) -> Self {
        Self { now, len: 0, levels: std::array::from_fn(|_| Level::new()) }
    }

    /// Things that are waiting.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Adds a thing to be had back at `tick`; at the next [`Wheel::advance`] if that has come.
    pub(crate) fn insert(&mut self, tick: u64, thing: T) {
        self.len += 1;
        self.put(tick, thing);
    }

    fn put(&mut self, tick: u64, thing: T) {
        // What has come, or is out of reach, is looked at again at the nearest possible tick.
        let place = tick.clamp(self.now + 1, self.now + REACH - 1);
        let differs = place ^ self.now;
        // The highest bit that differs lies in the digit of the level.
        let level = (differs.ilog2() / BUCKET_BITS) as usize;
        // A place one turn ahead of the present in the highest level wraps around.
        let level = level.min(LEVELS - 1);
        let bucket = bucket_of(place, level);
        let level = &mut self.levels[level];
        level.occupied |= 1 << bucket;
        level.buckets[bucket].push((tick, thing));
    }

    /// Takes out what is not to be kept.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&T) -> bool) {
        self.len = 0;
        for level in &mut self.levels {
            for (index, bucket) in level.buckets.iter_mut().enumerate() {
                bucket.retain(|(_, thing)| keep(thing));
                self.len += bucket.len();
                if bucket.is_empty() {
                    bucket.shrink_to_fit();
                    level.occupied &= !(1 << index);
                }
            }
        }
    }

    /// The earliest tick at which [`Wheel::advance`] may have something to do: no later than that
    /// of the first thing.
    pub(crate) fn next(&self) -> Option<u64> {
        let of_level = |(index, level): (usize, &Level<T>)| {
            let shift = BUCKET_BITS * index as u32;
            let present = self.now >> shift;
            let at = (present % BUCKETS as u64) as u32;
            // Turned so that the bucket behind the present one comes first.
            let ahead = level.occupied.rotate_right((at + 1) % BUCKETS as u32);
            let distance = (ahead != 0).then(|| u64::from(ahead.trailing_zeros()) + 1)?;
            Some((present + distance) << shift)
        };
        self.levels.iter().enumerate().filter_map(of_level).min()
    }

    /// Moves the present to `now`, and hands everything of a tick at or before it to `take`.
    pub(crate) fn advance(&mut self, now: u64, mut take: impl FnMut(T)) {
        while let Some(next) = self.next().filter(|next| *next <= now) {
            self.now = next;
            // From the top: what moves down may come due at once.
            for index in (0..LEVELS).rev() {
                let shift = BUCKET_BITS * index as u32;
                if next & ((1 << shift) - 1) != 0 {
                    continue;
                }
                let bucket = bucket_of(next, index);
                let level = &mut self.levels[index];
                level.occupied &= !(1 << bucket);
                for (tick, thing) in std::mem::take(&mut level.buckets[bucket]) {
                    if tick <= next {
                        self.len -= 1;
                        take(thing);
                    } else {
                        self.put(tick, thing);
                    }
                }
            }
        }
        self.now = self.now.max(now);
    }
}

fn bucket_of(tick: u64, level: usize) -> usize {
    // Below 64.
    (tick >> (BUCKET_BITS * level as u32)) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn due(wheel: &mut Wheel<u64>, now: u64) -> Vec<u64> {
        let mut taken = Vec::new();
        wheel.advance(now, |thing| taken.push(thing));
        taken.sort_unstable();
        taken
    }

    #[test]
    fn a_thing_comes_back_at_its_tick_and_not_before() {
        for distance in [1, 2, 63, 64, 65, 4095, 4096, 262_143, 262_144, 16_777_216, REACH - 1] {
            for start in [0, 1, 63, 64, 4095, 1_700_000_000, 1_700_000_063] {
                let mut wheel = Wheel::new(start);
                wheel.insert(start + distance, 7);
                assert_eq!(due(&mut wheel, start + distance - 1), [] as [u64; 0]);
                assert!(wheel.next().unwrap() <= start + distance);
                assert_eq!(due(&mut wheel, start + distance), [7]);
                assert_eq!((wheel.len(), wheel.next()), (0, None));
            }
        }
    }

    #[test]
    fn what_is_not_kept_leaves_no_tick_to_come_back_at() {
        let mut wheel = Wheel::new(100);
        (0..2000).for_each(|n| wheel.insert(101 + 37 * n, n));
        wheel.retain(|n| *n >= 1000);
        assert_eq!(wheel.len(), 1000);
        let first = 101 + 37 * 1000;
        assert!(wheel.next().unwrap() <= first && wheel.next().unwrap() > 101 + 37 * 900);
        assert_eq!(due(&mut wheel, first), [1000]);
        wheel.retain(|_| false);
        assert_eq!((wheel.len(), wheel.next()), (0, None));
    }

    #[test]
    fn what_is_over_comes_back_at_the_next_tick() {
        let mut wheel = Wheel::new(100);
        wheel.insert(3, 1);
        wheel.insert(100, 2);
        assert_eq!(due(&mut wheel, 101), [1, 2]);
    }

    #[test]
    fn what_is_out_of_reach_is_not_lost() {
        let mut wheel = Wheel::new(5);
        wheel.insert(5 + 3 * REACH, 1);
        wheel.insert(u64::MAX, 2);
        assert_eq!(due(&mut wheel, 4 + 3 * REACH), [] as [u64; 0]);
        assert_eq!(due(&mut wheel, 5 + 3 * REACH), [1]);
        assert_eq!(wheel.len(), 1);
    }

    #[test]
    fn a_long_sleep_costs_no_tick_of_it() {
        let mut wheel = Wheel::new(0);
        for tick in 1..1000 {
            wheel.insert(tick * 1000, tick);
        }
        let mut taken = 0;
        wheel.advance(REACH * 5, |_| taken += 1);
        assert_eq!((taken, wheel.len()), (999, 0));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_map(
            start in 0..1u64 << 33,
            steps in prop::collection::vec((0..13u8, 0..1u64 << 31, 0..31u32), 1..200),
        ) {
            let mut wheel = Wheel::new(start);
            let mut model = BTreeMap::<u64, Vec<u64>>::new();
            let (mut now, mut next_id) = (start, 0);
            for (what, far, shift) in steps {
                let span = far >> shift;
                if what == 12 {
                    wheel.retain(|id| id % 3 != far % 3);
                    model.values_mut().for_each(|ids| ids.retain(|id| id % 3 != far % 3));
                    model.retain(|_, ids| !ids.is_empty());
                } else if what < 8 {
                    wheel.insert(now + span, next_id);
                    model.entry((now + span).max(now + 1)).or_default().push(next_id);
                    next_id += 1;
                } else {
                    now += span;
                    let later = model.split_off(&(now + 1));
                    let mut wanted: Vec<_> = model.into_values().flatten().collect();
                    wanted.sort_unstable();
                    model = later;
                    prop_assert_eq!(due(&mut wheel, now), wanted);
                }
                prop_assert_eq!(wheel.len(), model.values().map(Vec::len).sum::<usize>());
                if let Some(first) = model.keys().next() {
                    prop_assert!(wheel.next().is_some_and(|next| next <= *first && next > now));
                }
            }
        }
    }
}
