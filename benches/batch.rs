//! What does a batch of 32 cost beside 32 calls?
//!
//! Duplicate claims and lookups of missing keys, in a store of `REFRAIN_ENTRIES` (1 million, then 10
//! million) completed keys of 36 bytes with bodies of 128, in a scattered order from one thread; and fresh
//! claims, each way in a store of its own that grows beside as many keys. A time is that of 32 keys, one by
//! one or at once; keys are made outside the measured part. Beside them, what 32 locks take that nobody holds.
#![allow(missing_docs, reason = "a program")]

mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam_utils::CachePadded;
use parking_lot::Mutex;
use refrain::{Claim, ClaimOptions, Lookup, Namespace};

use common::{Key, fill, group, namespace, next_keys, scattered_keys, sizes, stores};

const BATCH: u64 = 32;

fn claim_one_by_one(space: &Namespace, keys: &[Key], is_expected: fn(&Claim) -> bool) {
    for key in keys {
        let claim = space.claim(key, None).expect("room");
        assert!(is_expected(&claim));
    }
}

fn claim_at_once(space: &Namespace, keys: &[Key], is_expected: fn(&Claim) -> bool) {
    let claims: [_; BATCH as usize] = std::array::from_fn(|at| (&keys[at], ClaimOptions::new()));
    for claim in space.claim_batch(&claims) {
        assert!(is_expected(&claim.expect("room")));
    }
}

fn is_completed(claim: &Claim) -> bool {
    matches!(claim, Claim::Completed(_))
}

fn is_acquired(claim: &Claim) -> bool {
    matches!(claim, Claim::Acquired(_))
}

fn look_up_one_by_one(space: &Namespace, keys: &[Key]) {
    for key in keys {
        assert!(matches!(space.lookup(key), Ok(Lookup::Absent)));
    }
}

fn look_up_at_once(space: &Namespace, keys: &[Key]) {
    for lookup in space.lookup_batch(keys) {
        assert!(matches!(lookup, Ok(Lookup::Absent)));
    }
}

type ClaimAll = fn(&Namespace, &[Key], fn(&Claim) -> bool);
type LookUpAll = fn(&Namespace, &[Key]);

const CLAIMS: [(&str, ClaimAll); 2] = [("32 calls", claim_one_by_one), ("a batch", claim_at_once)];
const LOOKUPS: [(&str, LookUpAll); 2] =
    [("32 calls", look_up_one_by_one), ("a batch", look_up_at_once)];

/// How long it takes to do something with 32 keys at a time.
fn timed(keys: &[Key], each: impl FnMut(&[Key])) -> Duration {
    let start = Instant::now();
    keys.chunks(BATCH as usize).for_each(each);
    start.elapsed()
}

fn known(criterion: &mut Criterion) {
    for size in sizes() {
        let mut group = group(criterion, "batch", BATCH);
        for (name, store, _directory) in stores() {
            let space = namespace(&store);
            fill(&space, 0..size);
            for (how, claim) in CLAIMS {
                let name = format!("{name}, {size} keys, duplicates, {how}");
                group.bench_function(name, |bencher| {
                    bencher.iter_custom(|batches| {
                        timed(&scattered_keys(batches * BATCH, 0, size), |keys| {
                            claim(&space, keys, is_completed);
                        })
                    });
                });
            }
            for (how, look_up) in LOOKUPS {
                let name = format!("{name}, {size} keys, missing, {how}");
                group.bench_function(name, |bencher| {
                    bencher.iter_custom(|batches| {
                        timed(&scattered_keys(batches * BATCH, size, size), |keys| {
                            look_up(&space, keys);
                        })
                    });
                });
            }
        }
        group.finish();
    }
}

fn fresh(criterion: &mut Criterion) {
    for size in sizes() {
        let mut group = group(criterion, "batch", BATCH);
        for (how, claim) in CLAIMS {
            for (name, store, _directory) in stores() {
                let (space, mut next) = (namespace(&store), size);
                fill(&space, 0..size);
                group.bench_function(format!("{name}, {size} keys, fresh, {how}"), |bencher| {
                    bencher.iter_custom(|batches| {
                        timed(&next_keys(&mut next, batches * BATCH), |keys| {
                            claim(&space, keys, is_acquired);
                        })
                    });
                });
            }
        }
        group.finish();
    }
}

/// What a batch could spare that took each lock once for all of its keys: 32 locks that nobody holds, each
/// on a line of its own, as shards and lanes have them.
fn locks(criterion: &mut Criterion) {
    let mut group = group(criterion, "batch", BATCH);
    let locks: [CachePadded<Mutex<u64>>; BATCH as usize] = Default::default();
    group.bench_function("32 locks that nobody holds", |bencher| {
        bencher.iter(|| black_box(&locks).iter().for_each(|it| *it.lock() += 1));
    });
    group.finish();
}

criterion_group!(benches, known, fresh, locks);
criterion_main!(benches);
