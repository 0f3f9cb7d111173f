//! What does it cost to look a key up, known or not?
//!
//! `REFRAIN_ENTRIES` (100,000) completed keys of 36 bytes with bodies of 128, asked for in a scattered
//! order from one thread; and keys that were never claimed.
#![allow(missing_docs, reason = "a program")]

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use refrain::Lookup;

use common::{entries, fill, key, namespace, scattered, stores, timed};

fn lookup(criterion: &mut Criterion) {
    let keys = entries();
    let mut group = criterion.benchmark_group("lookup");
    group.throughput(Throughput::Elements(1));
    for (name, store, _directory) in stores() {
        let space = namespace(&store);
        fill(&space, 0..keys);
        group.bench_function(format!("{name}, hit"), |bencher| {
            bencher.iter_custom(|count| {
                timed(count, |n| {
                    let lookup = space.lookup(key(scattered(n, keys)));
                    assert!(matches!(lookup, Ok(Lookup::Completed(_))));
                })
            });
        });
        group.bench_function(format!("{name}, miss"), |bencher| {
            bencher.iter_custom(|count| {
                timed(count, |n| {
                    let lookup = space.lookup(key(keys + scattered(n, keys)));
                    assert!(matches!(lookup, Ok(Lookup::Absent)));
                })
            });
        });
    }
    group.finish();
}

criterion_group!(benches, lookup);
criterion_main!(benches);
