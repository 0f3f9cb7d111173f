//! What does it cost to claim a key that nobody has claimed?
//!
//! 36-byte keys, one thread, tables growing from empty. Beside it the same question to 64 maps
//! behind mutexes, which survive nothing.
#![allow(missing_docs, reason = "a program")]

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use common::{ShardedMap, key, namespace, stores, timed};

fn claim_fresh(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("claim_fresh");
    group.throughput(Throughput::Elements(1));
    for (name, store, _directory) in stores() {
        let space = namespace(&store);
        let mut next = 0;
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                let start = next;
                next += count;
                timed(count, |n| {
                    let claim = space.claim(key(start + n), None);
                    assert!(claim.is_ok_and(|claim| claim.acquired().is_some()));
                })
            });
        });
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
