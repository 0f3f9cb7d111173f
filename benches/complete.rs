//! What does it cost to complete a claim with 128 bytes?
//!
//! 36-byte keys, one thread; the claims are made outside the measured part. *From empty*: as many keys as
//! `REFRAIN_ENTRIES` says (1 million, then 10 million), claimed and completed in a store that was just
//! opened in an empty directory, a new one for each sample. *Warm*: beside as many keys that were
//! completed before.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use refrain::Namespace;

use common::{
    BODY, ShardedMap, claim, fill, group, keys, namespace, open, sizes, slow_group, stores, timed,
};

/// Claims that are made before their completions are timed.
const BATCH: u64 = 1024;

/// How long it takes to complete these, which are claimed before.
fn completing(space: &Namespace, numbers: std::ops::Range<u64>) -> Duration {
    let (mut next, mut time) = (numbers.start, Duration::ZERO);
    while next < numbers.end {
        let batch = next..numbers.end.min(next + BATCH);
        next = batch.end;
        let leases: Vec<_> = batch.map(|n| claim(space, n)).collect();
        let start = Instant::now();
        for lease in leases {
            lease.complete(BODY).expect("a live lease");
        }
        time += start.elapsed();
    }
    time
}

fn from_empty(criterion: &mut Criterion) {
    for size in sizes() {
        let mut group = slow_group(criterion, "complete", size);
        for (name, opened) in open() {
            group.bench_function(format!("{name}, {size} keys from empty"), |bencher| {
                bencher.iter_custom(|count| {
                    let each = |_| {
                        let (store, _directory) = opened();
                        completing(&namespace(&store), 0..size)
                    };
                    (0..count).map(each).sum::<Duration>()
                });
            });
        }
        let fresh = keys(0..size);
        group.bench_function(format!("64 x Mutex<HashMap>, {size} keys from empty"), |bencher| {
            bencher.iter_custom(|count| {
                let each = |_| {
                    let map = ShardedMap::new();
                    fresh.iter().for_each(|key| assert!(map.claim(key, 7).is_ok()));
                    timed(&fresh, |key| map.complete(key, 7, &BODY))
                };
                (0..count).map(each).sum::<Duration>()
            });
        });
        group.finish();
    }
}

fn warm(criterion: &mut Criterion) {
    for size in sizes() {
        let mut group = group(criterion, "complete", 1);
        for (name, store, _directory) in stores() {
            let (space, mut next) = (namespace(&store), size);
            fill(&space, 0..size);
            group.bench_function(format!("{name}, {size} keys warm"), |bencher| {
                bencher.iter_custom(|count| {
                    next += count;
                    completing(&space, next - count..next)
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, from_empty, warm);
criterion_main!(benches);
