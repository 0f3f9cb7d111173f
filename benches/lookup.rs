//! What does it cost to look a key up, known or not?
//!
//! `REFRAIN_ENTRIES` (1 million, then 10 million) completed keys of 36 bytes with bodies of 128, asked for
//! in a scattered order from one thread; and keys that were never claimed. Beside it the same question to
//! 64 maps behind mutexes, which survive nothing.
#![allow(missing_docs, reason = "a program")]

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use refrain::Lookup;

use common::{ShardedMap, fill, group, namespace, scattered_keys, sizes, stores, timed};

fn lookup(criterion: &mut Criterion) {
    for size in sizes() {
        let mut group = group(criterion, "lookup", 1);
        for (name, store, _directory) in stores() {
            let space = namespace(&store);
            fill(&space, 0..size);
            group.bench_function(format!("{name}, {size} keys, hit"), |bencher| {
                bencher.iter_custom(|count| {
                    timed(&scattered_keys(count, 0, size), |key| {
                        assert!(matches!(space.lookup(key), Ok(Lookup::Completed(_))));
                    })
                });
            });
            group.bench_function(format!("{name}, {size} keys, miss"), |bencher| {
                bencher.iter_custom(|count| {
                    timed(&scattered_keys(count, size, size), |key| {
                        assert!(matches!(space.lookup(key), Ok(Lookup::Absent)));
                    })
                });
            });
        }
        let map = ShardedMap::new();
        map.fill(0..size);
        for (what, first) in [("hit", 0), ("miss", size)] {
            let name = format!("64 x Mutex<HashMap>, {size} keys, {what}");
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|count| {
                    timed(&scattered_keys(count, first, size), |key| {
                        assert_eq!(map.is_done(key), first == 0);
                    })
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, lookup);
criterion_main!(benches);
