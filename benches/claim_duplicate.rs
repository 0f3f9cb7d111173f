//! What does it cost to claim a key that was completed, and to get its 128 bytes back?
//!
//! `REFRAIN_ENTRIES` (1 million, then 10 million) completed keys, 36 bytes each, asked for in a scattered
//! order from one thread. Beside it the same question to 64 maps behind mutexes, which survive nothing.
#![allow(missing_docs, reason = "a program")]

mod common;

use criterion::{Criterion, criterion_group, criterion_main};
use refrain::{Body, Claim};

use common::{BODY, ShardedMap, fill, group, namespace, scattered_keys, sizes, stores, timed};

fn claim_duplicate(criterion: &mut Criterion) {
    for size in sizes() {
        let mut group = group(criterion, "claim_duplicate", 1);
        for (name, store, _directory) in stores() {
            let space = namespace(&store);
            fill(&space, 0..size);
            group.bench_function(format!("{name}, {size} keys"), |bencher| {
                bencher.iter_custom(|count| {
                    timed(&scattered_keys(count, 0, size), |key| {
                        let outcome = space.claim(key, None).ok().and_then(Claim::completed);
                        let outcome = outcome.expect("a completed key");
                        assert!(matches!(outcome.body(), Body::Bytes(it) if it[7] == BODY[7]));
                    })
                });
            });
        }
        let map = ShardedMap::new();
        map.fill(0..size);
        group.bench_function(format!("64 x Mutex<HashMap>, {size} keys"), |bencher| {
            bencher.iter_custom(|count| {
                timed(&scattered_keys(count, 0, size), |key| {
                    let body = map.claim(key, 7).expect_err("a completed key");
                    assert!(body.is_some_and(|body| body[7] == BODY[7]));
                })
            });
        });
        group.finish();
    }
}

criterion_group!(benches, claim_duplicate);
criterion_main!(benches);
