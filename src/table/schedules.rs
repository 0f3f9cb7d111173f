//! A few threads over one table, under every schedule (loom) or many (shuttle).

use std::convert::Infallible;
use std::sync::Arc;

use super::bucket::BUCKET_SLOTS;
use super::{Buckets, Sight, Slot, Table};
use crate::sys::explored::{explore, thread};
use crate::sys::sync::Mutex;
use crate::sys::sync::atomic::{AtomicU64, Ordering};
use crate::types::{KeyHash, Location};

/// What locations stand for: written before the table tells of them.
type Records = [AtomicU64; 9];

fn record(records: &Records, n: u64) -> Location {
    // Relaxed: the slot is what publishes it.
    records[n as usize].store(100 + n, Ordering::Relaxed);
    Location::from_units(n)
}

fn insert(table: &mut Table, records: &Records, hash: KeyHash, n: u64) {
    let route = table.route(hash);
    table.insert(route, record(records, n), false);
}

/// Points the entry of record `n` at record `next`.
fn replace(table: &mut Table, records: &Records, hash: KeyHash, n: u64, next: u64) {
    let is_it = |slot: Slot| Ok::<_, Infallible>(slot.location().units() == n);
    let Ok(found) = table.find(table.route(hash), is_it);
    let location = record(records, next);
    found.into_iter().for_each(|(position, _)| table.replace(position, location, true));
}

fn remove(table: &mut Table, hash: KeyHash, n: u64) {
    let is_it = |slot: Slot| Ok::<_, Infallible>(slot.location().units() == n);
    let Ok(found) = table.find(table.route(hash), is_it);
    found.into_iter().for_each(|(position, _)| table.remove(position));
}

/// The record of this hash for which `accepts`, without the lock; each one met is what was written.
fn find(
    buckets: &Buckets,
    records: &Records,
    hash: KeyHash,
    accepts: impl Fn(u64) -> bool,
) -> Sight {
    let is_it = |slot: Slot| {
        let n = slot.location().units();
        assert_eq!(records[n as usize].load(Ordering::Relaxed), 100 + n, "found, and not written");
        Ok::<_, Infallible>(accepts(n))
    };
    let Ok(sight) = buckets.find(&buckets.route(hash), is_it);
    sight
}

/// The hash of a key that stays in the first bucket when it is split, and of one that leaves it. A filter
/// tells them apart.
fn stays_and_goes(buckets: &Buckets) -> [KeyHash; 2] {
    let bits = buckets.main.first_bits();
    [KeyHash(0), KeyHash(1 << bits | 0xab << (bits + 14))]
}

#[test]
fn whoever_finds_a_slot_sees_its_record() {
    explore(|| {
        let (mut table, records) = (Table::for_entries(0), Arc::new(Records::default()));
        let (buckets, seen) = (table.buckets(), Arc::clone(&records));
        let reader = thread::spawn(move || find(&buckets, &seen, KeyHash(0), |_| true));
        insert(&mut table, &records, KeyHash(0), 1);
        replace(&mut table, &records, KeyHash(0), 1, 2);
        reader.join().unwrap_or(Sight::Unclear);
        let last = find(&table.buckets(), &records, KeyHash(0), |_| true);
        assert!(matches!(last, Sight::Slot(slot) if slot.location().units() == 2), "{last:?}");
    });
}

#[test]
fn a_split_hides_nothing() {
    explore(|| {
        let (mut table, records) = (Table::for_entries(0), Arc::new(Records::default()));
        let buckets = table.buckets();
        let [stays, goes] = stays_and_goes(&buckets);
        insert(&mut table, &records, stays, 1);
        insert(&mut table, &records, goes, 2);
        let seen = Arc::clone(&records);
        let reader = thread::spawn(move || {
            for (hash, n) in [(stays, 1), (goes, 2)] {
                let sight = find(&buckets, &seen, hash, |found| found == n);
                assert_ne!(sight, Sight::Nothing, "{n} was there all the time");
            }
        });
        let before = table.buckets().main_buckets();
        for n in 3..8 {
            if table.buckets().main_buckets() == before {
                insert(&mut table, &records, KeyHash(n << 40), n);
            }
        }
        reader.join().unwrap_or_else(|_| panic!("the reader missed something"));
    });
}

#[test]
fn a_chain_that_gets_shorter_hides_nothing() {
    explore(|| {
        let (mut table, records) = (Table::for_entries(0), Arc::new(Records::default()));
        // One hash: they share a chain however often it is split, and the last one overflows.
        let last = BUCKET_SLOTS as u64 + 1;
        (1..=last).for_each(|n| insert(&mut table, &records, KeyHash(0), n));
        let (buckets, seen) = (table.buckets(), Arc::clone(&records));
        let reader = thread::spawn(move || {
            let sight = find(&buckets, &seen, KeyHash(0), |found| found == last);
            assert_ne!(sight, Sight::Nothing, "{last} was there all the time");
        });
        remove(&mut table, KeyHash(0), 1);
        reader.join().unwrap_or_else(|_| panic!("the reader missed something"));
    });
}

/// Whoever says that a key is not there says so of a moment since he began to look.
#[test]
fn what_is_not_found_was_not_there() {
    explore(|| {
        let (mut table, records) = (Table::for_entries(0), Arc::new(Records::default()));
        let buckets = table.buckets();
        let [stays, goes] = stays_and_goes(&buckets);
        insert(&mut table, &records, stays, 1);
        insert(&mut table, &records, goes, 2);
        let table = Arc::new(Mutex::new(table));
        let (changed, others) = (Arc::clone(&table), Arc::clone(&records));
        let writer = thread::spawn(move || {
            // A split, and a key that goes and comes back under another location.
            insert(&mut changed.lock(), &others, KeyHash(3 << 40), 3);
            replace(&mut changed.lock(), &others, goes, 2, 4);
        });
        let sight = find(&buckets, &records, goes, |found| found == 2 || found == 4);
        assert_ne!(sight, Sight::Nothing, "one of the two was there all the time");
        writer.join().unwrap_or_else(|_| panic!("the writer failed"));
    });
}
