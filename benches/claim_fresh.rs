//! What does it cost to claim a key that nobody has claimed?
//!
//! 36-byte keys, one thread; tables growing from empty, and beside `REFRAIN_ENTRIES` (100,000) keys that
//! were completed before. Beside it the same question to 64 maps behind mutexes, growing from empty,
//! which survive nothing.
#![allow(missing_docs, reason = "a program")]

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use common::{ShardedMap, claim, entries, fill, key, namespace, stores, timed};

fn claim_fresh(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("claim_fresh");
    group.throughput(Throughput::Elements(1));
    for (is_warm, state) in [(false, "from empty"), (true, "warm")] {
        for (name, store, _directory) in stores() {
            let space = namespace(&store);
            let mut next = 0;
            if is_warm {
                next = entries();
                fill(&space, 0..next);
            }
            group.bench_function(format!("{name}, {state}"), |bencher| {
                bencher.iter_custom(|count| {
                    let start = next;
                    next += count;
                    timed(count, |n| drop(claim(&space, start + n)))
                });
            });
        }
    }
    let map = ShardedMap::new();
    let mut next = 0;
    group.bench_function("64 x Mutex<HashMap>", |bencher| {
        bencher.iter_custom(|count| {
            let start = next;
            next += count;
            timed(count, |n| assert!(map.claim(&key(start + n), start + n).is_ok()))
        });
    });
    group.finish();
}

criterion_group!(benches, claim_fresh);
criterion_main!(benches);
