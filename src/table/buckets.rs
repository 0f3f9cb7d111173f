//! The buckets of a table, as anybody may read them, at any time and without a lock.
//!
//! Who changes them holds the [`Table`](super::Table), which says in which order (T1 to T3).
//!
//! Invariants
//! - T4  A reader without the lock that has found nothing looks again unless version and shape are
//!   what they were (R18). What it has found needs no second look: it was there when its slot was
//!   loaded. It may walk into a chain that an overflow bucket was given to meanwhile; the slots there
//!   are of other keys, which whoever compares keys whole cannot take for its own.

use super::bucket::{Bucket, Slot, Tag};
use super::filter::Filter;
use crate::chunked::{Chunked, Spot};
use crate::sys::prefetch::prefetch;
use crate::sys::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sys::sync::spin_loop;
use crate::types::KeyHash;

/// The buckets of one shard's table: anybody may read them, at any time.
#[derive(Debug)]
pub(crate) struct Buckets {
    pub(super) main: Chunked<Bucket>,
    pub(super) overflow: Chunked<Bucket>,
    /// Overflow buckets handed out so far; number 0 stands for none and is never handed out.
    pub(super) overflow_used: AtomicU32,
    /// One for each main bucket.
    pub(super) filters: Chunked<Filter>,
    /// (level, next to split): the table has `2^(first_bits + level) + split` main buckets.
    pub(super) shape: AtomicU64,
}

/// What a reader without the lock has found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sight {
    Slot(Slot),
    /// There was no such slot at some moment since the reader began to look.
    Nothing,
    /// The chain changed each time it was looked at, or is very long.
    Unclear,
}

/// So often a reader looks, and so many overflow buckets it looks at each time, before it takes the
/// lock.
const LOOKS_MAX: usize = 4;
const OVERFLOW_MAX: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    Main(Spot),
    Overflow(u32),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) level: u32,
    pub(super) split: u32,
}

/// Where a hash leads in a table: worked out once, good for as long as the table has the same shape.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    hash: KeyHash,
    shape: Shape,
    pub(super) tag: Tag,
    /// Where the chain's main bucket lies, and its filter.
    pub(super) chain: Spot,
}

impl Buckets {
    /// The way of this hash.
    #[inline]
    pub(crate) fn route(&self, hash: KeyHash) -> Route {
        self.route_under(hash, self.shape())
    }

    #[inline]
    fn route_under(&self, hash: KeyHash, shape: Shape) -> Route {
        let chain = self.chain(self.bucket_of(hash, shape));
        Route { hash, shape, tag: self.tag_of(hash), chain }
    }

    /// The same way, as it is by now.
    #[inline]
    pub(super) fn renewed(&self, route: Route) -> Route {
        if self.shape() == route.shape { route } else { self.route(route.hash) }
    }

    /// The first slot whose tag is the hash's and that `is_match` accepts, without the lock (T4).
    #[inline]
    pub(crate) fn find<E>(
        &self,
        first: &Route,
        mut is_match: impl FnMut(Slot) -> Result<bool, E>,
    ) -> Result<Sight, E> {
        let (mut route, mut renewed);
        route = first;
        for _ in 0..LOOKS_MAX {
            match self.look(route, &mut is_match)? {
                Sight::Unclear => spin_loop(),
                sight => return Ok(sight),
            }
            renewed = self.route(route.hash);
            route = &renewed;
        }
        Ok(Sight::Unclear)
    }

    /// Looks once, in a table that had the route's shape before the look began.
    #[inline]
    fn look<E>(
        &self,
        route: &Route,
        is_match: &mut impl FnMut(Slot) -> Result<bool, E>,
    ) -> Result<Sight, E> {
        let &Route { shape, tag, chain, .. } = route;
        if let Some(sight) = self.glance(route) {
            return Ok(sight);
        }
        let main = self.bucket(Place::Main(chain));
        let version = main.version();
        let (mut bucket, mut overflows) = (main, 0);
        let is_whole = loop {
            for index in bucket.matches(tag) {
                if let Some(slot) = bucket.slot(index)
                    && slot.tag() == tag
                    && is_match(slot)?
                {
                    return Ok(Sight::Slot(slot));
                }
            }
            match bucket.overflow() {
                None => break true,
                Some(_) if overflows == OVERFLOW_MAX => break false,
                Some(next) => bucket = self.bucket(Place::Overflow(next)),
            }
            overflows += 1;
        };
        // Loads of slots are Acquire: whoever has seen a slot that moved sees that it did.
        let is_same = version.is_at_rest() && main.version() == version && self.shape() == shape;
        Ok(if is_whole && is_same { Sight::Nothing } else { Sight::Unclear })
    }

    /// What the filter alone tells; nothing, if there may be such a slot.
    #[inline(always)]
    pub(crate) fn glance(&self, route: &Route) -> Option<Sight> {
        if self.may_hold(route) {
            return None;
        }
        // A word that covers what has moved to another bucket no more is seen after the shape that
        // says so.
        Some(if self.shape() == route.shape { Sight::Nothing } else { Sight::Unclear })
    }

    /// Whether there is no slot of this hash, as the filter alone tells. If not, there may be one.
    #[inline]
    pub(crate) fn is_absent(&self, route: &Route) -> bool {
        matches!(self.glance(route), Some(Sight::Nothing))
    }

    /// Makes the room that the table will need when it has grown by a sixteenth, so that who inserts
    /// does not have to. Takes no lock, and changes nothing else.
    pub(crate) fn make_ready(&self) {
        let buckets = self.main_buckets();
        // Far from all that 32 bits can number.
        self.ensure((buckets + buckets / 16) as u32);
        let used = self.overflow_used.load(Ordering::Relaxed);
        self.overflow.ensure(used + used / 8 + 16);
    }

    /// Makes the main bucket of this number, and its filter.
    pub(super) fn ensure(&self, index: u32) {
        self.filters.ensure(index);
        self.main.ensure(index);
    }

    /// The first slot with the hash's tag in its main bucket, for who knows that there may be one
    /// ([`Buckets::may_hold`]). A hint: the record may be another key's, or there may be one further on.
    #[inline(always)]
    pub(crate) fn first_match(&self, route: &Route) -> Option<Slot> {
        let (bucket, tag) = (self.bucket(Place::Main(route.chain)), route.tag);
        let first = bucket.matches(tag).next()?;
        bucket.slot(first).filter(|slot| slot.tag() == tag)
    }

    /// Asks for the memory of the filter that looking for this hash will look at first.
    #[inline]
    pub(crate) fn prefetch_filter(&self, route: &Route) {
        prefetch(self.filter(route.chain));
    }

    /// The same for the bucket.
    #[inline]
    pub(crate) fn prefetch_bucket(&self, route: &Route) {
        prefetch(self.bucket(Place::Main(route.chain)));
    }

    /// Whether there is more to look at than the filter.
    #[inline]
    pub(crate) fn may_hold(&self, route: &Route) -> bool {
        self.filter(route.chain).load().may_hold(route.tag)
    }

    #[inline]
    pub(super) fn shape(&self) -> Shape {
        let bits = self.shape.load(Ordering::Acquire);
        // Upper and lower half.
        Shape { level: (bits >> 32) as u32, split: bits as u32 }
    }

    pub(super) fn set_shape(&self, shape: Shape) {
        self.shape.store(u64::from(shape.level) << 32 | u64::from(shape.split), Ordering::Release);
    }

    pub(super) fn main_buckets(&self) -> usize {
        let Shape { level, split } = self.shape();
        (1usize << (self.main.first_bits() + level)) + split as usize
    }

    #[inline]
    pub(super) fn tag_of(&self, hash: KeyHash) -> Tag {
        Tag::of(hash, self.main.first_bits())
    }

    #[inline]
    pub(super) fn bucket_of(&self, hash: KeyHash, Shape { level, split }: Shape) -> u32 {
        let bits = self.main.first_bits() + level;
        // Masked to at most 32 bits.
        let low = |bits: u32| (hash.0 & ((1 << bits) - 1)) as u32;
        // Not a branch: nobody can tell beforehand which way it goes.
        low(bits + u32::from(low(bits) < split))
    }

    /// Where the main bucket of this number lies.
    #[inline]
    pub(super) fn chain(&self, main: u32) -> Spot {
        self.main.spot(main)
    }

    #[inline]
    pub(super) fn filter(&self, chain: Spot) -> &Filter {
        match self.filters.at(chain) {
            Some(filter) => filter,
            None => unreachable!("the filter at {chain:?} was never made"),
        }
    }

    #[inline]
    pub(super) fn bucket(&self, place: Place) -> &Bucket {
        let found = match place {
            Place::Main(spot) => self.main.at(spot),
            Place::Overflow(index) => self.overflow.get(index),
        };
        match found {
            Some(bucket) => bucket,
            None => unreachable!("{place:?} was never made"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::AtomicBool;

    use super::super::bucket::BUCKET_SLOTS;
    use super::super::linear::Table;
    use super::*;
    use crate::hash::mix;
    use crate::sys::sync::Mutex;
    use crate::types::Location;

    fn spread(n: u64) -> KeyHash {
        KeyHash(mix(n))
    }

    fn remove(table: &mut Table, hash: KeyHash, n: u64) {
        let is_it = |slot: Slot| Ok::<_, Infallible>(slot.location().units() == n);
        let Ok(found) = table.find(table.route(hash), is_it);
        table.remove(found.unwrap().0);
    }

    /// Readers without the lock, while chains lengthen, split, shrink and give buckets to one another.
    #[test]
    fn readers_never_miss_what_is_there_and_never_see_what_is_not() {
        let (rounds, batch) = if cfg!(miri) { (3, 60) } else { (60, 4_000) };
        // Few hashes of those that come and go, so that chains overflow.
        let passing = |n: u64| KeyHash(spread(n % 600).0 & !0b11);
        let mut table = Table::for_entries(0);
        let lasting: Vec<u64> = (1..=batch).collect();
        lasting
            .iter()
            .for_each(|n| table.insert(table.route(spread(*n)), Location::from_units(*n), true));
        let (buckets, is_over) = (table.buckets(), AtomicBool::new(false));
        std::thread::scope(|scope| {
            for reader in 0..2u64 {
                let (buckets, is_over, lasting) = (&*buckets, &is_over, &lasting);
                scope.spawn(move || {
                    let mut looks = reader;
                    while !is_over.load(Ordering::SeqCst) {
                        looks += 1;
                        let n = lasting[(mix(looks) % lasting.len() as u64) as usize];
                        let is_it = |slot: Slot| Ok::<_, Infallible>(slot.location().units() == n);
                        let Ok(sight) = buckets.find(&buckets.route(spread(n)), is_it);
                        assert_ne!(sight, Sight::Nothing, "{n} was there all the time");
                        let Ok(sight) =
                            buckets.find(&buckets.route(spread(n)), |_| Ok::<_, Infallible>(false));
                        assert!(!matches!(sight, Sight::Slot(_)), "nothing was accepted");
                    }
                });
            }
            for round in 1..=rounds {
                let first = round * 1_000_000;
                let numbers = first..first + batch;
                let here = numbers.clone();
                here.for_each(|n| {
                    table.insert(table.route(passing(n)), Location::from_units(n), false)
                });
                for n in numbers {
                    remove(&mut table, passing(n), n);
                }
            }
            is_over.store(true, Ordering::SeqCst);
        });
        assert_eq!(table.len(), lasting.len());
        let Ok(sight) = buckets.find(&buckets.route(KeyHash(7)), |_| Ok::<_, Infallible>(false));
        assert_eq!(sight, Sight::Nothing, "nobody changes anything");
    }

    #[test]
    fn a_table_that_is_made_ready_in_time_makes_no_room_while_it_inserts() {
        let mut table = Table::for_entries(0);
        let buckets = table.buckets();
        // A small table grows by a sixteenth at each insertion.
        let (small, count) = (400, if cfg!(miri) { 600 } else { 50_000 });
        for n in 1..=count {
            let before = buckets.main.len();
            table.insert(table.route(spread(n)), Location::from_units(n), false);
            assert!(n < small || buckets.main.len() == before, "{n}");
            if n % 20 == 0 {
                buckets.make_ready();
            }
        }
    }

    /// Three slots of one bucket, of which the last two have one hash: whoever looks for the last one
    /// meets the one before, and may do something there.
    fn crowded() -> (Mutex<Table>, KeyHash) {
        let mut table = Table::for_entries(0);
        // They go to another bucket when the table doubles, and these two stay, or the other way round.
        let bits = table.buckets().main.first_bits();
        let [stays, goes] = [KeyHash(0), KeyHash(1 << bits)];
        table.insert(table.route(goes), Location::from_units(9), false);
        table.insert(table.route(stays), Location::from_units(1), false);
        table.insert(table.route(stays), Location::from_units(2), false);
        (Mutex::new(table), stays)
    }

    /// Inserts into other buckets until bucket 0 is split.
    fn split_first(table: &Mutex<Table>) {
        let shape = table.lock().buckets().shape();
        for n in 100.. {
            let mut table = table.lock();
            let route = table.route(KeyHash(n << 1 | 1));
            table.insert(route, Location::from_units(n), false);
            if table.buckets().shape() != shape {
                return;
            }
        }
    }

    #[test]
    fn slots_that_move_up_within_their_chain_are_looked_for_again() {
        let (table, hash) = crowded();
        let buckets = table.lock().buckets();
        let after = Shape { level: 0, split: 1 };
        let mut has_split = false;
        let mut meet = |slot: Slot| {
            if slot.location().units() == 1 && !std::mem::replace(&mut has_split, true) {
                split_first(&table);
                assert_eq!(buckets.shape(), after, "the look began when it had this shape");
            }
            Ok::<_, Infallible>(slot.location().units() == 2)
        };
        let Ok(sight) = buckets.look(&buckets.route_under(hash, after), &mut meet);
        assert_eq!(sight, Sight::Unclear);
        let Ok(sight) = buckets.find(&buckets.route(hash), &mut meet);
        assert!(matches!(sight, Sight::Slot(_)) && has_split);
    }

    #[test]
    fn slots_that_leave_an_overflow_bucket_are_looked_for_again() {
        let mut table = Table::for_entries(0);
        (1..=9).for_each(|n| table.insert(table.route(KeyHash(0)), Location::from_units(n), false));
        let (buckets, table) = (table.buckets(), Mutex::new(table));
        let mut has_moved = false;
        let mut meet = |slot: Slot| {
            // The last one of the main bucket: what is moved to the first places now is passed by.
            if slot.location().units() == 7 && !std::mem::replace(&mut has_moved, true) {
                (1..=4).for_each(|n| remove(&mut table.lock(), KeyHash(0), n));
            }
            Ok::<_, Infallible>(slot.location().units() == 9)
        };
        let Ok(sight) = buckets.look(&buckets.route_under(KeyHash(0), buckets.shape()), &mut meet);
        assert_eq!(sight, Sight::Unclear);
        let Ok(sight) = buckets.find(&buckets.route(KeyHash(0)), &mut meet);
        assert!(matches!(sight, Sight::Slot(_)) && has_moved);
    }

    #[test]
    fn slots_that_went_to_another_bucket_before_the_look_are_looked_for_again() {
        let (table, _) = crowded();
        let buckets = table.lock().buckets();
        let (before, bits) = (buckets.shape(), buckets.main.first_bits());
        split_first(&table);
        let goes = KeyHash(1 << bits);
        let mut is_it = |slot: Slot| Ok::<_, Infallible>(slot.location().units() == 9);
        let Ok(sight) = buckets.look(&buckets.route_under(goes, before), &mut is_it);
        assert_eq!(sight, Sight::Unclear);
        let Ok(sight) = buckets.find(&buckets.route(goes), &mut is_it);
        assert!(matches!(sight, Sight::Slot(_)));
    }

    #[test]
    fn what_a_filter_covers_no_more_is_looked_for_again_when_the_table_has_split() {
        let (table, stays) = crowded();
        let buckets = table.lock().buckets();
        let bits = buckets.main.first_bits();
        // A byte of tag of its own.
        let goes = KeyHash(1 << bits | 0xab << (bits + 14));
        let route = buckets.route(goes);
        table.lock().insert(route, Location::from_units(5), false);
        let before = buckets.shape();
        split_first(&table);
        assert!(!buckets.may_hold(&buckets.route_under(goes, before)));
        let mut is_it = |slot: Slot| Ok::<_, Infallible>(slot.location().units() == 5);
        let Ok(sight) = buckets.look(&buckets.route_under(goes, before), &mut is_it);
        assert_eq!(sight, Sight::Unclear);
        let Ok(sight) = buckets.find(&buckets.route(goes), &mut is_it);
        assert!(matches!(sight, Sight::Slot(_)));
        assert!([stays, goes].iter().all(|hash| buckets.may_hold(&buckets.route(*hash))));
    }

    #[test]
    fn most_keys_that_are_not_there_are_told_by_the_filter() {
        let (mut table, count) = (Table::for_entries(0), if cfg!(miri) { 200 } else { 20_000 });
        (1..=count)
            .for_each(|n| table.insert(table.route(spread(n)), Location::from_units(n), true));
        let buckets = table.buckets();
        let others = count + 1..=2 * count;
        let in_doubt =
            others.filter(|n| buckets.may_hold(&buckets.route(spread(*n)))).count() as u64;
        // By bytes of slots one in 43, by overflow buckets more.
        assert!(in_doubt * 6 < count, "{in_doubt} of {count}");
        assert!((1..=count).all(|n| buckets.may_hold(&buckets.route(spread(n)))));
    }

    #[test]
    fn a_chain_that_is_very_long_is_left_to_the_lock() {
        let mut table = Table::for_entries(0);
        let count = (BUCKET_SLOTS * (OVERFLOW_MAX + 3)) as u64;
        (1..=count)
            .for_each(|n| table.insert(table.route(KeyHash(7)), Location::from_units(n), false));
        let buckets = table.buckets();
        let Ok(sight) = buckets.find(&buckets.route(KeyHash(7)), |_| Ok::<_, Infallible>(false));
        assert_eq!(sight, Sight::Unclear);
    }
}
