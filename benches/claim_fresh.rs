//! What does it cost to claim a key that nobody has claimed?
//!
//! 36-byte keys, one thread. *From empty*: as many keys as `REFRAIN_ENTRIES` says (1 million, then 10
//! million) into a store that was just opened in an empty directory, a new one for each sample. *Warm*:
//! beside as many keys that were completed before. Beside it the same question to 64 maps behind
//! mutexes, which survive nothing. Keys are made, and stores opened, outside the measured part.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

use common::{
    ShardedMap, fill, group, keys, namespace, next_keys, open, sizes, slow_group, stores, timed,
};

fn from_empty(criterion: &mut Criterion) {
    for size in sizes() {
        let (mut group, fresh) = (slow_group(criterion, "claim_fresh", size), keys(0..size));
        for (name, opened) in open() {
            group.bench_function(format!("{name}, {size} keys from empty"), |bencher| {
                bencher.iter_custom(|count| {
                    let each = |_| {
                        let (store, _directory) = opened();
                        let space = namespace(&store);
                        timed(&fresh, |key| {
                            drop(space.claim(key, None).expect("room").acquired().expect("fresh"));
                        })
                    };
                    (0..count).map(each).sum::<Duration>()
                });
            });
        }
        group.bench_function(format!("64 x Mutex<HashMap>, {size} keys from empty"), |bencher| {
            bencher.iter_custom(|count| {
                let each = |_| {
                    let map = ShardedMap::new();
                    timed(&fresh, |key| assert!(map.claim(key, 7).is_ok()))
                };
                (0..count).map(each).sum::<Duration>()
            });
        });
        group.finish();
    }
}

fn warm(criterion: &mut Criterion) {
    for size in sizes() {
        let mut group = group(criterion, "claim_fresh", 1);
        for (name, store, _directory) in stores() {
            let (space, mut next) = (namespace(&store), size);
            fill(&space, 0..size);
            group.bench_function(format!("{name}, {size} keys warm"), |bencher| {
                bencher.iter_custom(|count| {
                    timed(&next_keys(&mut next, count), |key| {
                        drop(space.claim(key, None).expect("room").acquired().expect("fresh"));
                    })
                });
            });
        }
        let (map, mut next) = (ShardedMap::new(), size);
        map.fill(0..size);
        group.bench_function(format!("64 x Mutex<HashMap>, {size} keys warm"), |bencher| {
            bencher.iter_custom(|count| {
                timed(&next_keys(&mut next, count), |key| assert!(map.claim(key, 7).is_ok()))
            });
        });
        group.finish();
    }
}

criterion_group!(benches, from_empty, warm);
criterion_main!(benches);
