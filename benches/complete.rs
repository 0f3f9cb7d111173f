//! What does it cost to complete a claim with 128 bytes?
//!
//! 36-byte keys, one thread; the claims are made outside the measured part. Stores that are new, and
//! stores with `REFRAIN_ENTRIES` (100,000) keys that were completed before.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use common::{BODY, claim, entries, fill, namespace, stores};

/// Claims that are made before their completions are timed.
const BATCH: u64 = 1024;

fn complete(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("complete");
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
                    let (end, mut time) = (next + count, Duration::ZERO);
                    while next < end {
                        let batch = next..end.min(next + BATCH);
                        next = batch.end;
                        let leases: Vec<_> = batch.map(|n| claim(&space, n)).collect();
                        let start = Instant::now();
                        for lease in leases {
                            lease.complete(BODY).expect("a live lease");
                        }
                        time += start.elapsed();
                    }
                    time
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, complete);
criterion_main!(benches);
