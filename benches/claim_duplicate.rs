//! What does it cost to claim a key that was completed, and to get its 128 bytes back?
//!
//! `REFRAIN_ENTRIES` (100,000) completed keys, 36 bytes each, asked for in a scattered order from one
//! thread. Beside it the same question to 64 maps behind mutexes, which survive nothing.
#![allow(missing_docs, reason = "a program")]

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use refrain::{Body, Claim};

use common::{BODY, ShardedMap, entries, fill, key, namespace, scattered, stores, timed};

fn claim_duplicate(criterion: &mut Criterion) {
    let keys = entries();
    let mut group = criterion.benchmark_group("claim_duplicate");
    group.throughput(Throughput::Elements(1));
    for (name, store, _directory) in stores() {
        let space = namespace(&store);
        fill(&space, 0..keys);
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|count| {
                timed(count, |n| {
                    let outcome = space.claim(key(scattered(n, keys)), None).ok();
                    let outcome = outcome.and_then(Claim::completed).expect("a completed key");
                    assert!(matches!(outcome.body(), Body::Bytes(bytes) if bytes[7] == BODY[7]));
                })
            });
        });
    }
    let map = ShardedMap::new();
    for n in 0..keys {
        assert!(map.claim(&key(n), n).is_ok());
        map.complete(&key(n), n, &BODY);
    }
    group.bench_function("64 x Mutex<HashMap>", |bencher| {
        bencher.iter_custom(|count| {
            timed(count, |n| {
                let body = map.claim(&key(scattered(n, keys)), n).expect_err("a completed key");
                assert!(body.is_some_and(|body| body[7] == BODY[7]));
            })
        });
    });
    group.finish();
}

criterion_group!(benches, claim_duplicate);
criterion_main!(benches);
