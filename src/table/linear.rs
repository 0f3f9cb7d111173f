//! Linear hashing (Litwin 1980) over chained buckets.
//!
//! The table grows one bucket at a time: each split divides one bucket by the next bit of the hash,
//! which the slot's tag still holds, so no record is read. Bucket arrays are allocated in doubling
//! chunks that are never moved or freed.
//!
//! Invariants
//! - T1  A slot lies in the chain of the bucket that its hash selects under the present shape.
//! - T2  A chain is a main bucket and overflow buckets that belong to it alone.
//! - T3  A split fills the new bucket, raises the version, publishes the shape, then clears the old
//!   slots and raises the version again (R18). Whatever else moves slots raises the version of the
//!   chain's main bucket before and after, too. Its filter covers all of them meanwhile (T5).

use std::sync::Arc;

use smallvec::SmallVec;

use super::bucket::{BUCKET_SLOTS, Bucket, Slot, TAG_BITS};
use super::buckets::{Buckets, Place, Route, Shape};
use super::filter::{Covered, Filter};
use crate::chunked::{Chunked, Spot};
use crate::sys::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::types::{KeyHash, Location};

/// Mean entries of a bucket above which the table splits one, times two.
const LOAD_TWICE: usize = if cfg!(loom) { 4 } else { 12 };
/// For loom a table is as small as can be: it splits at its third entry.
const BITS_MIN: u32 = if cfg!(loom) { 0 } else { 3 };
const BITS_MAX: u32 = 28;

/// One shard's table, as who may change it has it.
#[derive(Debug)]
pub(crate) struct Table {
    buckets: Arc<Buckets>,
    /// Overflow buckets that were given back: the first one, which leads to the next, and how many. A
    /// list of numbers would have to grow while somebody inserts.
    overflow_free: Option<u32>,
    overflow_free_len: usize,
    len: usize,
}

/// Where a slot is. Valid until the table is changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Position {
    /// The main bucket of its chain.
    chain: Spot,
    bucket: Place,
    slot: u8,
}

impl Table {
    /// A table that holds about `entries` before it grows.
    pub(crate) fn for_entries(entries: usize) -> Self {
        let count = (entries * 2 / LOAD_TWICE).max(1);
        let bits = count.ilog2().clamp(BITS_MIN, BITS_MAX);
        let buckets = Buckets {
            main: Chunked::new(bits),
            overflow: Chunked::new(BITS_MIN),
            overflow_used: AtomicU32::new(1),
            filters: Chunked::new(bits),
            shape: AtomicU64::new(0),
        };
        buckets.ensure(0);
        // What is beyond the power of two is there from the start, and empty: nothing has to move.
        let size = 1usize << bits;
        let split = count.clamp(size, 2 * size - 1) - size;
        // At most 28 bits.
        for index in size..size + split {
            buckets.ensure(index as u32);
        }
        buckets.set_shape(Shape { level: 0, split: split as u32 });
        let buckets = Arc::new(buckets);
        Self { buckets, overflow_free: None, overflow_free_len: 0, len: 0 }
    }

    /// For readers.
    pub(crate) fn buckets(&self) -> Arc<Buckets> {
        Arc::clone(&self.buckets)
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the arrays.
    pub(crate) fn memory_bytes(&self) -> usize {
        (self.buckets.main.len() + self.buckets.overflow.len()) * size_of::<Bucket>()
            + self.buckets.filters.len() * size_of::<Filter>()
    }

    /// The way of this hash.
    #[inline]
    pub(crate) fn route(&self, hash: KeyHash) -> Route {
        self.buckets.route(hash)
    }

    /// The first slot of the chain whose tag is the hash's and that `is_match` accepts.
    #[inline]
    pub(crate) fn find<E>(
        &self,
        route: Route,
        is_match: impl FnMut(Slot) -> Result<bool, E>,
    ) -> Result<Option<(Position, Slot)>, E> {
        self.find_expected(route, false, is_match)
    }

    /// The same. Where one is expected, the filter is not asked, which may have to come from memory.
    #[inline]
    pub(crate) fn find_expected<E>(
        &self,
        route: Route,
        is_expected: bool,
        mut is_match: impl FnMut(Slot) -> Result<bool, E>,
    ) -> Result<Option<(Position, Slot)>, E> {
        let buckets = &*self.buckets;
        let Route { tag, chain, .. } = buckets.renewed(route);
        if !is_expected && !buckets.filter(chain).load().may_hold(tag) {
            return Ok(None);
        }
        let mut place = Some(Place::Main(chain));
        while let Some(at) = place {
            let bucket = buckets.bucket(at);
            for index in bucket.matches(tag) {
                if let Some(slot) = bucket.slot(index)
                    && slot.tag() == tag
                    && is_match(slot)?
                {
                    // Seven slots.
                    let position = Position { chain, bucket: at, slot: index as u8 };
                    return Ok(Some((position, slot)));
                }
            }
            place = bucket.overflow().map(Place::Overflow);
        }
        Ok(None)
    }

    /// Asks for the memory that looking for this hash will look at first.
    #[inline]
    pub(crate) fn prefetch(&self, hash: KeyHash) {
        let route = self.buckets.route(hash);
        self.buckets.prefetch_filter(&route);
        self.buckets.prefetch_bucket(&route);
    }

    /// Adds an entry. The caller knows that the key has none.
    pub(crate) fn insert(&mut self, route: Route, location: Location, done: bool) {
        let Route { tag, chain, .. } = self.buckets.renewed(route);
        self.push(chain, Slot::new(location, tag, done));
        self.len += 1;
        if self.len * 2 > self.buckets.main_buckets() * LOAD_TWICE {
            self.split_one();
        }
    }

    /// Points the entry at another record of the same key, in place.
    pub(crate) fn replace(&mut self, position: Position, location: Location, done: bool) {
        let bucket = self.buckets.bucket(position.bucket);
        let old = bucket.slot(usize::from(position.slot));
        debug_assert!(old.is_some(), "replacing an empty slot");
        if let Some(old) = old {
            let slot = Slot::new(location, old.tag(), done);
            bucket.set_slot(usize::from(position.slot), Some(slot));
        }
    }

    /// Removes the entry.
    pub(crate) fn remove(&mut self, position: Position) {
        self.remove_all(&[position]);
    }

    /// Removes these entries.
    pub(crate) fn remove_all(&mut self, positions: &[Position]) {
        for position in positions {
            let bucket = self.buckets.bucket(position.bucket);
            debug_assert!(bucket.slot(usize::from(position.slot)).is_some());
            bucket.set_slot(usize::from(position.slot), None);
        }
        self.len -= positions.len();
        for position in positions {
            // Slots move now.
            self.shorten_chain(position.chain);
            self.cover(position.chain);
        }
    }

    /// Gives back the last overflow bucket of a chain when the others have room for what is in it.
    /// Else each window of keys would leave its own behind, in other chains each time.
    fn shorten_chain(&mut self, chain: Spot) {
        let start = Place::Main(chain);
        let (mut before, mut last, mut room) = (start, start, 0);
        while let Some(next) = self.buckets.bucket(last).overflow() {
            let bucket = self.buckets.bucket(last);
            room += (0..BUCKET_SLOTS).filter(|at| bucket.slot(*at).is_none()).count();
            (before, last) = (last, Place::Overflow(next));
        }
        let bucket = self.buckets.bucket(last);
        let slots: SmallVec<[Slot; BUCKET_SLOTS]> =
            (0..BUCKET_SLOTS).filter_map(|at| bucket.slot(at)).collect();
        if last == start || slots.len() > room {
            return;
        }
        self.buckets.bucket(start).begin_move();
        // Into the first empty places, which lie before it.
        slots.iter().for_each(|slot| self.push(chain, *slot));
        let unused = self.buckets.bucket(before).overflow();
        self.buckets.bucket(before).set_overflow(None);
        self.free_chain(unused);
        self.buckets.bucket(start).end_move();
    }

    /// Shows every entry to `visit`, bucket by bucket.
    pub(crate) fn for_each<E>(
        &self,
        mut visit: impl FnMut(Position, Slot) -> Result<(), E>,
    ) -> Result<(), E> {
        // Main buckets are numbered with 32 bits.
        for main in 0..self.buckets.main_buckets() as u32 {
            let chain = self.buckets.chain(main);
            let mut place = Some(Place::Main(chain));
            while let Some(at) = place {
                let bucket = self.buckets.bucket(at);
                for index in 0..BUCKET_SLOTS {
                    if let Some(slot) = bucket.slot(index) {
                        visit(Position { chain, bucket: at, slot: index as u8 }, slot)?;
                    }
                }
                place = bucket.overflow().map(Place::Overflow);
            }
        }
        Ok(())
    }

    /// Puts the slot into the first empty place of a chain, lengthening it if need be, and covers it
    /// before (T5).
    fn push(&mut self, chain: Spot, slot: Slot) {
        let main = self.buckets.bucket(Place::Main(chain));
        let filter = self.buckets.filter(chain);
        if let Some(empty) = main.first_empty() {
            filter.store(filter.load().with_slot(empty, slot.tag()));
            main.set_slot(empty, Some(slot));
            return;
        }
        filter.store(filter.load().with_overflow(slot.tag()));
        let mut at = Place::Main(chain);
        loop {
            let bucket = self.buckets.bucket(at);
            if let Some(empty) = bucket.first_empty() {
                bucket.set_slot(empty, Some(slot));
                return;
            }
            match bucket.overflow() {
                Some(next) => at = Place::Overflow(next),
                None => {
                    let next = self.new_overflow();
                    self.buckets.bucket(Place::Overflow(next)).set_slot(0, Some(slot));
                    self.buckets.bucket(at).set_overflow(Some(next));
                    return;
                }
            }
        }
    }

    /// Covers what is in a chain, and nothing else any more (T5).
    fn cover(&self, chain: Spot) {
        self.buckets.filter(chain).store(self.covered(chain));
    }

    /// What a chain's filter has to cover.
    fn covered(&self, chain: Spot) -> Covered {
        let main = self.buckets.bucket(Place::Main(chain));
        let slots = (0..BUCKET_SLOTS).filter_map(|at| Some((at, main.slot(at)?)));
        let mut covered =
            slots.fold(Covered::default(), |covered, (at, slot)| covered.with_slot(at, slot.tag()));
        let mut next = main.overflow();
        while let Some(index) = next {
            let bucket = self.buckets.bucket(Place::Overflow(index));
            let slots = (0..BUCKET_SLOTS).filter_map(|at| bucket.slot(at));
            covered = slots.fold(covered, |covered, slot| covered.with_overflow(slot.tag()));
            next = bucket.overflow();
        }
        covered
    }

    fn new_overflow(&mut self) -> u32 {
        if let Some(index) = self.overflow_free {
            let bucket = self.buckets.bucket(Place::Overflow(index));
            self.overflow_free = bucket.overflow();
            self.overflow_free_len -= 1;
            bucket.set_overflow(None);
            return index;
        }
        // Only who may change the table counts.
        let index = self.buckets.overflow_used.fetch_add(1, Ordering::Relaxed);
        self.buckets.overflow.ensure(index);
        index
    }

    /// Divides the bucket at the split pointer (T3). Nothing happens once the tag has no bit left
    /// to divide by: chains grow instead.
    fn split_one(&mut self) {
        let Shape { level, split } = self.buckets.shape();
        if level >= TAG_BITS || self.buckets.main.first_bits() + level >= 31 {
            return;
        }
        let size = 1u32 << (self.buckets.main.first_bits() + level);
        self.buckets.ensure(split + size);
        let (chain, new) = (self.buckets.chain(split), self.buckets.chain(split + size));
        let old = Place::Main(chain);
        let mut staying: SmallVec<[Slot; 32]> = SmallVec::new();
        let mut moving: SmallVec<[Slot; 32]> = SmallVec::new();
        let mut place = Some(old);
        while let Some(at) = place {
            let bucket = self.buckets.bucket(at);
            for slot in (0..BUCKET_SLOTS).filter_map(|index| bucket.slot(index)) {
                if slot.tag().bit(level) { moving.push(slot) } else { staying.push(slot) }
            }
            place = bucket.overflow().map(Place::Overflow);
        }
        for slot in moving {
            self.push(new, slot);
        }
        self.buckets.bucket(old).begin_move();
        let next = if split + 1 == size {
            Shape { level: level + 1, split: 0 }
        } else {
            Shape { level, split: split + 1 }
        };
        self.buckets.set_shape(next);
        self.rewrite_chain(old, &staying);
        self.cover(chain);
        self.buckets.bucket(old).end_move();
    }

    /// Leaves exactly `slots` in the chain, packed, and gives back the overflow buckets that are
    /// not needed for it.
    fn rewrite_chain(&mut self, start: Place, slots: &[Slot]) {
        let mut left = slots.iter();
        let mut at = start;
        loop {
            let bucket = self.buckets.bucket(at);
            for index in 0..BUCKET_SLOTS {
                bucket.set_slot(index, left.next().copied());
            }
            let next = bucket.overflow();
            if left.len() == 0 {
                bucket.set_overflow(None);
                self.free_chain(next);
                return;
            }
            match next {
                Some(next) => at = Place::Overflow(next),
                None => unreachable!("a chain holds no more than it held before"),
            }
        }
    }

    fn free_chain(&mut self, mut next: Option<u32>) {
        while let Some(index) = next {
            let bucket = self.buckets.bucket(Place::Overflow(index));
            for slot in 0..BUCKET_SLOTS {
                bucket.set_slot(slot, None);
            }
            next = bucket.overflow();
            bucket.set_overflow(self.overflow_free);
            self.overflow_free = Some(index);
            self.overflow_free_len += 1;
        }
    }

    /// Checks T1 and T2 and the count. `hash_of` tells the hash behind a slot.
    #[cfg(any(test, feature = "test-util"))]
    pub(crate) fn check_invariants(&self, hash_of: impl Fn(Slot) -> Option<KeyHash>) {
        use std::collections::HashSet;
        let (mut seen, mut locations) = (HashSet::new(), HashSet::new());
        let mut len = 0;
        for main in 0..self.buckets.main_buckets() as u32 {
            let chain = self.buckets.chain(main);
            assert_eq!(self.buckets.filter(chain).load(), self.covered(chain), "T5");
            let mut place = Some(Place::Main(chain));
            while let Some(at) = place {
                let bucket = self.buckets.bucket(at);
                assert!(!bucket.is_splitting(), "no split is under way");
                if let Place::Overflow(index) = at {
                    assert!(seen.insert(index), "overflow bucket {index} is in two chains");
                }
                for slot in (0..BUCKET_SLOTS).filter_map(|index| bucket.slot(index)) {
                    len += 1;
                    assert!(locations.insert(slot.location().units()), "a record is listed twice");
                    if let Some(hash) = hash_of(slot) {
                        assert_eq!(self.buckets.bucket_of(hash, self.buckets.shape()), main, "T1");
                        assert_eq!(slot.tag(), self.buckets.tag_of(hash));
                    }
                }
                place = bucket.overflow().map(Place::Overflow);
            }
        }
        assert_eq!(len, self.len, "the count is right");
        let mut free = self.overflow_free;
        while let Some(index) = free {
            assert!(seen.insert(index), "overflow bucket {index} is free and in a chain, or twice");
            free = self.buckets.bucket(Place::Overflow(index)).overflow();
        }
        let out = seen.len() + 1;
        assert_eq!(
            out,
            self.buckets.overflow_used.load(Ordering::Relaxed) as usize,
            "no overflow bucket is lost"
        );
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::convert::Infallible;

    use super::*;

    fn spread(n: u64) -> KeyHash {
        KeyHash(n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(n | 1))
    }

    fn locate(table: &Table, hash: KeyHash, location: u64) -> Option<Position> {
        let found = table.find(table.route(hash), |slot| {
            Ok::<_, Infallible>(slot.location().units() == location)
        });
        found.unwrap().map(|(position, _)| position)
    }

    #[test]
    fn a_route_from_before_a_split_leads_to_where_the_key_belongs() {
        let mut table = Table::for_entries(0);
        let mut entries = HashMap::new();
        let routes: Vec<_> = (1..=400).map(|n| (n, spread(n), table.route(spread(n)))).collect();
        for (n, hash, route) in routes {
            // The table has split many times by now.
            table.insert(route, Location::from_units(n), false);
            entries.insert(n, hash);
            let is_it = |slot: Slot| Ok::<_, Infallible>(slot.location().units() == n);
            assert!(table.find(route, is_it).unwrap().is_some(), "{n}");
        }
        check(&table, &entries);
    }

    fn check(table: &Table, entries: &HashMap<u64, KeyHash>) {
        table.check_invariants(|slot| entries.get(&slot.location().units()).copied());
        assert_eq!(table.len(), entries.len());
    }

    #[test]
    fn what_was_inserted_is_found_through_all_growth() {
        let count = if cfg!(miri) { 150 } else { 20_000 };
        let mut table = Table::for_entries(0);
        let mut entries = HashMap::new();
        for n in 1..=count {
            table.insert(table.route(spread(n)), Location::from_units(n), n % 3 == 0);
            entries.insert(n, spread(n));
            if n.is_power_of_two() {
                check(&table, &entries);
            }
        }
        check(&table, &entries);
        for n in 1..=count {
            assert!(locate(&table, spread(n), n).is_some(), "{n}");
            assert!(locate(&table, spread(n), n + count).is_none());
        }
        let mut seen = 0;
        let all = table.for_each(|_, slot| {
            seen += 1;
            assert_eq!(slot.is_done(), slot.location().units() % 3 == 0);
            Ok::<_, Infallible>(())
        });
        all.unwrap();
        assert_eq!(seen, count);
    }

    #[test]
    fn random_changes_agree_with_a_map() {
        let mut seed = 0x1234_5678_u64;
        let mut random = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed
        };
        let steps = if cfg!(miri) { 150 } else { 60_000 };
        let mut table = Table::for_entries(0);
        let mut entries: HashMap<u64, KeyHash> = HashMap::new();
        let mut next = 1;
        for step in 0..steps {
            // Few distinct hashes, so that chains grow long and collide.
            let hash = spread(random() % 512);
            let known: Vec<_> = entries.iter().find(|(_, h)| **h == hash).into_iter().collect();
            match (known.first().map(|(n, _)| **n), random() % 3) {
                (Some(old), 0) => {
                    let position = locate(&table, hash, old).unwrap();
                    table.remove(position);
                    entries.remove(&old);
                }
                (Some(old), 1) => {
                    let position = locate(&table, hash, old).unwrap();
                    table.replace(position, Location::from_units(next), true);
                    entries.remove(&old);
                    entries.insert(next, hash);
                    next += 1;
                }
                _ => {
                    table.insert(table.route(hash), Location::from_units(next), false);
                    entries.insert(next, hash);
                    next += 1;
                }
            }
            if step % 1000 == 0 {
                check(&table, &entries);
            }
        }
        check(&table, &entries);
    }

    /// Windows of different keys, one after the other.
    #[test]
    #[cfg_attr(miri, ignore = "too many keys")]
    fn a_window_takes_no_more_room_than_the_one_before() {
        let (mut table, window) = (Table::for_entries(0), 20_000);
        let mut first = 0;
        for from in (1..).step_by(window).take(40) {
            let keys = from..from + window as u64;
            keys.clone()
                .for_each(|n| table.insert(table.route(spread(n)), Location::from_units(n), true));
            let used = table.buckets.overflow_used.load(Ordering::Relaxed) as usize
                - table.overflow_free_len;
            if first == 0 {
                first = used;
            }
            assert!(used < first * 11 / 10, "{used} overflow buckets, {first} at first");
            for n in keys {
                let position = locate(&table, spread(n), n).unwrap();
                table.remove(position);
            }
            check(&table, &HashMap::new());
            assert_eq!(
                table.buckets.overflow_used.load(Ordering::Relaxed) as usize,
                table.overflow_free_len + 1
            );
        }
    }

    #[test]
    fn equal_hashes_share_a_chain_that_never_splits_apart() {
        let mut table = Table::for_entries(0);
        for n in 1..=100 {
            table.insert(table.route(KeyHash(7)), Location::from_units(n), false);
        }
        assert!((1..=100).all(|n| locate(&table, KeyHash(7), n).is_some()));
        table.check_invariants(|_| Some(KeyHash(7)));
    }

    #[test]
    #[cfg_attr(miri, ignore = "arithmetic only, and much of it")]
    fn a_table_takes_about_fifteen_bytes_an_entry() {
        let count = 100_000;
        let mut table = Table::for_entries(0);
        let mut worst: f64 = 0.0;
        for n in 1..=count {
            table.insert(table.route(spread(n)), Location::from_units(n), true);
            if n > count / 10 {
                worst = worst.max(table.memory_bytes() as f64 / n as f64);
            }
        }
        // A quarter of a doubling is made at a time.
        assert!(worst < 19.0, "{worst:.1} bytes an entry");
    }
}
